"""Receive PostgreSQL's write-ahead log over a replication connection that the program already holds.

    import psycopg2, psycopg2.extras, receivewal

    conn = psycopg2.connect(dsn, connection_factory=psycopg2.extras.PhysicalReplicationConnection)
    with receivewal.attach(conn) as rw:
        print(rw.identify())
        rw.receive("wal/", slot="backup", on_segment=lambda s: print(s.name, s.lsn))

It is libreceivewal by ctypes: receivewal.h says what everything means. Sizes and WAL positions are in bytes; the options' times
are in milliseconds, as there; wait() takes seconds, as Python does.

How it works: each call of the library that may take long runs on a thread of its own and puts what happens into a queue; the
caller's thread waits for the queue, and runs the callbacks. For Python raises KeyboardInterrupt wherever the main thread enters a
function, and an exception can't pass through C: so C that calls back must not be on that thread. It also means that a connection
whose TLS runs in this process is served while a callback takes its time.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import inspect
import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Literal, Optional, Sequence, Tuple, TypeVar, Union

from . import _header as h
from ._call import Asked, Ended, Lease, Queue, background, set_events
from ._lend import Loan, describe, lend
from ._values import (
    BadDescriptor, Busy, Check, check, Closed, ConnectionLost, CoreMissing, Data, DiskFull, DiskState, Encrypted, Error,
    Event, ForeignWAL, Forked, Gap, InternalError, InvalidArgument, InvalidHandle, IOFailed, LimitReached, Locked, Log, LSN,
    Mirror, MirrorState, NoDirectory, NoSlot, NotConnected, NotSocket, PermissionDenied, Problem, ProblemKind, ProblemState,
    Progress, ProtocolViolation, read, Reconnection, Segment, SegmentOpened, ServerError, SizeMismatch, Slot, SlotBusy,
    SlotExists, StartPoint, State, Stopped, System, TimelineSwitch, Unsupported, WALRemoved, WrongTimeline,
)

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec("_P")

__all__ = [
    "LSN", "State", "ProblemKind", "ProblemState", "System", "Slot", "StartPoint", "Check", "Segment", "SegmentOpened",
    "TimelineSwitch", "Progress", "Problem", "DiskState", "Mirror", "MirrorState", "Data", "Log", "Reconnection", "Event",
    "Error", "InvalidArgument", "SizeMismatch", "InvalidHandle", "Closed", "Busy", "Forked", "CoreMissing", "LimitReached",
    "BadDescriptor", "NotSocket", "NotConnected", "Encrypted", "ConnectionLost", "ProtocolViolation", "ServerError",
    "WALRemoved", "NoSlot", "SlotBusy", "SlotExists", "Unsupported", "NoDirectory", "PermissionDenied", "Locked",
    "DiskFull", "IOFailed", "Gap", "ForeignWAL", "WrongTimeline", "Stopped", "InternalError", "Options", "Receiver",
    "Stream", "attach", "load", "find_start", "check_directory", "segment_name", "parse_segment_name", "version",
]

for _public in __all__:
    if isinstance(globals().get(_public), type):
        globals()[_public].__module__ = __name__  # where it is to be found, also by pickle

_T = TypeVar("_T")
AnyPath = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the program configures logging


# ----------------------------------------------------------------------------------------------------- options


@dataclasses.dataclass
class Options:
    """What receive, start and stream take. receivewal_options in receivewal.h says more of each.

    A callback that returns True stops the receive, as stop() does. One that raises stops it too, and the exception comes out of
    receive, wait, dispatch or the iteration once the receive has ended. Callbacks run on the thread that called those.
    """

    directory: AnyPath  # where segments are written; it must exist
    slot: Optional[str] = None
    start_lsn: Union[LSN, int, str] = 0  # where to start if the directory has no WAL yet
    start_timeline: int = 0
    end_lsn: Union[LSN, int, str] = 0  # stop behind it; 0: never
    status_interval: int = 10000  # milliseconds
    progress_interval: int = 1000  # milliseconds
    synchronous: bool = False
    no_sync: bool = False
    file_mode: int = 0
    receive_timeout: int = 0  # milliseconds
    flush_interval: int = 0  # milliseconds
    repair: Literal["fetch", "stop", "off"] = "fetch"  # missing segments
    disk_full: Literal["fail", "wait"] = "fail"  # on_disk_full in receivewal.h
    check_pages: bool = False
    compression: Literal["none", "gzip", "lz4", "zstd"] = "none"  # of new segments
    compression_level: int = 0
    compression_workers: int = 0
    suffixes: Sequence[str] = ()  # of complete segments, such as ".enc", besides those that receivewal.h names
    mirrors: Sequence[AnyPath] = ()  # directories that are written in step
    mirror_required: bool = False
    confirm: bool = False  # the server is told no position beyond what confirm() says
    slot_wait: int = 0  # milliseconds
    progress: bool = False  # show it: by tqdm where that is installed, else as a line on stderr
    on_segment: Optional[Callable[[Segment], object]] = None
    on_segment_opened: Optional[Callable[[SegmentOpened], object]] = None
    on_timeline: Optional[Callable[[TimelineSwitch], object]] = None
    on_progress: Optional[Callable[[Progress], object]] = None
    on_problem: Optional[Callable[[Problem], object]] = None
    on_disk_full: Optional[Callable[[DiskState], object]] = None
    on_mirror: Optional[Callable[[Mirror], object]] = None
    # Each byte once, in order. Receiving waits for it, and so does what the server is told to be flushed.
    on_data: Optional[Callable[[Data], object]] = None
    on_log: Optional[Callable[[Log], object]] = None  # None: the logger "receivewal" gets them
    # Called when the connection is lost, to return a new one; None: ask again later. An OSError, or a driver's OperationalError,
    # that it raises counts as None. The old connection is the caller's to close.
    reconnect: Optional[Callable[[Reconnection], object]] = None


# How an option becomes the field of receivewal_options: under the same name unless it is named here.
_FIELDS = {"disk_full": "on_disk_full"}
_WORDS = {"repair": ("fetch", "stop", "off"), "disk_full": ("fail", "wait"), "compression": ("none", "gzip", "lz4", "zstd")}
_LISTS = {"suffixes": "suffix_count", "mirrors": "mirror_count"}

_CALLBACKS: Dict[type, str] = {
    Segment: "on_segment",
    SegmentOpened: "on_segment_opened",
    TimelineSwitch: "on_timeline",
    Progress: "on_progress",
    Problem: "on_problem",
    DiskState: "on_disk_full",
    Mirror: "on_mirror",
    Data: "on_data",
    Log: "on_log",
    Reconnection: "reconnect",
}


def _assign(struct: Any, field: str, value: Any) -> None:
    """Sets a field. ctypes itself would cut what is too large, and a text at its first NUL."""
    setattr(struct, field, value)
    if getattr(struct, field) != value:
        raise InvalidArgument(f"{field} is out of range: {value!r}")


def _encoded(name: str, text: bytes) -> bytes:
    if b"\0" in text:
        raise InvalidArgument(f"{name} contains a NUL: {text!r}")
    return text


def _assign_list(struct: Any, field: str, values: Sequence[AnyPath]) -> None:
    """Sets an array of texts, and its length."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{field} is a list")
    texts = [_encoded(field, os.fsencode(value)) for value in values]
    if texts:
        setattr(struct, field, (ctypes.c_char_p * len(texts))(*texts))
        setattr(struct, _LISTS[field], len(texts))


def _write_options(options: Options) -> h.receivewal_options:
    struct = h.receivewal_options()
    for option in dataclasses.fields(Options):
        name = option.name
        field = _FIELDS.get(name, name)
        value = getattr(options, name)
        if name in ("on_disk_full", "reconnect") or not hasattr(struct, field):
            continue
        if name in _LISTS:
            _assign_list(struct, name, value)
            continue
        if name == "directory":
            value = _encoded(name, os.fsencode(value))
        elif isinstance(value, str) and name in ("start_lsn", "end_lsn"):
            value = LSN(value)
        elif name in _WORDS:
            if value not in _WORDS[name]:
                raise InvalidArgument(f"{name} is one of {', '.join(_WORDS[name])}: {value!r}")
            value = _WORDS[name].index(value)
        elif isinstance(value, str):
            value = _encoded(name, value.encode())
        _assign(struct, field, value)
    return struct


# ----------------------------------------------------------------------------------------------------- receiving


class _Bar:
    """Progress on a terminal."""

    def __init__(self, options: Options) -> None:
        self._end = LSN(options.end_lsn)
        self._tqdm: Any = None
        with contextlib.suppress(ImportError):
            self._tqdm = importlib.import_module("tqdm").tqdm(unit="B", unit_scale=True, unit_divisor=1024)
        self._line = ""

    def show(self, p: Progress) -> None:
        if self._tqdm is not None:
            if self._end > p.start_lsn:
                self._tqdm.total = max(self._end - p.start_lsn, p.bytes)
            self._tqdm.set_postfix_str(f"{p.segment}, {_size(p.lag)} behind", refresh=False)
            self._tqdm.update(p.bytes - self._tqdm.n)
            return
        line = f"{p.segment or 'waiting'}: {_size(p.bytes)} received, flushed to {p.flushed_lsn}, {_size(p.lag)} behind"
        print("\r" + line.ljust(len(self._line)), end="", file=sys.stderr, flush=True)
        self._line = line

    def close(self) -> None:
        if self._tqdm is not None:
            self._tqdm.close()
        elif self._line:
            print(file=sys.stderr)


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1024 or unit == "GB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"


class _Run:
    """A call in progress, as the caller's side sees it."""

    def __init__(self, options: Optional[Options] = None) -> None:
        self.options = options
        self.error: Optional[BaseException] = None  # what a callback raised
        self.lent: Optional[Loan] = None  # what a reconnect callback gave last
        self.dropped = False  # its events interest nobody any more
        self.bar = _Bar(options) if options is not None and options.progress else None


def _not_yet(e: BaseException) -> bool:
    """Whether what a reconnect callback raised means that the server cannot be reached now (PEP 249 names the class)."""
    return isinstance(e, OSError) or any(c.__name__ == "OperationalError" for c in type(e).__mro__)


def _takes_options(
    method: Callable[[Receiver, Options], _T]
) -> Callable[[Callable[_P, Options]], Callable[Concatenate[Receiver, _P], _T]]:
    """A method of Receiver that takes what Options takes."""

    def of(options: Callable[_P, Options]) -> Callable[Concatenate[Receiver, _P], _T]:
        def taking(self: Receiver, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
            return method(self, options(*args, **kwargs))

        own = inspect.signature(method)
        me = next(iter(own.parameters.values()))
        theirs = inspect.signature(options).parameters.values()
        taking.__name__, taking.__doc__ = method.__name__.lstrip("_"), method.__doc__
        taking.__qualname__ = f"Receiver.{taking.__name__}"
        setattr(taking, "__signature__", inspect.Signature([me, *theirs], return_annotation=own.return_annotation))
        return taking

    return of


class Receiver:
    """A connection that is lent to the library: see attach(). One thread uses it at a time; only stop() and progress may be used
    from any, and from callbacks. As a context manager it is detached in the end."""

    def __init__(
        self,
        connection: object,
        *,
        read_ahead: bytes = b"",
        stream: Optional[Tuple[int, int]] = None,
        system_identifier: int = 0,
        segment_size: int = 0,
    ) -> None:
        try:
            loan = lend(connection)
        except ValueError as e:
            raise InvalidArgument(str(e)) from None
        try:
            self._lease = Lease(loan, describe(loan, read_ahead, stream, system_identifier, segment_size))
        except BaseException:
            loan.give_back()
            raise
        self._run: Optional[_Run] = None
        self._claim = threading.Lock()
        #: Whether the last receive ended because it was asked to, by stop() or a callback; else it reached end_lsn or failed.
        self.stopped = False
        weakref.finalize(self, self._lease.abandon).atexit = False

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    @property
    def connection(self) -> object:
        """The connection that is lent: the one given to attach, or the last that reconnect returned."""
        return self._lease.loan.connection

    @property
    def progress(self) -> Progress:
        """Where the receive is, or where the last one was."""
        lease = self._lease
        return lease.progress() if lease.last is None else lease.last

    @property
    def usable(self) -> bool:
        """Whether the connection is idle, so that it can be used after detach; or was then."""
        return self._lease.usable()

    def stop(self) -> None:
        """Asks the call in progress to end, a receive cleanly; if there is none, the next one. Returns at once. From any thread,
        signal handler or callback; also after detach, where there is nothing to stop."""
        if not self._lease.released:
            self._need()
            self._lease.stop()

    def confirm(self, lsn: Union[LSN, int, str]) -> None:
        """With the option confirm: all WAL before lsn is safe elsewhere, and the server may be told so. From any thread or
        callback."""
        self._need()
        check(self._lease.library.receivewal_confirm(self._lease.handle, LSN(lsn)))

    def detach(self) -> None:
        """Gives the connection back, after stopping what is in progress. Then it can be used again, if usable said so."""
        lease = self._lease
        if lease.released or os.getpid() != lease.pid:
            return
        self._drop()
        if lease.thread is not None:
            lease.thread.join()
        lease.release()

    # ------------------------------------------------------------------------------------------- ask the server

    def identify(self) -> System:
        """Who the server is."""
        struct = h.receivewal_system()
        self._ask("identify", ctypes.byref(struct))
        return read(System, struct)

    def create_slot(self, name: str, *, reserve_wal: bool = False, temporary: bool = False, if_not_exists: bool = False) -> Slot:
        """Creates a physical replication slot. reserve_wal: it keeps WAL from now on, not only from the first connection on."""
        struct = h.receivewal_slot()
        flags = h.SLOT_RESERVE_WAL * reserve_wal | h.SLOT_TEMPORARY * temporary | h.SLOT_IF_NOT_EXISTS * if_not_exists
        self._ask("create_slot", _encoded("name", name.encode()), flags, ctypes.byref(struct))
        return read(Slot, struct)

    def drop_slot(self, name: str, *, wait: bool = False) -> None:
        """Drops a slot. wait: until it is no longer in use."""
        self._ask("drop_slot", _encoded("name", name.encode()), h.SLOT_WAIT * wait)

    def read_slot(self, name: str) -> Slot:
        """Reads a slot (server 15 and newer)."""
        struct = h.receivewal_slot()
        self._ask("read_slot", _encoded("name", name.encode()), ctypes.byref(struct))
        return read(Slot, struct)

    def _ask(self, function: str, *arguments: Any) -> None:
        lease = self._lease
        run = _Run()
        try:
            self._launch(run, lambda: int(getattr(lease.library, "receivewal_" + function)(lease.handle, *arguments)))
            self._take(None)
        except BaseException:
            if self._run is run:
                self._drop()
            raise

    # -------------------------------------------------------------------------------------------------- receive

    def _receive(self, options: Options) -> Progress:
        """Receives WAL into a directory until end_lsn, stop(), a callback that says so, or an error, which is raised. Takes the
        fields of Options. Ctrl-C, as any exception of a signal handler, is raised once the receive has ended cleanly; a second one at
        once."""
        run = _Run(options)
        try:
            self._begin(run)
            result = self.wait()
            assert result is not None
            return result
        except BaseException:
            if self._run is run:
                self._lease.interrupt()
                self._lease.refuse()
                with contextlib.suppress(Error):
                    self.wait()
            raise

    def _start(self, options: Options) -> None:
        """Begins to receive, as receive does, and returns. The callbacks run in wait and dispatch."""
        self._begin(_Run(options))

    def _begin(self, run: _Run) -> None:
        assert run.options is not None
        lease = self._lease
        struct = _write_options(run.options)
        set_events(lease, struct, run.options.reconnect is not None, run.options.on_data is not None)
        self._launch(run, lambda: int(lease.library.receivewal_receive(lease.handle, ctypes.byref(struct))), receiving=True)

    def _stream(self, options: Options) -> Stream:
        """Receives, as receive does, and gives what happens one by one: for, or async for, over it. The first one begins it."""
        return Stream(self, options)

    receive = _takes_options(_receive)(Options)
    start = _takes_options(_start)(Options)
    stream = _takes_options(_stream)(Options)

    def wait(self, timeout: Optional[float] = None) -> Optional[Progress]:
        """Runs callbacks until the receive ends, and returns or raises as receive does; None: after timeout seconds it has not."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            event = self._take(deadline)
            if event is None:
                return None
            if isinstance(event, Ended):
                return event.progress
            self._settle(event, self._deliver(event))

    def dispatch(self) -> Optional[Progress]:
        """Runs the callbacks that are due, as wait(0)."""
        return self.wait(0)

    def fileno(self) -> int:
        """A descriptor for poll or an event loop: readable when dispatch has something to do. It belongs to the package."""
        self._need()
        return self._lease.queue.fileno()

    # ----------------------------------------------------------------------------------------------- underneath

    def _need(self) -> None:
        if os.getpid() != self._lease.pid:
            raise Forked("the connection was lent before the fork: it is the parent's")
        if self._lease.released:
            raise Closed("the connection was given back")

    def _launch(self, run: _Run, call: Callable[[], int], receiving: bool = False) -> None:
        self._need()
        if self._run is not None and self._run.dropped:
            self._drop()
        try:
            with self._claim:
                if self._run is not None:
                    raise Busy("another call is in progress on this connection")
                self._run = run
            self._lease.launch(call, receiving)
        except BaseException:
            if self._run is run and not self._lease.calling:
                self._run = None
            raise

    def _take(self, deadline: Optional[float]) -> Any:
        """The next event: None if there is none in time, an Ended if the call has ended well, or else its error."""
        self._need()
        run = self._run
        if run is None:
            raise Busy("nothing was started that could be waited for")
        event = self._lease.queue.get(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not isinstance(event, Ended):
            return event
        self._run = None
        if run.lent is not None and run.lent is not self._lease.loan:
            run.lent.give_back()  # it came too late
        if run.bar is not None:
            if event.progress is not None:
                run.bar.show(event.progress)
            run.bar.close()
        self.stopped = isinstance(event.error, Stopped) and run.options is not None
        error = run.error or (None if self.stopped else event.error)
        if error is not None:
            try:
                raise error
            finally:
                del error, run, event
        return event

    def _deliver(self, event: Any) -> Any:
        """Gives an event to its callback, and returns what that returns: perhaps an awaitable."""
        run = self._run
        assert run is not None and run.options is not None
        if run.dropped or run.error is not None:
            return None
        told = event.event if isinstance(event, Asked) else event
        if isinstance(told, Progress) and run.bar is not None:
            run.bar.show(told)
        try:
            callback = getattr(run.options, _CALLBACKS[type(told)])
            if callback is not None:
                return callback(told)
            if isinstance(told, Log):
                logging.getLogger(__name__).log(told.level, "%s", told.text)
        except BaseException as e:
            self._failed(event, e)
        return None

    def _failed(self, event: Any, e: BaseException) -> None:
        """A callback has raised: so the receive stops."""
        run = self._run
        assert run is not None
        if isinstance(event, Asked) and isinstance(event.event, Reconnection) and _not_yet(e):
            logging.getLogger(__name__).warning("cannot connect: %s", e)
            return
        run.error = e
        self._lease.interrupt()

    def _settle(self, event: Any, answer: Any) -> None:
        """Passes a callback's answer on to where it is waited for."""
        run = self._run
        assert run is not None
        if not isinstance(event, Asked):
            if answer is True:
                self._lease.interrupt()
        elif isinstance(event.event, Data):
            event.answer.put(answer is not True and run.error is None and not run.dropped)
        else:
            loan = None
            try:
                loan = run.lent = None if answer is None else lend(answer)
            except Exception as e:
                self._failed(event, e)
            finally:
                event.answer.put(loan)

    def _drop(self) -> None:
        """Ends the call in progress, if there is one, and forgets what it has to say."""
        if self._run is None:
            return
        self._run.dropped = True
        self._lease.interrupt()
        self._lease.refuse()
        with contextlib.suppress(Error):
            while True:
                event = self._take(None)
                if isinstance(event, Ended):
                    return
                self._settle(event, None)


class Stream:
    """An iterator over what happens while WAL is received: Segment, SegmentOpened, TimelineSwitch, Progress, Problem, DiskState,
    Mirror.

    It ends at end_lsn or stop(), and raises errors. Callbacks run besides; in async for they may be coroutines. The receive lasts
    as long as the Stream: leaving the loop ends both, and so do close() and the end of a with statement."""

    def __init__(self, receiver: Receiver, options: Options) -> None:
        self._receiver = receiver
        self._options = options
        self._began: Optional[_Run] = None

    def __iter__(self) -> Stream:
        return self

    def __aiter__(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        run = self._running()
        if run is not None:
            run.dropped = True
            self._receiver._lease.interrupt()

    def _running(self) -> Optional[_Run]:
        return self._began if self._began is not None and self._began is self._receiver._run else None

    def _begin(self) -> bool:
        """False: it has ended before."""
        if self._began is None:
            self._began = _Run(self._options)
            self._receiver._begin(self._began)
        return self._running() is not None

    def __next__(self) -> Event:
        if not self._begin():
            raise StopIteration
        while True:
            event = self._receiver._take(None)
            if isinstance(event, Ended):
                raise StopIteration
            self._receiver._settle(event, self._receiver._deliver(event))
            if self._is_told(event):
                return event  # type: ignore[no-any-return]

    async def __anext__(self) -> Event:
        if not self._begin():
            raise StopAsyncIteration
        receiver = self._receiver
        while True:
            event = receiver._take(0)
            if event is None:
                await self._readable()
                continue
            if isinstance(event, Ended):
                raise StopAsyncIteration
            answer = receiver._deliver(event)
            if inspect.isawaitable(answer):
                try:
                    answer = await answer
                except BaseException as e:
                    answer = None
                    receiver._failed(event, e)
            receiver._settle(event, answer)
            if self._is_told(event):
                return event  # type: ignore[no-any-return]

    def _is_told(self, event: Any) -> bool:
        run = self._running()
        return run is not None and run.error is None and not isinstance(event, (Log, Asked))

    async def _readable(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        fd = self._receiver.fileno()

        def readable() -> None:
            if not ready.done():
                ready.set_result(None)

        loop.add_reader(fd, readable)
        try:
            await ready
        finally:
            loop.remove_reader(fd)

    def close(self) -> None:
        """Stops the receive and waits for its end."""
        if self._running() is not None:
            self._receiver._drop()

    async def aclose(self) -> None:
        """The same without holding up the event loop."""
        run = self._running()
        if run is None:
            return
        run.dropped = True
        self._receiver._lease.interrupt()
        self._receiver._lease.refuse()
        with contextlib.suppress(Error):
            while True:
                event = self._receiver._take(0)
                if isinstance(event, Ended):
                    return
                if event is None:
                    await self._readable()
                else:
                    self._receiver._settle(event, None)


def attach(
    connection: object,
    *,
    read_ahead: bytes = b"",
    stream: Optional[Tuple[int, int]] = None,
    system_identifier: int = 0,
    segment_size: int = 0,
) -> Receiver:
    """Lends a connection, authenticated, with replication=true and idle, to the library. No byte is sent by this.

    It is one of psycopg2 or psycopg 3, with or without TLS, an object with its socket in _usock or _sock as pg8000 has it, an
    ssl.SSLSocket, a socket.socket, a descriptor, or something with fileno(). Until detach() nobody else may use it.

    The rest is for a host that has read more than it used (read_ahead), or has started the stream itself: stream is the timeline
    and LSN of its START_REPLICATION; receivewal_connection in receivewal.h tells the rules.
    """
    return Receiver(
        connection, read_ahead=read_ahead, stream=stream, system_identifier=system_identifier, segment_size=segment_size
    )


# --------------------------------------------------------------------------------------------- without a connection


def load(path: Optional[str] = None) -> None:
    """Loads the library now, from path if that is given: the file, or its folder. Otherwise the first use loads it: from what the
    environment variable RECEIVEWAL_LIB names, else from this package, else from where the system finds it."""
    h.load(path)


def find_start(directory: AnyPath, segment_size: int = 0) -> StartPoint:
    """Where a receive into a directory would start. Nothing is locked or changed."""
    struct = h.receivewal_start_point()
    check(h.load().receivewal_find_start(_encoded("directory", os.fsencode(directory)), segment_size, ctypes.byref(struct)))
    return read(StartPoint, struct)


def check_directory(
    directory: AnyPath,
    *,
    segment_size: int = 0,
    decode: bool = False,
    suffixes: Sequence[str] = (),
    on_problem: Optional[Callable[[Problem], object]] = None,
) -> Check:
    """Checks a directory of WAL: holes, sizes, first pages, history files. decode: each compressed segment to its end. Nothing is
    locked or changed. on_problem hears of each problem as it is found, until it returns True."""
    library = h.load()
    name = _encoded("directory", os.fsencode(directory))
    problems = Queue()
    over = False

    def problem(_ctx: Optional[int], p: Any) -> int:
        if not over:
            problems.put(read(Problem, p.contents))
        return over

    result = h.receivewal_check()
    options = h.receivewal_check_options()
    _assign(options, "segment_size", segment_size)
    options.decode = decode
    _assign_list(options, "suffixes", suffixes)
    options.problem = h.event_problem(problem)

    def work() -> None:
        error: Optional[BaseException] = None
        try:
            check(library.receivewal_check_directory(name, ctypes.byref(options), ctypes.byref(result)))
        except BaseException as e:
            error = e
        problems.end(Ended(error))

    found: List[Problem] = []
    try:
        background(work).start()
        while True:
            event = problems.get(None)
            if isinstance(event, Ended):
                if event.error is not None:
                    raise event.error
                return dataclasses.replace(read(Check, result), found=tuple(found))
            found.append(event)
            if on_problem is not None and on_problem(event) is True:
                on_problem = None
    finally:
        over = True  # should this have been interrupted


def segment_name(timeline: int, lsn: Union[LSN, int, str], segment_size: int) -> str:
    """The file name of the segment that holds lsn."""
    buffer = ctypes.create_string_buffer(25)
    check(h.load().receivewal_segment_name(timeline, LSN(lsn), segment_size, buffer))
    return buffer.value.decode()


def parse_segment_name(name: str, segment_size: int) -> Tuple[int, LSN]:
    """The timeline and the first byte of a segment, by its file name."""
    timeline, lsn = ctypes.c_uint32(), h.c_lsn()
    parsed = ctypes.byref(timeline), ctypes.byref(lsn)
    check(h.load().receivewal_segment_parse(_encoded("name", name.encode()), segment_size, *parsed))
    return timeline.value, LSN(lsn.value)


def version() -> str:
    """The library's version."""
    return str(h.load().receivewal_version_string().decode())


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
