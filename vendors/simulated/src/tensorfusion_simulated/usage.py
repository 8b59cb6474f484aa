"""What workers use of the simulated driver's devices, read as often as anyone likes.

The simulator's own account is exact and dear to read, so it is read once a second; in between, the
limiter's ledgers in shared memory say what was added. A reading copies these and no more: rows are
made of the copies when somebody looks, and only where something changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import overload

from tensorfusion.clock import Clock
from tensorfusion.spi.backend import WorkerSpec, WorkerUsage
from tensorfusion_native.enforcement import NOTHING, Counters, Enforcer, Row
from tensorfusion_native.management import Management
from tensorfusion_native.metering import Meter, Metered

MEASURE_SECONDS = 0.95
"""Just below a second, so that who reads once a second always gets a new measurement. Who reads more
often gets it in the first reading of every second of the clock, which is the one that the agent takes
apart: what was counted at the measurement and what is counted now are the same then."""


class UsageRows(Sequence[WorkerUsage]):
    """One reading, whose rows are made when they are first looked at.

    Args:
        make: Makes them. ``lock``: held for it.

    Concurrency: any thread may look.
    """

    def __init__(
        self, make: Callable[[], list[WorkerUsage]], lock: AbstractContextManager[object]
    ) -> None:
        self._make: Callable[[], list[WorkerUsage]] | None = make
        self._made: list[WorkerUsage] = []
        self._lock = lock

    def _rows(self) -> list[WorkerUsage]:
        if self._make is not None:
            with self._lock:
                if self._make is not None:  # two threads may look at a time
                    self._made = self._make()
                    self._make = None
        return self._made

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[WorkerUsage]:
        return iter(self._rows())

    @overload
    def __getitem__(self, index: int) -> WorkerUsage: ...
    @overload
    def __getitem__(self, index: slice) -> list[WorkerUsage]: ...
    def __getitem__(self, index: int | slice) -> WorkerUsage | list[WorkerUsage]:
        return self._rows()[index]


@dataclass(frozen=True, slots=True)
class _Place:
    """A worker on a device.

    Attributes:
        row: Its place in the copies; -1 without a limiter.
        gflops: The rate of what it has of the device: all, or a partition.
    """

    uuid: str
    spec: WorkerSpec
    row: int
    gflops: int


@dataclass(slots=True)
class _Seen:
    """A worker on a device at the last look: what was measured, counted and told."""

    metered: Metered
    charged_then: float
    counters: Counters
    told: WorkerUsage


class UsageReader:
    """Reads usage, one row per worker and device.

    Args:
        devices: The driver's ordinal by uuid.
        rate: Rate of what a worker has of the device of a uuid: all, or a partition.
        limited: Whether a worker runs under the limiter.
        lock: The session's, which guards all of this and is held for `read`.
    """

    def __init__(
        self,
        management: Management,
        enforcer: Enforcer,
        clock: Clock,
        *,
        devices: Mapping[str, int],
        rate: Callable[[WorkerSpec, str], int],
        limited: Callable[[WorkerSpec], bool],
        lock: AbstractContextManager[object],
    ) -> None:
        self._management = management
        self._enforcer = enforcer
        self._clock = clock
        self._devices = dict(devices)
        self._rate = rate
        self._limited = limited
        self._lock = lock
        self._meters = {uuid: Meter() for uuid in devices}
        self._measured: dict[str, dict[str, Metered]] = {uuid: {} for uuid in devices}
        self._measured_at = float("-inf")
        self._workers: Mapping[str, WorkerSpec] = {}
        self._places: list[_Place] = []
        self._rows: list[Row] = []
        self._base: dict[Row, bytes] = {}
        """The copies at the last measurement."""
        self._seen: dict[tuple[str, str], _Seen] = {}

    def read(self, workers: Mapping[str, WorkerSpec]) -> UsageRows:
        """Read all workers, by device.

        Args:
            workers: Another object whenever one of them changed.
        """
        now, moment = self._clock.now(), self._clock.monotonic()
        if workers is not self._workers:
            self._place(workers)
        copies = self._enforcer.copy(self._rows)
        since = moment - self._measured_at
        if since >= MEASURE_SECONDS or moment // 1.0 != self._measured_at // 1.0:
            self._measure()
            self._measured_at = moment
            self._base = dict(zip(self._rows, copies, strict=True))
        places, measured, rows, base = self._places, self._measured, self._rows, self._base

        def make() -> list[WorkerUsage]:
            found = []
            for place in places:
                row = rows[place.row] if place.row >= 0 else None
                raw = copies[place.row] if row is not None else b""
                then = base.get(row, raw) if row is not None else b""
                metered = measured[place.uuid][place.spec.worker]
                found.append(self._row(place, row, metered, then, raw, now))
            return found

        return UsageRows(make, self._lock)

    def _place(self, workers: Mapping[str, WorkerSpec]) -> None:
        """Take in that there are other workers, or that some changed."""
        before = {(place.uuid, place.spec.worker) for place in self._places}
        self._workers, self._places, self._rows = workers, [], []
        by_device: dict[str, list[tuple[WorkerSpec, int]]] = {uuid: [] for uuid in self._devices}
        for spec in workers.values():
            limited = self._limited(spec)
            for number, uuid in enumerate(spec.devices):
                by_device[uuid].append((spec, len(self._rows) if limited else -1))
                if limited:
                    self._rows.append((spec.worker, number))
        self._places = [
            _Place(uuid, spec, row, self._rate(spec, uuid))
            for uuid, specs in by_device.items()
            for spec, row in specs
        ]
        present = {(place.uuid, place.spec.worker) for place in self._places}
        if present != before:
            self._measured_at = float("-inf")
        self._seen = {key: seen for key, seen in self._seen.items() if key in present}

    def _measure(self) -> None:
        here: dict[str, list[str]] = {uuid: [] for uuid in self._devices}
        for place in self._places:
            here[place.uuid].append(place.spec.worker)
        self._measured = {
            uuid: self._meters[uuid].read(self._management.truth(index), here[uuid])
            for uuid, index in self._devices.items()
        }

    def _row(
        self,
        place: _Place,
        row: Row | None,
        metered: Metered,
        then: bytes,
        raw: bytes,
        now: float,
    ) -> WorkerUsage:
        """Make a worker's row on a device.

        Args:
            then: The copy of its counters when it was measured. ``raw``: now.
        """
        uuid, worker = place.uuid, place.spec.worker
        seen = self._seen.get((uuid, worker))
        same = seen is not None and seen.metered is metered
        charged_then = seen.charged_then if seen is not None and same else 0.0
        counters = NOTHING
        if row is not None:
            if not same:
                charged_then = self._enforcer.decode(row, then).charged_seconds
            counters = self._enforcer.decode(row, raw)
        if seen is not None and same and seen.counters is counters:
            return seen.told
        busy = metered.busy_seconds + max(0.0, counters.charged_seconds - charged_then)
        if seen is not None:
            # What was charged since may turn out to be less than was estimated.
            busy = max(busy, seen.told.busy_seconds_total)
        told = WorkerUsage(
            worker=worker,
            uuid=uuid,
            time=now,
            compute_gflops=metered.ratio * place.gflops,
            vram_bytes=metered.used_bytes,
            throttled_seconds_total=counters.throttled_seconds,
            busy_seconds_total=busy,
            oom_total=counters.denied,
            pressure=counters.pressure,
        )
        self._seen[uuid, worker] = _Seen(metered, charged_then, counters, told)
        return told
