"""What the package gives out: LSNs, events and answers, errors."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Type, TypeVar, Union

from . import _header as h

_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------------ values


class LSN(int):
    """A position in the WAL, in bytes: LSN("16/B374D848") or LSN(97500059720). Prints as PostgreSQL does; LSN - LSN is bytes."""

    def __new__(cls, value: Union[int, str] = 0) -> LSN:
        if isinstance(value, str):
            match = re.fullmatch("([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})", value, re.ASCII)
            if match is None:
                raise ValueError(f'"{value}" is not an LSN, such as 16/B374D848')
            value = int(match[1], 16) << 32 | int(match[2], 16)
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{int(value)} is not an LSN: it has 64 bits")
        return super().__new__(cls, value)

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"LSN('{self}')"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec) if not spec or spec[-1] not in "bcdeEfFgGnoxX%" else super().__format__(spec)

    def __add__(self, other: int) -> LSN:
        if isinstance(other, LSN) or not isinstance(other, int):
            return NotImplemented
        return LSN(int(self) + other)

    __radd__ = __add__

    def __sub__(self, other: int) -> Any:  # int from an LSN, LSN from a number of bytes
        if isinstance(other, LSN):
            return int(self) - int(other)
        return LSN(int(self) - other) if isinstance(other, int) else NotImplemented


class State(enum.IntEnum):
    """What a handle is doing."""

    IDLE = 0
    STARTING = 1
    STREAMING = 2
    STOPPING = 3
    RECONNECTING = 4
    DISK_FULL = 5


class MirrorState(enum.IntEnum):
    """What became of a mirror."""

    FAILED = 1
    RESTORED = 2


class ProblemKind(enum.IntEnum):
    """What is wrong with a directory."""

    MISSING = 10
    WRONG_SIZE = 20
    WRONG_PAGE = 21
    DAMAGED = 22
    NO_HISTORY = 30
    BAD_HISTORY = 31
    FOREIGN_FILE = 40
    LEFTOVER = 50


class ProblemState(enum.IntEnum):
    """What became of a problem."""

    FOUND = 0
    REPAIRED = 1
    LOST = 2


@dataclasses.dataclass(frozen=True)
class System:
    """Who the server is."""

    system_identifier: int
    timeline: int
    segment_size: int
    lsn: LSN
    data_directory_mode: int


@dataclasses.dataclass(frozen=True)
class Slot:
    """A physical replication slot: the oldest WAL that it keeps; 0: none yet, or the server does not say."""

    restart_lsn: LSN
    restart_timeline: int


@dataclasses.dataclass(frozen=True)
class StartPoint:
    """Where a receive into a directory would start; lsn 0: there is no WAL in it."""

    lsn: LSN
    timeline: int
    segment_size: int
    segment: str


@dataclasses.dataclass(frozen=True)
class Check:
    """What check_directory has found."""

    segments: int
    problems: int
    leftovers: int
    system_identifier: int
    segment_size: int
    timeline: int
    oldest_lsn: LSN
    lsn: LSN
    segment_size_assumed: bool  # no file tells segment_size: it is the default
    found: Tuple[Problem, ...] = ()  # leftovers too


# ------------------------------------------------------------------------------------------------------ events


@dataclasses.dataclass(frozen=True)
class _Segment:
    name: str
    lsn: LSN  # its first byte
    end_lsn: LSN  # the byte after its last
    timeline: int
    segment_size: int


@dataclasses.dataclass(frozen=True)
class Segment(_Segment):
    """A segment is complete and durable, and has its final name."""


@dataclasses.dataclass(frozen=True)
class SegmentOpened(_Segment):
    """A segment's .partial is in the directory and being filled."""


@dataclasses.dataclass(frozen=True)
class TimelineSwitch:
    """The server's timeline has ended; the next one's history file is in the directory."""

    old_timeline: int
    new_timeline: int
    switch_lsn: LSN
    start_lsn: LSN


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a receive is. Times are the server's clock and ours at its last message; None: none yet."""

    state: State
    timeline: int
    start_lsn: LSN
    written_lsn: LSN
    flushed_lsn: LSN  # the end of what survives a power cut
    server_lsn: LSN
    bytes: int
    segments: int
    reconnects: int
    server_time: Optional[datetime.datetime]
    received_time: Optional[datetime.datetime]
    segment: str
    reported_lsn: LSN
    confirmed_lsn: LSN
    stored_bytes: int
    lag: int  # bytes
    lag_time: int  # milliseconds
    rate: int  # bytes per second
    catch_up_time: int  # milliseconds; -1: not as things go
    flush_time: int  # microseconds
    flush_time_max: int  # microseconds
    mirrors: int
    mirrors_failed: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something is wrong with a directory."""

    kind: ProblemKind
    state: ProblemState
    timeline: int
    lsn: LSN
    end_lsn: LSN
    file: str
    text: str
    directory: str


@dataclasses.dataclass(frozen=True)
class DiskState:
    """The disk is full and waited for (since waited milliseconds), or has room again."""

    full: bool
    waited: int
    errmsg: str


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A mirror failed, or is back. status is the code of why."""

    state: MirrorState
    status: int
    directory: str
    errmsg: str


@dataclasses.dataclass(frozen=True)
class Data:
    """WAL that was received and written, for a host that ships it elsewhere."""

    timeline: int
    lsn: LSN  # of the first byte
    server_lsn: LSN
    data: bytes


@dataclasses.dataclass(frozen=True)
class Log:
    """A message; level is one of logging's."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Reconnection:
    """The connection was lost, for this reason, and a new one is asked for, the attempt-th time since data was last received."""

    attempt: int
    status: int
    errmsg: str
    sqlstate: str


Event = Union[Segment, SegmentOpened, TimelineSwitch, Progress, Problem, DiskState, Mirror]


def _time(microseconds: int) -> Optional[datetime.datetime]:
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return epoch + datetime.timedelta(microseconds=microseconds) if microseconds else None


def _member(kind: Callable[[int], int]) -> Callable[[int], int]:
    def member(value: int) -> int:
        try:
            return kind(value)
        except ValueError:
            return value  # of a newer library

    return member


# How a field of a struct becomes that of a dataclass, by the type that it is declared with.
_FROM_C: Dict[str, Callable[[Any], Any]] = {
    "int": int,
    "bool": bool,
    "str": lambda b: (b or b"").decode(errors="replace"),
    "LSN": LSN,
    "State": _member(State),
    "MirrorState": _member(MirrorState),
    "ProblemKind": _member(ProblemKind),
    "ProblemState": _member(ProblemState),
    "Optional[datetime.datetime]": _time,
}


def read(kind: Callable[..., _T], struct: Any) -> _T:
    """A dataclass from the struct of the same fields."""
    fields = (f for f in dataclasses.fields(kind) if hasattr(struct, f.name))
    return kind(**{f.name: _FROM_C[str(f.type)](getattr(struct, f.name)) for f in fields})


# ------------------------------------------------------------------------------------------------------ errors


class Error(Exception):
    """What the library answered other than OK. There is one class for each status of receivewal.h, which says what to do on it.

    code      the status
    sqlstate  the server's, or ""; so detail and hint
    lsn       of a receive: the end of what is durable, where the next one goes on; else 0
    """

    code = 0

    def __init__(self, text: str, code: int = 0, sqlstate: str = "", detail: str = "", hint: str = "", lsn: LSN = LSN(0)) -> None:
        super().__init__(text)
        self.code = code or type(self).code
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.lsn = lsn


class InvalidArgument(Error, ValueError):
    code = 10


class SizeMismatch(Error):
    code = 11


class InvalidHandle(Error):
    code = 12


class Closed(Error):
    code = 13


class Busy(Error):
    code = 14


class Forked(Error):
    code = 20


class CoreMissing(Error):
    code = 21


class LimitReached(Error):
    code = 22


class BadDescriptor(Error):
    code = 30


class NotSocket(Error):
    code = 31


class NotConnected(Error):
    code = 32


class Encrypted(Error):
    code = 33


class ConnectionLost(Error):
    code = 34


class ProtocolViolation(Error):
    code = 35


class ServerError(Error):
    """Also the base of all that the server refuses."""

    code = 40


class WALRemoved(ServerError):
    code = 41


class NoSlot(ServerError):
    code = 42


class SlotBusy(ServerError):
    code = 43


class SlotExists(ServerError):
    code = 44


class Unsupported(ServerError):
    code = 45


class NoDirectory(Error):
    code = 50


class PermissionDenied(Error):
    code = 51


class Locked(Error):
    code = 52


class DiskFull(Error):
    code = 53


class IOFailed(Error):
    code = 54


class Gap(Error):
    code = 60


class ForeignWAL(Error):
    code = 61


class WrongTimeline(Error):
    code = 62


class Stopped(Error):
    """stop() ended a question to the server. A receive that is stopped does not raise it."""

    code = 70


class InternalError(Error):
    code = 90


def _kinds(base: Type[Error]) -> Iterator[Type[Error]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


_ERRORS = {kind.code: kind for kind in _kinds(Error)}


def error_of(status: int, handle: Optional[int] = None) -> Error:
    """The exception of a status. Of a call without a handle: on the thread that made it."""
    library = h.load()

    def text(function: Callable[[Optional[int]], bytes]) -> str:
        return function(handle).decode(errors="replace")

    message = text(library.receivewal_errmsg) or library.receivewal_strerror(status).decode()
    return _ERRORS.get(status, Error)(
        message,
        status,
        sqlstate=text(library.receivewal_sqlstate) if handle else "",
        detail=text(library.receivewal_errdetail) if handle else "",
        hint=text(library.receivewal_errhint) if handle else "",
    )


def check(status: int) -> None:
    if status != h.OK:
        raise error_of(status)
