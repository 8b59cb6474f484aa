"""Measures how exactly the limiter holds a device to a share: a cell per share, kernel length and grid."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.place import Place
from tensorfusion_native.simulated_machine import SimulatedMachine
from tensorfusion_native.workers import WorkerRecord, Workers

INTERVAL_MS = 100
PER_SECOND = 1000 // INTERVAL_MS
SETTLING_SECONDS = 2
"""Windows that begin before are start-up, and only show in the settling time."""
SETTLED_POINTS = 5.0
"""From the settling time on, every window is this near the cap."""
BLOCKS_PER_SM = 8
"""Blocks of 128 threads that every multiprocessor since 2014 runs side by side (CUDA programming
guide, technical specifications per compute capability), so that a kernel is one wave."""
USUAL_SMS = 108


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: cap in percent, kernel length in microseconds, blocks (0 fills the device)."""

    cap_pct: int
    kernel_us: int
    grid: int


@dataclass(frozen=True, slots=True)
class Row:
    """What a cell measured, in percent of the device's time.

    Attributes:
        worst_window_pct: The share in the 1 s window furthest from the cap.
        settle_s: After this time every window was near the cap; the length of the measurement
            when it never was.
    """

    cap_pct: int
    kernel_us: int
    grid: int
    mean_pct: float
    worst_window_pct: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of a device. ``time`` is ``wall`` or ``virtual``."""

    device: str
    simulated: bool
    time: str
    seconds: int
    rows: list[Row]

    def data(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def cells(*, full: bool) -> list[Cell]:
    """The usual 30 cells, or all of them."""
    caps: Sequence[int] = range(5, 100, 5) if full else (10, 30, 50, 70, 90)
    kernels = (5, 20, 100, 1000, 5000, 20000, 50000) if full else (50, 1000, 20000)
    grids = (1, 64, 0) if full else (1, 0)
    return [Cell(cap, kernel, grid) for cap in caps for kernel in kernels for grid in grids]


def summarize(cell: Cell, intervals: Sequence[float]) -> Row:
    """Make a row of the shares in intervals of `INTERVAL_MS`, in percent."""
    windows = [
        sum(intervals[i : i + PER_SECOND]) / PER_SECOND
        for i in range(len(intervals) - PER_SECOND + 1)
    ]
    errors = [abs(window - cell.cap_pct) for window in windows]
    first = min(SETTLING_SECONDS * PER_SECOND, len(windows) - 1)
    worst = max(range(first, len(windows)), key=errors.__getitem__)
    settled = max((i + 1 for i, error in enumerate(errors) if error > SETTLED_POINTS), default=0)
    if settled == len(windows):
        settled = len(intervals)
    return Row(
        cap_pct=cell.cap_pct,
        kernel_us=cell.kernel_us,
        grid=cell.grid,
        mean_pct=round(sum(intervals) / len(intervals), 2),
        worst_window_pct=round(windows[worst], 2),
        settle_s=round(settled / PER_SECOND, 1),
    )


def verify(
    wanted: Sequence[Cell],
    place: Place,
    libraries: Libraries,
    *,
    seconds: int,
    clock: str,
    progress: Callable[[int, str], None],
) -> Report:
    """Measure every cell in turn.

    Raises:
        BackendError: The load could not run; its own words.
    """
    sms = place.card.multiprocessors if place.card is not None else USUAL_SMS
    rows = []
    for number, asked in enumerate(wanted, 1):
        cell = Cell(asked.cap_pct, asked.kernel_us, asked.grid or sms * BLOCKS_PER_SM)
        with tempfile.TemporaryDirectory(prefix="tensorfusion-verify-") as folder:
            row = summarize(cell, _measure(cell, place, libraries, Path(folder), seconds, clock))
        rows.append(row)
        progress(
            number,
            f"cap {row.cap_pct} %, kernels of {row.kernel_us} us, {row.grid} blocks:"
            f" mean {row.mean_pct:.1f} %, worst second {row.worst_window_pct:.1f} %",
        )
    time = clock if place.machine is not None else "wall"
    return Report(place.device.name, place.machine is not None, time, seconds, rows)


def _measure(
    cell: Cell, place: Place, libraries: Libraries, folder: Path, seconds: int, clock: str
) -> list[float]:
    """Run the load under the cap; shares of the device's time in percent, per interval."""
    environment = place.environment()
    if place.machine is not None and place.card is not None:
        # A machine of its own: whoever else is on the shared one would be measured too.
        machine = SimulatedMachine.create(
            folder / "machine", [(place.device.uuid, place.card)], libraries, time=clock
        )
        environment |= machine.environment()
    workers = Workers(folder / "workers")
    workers.put(
        WorkerRecord(name="verify", devices=[place.device.uuid], compute_ratio=cell.cap_pct / 100)
    )
    environment |= workers.environment("verify", libraries)
    workers.close()
    arguments = {
        "kernel_us": cell.kernel_us,
        "grid": cell.grid,
        "seconds": seconds,
        "interval_ms": INTERVAL_MS,
        "deadline_s": 60 + 3 * seconds,
    }
    command = [str(libraries.load), *(f"{key}={value}" for key, value in arguments.items())]
    process = subprocess.run(
        command,
        env=process_environment(os.environ, environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        reason = "it took too long" if process.returncode == -signal.SIGALRM else process.stderr
        raise BackendError("tf-load", f"{' '.join(command)}: {reason or process.stdout}".strip())
    return shares(process.stdout, cell.kernel_us, simulated=place.machine is not None)


def shares(output: str, kernel_us: int, *, simulated: bool) -> list[float]:
    """Read the load's lines.

    The simulator tells how long the device was busy. A real one is asked for kernels of a known
    length, so that their number tells it.
    """
    found: list[float] = []
    last_s, last_launches = 0.0, 0
    for line in output.splitlines():
        entry = json.loads(line)
        span = entry["t"] - last_s
        if simulated:
            found.append(entry["busy_pct"])
        else:
            found.append((entry["launches"] - last_launches) * kernel_us / span / 1e4)
        last_s, last_launches = entry["t"], entry["launches"]
    return found
