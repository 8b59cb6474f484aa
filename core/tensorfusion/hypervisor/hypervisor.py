"""Hypervisor: sessions with devices, and the three loops that live on them.

Discovery publishes GPU objects, the worker controller prepares and releases pods, sampling
meters. The composition starts the loops; nothing here starts a thread.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.arbiter import Arbiter, Rules
from tensorfusion.hypervisor.bypass import BypassWatch
from tensorfusion.hypervisor.discovery import Discovery
from tensorfusion.hypervisor.evictor import Evictor
from tensorfusion.hypervisor.freeze_rules import FreezeRule
from tensorfusion.hypervisor.freezer import WorkerFreezer
from tensorfusion.hypervisor.pod_report import PodReport
from tensorfusion.hypervisor.pods import PodRunner
from tensorfusion.hypervisor.registry import Origin
from tensorfusion.hypervisor.sampling import Sampling
from tensorfusion.hypervisor.workers import WorkerController
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import (
    Backend,
    Enforcement,
    NodeBackend,
    NodeContext,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.spi.limited import LimitedWorkers, TellsAttachment
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
ReadUsage = Callable[[str], Sequence[WorkerUsage]]
HEARTBEAT_SECONDS = 0.5
"""A worker takes silence of 2.5 s for a fault."""


class Hypervisor:
    """Everything one backend does on this machine.

    Args:
        folder: Holds one state folder per node; survives restarts.
        pods: Informer of pods, indexed by ``node``.
        batch: Groups the store's writes into one commit, where it can.
        metrics: Where samples go; None where whoever wants them scrapes.
        registers_nodes: True where nobody else makes Node objects (the embedded mode).
        nodes: Those to serve; all that the backend stands for by default.
        worker_env: Variables that every worker's processes get.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        *,
        folder: Path,
        clock: Clock,
        pods: Informer[Any],
        metrics: MetricStore | None,
        instruments: Instruments,
        events: EventRecorder,
        settings: Mapping[str, object] | None = None,
        registers_nodes: bool = True,
        nodes: Sequence[str] | None = None,
        worker_env: Mapping[str, str] | None = None,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.backend = backend
        self._clock = clock
        self._store = store
        self._pods = pods
        self._events = events
        self._instruments = instruments
        self._settings = dict(settings or {})
        self.sessions: dict[str, NodeBackend] = {}
        for node in backend.nodes(self._settings) if nodes is None else nodes:
            self.sessions[node] = self._open(node, folder)
        capabilities = backend.capabilities()
        self.discovery = Discovery(
            store,
            self.sessions,
            capabilities,
            clock=clock,
            registers_nodes=registers_nodes,
            batch=batch,
        )
        self.runner = PodRunner(folder, clock) if registers_nodes else None
        self.workers = WorkerController(
            store,
            self.sessions,
            pods,
            capabilities,
            clock=clock,
            events=events,
            runner=self.runner,
            env=worker_env,
        )
        self.sampling = Sampling(
            self.sessions, pods, self.discovery, metrics, instruments, capabilities, clock
        )

    def _open(self, node: str, folder: Path) -> NodeBackend:
        state_dir = folder / node
        state_dir.mkdir(parents=True, exist_ok=True)
        context = NodeContext(
            node=node, state_dir=state_dir, clock=self._clock, settings=self._settings
        )
        try:
            return self.backend.open(context)
        except OSError as error:
            raise BackendError(self.backend.name, f"node {node!r}: {error}") from error

    def arbiter(
        self, rules: Callable[[str], Rules], usage: ReadUsage | None = None
    ) -> Arbiter | None:
        """Make what lends idle compute; None where that has no sense.

        A model divides its devices itself, and what cannot be changed cannot be lent.

        Args:
            rules: How the pool of a node shares its devices.
            usage: What the workers of a node used; None reads it anew.
        """
        capabilities = self.backend.capabilities()
        cooperative = Enforcement.COOPERATIVE in capabilities.isolation.values()
        if not (capabilities.live_limits and cooperative):
            return None
        return Arbiter(
            self.sessions,
            promised=self.workers.promised,
            capacities=self.discovery.capacities,
            rules=rules,
            clock=self._clock,
            usage=usage,
        )

    def freezer(
        self,
        rules: Callable[[str], Mapping[str, FreezeRule]],
        pool_of: Callable[[str], str],
        usage: ReadUsage | None = None,
    ) -> WorkerFreezer | None:
        """Make what freezes idle workers; None where the backend cannot.

        Args:
            rules: When the pool of a node freezes.
            pool_of: Names the pool of a node.
            usage: What the workers of a node used; None reads it anew.
        """
        capabilities = self.backend.capabilities()
        if not capabilities.freeze:
            return None
        return WorkerFreezer(
            self.sessions,
            capabilities,
            promised=self.workers.promised,
            rules=rules,
            pool_of=pool_of,
            pod_of=self._pod_of,
            store=self._store,
            events=self._events,
            instruments=self._instruments,
            clock=self._clock,
            usage=usage,
        )

    def evictor(self, freezer: WorkerFreezer, usage: ReadUsage | None = None) -> Evictor:
        """Make what freezes idle neighbours of workers that wait for room; ``usage`` as above."""
        return Evictor(
            self.sessions,
            promised=self.workers.promised,
            infos=lambda node: self.discovery.infos.get(node, {}),
            usage=usage or (lambda node: self.sessions[node].usage()),
            freeze=freezer.freeze,
            frozen=freezer.frozen,
            clock=self._clock,
        )

    def bypass_watch(
        self, node: str, origin: Callable[[int], Origin], pool_of: Callable[[str], str]
    ) -> BypassWatch | None:
        """Make what finds processes that go past the limiter; None where nothing tells.

        Args:
            origin: Where a process comes from.
            pool_of: Names the pool of a node.
        """
        session = self.sessions[node]
        if not isinstance(session, TellsAttachment):
            return None
        return BypassWatch(
            session,
            origin=origin,
            led_by=self.workers.worker_led_by,
            specs=lambda: self.workers.promised(node),
            labels=lambda s: (pool_of(node), node, s.namespace, s.workload, s.name),
            report=PodReport(self._pod_of, self._store, self._events, self._clock),
            instruments=self._instruments,
            clock=self._clock,
        )

    def _pod_of(self, spec: WorkerSpec) -> Pod | None:
        found: Pod | None = self._pods.get(f"{spec.namespace}/{spec.name}")
        return found

    def run_heartbeat(self, stop: threading.Event) -> None:
        """Give limited workers a sign of life until ``stop`` is set."""
        limited = {n: s for n, s in self.sessions.items() if isinstance(s, LimitedWorkers)}
        while limited and not stop.is_set():
            for node, session in limited.items():
                try:
                    session.beat()
                except BackendError as error:
                    log.warning("no heartbeat", extra={"node": node, "error": str(error)})
            self._clock.wait(stop, HEARTBEAT_SECONDS)

    def close(self, stop: threading.Event | None = None) -> None:
        """End every session; prepared workers keep running."""
        self.workers.exits.close()
        for node, session in self.sessions.items():
            try:
                session.close()
            except BackendError as error:
                log.warning("session not closed", extra={"node": node, "error": str(error)})
