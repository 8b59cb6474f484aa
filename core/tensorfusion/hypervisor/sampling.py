"""Sampling: readings of devices and workers become metrics and usage history.

A pass reads every session once; what was read last is handed to the exposition's cache and to the
metric store. Where samples are taken more often than anyone looks, the second part is done by who
looks. Rates stay FLOP/s (base unit), memory bytes.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.discovery import Discovery
from tensorfusion.runtime.instruments import Instruments, Row
from tensorfusion.spi.backend import (
    Capabilities,
    DeviceInfo,
    DeviceMetrics,
    NodeBackend,
    Pressure,
    WorkerUsage,
)
from tensorfusion.spi.catalogue import BY_NAME
from tensorfusion.spi.limited import LimitedWorkers
from tensorfusion.spi.metrics import Labels, MetricStore, Sample
from tensorfusion.store.informer import Informer

log = logging.getLogger(__name__)
GIGA = 1e9
DEVICE_SECONDS = 0.9
"""Devices are read once a second at most, however often workers are: drivers refresh their
counters no faster than a few times a second."""
STORED = frozenset(
    {
        "tensorfusion_gpu_vram_capacity_bytes",
        "tensorfusion_gpu_vram_used_bytes",
        "tensorfusion_gpu_compute_utilization_ratio",
        "tensorfusion_gpu_temperature_celsius",
        "tensorfusion_gpu_healthy",
        "tensorfusion_gpu_workers",
        "tensorfusion_worker_compute_used_flops",
        "tensorfusion_worker_vram_used_bytes",
        "tensorfusion_worker_throttled_seconds_total",
        "tensorfusion_worker_vram_denials_total",
    }
)
"""Series that rules and recommenders ask for; the rest is for scrapes only."""


@dataclass(slots=True)
class _Reading:
    """One look at a node, seconds since the epoch."""

    time: float
    devices: Sequence[DeviceMetrics] = ()
    devices_at: float = 0.0
    workers: Sequence[WorkerUsage] = ()


class Sampling:
    """Reads all sessions on one thread; what was read may be published from any."""

    def __init__(
        self,
        sessions: Mapping[str, NodeBackend],
        pods: Informer[Pod],
        discovery: Discovery,
        metrics: MetricStore | None,
        instruments: Instruments,
        capabilities: Capabilities,
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._pods = pods
        self._discovery = discovery
        self._metrics = metrics
        self._instruments = instruments
        self._capabilities = capabilities
        self._clock = clock
        self.pool_of: Callable[[str], str] = lambda _node: ""
        """Names the pool of a node; set by the composition."""
        self.latest: dict[str, _Reading] = {}
        """The last reading of each node that could be read."""
        self._lock = threading.Lock()
        self._shown: set[str] = set()
        self._pairs: dict[tuple[str, ...], dict[tuple[str, ...], Labels]] = {}
        """Label pairs of the last pass by names, then by values: most series come again."""
        self._facts: dict[str, tuple[str, Mapping[str, DeviceInfo], dict[str, list[Row]]]] = {}
        """Node to pool, devices, and the rows that follow from those two."""

    def run(
        self,
        stop: threading.Event,
        interval_seconds: float,
        *,
        publishes: bool = True,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Sample until ``stop`` is set.

        Args:
            publishes: Hand every reading on; otherwise whoever wants it calls `publish`.
            after: Done after each reading on the same thread, which saves who lives on readings a
                thread that wakes as often.
        """
        step = self.run_once if publishes else self.read
        while not stop.is_set():
            started = self._clock.monotonic()
            step()
            after()
            spent = self._clock.monotonic() - started
            self._clock.wait(stop, max(interval_seconds - spent, interval_seconds / 10))

    def run_once(self) -> None:
        """Read every session once, and publish."""
        self.read()
        self.publish()

    def read(self) -> None:
        """Read every session once; a node that cannot be read has no reading."""
        for node, session in self._sessions.items():
            now = self._clock.now()
            last = self.latest.get(node)
            reading = _Reading(now)
            try:
                if last is not None and last.devices and now - last.devices_at < DEVICE_SECONDS:
                    reading.devices, reading.devices_at = last.devices, last.devices_at
                elif self._capabilities.metrics:
                    reading.devices, reading.devices_at = session.metrics(), now
                if self._capabilities.process_usage:
                    reading.workers = session.usage()
            except BackendError as error:
                log.warning("sampling failed", extra={"node": node, "error": str(error)})
                self.latest.pop(node, None)
                continue
            self.latest[node] = reading

    def usage(self, node: str) -> Sequence[WorkerUsage]:
        """What the workers of a node used at the last reading."""
        reading = self.latest.get(node)
        return reading.workers if reading is not None else ()

    def publish(self) -> None:
        """Hand the last readings on; one thread at a time."""
        with self._lock:
            rows: dict[str, list[Row]] = {}
            pods = {pod.metadata.uid: pod for pod in self._pods.values()}
            for node, reading in self.latest.copy().items():
                session = self._sessions[node]
                if self._capabilities.metrics:
                    self._add_devices(node, reading.devices, rows)
                if self._capabilities.process_usage:
                    self._add_workers(node, session, reading.workers, rows, pods)
                self._instruments.set(
                    "tensorfusion_hypervisor_last_heartbeat_timestamp_seconds",
                    reading.time,
                    {"node": node},
                )
            self._publish(rows)

    def _publish(self, rows: dict[str, list[Row]]) -> None:
        """Hand the rows of a pass over; what had rows in the last pass and has none now goes."""
        now = self._clock.now()
        samples: list[Sample] = []
        store = self._metrics
        known, self._pairs = self._pairs, {}
        for name in self._shown - rows.keys():
            self._instruments.replace(name, (), source="sampling")
        self._shown = set(rows)
        for name, series in rows.items():
            self._instruments.replace(name, series, source="sampling")
            if store is None or name not in STORED:
                continue
            labels = BY_NAME[name].labels
            before, pairs_of = known.get(labels, {}), self._pairs.setdefault(labels, {})
            for values, value in series:
                pairs = pairs_of.get(values)
                if pairs is None:
                    pairs = before.get(values) or tuple(sorted(zip(labels, values, strict=True)))
                    pairs_of[values] = pairs
                samples.append(Sample(name, pairs, now, value))
        if store is None:
            return
        try:
            store.write(samples)
        except Exception:
            # Hook isolation: the store is a plugin, and scrapes go on without it.
            log.exception("samples not stored")

    def _add_devices(
        self, node: str, readings: Sequence[DeviceMetrics], rows: dict[str, list[Row]]
    ) -> None:
        pool = self.pool_of(node)
        infos = self._discovery.infos.get(node, {})
        for name, facts in self._facts_of(node, pool, infos).items():
            rows.setdefault(name, []).extend(facts)
        for reading in readings:
            if reading.uuid in infos:
                _add_reading(rows, (pool, node, reading.uuid.lower()), reading)

    def _facts_of(
        self, node: str, pool: str, infos: Mapping[str, DeviceInfo]
    ) -> dict[str, list[Row]]:
        """Rows that change only when discovery finds something else."""
        known = self._facts.get(node)
        if known is not None and known[0] == pool and known[1] is infos:
            return known[2]
        rows: dict[str, list[Row]] = {}
        for uuid, info in infos.items():
            labels = (pool, node, uuid.lower())
            facts = (*labels, str(info.index), info.vendor, info.model, info.driver_version, "soft")
            _add(rows, "gpu_info", facts, 1)
            _add(rows, "gpu_vram_capacity_bytes", labels, info.vram_bytes)
            _add(rows, "gpu_compute_capacity_flops", labels, info.compute_gflops * GIGA)
            _add(rows, "gpu_healthy", labels, float(info.healthy))
        self._facts[node] = (pool, infos, rows)
        return rows

    def _add_workers(
        self,
        node: str,
        session: NodeBackend,
        usage: Sequence[WorkerUsage],
        rows: dict[str, list[Row]],
        pods: Mapping[str, Pod],
    ) -> None:
        pool = self.pool_of(node)
        infos = self._discovery.infos.get(node, {})
        specs = {spec.worker: spec for spec in session.workers()}
        workers_on: dict[str, int] = dict.fromkeys(infos, 0)
        for use in usage:
            spec = specs.get(use.worker)
            if spec is None:
                continue
            workers_on[use.uuid] = workers_on.get(use.uuid, 0) + 1
            who = (pool, node, spec.namespace, spec.workload, spec.name, use.uuid.lower())
            capacity = infos[use.uuid].compute_gflops if use.uuid in infos else 0
            _add_usage(rows, who, use, capacity)
        for uuid, count in workers_on.items():
            _add(rows, "gpu_workers", (pool, node, uuid.lower()), count)
        for spec in specs.values():
            labels = (pool, node, spec.namespace, spec.workload, spec.name)
            pod = pods.get(spec.worker)
            ready = pod is not None and pod_view.is_ready(pod)
            _add(rows, "worker_ready", labels, float(ready))
            _add(rows, "worker_compute_request_flops", labels, spec.share.request_gflops * GIGA)
            _add(rows, "worker_compute_limit_flops", labels, spec.share.limit_gflops * GIGA)
            _add(rows, "worker_vram_request_bytes", labels, spec.share.request_vram_bytes)
            _add(rows, "worker_vram_limit_bytes", labels, spec.share.limit_vram_bytes)
            if isinstance(session, LimitedWorkers):
                faults = session.faults(spec.worker)
                _add(rows, "worker_limiter_opened_total", labels, faults.opened)
                _add(rows, "worker_limiter_closed_total", labels, faults.closed)


def _add(rows: dict[str, list[Row]], name: str, labels: tuple[str, ...], value: float) -> None:
    rows.setdefault(names.METRIC_PREFIX + name, []).append((labels, float(value)))


def _add_reading(
    rows: dict[str, list[Row]], labels: tuple[str, ...], reading: DeviceMetrics
) -> None:
    for name, value in (
        ("gpu_compute_utilization_ratio", reading.utilization_ratio),
        ("gpu_vram_used_bytes", reading.vram_used_bytes),
        ("gpu_temperature_celsius", reading.temperature_celsius),
        ("gpu_power_watts", reading.power_watts),
        ("gpu_energy_joules_total", reading.energy_joules_total),
        ("gpu_last_sample_timestamp_seconds", reading.time),
    ):
        if value is not None:
            _add(rows, name, labels, value)


def _add_usage(
    rows: dict[str, list[Row]], labels: tuple[str, ...], use: WorkerUsage, capacity_gflops: int
) -> None:
    ratio = use.compute_gflops / capacity_gflops if capacity_gflops else 0.0
    _add(rows, "worker_compute_used_flops", labels, use.compute_gflops * GIGA)
    _add(rows, "worker_compute_utilization_ratio", labels, ratio)
    _add(rows, "worker_vram_used_bytes", labels, use.vram_bytes)
    _add(rows, "worker_throttled_seconds_total", labels, use.throttled_seconds_total)
    _add(rows, "worker_vram_denials_total", labels, use.oom_total)
    if use.pressure is not None:
        _add_pressure(rows, labels, use.pressure)


def _add_pressure(rows: dict[str, list[Row]], labels: tuple[str, ...], pressure: Pressure) -> None:
    for name, value in (
        ("worker_vram_spilled_bytes", pressure.spilled_bytes),
        ("worker_vram_spilled_bytes_total", pressure.spilled_bytes_total),
        ("worker_vram_wanted_bytes", pressure.wanted_bytes),
        ("worker_vram_waits_total", pressure.waits_total),
        ("worker_vram_waited_seconds_total", pressure.waited_seconds_total),
        ("worker_vram_evict_requests_total", pressure.evict_requests_total),
        ("worker_vram_full_denials_total", pressure.denied_total),
    ):
        _add(rows, name, labels, value)
