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

from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.discovery import Discovery
from tensorfusion.hypervisor.pods import PodRunner
from tensorfusion.hypervisor.sampling import Sampling
from tensorfusion.hypervisor.workers import WorkerController
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import Backend, NodeBackend, NodeContext
from tensorfusion.spi.limited import LimitedWorkers
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
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
