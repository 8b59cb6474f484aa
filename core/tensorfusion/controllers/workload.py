"""Workloads, profiles and connections: what their users look at."""

from collections.abc import Callable

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.connection import TensorFusionConnection
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.pool import GPUPool
from tensorfusion.api.registry import CONNECTIONS, PROFILES, WORKLOADS
from tensorfusion.api.resource import JsonObject
from tensorfusion.api.workload import TensorFusionWorkload
from tensorfusion.api.workload_profile import WorkloadProfile
from tensorfusion.clock import Clock
from tensorfusion.controllers.status import ready, stalled, write_status
from tensorfusion.model.worker_annotations import limit_of, request_of
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.store.informer import Change, Informer, split_key
from tensorfusion.store.interface import Store
from tensorfusion.units import format_bytes, format_percent, format_tflops

SETTLE_SECONDS = 0.7
"""Pause before a change is summed up: a worker that comes up soon makes one write of two."""
REMOTE_MESSAGE = (
    f"remote workers are not available in this release: set {names.IS_LOCAL_GPU} to true"
)


class WorkloadController:
    """Counts workers; ``pods`` is indexed by ``workload`` (namespace/name).

    Args:
        enforcement: Node and isolation mode to what really binds there.
        gang: Workload key to how far its gang is; None when it is no gang.
    """

    def __init__(
        self,
        store: Store,
        workloads: Informer[TensorFusionWorkload],
        pods: Informer[Pod],
        *,
        enforcement: Callable[[str, str], str],
        clock: Clock,
        instruments: Instruments,
        gang: Callable[[str], JsonObject | None] = lambda _key: None,
    ) -> None:
        self._store = store
        self._gang = gang
        self._workloads = workloads
        self._pods = pods
        self._enforcement = enforcement
        self._clock = clock
        self._instruments = instruments
        self._pools: dict[str, str] = {}
        """Workload to the pool that its gauges are labelled with."""
        self.controller = Controller("workloads", self.reconcile, clock=clock)
        workloads.subscribe(self._workload_changed)
        pods.subscribe(self._pod_changed)

    def _workload_changed(self, change: Change[TensorFusionWorkload]) -> None:
        if change.old is None or change.new is None:
            self.controller.queue.add_after(change.key, SETTLE_SECONDS)
        elif change.old.metadata.generation != change.new.metadata.generation:
            self.controller.queue.add(change.key)

    def _pod_changed(self, change: Change[Pod]) -> None:
        pod = change.new or change.old
        workload = pod.metadata.labels.get(names.WORKLOAD, "") if pod is not None else ""
        if pod is not None and workload:
            self.controller.queue.add_after(f"{pod.metadata.namespace}/{workload}", SETTLE_SECONDS)

    def reconcile(self, key: str) -> Result:
        """Write what is observed of one workload."""
        workload = self._workloads.get(key)
        if workload is None:
            self._show(key, None, 0, 0)
            return DONE
        workers = [
            p
            for p in self._pods.by_index("workload", key)
            if not pod_view.is_finished(p) and not pod_view.is_deleting(p)
        ]
        failed = [p for p in self._pods.by_index("workload", key) if pod_view.phase(p) == "Failed"]
        serving = [p for p in workers if pod_view.is_ready(p)]
        pool = workload.spec.pool_name if workload.spec else ""
        self._show(key, pool, len(workers), len(serving))
        phase, reason, message = summarize(len(workers), len(serving), len(failed))
        gang = self._gang(key)
        if gang is not None and gang["phase"] != "Running":
            # A gang that waits says more than the number of workers that are ready.
            phase = "Failed" if "Failed" in (phase, gang["phase"]) else "Pending"
            reason, message = gang["reason"], gang["message"]
        status: JsonObject = {
            "phase": phase,
            "workerCount": len(workers),
            "readyWorkers": len(serving),
            "gang": gang,
        }
        if serving:
            first = serving[0]
            mode = first.metadata.annotations.get(names.ISOLATION, "soft")
            status["enforcement"] = self._enforcement(pod_view.node_name(first), mode)
            status["currentResources"] = _resources(first)
        conditions = ready(phase == "Running", reason, message, workload.metadata.generation)
        write_status(self._store, WORKLOADS, workload, status, conditions, self._clock)
        return DONE

    def _show(self, key: str, pool: str | None, desired: int, ready_workers: int) -> None:
        """Set the workload's gauges; a workload without a pool is gone."""
        namespace, name = split_key(key)
        before = self._pools.get(key)
        for metric, value in (
            ("tensorfusion_workload_desired_workers", desired),
            ("tensorfusion_workload_ready_workers", ready_workers),
        ):
            labels = {"namespace": namespace, "workload": name}
            if before is not None and before != pool:
                self._instruments.forget(metric, {**labels, "pool": before})
            if pool is not None:
                self._instruments.set(metric, value, {**labels, "pool": pool})
        if pool is None:
            self._pools.pop(key, None)
        else:
            self._pools[key] = pool


def summarize(workers: int, serving: int, failed: int) -> tuple[str, str, str]:
    """Return phase, reason and message of a workload."""
    if failed:
        return "Failed", "WorkerFailed", f"{failed} workers failed"
    if not workers:
        return "Pending", "ScaledToZero", "no pod asks for a worker"
    if serving == workers:
        return "Running", "WorkloadReady", f"{serving} of {workers} workers are ready"
    return "Pending", "WaitingForWorkers", f"{serving} of {workers} workers are ready"


def _resources(pod: Pod) -> JsonObject:
    result: JsonObject = {}
    annotations = pod.metadata.annotations
    for side, amount in (("requests", request_of(annotations)), ("limits", limit_of(annotations))):
        block: JsonObject = {"vram": format_bytes(amount.vram_bytes)}
        if amount.milli_percent:
            block["compute"] = format_percent(amount.milli_percent)
        else:
            block["tflops"] = format_tflops(amount.gflops)
        result[side] = block
    return result


class ProfileController:
    """Says whether a profile can be used: its pool exists."""

    def __init__(
        self,
        store: Store,
        profiles: Informer[WorkloadProfile],
        pools: Informer[GPUPool],
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._profiles = profiles
        self._pools = pools
        self._clock = clock
        self.controller = Controller("profiles", self.reconcile, clock=clock)
        profiles.subscribe(self.controller.enqueue)
        pools.subscribe(self._pool_changed)

    def _pool_changed(self, change: Change[GPUPool]) -> None:
        if change.old is None or change.new is None:
            for key in self._profiles.all_keys():
                self.controller.queue.add(key)

    def reconcile(self, key: str) -> Result:
        """Check one profile."""
        profile = self._profiles.get(key)
        if profile is None:
            return DONE
        generation = profile.metadata.generation
        pool = profile.spec.pool_name if profile.spec else ""
        if pool and self._pools.get(pool) is None:
            known = ", ".join(sorted(self._pools.all_keys())) or "none"
            message = f"spec.poolName: GPU pool {pool!r} does not exist; existing: {known}"
            conditions = stalled("PoolNotFound", message, generation)
        else:
            conditions = ready(True, "Valid", "the profile can be used", generation)
        write_status(self._store, PROFILES, profile, {}, conditions, self._clock)
        return DONE


class ConnectionController:
    """Answers requests for a remote worker: refused with a reason until there are any."""

    def __init__(
        self, store: Store, connections: Informer[TensorFusionConnection], *, clock: Clock
    ) -> None:
        self._store = store
        self._connections = connections
        self._clock = clock
        self.controller = Controller("connections", self.reconcile, clock=clock)
        connections.subscribe(self.controller.enqueue)

    def reconcile(self, key: str) -> Result:
        """Answer one connection."""
        connection = self._connections.get(key)
        if connection is None:
            return DONE
        conditions = stalled(
            "RemoteWorkerUnavailable", REMOTE_MESSAGE, connection.metadata.generation
        )
        status = {"phase": "Failed"}
        write_status(self._store, CONNECTIONS, connection, status, conditions, self._clock)
        return DONE
