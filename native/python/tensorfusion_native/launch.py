"""One program under a limit: prepare a worker, start the program, pass signals on, tell what it used."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tensorfusion.errors import ConfigError
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.place import Place
from tensorfusion_native.processes import start_ticks
from tensorfusion_native.workers import WorkerRecord, Workers

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a program did under its limits.

    Attributes:
        exit_code: As a shell tells it: 128 and the number of the signal that ended it.
        throttled_seconds: Time in which its threads were held back, summed.
        denied: Allocations refused at the cap.
    """

    worker: str
    device: str
    simulated: bool
    exit_code: int
    wall_seconds: float
    launches: int
    throttled_seconds: float
    peak_vram_bytes: int
    denied: int

    def data(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


def run_limited(
    command: Sequence[str],
    place: Place,
    libraries: Libraries,
    folder: Path,
    *,
    vram_bytes: int,
    compute_ratio: float,
    closed: bool = False,
) -> Summary:
    """Run a program to its end.

    Args:
        folder: Of this user's runs.
        vram_bytes: 0 is no cap.
        compute_ratio: Above 0 up to 1.
        closed: On a fault of ours, refuse the GPU instead of letting work through.

    Raises:
        ConfigError: The program cannot be started.
    """
    workers = Workers(folder / "workers")
    drop_ended(workers)
    record = WorkerRecord(
        name=f"run-{os.getpid()}",
        devices=[place.device.uuid],
        vram_bytes=vram_bytes,
        compute_ratio=compute_ratio,
        context_bytes=place.context_bytes,
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        command=list(command),
    )
    workers.put(record)
    try:
        added = {**place.environment(), **workers.environment(record.name, libraries)}
        if closed:
            added["TENSORFUSION_FAULT_POLICY"] = "closed"
        started = time.monotonic()
        code = _run(command, process_environment(os.environ, added))
        use = workers.use(record.name)[0]
        return Summary(
            worker=record.name,
            device=place.device.uuid,
            simulated=place.machine is not None,
            exit_code=code,
            wall_seconds=round(time.monotonic() - started, 3),
            launches=use.launches,
            throttled_seconds=round(use.throttled_ns / 1e9, 3),
            peak_vram_bytes=use.peak_bytes,
            denied=use.denied,
        )
    finally:
        workers.remove(record.name)
        workers.close()


def drop_ended(workers: Workers) -> None:
    """Remove what launchers left behind that were killed, once their programs have ended too."""
    for record in workers.records():
        if record.over() and not workers.alive(record.name):
            workers.remove(record.name)


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a program; signals of ours go to it, those too that come before it has started."""
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    # A terminal sends its interrupt to both; from elsewhere only we get it. The program must not
    # inherit that we ignore it, so it is a handler that does nothing.
    from_terminal = sys.stdin is not None and sys.stdin.isatty()
    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, _nothing if from_terminal else forward)
    try:
        process = subprocess.Popen(command, env=environment)
        for number in early:
            process.send_signal(number)
        code = process.wait()
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]!r}: {error.strerror}") from error
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    return 128 - code if code < 0 else code


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Let a signal pass."""
