"""The scheduling cycle: pending workers in, bindings out, and word about those that do not fit.

One thread takes what is ready, in order of priority and age, decides in memory, and binds a
whole batch in one commit where the store can. A pod that fits nowhere is tried again when
something that placement looks at has changed.
"""

import json
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import PODS
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, Conflict, NotFound, TensorFusionError
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.demand import Amount
from tensorfusion.model.engine import Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.worker_annotations import format_amounts
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.translate import demand_of
from tensorfusion.store.informer import Change, Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-scheduler"
BATCH = 64
RETRY_SECONDS = 1.0
LOST_SECONDS = 10.0
"""A binding that no informer showed for this long was lost: its commit failed."""
TICK = ""
"""The key by which the scheduler looks at unplaced pods again."""

Binder = Callable[[str, str, JsonObject], object]
"""Binds pod (namespace, name) by a ``Binding`` object, once."""


@dataclass(slots=True)
class Unplaced:
    """A pod that fits nowhere, and when that was last found."""

    version: int
    message: str
    since: float


class Scheduler:
    """Places pods that admission made workers.

    Args:
        bind: How a pod is bound; the store's own way.
        batch: A context manager that groups the store's writes, if it can.
        plain_node: Chooses a node for a pod without GPUs, where nobody else binds those.

    Concurrency: the controller is served by one thread; `resize` may be called from any.
    """

    def __init__(
        self,
        store: Store,
        placer: Placer,
        pods: Informer[Pod],
        *,
        bind: Binder,
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
        plain_node: Callable[[Pod], str] | None = None,
    ) -> None:
        self._store = store
        self._placer = placer
        self._pods = pods
        self._bind = bind
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._batch = batch
        self._plain_node = plain_node
        self.controller = Controller("scheduler", self.reconcile, clock=clock)
        self.queue = self.controller.queue
        self.queue.add_after(TICK, RETRY_SECONDS)
        self._unplaced: dict[str, Unplaced] = {}
        self._tried: dict[str, float] = {}
        self._bound: dict[str, float] = {}
        pods.subscribe(self._changed)

    def _changed(self, change: Change[Pod]) -> None:
        """Queue what waits; release what is gone or finished (an informer handler)."""
        old, new = change.old, change.new
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._placer.release(old.metadata.uid, "the pod is gone")
            self._forget(change.key)
        if new is None:
            self._bound.pop(change.key, None)
            return
        if pod_view.node_name(new):
            self._bound.pop(change.key, None)
        if pod_view.is_finished(new):
            self._placer.release(new.metadata.uid, f"the pod {pod_view.phase(new).lower()}")
        elif waits(new) and (pod_view.is_worker(new) or self._plain_node is not None):
            self.queue.add(change.key)

    def reconcile(self, key: str) -> Result:
        """Schedule a pod together with what else waits, or look at the unplaced ones again."""
        if key == TICK:
            self._retry_unplaced()
            return Result(requeue_seconds=RETRY_SECONDS)
        others = self._more()
        try:
            self.schedule([key, *others])
        finally:
            for other in others:
                self.queue.done(other)
        return DONE

    def _more(self) -> list[str]:
        found: list[str] = []
        while len(found) < BATCH - 1 and len(self.queue):
            key = self.queue.get(timeout_seconds=0)
            if key is None:
                break
            if key == TICK:
                self.queue.done(key)
                self.queue.add_after(TICK, RETRY_SECONDS)
                continue
            found.append(key)
        return found

    def schedule(self, keys: Iterable[str]) -> None:
        """Place and bind a batch."""
        pods = [p for p in (self._pods.get(key) for key in keys) if p is not None and waits(p)]
        pods.sort(
            key=lambda p: (-priority_of(p), p.metadata.creation_timestamp or "", pod_view.key(p))
        )
        placed: list[tuple[Pod, Placement, Allocation]] = []
        for pod in pods:
            if not pod_view.is_worker(pod):
                self._bind_plain(pod)
                continue
            found = self._place(pod)
            if found is not None:
                placed.append((pod, *found))
        if not placed:
            return
        try:
            with self._batch():
                for pod, placement, allocation in placed:
                    self._bind_one(pod, placement, allocation)
        except ApiError as error:
            log.warning("batch not bound", extra={"error": str(error), "pods": len(placed)})
            for pod, _, _ in placed:
                self._placer.release(pod.metadata.uid, f"bind failed: {error}")
                self.queue.add_after(pod_view.key(pod), RETRY_SECONDS)
            return
        for pod, placement, allocation in placed:
            self._tell(pod, placement, allocation)

    def _place(self, pod: Pod) -> tuple[Placement, Allocation] | None:
        key = pod_view.key(pod)
        self._tried.setdefault(key, self._clock.monotonic())
        version = self._placer.version()
        if self._placer.ledger.get(pod.metadata.uid) is not None:
            if self._clock.monotonic() - self._bound.get(key, 0.0) < LOST_SECONDS:
                self.queue.add_after(key, LOST_SECONDS)
                return None  # bound already; the informer lags behind
            self._placer.release(pod.metadata.uid, "the binding was lost")
        started = self._clock.monotonic()
        try:
            demand = demand_of(pod)
            found = self._placer.place(demand, share=names.WORKLOAD in pod.metadata.annotations)
        except (TensorFusionError, ValueError) as error:
            self._count(pod, "error")
            self._refuse(pod, version, "SchedulerError", str(error))
            return None
        self._instruments.observe(
            "tensorfusion_scheduler_decision_duration_seconds", self._clock.monotonic() - started
        )
        if isinstance(found, NoFit):
            self._count(pod, "unschedulable")
            self._instruments.count(
                "tensorfusion_scheduler_rejections_total",
                {"pool": demand.shape.pool, "reason": main_reason(found)},
            )
            self._refuse(pod, version, "Unschedulable", found.message)
            return None
        return found

    def _bind_plain(self, pod: Pod) -> None:
        """Bind a pod that wants no GPU."""
        node = self._plain_node(pod) if self._plain_node is not None else ""
        if not node:
            self.queue.add_after(pod_view.key(pod), RETRY_SECONDS)
            return
        target = Placement(node=node, devices=(), score=0.0, policy="plain")
        body = binding(pod, target, None)
        try:
            self._bind(pod.metadata.namespace, pod.metadata.name, body)
        except (NotFound, Conflict):
            return

    def _bind_one(self, pod: Pod, placement: Placement, allocation: Allocation) -> None:
        namespace, name = pod.metadata.namespace, pod.metadata.name
        self._bound[pod_view.key(pod)] = self._clock.monotonic()
        try:
            self._bind(namespace, name, binding(pod, placement, allocation))
        except (NotFound, Conflict) as error:
            # Deleted or bound by someone else between the decision and now.
            self._placer.release(pod.metadata.uid, f"bind refused: {error}")

    def _tell(self, pod: Pod, placement: Placement, allocation: Allocation) -> None:
        if self._placer.ledger.get(pod.metadata.uid) is None:
            return
        key = pod_view.key(pod)
        self._forget(key)
        self._count(pod, "scheduled")
        first = self._tried.pop(key, None)
        if first is not None:
            self._instruments.observe(
                "tensorfusion_scheduler_placement_duration_seconds",
                self._clock.monotonic() - first,
                {"pool": allocation.pool},
            )
        self._events.event(
            pod_view.reference(pod),
            "Scheduled",
            f"placed on node {placement.node}, GPU {', '.join(placement.devices)}"
            f" by policy {placement.policy}",
        )

    def _refuse(self, pod: Pod, version: int, reason: str, message: str) -> None:
        key = pod_view.key(pod)
        known = self._unplaced.get(key)
        since = known.since if known else self._clock.now()
        self._unplaced[key] = Unplaced(version, message, since)
        self._show_pending()
        if known is not None and known.message == message:
            return
        present = [c for c in _conditions(pod) if c["type"] == "PodScheduled"]
        wanted = merge(
            present, [condition("PodScheduled", False, reason, message)], self._clock.now()
        )
        others = [c for c in _conditions(pod) if c["type"] != "PodScheduled"]
        try:
            self._store.patch(
                PODS,
                pod.metadata.name,
                {"status": {"conditions": others + wanted}},
                pod.metadata.namespace,
                subresource="status",
                field_manager=MANAGER,
            )
        except (NotFound, Conflict):
            return
        self._events.event(pod_view.reference(pod), "FailedScheduling", message, warning=True)

    def _retry_unplaced(self) -> None:
        version = self._placer.version()
        for key, unplaced in list(self._unplaced.items()):
            pod = self._pods.get(key)
            if pod is None or not waits(pod):
                self._forget(key)
            elif unplaced.version != version:
                unplaced.version = version
                self.queue.add(key)

    def wake(self) -> None:
        """Try every unplaced pod again: quotas or policies changed."""
        for key in list(self._unplaced):
            self.queue.add(key)

    def _forget(self, key: str) -> None:
        if self._unplaced.pop(key, None) is not None:
            self._show_pending()

    def _show_pending(self) -> None:
        pending: dict[str, int] = {}
        for key in list(self._unplaced):
            pod = self._pods.get(key)
            pool = pod.metadata.labels.get(names.GPU_POOL, "") if pod is not None else ""
            pending[pool] = pending.get(pool, 0) + 1
        self._instruments.replace(
            "tensorfusion_scheduler_pending_workers",
            [((pool,), float(count)) for pool, count in pending.items()],
        )

    def _count(self, pod: Pod, result: str) -> None:
        pool = pod.metadata.labels.get(names.GPU_POOL, "")
        self._instruments.count(
            "tensorfusion_scheduler_attempts_total", {"pool": pool, "result": result}
        )

    def resize(self, pod: Pod, request: Amount, limit: Amount, reason: str) -> None:
        """Change a bound worker in place: ledger, log and pod, or nothing.

        Raises:
            AllocationRefused: It does not fit on its GPUs, or a quota would break.
            ApiError: The pod could not be written; the ledger is as before.
        """
        change = self._placer.resize(pod.metadata.uid, request, limit, reason)
        before = change.before
        assert before is not None
        try:
            self._store.patch(
                PODS,
                pod.metadata.name,
                {"metadata": {"annotations": format_amounts(request, limit)}},
                pod.metadata.namespace,
                field_manager=MANAGER,
            )
        except ApiError as error:
            self._placer.resize(
                pod.metadata.uid, before.request, before.limit, f"resize undone: {error}"
            )
            raise


def waits(pod: Pod) -> bool:
    """Whether the pod has no node yet and may get one."""
    gated = bool(pod.spec and pod.spec.scheduling_gates)
    return (
        not pod_view.node_name(pod)
        and not pod_view.is_finished(pod)
        and not pod_view.is_deleting(pod)
        and not gated
    )


def priority_of(pod: Pod) -> int:
    """The pod's priority: its own, else by quality of service."""
    if pod.spec is not None and pod.spec.priority is not None:
        return pod.spec.priority
    qos = pod.metadata.annotations.get(names.QOS, "medium")
    return {"critical": 100_000, "high": 10_000, "medium": 0, "low": -1000}.get(qos, 0)


def binding(pod: Pod, placement: Placement, allocation: Allocation | None) -> JsonObject:
    """Build the Binding: node and GPU ids in one write."""
    annotations = {names.GPU_IDS: ",".join(placement.devices)} if placement.devices else {}
    if placement.containers:
        annotations[names.CONTAINER_GPUS] = json.dumps(
            {name: list(uuids) for name, uuids in placement.containers}
        )
    if allocation is not None and names.WORKLOAD in pod.metadata.annotations:
        annotations[names.WORKER] = f"{allocation.key}/{allocation.name}"
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {
            "name": pod.metadata.name,
            "namespace": pod.metadata.namespace,
            "uid": pod.metadata.uid,
            "annotations": annotations,
        },
        "target": {"apiVersion": "v1", "kind": "Node", "name": placement.node},
    }


def main_reason(refusal: NoFit) -> str:
    """The constraint that excluded the most GPUs, for metrics."""
    if refusal.violations:
        return "quota"
    if not refusal.exclusions:
        return "no-gpus"
    return max(refusal.exclusions, key=lambda e: e.removed).constraint


def _conditions(pod: Pod) -> list[dict[str, object]]:
    if pod.status is None:
        return []
    return [to_json(c) for c in pod.status.conditions]
