"""What ``tensorfusion smi`` shows: devices, workers, limits, use, throttling."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.units import human_bytes
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.management import Device, Management, Reading
from tensorfusion_native.place import real_management
from tensorfusion_native.simulated_machine import SimulatedMachine
from tensorfusion_native.states import DeviceUse, Place, States, decode_state
from tensorfusion_native.workers import WorkerRecord, Workers

BAR = 10
COLUMNS = 80
"""Width of a terminal that nobody made wider."""


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device and its reading."""

    uuid: str
    index: int
    name: str
    simulated: bool
    memory_bytes: int
    used_bytes: int | None
    utilization_ratio: float | None
    temperature_celsius: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker on a device.

    Attributes:
        limit_ratio: Share of the device's time; 1 is no limit.
        limit_bytes: Cap of its memory; 0 is none.
        compute_ratio: Share that it had, as the driver measured it last.
        throttled_ratio: Part of the time since the last look in which its threads were held
            back, summed over threads; None at the first look.
        denied: Allocations refused at the cap, or within it because the card was full.
        spilled_bytes: Of its memory, what is in host memory because the card was full.
        wanted_bytes: What it waits for now because the card is full.
        waits: Allocations that waited so.
        evict_requests: Those for which a neighbour's memory was asked for.
    """

    worker: str
    uuid: str
    processes: int
    limit_ratio: float
    limit_bytes: int
    compute_ratio: float
    used_bytes: int
    peak_bytes: int
    launches: int
    throttled_seconds: float
    throttled_ratio: float | None
    denied: int
    spilled_bytes: int
    wanted_bytes: int
    waits: int
    evict_requests: int
    command: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the machine."""

    devices: list[DeviceRow]
    workers: list[WorkerRow]

    def data(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self)


class Watcher:
    """Looks at the devices and workers below some folders.

    Args:
        roots: Folders with ``workers`` and ``simulated`` in them.
    """

    def __init__(self, roots: Sequence[Path], libraries: Libraries) -> None:
        self._roots = roots
        self._libraries = libraries
        self._real, _ = real_management()
        self._machines: dict[Path, Management] = {}
        self._before: dict[tuple[Path, str, str], tuple[float, float]] = {}

    def look(self) -> Seen:
        """Read everything once."""
        devices: list[DeviceRow] = []
        workers: list[WorkerRow] = []
        ratios: dict[str, dict[int, float]] = {}
        for management, simulated in self._managements():
            for device in management.devices():
                devices.append(_device_row(device, management.read(device.index), simulated))
                ratios[device.uuid] = management.process_ratios(device.index)
        for root in self._roots:
            found = Workers(root / "workers")
            for record, pids, uses in _read(found):
                for uuid, use in zip(record.devices, uses, strict=True):
                    measured = ratios.get(uuid, {})
                    ratio = sum(measured.get(pid, 0.0) for pid in pids)
                    held = self._throttled((found.folder, record.name, uuid), use)
                    workers.append(_worker_row(record, uuid, use, len(pids), ratio, held))
            found.close()
        return Seen(devices, workers)

    def _managements(self) -> Iterator[tuple[Management, bool]]:
        if self._real is not None:
            yield self._real, False
        for root in self._roots:
            for folder in sorted((root / "simulated").glob("*/")):
                if folder not in self._machines:
                    machine = SimulatedMachine.find(folder, self._libraries)
                    if machine is None:
                        continue
                    try:
                        self._machines[folder] = machine.management()
                    except BackendError:
                        continue  # a state of another version: nobody runs on it any more
                yield self._machines[folder], True

    def _throttled(self, key: tuple[Path, str, str], use: DeviceUse) -> float | None:
        now, total = time.monotonic(), use.throttled_ns / 1e9
        before = self._before.get(key)
        self._before[key] = (now, total)
        return None if before is None else (total - before[1]) / (now - before[0])


def data_roots(data: Path | None) -> list[Path]:
    """The folders of a control plane's nodes with workers under the limiter."""
    folder = data or Path(os.environ.get("TENSORFUSION_DATA") or Path.home() / ".tensorfusion")
    return sorted((folder / "nodes").glob("*/native"))


def _read(found: Workers) -> list[tuple[WorkerRecord, set[int], list[DeviceUse]]]:
    """Each worker with its processes and its use of each device, as they all are at one moment."""
    open_now: list[tuple[WorkerRecord, set[int]]] = []
    places: list[Place] = []
    for record in found.records():
        try:
            rows = [found.place(record.name, row) for row in range(len(record.devices))]
            open_now.append((record, found.pids(record.name)))
        except (OSError, ValueError, IndexError):
            continue  # it ended while we looked, or its files are not its own
        places += rows
    uses = map(decode_state, States(places).take())
    return [(record, pids, [next(uses) for _ in record.devices]) for record, pids in open_now]


def _worker_row(
    record: WorkerRecord,
    uuid: str,
    use: DeviceUse,
    processes: int,
    compute_ratio: float,
    throttled_ratio: float | None,
) -> WorkerRow:
    return WorkerRow(
        worker=record.name,
        uuid=uuid,
        processes=processes,
        limit_ratio=record.compute_ratio,
        limit_bytes=record.vram_bytes,
        compute_ratio=compute_ratio,
        used_bytes=use.used_bytes,
        peak_bytes=use.peak_bytes,
        launches=use.launches,
        throttled_seconds=use.throttled_ns / 1e9,
        throttled_ratio=throttled_ratio,
        denied=use.denied + use.full_denied,
        spilled_bytes=use.spilled_bytes,
        wanted_bytes=use.wanted_bytes,
        waits=use.full_waits,
        evict_requests=use.evict_requests,
        command=" ".join(record.command),
    )


def _device_row(device: Device, reading: Reading, simulated: bool) -> DeviceRow:
    return DeviceRow(
        uuid=device.uuid,
        index=device.index,
        name=device.name,
        simulated=simulated,
        memory_bytes=device.memory_bytes,
        used_bytes=reading.used_bytes,
        utilization_ratio=reading.utilization_ratio,
        temperature_celsius=reading.temperature_celsius,
        power_watts=reading.power_watts,
    )


def to_text(seen: Seen, *, wide: bool = False) -> list[str]:
    """Print one look as two tables.

    Args:
        wide: All columns, whole; otherwise lines have at most `COLUMNS` characters.
    """
    lines = _device_table(seen, wide) if seen.devices else ["no GPU, and no simulated one in use"]
    lines += ["", *(_worker_table(seen, wide) if seen.workers else ["no workers"])]
    return lines if wide else [line[:COLUMNS].rstrip() for line in lines]


def _device_table(seen: Seen, wide: bool) -> list[str]:
    rows = [
        (
            str(row.index),
            _cut(row.name + (" (simulated)" if row.simulated else ""), 30, wide),
            _percent(row.utilization_ratio),
            f"{_bytes(row.used_bytes)} / {human_bytes(row.memory_bytes)}",
            "" if row.temperature_celsius is None else f"{row.temperature_celsius:.0f} C",
            "" if row.power_watts is None else f"{row.power_watts:.0f} W",
            *((bar(row.utilization_ratio or 0.0), row.uuid) if wide else ()),
        )
        for row in seen.devices
    ]
    headings = ("GPU", "NAME", "USE", "MEMORY", "TEMP", "POWER")
    return format_rows((*headings, "", "UUID") if wide else headings, rows)


def _worker_table(seen: Seen, wide: bool) -> list[str]:
    index = {row.uuid: str(row.index) for row in seen.devices}
    rows = []
    for row in seen.workers:
        held = f"{row.throttled_seconds:.1f} s"
        if row.throttled_ratio is not None:
            held = f"{held} ({row.throttled_ratio:.0%})" if wide else f"{row.throttled_ratio:.0%}"
        rows.append(
            (
                _cut(row.worker, 10, wide),
                index.get(row.uuid, "?"),
                _percent(row.compute_ratio),
                _percent(row.limit_ratio),
                human_bytes(row.used_bytes),
                human_bytes(row.limit_bytes) if row.limit_bytes else "none",
                human_bytes(row.spilled_bytes) if row.spilled_bytes else "0",
                held,
                str(row.denied),
                *((str(row.waits), bar(row.compute_ratio, row.limit_ratio)) if wide else ()),
                row.command,
            )
        )
    headings = (
        *("WORKER", "GPU", "USE", "LIMIT", "MEMORY", "LIMIT", "SPILLED", "HELD", "DENIED"),
        *(("WAITS", "") if wide else ()),
        "COMMAND",
    )
    return format_rows(headings, rows)


def _cut(text: str, most: int, wide: bool) -> str:
    return text if wide or len(text) <= most else text[: most - 1] + "…"


def format_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay columns out, left-aligned."""
    cells = [headings, *rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(headings))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def bar(ratio: float, mark: float | None = None) -> str:
    """Draw a ratio; ``mark`` puts a tick at a limit."""
    filled = round(min(max(ratio, 0.0), 1.0) * BAR)
    drawn = ["█"] * filled + ["·"] * (BAR - filled)
    if mark is not None and mark < 1:
        drawn[min(BAR - 1, round(mark * BAR))] = "|"
    return "".join(drawn)


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}"


def _bytes(amount: int | None) -> str:
    return "?" if amount is None else human_bytes(amount)
