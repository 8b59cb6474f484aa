"""What workers use of the simulated driver's devices, read as often as anyone likes.

The simulator's own account is exact and dear to read, so it is read once a second; in between, the
limiter's ledgers in shared memory say what was added. Where nothing changed, nothing is made anew.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tensorfusion.clock import Clock
from tensorfusion.spi.backend import WorkerSpec, WorkerUsage
from tensorfusion_native.enforcement import Counters, Enforcer
from tensorfusion_native.management import Management
from tensorfusion_native.metering import Meter, Metered

MEASURE_SECONDS = 0.9
"""Just below a second, so that who reads once a second always gets a new measurement."""
NOTHING = Counters()


@dataclass(slots=True)
class _Seen:
    """A worker on a device at the last reading: what was measured, counted and told."""

    metered: Metered
    charged_then: float
    counters: Counters
    row: WorkerUsage


class UsageReader:
    """Reads usage, one row per worker and device.

    Args:
        devices: The driver's ordinal by uuid.
        gflops: Rate of a device by uuid.
        limited: Whether a worker runs under the limiter.

    Concurrency: the session's lock guards it.
    """

    def __init__(
        self,
        management: Management,
        enforcer: Enforcer,
        clock: Clock,
        *,
        devices: Mapping[str, int],
        gflops: Mapping[str, int],
        limited: Callable[[WorkerSpec], bool],
    ) -> None:
        self._management = management
        self._enforcer = enforcer
        self._clock = clock
        self._devices = dict(devices)
        self._gflops = dict(gflops)
        self._limited = limited
        self._meters = {uuid: Meter() for uuid in devices}
        self._measured: dict[str, dict[str, Metered]] = {uuid: {} for uuid in devices}
        self._measured_at = float("-inf")
        self._known: set[str] = set()
        self._seen: dict[tuple[str, str], _Seen] = {}

    def read(self, workers: Mapping[str, WorkerSpec]) -> list[WorkerUsage]:
        """Read all workers, by device."""
        now = self._clock.now()
        moment = self._clock.monotonic()
        if moment - self._measured_at >= MEASURE_SECONDS or workers.keys() != self._known:
            self._measure(workers)
            self._measured_at, self._known = moment, set(workers)
        by_device: dict[str, list[WorkerSpec]] = {uuid: [] for uuid in self._devices}
        for spec in workers.values():
            for uuid in spec.devices:
                by_device[uuid].append(spec)
        return [self._row(uuid, spec, now) for uuid, specs in by_device.items() for spec in specs]

    def _measure(self, workers: Mapping[str, WorkerSpec]) -> None:
        for uuid, index in self._devices.items():
            here = [spec.worker for spec in workers.values() if uuid in spec.devices]
            truth = self._management.truth(index)
            self._measured[uuid] = self._meters[uuid].read(truth, here)
        present = {(uuid, w) for w, spec in workers.items() for uuid in spec.devices}
        self._seen = {key: seen for key, seen in self._seen.items() if key in present}

    def _row(self, uuid: str, spec: WorkerSpec, now: float) -> WorkerUsage:
        counters = self._enforcer.counters(spec, uuid) if self._limited(spec) else NOTHING
        metered = self._measured[uuid][spec.worker]
        key = (uuid, spec.worker)
        seen = self._seen.get(key)
        if seen is not None and seen.metered is metered and seen.counters is counters:
            return seen.row
        then = counters.charged_seconds
        if seen is not None and seen.metered is metered:
            then = seen.charged_then
        busy = metered.busy_seconds + max(0.0, counters.charged_seconds - then)
        if seen is not None:
            # What was charged since may turn out to be less than was estimated.
            busy = max(busy, seen.row.busy_seconds_total)
        row = WorkerUsage(
            worker=spec.worker,
            uuid=uuid,
            time=now,
            compute_gflops=metered.ratio * self._gflops[uuid],
            vram_bytes=metered.used_bytes,
            throttled_seconds_total=counters.throttled_seconds,
            busy_seconds_total=busy,
            oom_total=counters.denied,
            pressure=counters.pressure,
        )
        self._seen[key] = _Seen(metered, then, counters, row)
        return row
