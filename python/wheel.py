"""Makes the wheel: receivewal-VERSION-py3-none-linux_ARCH.whl, with both libraries in the package.

    python3 python/wheel.py VERSION LIBRARIES OUTPUT-FOLDER

It is a zip file laid out as https://packaging.python.org/specifications/binary-distribution-format/ says. The same input gives
the same bytes: files are sorted, and their time is SOURCE_DATE_EPOCH, or 1980-01-01, where zip's times begin.
"""

import base64
import hashlib
import os
import platform
import sys
import time
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARIES = ("libreceivewal.so.1", "libreceivewal-core.so.1")


def read(*path):
    with open(os.path.join(*path), "rb") as f:
        return f.read()


def main(version, libraries, output):
    tag = f"py3-none-linux_{platform.machine()}"
    info = f"receivewal-{version}.dist-info"
    readme = read(HERE, "README.md").decode()
    files = {
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: libreceivewal {version}\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        f"{info}/METADATA": (
            "Metadata-Version: 2.1\n"
            "Name: receivewal\n"
            f"Version: {version}\n"
            "Summary: Receive PostgreSQL's write-ahead log over a connection that the program already holds\n"
            "License: BSD-3-Clause\n"
            "License-File: LICENSE\n"
            "Requires-Python: >=3.9\n"
            "Classifier: License :: OSI Approved :: BSD License\n"
            "Classifier: Operating System :: POSIX :: Linux\n"
            "Classifier: Topic :: Database\n"
            "Classifier: Typing :: Typed\n"
            "Description-Content-Type: text/markdown\n"
            f"\n{readme}"
        ).encode(),
        f"{info}/LICENSE": read(HERE, "..", "LICENSE"),
    }
    for name in os.listdir(os.path.join(HERE, "receivewal")):
        if name.endswith((".py", ".typed")):
            files[f"receivewal/{name}"] = read(HERE, "receivewal", name)
    for name in LIBRARIES:
        files[f"receivewal/{name}"] = read(libraries, name)

    record = f"{info}/RECORD"
    lines = []
    for name in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(files[name])}\n")
    files[record] = "".join(lines + [f"{record},,\n"]).encode()

    earliest = 315532800  # 1980-01-01
    moment = time.gmtime(max(earliest, int(os.environ.get("SOURCE_DATE_EPOCH") or earliest)))[:6]
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, f"receivewal-{version}-{tag}.whl")
    with zipfile.ZipFile(path + ".new", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for name in sorted(files, key=lambda n: (n.startswith(info), n)):  # those of dist-info last, as the format advises
            entry = zipfile.ZipInfo(name, moment)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, for the mode
            entry.external_attr = (0o100755 if name.endswith(LIBRARIES) else 0o100644) << 16
            wheel.writestr(entry, files[name])
    os.replace(path + ".new", path)
    print(path)


main(*sys.argv[1:])
