"""multiprocessing with fork and spawn, os.fork, and threads."""

import multiprocessing
import os
import pickle
import threading
import traceback

from checks import equal, folder, generate, physical, raises, run, sql, still_works, until

import receivewal


def receive(start, end):
    with receivewal.attach(physical()) as rw:
        seen = []
        p = rw.receive(folder(), start_lsn=start, end_lsn=end, on_segment=seen.append)
        return len(seen), p


def fails(name):
    with receivewal.attach(physical()) as rw:
        rw.drop_slot(name)


def span():
    start = receivewal.LSN(sql("select pg_current_wal_flush_lsn()"))
    return start, generate(3)


# The first one: nothing has used the library in this process yet.
def test_fork_before_the_first_use():
    receivewal.version()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for segments, p in pool.starmap(receive, [span(), span()]):
            equal((segments >= 3, p.segments), (True, segments))
        e = raises(receivewal.NoSlot, pool.apply, fails, ("nowhere",))
        equal((e.code, e.sqlstate, "nowhere" in str(e)), (42, "42704", True))
        pool.close()
        pool.join()


def child(function):
    """Runs it in a forked child, and returns its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fork_in_mid_stream():
    conn = physical()
    with receivewal.attach(conn) as rw:
        rw.start(folder())
        until(lambda: rw.wait(0.01) is None and rw.progress.state == receivewal.State.STREAMING)

        def use():
            for call in (rw.identify, rw.wait, rw.stop, rw.fileno, lambda: rw.progress, lambda: rw.start("/tmp"), physical_child):
                equal(raises(receivewal.Forked, call).code, 20)
            equal(rw.usable, False)
            rw.detach()

        def physical_child():
            receivewal.attach(os.dup(conn.fileno()))

        equal(child(use), 0)

        def leave():  # as a child does that ends in the ordinary way: with what is registered for that
            import atexit
            import gc

            nonlocal rw
            rw = None
            gc.collect()
            atexit._run_exitfuncs()

        equal(child(leave), 0)
        end = generate(2)
        until(lambda: rw.wait(0.01) is None and rw.progress.written_lsn >= end)
    still_works(conn)


def test_multiprocessing_fork_after_use():
    process = multiprocessing.get_context("fork").Process(target=raises, args=(receivewal.Forked, fails, "nowhere"))
    process.start()
    process.join()
    equal(process.exitcode, 0)


def test_spawn_in_mid_stream():
    with receivewal.attach(physical()) as rw:
        rw.start(folder())
        until(lambda: rw.wait(0.01) is None and rw.progress.state == receivewal.State.STREAMING)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for segments, p in pool.starmap(receive, [span(), span()]):
                equal((segments >= 3, p.segments), (True, segments))
            raises(receivewal.NoSlot, pool.apply, fails, ("nowhere",))
            pool.close()
            pool.join()
        equal(rw.wait(0), None)


def test_errors_and_events_can_be_pickled():
    e = receivewal.WALRemoved("text", 41, sqlstate="58P01", detail="d", hint="h", lsn=receivewal.LSN("1/2"))
    f = pickle.loads(pickle.dumps(e))
    equal((type(f), str(f), f.__dict__), (type(e), "text", e.__dict__))
    s = receivewal.Segment("n", receivewal.LSN("1/2"), receivewal.LSN(5), 1, 1 << 20)
    equal(pickle.loads(pickle.dumps(s)), s)
    equal(repr(pickle.loads(pickle.dumps(s)).lsn), "LSN('1/2')")


def test_threads():
    """One receiver each, all at once; the interpreter's lock is free meanwhile."""
    start, end = span()
    results, errors = [], []

    def work():
        try:
            results.append(receive(start, end)[0])
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    equal((len(results), len(set(results)), errors), (6, 1, []))


def test_one_handle_in_two_threads():
    conn = physical()
    with receivewal.attach(conn) as rw:
        seen = []

        def ask():
            for _ in range(200):
                try:
                    rw.identify()
                except receivewal.Busy:
                    pass
                except BaseException as e:
                    seen.append(e)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        equal(seen, [])
        rw.identify()
    still_works(conn)


if __name__ == "__main__":
    run(globals())
