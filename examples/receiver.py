#!/usr/bin/env python3
"""receiver.py: a small receiver of WAL. It connects again when the connection is lost, and ends with Ctrl-C or SIGTERM.

    python3 receiver.py -D /backup/wal -S backup --create-slot -d "host=db user=backup sslmode=require" --progress
"""

import argparse
import logging
import signal
import sys

import psycopg2
from psycopg2.extras import PhysicalReplicationConnection

import receivewal


def options():
    parser = argparse.ArgumentParser(description="Receives PostgreSQL's write-ahead log into a directory.")
    parser.add_argument("-D", "--directory", required=True, help="where the segments go; it must exist")
    parser.add_argument("-d", "--dbname", default="", metavar="CONNSTR", help="a connection string of libpq")
    parser.add_argument("-S", "--slot", help="a physical replication slot")
    parser.add_argument("--create-slot", action="store_true", help="create the slot if it is not there")
    parser.add_argument("-E", "--endpos", type=receivewal.LSN, default=0, metavar="LSN", help="end behind this position")
    parser.add_argument("--synchronous", action="store_true", help="flush WAL as soon as it arrives")
    parser.add_argument("--wait-for-room", action="store_true", help="wait when the disk is full")
    parser.add_argument("-n", "--no-loop", action="store_true", help="end when the connection is lost")
    parser.add_argument("--progress", action="store_true", help="show how far it is")
    parser.add_argument("-v", "--verbose", action="store_true")
    return parser.parse_args()


def main():
    o = options()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.DEBUG if o.verbose else logging.INFO)
    connections = []

    def connect(why=None):
        while connections:
            connections.pop().close()
        settings = {"connection_factory": PhysicalReplicationConnection, "application_name": "receiver.py"}
        connections.append(psycopg2.connect(o.dbname, **settings))
        return connections[0]

    with receivewal.attach(connect()) as rw:
        signal.signal(signal.SIGTERM, lambda *_: rw.stop())
        if o.slot and o.create_slot:
            rw.create_slot(o.slot, reserve_wal=True, if_not_exists=True)
        rw.receive(
            o.directory,
            slot=o.slot,
            end_lsn=o.endpos,
            synchronous=o.synchronous,
            disk_full="wait" if o.wait_for_room else "fail",
            progress=o.progress,
            reconnect=None if o.no_loop else connect,
            on_segment=lambda s: logging.info("finished segment %s, up to %s", s.name, s.end_lsn),
            on_problem=lambda p: logging.warning("%s", p.text),
            on_timeline=lambda t: logging.info("timeline %d begins at %s", t.new_timeline, t.switch_lsn),
        )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass  # everything received is flushed
    except (receivewal.Error, psycopg2.Error) as e:
        sys.exit(f"error: {e}")
