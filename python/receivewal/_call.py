"""A call of the library on a thread of its own, and the queue by which its caller hears what happens."""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import os
import queue
import select
import signal
import threading
import time
import weakref
from typing import Any, Callable, Deque, Optional

from . import _header as h
from ._lend import Loan, fill
from ._values import LSN, Data, DiskState, Error, Log, Mirror, Problem, Progress, Reconnection, Segment, SegmentOpened, Stopped
from ._values import TimelineSwitch, check, error_of, read


class Ended:
    """How a call has ended."""

    def __init__(self, error: Optional[BaseException], progress: Optional[Progress] = None) -> None:
        self.error = error
        self.progress = progress


class Queue:
    """From the thread of a call to its caller: what happens, and the call's end; with a descriptor that is readable while there
    is something to get."""

    def __init__(self) -> None:
        self._items: Deque[Any] = collections.deque()
        self._end: Optional[Ended] = None
        self._fds = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fds[0], select.POLLIN)

    def fileno(self) -> int:
        return self._fds[0]

    def restart(self) -> None:
        self._items.clear()
        self._end = None

    def put(self, item: object) -> None:
        self._items.append(item)
        self._wake()

    def end(self, end: Ended) -> None:
        self._end = end
        self._wake()

    def get(self, timeout: Optional[float]) -> Any:
        """The next item, at last the end, again and again; None if there is none within timeout seconds. Signal handlers run
        meanwhile, and may raise."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if _exiting and threading.current_thread() is not threading.main_thread():
                threading.Event().wait()  # a daemon thread, which ends here: there is nobody to tell any more
            if self._items:
                return self._items.popleft()
            if self._end is not None and not self._items:  # the last item comes before the end
                return self._end
            with contextlib.suppress(BlockingIOError):
                os.read(self._fds[0], 65536)
            if self._items or self._end is not None:
                self._wake()  # that may have been read just now
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._poll.poll(None if left is None else left * 1000 + 1)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full, and so readable
            os.write(self._fds[1], b"\0")

    def close(self) -> None:
        fds, self._fds = self._fds, (-1, -1)
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    __del__ = close


# Signals are for the program's own threads. This also keeps SIGPIPE, which OpenSSL's writes may raise, from ending the program.
_NOT_OURS = signal.valid_signals() - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP}


def background(work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_OURS)
        work()

    return threading.Thread(target=run, name="receivewal", daemon=True)


class Lease:
    """A handle of the library, and the thread of the call in progress. It outlives a Receiver that is dropped in mid-stream, and
    knows nothing of it: so that can be collected."""

    def __init__(self, loan: Loan, connection: h.receivewal_connection) -> None:
        self.pid = os.getpid()
        self.library = h.load()
        self.loan = loan
        self.queue = Queue()
        self.asking: Optional[Asked] = None
        self.lock = threading.RLock()  # a finalizer may come in between
        self.thread: Optional[threading.Thread] = None
        self.calling = False
        self.asked = False  # to stop
        self.interrupted = False  # so asked by interrupt()
        self.late = False  # the call before was interrupted, perhaps when it had ended already
        self.abandoned = False
        self.released = False
        self.last: Optional[Progress] = None  # when it was released
        self.left_usable = False
        handle = ctypes.c_void_p()
        status = self.library.receivewal_attach(ctypes.byref(connection), ctypes.byref(handle))
        if status != h.OK:
            self.queue.close()
            raise error_of(status)
        self.handle = handle.value
        leases.add(self)

    def launch(self, call: Callable[[], int], receiving: bool) -> None:
        """Makes a call on a thread of its own. calling is true until its end is in the queue, also if this raises."""
        baton = threading.Lock()  # whoever has it decides whether the call is made

        def work() -> None:
            if not baton.acquire(blocking=False):
                return
            error: Optional[BaseException] = None
            progress: Optional[Progress] = None
            try:
                status = call()
                if status == Stopped.code and self.late and not self.asked:
                    status = call()  # that was meant for the call before
                if status != h.OK:
                    error = error_of(status, self.handle)
                if receiving:
                    progress = self.progress()
                    if isinstance(error, Error):
                        error.lsn = progress.flushed_lsn or progress.start_lsn
            except BaseException as e:
                error = e
            with self.lock:
                self.late, self.interrupted, self.asked = self.interrupted, False, False
                self.queue.end(Ended(error, progress))
                self.calling = False
            if self.abandoned:
                self.release()

        with self.lock:
            self.queue.restart()
            thread = background(work)
            try:
                self.calling = True
                self.thread = thread
                thread.start()
            except BaseException:
                if baton.acquire(blocking=False):
                    self.calling = False
                    self.thread = None
                raise

    def progress(self) -> Progress:
        struct = h.receivewal_progress()
        check(self.library.receivewal_get_progress(self.handle, ctypes.byref(struct)))
        return read(Progress, struct)

    def usable(self) -> bool:
        return self.left_usable if self.released else bool(self.library.receivewal_connection_usable(self.handle))

    def stop(self) -> None:
        self.asked = True
        check(self.library.receivewal_stop(self.handle))
        asked = self.asking
        if asked is not None and isinstance(asked.event, Reconnection):
            asked.answer.put(None)  # no connection is needed any more

    def interrupt(self) -> None:
        """Stops the call in progress, and only that one."""
        if os.getpid() != self.pid:
            return  # and nobody may have the lock
        with self.lock:
            if self.calling:
                self.interrupted = True
                self.stop()

    def refuse(self) -> None:
        """Answers what the library waits for, should its caller have been interrupted on the way to do so."""
        asked = self.asking
        if asked is not None:
            asked.answer.put(None)

    def release(self) -> None:
        """Gives the connection back. No call is in progress."""
        with self.lock:
            if self.released:
                return
            self.left_usable, self.last = self.usable(), self.progress()
            self.released = True
        self.library.receivewal_detach(self.handle)
        if not self.abandoned:
            self.queue.close()  # else somebody may still be waiting: it is closed when it is collected
        self.loan.give_back()

    def abandon(self) -> None:
        """Nobody will ask any more: ends it, without waiting for that."""
        if os.getpid() != self.pid:
            return
        with self.lock:
            self.abandoned = True
            if not self.calling:
                self.release()
            elif not self.released:
                self.stop()
                self.refuse()


leases: weakref.WeakSet[Lease] = weakref.WeakSet()
_exiting = False


def _at_exit() -> None:
    """The interpreter ends, perhaps in mid-stream: each receive ends cleanly first."""
    global _exiting
    _exiting = True
    left = [lease for lease in list(leases) if lease.pid == os.getpid() and not lease.released]
    for lease in left:
        lease.abandon()
    for lease in left:
        if lease.thread is not None:
            lease.thread.join(30)


atexit.register(_at_exit)


# ----------------------------------------------------------------------------------------------------- events of C


class Asked:
    """An event for whose answer the library waits: for a Reconnection it is a Loan, or None; for Data, whether it was taken."""

    def __init__(self, event: object) -> None:
        self.event = event
        self.answer: queue.SimpleQueue[Any] = queue.SimpleQueue()


def set_events(lease: Lease, struct: h.receivewal_options, reconnects: bool, ships: bool) -> None:
    """Has each event put into the queue. The callbacks live as long as struct."""

    def post(kind: Callable[..., object]) -> Callable[..., int]:
        def callback(_ctx: Optional[int], event: Any) -> int:
            lease.queue.put(read(kind, event.contents))
            return 0

        return callback

    def log(_ctx: Optional[int], level: int, text: bytes) -> None:
        lease.queue.put(Log(level, text.decode(errors="replace")))

    def ask(event: object) -> Any:
        asked = lease.asking = Asked(event)
        try:
            if lease.abandoned:
                return None
            lease.queue.put(asked)
            return asked.answer.get()
        finally:
            lease.asking = None

    def data(_ctx: Optional[int], event: Any) -> int:
        d = event.contents
        taken = ask(Data(d.timeline, LSN(d.lsn), LSN(d.server_lsn), ctypes.string_at(d.data, d.length)))
        return 0 if taken else 1

    def reconnect(_ctx: Optional[int], why: Any, connection: Any) -> int:
        # From here on the old connection is the caller's.
        lease.loan.give_back()
        loan = ask(read(Reconnection, why.contents))
        if loan is not None:
            lease.loan = loan  # it must live until the next one
            fill(connection.contents, loan)
        return 0

    events = struct.events
    events.log = h.event_log(log)
    events.segment_opened = h.event_segment(post(SegmentOpened))
    events.segment_completed = h.event_segment(post(Segment))
    events.timeline_switched = h.event_timeline_switch(post(TimelineSwitch))
    events.progress = h.event_progress(post(Progress))
    events.problem = h.event_problem(post(Problem))
    events.disk_full = h.event_disk_full(post(DiskState))
    events.mirror = h.event_mirror(post(Mirror))
    if ships:
        events.data = h.event_data(data)
    if reconnects:
        events.reconnect = h.event_reconnect(reconnect)
