"""What a pass of sampling found, and as series: one list of rows per metric."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

import msgspec

from tensorfusion import names
from tensorfusion.runtime.instruments import Row
from tensorfusion.spi.backend import (
    DeviceInfo,
    DeviceMetrics,
    Pressure,
    Share,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.spi.limited import LimiterFaults

GIGA = 1e9
Labels = tuple[str, ...]
Rows = dict[str, list[Row]]

_OF_DEVICE: Sequence[tuple[str, Callable[[DeviceMetrics], float | None]]] = (
    ("gpu_compute_utilization_ratio", attrgetter("utilization_ratio")),
    ("gpu_vram_used_bytes", attrgetter("vram_used_bytes")),
    ("gpu_temperature_celsius", attrgetter("temperature_celsius")),
    ("gpu_power_watts", attrgetter("power_watts")),
    ("gpu_energy_joules_total", attrgetter("energy_joules_total")),
    ("gpu_last_sample_timestamp_seconds", attrgetter("time")),
)
_OF_USAGE: Sequence[tuple[str, Callable[[WorkerUsage], float]]] = (
    ("worker_vram_used_bytes", attrgetter("vram_bytes")),
    ("worker_throttled_seconds_total", attrgetter("throttled_seconds_total")),
    ("worker_vram_denials_total", attrgetter("oom_total")),
)
_OF_PRESSURE: Sequence[tuple[str, Callable[[Pressure], float]]] = (
    ("worker_vram_spilled_bytes", attrgetter("spilled_bytes")),
    ("worker_vram_spilled_bytes_total", attrgetter("spilled_bytes_total")),
    ("worker_vram_wanted_bytes", attrgetter("wanted_bytes")),
    ("worker_vram_waits_total", attrgetter("waits_total")),
    ("worker_vram_waited_seconds_total", attrgetter("waited_seconds_total")),
    ("worker_vram_evict_requests_total", attrgetter("evict_requests_total")),
    ("worker_vram_full_denials_total", attrgetter("denied_total")),
)
_OF_SHARE: Sequence[tuple[str, Callable[[Share], float], float]] = (
    ("worker_compute_request_flops", attrgetter("request_gflops"), GIGA),
    ("worker_compute_limit_flops", attrgetter("limit_gflops"), GIGA),
    ("worker_vram_request_bytes", attrgetter("request_vram_bytes"), 1.0),
    ("worker_vram_limit_bytes", attrgetter("limit_vram_bytes"), 1.0),
)


class HeldWorker(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Of a worker's spec, what series tell: whose it is, and what it may use per device."""

    worker: str
    namespace: str
    name: str
    workload: str
    share: Share

    @classmethod
    def of(cls, spec: WorkerSpec) -> "HeldWorker":
        """Take it from the spec."""
        return cls(
            worker=spec.worker,
            namespace=spec.namespace,
            name=spec.name,
            workload=spec.workload,
            share=spec.share,
        )


class NodeReading(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a node: everything that its series are made of, wherever that is done.

    Attributes:
        time: Seconds since the epoch, by the node's clock.
        infos: Its devices by uuid, as discovered.
        devices: None where the backend does not measure devices.
        usage: None where it does not measure workers.
        workers: Those that it holds.
        faults: By worker, what its limiter could not do; of limited workers only.
    """

    time: float
    infos: Mapping[str, DeviceInfo]
    devices: Sequence[DeviceMetrics] | None = None
    usage: Sequence[WorkerUsage] | None = None
    workers: Sequence[HeldWorker] = ()
    faults: Mapping[str, LimiterFaults] = {}


def encode_reading(reading: NodeReading) -> bytes:
    """Lay a reading out as JSON."""
    return msgspec.json.encode(reading)


def decode_reading(body: bytes) -> NodeReading:
    """Read what `encode_reading` laid out.

    Raises:
        ValueError: It is no reading; names the field.
    """
    try:
        return msgspec.json.decode(body, type=NodeReading)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"reading: {error}") from error


class Readings:
    """What a pass found on all nodes.

    A fleet of a thousand nodes has tens of thousands of values a second: going through them
    metric by metric costs a third of going through them device by device.
    """

    def __init__(self) -> None:
        self.devices: list[tuple[Labels, DeviceMetrics]] = []
        self.uses: list[tuple[Labels, WorkerUsage, int]] = []
        """With the device's compute, GFLOP/s."""
        self.counts: list[Row] = []
        """Workers per device."""
        self.held: list[tuple[Labels, HeldWorker, bool, LimiterFaults | None]] = []
        """Workers, whether their pods are ready, and what their limiter could not do."""

    def write(self, rows: Rows) -> None:
        """Add the rows of everything that was found."""

        def put(name: str, series: list[Row]) -> None:
            if series:
                rows.setdefault(names.METRIC_PREFIX + name, []).extend(series)

        for name, value_of in _OF_DEVICE:
            found = [(labels, value_of(reading)) for labels, reading in self.devices]
            put(name, [(labels, float(value)) for labels, value in found if value is not None])
        put("gpu_workers", self.counts)
        uses, held = self.uses, self.held
        put("worker_compute_used_flops", [(who, u.compute_gflops * GIGA) for who, u, _ in uses])
        put(
            "worker_compute_utilization_ratio",
            [(who, u.compute_gflops / card if card else 0.0) for who, u, card in uses],
        )
        for name, of_usage in _OF_USAGE:
            put(name, [(who, float(of_usage(use))) for who, use, _ in uses])
        pressed = [(who, use.pressure) for who, use, _ in uses if use.pressure is not None]
        for name, of_pressure in _OF_PRESSURE:
            put(name, [(who, float(of_pressure(pressure))) for who, pressure in pressed])
        put("worker_ready", [(who, float(ready)) for who, _, ready, _ in held])
        for name, of_share, unit in _OF_SHARE:
            put(name, [(who, of_share(worker.share) * unit) for who, worker, _, _ in held])
        faults = [(who, found) for who, _, _, found in held if found is not None]
        put("worker_limiter_opened_total", [(who, float(f.opened)) for who, f in faults])
        put("worker_limiter_closed_total", [(who, float(f.closed)) for who, f in faults])
