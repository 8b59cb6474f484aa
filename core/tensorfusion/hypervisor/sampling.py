"""Sampling: readings of devices and workers become metrics and usage history.

A pass reads every session once; what was read last is handed to the exposition's cache and to the
metric store. Where samples are taken more often than anyone looks, the second part is done by who
asks. What agents read of their own nodes is handed on with it. Rates stay FLOP/s (base unit),
memory bytes.
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
from tensorfusion.hypervisor.series import GIGA, HeldWorker, NodeReading, Readings, Rows
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import (
    Capabilities,
    DeviceInfo,
    DeviceMetrics,
    NodeBackend,
    WorkerUsage,
)
from tensorfusion.spi.catalogue import BY_NAME
from tensorfusion.spi.limited import LimitedWorkers
from tensorfusion.spi.metrics import Labels, MetricStore, Sample
from tensorfusion.store.informer import Informer

log = logging.getLogger(__name__)
DEVICE_SECONDS = 0.9
"""Devices are read once a second at most, however often workers are: drivers refresh their
counters no faster than a few times a second."""
REST = 2.0
"""Pause after a pass, at least so many times as long: a large fleet is looked at less often, and
never takes more than a third of one core."""
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
class _Measured:
    """What a session measured, and when, seconds since the epoch."""

    time: float
    devices: Sequence[DeviceMetrics] = ()
    devices_at: float = 0.0
    usage: Sequence[WorkerUsage] = ()


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
        self.elsewhere: Callable[[], Mapping[str, NodeReading | None]] = dict
        """The last readings of nodes that have agents of their own, None of those that do not
        answer; set by the composition."""
        self.latest: dict[str, _Measured] = {}
        """What was measured last, of each node that could be read."""
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}
        """When each node was read last, seconds since the epoch."""
        self._shown: set[str] = set()
        self._pairs: dict[tuple[str, ...], dict[tuple[str, ...], Labels]] = {}
        """Label pairs of the last pass by names, then by values: most series come again."""
        self._facts: dict[str, _Facts] = {}

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
            self._clock.wait(stop, max(interval_seconds - spent, spent * REST))

    def run_once(self) -> None:
        """Read every session once, and publish."""
        self.read()
        self.publish()

    def read(self) -> None:
        """Read every session once; a node that cannot be read has no reading."""
        for node, session in self._sessions.items():
            now = self._clock.now()
            last = self.latest.get(node)
            measured = _Measured(now)
            try:
                if last is not None and last.devices and now - last.devices_at < DEVICE_SECONDS:
                    measured.devices, measured.devices_at = last.devices, last.devices_at
                elif self._capabilities.metrics:
                    measured.devices, measured.devices_at = session.metrics(), now
                if self._capabilities.process_usage:
                    measured.usage = session.usage()
            except BackendError as error:
                log.warning("sampling failed", extra={"node": node, "error": str(error)})
                self.latest.pop(node, None)
                continue
            self.latest[node] = measured

    def usage(self, node: str) -> Sequence[WorkerUsage]:
        """What the workers of a node used at the last reading."""
        measured = self.latest.get(node)
        return measured.usage if measured is not None else ()

    def reading(self, node: str) -> NodeReading | None:
        """The last reading of a node with what is known of it now; None where it has none."""
        measured = self.latest.get(node)
        if measured is None:
            return None
        session, can = self._sessions[node], self._capabilities
        specs = session.workers() if can.process_usage else ()
        limited = session if isinstance(session, LimitedWorkers) else None
        return NodeReading(
            time=measured.time,
            infos=self._discovery.infos.get(node, {}),
            devices=measured.devices if can.metrics else None,
            usage=measured.usage if can.process_usage else None,
            workers=[HeldWorker.of(spec) for spec in specs],
            faults={s.worker: limited.faults(s.worker) for s in specs} if limited else {},
        )

    def publish(self) -> None:
        """Hand the last readings on; one thread at a time."""
        with self._lock:
            rows: Rows = {}
            found = Readings()
            pods = {pod.metadata.uid: pod for pod in self._pods.values()}
            nodes = {**self.elsewhere(), **{node: self.reading(node) for node in self._sessions}}
            readings = {node: reading for node, reading in nodes.items() if reading is not None}
            for node, reading in readings.items():
                facts = self._facts_of(node, reading.infos)
                if reading.devices is not None:
                    _add_devices(facts, reading.devices, found, rows)
                if reading.usage is not None:
                    _add_workers(facts, reading, reading.usage, found, pods)
            self._facts = {n: f for n, f in self._facts.items() if n in readings}
            heard = self._heard | {node: reading.time for node, reading in readings.items()}
            self._heard = {node: time for node, time in heard.items() if node in nodes}
            for node, time in self._heard.items():
                _add(rows, "hypervisor_last_heartbeat_timestamp_seconds", (node,), time)
            found.write(rows)
            self._publish(rows)

    def _publish(self, rows: Rows) -> None:
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

    def _facts_of(self, node: str, infos: Mapping[str, DeviceInfo]) -> "_Facts":
        """What changes only when discovery finds something else."""
        pool = self.pool_of(node)
        known = self._facts.get(node)
        # Those of an agent are decoded anew each time, and mostly equal.
        if known is not None and known.pool == pool and known.infos == infos:
            return known
        rows: Rows = {}
        labels = {uuid: (pool, node, uuid.lower()) for uuid in infos}
        for uuid, info in infos.items():
            who = labels[uuid]
            facts = (*who, str(info.index), info.vendor, info.model, info.driver_version, "soft")
            _add(rows, "gpu_info", facts, 1)
            _add(rows, "gpu_vram_capacity_bytes", who, info.vram_bytes)
            _add(rows, "gpu_compute_capacity_flops", who, info.compute_gflops * GIGA)
            _add(rows, "gpu_healthy", who, float(info.healthy))
        known = self._facts[node] = _Facts(pool, node, infos, labels, rows)
        return known


@dataclass(slots=True)
class _Facts:
    """What is known of a node's devices besides their readings: labels by uuid, and rows."""

    pool: str
    node: str
    infos: Mapping[str, DeviceInfo]
    labels: Mapping[str, tuple[str, ...]]
    rows: Rows


def _add_devices(
    facts: _Facts, devices: Sequence[DeviceMetrics], found: Readings, rows: Rows
) -> None:
    for name, series in facts.rows.items():
        rows.setdefault(name, []).extend(series)
    labels = facts.labels
    found.devices += [(labels[r.uuid], r) for r in devices if r.uuid in labels]


def _add_workers(
    facts: _Facts,
    reading: NodeReading,
    usage: Sequence[WorkerUsage],
    found: Readings,
    pods: Mapping[str, Pod],
) -> None:
    pool, node, infos = facts.pool, facts.node, facts.infos
    workers = {worker.worker: worker for worker in reading.workers}
    workers_on: dict[str, int] = dict.fromkeys(infos, 0)
    for use in usage:
        worker = workers.get(use.worker)
        if worker is None:
            continue
        uuid = use.uuid
        workers_on[uuid] = workers_on.get(uuid, 0) + 1
        who = (pool, node, worker.namespace, worker.workload, worker.name, uuid.lower())
        capacity = infos[uuid].compute_gflops if uuid in infos else 0
        found.uses.append((who, use, capacity))
    found.counts += [
        (facts.labels.get(uuid) or (pool, node, uuid.lower()), float(count))
        for uuid, count in workers_on.items()
    ]
    for worker in workers.values():
        pod = pods.get(worker.worker)
        ready = pod is not None and pod_view.is_ready(pod)
        owner = (pool, node, worker.namespace, worker.workload, worker.name)
        found.held.append((owner, worker, ready, reading.faults.get(worker.worker)))


def _add(rows: Rows, name: str, labels: tuple[str, ...], value: float) -> None:
    rows.setdefault(names.METRIC_PREFIX + name, []).append((labels, float(value)))
