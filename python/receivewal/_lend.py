"""How each kind of connection is lent to the library: which descriptor it has, and how its bytes are read where they are TLS."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import ssl
import sys
from ctypes import c_char, c_char_p, c_int, c_ulong, c_void_p
from typing import Any, Callable, Optional, Tuple

from . import _header as h

_Move = Callable[[int, int], int]  # (address, length) -> bytes moved, 0 at the end, or IO_WANT_*; OSError: the connection is lost


def _nothing() -> None:
    pass


class Loan:
    """A connection that is lent: what receivewal_connection wants to know, and what must live as long."""

    def __init__(self, connection: object, fd: int, server_version: int = 0) -> None:
        self.connection = connection
        self.fd = fd
        self.server_version = server_version
        self.io: Optional[h.receivewal_io] = None
        self.give_back: Callable[[], None] = _nothing

    def read_by(self, read: _Move, write: _Move) -> None:
        """Has the library read and write by these functions. They run on a thread of the package's own."""
        reason = [""]

        def guard(move: _Move) -> Callable[[Optional[int], int, int], int]:
            def moved(_ctx: Optional[int], address: int, length: int) -> int:
                try:
                    return move(address, length)
                except Exception as e:  # whatever it is: C has to know
                    reason[0] = str(e) or type(e).__name__
                    return h.IO_ERROR

            return moved

        def errmsg(_ctx: Optional[int], address: int, length: int) -> None:
            text = reason[0].encode()[: length - 1]
            ctypes.memmove(address, text + b"\0", len(text) + 1)

        self.io = h.receivewal_io()
        self.io.read = h.io_read(guard(read))
        self.io.write = h.io_write(guard(write))
        self.io.errmsg = h.io_errmsg(errmsg)


def lend(connection: object) -> Loan:
    """Finds out what it is. ValueError: it cannot be lent as it is; TypeError: it is no connection at all."""
    c: Any = connection
    if isinstance(c, int):
        return Loan(c, c)
    if isinstance(c, ssl.SSLSocket):
        return _from_ssl_socket(c, c)
    if isinstance(c, socket.socket):
        return Loan(c, c.fileno())
    for name in ("_usock", "_sock"):  # pg8000
        inner = getattr(c, name, None)
        if isinstance(inner, ssl.SSLSocket):
            return _from_ssl_socket(c, inner)
        if isinstance(inner, socket.socket):
            return Loan(c, inner.fileno())
    pgconn: Any = getattr(c, "pgconn", None)  # psycopg 3
    if hasattr(pgconn, "pgconn_ptr"):
        return _from_libpq(c, pgconn, pgconn.socket) if pgconn.pgconn_ptr else Loan(c, -1)
    if hasattr(c, "pgconn_ptr"):  # psycopg2, or a PGconn of psycopg 3
        if getattr(c, "closed", False) or not c.pgconn_ptr:
            return Loan(c, -1)
        return _from_libpq(c, c, c.fileno() if hasattr(c, "fileno") else c.socket)
    if hasattr(c, "fileno"):
        return Loan(c, c.fileno())
    raise TypeError(f"{type(c).__name__} is not a connection: it has no socket")


# -------------------------------------------------------------------------------------------- ssl.SSLSocket


def _from_ssl_socket(connection: object, sock: ssl.SSLSocket) -> Loan:
    loan = Loan(connection, sock.fileno())
    timeout = sock.gettimeout()

    def read(address: int, length: int) -> int:
        try:
            return sock.recv_into((c_char * length).from_address(address))
        except ssl.SSLWantReadError:
            return h.IO_WANT_READ
        except ssl.SSLWantWriteError:
            return h.IO_WANT_WRITE
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return 0  # the protocol inside tells whether anything is missing

    def write(address: int, length: int) -> int:
        try:
            return sock.send((c_char * length).from_address(address))
        except ssl.SSLWantReadError:
            return h.IO_WANT_READ
        except ssl.SSLWantWriteError:
            return h.IO_WANT_WRITE

    def give_back() -> None:
        if sock.fileno() >= 0:
            sock.settimeout(timeout)

    if loan.fd >= 0:
        sock.settimeout(0)  # must not block: the library waits by itself
    loan.read_by(read, write)
    loan.give_back = give_back
    return loan


# ----------------------------------------------------------------------------- libpq: psycopg2 and psycopg 3


def _from_libpq(connection: Any, pgconn: Any, fd: int) -> Loan:
    info = pgconn if hasattr(pgconn, "ssl_in_use") else pgconn.info  # psycopg 3; psycopg2
    if int(info.transaction_status) != 0:  # PQTRANS_IDLE
        raise ValueError("the connection is in the middle of a command or of a transaction")
    loan = Loan(connection, fd, int(pgconn.server_version))
    libpq = _libpq_of(pgconn)
    pointer = int(pgconn.pgconn_ptr)
    if libpq is not None and hasattr(libpq, "PQgssEncInUse") and _declared(libpq, "PQgssEncInUse", c_int, c_void_p)(pointer):
        raise ValueError("the connection is encrypted by GSSAPI, which only libpq can read: connect with gssencmode=disable")
    if not info.ssl_in_use:
        return loan
    if libpq is None:
        raise ValueError(f"the connection uses TLS, and the libpq of {type(pgconn).__module__} cannot be found in this process")
    session = _declared(libpq, "PQsslStruct", c_void_p, c_void_p, c_char_p)(pointer, b"OpenSSL")
    if not session:
        raise ValueError("the connection uses TLS by another library than OpenSSL")
    _read_by_openssl(loan, libpq, session, lambda: bool(pgconn.pgconn_ptr) and not getattr(pgconn, "closed", 0))
    return loan


def _declared(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = library[name]  # a new object each time: nobody else's declaration changes
    function.restype = result
    function.argtypes = arguments
    return function


def _libpq_of(pgconn: object) -> Any:
    """The libpq that has made this PGconn. There may be several in the process: packages from PyPI bring their own."""
    modules = [c.__module__ for c in type(pgconn).__mro__ if c is not object]  # it may be of a class derived from theirs
    module = "psycopg2._psycopg" if any(m.startswith("psycopg2.") for m in modules) else modules[-1]
    # A compiled module leads to the libraries that it is linked with, and those to theirs (dlsym(3)): libpq, libssl, libcrypto.
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    if path.endswith(".so"):
        return _with_libpq(ctypes.PyDLL(path, use_errno=True))
    # psycopg 3 in pure Python has loaded it by ctypes.
    loaded = getattr(sys.modules.get("psycopg.pq._pq_ctypes"), "pq", None)
    if module.startswith("psycopg.") and loaded is not None:
        return _with_libpq(ctypes.PyDLL(loaded._name, handle=loaded._handle, use_errno=True))
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if "/libpq" in line}
    return _with_libpq(ctypes.PyDLL(paths.pop(), use_errno=True)) if len(paths) == 1 else None


def _with_libpq(library: Any) -> Any:
    return library if hasattr(library, "PQsslStruct") else None


# What OpenSSL's ssl.h, sslerr.h and err.h call so.
_SSL_ERROR_SSL, _SSL_ERROR_WANT_READ, _SSL_ERROR_WANT_WRITE, _SSL_ERROR_SYSCALL, _SSL_ERROR_ZERO_RETURN = 1, 2, 3, 5, 6
_ERR_LIB_SSL = 20
_SSL_R_UNEXPECTED_EOF_WHILE_READING = 294


def _read_by_openssl(loan: Loan, library: Any, session: int, still_open: Callable[[], bool]) -> None:
    """As receivewal_openssl.h does it. libpq's socket is always non-blocking, so no call takes long, and all are made with the
    interpreter's lock held (PyDLL): what another thread of Python does to the connection comes before or after."""
    ssl_read = _declared(library, "SSL_read", c_int, c_void_p, c_void_p, c_int)
    ssl_write = _declared(library, "SSL_write", c_int, c_void_p, c_void_p, c_int)
    get_error = _declared(library, "SSL_get_error", c_int, c_void_p, c_int)
    clear_error = _declared(library, "ERR_clear_error", None)
    peek_error = _declared(library, "ERR_peek_last_error", c_ulong)
    reason_of = _declared(library, "ERR_reason_error_string", c_char_p, c_ulong)

    def call(function: Any, address: int, length: int) -> int:
        if not still_open():
            raise OSError("the connection was closed while it was lent")
        clear_error()  # SSL_get_error looks at the whole queue
        ctypes.set_errno(0)
        n = int(function(session, address, min(length, 0x7FFFFFFF)))
        if n > 0:
            return n
        number = ctypes.get_errno()
        kind = get_error(session, n)
        code = peek_error()
        clear_error()
        if kind == _SSL_ERROR_WANT_READ:
            return h.IO_WANT_READ
        if kind == _SSL_ERROR_WANT_WRITE:
            return h.IO_WANT_WRITE
        if kind == _SSL_ERROR_ZERO_RETURN or (kind == _SSL_ERROR_SYSCALL and code == 0 and number == 0):
            return 0
        if kind == _SSL_ERROR_SSL and code >> 23 == _ERR_LIB_SSL and code & 0x7FFFFF == _SSL_R_UNEXPECTED_EOF_WHILE_READING:
            return 0  # OpenSSL 3: a peer that closes without saying so. The protocol inside tells whether anything is missing
        if code != 0:
            raise OSError("SSL error: " + (reason_of(code) or b"%X" % code).decode(errors="replace"))
        raise OSError(number, "SSL SYSCALL error: " + os.strerror(number))

    def write(address: int, length: int) -> int:
        n = call(ssl_write, address, length)
        if n == 0:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))  # the peer has closed: for a write that is an error
        return n

    loan.read_by(lambda address, length: call(ssl_read, address, length), write)


def describe(
    loan: Loan, read_ahead: bytes, stream: Optional[Tuple[int, int]], system_identifier: int, segment_size: int
) -> h.receivewal_connection:
    """The receivewal_connection of a loan."""
    c = h.receivewal_connection()
    fill(c, loan)
    if read_ahead:
        c.read_ahead = read_ahead
        c.read_ahead_length = len(read_ahead)
    if stream is not None:
        c.streaming = 1
        c.stream_timeline, c.stream_lsn = stream
    c.system_identifier = system_identifier
    c.segment_size = segment_size
    return c


def fill(c: h.receivewal_connection, loan: Loan) -> None:
    c.fd = loan.fd
    c.server_version = loan.server_version
    if loan.io is not None:
        c.io = ctypes.pointer(loan.io)
