"""Mutation fuzzing of everything that decodes bytes which others wrote; a target is seeds and a function.

    python tests/native/fuzz.py [--seconds 600] [--seed 1] [--target NAME] [--build build/native-asan]

A run is a function of target, seed and number, so a finding is repeated with ``--first``. Targets run side by side.
The C decoder of the same files has a program of its own, native/fuzz/fuzz_region.c, that is started here too.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from native.fuzz_targets import TARGETS  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
EDGES = [bytes([b]) * n for b in (0, 0x7F, 0x80, 0xFF) for n in (1, 2, 4, 8)] + [
    b"\r\n", b"%", b'"', b"\\u", b"[" * 3000, b"{", b"null", b"-1", b"1e999", b"9" * 40,
    "\u00e9".encode(), b"\xed\xa0\x80",
]  # fmt: skip
LONGEST = 1 << 17


def mutate(chance, data, others):
    """A few changes of bytes, pieces and lengths; sometimes a piece of another seed."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            edge = chance.choice(EDGES)
            data[at : at + len(edge) * chance.randrange(2)] = edge
        elif kind == 2:
            del data[at : at + chance.choice((1, 2, 8, 100, 5000))]
        elif kind == 3:
            piece = data[at : at + chance.randrange(1, 64)]
            data[at:at] = piece * chance.choice((1, 2, 50))
        elif kind == 4:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            data[at : at + chance.randrange(40)] = other[start : start + chance.randrange(1, 40)]
        else:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(data[:LONGEST])


def corpus(name):
    """Inputs that were findings once."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []


def fuzz(name, seconds, seed, first=0, runs=None):
    """Run one target; the number of runs. What it raises is the finding, with the input added."""
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        TARGETS[name](Path(folder)) as target,
    ):
        seeds = target.seeds + corpus(name)
        if not first:
            for data in seeds:
                target.run(data)
        begun, number = time.monotonic(), first
        while time.monotonic() - begun < seconds and (runs is None or number - first < runs):
            chance = random.Random(f"{name} {seed} {number}")
            data = mutate(chance, chance.choice(seeds), seeds)
            try:
                target.run(data)
            except BaseException as error:
                error.add_note(f"{name}: --seed {seed} --first {number}: {data[:200]!r}")
                raise
            number += 1
        return number - first


def report(name, seconds, seed, first):
    begun = time.monotonic()
    runs = fuzz(name, seconds, seed, first)
    took = time.monotonic() - begun
    row = {
        "target": name,
        "runs": runs,
        "seconds": round(took, 1),
        "runs_per_s": round(runs / took),
    }
    print(json.dumps(row), flush=True)


def region_program(build, folder, seconds, seed):
    """The command that fuzzes the limiter's own reading of a worker's files."""
    return [
        str(build / "fuzz-region"),
        f"folder={folder}",
        f"driver={build / 'null' / 'libcuda.so.1'}",
        f"seconds={seconds}",
        f"seed={seed}",
    ]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=600)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--target", choices=[*TARGETS, "region"], action="append")
    arguments.add_argument("--build", type=Path, default=ROOT / "build" / "native-asan")
    given = arguments.parse_args()
    wanted = given.target or [*TARGETS, "region"]
    running = [
        Process(target=report, args=(name, given.seconds, given.seed, given.first))
        for name in wanted
        if name != "region"
    ]
    for process in running:
        process.start()
    code = 0
    if "region" in wanted:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            command = region_program(given.build.resolve(), folder, given.seconds, given.seed)
            code = subprocess.run(command, check=False).returncode
    for process in running:
        process.join()
        code = code or process.exitcode
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
