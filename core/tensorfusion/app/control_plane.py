"""ControlPlane: everything that `tensorfusion up` runs, in one process.

The only place that constructs concrete parts. Start order: lock, plugins, store, informers,
recovery, controllers, wire. Stop order: the reverse.
"""

import logging
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from tensorfusion import __version__
from tensorfusion.admission import Migration
from tensorfusion.alerting import Dispatcher, Evaluator
from tensorfusion.api import registry, validation
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.scheduling_config import HypervisorScheduling
from tensorfusion.apiserver import ApiServer, Seams
from tensorfusion.app.admission import StoreAdmission
from tensorfusion.app.agent_readings import AgentReadings
from tensorfusion.app.agents import Agents
from tensorfusion.app.defaults import ensure_defaults
from tensorfusion.app.informers import Informers
from tensorfusion.app.planning import PoolPlanner
from tensorfusion.app.routes import Routes
from tensorfusion.app.startup import (
    acquire_lock,
    backend_settings,
    choose_backend,
    load_plugins,
)
from tensorfusion.autoscale.loop import Autoscaler
from tensorfusion.clock import Clock, SystemClock
from tensorfusion.controllers.deployment import DeploymentController
from tensorfusion.controllers.event_expiry import EventExpiry
from tensorfusion.controllers.node import NodeController
from tensorfusion.controllers.node_lifecycle import NodeLifecycle
from tensorfusion.controllers.pool import ClusterController, PoolController
from tensorfusion.controllers.replicaset import ReplicaSetController
from tensorfusion.controllers.workload import (
    ConnectionController,
    ProfileController,
    WorkloadController,
)
from tensorfusion.errors import ConfigError
from tensorfusion.hypervisor import Hypervisor
from tensorfusion.hypervisor.arbiter import Rules, rules_of
from tensorfusion.hypervisor.discovery import enforcement_of
from tensorfusion.hypervisor.elsewhere import ElsewhereBackend
from tensorfusion.hypervisor.freeze_rules import freeze_rules
from tensorfusion.hypervisor.when_full import when_full
from tensorfusion.model.ledger import Change
from tensorfusion.runtime import garbage
from tensorfusion.runtime.controller import Controller
from tensorfusion.runtime.controller_group import ControllerGroup
from tensorfusion.runtime.events import EventRecorder, subject
from tensorfusion.runtime.health import Health
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.runtime.manager import Manager
from tensorfusion.runtime.settings import Settings
from tensorfusion.scheduling.compactor import Compactor
from tensorfusion.scheduling.defragmenter import Defragmenter
from tensorfusion.scheduling.fleet_sync import FleetInformers, FleetSync, find_policy
from tensorfusion.scheduling.gpu_status import GpuStatusWriter
from tensorfusion.scheduling.log_file import DecisionLogFile
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.plain_pods import PlainPods
from tensorfusion.scheduling.quota_status import QuotaStatusWriter
from tensorfusion.scheduling.scheduler import Scheduler, SchedulerInformers
from tensorfusion.spi.alerts import Alert
from tensorfusion.spi.backend import Backend, Enforcement, Share
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.spi.observe import AllocationEvent
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.store.informer import Change as ObjectChange

log = logging.getLogger(__name__)
DISCOVERY_SECONDS = 3.0
GPU_STATUS_SECONDS = 1.0
QUOTA_STATUS_SECONDS = 2.0
COLLECT_SECONDS = 0.5


class ControlPlane:
    """One embedded control plane on one data folder.

    Args:
        data: Folder of everything it keeps; created with mode 0700.
        port: Port of the wire; 0 keeps the last one, or takes a free one.

    Raises:
        ConfigError: The folder is in use by another control plane, or a setting is wrong.
    """

    def __init__(
        self, data: Path, settings: Settings, *, port: int = 0, clock: Clock | None = None
    ) -> None:
        self.data = data
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._lock = acquire_lock(
            data, f"stop it with `tensorfusion down --data {data}`, or choose another folder"
        )
        self.host = load_plugins(settings)
        self.health = Health()
        self.health.expect("informers", "recovery")
        self.instruments = Instruments()
        self.store = SQLiteStore(data / "state.db", clock=self.clock)
        self.informers = Informers(self.store, self.clock)
        self.agents = Agents(self.store, self.clock)
        self.agent_readings = AgentReadings(self.store, settings.sample_seconds, self.clock)
        self.manager = Manager(self.clock, self.health)
        self.migration = migration_of(settings)
        self.metrics = self._metric_store()
        self._build_scheduling()
        self._build_hypervisor()
        self._build_controllers()
        self._build_alerting()
        self.admission = StoreAdmission(
            self.store, self.placer, self.host, migration=self.migration
        )
        self.store.set_admission(self.admission)
        self.server = self._build_server(port)

    def start(self) -> None:
        """Start everything; returns when the wire answers and workers can be placed."""
        validation.compile_all(registry.RESOURCES)
        ensure_defaults(self.store)
        self.hypervisor.discovery.run_once()
        group = ControllerGroup(
            self._controllers,
            [*self.informers.all(), self.agent_readings.secrets],
            self.clock,
            self.store.transaction,
        )
        group.attach()
        self.manager.add_loop("controllers", group.run, queues=[c.queue for c in self._controllers])
        self.manager.start(on_synced=self._recover)
        self.instruments.set("tensorfusion_build_info", 1, {"version": __version__})
        self._show_plugins()
        self.server.start()
        log.info("control plane ready", extra={"url": self.server.url, "data": str(self.data)})

    def stop(self) -> None:
        """Stop everything; what was acknowledged is on disk already."""
        self.server.stop()
        self.manager.stop()
        self.hypervisor.close()
        self.metrics.close()
        self.store.close()
        self._log_file.close()
        self._lock.close()

    def _recover(self) -> None:
        """Settle log, pods and sessions before anything new is placed."""
        self.fleet.load()
        repairs = self.scheduler.recover(self.fleet.devices)
        for repair in repairs:
            log.warning("recovered", extra={"repair": repair})
        self.hypervisor.workers.recover()
        self.health.ready("recovery")

    def _metric_store(self) -> MetricStore:
        stores = self.host.metric_stores()
        store = stores.get(self.settings.metric_store)
        if store is None:
            raise ConfigError(
                f"metric_store: {self.settings.metric_store!r} is not installed;"
                f" installed: {', '.join(sorted(stores)) or 'none'}"
            )
        store.open(str(self.data / "metrics"), self.settings.metrics_retention_seconds)
        return store

    def _events(self, component: str) -> EventRecorder:
        return EventRecorder(self.store, registry.EVENTS, component, self.clock)

    def _build_scheduling(self) -> None:
        policies = self.host.placement_policies()
        self._log_file = DecisionLogFile(self.data / "decisions.log")
        default = find_policy(policies, "NodeCompactGPULowLoad")
        self.placer = Placer(self._log_file, default, self.clock)
        self.placer.observe = self._observe_allocation
        informers = self.informers
        self.fleet = FleetSync(
            self.placer,
            FleetInformers(
                informers.nodes,
                informers.gpu_nodes,
                informers.gpus,
                informers.pools,
                informers.templates,
                informers.quotas,
            ),
            policies,
            clock=self.clock,
        )
        self.scheduler = Scheduler(
            self.store,
            self.placer,
            SchedulerInformers(informers.pods, informers.budgets, informers.priority_classes),
            bind=lambda namespace, name, body: self.store.bind(name, namespace, body),
            clock=self.clock,
            events=self._events("tensorfusion-scheduler"),
            instruments=self.instruments,
            batch=self.store.transaction,
            plain=self._plain_pods(),
            on_gang=lambda key: self._workloads.controller.queue.add(key),
        )
        informers.quotas.subscribe(lambda _change: self.scheduler.wake())
        status = GpuStatusWriter(
            self.store, self.placer, self.instruments, self.clock, self.store.transaction
        )
        quota = QuotaStatusWriter(
            self.store,
            self.placer,
            informers.quotas,
            self.instruments,
            self.clock,
            self._events("tensorfusion-scheduler"),
        )
        self.manager.add_loop("gpu-status", lambda s: status.run(s, GPU_STATUS_SECONDS))
        self.manager.add_loop("quota-status", lambda s: quota.run(s, QUOTA_STATUS_SECONDS))

    def _build_hypervisor(self) -> None:
        backend: Backend = ElsewhereBackend()
        if self.settings.hypervisor == "embedded":
            backend = choose_backend(self.host, self.settings)
        settings = backend_settings(backend, self.settings)
        self.hypervisor = Hypervisor(
            backend,
            self.store,
            folder=self.data / "nodes",
            clock=self.clock,
            pods=self.informers.pods,
            metrics=self.metrics,
            instruments=self.instruments,
            events=self._events("tensorfusion-hypervisor"),
            settings=settings,
            batch=self.store.transaction,
        )
        hypervisor, sampling = self.hypervisor, self.settings.sample_seconds
        hypervisor.discovery.on_change = lambda node, device: self.host.notify(
            "tensorfusion_device_changed", node=node, device=device
        )
        hypervisor.sampling.pool_of = self.fleet.pool_of
        hypervisor.sampling.elsewhere = self.agent_readings.latest
        self.manager.add_loop("agents", self.agent_readings.run)
        hypervisor.workers.when_full = lambda node, qos, share: when_full(
            self.informers.pools.get(self.fleet.pool_of(node)), qos, share
        )
        self.informers.pools.subscribe(self._pool_changed)
        arbiter = hypervisor.arbiter(self._sharing_rules)
        if arbiter is not None:
            self.manager.add_loop("arbiter", arbiter.run)
        freezer = hypervisor.freezer(
            lambda node: freeze_rules(self._template_hypervisor(node)), self.fleet.pool_of
        )
        if freezer is not None:
            self.manager.add_loop("freezer", freezer.run)
            self.manager.add_loop("evictor", hypervisor.evictor(freezer).run)
        self.manager.add_loop("discovery", lambda s: hypervisor.discovery.run(s, DISCOVERY_SECONDS))
        self.manager.add_loop("sampling", lambda s: hypervisor.sampling.run(s, sampling))
        self.manager.add_loop("heartbeat", hypervisor.run_heartbeat)
        self.manager.add_loop("exits", hypervisor.workers.exits.run)
        self.manager.add_loop("collector", self._collect)
        self.manager.add_loop("garbage", lambda s: garbage.sweep(s, self.clock))

    def _build_controllers(self) -> None:
        informers, store, clock = self.informers, self.store, self.clock
        events = self._events("tensorfusion-controller")
        nodes = NodeController(
            store,
            informers.nodes,
            informers.gpu_nodes,
            informers.gpus,
            informers.pools,
            devices=lambda: self.fleet.devices,
            clock=clock,
            marks=self.migration.progressive,
        )
        pools = PoolController(
            store,
            informers.pools,
            informers.gpu_nodes,
            policies=self.host.placement_policies(),
            clock=clock,
        )
        self._workloads = WorkloadController(
            store,
            informers.workloads,
            informers.pods,
            enforcement=self._enforcement,
            gang=self.scheduler.gangs.status,
            clock=clock,
            instruments=self.instruments,
        )
        deployments = DeploymentController(
            store, informers.deployments, informers.replica_sets, clock=clock, events=events
        )
        replica_sets = ReplicaSetController(
            store, informers.replica_sets, informers.pods, clock=clock, events=events
        )
        self._controllers: list[Controller] = [
            self.scheduler.controller,
            *self.fleet.controllers,
            self.hypervisor.workers.controller,
            nodes.controller,
            pools.controller,
            ClusterController(store, informers.clusters, informers.pools, clock=clock).controller,
            self._workloads.controller,
            ProfileController(store, informers.profiles, informers.pools, clock=clock).controller,
            ConnectionController(store, informers.connections, clock=clock).controller,
            deployments.controller,
            replica_sets.controller,
        ]
        self._planners = self._consolidation()
        for planner in self._planners:
            self.manager.add_controller(planner)
        for controller in [*self._controllers, *self._planners]:
            controller.instruments = self.instruments
        autoscaler = Autoscaler(
            store,
            informers.workloads,
            informers.pods,
            self.host.recommenders(),
            self.metrics,
            self.scheduler,
            clock=clock,
            events=self._events("tensorfusion-autoscaler"),
            instruments=self.instruments,
            default_interval_seconds=self.settings.autoscale_seconds,
        )
        self.manager.add_loop("autoscaler", autoscaler.run)
        expiry = EventExpiry(store, registry.EVENTS, self.settings.event_ttl_seconds, clock)
        self.manager.add_loop("event-expiry", expiry.run)
        lifecycle = NodeLifecycle(
            store, informers.nodes, served=self.hypervisor.sessions, clock=clock, events=events
        )
        self.manager.add_loop("node-lifecycle", lifecycle.run)

    def _consolidation(self) -> list[Controller]:
        """Make what empties little-used nodes and gives empty ones back; it plans for seconds."""
        informers, store, clock = self.informers, self.store, self.clock
        events = self._events("tensorfusion-controller")
        planner = PoolPlanner(store, self.host.placement_policies())
        defrag = Defragmenter(
            store,
            informers.pools,
            informers.nodes,
            informers.pods,
            plan=planner.defrag,
            evict=partial(
                self.scheduler.evict, reason="DefragPodEvicted", cause="DefragmentationByScheduler"
            ),
            clock=clock,
            events=events,
            instruments=self.instruments,
        )
        self.scheduler.target_of = defrag.target_of
        compactor = Compactor(
            store,
            informers.pools,
            informers.nodes,
            plan=planner.compaction,
            clock=clock,
            events=events,
        )
        return [defrag.controller, compactor.controller]

    def _build_alerting(self) -> None:
        self._alert_events = self._events("tensorfusion-alerting")
        self.alerts = Evaluator(
            self.host.alert_rules(),
            self.metrics,
            Dispatcher(self.host.alert_sinks(), self.clock, self.instruments),
            clock=self.clock,
            instruments=self.instruments,
            state_file=self.data / "alerts.json",
            on_change=self._observe_alert,
        )
        # Between samples rules would only see what they saw before.
        pause = max(self.settings.alert_seconds, self.settings.sample_seconds)
        run = partial(self.alerts.run, interval_seconds=pause)
        self.manager.add_loop("alerting", run)

    def _build_server(self, port: int) -> ApiServer:
        routes = Routes(self)
        seams = Seams(
            pod_logs=routes.pod_logs,
            liveness={"threads": lambda: "; ".join(self.health.live()[1])},
            readiness={"ready": lambda: "; ".join(self.health.readiness()[1])},
            metrics=self.exposition,
            extra_routes=routes.table(),
            slow_routes=routes.slow(),
        )
        return ApiServer(self.store, data_dir=self.data, clock=self.clock, port=port, seams=seams)

    def exposition(self) -> bytes:
        """Print the metrics, with the depth of every queue as of now."""
        rows = [((c.name,), float(len(c.queue))) for c in [*self._controllers, *self._planners]]
        self.instruments.replace("tensorfusion_workqueue_depth", rows)
        return self.instruments.exposition()

    def _plain_pods(self) -> PlainPods:
        return PlainPods(
            self.informers.nodes,
            self.informers.pods,
            workers_on=self.placer.ledger.workers_on,
            native=lambda name: self.admission.is_native(name),
            progressive=self.migration.progressive,
        )

    def _enforcement(self, node: str, mode: str) -> str:
        if node in self.hypervisor.sessions:
            modes = self.hypervisor.backend.capabilities().isolation
            return modes.get(mode, Enforcement.NONE).value
        gpus = self.informers.gpus.by_index("node", node)
        return enforcement_of(gpus[0], mode) if gpus else Enforcement.NONE.value

    def _pool_changed(self, change: ObjectChange[GPUPool]) -> None:
        """Bring workers in line with what their pool now says; its status is written often."""
        if (change.old and change.old.spec) != (change.new and change.new.spec):
            self.hypervisor.workers.look_again()

    def _sharing_rules(self, node: str) -> Rules:
        """How the pool of a node shares its devices."""
        return rules_of(self._template_hypervisor(node))

    def _template_hypervisor(self, node: str) -> HypervisorScheduling | None:
        template = self.fleet.template_of(self.fleet.pool_of(node))
        return template.spec.hypervisor if template and template.spec else None

    def _observe_allocation(self, change: Change, reason: str) -> None:
        side = change.after or change.before
        if side is None or not side.takes or change.operation not in ("allocate", "release"):
            return
        take = side.takes[0]
        event = AllocationEvent(
            worker=side.key,
            namespace=side.namespace,
            name=side.name,
            workload=side.workload,
            pool=side.pool,
            node=side.node,
            devices=side.devices,
            share=Share(take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes),
            time=self.clock.now(),
            reason=reason,
        )
        hook = "allocated" if change.operation == "allocate" else "released"
        self.host.notify(f"tensorfusion_{hook}", event=event)

    def _observe_alert(self, alert: Alert) -> None:
        self.host.notify("tensorfusion_alert_changed", alert=alert)
        reference = self._alert_object(alert.labels)
        if reference is not None:
            self._alert_events.event(
                reference,
                f"Alert{alert.state.value.capitalize()}",
                f"{alert.rule}: {alert.description}",
                warning=alert.ends is None,
            )

    def _alert_object(self, labels: Mapping[str, str]) -> JsonObject | None:
        """The object an alert is about: its worker's pod, else its GPU."""
        pod = self.informers.pods.get(f"{labels.get('namespace')}/{labels.get('worker')}")
        if pod is not None:
            return subject(registry.PODS, pod.metadata)
        gpu = self.informers.gpus.get(labels.get("gpu_uuid", ""))
        return subject(registry.GPUS, gpu.metadata) if gpu is not None else None

    def _collect(self, stop: threading.Event) -> None:
        """Collect garbage in bounded steps until ``stop`` is set."""
        while not stop.is_set():
            if not self.store.collect():
                self.clock.wait(stop, COLLECT_SECONDS)

    def _show_plugins(self) -> None:
        rows = [((r.name, r.distribution, r.version, r.state), 1.0) for r in self.host.records()]
        self.instruments.replace("tensorfusion_plugin_info", rows)


def migration_of(settings: Settings) -> Migration:
    """Decode which native GPU pods are taken over, and what becomes of the others.

    Raises:
        ConfigError: A field is unknown or wrong; names it.
    """
    try:
        return msgspec.convert(settings.auto_migration, Migration)
    except msgspec.ValidationError as error:
        raise ConfigError(f"auto_migration: {error}") from error
