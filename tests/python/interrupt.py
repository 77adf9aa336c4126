"""Ctrl-C, and other signals whose handlers raise, at any moment."""

import os
import random
import signal
import socket
import threading
import time

from checks import equal, folder, generate, physical, raises, run, sql, still_works, until

import receivewal

random.seed(7)


def interrupt(after, begin=True):
    def send():
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    if begin:
        thread.start()
    return thread


def rounds(receive, n):
    """Interrupts it while it has a lot to do, at n moments. The connection is idle again each time."""
    conn = physical()
    start = receivewal.LSN(sql("select pg_current_wal_flush_lsn()"))
    for _ in range(3):
        sql("select count(pg_logical_emit_message(true, 'fill', repeat(md5(random()::text), 3000))) from generate_series(1, 100)")
    generate(1)
    interrupted = 0
    with receivewal.attach(conn) as rw:
        for _ in range(n):
            thread = interrupt(random.random() * 0.05, begin=False)
            try:
                thread.start()  # the signal may come before this has returned
                receive(rw, start)
                while True:
                    time.sleep(0.001)
            except KeyboardInterrupt:
                interrupted += 1
            thread.join()
            equal(rw.usable, True)
            rw.identify()
    equal(interrupted, n)
    still_works(conn)


def test_receive():
    rounds(lambda rw, start: rw.receive(folder(), start_lsn=start, no_sync=True, progress_interval=1, on_segment=lambda s: None), 60)


def test_iteration():
    def iterate(rw, start):
        with rw.stream(folder(), start_lsn=start, no_sync=True) as events:
            for _ in events:
                pass

    rounds(iterate, 30)


def test_questions():
    def ask(rw, _):
        while True:
            rw.identify()

    rounds(ask, 30)


def test_in_a_callback():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        generate(2)
        calls = []

        def on_segment(_):
            calls.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                time.sleep(0.001)

        raises(KeyboardInterrupt, rw.receive, folder(), start_lsn=start, on_segment=on_segment)
        equal((len(calls), rw.usable), (1, True))
    still_works(conn)


def test_segments_completed_until_then_are_told():
    with receivewal.attach(physical()) as rw:
        start = rw.identify().lsn
        generate(5)
        seen, directory = [], folder()

        def send():
            until(lambda: rw.progress.segments >= 5)  # completed, though perhaps not told yet
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=send)
        thread.start()
        raises(KeyboardInterrupt, rw.receive, directory, start_lsn=start, on_segment=lambda s: seen.append(s.name))
        thread.join()
        equal(seen, sorted(n for n in os.listdir(directory) if not n.endswith(".partial")))
        equal(len(seen) >= 5, True)


def test_a_server_that_does_not_answer():
    for call in (lambda rw: rw.identify(), lambda rw: rw.receive(folder())):
        ours, theirs = socket.socketpair()
        with receivewal.attach(ours) as rw:
            interrupt(0.1)
            raises(KeyboardInterrupt, call, rw)
        ours.close()
        theirs.close()


def test_a_handler_that_stops():
    conn = physical()
    with receivewal.attach(conn) as rw:
        before = signal.signal(signal.SIGINT, lambda *_: rw.stop())
        try:
            interrupt(0.2)
            rw.receive(folder())
        finally:
            signal.signal(signal.SIGINT, before)
        equal(rw.stopped, True)
    still_works(conn)


def test_a_handler_that_exits():
    conn = physical()

    def leave(*_):
        raise SystemExit(3)

    before = signal.signal(signal.SIGINT, leave)
    try:
        with receivewal.attach(conn) as rw:
            interrupt(0.2)
            equal(raises(SystemExit, rw.receive, folder()).code, 3)
    finally:
        signal.signal(signal.SIGINT, before)
    still_works(conn)


def test_a_check_of_a_directory():
    directory = folder()
    for i in range(1, 6000, 2):
        with open(os.path.join(directory, f"0000000100000000{i:08X}"), "wb"):
            pass
    interrupt(0.02)
    try:
        while True:
            receivewal.check_directory(directory, segment_size=1 << 20)
    except KeyboardInterrupt:
        pass
    for name in os.listdir(directory):
        os.remove(os.path.join(directory, name))


def test_sigpipe_with_its_default_action():
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        conn = physical("application_name=pipe")
        rw = receivewal.attach(conn)
        rw.start(folder(), status_interval=1)
        until(lambda: rw.wait(0.01) is None and rw.progress.state == receivewal.State.STREAMING)
        sql("select count(pg_terminate_backend(pid)) from pg_stat_replication where application_name = 'pipe'")
        raises(receivewal.ConnectionLost, rw.wait)
        rw.detach()
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_signals_are_for_the_programs_threads():
    from receivewal._call import background

    blocked = []
    thread = background(lambda: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    thread.start()
    thread.join()
    equal({signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE} - blocked[0], set())
    equal({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE} & blocked[0], set())  # Go needs them


run(globals())
