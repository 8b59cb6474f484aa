"""The scheduling cycle: pending workers in, bindings out, and word about those that do not fit.

One thread takes what is ready, in order of priority and age, decides in memory, and binds a
whole batch in one commit where the store can. A gang is one unit of a batch, placed and bound as
a whole. A pod that fits nowhere may make room by preemption; else it is tried again when
something that placement looks at has changed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.cluster import PodDisruptionBudget, PriorityClass
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.registry import PODS
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, Conflict, NotFound, TensorFusionError
from tensorfusion.model.demand import Amount, Demand
from tensorfusion.model.device import Device
from tensorfusion.model.engine import Placement
from tensorfusion.model.explain import NoFit
from tensorfusion.model.worker_annotations import format_amounts
from tensorfusion.runtime.controller import DONE, Controller, Result
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.scheduling.binding import Binder, binding, waits
from tensorfusion.scheduling.gang_pods import gang_key
from tensorfusion.scheduling.gang_recovery import settle_gangs
from tensorfusion.scheduling.gangs import Gangs, Placed
from tensorfusion.scheduling.hints import Hints
from tensorfusion.scheduling.nomination import NOMINATION_SECONDS
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.plain_pods import PlainPods
from tensorfusion.scheduling.preemptor import Preemptor
from tensorfusion.scheduling.priority import Priorities
from tensorfusion.scheduling.translate import demand_of
from tensorfusion.scheduling.waiting import Waiting
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


@dataclass(frozen=True, slots=True)
class SchedulerInformers:
    """What scheduling reads; ``pods`` is indexed by ``gang``."""

    pods: Informer[Pod]
    budgets: Informer[PodDisruptionBudget]
    classes: Informer[PriorityClass]


class Scheduler:
    """Places pods that admission made workers.

    Args:
        bind: How a pod is bound; the store's own way.
        batch: A context manager that groups the store's writes, if it can; it nests.
        plain: Chooses nodes for pods without GPUs, where nobody else binds those.
        on_gang: Told the key of a gang whose state has changed.

    Concurrency: the controller is served by one thread; `resize` may be called from any.
    """

    def __init__(
        self,
        store: Store,
        placer: Placer,
        informers: SchedulerInformers,
        *,
        bind: Binder,
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
        batch: Callable[[], AbstractContextManager[None]] = nullcontext,
        plain: PlainPods | None = None,
        on_gang: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self._store = store
        self._placer = placer
        self._pods = pods = informers.pods
        self._bind = bind
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._batch = batch
        self._plain = plain
        self._priorities = Priorities(informers.classes)
        self._waiting = Waiting(store, pods, clock=clock, events=events, instruments=instruments)
        self._hints = Hints(placer, clock)
        self.gangs = Gangs(placer, pods, clock, on_gang)
        self._preemptor = Preemptor(
            store,
            placer,
            pods,
            informers.budgets,
            self._priorities,
            clock=clock,
            events=events,
            instruments=instruments,
        )
        self.evict = self._preemptor.evict
        self.target_of: Callable[[Pod], str] = lambda _pod: ""
        """The node that a pod should go to first; set by the composition."""
        self.controller = Controller("scheduler", self.reconcile, clock=clock)
        self.queue = self.controller.queue
        self.queue.add_after(TICK, RETRY_SECONDS)
        self._tried: dict[str, float] = {}
        self._bound: dict[str, float] = {}
        pods.subscribe(self._changed)
        informers.budgets.subscribe(lambda _change: self.wake())
        informers.classes.subscribe(lambda _change: self.wake())

    def recover(self, devices: Mapping[str, Device]) -> list[str]:
        """Settle what a crash left between log and pods; returns a line per repair."""
        pods = self._pods.values()
        settled = settle_gangs(self._placer.ledger, pods)
        repairs = self._placer.recover(pods, devices, settled.keep)
        for pod, message in settled.give_up:
            self._preemptor.evict(pod, message)
            repairs.append(f"evicted {pod_view.key(pod)}: {message}")
        return repairs

    def _changed(self, change: Change[Pod]) -> None:
        """Queue what waits; release what is gone or finished (an informer handler)."""
        old, new = change.old, change.new
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._placer.release(old.metadata.uid, "the pod is gone")
            self._waiting.forget(change.key)
        pod = new or old
        gang = gang_key(pod) if pod is not None else ""
        if gang:
            self.gangs.touched(gang)
        if self._plain is not None and pod is not None and (new is None or not waits(new)):
            self._plain.seen(pod.metadata.uid)
        if new is None:
            self._bound.pop(change.key, None)
            return
        if pod_view.node_name(new):
            self._bound.pop(change.key, None)
            self._placer.bound(new.metadata.uid)
            if names.INDEX in new.metadata.annotations and pod_view.phase(new) == "Running":
                self._placer.running(new.metadata.uid)
        if pod_view.is_finished(new):
            self._placer.release(new.metadata.uid, f"the pod {pod_view.phase(new).lower()}")
        elif waits(new) and (pod_view.is_worker(new) or self._plain is not None):
            self.queue.add(change.key)

    def reconcile(self, key: str) -> Result:
        """Schedule a pod together with what else waits, or look at the unplaced ones again."""
        if key == TICK:
            for waiting in self._waiting.due(self._placer.version()):
                self.queue.add(waiting)
            self._look_for_lost()
            return Result(requeue_seconds=RETRY_SECONDS)
        others = self._more()
        try:
            self.schedule([key, *others])
        finally:
            for other in others:
                self.queue.done(other)
        return DONE

    def _look_for_lost(self) -> None:
        """Queue pods whose binding has not shown in time; no change of theirs would do it."""
        now = self._clock.monotonic()
        for key, since in list(self._bound.items()):
            if now - since >= LOST_SECONDS and self._bound.pop(key, None) is not None:
                self.queue.add(key)

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
        pods.sort(key=self._rank)
        self._preemptor.look_again()
        groups: list[list[Placed]] = []
        tried: set[str] = set()
        for pod in pods:
            if not pod_view.is_worker(pod):
                self._bind_plain(pod)
                continue
            gang = gang_key(pod)
            if gang in tried:
                continue
            if self._placer.ledger.get(pod.metadata.uid) is not None:
                groups.append(self._reserved(pod))
            elif gang:
                tried.add(gang)
                groups.append(self._place_gang(gang))
            else:
                groups.append(self._place(pod))
        groups = [group for group in groups if group]
        if groups:
            self._bind_all(groups)

    def _rank(self, pod: Pod) -> tuple[int, bool, str, str]:
        """Higher priority first, then who was promised room, then the oldest."""
        nominated = pod.status.nominated_node_name if pod.status is not None else ""
        created = pod.metadata.creation_timestamp or ""
        return (-self._priorities.of(pod), not nominated, created, pod_view.key(pod))

    def _reserved(self, pod: Pod) -> list[Placed]:
        """Bind to a place that is reserved already; else see what became of the binding."""
        key = pod_view.key(pod)
        if self._clock.monotonic() - self._bound.get(key, -LOST_SECONDS) < LOST_SECONDS:
            self.queue.add_after(key, LOST_SECONDS)
            return []  # bound already; the informer lags behind
        found = self._placer.reservation(pod.metadata.uid)
        if found is not None:
            return [Placed(pod, *found)]
        self._placer.release(pod.metadata.uid, "the binding was lost")
        self.queue.add(key)
        return []

    def _place(self, pod: Pod) -> list[Placed]:
        self._tried.setdefault(pod_view.key(pod), self._clock.monotonic())
        started = self._clock.monotonic()
        try:
            demand = demand_of(pod)
            share = names.WORKLOAD in pod.metadata.annotations
            found = self._placer.place(demand, share, self.target_of(pod))
        except (TensorFusionError, ValueError) as error:
            self._count(pod, "error")
            self._waiting.refuse(pod, self._placer.version(), "SchedulerError", str(error))
            return []
        self._instruments.observe(
            "tensorfusion_scheduler_decision_duration_seconds", self._clock.monotonic() - started
        )
        if isinstance(found, NoFit):
            self._count(pod, "unschedulable")
            self._instruments.count(
                "tensorfusion_scheduler_rejections_total",
                {"pool": demand.shape.pool, "reason": main_reason(found)},
            )
            self._make_room(pod, demand, found.message)
            return []
        return [Placed(pod, *found)]

    def _make_room(self, pod: Pod, demand: Demand, message: str) -> None:
        node, also = self._preemptor.make_room([pod], demand)
        if node:
            self.queue.add_after(pod_view.key(pod), NOMINATION_SECONDS)
        text = f"{message}; {also}" if also else message
        hint = "" if node else self._hints.of(demand)
        if hint:
            text = f"{text}; it would fit if you {hint}"
        self._waiting.refuse(pod, self._placer.version(), "Unschedulable", text, node=node)

    def _place_gang(self, gang: str) -> list[Placed]:
        """Try a gang; tell every member that waits how it went."""
        started = self._clock.monotonic()
        attempt = self.gangs.attempt(gang)
        if attempt.placed:
            self._instruments.observe(
                "tensorfusion_scheduler_decision_duration_seconds",
                self._clock.monotonic() - started,
            )
        for pod in attempt.give_up:
            self._preemptor.evict(pod, f"gang {gang} did not reach its quorum in time")
        waiting = [pod for pod, _, _ in attempt.refused]
        node = also = ""
        if attempt.request is not None and waiting:
            node, also = self._preemptor.make_room(waiting, attempt.request)
        annotations = {names.GANG_PHASE: self.gangs.phase(gang)}
        for pod, reason, message in attempt.refused:
            self._count(pod, "unschedulable")
            self._waiting.refuse(
                pod,
                self._placer.version(),
                reason,
                f"{message}; {also}" if also else message,
                node=node,
                annotations=annotations,
            )
        if attempt.again_seconds is not None:
            pods = waiting or self.gangs.waiting(gang)
            for pod in pods[:1]:
                self.queue.add_after(pod_view.key(pod), attempt.again_seconds)
        for placed in attempt.placed:
            self._tried.setdefault(pod_view.key(placed.pod), started)
        return attempt.placed

    def _bind_plain(self, pod: Pod) -> None:
        """Bind a pod that wants no GPU."""
        if self._plain is None:
            return
        key = pod_view.key(pod)
        choice = self._plain.choose(pod)
        if not choice.node:
            self._waiting.refuse(pod, self._placer.version(), "Unschedulable", choice.message)
            self.queue.add_after(key, RETRY_SECONDS)
            return
        target = Placement(node=choice.node, devices=(), score=0.0, policy="plain")
        body = binding(pod, target, None)
        self._plain.assume(pod, choice.node)
        try:
            self._bind(pod.metadata.namespace, pod.metadata.name, body)
        except ApiError as error:
            self._plain.seen(pod.metadata.uid)
            if not isinstance(error, (NotFound, Conflict)):
                raise
            return
        self._waiting.forget(key)
        reason, where = "Scheduled", f"placed on node {choice.node}"
        if choice.apart:
            reason, where = "ScheduleWithNativeGPU", f"{where}, which has no workers of ours"
        self._events.event(pod_view.reference(pod), reason, where)

    def _bind_all(self, groups: list[list[Placed]]) -> None:
        """Bind a batch in one commit; a group that cannot be bound as a whole is taken back."""
        try:
            with self._batch():
                for group in groups:
                    self._bind_group(group)
        except ApiError as error:
            placed = [item for group in groups for item in group]
            log.warning("batch not bound", extra={"error": str(error), "pods": len(placed)})
            for item in placed:
                self._bound.pop(pod_view.key(item.pod), None)
                self._placer.release(item.pod.metadata.uid, f"bind failed: {error}")
                self.queue.add_after(pod_view.key(item.pod), RETRY_SECONDS)
            return
        for group in groups:
            for item in group:
                self._tell(item)

    def _bind_group(self, group: list[Placed]) -> None:
        """Bind a pod or a gang."""
        done: list[Placed] = []
        try:
            with self._batch():
                for item in group:
                    pod = item.pod
                    body = binding(pod, item.placement, item.allocation)
                    self._bind(pod.metadata.namespace, pod.metadata.name, body)
                    self._bound[pod_view.key(pod)] = self._clock.monotonic()
                    done.append(item)
        except (NotFound, Conflict) as error:
            # One was deleted or bound by someone else between the decision and now. Without
            # transactions those before it are bound for good, and the rest joins them later.
            kept = done if self._batch is nullcontext else []
            for item in group:
                if item in kept:
                    continue
                self._bound.pop(pod_view.key(item.pod), None)
                self._placer.release(item.pod.metadata.uid, f"bind refused: {error}")
                if len(group) > 1:
                    self.queue.add_after(pod_view.key(item.pod), RETRY_SECONDS)

    def _tell(self, item: Placed) -> None:
        pod, placement = item.pod, item.placement
        if self._placer.ledger.get(pod.metadata.uid) is None:
            return
        key = pod_view.key(pod)
        self._waiting.forget(key)
        self._count(pod, "scheduled")
        first = self._tried.pop(key, None)
        if first is not None:
            self._instruments.observe(
                "tensorfusion_scheduler_placement_duration_seconds",
                self._clock.monotonic() - first,
                {"pool": item.allocation.pool},
            )
        self._events.event(
            pod_view.reference(pod),
            "Scheduled",
            f"placed on node {placement.node}, GPU {', '.join(placement.devices)}"
            f" by policy {placement.policy}",
        )

    def wake(self) -> None:
        """Try every unplaced pod again: quotas, budgets or policies changed."""
        for key in self._waiting.all_keys():
            self.queue.add(key)

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


def main_reason(refusal: NoFit) -> str:
    """The constraint that excluded the most GPUs, for metrics."""
    if refusal.violations:
        return "quota"
    if not refusal.exclusions:
        return "no-gpus"
    return max(refusal.exclusions, key=lambda e: e.removed).constraint
