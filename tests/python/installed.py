"""Receives with the package as it is installed, and nothing else: no driver, no variables of the environment."""

import os
import socket
import struct
import sys

import receivewal

s = dict(word.split("=", 1) for word in sys.argv[1].split())
sock = socket.socket(socket.AF_UNIX)
sock.connect(f"{s['host']}/.s.PGSQL.{s['port']}")
options = f"user\0{s['user']}\0replication\0true\0\0".encode()
sock.sendall(struct.pack("!ii", 8 + len(options), 196608) + options)
# What the server answers until it is ready is for the library to read: with trust authentication, after 9 bytes.
assert sock.recv(9) == b"R" + struct.pack("!ii", 8, 0)

with receivewal.attach(sock) as rw:
    library = next(line.split()[-1] for line in open("/proc/self/maps") if "/libreceivewal-core.so.1" in line)
    if os.path.dirname(library) == os.path.dirname(receivewal.__file__) and library.startswith(sys.prefix):
        print("ok both libraries are the package's")
    else:
        print(f"FAIL both libraries are the package's: {library}")
    segments = []
    system = rw.identify()
    end = system.lsn - 1
    start = end - end % system.segment_size - system.segment_size
    rw.receive(os.environ["WAL"], start_lsn=start, end_lsn=end, on_segment=segments.append)
    if segments and receivewal.check_directory(os.environ["WAL"]).problems == 0:
        print("ok it receives")
    else:
        print(f"FAIL it receives: {segments}")
