"""async for on an event loop."""

import asyncio
import os

import psycopg
from checks import DSN, equal, folder, generate, physical, run, sql, still_works

import receivewal
from receivewal import Segment


def asynchronous(function):
    def test():
        asyncio.run(asyncio.wait_for(function(), 60))

    return test


async def later(function, *args):
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


@asynchronous
async def test_async_for():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        end = await later(generate, 3)
        directory = folder()
        seen = [e.name async for e in rw.stream(directory, start_lsn=start, end_lsn=end) if isinstance(e, Segment)]
        equal(seen, sorted(n for n in os.listdir(directory) if not n.endswith(".partial")))
        equal(rw.stopped, False)
    still_works(conn)


@asynchronous
async def test_three_at_once_and_the_loop_goes_on():
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def receive(start, end):
        with receivewal.attach(physical()) as rw:
            return [e.name async for e in rw.stream(folder(), start_lsn=start, end_lsn=end) if isinstance(e, Segment)]

    ticker = asyncio.ensure_future(tick())
    start = receivewal.LSN(await later(sql, "select pg_current_wal_flush_lsn()"))
    tasks = [asyncio.ensure_future(receive(start, start + (6 << 20))) for _ in range(3)]
    await asyncio.sleep(0.3)  # they wait for WAL now
    before = ticks
    await asyncio.sleep(0.2)
    equal(ticks > before, True)
    await later(generate, 8)
    a, b, c = await asyncio.gather(*tasks)
    equal((a, len(a) >= 6), (b, True))
    equal(b, c)
    ticker.cancel()


@asynchronous
async def test_callbacks_may_be_coroutines():
    with receivewal.attach(physical("application_name=aio")) as rw:
        start = rw.identify().lsn
        await later(generate, 2)
        new, named = [], []

        async def on_segment(segment):
            await asyncio.sleep(0.001)
            named.append(segment.name)
            if len(named) == 2:
                await later(sql, "select count(pg_terminate_backend(pid)) from pg_stat_replication where application_name = 'aio'")

        async def reconnect(why):
            new.append(await psycopg.AsyncConnection.connect(DSN + " replication=true", autocommit=True))
            await later(generate, 2)
            return new[0]

        async def on_progress(p):
            await asyncio.sleep(0)
            return p.reconnects == 1 and p.segments >= 4

        stream = rw.stream(folder(), start_lsn=start, on_segment=on_segment, reconnect=reconnect, on_progress=on_progress,
                           progress_interval=10)
        seen = [e.name async for e in stream if isinstance(e, Segment)]
        equal((seen, len(seen) >= 4, rw.stopped, rw.connection is new[0]), (named, True, True, True))
    await new[0].close()


class Mine(Exception):
    pass


@asynchronous
async def test_what_a_coroutine_raises():
    async def fails(_):
        await asyncio.sleep(0)
        raise Mine

    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        await later(generate, 2)
        try:
            async for _ in rw.stream(folder(), start_lsn=start, on_segment=fails):
                pass
            raise AssertionError("nothing was raised")
        except Mine:
            pass
        equal(rw.usable, True)
    still_works(conn)


@asynchronous
async def test_leaving_the_loop():
    conn = physical()
    with receivewal.attach(conn) as rw:
        start = rw.identify().lsn
        await later(generate, 2)
        async for event in rw.stream(folder(), start_lsn=start):
            if isinstance(event, Segment):
                break
        rw.identify()
        async with rw.stream(folder(), start_lsn=start) as events:
            async for event in events:
                if isinstance(event, Segment):
                    break
        rw.identify()
    still_works(conn)


@asynchronous
async def test_a_cancelled_task():
    conn = physical()

    async def receive():
        with receivewal.attach(conn) as rw:
            async for _ in rw.stream(folder()):
                pass

    task = asyncio.ensure_future(receive())
    await asyncio.sleep(0.3)
    task.cancel()
    try:
        await task
        raise AssertionError("it was not cancelled")
    except asyncio.CancelledError:
        pass
    still_works(conn)


@asynchronous
async def test_errors():
    with receivewal.attach(physical()) as rw:
        try:
            async for _ in rw.stream("/nowhere"):
                pass
            raise AssertionError("nothing was raised")
        except receivewal.NoDirectory:
            pass
        rw.identify()


@asynchronous
async def test_the_descriptor_by_hand():
    with receivewal.attach(physical()) as rw:
        start = rw.identify().lsn
        end = await later(generate, 2)
        over = asyncio.get_running_loop().create_future()
        seen = []
        rw.start(folder(), start_lsn=start, end_lsn=end, on_segment=seen.append)

        def readable():
            result = rw.dispatch()
            if result is not None:
                over.set_result(result)

        asyncio.get_running_loop().add_reader(rw.fileno(), readable)
        equal((await over).written_lsn >= end and len(seen) >= 2, True)
        asyncio.get_running_loop().remove_reader(rw.fileno())


run(globals())
