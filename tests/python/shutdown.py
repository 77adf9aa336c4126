"""The interpreter ends in mid-stream: with its own exit status, soon, without a word, and with the walsender told."""

import os
import subprocess
import sys

from checks import SEGMENT, equal, generate, run, sql, until

import receivewal

# What runs last gives daemon threads the time to say something.
START = """
import atexit, time
atexit.register(time.sleep, 0.2)
import sys, threading, receivewal
from checks import physical, folder, until
conn = physical("application_name=shutdown")
rw = receivewal.attach(conn)
def streaming():
    until(lambda: rw.progress.state == receivewal.State.STREAMING)
    print("streaming", flush=True)
"""


def program(name, code, status=0, stderr=""):
    """Runs the code in an interpreter of its own, while the server writes WAL."""
    process = subprocess.Popen([sys.executable, "-c", START + code, *sys.argv[1:]], cwd=os.path.dirname(os.path.abspath(__file__)),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        equal(process.stdout.readline(), "streaming\n")
        generate(2)
        out, err = process.communicate("", timeout=60)
    finally:
        process.kill()
        process.wait()
    equal((process.returncode, err.strip().splitlines()[-1:]), (status, [stderr] if stderr else []))
    until(lambda: sql("select count(*) from pg_stat_replication where application_name = 'shutdown'") == 0)


def test_what_was_received_is_flushed():
    """And the server is told so: the slot moves into the middle of a segment, where only a clean end brings it."""
    sql("select pg_create_physical_replication_slot('shutdown', true)")
    code = START + "rw.start(folder(), slot='shutdown')\nstreaming()\nend = receivewal.LSN(input())\n" \
                   "until(lambda: rw.progress.written_lsn >= end)\n"
    process = subprocess.Popen([sys.executable, "-c", code, *sys.argv[1:]], cwd=os.path.dirname(os.path.abspath(__file__)),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    equal(process.stdout.readline(), "streaming\n")
    generate(1)
    end = receivewal.LSN(sql("select pg_current_wal_flush_lsn()"))
    equal(end % SEGMENT > 0, True)
    equal((process.communicate(f"{end}\n", timeout=60)[1], process.returncode), ("", 0))
    restart = receivewal.LSN(sql("select restart_lsn from pg_replication_slots where slot_name = 'shutdown'"))
    until(lambda: sql("select count(*) from pg_replication_slots where active") == 0)
    sql("select pg_drop_replication_slot('shutdown')")
    equal(restart >= end, True)


ENDS = {
    "started": ("rw.start(folder())\nstreaming()\n", 0, ""),
    "exit": ("rw.start(folder())\nstreaming()\nsys.exit(7)\n", 7, ""),
    "exception": ("rw.start(folder())\nstreaming()\nraise KeyError('mine')\n", 1, "KeyError: 'mine'"),
    "exit_in_a_callback": (
        "threading.Thread(target=streaming).start()\nrw.receive(folder(), on_segment=lambda s: sys.exit(5))\n", 5, ""),
    "iteration": ("events = rw.stream(folder())\nnext(events)\nstreaming()\n", 0, ""),
    "daemon_thread": (
        "threading.Thread(target=rw.receive, args=(folder(),), daemon=True).start()\nstreaming()\n", 0, ""),
    "callback_at_work": (
        "import time\n"
        "entered = threading.Event()\n"
        "def slow(s):\n    entered.set()\n    time.sleep(1000)\n"
        "threading.Thread(target=rw.receive, args=(folder(),), kwargs={'on_segment': slow}, daemon=True).start()\n"
        "streaming()\nentered.wait()\n", 0, ""),
    "waiting_for_a_connection": (
        "rw.start(folder(), reconnect=lambda why: None)\nstreaming()\n"
        "from checks import sql\n"
        "sql(\"select count(pg_terminate_backend(pid)) from pg_stat_replication where application_name = 'shutdown'\")\n"
        "until(lambda: rw.progress.state == receivewal.State.RECONNECTING)\n", 0, ""),
    "registered_before": (
        "import atexit\n"
        "atexit.register(lambda: rw.detach() or conn.cursor().execute('IDENTIFY_SYSTEM'))\n"
        "rw.start(folder())\nstreaming()\n", 0, ""),
    "event_loop": (
        "import asyncio\n"
        "async def main():\n"
        "    async for event in rw.stream(folder()):\n"
        "        streaming()\n"
        "        return\n"
        "asyncio.run(main())\n", 0, ""),
    "forked_child": (
        "import os\nrw.start(folder())\nstreaming()\npid = os.fork()\n"
        "if pid:\n    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n", 0, ""),
}

for name, (code, status, stderr) in ENDS.items():
    globals()["test_" + name] = lambda name=name, code=code, status=status, stderr=stderr: program(name, code, status, stderr)

run(globals())
