"""receivewal.h in ctypes: its structs and functions as they stand there, under the names that they have there.

A struct that grows in the header grows here by one line. tests/python compares every offset with the compiler's.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, c_char, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_uint32, c_uint64, c_void_p
from typing import Any, List, Optional

c_lsn = c_uint64
c_status = c_int
c_enum = c_int
NAME_MAX = 64

IO_ERROR = -1
IO_WANT_READ = -2
IO_WANT_WRITE = -3

SLOT_RESERVE_WAL = 1
SLOT_TEMPORARY = 2
SLOT_IF_NOT_EXISTS = 4
SLOT_WAIT = 8

OK = 0


class _Sized(ctypes.Structure):
    """A struct that begins with its size, which Python sets when it makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.size = ctypes.sizeof(self)


# ---------------------------------------------------------------------------------------------- connection

io_read = CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t)
io_write = CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t)
io_errmsg = CFUNCTYPE(None, c_void_p, c_void_p, c_size_t)


class receivewal_io(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("ctx", c_void_p),
        ("read", io_read),
        ("write", io_write),
        ("errmsg", io_errmsg),
    ]


class receivewal_connection(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("fd", c_int),
        ("server_version", c_int),
        ("io", POINTER(receivewal_io)),
        ("read_ahead", c_char_p),
        ("read_ahead_length", c_size_t),
        ("streaming", c_int),
        ("stream_timeline", c_uint32),
        ("stream_lsn", c_lsn),
        ("system_identifier", c_uint64),
        ("segment_size", c_uint32),
    ]


# ---------------------------------------------------------------------------------------- progress and events


class receivewal_progress(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("state", c_enum),
        ("timeline", c_uint32),
        ("start_lsn", c_lsn),
        ("written_lsn", c_lsn),
        ("flushed_lsn", c_lsn),
        ("server_lsn", c_lsn),
        ("bytes", c_uint64),
        ("segments", c_uint64),
        ("reconnects", c_uint64),
        ("server_time", c_int64),
        ("received_time", c_int64),
        ("segment", c_char * NAME_MAX),
        ("reported_lsn", c_lsn),
        ("confirmed_lsn", c_lsn),
        ("stored_bytes", c_uint64),
        ("lag", c_uint64),
        ("lag_time", c_int64),
        ("rate", c_uint64),
        ("catch_up_time", c_int64),
        ("flush_time", c_int64),
        ("flush_time_max", c_int64),
        ("mirrors", c_uint32),
        ("mirrors_failed", c_uint32),
    ]


class receivewal_segment(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("lsn", c_lsn),
        ("end_lsn", c_lsn),
        ("timeline", c_uint32),
        ("segment_size", c_uint32),
    ]


class receivewal_timeline_switch(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("old_timeline", c_uint32),
        ("new_timeline", c_uint32),
        ("switch_lsn", c_lsn),
        ("start_lsn", c_lsn),
    ]


class receivewal_problem(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("kind", c_enum),
        ("state", c_enum),
        ("timeline", c_uint32),
        ("lsn", c_lsn),
        ("end_lsn", c_lsn),
        ("file", c_char_p),
        ("text", c_char_p),
        ("directory", c_char_p),
    ]


class receivewal_disk_full(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("full", c_int),
        ("waited", c_int64),
        ("errmsg", c_char_p),
    ]


class receivewal_mirror(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("state", c_enum),
        ("status", c_status),
        ("directory", c_char_p),
        ("errmsg", c_char_p),
    ]


class receivewal_data(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("timeline", c_uint32),
        ("lsn", c_lsn),
        ("server_lsn", c_lsn),
        ("data", c_void_p),
        ("length", c_size_t),
    ]


class receivewal_reconnection(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("attempt", c_int),
        ("status", c_status),
        ("errmsg", c_char_p),
        ("sqlstate", c_char_p),
    ]


event_log = CFUNCTYPE(None, c_void_p, c_enum, c_char_p)
event_segment = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_segment))
event_timeline_switch = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_timeline_switch))
event_progress = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_progress))
event_reconnect = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_reconnection), POINTER(receivewal_connection))
event_problem = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_problem))
event_disk_full = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_disk_full))
event_mirror = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_mirror))
event_data = CFUNCTYPE(c_int, c_void_p, POINTER(receivewal_data))


class receivewal_events(ctypes.Structure):
    _fields_ = [
        ("ctx", c_void_p),
        ("log", event_log),
        ("segment_opened", event_segment),
        ("segment_completed", event_segment),
        ("timeline_switched", event_timeline_switch),
        ("progress", event_progress),
        ("reconnect", event_reconnect),
        ("problem", event_problem),
        ("disk_full", event_disk_full),
        ("mirror", event_mirror),
        ("data", event_data),
        ("reserved", c_void_p * 6),
    ]


# -------------------------------------------------------------------------------------------------- options


class receivewal_options(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("directory", c_char_p),
        ("slot", c_char_p),
        ("start_lsn", c_lsn),
        ("start_timeline", c_uint32),
        ("end_lsn", c_lsn),
        ("status_interval", c_int),
        ("progress_interval", c_int),
        ("synchronous", c_int),
        ("no_sync", c_int),
        ("file_mode", c_uint32),
        ("receive_timeout", c_int),
        ("flush_interval", c_int),
        ("repair", c_enum),
        ("on_disk_full", c_enum),
        ("check_pages", c_int),
        ("events", receivewal_events),
        ("compression", c_enum),
        ("compression_level", c_int),
        ("compression_workers", c_int),
        ("suffixes", POINTER(c_char_p)),
        ("suffix_count", c_size_t),
        ("mirrors", POINTER(c_char_p)),
        ("mirror_count", c_size_t),
        ("mirror_required", c_int),
        ("confirm", c_int),
        ("slot_wait", c_int),
    ]


# --------------------------------------------------------------------------------- the server, the directory


class receivewal_system(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("system_identifier", c_uint64),
        ("timeline", c_uint32),
        ("segment_size", c_uint32),
        ("lsn", c_lsn),
        ("data_directory_mode", c_uint32),
    ]


class receivewal_slot(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("restart_lsn", c_lsn),
        ("restart_timeline", c_uint32),
    ]


class receivewal_start_point(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("lsn", c_lsn),
        ("timeline", c_uint32),
        ("segment_size", c_uint32),
        ("segment", c_char * NAME_MAX),
    ]


class receivewal_check_options(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("segment_size", c_uint32),
        ("decode", c_int),
        ("ctx", c_void_p),
        ("problem", event_problem),
        ("suffixes", POINTER(c_char_p)),
        ("suffix_count", c_size_t),
    ]


class receivewal_check(_Sized):
    _fields_ = [
        ("size", c_size_t),
        ("segments", c_uint64),
        ("problems", c_uint64),
        ("leftovers", c_uint64),
        ("system_identifier", c_uint64),
        ("segment_size", c_uint32),
        ("timeline", c_uint32),
        ("oldest_lsn", c_lsn),
        ("lsn", c_lsn),
        ("segment_size_assumed", c_int),
    ]


# ------------------------------------------------------------------------------------------------- functions

FUNCTIONS = {
    "receivewal_attach": (c_status, [POINTER(receivewal_connection), POINTER(c_void_p)]),
    "receivewal_detach": (c_status, [c_void_p]),
    "receivewal_connection_usable": (c_int, [c_void_p]),
    "receivewal_state_name": (c_char_p, [c_enum]),
    "receivewal_get_progress": (c_status, [c_void_p, POINTER(receivewal_progress)]),
    "receivewal_receive": (c_status, [c_void_p, POINTER(receivewal_options)]),
    "receivewal_start": (c_status, [c_void_p, POINTER(receivewal_options)]),
    "receivewal_wait": (c_status, [c_void_p, c_int]),
    "receivewal_event_fd": (c_int, [c_void_p]),
    "receivewal_dispatch": (c_status, [c_void_p]),
    "receivewal_stop": (c_status, [c_void_p]),
    "receivewal_confirm": (c_status, [c_void_p, c_lsn]),
    "receivewal_identify": (c_status, [c_void_p, POINTER(receivewal_system)]),
    "receivewal_create_slot": (c_status, [c_void_p, c_char_p, c_uint32, POINTER(receivewal_slot)]),
    "receivewal_drop_slot": (c_status, [c_void_p, c_char_p, c_uint32]),
    "receivewal_read_slot": (c_status, [c_void_p, c_char_p, POINTER(receivewal_slot)]),
    "receivewal_find_start": (c_status, [c_char_p, c_uint32, POINTER(receivewal_start_point)]),
    "receivewal_check_directory": (c_status, [c_char_p, POINTER(receivewal_check_options), POINTER(receivewal_check)]),
    "receivewal_errmsg": (c_char_p, [c_void_p]),
    "receivewal_sqlstate": (c_char_p, [c_void_p]),
    "receivewal_errdetail": (c_char_p, [c_void_p]),
    "receivewal_errhint": (c_char_p, [c_void_p]),
    "receivewal_strerror": (c_char_p, [c_status]),
    "receivewal_version": (c_int, []),
    "receivewal_version_string": (c_char_p, []),
    "receivewal_lsn_parse": (c_status, [c_char_p, POINTER(c_lsn)]),
    "receivewal_lsn_format": (c_char_p, [c_lsn, c_char_p]),
    "receivewal_segment_name": (c_status, [c_uint32, c_lsn, c_uint32, c_char_p]),
    "receivewal_segment_parse": (c_status, [c_char_p, c_uint32, POINTER(c_uint32), POINTER(c_lsn)]),
}

_loaded: List[Any] = []


def load(path: Optional[str] = None) -> Any:
    """The library. The first call loads it: from path, a file or the folder of it; else from what RECEIVEWAL_LIB names, as a
    path does; else from this package, where a wheel has it; else from where the system finds it."""
    if not _loaded:
        name = "libreceivewal.so.1"
        own = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        chosen = path or os.environ.get("RECEIVEWAL_LIB") or (own if os.path.exists(own) else name)
        library = ctypes.CDLL(os.path.join(chosen, name) if os.path.isdir(chosen) else chosen)
        for function, (result, arguments) in FUNCTIONS.items():
            getattr(library, function).restype = result
            getattr(library, function).argtypes = arguments
        _loaded.append(library)
    elif path is not None and not os.path.samefile(
        os.path.join(path, "libreceivewal.so.1") if os.path.isdir(path) else path, _loaded[0]._name
    ):
        raise RuntimeError(f"{_loaded[0]._name} is loaded already")
    return _loaded[0]
