"""Control laws of GPU limiters against each other, in virtual time on the simulated driver.

    python tests/bench/control_law.py [--workloads N] [--jobs N] [--seed N] [--plot FILE] [--json]
        [--hami-core LIBRARY [--reference-workloads N]]

Every law paces the same random workloads on the same machine: kernels of 5 us (50 us where each is waited
for) to 50 ms, one block to many waves, some with a second kernel mixed in, some that change their length half-way, launched one
by one or into a queue, on one stream or several, under caps of 5 to 95 percent. Ours is the limiter
itself; the others are small preload libraries of `native/laws`, written from the published
descriptions. ``--hami-core`` adds a row for a library built elsewhere; it knows no virtual time, so
it is measured in wall time and on fewer workloads.

What is measured per workload, from the simulator's own count of busy time:

- *mean error*: share from the second second to the end, less the cap, in points
- *worst second*: of all windows of 1 s that begin two seconds or more after the start or after a
  change of the kernel's length, the one furthest from the cap, in points
- *settling*: time after the start, or after the change, from which on all windows are within 5 points
- *deficit* and *excess* at the start: the most, within the first three seconds, that the tenant was
  behind or ahead of its share, in seconds of device time
"""

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.law_plot import to_svg
from native.machine import CONTEXT, ROOT, Machine, lines

SECONDS = 12
PHASE_S = 6
PER_SECOND = 10
"""Shares are read every 100 ms."""
GRACE_S = 2
SETTLED_POINTS = 5.0
START_S = 3
DEADLINE_S = 300
"""Wall time; no workload takes so long."""
GRIDS = (1, 16, 54, 108, 432, 4096, 100_000)
LAWS = {
    "ours": "",
    "HAMi loop": "hami_loop",
    "elastic": "elastic",
    "elastic, slewed": "elastic_slewed",
}
"""Name in tables to the library in the build's ``laws`` folder."""
REFERENCE = "HAMi-core, built elsewhere"


@dataclass(frozen=True, slots=True)
class Workload:
    """A load that could use the whole device, and the cap that it is put under.

    Attributes:
        then_us: Kernel length after `PHASE_S` seconds; 0: it stays.
        mix_every: Every so many launches one of another kernel; 0: never.
        sync: 1: every launch is waited for.
    """

    seed: int
    cap_pct: int
    kernel_us: int
    grid: int
    then_us: int
    mix_every: int
    mix_us: int
    mix_grid: int
    sync: int
    streams: int

    def arguments(self) -> dict[str, int]:
        """What tf-load is told."""
        skipped = ("seed", "cap_pct")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}
        return given | {"phase_s": PHASE_S, "seconds": SECONDS, "interval_ms": 100, "watch": 1}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a law did with a workload; see the head of the file."""

    mean_error: float
    worst_second: float
    settling: float
    deficit: float
    excess: float


UNITS = ("points", "points", "s", "s of device time", "s of device time")
TARGETS = (0.5, 5.0, 1.0, 0.2, None)
"""What ours should reach; no target is set for the excess."""


def kernel_length(rng: random.Random, least_us: int) -> int:
    """Up to 50 ms, each power of ten as likely as the next."""
    return round(least_us * (50_000 / least_us) ** rng.random())


def random_workload(seed: int) -> Workload:
    """The workload of a seed."""
    rng = random.Random(seed)
    sync = int(rng.random() < 0.3)
    mixed, phased = rng.random() < 0.3, rng.random() < 0.3
    grid = rng.choice(GRIDS)
    # Each wait is a turn of the simulator's clock, which takes the machine longer than a short kernel.
    least_us = 50 if sync else 5
    return Workload(
        seed=seed,
        cap_pct=rng.randint(5, 95),
        kernel_us=kernel_length(rng, least_us),
        grid=grid,
        then_us=kernel_length(rng, least_us) if phased else 0,
        mix_every=rng.choice((2, 4, 10)) if mixed else 0,
        mix_us=kernel_length(rng, least_us),
        mix_grid=rng.choice([other for other in GRIDS if other != grid]),
        sync=sync,
        streams=1 if sync else rng.choice((1, 1, 1, 2, 4, 8)),
    )


def figures(workload: Workload, shares: Sequence[float]) -> Figures:
    """Judge the shares (percent, per 100 ms) that a workload got."""
    cap, phase = workload.cap_pct, PHASE_S * PER_SECOND
    errors = [
        abs(sum(shares[i : i + PER_SECOND]) / PER_SECOND - cap)
        for i in range(len(shares) - PER_SECOND + 1)
    ]
    grace = GRACE_S * PER_SECOND
    parts = [(0, len(errors))]
    if workload.then_us:
        parts = [(0, phase - PER_SECOND + 1), (phase, len(errors))]
    worst = max(max(errors[first + grace : last]) for first, last in parts)
    settling = max(
        max((i + 1 - first for i in range(first, last) if errors[i] > SETTLED_POINTS), default=0)
        for first, last in parts
    )
    late = shares[grace:]
    ahead, balance = [0.0], 0.0
    for share in shares[: START_S * PER_SECOND]:
        balance += (share - cap) / 100 / PER_SECOND
        ahead.append(balance)
    return Figures(
        mean_error=abs(sum(late) / len(late) - cap),
        worst_second=worst,
        settling=settling / PER_SECOND,
        deficit=abs(min(ahead)),
        excess=max(ahead),
    )


def run(law: str, workload: Workload, build: Path, library: str = "") -> Figures:
    """Run a workload under a law on a machine of its own."""
    with tempfile.TemporaryDirectory(prefix="tensorfusion-law-") as folder:
        machine = Machine(build, Path(folder), mode="wall" if library else "virtual").configure()
        try:
            arguments = workload.arguments() | {"deadline_s": DEADLINE_S}
            command = [str(build / "tf-load"), *(f"{k}={v}" for k, v in arguments.items())]
            if library:
                started = machine.start(
                    command,
                    LD_PRELOAD=library,
                    CUDA_DEVICE_SM_LIMIT=str(workload.cap_pct),
                    CUDA_DEVICE_MEMORY_SHARED_CACHE=f"{folder}/cache",
                )
            elif LAWS[law]:
                started = machine.start(
                    command,
                    LD_PRELOAD=str(build / "laws" / f"liblaw_{LAWS[law]}.so"),
                    TF_LAW_SHARE_PCT=str(workload.cap_pct),
                )
            else:
                worker = machine.worker(compute=workload.cap_pct / 100, context=CONTEXT)
                started = worker.load(**arguments)
            shares = [row["busy_pct"] for row in lines(started, timeout=DEADLINE_S)]
        finally:
            machine.close()
    return figures(workload, shares)


def compare(seeds: Sequence[int], build: Path, jobs: int) -> dict[str, list[Figures]]:
    """Run every law on the workload of every seed."""
    workloads = [random_workload(seed) for seed in seeds]
    pairs = [(law, workload) for workload in workloads for law in LAWS]
    results: list[Figures] = []
    with ThreadPoolExecutor(jobs) as pool:
        for result in pool.map(lambda pair: run(*pair, build), pairs):
            results.append(result)
            done, rest = divmod(len(results), len(LAWS))
            if not rest and done % 10 == 0:
                sys.stderr.write(f"{done} of {len(workloads)} workloads done\n")
    found: dict[str, list[Figures]] = {law: [] for law in LAWS}
    for (law, _), result in zip(pairs, results, strict=True):
        found[law].append(result)
    return found


def median_and_p95(values: Sequence[float]) -> tuple[float, float]:
    """The middle, and what 95 percent of the values are at most."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1]


def columns(rows: Sequence[Figures]) -> list[tuple[float, ...]]:
    """The values of each figure over all workloads."""
    return list(zip(*map(astuple, rows), strict=True))


def table(found: dict[str, list[Figures]]) -> list[str]:
    """A Markdown table: median and 95th percentile of each figure, and what part meets the targets."""
    names = [f.name.replace("_", " ") for f in fields(Figures)]
    heads = [f"{name}, {unit}" for name, unit in zip(names, UNITS, strict=True)]
    lines = [
        "| law | workloads | " + " | ".join(heads) + " | within all targets |",
        "|---|---|" + "---|" * (len(heads) + 1),
    ]
    for law, rows in found.items():
        cells = ["{:.2f} / {:.2f}".format(*median_and_p95(values)) for values in columns(rows)]
        met = sum(meets_targets(row) for row in rows)
        cells.append(f"{100 * met / len(rows):.0f} %")
        lines.append(f"| {law} | {len(rows)} | " + " | ".join(cells) + " |")
    return lines


def meets_targets(row: Figures) -> bool:
    """Whether every figure that has a target reaches it."""
    pairs = zip(astuple(row), TARGETS, strict=True)
    return all(target is None or value <= target for value, target in pairs)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first workload")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "native-release")
    parser.add_argument("--plot", type=Path, help="write the distributions as SVG")
    parser.add_argument("--json", type=Path, help="write every workload with its figures")
    parser.add_argument("--hami-core", type=Path, help="a library built elsewhere")
    parser.add_argument("--reference-workloads", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    """Measure, print the table, write what was asked for."""
    given = arguments()
    if given.hami_core and not given.hami_core.is_file():
        raise SystemExit(f"--hami-core {given.hami_core}: there is no such file")
    seeds = range(given.seed, given.seed + given.workloads)
    found = compare(seeds, given.build, given.jobs)
    if given.hami_core:
        some = [random_workload(seed) for seed in seeds[: given.reference_workloads]]
        library = str(given.hami_core.resolve())
        found[REFERENCE] = [run(REFERENCE, one, given.build, library) for one in some]
    print("\n".join(table(found)))
    if given.plot:
        names = [f.name.replace("_", " ") for f in fields(Figures)]
        panels = [
            (f"{name}, {unit}", target, {law: columns(rows)[i] for law, rows in found.items()})
            for i, (name, unit, target) in enumerate(zip(names, UNITS, TARGETS, strict=True))
        ]
        given.plot.write_text(to_svg(panels))
    if given.json:
        report = [
            {"law": law, "seed": seed, **dict(zip(names_of(row), astuple(row), strict=True))}
            for law, rows in found.items()
            for seed, row in zip(seeds, rows, strict=False)
        ]
        given.json.write_text("\n".join(map(json.dumps, report)) + "\n")


def names_of(row: Figures) -> list[str]:
    """The fields' names."""
    return [f.name for f in fields(row)]


if __name__ == "__main__":
    main()
