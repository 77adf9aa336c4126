"""Receiving over plain connections of every kind, from a real server."""

import contextlib
import io
import logging
import os
import select
import shutil
import sys
import threading

import psycopg
import psycopg2
from checks import Client, DSN, SEGMENT, equal, folder, generate, physical, raises, run, sql, still_works, until

import receivewal
from receivewal import LSN


def receive_over(conn, close=None):
    """Receives three segments over a connection, asks the server by it, and leaves it idle."""
    directory = folder()
    with receivewal.attach(conn) as rw:
        system = rw.identify()
        equal(system.segment_size, SEGMENT)
        start = system.lsn
        end = generate(3)
        seen = []
        rw.create_slot("over", temporary=True, reserve_wal=True)
        p = rw.receive(directory, slot="over", start_lsn=start, end_lsn=end, on_segment=seen.append)
        equal(len(seen) >= 3, True)
        equal([s.lsn for s in seen], sorted(s.lsn for s in seen))
        equal(seen[0].lsn, start - start % SEGMENT)
        equal(seen[0].name, receivewal.segment_name(1, seen[0].lsn, SEGMENT))
        equal(all(os.path.exists(os.path.join(directory, s.name)) for s in seen), True)
        equal(p.written_lsn >= end and p.flushed_lsn == p.written_lsn and p.segments == len(seen), True)
        equal((rw.usable, rw.stopped, rw.connection is conn), (True, False, True))
        rw.drop_slot("over")


def test_psycopg2():
    conn = physical()
    receive_over(conn)
    still_works(conn)
    conn.close()


def test_psycopg2_without_its_replication_class():
    conn = psycopg2.connect(DSN + " replication=true")
    conn.autocommit = True
    receive_over(conn)
    still_works(conn)
    conn.close()


def test_psycopg3():
    with psycopg.connect(DSN + " replication=true", autocommit=True) as conn:
        receive_over(conn)
        equal(conn.pgconn.exec_(b"IDENTIFY_SYSTEM").ntuples, 1)


def test_pgconn_of_psycopg3():
    pgconn = psycopg.pq.PGconn.connect((DSN + " replication=true").encode())
    receive_over(pgconn)
    equal(pgconn.exec_(b"IDENTIFY_SYSTEM").ntuples, 1)
    pgconn.finish()


def test_descriptor():
    client = Client()
    receive_over(client._usock.fileno())
    equal(client.ask("IDENTIFY_SYSTEM"), b"TDCZ")


def test_socket():
    client = Client()
    client._usock.settimeout(60)
    receive_over(client._usock)
    equal(client._usock.gettimeout(), 60)
    equal(client.ask("IDENTIFY_SYSTEM"), b"TDCZ")


def test_pg8000_style():
    client = Client()
    receive_over(client)
    equal(client.ask("IDENTIFY_SYSTEM"), b"TDCZ")


def test_slots():
    with receivewal.attach(physical()) as rw:
        equal(rw.create_slot("a_slot"), receivewal.Slot(LSN(0), 0))
        e = raises(receivewal.SlotExists, rw.create_slot, "a_slot")
        equal((e.code, e.sqlstate, "a_slot" in str(e)), (44, "42710", True))
        rw.create_slot("a_slot", if_not_exists=True)
        equal(rw.read_slot("a_slot"), receivewal.Slot(LSN(0), 0))
        rw.drop_slot("a_slot", wait=True)
        equal(raises(receivewal.NoSlot, rw.read_slot, "a_slot").code, 42)
        rw.create_slot("a_slot", reserve_wal=True)
        slot = rw.read_slot("a_slot")
        equal((slot.restart_lsn > 0, slot.restart_timeline), (True, 1))
        rw.drop_slot("a_slot")
        raises(receivewal.InvalidArgument, rw.create_slot, "No Slot")
        raises(receivewal.InvalidArgument, rw.create_slot, "a\0slot")
        still = rw.identify()
        equal(still.timeline, 1)


def test_a_callback_stops():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        generate(4)
        seen = []

        def on_segment(segment):
            seen.append(segment)
            return True if len(seen) == 2 else 1  # only True stops

        rw.receive(folder(), start_lsn=start, on_segment=on_segment)
        equal(rw.stopped and len(seen) >= 2, True)
    still_works(conn)


class Mine(Exception):
    pass


def test_what_a_callback_raises_comes_out_of_receive():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        generate(3)
        for event in ("on_segment", "on_segment_opened", "on_progress", "on_log"):
            calls = []

            def fails(what):
                calls.append(what)
                raise Mine(event)

            e = raises(Mine, rw.receive, folder(), start_lsn=start, status_interval=100, progress_interval=1, **{event: fails})
            equal((str(e), len(calls), rw.usable), (event, 1, True))
    still_works(conn)


def test_start_wait_stop():
    conn = physical()
    rw = receivewal.attach(conn)
    raises(receivewal.Busy, rw.wait)
    directory = folder()
    seen = []
    start = rw.identify().lsn
    rw.start(directory, start_lsn=start, on_segment=seen.append, on_segment_opened=lambda s: None)
    raises(receivewal.Busy, rw.start, directory)
    raises(receivewal.Busy, rw.identify)
    equal(rw.wait(0.01), None)
    end = generate(3)
    threads = []

    def stop():
        until(lambda: rw.progress.written_lsn >= end)
        equal(rw.progress.state, receivewal.State.STREAMING)
        threads.append(threading.get_ident())
        rw.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    p = rw.wait()
    thread.join()
    equal((rw.stopped, p.flushed_lsn >= end, len(seen) >= 3, len(threads)), (True, True, True, 1))
    equal(p.server_time is not None and p.state == receivewal.State.IDLE, True)
    rw.detach()
    rw.detach()
    raises(receivewal.Closed, rw.identify)
    rw.stop()
    equal((rw.usable, rw.progress.written_lsn, rw.progress.bytes), (True, p.written_lsn, p.bytes))  # the rate falls
    still_works(conn)


def test_callbacks_run_on_the_thread_that_waits():
    with receivewal.attach(physical()) as rw:
        start = rw.identify().lsn
        end = generate(2)
        threads = set()
        note = lambda _: threads.add(threading.get_ident()) or None
        rw.receive(folder(), start_lsn=start, end_lsn=end, on_segment=note, on_log=note, on_progress=note)
        equal(threads, {threading.get_ident()})


def test_dispatch_when_the_descriptor_is_readable():
    with receivewal.attach(physical()) as rw:
        start = rw.identify().lsn
        end = generate(3)
        seen = []
        rw.start(folder(), start_lsn=start, end_lsn=end, on_segment=seen.append)
        result = None
        poll = select.epoll()
        poll.register(rw.fileno(), select.EPOLLIN)
        while result is None:
            poll.poll()
            result = rw.dispatch()
        equal(len(seen) >= 3 and result.written_lsn >= end, True)


def test_iteration():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        end = generate(3)
        directory = folder()
        events = list(rw.stream(directory, start_lsn=start, end_lsn=end, progress_interval=1))
        kinds = {type(e) for e in events}
        equal(receivewal.Segment in kinds and receivewal.Progress in kinds and receivewal.Log not in kinds, True)
        completed = [e.name for e in events if isinstance(e, receivewal.Segment)]
        equal(completed, sorted(n for n in os.listdir(directory) if not n.endswith(".partial")))
    still_works(conn)


def test_leaving_the_iteration():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        generate(3)
        for event in rw.stream(folder(), start_lsn=start):
            if isinstance(event, receivewal.Segment):
                break
        rw.identify()  # the loop is left, so the connection is idle
        with rw.stream(folder(), start_lsn=start) as events:
            next(events)
            raises(receivewal.Busy, rw.identify)
        equal(list(events), [])
        events = rw.stream(folder(), start_lsn=start)
        next(events)
        rw.stop()
        list(events)
        equal(rw.stopped, True)
        rw.identify()
        raises(Mine, list, rw.stream(folder(), start_lsn=start, on_segment=throw))
        rw.identify()
        next(rw.stream(folder(), start_lsn=start))
    still_works(conn)


def throw(_):
    raise Mine


def test_errors_by_kind():
    conn = physical()
    with receivewal.attach(conn) as rw:
        e = raises(receivewal.NoSlot, rw.receive, folder(), slot="nowhere")
        equal((e.code, isinstance(e, receivewal.ServerError), "nowhere" in str(e)), (42, True, True))
        e = raises(receivewal.NoDirectory, rw.receive, "/nowhere")
        equal((e.code, e.sqlstate, e.lsn), (50, "", LSN(0)))
        e = raises(receivewal.InvalidArgument, rw.receive, folder(), synchronous=True, no_sync=True)
        equal(isinstance(e, ValueError), True)
        for wrong in ({"repair": "no"}, {"disk_full": "panic"}, {"status_interval": 1 << 40}, {"slot": "a\0b"},
                      {"start_timeline": -1}, {"start_timeline": 2}):
            raises(receivewal.InvalidArgument, rw.receive, folder(), **wrong)
        raises(ValueError, rw.receive, folder(), start_lsn="nonsense")
        raises(TypeError, rw.receive, folder(), nonsense=1)
        raises(TypeError, rw.receive)
        directory = folder()
        other = receivewal.attach(physical())
        other.start(directory)
        until(lambda: other.progress.state == receivewal.State.STREAMING)
        equal(raises(receivewal.Locked, rw.receive, directory).code, 52)
        other.detach()
        equal(rw.usable, True)
    still_works(conn)
    raises(receivewal.ForeignWAL, foreign)


def foreign():
    """Receives into a directory whose newest segment is another cluster's."""
    directory = folder()
    with receivewal.attach(physical()) as rw:
        seen = []
        rw.receive(directory, start_lsn=rw.identify().lsn, end_lsn=generate(2), on_segment=seen.append)
        with open(os.path.join(directory, seen[-1].name), "r+b") as f:
            f.seek(24)  # xlp_sysid of XLogLongPageHeaderData
            f.write(b"\1\2\3\4\5\6\7\0")
        try:
            rw.receive(directory)
        finally:
            shutil.rmtree(directory)


def test_what_cannot_be_lent():
    conn = physical()
    conn.close()
    raises(receivewal.BadDescriptor, receivewal.attach, conn)
    conn = psycopg.connect(DSN + " replication=true")
    conn.close()
    raises(receivewal.BadDescriptor, receivewal.attach, conn)
    conn = psycopg2.connect(DSN)
    conn.cursor().execute("select 1")
    e = raises(receivewal.InvalidArgument, receivewal.attach, conn)
    equal("transaction" in str(e), True)
    conn.rollback()
    with receivewal.attach(conn) as rw:  # no replication connection: the server says so
        equal(raises(receivewal.Error, rw.identify).code in (40, 45), True)
    conn.close()


def test_connection_lost():
    conn = physical("application_name=lost")
    rw = receivewal.attach(conn)
    start = rw.identify().lsn
    end = generate(2)
    kill = killer("lost", lambda: rw.progress.flushed_lsn >= end)
    e = raises(receivewal.ConnectionLost, rw.receive, folder(), start_lsn=start, synchronous=True)
    kill.join()
    equal((e.code, e.sqlstate, e.lsn >= end, rw.usable), (34, "57P01", True, False))
    rw.detach()


def killer(name, when):
    def kill():
        until(when)
        sql(f"select count(pg_terminate_backend(pid)) from pg_stat_replication where application_name = '{name}'")

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_reconnect():
    conn = physical("application_name=again")
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        end = generate(2)
        new, asked, after = [], [], []

        def reconnect(why):
            asked.append(why)
            if len(asked) == 1:
                raise psycopg2.OperationalError("the server is not there yet")
            if len(asked) == 2:
                return None
            conn.close()
            new.append(physical("application_name=anew"))
            return new[0]

        def on_progress(p):
            if p.reconnects and p.written_lsn >= end:
                if not after:
                    after.append(generate(2))
                return p.written_lsn >= after[0]

        kill = killer("again", lambda: rw.progress.written_lsn >= end)
        directory = folder()
        rw.receive(directory, start_lsn=start, reconnect=reconnect, on_progress=on_progress, progress_interval=10)
        kill.join()
        equal([w.attempt for w in asked], [1, 2, 3])
        equal((asked[0].status, asked[0].sqlstate, rw.progress.reconnects, rw.stopped), (34, "57P01", 1, True))
        equal(rw.connection is new[0] and rw.usable, True)
    still_works(new[0])


def test_reconnect_gives_up():
    for answer, kind in ((throw, Mine), (lambda why: "no connection", TypeError)):
        rw = receivewal.attach(physical("application_name=giveup"))
        kill = killer("giveup", lambda: rw.progress.written_lsn > 0)
        raises(kind, rw.receive, folder(), reconnect=answer)
        kill.join()
        rw.detach()


def test_stop_while_reconnecting():
    rw = receivewal.attach(physical("application_name=hopeless"))
    kill = killer("hopeless", lambda: rw.progress.written_lsn > 0)
    rw.start(folder(), reconnect=lambda why: None)
    until(lambda: rw.wait(0) is None and rw.progress.state == receivewal.State.RECONNECTING)
    kill.join()
    rw.stop()
    rw.wait()
    equal((rw.stopped, rw.usable), (True, False))
    rw.detach()


def test_stop_before_receive():
    with receivewal.attach(physical()) as rw:
        rw.stop()
        rw.receive(folder())
        equal(rw.stopped, True)
        rw.identify()


def test_log():
    messages = []

    class Handler(logging.Handler):
        def emit(self, record):
            messages.append(record)

    logger = logging.getLogger("receivewal")
    handler = Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with receivewal.attach(physical()) as rw:
            rw.start(folder())
            until(lambda: rw.wait(0.01) is None and messages)
            rw.stop()
            rw.wait()
            seen = len(messages)
            mine = []
            rw.start(folder(), on_log=mine.append)
            until(lambda: rw.wait(0.01) is None and mine)
            equal(len(messages), seen)
            equal((type(mine[0]), mine[0].level in (10, 20), mine[0].text != ""), (receivewal.Log, True, True))
    finally:
        logger.removeHandler(handler)
    equal(all(m.name == "receivewal" and m.levelno in (10, 20, 30, 40) for m in messages), True)


def shown(**options):
    with receivewal.attach(physical()) as rw:
        start = rw.identify().lsn
        end = generate(2)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            rw.receive(folder(), start_lsn=start, end_lsn=end, progress=True, progress_interval=1, **options)
        return err.getvalue(), receivewal.segment_name(1, end, SEGMENT)


def test_progress_by_tqdm():
    import tqdm  # or else this would not be tested

    text, last = shown()
    equal(last in text and "%|" in text and "behind" in text, True)


def test_progress_on_a_line():
    sys.modules["tqdm"] = None  # as if it were not installed
    try:
        text, last = shown()
    finally:
        del sys.modules["tqdm"]
    equal((last in text, "\r" in text, text.rstrip(" \n").endswith("behind"), "MB received" in text), (True, True, True, True))


def test_a_receiver_that_is_dropped_in_mid_stream():
    import gc

    conn = physical("application_name=dropped")
    rw = receivewal.attach(conn)
    rw.start(folder(), on_segment=lambda s: rw)  # also in a cycle
    until(lambda: sql("select count(*) from pg_stat_replication where application_name = 'dropped' and state = 'streaming'"))
    lease = rw._lease
    del rw
    gc.collect()
    until(lambda: lease.released)
    still_works(conn)


def test_nothing_is_left():
    def left():
        threads = [t for t in threading.enumerate() if t.name == "receivewal"]
        return len(os.listdir("/proc/self/fd")), len(threads)

    with receivewal.attach(physical()) as rw:
        rw.identify()
    del rw
    conn = physical()
    before = left()
    for _ in range(20):
        with receivewal.attach(conn) as rw:
            rw.identify()
            rw.start(folder())
    equal(left(), before)


def test_a_stream_taken_over():
    client = Client()
    system = sql("select system_identifier::text from pg_control_system()")
    start = LSN(sql("select pg_current_wal_flush_lsn()"))
    start -= start % SEGMENT
    end = generate(2)
    query = f"START_REPLICATION {start} TIMELINE 1"
    import struct

    client._usock.sendall(struct.pack("!ci", b"Q", 5 + len(query)) + query.encode() + b"\0")
    kind, length = struct.unpack("!ci", client._exactly(5))
    equal(kind, b"W")
    client._exactly(length - 4)
    ahead = client._exactly(100)
    seen = []
    known = {"system_identifier": int(system), "segment_size": SEGMENT}
    with receivewal.attach(client, read_ahead=ahead, stream=(1, start), **known) as rw:
        rw.receive(folder(), end_lsn=end, on_segment=seen.append)
    equal(seen[0].lsn, start)
    equal(client.ask("IDENTIFY_SYSTEM"), b"TDCZ")


run(globals())
