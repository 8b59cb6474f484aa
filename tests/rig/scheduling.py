"""A scheduler on the little cluster: nodes with cards, admitted pods, and a kubelet's stand-in."""

from contextlib import nullcontext
from pathlib import Path

from tensorfusion import names
from tensorfusion.admission.providers import Providers
from tensorfusion.api import registry
from tensorfusion.api.registry import GPU_NODES, GPU_POOLS, GPUS, NODES, PODS
from tensorfusion.app.informers import Informers
from tensorfusion.controllers.workload import WorkloadController
from tensorfusion.hypervisor.workers import running_status
from tensorfusion.scheduling.fleet_sync import FleetInformers, FleetSync
from tensorfusion.scheduling.log_file import DecisionLogFile
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.plain_pods import PlainPods
from tensorfusion.scheduling.scheduler import Scheduler, SchedulerInformers
from tensorfusion.testing import build
from tensorfusion_plugins.policies import load

CARD_TFLOPS = 312
"""Of the card that `build.gpu` makes."""


class World:
    """Cluster, placer and scheduler; `restart` makes new ones on the same store and log."""

    def __init__(self, cluster, folder: Path, *, atomic: bool = True) -> None:
        self.cluster = cluster
        self.store = cluster.store
        self.clock = cluster.clock
        self.pods = cluster.informers.pods
        self.atomic = atomic
        self.bind = lambda namespace, name, body: self.store.bind(name, namespace, body)
        self._log_path = folder / "decisions.log"
        self.store.create(GPU_POOLS, build.pool())

    def nodes(self, zones=None, **cards: int) -> None:
        """Create nodes with so many cards each."""
        for name, count in cards.items():
            labels = {"topology.kubernetes.io/zone": zones[name]} if zones else None
            self.store.create(NODES, build.node(name, labels=labels))
            self.store.create(
                GPU_NODES,
                {
                    "apiVersion": names.API_VERSION,
                    "kind": "GPUNode",
                    "metadata": {"name": name, "labels": {names.MANAGED_BY: "shared"}},
                    "spec": {"manageMode": "AutoSelect"},
                },
            )
            for index in range(count):
                gpu = build.gpu(f"{name}-{index}", name, index=index)
                self.store.create(GPUS, gpu)
                status = {"status": gpu["status"]}
                self.store.patch(GPUS, f"{name}-{index}", status, subresource="status")

    def start(self, *, plain: bool = False, progressive: bool = False) -> None:
        """Make placer and scheduler and let them see what is there.

        Args:
            plain: Bind pods without GPUs too.
            progressive: Keep native GPU pods and workers apart.
        """
        cluster, i = self.cluster, self.cluster.informers
        policy = load.compact_first()
        self.log = DecisionLogFile(self._log_path)
        self.placer = Placer(self.log, policy, self.clock)
        fleet = FleetSync(
            self.placer,
            FleetInformers(i.nodes, i.gpu_nodes, i.gpus, i.pools, i.templates, i.quotas),
            {"compact-first": policy, "NodeCompactGPULowLoad": policy},
            clock=self.clock,
        )
        self.scheduler = Scheduler(
            self.store,
            self.placer,
            SchedulerInformers(i.pods, i.budgets, i.priority_classes),
            bind=lambda *args: self.bind(*args),
            clock=self.clock,
            events=cluster.events("tensorfusion-scheduler"),
            instruments=cluster.instruments,
            batch=self.store.transaction if self.atomic else nullcontext,
            plain=PlainPods(
                i.nodes,
                i.pods,
                workers_on=self.placer.ledger.workers_on,
                native=Providers().is_native,
                progressive=progressive,
            )
            if plain
            else None,
            on_gang=lambda key: workloads.controller.queue.add(key),
        )
        workloads = WorkloadController(
            self.store,
            i.workloads,
            i.pods,
            enforcement=lambda _node, _mode: "none",
            gang=self.scheduler.gangs.status,
            clock=self.clock,
            instruments=cluster.instruments,
        )
        cluster.add(*fleet.controllers, self.scheduler, workloads)
        cluster.start()
        fleet.load()
        self.repairs = self.scheduler.recover(fleet.devices)

    def restart(self) -> None:
        """Be a new process on the same store and the same log."""
        cluster = self.cluster
        self.log.close()
        cluster.controllers.clear()
        cluster.informers = Informers(self.store, cluster.clock)
        self.pods = cluster.informers.pods
        self.bind = lambda namespace, name, body: self.store.bind(name, namespace, body)
        self.start()

    def settle(self, seconds: float = 5.0) -> None:
        """Let everything come to rest, pods that are told to end or to run included."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.cluster.settle(0.5)
            self.kubelet()

    def kubelet(self) -> None:
        """Run what is bound and let go of what is deleted."""
        self.cluster.pump()
        for pod in self.pods.values():
            meta = pod.metadata
            if meta.deletion_timestamp:
                self.store.delete(PODS, meta.name, meta.namespace, grace_period_seconds=0)
            elif pod.spec.node_name and (pod.status is None or pod.status.phase != "Running"):
                status = running_status(pod, "2025-01-01T00:00:00Z")
                self.store.patch(
                    PODS, meta.name, {"status": status}, meta.namespace, subresource="status"
                )

    def pod(self, name: str, tflops: int = 200, *, qos: str = "medium", **more) -> None:
        """Create a pod as admission leaves it."""
        annotations = {"qos": qos, "isolation": "soft", **more.pop("annotations", {})}
        labels = {"component": "worker", "gpupool": "shared", **more.pop("labels", {})}
        more.setdefault("priorityClassName", f"tensor-fusion-{qos}")
        more.setdefault("vram", "10Gi")
        obj = build.pod(name, tflops=str(tflops), annotations=annotations, labels=labels, **more)
        self.store.create(PODS, obj)

    def gang(self, workload: str, *members: int, required: int, desired=0, timeout="0s", **more):
        """Create members by number."""
        annotations = {
            "gang-enabled": "true",
            "gang-desired-members": str(desired or required),
            "gang-required-members": str(required),
            "gang-group-key": f"default/{workload}",
            "gang-timeout": timeout,
            **more.pop("annotations", {}),
        }
        for number in members:
            self.pod(
                f"{workload}-{number}",
                annotations=annotations,
                labels={"workload": workload},
                **more,
            )

    def get(self, name: str) -> dict:
        return self.store.get(PODS, name, "default")

    def node_of(self, name: str) -> str:
        return self.get(name)["spec"].get("nodeName", "")

    def bound(self) -> dict[str, str]:
        """Every bound pod that is not being deleted, and its node."""
        return {
            o["metadata"]["name"]: o["spec"]["nodeName"]
            for o in self.cluster.all(PODS, "default")
            if o["spec"].get("nodeName") and not o["metadata"].get("deletionTimestamp")
        }

    def scheduled(self, name: str) -> dict:
        """The PodScheduled condition."""
        found = [c for c in self.get(name)["status"]["conditions"] if c["type"] == "PodScheduled"]
        return found[0]

    def annotation(self, name: str, key: str) -> str:
        return self.get(name)["metadata"]["annotations"].get(names.PREFIX + key, "")

    def budget(self, name: str, labels: dict[str, str], **spec) -> None:
        self.store.create(
            registry.PDBS,
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": {"matchLabels": labels}, **spec},
            },
        )

    def priority_class(self, name: str, value: int, policy: str = "PreemptLowerPriority") -> None:
        self.store.create(
            registry.PRIORITY_CLASSES,
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": name},
                "value": value,
                "preemptionPolicy": policy,
            },
        )

    def healthy(self) -> bool:
        """Whether the ledger is sound and agrees with the bound pods."""
        held = {a.name for a in self.placer.ledger.allocations.values()}
        return not self.placer.ledger.check_invariants() and held == set(self.bound())
