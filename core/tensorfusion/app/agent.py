"""Agent: the hypervisor of one node in a process of its own, against any API server.

What tenants need (signs of life, limits that are in force, the API) does not wait for the server:
an agent that starts while the server is away adopts its workers and reads its devices.
"""

import logging
import resource
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tensorfusion import __version__
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.registry import EVENTS, NODES, PODS
from tensorfusion.apiserver.listening import HOST
from tensorfusion.apiserver.security import ensure_credentials
from tensorfusion.app.agent_door import choose_door
from tensorfusion.app.agent_server import AgentServer
from tensorfusion.app.agents import AgentAddress
from tensorfusion.app.startup import (
    acquire_lock,
    backend_settings,
    choose_backend,
    load_plugins,
)
from tensorfusion.clock import Clock, SystemClock
from tensorfusion.errors import ConfigError, NotFound
from tensorfusion.hypervisor import Hypervisor
from tensorfusion.hypervisor.api import AgentApi
from tensorfusion.hypervisor.arbiter import TICK_SECONDS
from tensorfusion.hypervisor.discovery import NODE_VERSION
from tensorfusion.hypervisor.freeze_rules import freeze_rules
from tensorfusion.hypervisor.freezer import TICK_SECONDS as FREEZER_TICK_SECONDS
from tensorfusion.hypervisor.membership import Membership
from tensorfusion.hypervisor.node_lease import NodeLease
from tensorfusion.hypervisor.registry import Registry
from tensorfusion.hypervisor.when_full import when_full
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.health import Health
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.runtime.manager import Manager
from tensorfusion.runtime.settings import Settings
from tensorfusion.spi.backend import Backend, WorkerUsage
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
DISCOVERY_SECONDS = 3.0
SYNC_POLL_SECONDS = 0.2
STALE_SECONDS = 3.0
STALE_PERIODS = 3.0
"""A reading is stale when so many were due since."""
SOCKET_VARIABLE = "TENSORFUSION_AGENT_SOCKET"
"""Tells a worker's processes where their agent listens."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """What is chosen for one agent.

    Attributes:
        state: Its folder; survives restarts.
        node: The node it serves; empty where the backend stands for one only.
        listen: Address of this machine, or interface, for TCP.
        advertise: What the control plane asks it by; empty takes the address.
        port: 0 takes the last one, or a free one.
        socket: Path of the Unix socket; None puts it into ``state``.
        group: The group of the agent's user may use the socket too.
        kubelet: Another program runs the node's containers and makes its Node object; None looks
            whether there is one.
    """

    state: Path
    node: str = ""
    listen: str = HOST
    advertise: str = ""
    port: int = 0
    socket: Path | None = None
    group: bool = False
    kubelet: bool | None = None


class Agent:
    """One node's agent.

    Raises:
        ConfigError: The folder is in use by another agent, or a setting is wrong.
        ApiError: The server had to be asked whether the node has a kubelet, and did not answer.
    """

    def __init__(
        self, store: Store, settings: Settings, options: AgentOptions, clock: Clock | None = None
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self._store = store
        self._settings = settings
        allow_many_files()
        self._lock = take_folder(options.state)
        self.host = load_plugins(settings)
        backend = choose_backend(self.host, settings)
        self.node = choose_node(backend, settings, options.node)
        self.health = Health()
        self.health.expect("pods", "devices")
        self.instruments = Instruments()
        self.manager = Manager(self.clock, self.health)
        self.membership = Membership(store, self.node, self.clock)
        self._pods = Informer(
            store,
            PODS,
            Pod,
            clock=self.clock,
            field_selector=f"spec.nodeName={self.node}",
            indexers={"node": lambda _pod: (self.node,)},
        )
        kubelet = has_kubelet(store, self.node) if options.kubelet is None else options.kubelet
        self._lease = None if kubelet else NodeLease(store, self.node, self.clock)
        # A kubelet's node is asked by its kubelet, unless somebody wants this agent to be asked.
        self._is_named = options.listen != HOST or bool(options.advertise)
        path = (options.socket or options.state / "agent.sock").absolute()
        self.hypervisor = self._build_hypervisor(backend, options.state, path, kubelet)
        self.server = self._build_server(options, path)
        self._add_loops()

    def _build_hypervisor(
        self, backend: Backend, state: Path, socket: Path, kubelet: bool
    ) -> Hypervisor:
        hypervisor = Hypervisor(
            backend,
            self._store,
            folder=state / "nodes",
            clock=self.clock,
            pods=self._pods,
            metrics=None,
            instruments=self.instruments,
            events=EventRecorder(self._store, EVENTS, "tensorfusion-hypervisor", self.clock),
            settings=backend_settings(backend, self._settings),
            registers_nodes=not kubelet,
            nodes=[self.node],
            worker_env={SOCKET_VARIABLE: str(socket)},
        )
        hypervisor.discovery.on_change = lambda node, device: self.host.notify(
            "tensorfusion_device_changed", node=node, device=device
        )
        hypervisor.sampling.pool_of = lambda _node: self.membership.pool
        hypervisor.workers.when_full = lambda _node, qos, share: when_full(
            self.membership.definition, qos, share
        )
        self.membership.on_change = hypervisor.workers.look_again
        hypervisor.workers.controller.instruments = self.instruments
        return hypervisor

    def _build_server(self, options: AgentOptions, socket: Path) -> AgentServer:
        session = self.hypervisor.sessions[self.node]
        registry = Registry(
            lambda: {spec.worker for spec in session.workers()},
            self._worker_of_pod,
            options.state / "nodes" / self.node / "pods",
            self.clock,
        )
        self._bypass = self.hypervisor.bypass_watch(
            self.node, registry.origin, lambda _node: self.membership.pool
        )
        api = AgentApi(
            self.node,
            self.hypervisor,
            registry,
            ready=lambda: self.health.readiness()[1],
            metrics=self.exposition,
            stale_seconds=max(STALE_SECONDS, STALE_PERIODS * self._settings.sample_seconds),
            clock=self.clock,
        )
        door = choose_door(self._store, self.node, options.listen, options.advertise)
        credentials = ensure_credentials(options.state, self.clock, door.names)
        server = AgentServer(
            api,
            registry,
            credentials,
            options.state,
            socket,
            door,
            port=options.port,
            group=options.group,
        )
        self._address = AgentAddress(
            self._store,
            self.node,
            server.url,
            credentials.authority_pem,
            credentials.token,
            self.clock,
        )
        return server

    def _worker_of_pod(self, uid: str) -> str:
        """The worker of a pod; before the server has answered, the one that is named after it."""
        found = self.hypervisor.workers.worker_of_pod(uid)
        if found:
            return found
        prepared = self.hypervisor.sessions[self.node].workers()
        return uid if any(spec.worker == uid for spec in prepared) else ""

    def _add_loops(self) -> None:
        hypervisor, manager = self.hypervisor, self.manager
        every = self._settings.sample_seconds
        chores: list[Callable[[], None]] = []
        manager.add_loop("api", self.server.run)
        manager.add_loop("heartbeat", hypervisor.run_heartbeat)
        manager.add_loop("exits", hypervisor.workers.exits.run)
        manager.add_loop("discovery", self._discover)
        manager.add_loop("pool", self.membership.run)
        if self._lease is not None:
            manager.add_loop("lease", self._lease.run)
        if self._lease is not None or self._is_named:
            manager.add_loop("address", self._address.run)
        manager.add_loop("informer-pods", self._pods.run)
        manager.add_loop("workers", self._work, queues=[hypervisor.workers.controller.queue])
        arbiter = hypervisor.arbiter(lambda _node: self.membership.rules, self._usage)
        if arbiter is not None and self._reads_often():
            chores.append(arbiter.run_due)
        elif arbiter is not None:
            manager.add_loop("arbiter", arbiter.run)
        self._add_freezing(chores)
        if self._bypass is not None:
            manager.add_loop("bypass", self._watch_bypass)

        def after() -> None:
            for chore in chores:
                chore()

        manager.add_loop(
            "sampling", lambda s: hypervisor.sampling.run(s, every, publishes=False, after=after)
        )

    def _add_freezing(self, chores: list[Callable[[], None]]) -> None:
        """Freezing for being idle and freezing to make room: rung by the sampler if it is quick."""
        hypervisor, every = self.hypervisor, self._settings.sample_seconds
        freezer = hypervisor.freezer(
            lambda _node: freeze_rules(self.membership.scheduling),
            lambda _node: self.membership.pool,
            self._usage,
        )
        if freezer is None:
            return
        evictor = hypervisor.evictor(freezer, self._usage)
        rung = every <= FREEZER_TICK_SECONDS
        if rung:
            chores.append(freezer.ring)
        self.manager.add_loop("freezer", freezer.run_rung if rung else freezer.run)
        if self._reads_often():
            chores.append(evictor.ring)
        self.manager.add_loop("evictor", evictor.run_rung if self._reads_often() else evictor.run)

    def _reads_often(self) -> bool:
        """Whether readings are often enough for who decides by them."""
        return self._settings.sample_seconds <= TICK_SECONDS

    def _usage(self, node: str) -> Sequence[WorkerUsage]:
        """What workers used: of the last reading where readings are often, else read now."""
        if self._reads_often():
            return self.hypervisor.sampling.usage(node)
        return self.hypervisor.sessions[node].usage()

    def start(self) -> None:
        """Start everything; returns at once, readiness says how far it is."""
        self.instruments.set("tensorfusion_build_info", 1, {"version": __version__})
        self.manager.start()
        log.info("agent started", extra={"node": self.node, "url": self.server.url})

    def stop(self) -> None:
        """Stop everything; workers and their processes keep running."""
        self.manager.stopping.set()
        self._pods.interrupt()
        self.manager.stop()
        self.hypervisor.close()
        self._lock.close()

    def exposition(self) -> bytes:
        """Print the metrics as of the last reading."""
        self.hypervisor.sampling.publish()
        queue = self.hypervisor.workers.controller
        self.instruments.replace(
            "tensorfusion_workqueue_depth", [((queue.name,), float(len(queue.queue)))]
        )
        return self.instruments.exposition()

    def _discover(self, stop: threading.Event) -> None:
        self.hypervisor.discovery.look()
        self.health.ready("devices")
        self.hypervisor.discovery.run(stop, DISCOVERY_SECONDS)

    def _watch_bypass(self, stop: threading.Event) -> None:
        """Look for processes that go past the limiter, once it is known which pods there are."""
        if self._bypass is not None and self._know_pods(stop):
            self._bypass.run(stop)

    def _know_pods(self, stop: threading.Event) -> bool:
        """Wait for the list of pods; False when the agent stops before."""
        while not self._pods.synced.is_set():
            if self.clock.wait(stop, SYNC_POLL_SECONDS):
                return False
        return True

    def _work(self, stop: threading.Event) -> None:
        """Prepare and release workers, once it is known which pods there are."""
        if not self._know_pods(stop):
            return
        self.hypervisor.workers.recover()
        for key in self._pods.all_keys():
            self.hypervisor.workers.controller.queue.add(key)
        self.health.ready("pods")
        self.hypervisor.workers.controller.run(stop)


def take_folder(state: Path) -> IO[str]:
    """Take an agent's folder for this process.

    Raises:
        ConfigError: Another agent has it.
    """
    return acquire_lock(state, "end that agent, or choose another folder with --state")


def choose_node(backend: Backend, settings: Settings, wanted: str) -> str:
    """The node that an agent serves.

    A real machine may have another name in the cluster than its own; simulated ones are described.

    Raises:
        ConfigError: It is not named and there are several, or there is none of that name.
    """
    nodes = backend.nodes(backend_settings(backend, settings))
    if not wanted and len(nodes) == 1:
        return nodes[0]
    if wanted in nodes or (wanted and backend.vendor):
        return wanted
    shown = ", ".join(nodes[:10]) + (", ..." if len(nodes) > 10 else "")
    raise ConfigError(
        f"--node {wanted or '(not given)'}: an agent serves one node, allowed are: {shown or 'none'}"
    )


def has_kubelet(store: Store, node: str) -> bool:
    """Whether a node's object was made by another program than ours.

    Raises:
        ApiError: The server does not answer.
    """
    try:
        status = store.get(NODES, node).get("status") or {}
    except NotFound:
        return False
    version = (status.get("nodeInfo") or {}).get("kubeletVersion", "")
    return bool(version) and version != NODE_VERSION


def allow_many_files() -> None:
    """Raise this process's limit of open files to what it may be: workers take four each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
