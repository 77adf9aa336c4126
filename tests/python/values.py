"""What needs no server: values, errors, and whether _header.py is the header."""

import ctypes
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import tempfile

from checks import equal, raises, run

import receivewal
from receivewal import LSN, _header, _values

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = open(os.path.join(ROOT, "include/receivewal.h")).read()
CODE = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)


def test_lsn():
    lsn = LSN("16/B374D848")
    equal((lsn, str(lsn), repr(lsn), f"{lsn}", f"{lsn:>14}", f"{lsn:x}", "%d" % lsn),
          (0x16B374D848, "16/B374D848", "LSN('16/B374D848')", "16/B374D848", "   16/B374D848", "16b374d848", str(0x16B374D848)))
    equal((str(LSN(0x16B3748)), str(LSN()), str(LSN("ffffffff/ffffffff"))), ("0/16B3748", "0/0", "FFFFFFFF/FFFFFFFF"))
    equal((lsn - LSN("16/B374D840"), type(lsn - lsn)), (8, int))
    equal((lsn + 8, type(lsn + 8), type(8 + lsn), type(lsn - 8), str(lsn - 8)), (0x16B374D850, LSN, LSN, LSN, "16/B374D840"))
    equal((LSN(5) < LSN("0/6"), LSN(5) == 5, hash(LSN(5)) == hash(5), LSN(LSN(5)), bool(LSN(0))), (True, True, True, LSN(5), False))
    equal((pickle.loads(pickle.dumps(lsn)), type(pickle.loads(pickle.dumps(lsn)))), (lsn, LSN))
    for wrong in ("", "1", "1/", "/1", "1/2/3", " 1/2", "1/2 ", "1/2\n", "0x1/2", "123456789/0", "g/0", "+1/2", "١/2"):
        raises(ValueError, LSN, wrong)
    for wrong in (-1, 1 << 64):
        raises(ValueError, LSN, wrong)
    raises(ValueError, lambda: LSN(1) - 2)
    raises(TypeError, lambda: LSN(1) + LSN(2))
    raises(TypeError, LSN, None)
    for lsn in (0, 1, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, 0x16B374D848):
        buffer = ctypes.create_string_buffer(18)
        equal(_header.load().receivewal_lsn_format(lsn, buffer).decode(), str(LSN(lsn)))


def test_segment_names():
    equal(receivewal.segment_name(1, "0/A7000000", 16 << 20), "0000000100000000000000A7")
    equal(receivewal.parse_segment_name("0000000100000000000000A7", 16 << 20), (1, LSN("0/A7000000")))
    raises(receivewal.InvalidArgument, receivewal.segment_name, 1, 0, 12345)
    raises(receivewal.InvalidArgument, receivewal.parse_segment_name, "no name", 16 << 20)


def test_version():
    want = re.search(r'#define RECEIVEWAL_VERSION "(.*)"', HEADER)[1]
    equal((receivewal.version(), receivewal.__version__), (want, want))
    raises(AttributeError, lambda: receivewal.nothing)


def structs():
    return {k: v for k, v in vars(_header).items() if k.startswith("receivewal_") and issubclass(v, ctypes.Structure)}


def test_every_struct_is_laid_out_as_the_compiler_does():
    lines = []
    for name, layout in structs().items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field in layout._fields_:
            at = f"{name}, {field[0]}"
            lines.append(f'printf("{name}.{field[0]} %zu %zu\\n", offsetof({at}), sizeof((({name} *)0)->{field[0]}));')
    with tempfile.TemporaryDirectory() as d:
        with open(d + "/layout.c", "w") as f:
            f.write("#include <receivewal.h>\n#include <stdio.h>\nint main(void) { " + "\n".join(lines) + " return 0; }\n")
        subprocess.run([os.environ.get("CC", "cc"), "-I" + ROOT + "/include", "-o", d + "/layout", d + "/layout.c"], check=True)
        compiler = subprocess.run([d + "/layout"], check=True, capture_output=True, text=True).stdout
    ours = ""
    for name, layout in structs().items():
        ours += f"{name} {ctypes.sizeof(layout)}\n"
        for field in layout._fields_:
            at = getattr(layout, field[0])
            ours += f"{name}.{field[0]} {at.offset} {at.size}\n"
    equal(ours.splitlines(), compiler.splitlines())


def test_every_struct_and_field_of_the_header_is_there():
    declared = {}
    for name, body in re.findall(r"typedef struct (\w+)\s*\{(.*?)\n\}", CODE, re.S):
        fields = [re.search(r"\(\*(\w+)(?:\[\d+\])?\)|(\w+)(?:\[\w+\])?$", f.strip()) for f in body.split(";") if f.strip()]
        declared[name] = [m[1] or m[2] for m in fields]
    equal({n: [f[0] for f in s._fields_] for n, s in structs().items()}, declared)


def test_every_function_of_the_header_is_there():
    declared = re.findall(r"^(?:receivewal_status|int|const char \*|char \*) ?(receivewal_\w+)\(", CODE, re.M)
    equal(sorted(_header.FUNCTIONS), sorted(declared))


def enum(name):
    body = re.search(r"typedef enum " + name + r"\s*\{(.*?)\}", CODE, re.S)[1]
    return {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", body)}


def test_every_number_of_the_header_is_there():
    errors = {v for k, v in enum("receivewal_status").items() if "_ERR_" in k}
    equal(set(_values._ERRORS), errors)
    for name, ours in (("state", receivewal.State), ("mirror_state", receivewal.MirrorState),
                       ("problem_kind", receivewal.ProblemKind), ("problem_state", receivewal.ProblemState)):
        equal({m.name: m.value for m in ours}, {k.split("_", 2)[2]: v for k, v in enum("receivewal_" + name).items()})
    equal(enum("receivewal_log_level"), {f"RECEIVEWAL_LOG_{n}": getattr(__import__("logging"), n) for n in
                                         ("DEBUG", "INFO", "WARNING", "ERROR")})
    for kind, option in (("repair", "repair"), ("on_disk_full", "disk_full"), ("compression", "compression")):
        equal(sorted(enum("receivewal_" + kind).values()), list(range(len(receivewal._WORDS[option]))))
    flags = {k: int(v) for k, v in re.findall(r"#define RECEIVEWAL_(SLOT_[A-Z_]+) (\d+)u", HEADER)}
    equal({k: getattr(_header, k) for k in flags}, flags)
    io = {k: int(v) for k, v in re.findall(r"#define RECEIVEWAL_(IO_(?:ERROR|WANT_\w+)) \((-\d)\)", HEADER)}
    equal({k: getattr(_header, k) for k in io}, io)
    equal(len(flags) * len(io), 12)
    equal(_header.NAME_MAX, int(re.search(r"#define RECEIVEWAL_NAME_MAX (\d+)", HEADER)[1]))


def test_every_option_of_the_header_is_there():
    ours = {receivewal._FIELDS.get(f, f) for f in receivewal.Options.__dataclass_fields__}
    equal({f[0] for f in _header.receivewal_options._fields_} - {"size", "events", "suffix_count", "mirror_count"} - ours, set())
    defaults = receivewal._write_options(receivewal.Options("/"))
    init = re.search(r"sizeof\(receivewal_options\),(.*?)\{", HEADER, re.S)[1].replace("\\", "").split(",")
    values = [w.strip() for w in init if w.strip()]
    for (name, _), value in zip(_header.receivewal_options._fields_[1:-1], values):
        if value.isdigit():
            equal((name, getattr(defaults, name)), (name, int(value)))


def test_options_arrive():
    o = receivewal._write_options(receivewal.Options(
        b"/wal", slot="s", start_lsn="1/2", end_lsn=LSN(7), repair="off", disk_full="wait", compression="zstd", compression_level=19,
        suffixes=[".enc", ".7z"], mirrors=["/a", b"/b"], confirm=True, synchronous=True, file_mode=0o640, receive_timeout=-1))
    equal((o.directory, o.slot, o.start_lsn, o.end_lsn, o.repair, o.on_disk_full, o.compression, o.compression_level),
          (b"/wal", b"s", (1 << 32) + 2, 7, 2, 1, 3, 19))
    equal((o.suffixes[:o.suffix_count], o.mirrors[:o.mirror_count], o.confirm, o.synchronous, o.file_mode, o.receive_timeout),
          ([b".enc", b".7z"], [b"/a", b"/b"], 1, 1, 0o640, -1))
    for wrong in ({"suffixes": ".enc"}, {"mirrors": "/a"}, {"mirrors": [1]}):
        raises(TypeError, receivewal._write_options, receivewal.Options("/wal", **wrong))
    raises(receivewal.InvalidArgument, receivewal._write_options, receivewal.Options("/wal", suffixes=["a\0b"]))
    raises(receivewal.InvalidArgument, receivewal._write_options, receivewal.Options("/wal", compression="rar"))


class Library:
    """The library, but for a receive that gives data: three times, or until it is refused."""

    def __init__(self, library):
        self._library = library
        self.answers = []

    def __getattr__(self, name):
        return getattr(self._library, name)

    def receivewal_receive(self, handle, options):
        data = _header.receivewal_data()
        for i in range(3):
            text = ctypes.create_string_buffer(b"\0%d" % i, 2)
            data.timeline, data.lsn, data.server_lsn, data.data, data.length = 1, i, 9, ctypes.addressof(text), 2
            self.answers.append(options._obj.events.data(None, ctypes.pointer(data)))
            if self.answers[-1] != 0:
                return 70
        return 0


def receive_data(on_data, stream=False):
    ours, theirs = socket.socketpair()
    with ours, theirs, receivewal.attach(ours) as rw:
        library = rw._lease.library = Library(rw._lease.library)
        try:
            if stream:
                equal(list(rw.stream("/", on_data=on_data)), [])
            else:
                rw.receive("/", on_data=on_data)
        finally:
            answers = list(library.answers)
        return answers, rw.stopped


def test_data_waits_for_its_callback():
    seen = []
    for stream in (False, True):
        seen.clear()
        equal(receive_data(seen.append, stream), ([0, 0, 0], False))
        equal(seen, [receivewal.Data(1, LSN(i), LSN(9), b"\0%d" % i) for i in range(3)])
    equal(receive_data(lambda d: d.lsn == 1), ([0, 1], True))


def test_data_whose_callback_fails_is_refused():
    def fails(data):
        seen.append(data.lsn)
        raise KeyError

    seen = []
    raises(KeyError, receive_data, fails)
    equal(seen, [0])


def test_an_interrupt_on_the_way_to_the_answer():
    ours, theirs = socket.socketpair()
    with ours, theirs, receivewal.attach(ours) as rw:
        library = rw._lease.library = Library(rw._lease.library)
        settle, interrupts = rw._settle, [KeyboardInterrupt]

        def interrupted(*args):
            while interrupts:
                raise interrupts.pop()
            settle(*args)

        rw._settle = interrupted
        raises(KeyboardInterrupt, rw.receive, "/", on_data=lambda d: None)
        equal(library.answers, [1])


def test_data_that_nobody_wants_any_more():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for end in (lambda rw: rw.detach(), lambda rw: None):
            rw = receivewal.attach(ours)
            library = rw._lease.library = Library(rw._lease.library)
            rw.start("/", on_data=lambda d: None)
            thread = rw._lease.thread
            end(rw)
            del rw
            thread.join(60)
            equal((thread.is_alive(), library.answers), (False, [1]))


def test_answers_have_what_the_structs_have():
    left_out = {"size", "length"}
    for ours, name in ((receivewal.System, "system"), (receivewal.Slot, "slot"), (receivewal.StartPoint, "start_point"),
                       (receivewal.Check, "check"), (receivewal.Segment, "segment"), (receivewal.Progress, "progress"),
                       (receivewal.TimelineSwitch, "timeline_switch"), (receivewal.Problem, "problem"),
                       (receivewal.DiskState, "disk_full"), (receivewal.Mirror, "mirror"),
                       (receivewal.Data, "data"), (receivewal.Reconnection, "reconnection")):
        equal(set(ours.__dataclass_fields__) - {"found"}, {f[0] for f in structs()["receivewal_" + name]._fields_} - left_out)


def test_directories():
    with tempfile.TemporaryDirectory() as d:
        equal(receivewal.find_start(d).lsn, 0)
        for number in (1, 3):
            with open(os.path.join(d, receivewal.segment_name(1, number << 20, 1 << 20)), "wb") as f:
                # XLogLongPageHeaderData of PostgreSQL 15, in xlog_internal.h
                f.write(struct.pack("=HHIQIxxxxQII", 0xD110, 2, 1, number << 20, 0, 12345, 1 << 20, 8192))
                f.truncate(1 << 20)
        start = receivewal.find_start(d.encode(), 1 << 20)
        equal((start.lsn, start.timeline, start.segment), (LSN(4 << 20), 1, "000000010000000000000003"))
        heard = []
        check = receivewal.check_directory(d, segment_size=1 << 20, on_problem=heard.append)
        equal((check.segments, check.problems, check.system_identifier, list(check.found)), (2, 1, 12345, heard))
        equal([(p.kind, p.state, p.lsn, p.end_lsn) for p in heard],
              [(receivewal.ProblemKind.MISSING, receivewal.ProblemState.FOUND, LSN(2 << 20), LSN(3 << 20))])
        for number in (5, 7):
            os.link(os.path.join(d, "000000010000000000000003"), os.path.join(d, f"00000001000000000000000{number}"))
        once = []
        receivewal.check_directory(d, segment_size=1 << 20, on_problem=lambda p: once.append(p) or True)
        equal(len(once), 1)

        def fails(_):
            raise KeyError

        raises(KeyError, receivewal.check_directory, d, segment_size=1 << 20, on_problem=fails)
    equal(raises(receivewal.NoDirectory, receivewal.find_start, d).code, 50)
    equal("no such file" in str(raises(receivewal.NoDirectory, receivewal.check_directory, d)), True)
    raises(receivewal.InvalidArgument, receivewal.find_start, "a\0b")


def test_what_is_no_connection():
    read, write = os.pipe()
    raises(receivewal.NotSocket, receivewal.attach, read)
    os.close(read)
    os.close(write)
    raises(receivewal.BadDescriptor, receivewal.attach, 999)
    raises(receivewal.BadDescriptor, receivewal.attach, -1)
    import socket

    with socket.socket() as s:
        raises(receivewal.NotConnected, receivewal.attach, s)
    for thing in (None, "host=x", object()):
        raises(TypeError, receivewal.attach, thing)


def test_where_the_library_is():
    program = "import receivewal, sys; sys.argv[1:] and receivewal.load(sys.argv[1]); print(receivewal.version())"

    def run_with(lib, *args):
        env = dict(os.environ)
        env.pop("RECEIVEWAL_LIB", None)
        if lib:
            env["RECEIVEWAL_LIB"] = lib
        return subprocess.run([sys.executable, "-c", program, *args], env=env, capture_output=True, text=True)

    lib = os.environ["RECEIVEWAL_LIB"]
    equal(run_with(lib).stdout.strip(), receivewal.version())
    equal(run_with(lib + "/libreceivewal.so.1").stdout.strip(), receivewal.version())
    equal(run_with("/nowhere", lib).stdout.strip(), receivewal.version())
    equal(run_with("", lib + "/libreceivewal.so.1").stdout.strip(), receivewal.version())
    equal("OSError" in run_with("/nowhere").stderr, True)
    receivewal.load(lib)
    raises(RuntimeError, receivewal.load, __file__)


def test_importing_starts_no_thread_and_loads_no_core():
    program = "import receivewal; receivewal.version(); receivewal.LSN('0/1'); m = open('/proc/self/maps').read(); " \
              "print('libreceivewal.so' in m, 'core' in m, open('/proc/self/status').read().split('Threads:')[1].split()[0])"
    equal(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split(), ["True", "False", "1"])


def test_help():
    import inspect

    names = list(inspect.signature(receivewal.Receiver.receive).parameters)
    equal(names[:3] + names[-1:], ["self", "directory", "slot", "reconnect"])
    equal(receivewal.Receiver.receive.__qualname__, "Receiver.receive")
    equal([n for n in receivewal.__all__ if not hasattr(receivewal, n)], [])


run(globals())
