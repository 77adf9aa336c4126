import sys
import psycopg2, psycopg2.extras, receivewal

conn = psycopg2.connect(sys.argv[1], connection_factory=psycopg2.extras.PhysicalReplicationConnection)
with receivewal.attach(conn) as rw:
    print(rw.identify())
    for event in rw.stream(sys.argv[2]):
        if isinstance(event, receivewal.Segment):
            print(event.name, "is complete and safe on disk, up to", event.end_lsn)
