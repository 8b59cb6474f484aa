"""A short run of each fuzz target, and damaged files that must not bring a program down."""

import json
import struct
import subprocess
import sys

import pytest
from native import offsets
from native.fuzz import TARGETS, fuzz, region_program
from native.machine import GIB, MIB, lines

from tensorfusion_native.processes import start_ticks


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_read(name):
    assert fuzz(name, seconds=1.5, seed=1) > 10


def test_the_limiter_reads_damaged_files_of_a_worker(build, tmp_path):
    done = subprocess.run(
        region_program(build, tmp_path, 1, 1),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] > 10


ALLOCATE = """
end = time.monotonic() + {seconds}
init()
say(attached=True)
while time.monotonic() < end:
    code, address = alloc(700 * MIB)
    if not code:
        free(address)
    time.sleep(0.01)
say(granted=alloc(700 * MIB)[0] == 0)
"""


def test_an_owner_that_died_while_it_wrote_leaves_the_last_limits_in_force(machine):
    machine.mode = "wall"
    worker = machine.worker(vram=GIB)
    running = worker.start(ALLOCATE.format(seconds=3))
    assert json.loads(running.stdout.readline())["attached"]
    with (worker.region.folder / "limits").open("r+b") as file:
        file.seek(offsets.LIMITS["sequence"])
        file.write(struct.pack("<I", 7))
        file.seek(offsets.LIMITS["devices"] + offsets.DEVICE_LIMIT["vram_bytes"])
        file.write(struct.pack("<Q", 600 * MIB))

    assert lines(running)[-1]["granted"]
    assert worker.region.faults().bad_limits > 0


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("lock", 0x7F, "its locks are none"), ("holder", 0x3FFFFFFF, "its lock is held by nobody")],
)
def test_a_ledger_whose_locks_cannot_be_used_is_a_fault_and_no_hang(machine, field, value, said):
    """Kind and holder of a mutex are where the C library has them, in the words 4 and 0 and 2."""
    machine.mode = "wall"
    worker = machine.worker(vram=GIB)
    begin = offsets.LEDGER["lock"]
    words = {begin + 16: value} if field == "lock" else {begin: value, begin + 8: value}
    with (worker.region.folder / "ledger").open("r+b") as file:
        for at, word in words.items():
            file.seek(at)
            file.write(struct.pack("<I", word))
    running = worker.start("init(); say(granted=alloc(2 * 1024 * MIB)[0] == 0)")
    out, err = running.communicate(timeout=50)

    assert json.loads(out)["granted"]
    assert said in err


def test_a_process_whose_name_is_no_text_has_a_start():
    code = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'\\xff) Z \\xfe'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert start_ticks(process.pid) > 0
