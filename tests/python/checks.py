"""What the scripts here share: each function test_* of one is a check, printed as "ok NAME" or "FAIL NAME: why"."""

import os
import socket
import ssl
import struct
import sys
import tempfile
import time
import traceback

import psycopg2
import psycopg2.extras

import receivewal

DSN = sys.argv[1] if len(sys.argv) > 1 else ""
SEGMENT = 1 << 20  # the servers' wal_segment_size


def run(namespace):
    for name, function in list(namespace.items()):
        if name.startswith("test_") and callable(function):
            try:
                function()
                print(f"ok {name[5:]}", flush=True)
            except BaseException as e:
                where = " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(e.__traceback__)))
                print(f"FAIL {name[5:]}: {type(e).__name__}: {e} ({where})".replace("\n", " "), flush=True)


def equal(got, want):
    if got != want:
        raise AssertionError(f"{got!r} instead of {want!r}")


def raises(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


def until(done, what="it"):
    """Waits for something that happens elsewhere."""
    deadline = time.monotonic() + 120
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} does not come")
        time.sleep(0.01)


def folder():
    """A new folder for WAL. It stays, for Go to compare what is in it with the server's own WAL."""
    return tempfile.mkdtemp(dir=os.environ["WAL"])


# ----------------------------------------------------------------------------------------------- the server


def physical(more=""):
    return psycopg2.connect(f"{DSN} {more}", connection_factory=psycopg2.extras.PhysicalReplicationConnection)


def sql(query):
    conn = psycopg2.connect(DSN)
    try:
        conn.autocommit = True
        with conn.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()[0][0] if cursor.description else None
    finally:
        conn.close()


def generate(segments):
    """Has the server write so many segments, and returns where they end. There is more behind, so that a receive gets beyond it."""
    for _ in range(segments):
        sql("select pg_logical_emit_message(true, 'fill', repeat('x', 400000))")
        sql("select pg_switch_wal()")
    end = receivewal.LSN(sql("select pg_current_wal_flush_lsn()"))
    sql("checkpoint")
    return end


def still_works(conn):
    """The connection is idle and its owner's."""
    with conn.cursor() as cursor:
        cursor.execute("IDENTIFY_SYSTEM")
        equal(len(cursor.fetchone()), 4)


def settings():
    return dict(word.split("=", 1) for word in DSN.split())


class Client:
    """A driver as small as can be, which keeps its socket in _usock as pg8000 does. Trust authentication only."""

    def __init__(self, tls=False):
        s = settings()
        if s["host"].startswith("/"):
            self._usock = socket.socket(socket.AF_UNIX)
            self._usock.connect(f"{s['host']}/.s.PGSQL.{s['port']}")
        else:
            self._usock = socket.create_connection((s["host"], int(s["port"])))
        if tls:
            self._usock.sendall(struct.pack("!ii", 8, 80877103))
            equal(self._usock.recv(1), b"S")
            context = ssl.create_default_context(cafile=s["sslrootcert"])
            self._usock = context.wrap_socket(self._usock, server_hostname="localhost")
        options = b"".join(f"{k}\0{v}\0".encode() for k, v in
                           {"user": s["user"], "replication": "true", "application_name": "small"}.items())
        self._usock.sendall(struct.pack("!ii", 9 + len(options), 196608) + options + b"\0")
        self.answer()

    def answer(self):
        """The types of the messages up to ReadyForQuery."""
        types = b""
        while not types.endswith(b"Z"):
            kind, length = struct.unpack("!ci", self._exactly(5))
            self._exactly(length - 4)
            types += kind
        return types

    def ask(self, query):
        self._usock.sendall(struct.pack("!ci", b"Q", 5 + len(query)) + query.encode() + b"\0")
        return self.answer()

    def _exactly(self, n):
        data = b""
        while len(data) < n:
            more = self._usock.recv(n - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self):
        self._usock.close()
