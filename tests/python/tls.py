"""Receiving over TLS: by the libpq of psycopg2 and psycopg 3, and by Python's own ssl."""

import ctypes
import os
import threading

import psycopg
import psycopg2
from checks import Client, DSN, equal, folder, generate, physical, raises, run, sql, still_works, until

import receivewal


def connections():
    """One of each kind, and what asks its server a question, for after."""
    conn = physical("application_name=tls")
    yield conn, lambda: still_works(conn)
    three = psycopg.connect(DSN + " replication=true", autocommit=True)
    yield three, lambda: equal(three.pgconn.exec_(b"IDENTIFY_SYSTEM").ntuples, 1)
    client = Client(tls=True)
    yield client, lambda: equal(client.ask("IDENTIFY_SYSTEM"), b"TDCZ")
    other = Client(tls=True)
    other._usock.settimeout(77)
    yield other._usock, lambda: equal((other.ask("IDENTIFY_SYSTEM"), other._usock.gettimeout()), (b"TDCZ", 77))


def test_it_is_encrypted():
    for conn, _ in connections():
        with receivewal.attach(conn) as rw:
            rw.identify()
            equal(sql("select bool_and(ssl) and count(*) > 0 from pg_stat_ssl join pg_stat_replication using (pid)"), True)


def test_receive():
    for conn, ask in connections():
        with receivewal.attach(conn) as rw:
            start = rw.identify().lsn
            end = generate(20)
            seen = []
            rw.receive(folder(), start_lsn=start, end_lsn=end, on_segment=seen.append, synchronous=True)
            equal(len(seen) >= 20 and rw.usable, True)
            rw.create_slot("over_tls", temporary=True)
            rw.drop_slot("over_tls")
        ask()


def test_streaming_is_stopped():
    for conn, ask in connections():
        with receivewal.attach(conn) as rw:
            rw.start(folder())
            until(lambda: rw.wait(0.01) is None and rw.progress.state == receivewal.State.STREAMING)
            end = generate(2)
            until(lambda: rw.wait(0.01) is None and rw.progress.written_lsn >= end)
            rw.stop()
            rw.wait()
            equal((rw.stopped, rw.usable), (True, True))
        ask()


def test_iteration():
    for conn, ask in connections():
        with receivewal.attach(conn) as rw:
            start = rw.identify().lsn
            generate(2)
            for event in rw.stream(folder(), start_lsn=start):
                if isinstance(event, receivewal.Segment):
                    break
        ask()


def test_server_ends_the_connection():
    for conn, _ in connections():
        rw = receivewal.attach(conn)

        def kill():
            until(lambda: rw.progress.written_lsn > 0)
            sql("select count(pg_terminate_backend(pid)) from pg_stat_replication")

        thread = threading.Thread(target=kill)
        thread.start()
        e = raises(receivewal.ConnectionLost, rw.receive, folder())
        thread.join()
        equal((e.sqlstate, rw.usable), ("57P01", False))
        rw.detach()


def test_closed_while_it_is_lent():
    for conn, _ in connections():
        rw = receivewal.attach(conn)
        rw.start(folder())
        until(lambda: rw.wait(0.01) is None and rw.progress.written_lsn > 0)
        (conn if hasattr(conn, "close") else conn._usock).close()
        e = raises(receivewal.ConnectionLost, rw.wait, 60)
        equal("clos" in str(e), True)
        rw.detach()


def test_a_session_that_is_gone_is_not_touched():
    """Where the connection is closed by another thread just before a call."""
    from receivewal._lend import lend

    for connect in (physical, lambda: psycopg.connect(DSN + " replication=true")):
        conn = connect()
        loan = lend(conn)
        conn.close()
        buffer = ctypes.create_string_buffer(100)
        for function in (loan.io.read, loan.io.write):
            equal(function(None, ctypes.addressof(buffer), 10), -1)
            loan.io.errmsg(None, ctypes.addressof(buffer), 100)
            equal(buffer.value, b"the connection was closed while it was lent")


def test_reconnect():
    made = list(connections())
    new = iter(made[1:])
    conns = [made[0][0]]
    end = []

    def reconnect(why):
        conns.append(next(new)[0])
        return conns[-1]

    def on_progress(p):
        if p.reconnects < len(made) - 1:
            sql("select count(pg_terminate_backend(pid)) from pg_stat_replication where state = 'streaming'")
        elif not end:
            end.append(generate(1))
        else:
            return p.written_lsn >= end[0]
        generate(1)

    with receivewal.attach(conns[0]) as rw:
        start = rw.identify().lsn
        generate(1)
        rw.receive(folder(), start_lsn=start, reconnect=reconnect, on_progress=on_progress, progress_interval=10)
        equal((rw.stopped, rw.progress.reconnects, rw.connection is conns[-1], len(conns)), (True, 3, True, 4))
    made[-1][1]()


def test_descriptor_of_an_encrypted_connection():
    conn = physical()
    with receivewal.attach(conn.fileno()) as rw:
        equal(raises(receivewal.Encrypted, rw.identify).code, 33)


def test_another_libpq_in_the_process():
    # As packages from PyPI have it: a copy under another name, loaded beside the system's.
    import shutil
    import tempfile

    libpq = next(line.split()[-1] for line in open("/proc/self/maps") if "/libpq.so" in line)
    with tempfile.TemporaryDirectory() as other:
        copy = os.path.join(other, "libpq-0a1b2c3d.so.5")
        shutil.copy(libpq, copy)
        ctypes.CDLL(copy)
        for conn, ask in connections():
            with receivewal.attach(conn) as rw:
                rw.identify()
            ask()


def test_a_connection_class_of_their_own():
    from psycopg2.extras import PhysicalReplicationConnection

    class Own(PhysicalReplicationConnection):
        pass

    conn = psycopg2.connect(DSN, connection_factory=Own)
    with receivewal.attach(conn) as rw:
        rw.identify()
    still_works(conn)


def test_many_bytes():
    """More than libpq, OpenSSL or a socket hold at a time."""
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        for _ in range(6):
            sql("select count(pg_logical_emit_message(true, 'fill', repeat(md5(random()::text), 3000))) from generate_series(1, 100)")
        end = generate(1)
        p = rw.receive(folder(), start_lsn=start, end_lsn=end)
        equal(p.bytes > 50 << 20, True)
    still_works(conn)


run(globals())
