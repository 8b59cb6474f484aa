"""Freezing and thawing over and over: time per cycle beside the copy's own, and what is left behind.

    .venv/bin/python tests/bench/freeze.py [--cycles 1000] [--gib 1] [--touched-mib 16] [--cold]

One process on the simulated driver, in wall time. A thaw may take what its bytes take at this
machine's own copy bandwidth, and half a second: ``copy_s`` is a copy of as many bytes into fresh
memory, made in the same run. The simulated card's link is another floor, ``link_s``. Contents are
compared by hash at the end; growth of memory and open files is that of the process between the
fourth cycle and the last.
"""

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorfusion.model.hardware import find_card
from tensorfusion.spi.backend import Tier
from tensorfusion_native.freezer import Freezer
from tensorfusion_native.libraries import libraries
from tensorfusion_native.simulated_machine import CONTEXT_BYTES, SimulatedMachine, device_uuid

GIB = 1 << 30
MIB = 1 << 20
COPY_PART = 256 * MIB
ALLOWED_SECONDS = 0.5
"""What a thaw may take beyond the copy."""
LINK_BYTES_PER_SECOND = 24e9
"""What the simulated card's link carries unless it is told otherwise."""
NEWEST = {"cuda_version": 13000, "driver_version": "580.65.06"}
TENANT = """
import hashlib, random
size, touched = int(sys.argv[1]), int(sys.argv[2])
init()
code, address = alloc(size)
ok(code)
step = max(size // max(touched // MIB, 1), MIB)
parts = range(0, size - MIB + 1, step)
for at in parts: C.memmove(address + at, random.Random(at).randbytes(MIB), MIB)
def digest():
    found, host = hashlib.sha256(), C.create_string_buffer(MIB)
    for at in parts:
        ok(cuda.cuMemcpyDtoH_v2(host, C.c_uint64(address + at), C.c_size_t(MIB)))
        found.update(host)
    return found.hexdigest()
say(digest=digest())
for line in sys.stdin: say(digest=digest())
"""


def ask(process: subprocess.Popen[str]) -> str:
    """Let the tenant hash its device memory."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    digest: str = json.loads(process.stdout.readline())["digest"]
    return digest


def footprint(pid: int) -> tuple[int, int]:
    """Resident bytes and open files of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def copy_seconds(size: int) -> float:
    """How long one thread takes to copy so many bytes into memory that was never touched."""
    source, spent = bytes(os.urandom(MIB)) * (COPY_PART // MIB), 0.0
    for start in range(0, size, COPY_PART):
        part = memoryview(source)[: min(COPY_PART, size - start)]
        with mmap.mmap(-1, len(part)) as fresh:
            started = time.perf_counter()
            fresh[:] = part
            spent += time.perf_counter() - started
    return spent


def run(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run all cycles; returns the row."""
    card = find_card("A100_SXM_80G")
    uuid = device_uuid("bench", 0, card.model)
    machine = SimulatedMachine.create(
        folder / "machine", [(uuid, card)], libraries(), settings=NEWEST
    )
    management, freezer = machine.management(), Freezer(machine.checkpoints(), folder / "frozen")
    size, touched = options.gib * GIB, options.touched_mib * MIB
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", "from native.actor import *\n" + TENANT, str(size), str(touched)],
        env=os.environ | machine.environment() | {"PYTHONPATH": str(tests)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        before = json.loads(process.stdout.readline())["digest"]
        tier = Tier.COLD if options.cold else Tier.WARM
        used = management.read(0).used_bytes or 0
        freezes, thaws, left = [], [], 0
        start = (0, 0)
        for cycle in range(options.cycles):
            started = time.perf_counter()
            freezer.suspend(
                freezer.path("w"), "w", [process.pid], tier, devices=[uuid], vram_bytes={uuid: used}
            )
            freezes.append(time.perf_counter() - started)
            left = max(left, management.read(0).used_bytes or 0)
            thaws.append(freezer.thaw("w", {uuid: card.vram_bytes}, [uuid]))
            if cycle == 3:
                ask(process)
                start = footprint(process.pid)
        after = ask(process)
        end = footprint(process.pid)
        copy = copy_seconds(used - CONTEXT_BYTES)
        return {
            "cycles": options.cycles,
            "tier": tier.value,
            "vram_bytes": used,
            "touched_bytes": touched,
            "link_s": round((used - CONTEXT_BYTES) / LINK_BYTES_PER_SECOND, 4),
            "copy_s": round(copy, 4),
            "copy_bytes_per_s": round((used - CONTEXT_BYTES) / copy),
            "freeze_median_s": round(statistics.median(freezes), 4),
            "thaw_median_s": round(statistics.median(thaws), 4),
            "thaw_max_s": round(max(thaws), 4),
            "thaw_of_allowed": round(max(thaws) / (copy + ALLOWED_SECONDS), 3),
            "thaw_of_allowed_by_link": round(
                max(thaws) / ((used - CONTEXT_BYTES) / LINK_BYTES_PER_SECOND + ALLOWED_SECONDS), 3
            ),
            "left_on_card_bytes": left,
            "card_bytes_grown": (management.read(0).used_bytes or 0) - used,
            "resident_bytes_grown": end[0] - start[0],
            "files_grown": end[1] - start[1],
            "contents_identical": before == after,
        }
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Print the row as JSON; 1 when something was left behind or changed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--gib", type=int, default=1, help="device memory of the process")
    parser.add_argument("--touched-mib", type=int, default=16, help="how much of it is not zero")
    parser.add_argument("--cold", action="store_true", help="to disk instead of host memory")
    options = parser.parse_args()
    if options.cycles < 5:
        parser.error(f"--cycles: {options.cycles} must be at least 5")
    with tempfile.TemporaryDirectory() as folder:
        row = run(Path(folder), options)
    print(json.dumps(row, indent=2))
    clean = row["contents_identical"] and not row["card_bytes_grown"] and not row["files_grown"]
    return 0 if clean and not row["left_on_card_bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
