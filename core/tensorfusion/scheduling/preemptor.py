"""Preemption on the cluster: plans, evictions, and the promise of the room they leave."""

import logging
from collections.abc import Sequence

from tensorfusion.api import pod_view
from tensorfusion.api.core.cluster import PodDisruptionBudget
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.decode import to_json
from tensorfusion.api.registry import PODS
from tensorfusion.clock import Clock
from tensorfusion.errors import ApiError, NotFound
from tensorfusion.model.demand import Demand
from tensorfusion.model.gang import GangRequest
from tensorfusion.model.preemption import NoPreemption, plan_gang_preemption, plan_preemption
from tensorfusion.model.victims import Disruptable, PreemptionPlan
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.scheduling.disruption import disruptable_of
from tensorfusion.scheduling.nomination import NOMINATION_SECONDS, Nomination
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.priority import Priorities
from tensorfusion.store.informer import Informer
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
MANAGER = "tensorfusion-scheduler"


class Preemptor:
    """Makes room for pods of higher priority.

    Concurrency: belongs to the scheduler's thread.
    """

    def __init__(
        self,
        store: Store,
        placer: Placer,
        pods: Informer[Pod],
        budgets: Informer[PodDisruptionBudget],
        priorities: Priorities,
        *,
        clock: Clock,
        events: EventRecorder,
        instruments: Instruments,
    ) -> None:
        self._store = store
        self._placer = placer
        self._pods = pods
        self._budgets = budgets
        self._priorities = priorities
        self._clock = clock
        self._events = events
        self._instruments = instruments
        self._seen: Disruptable | None = None

    def look_again(self) -> None:
        """Forget what was read of the cluster; called before each batch."""
        self._seen = None

    def make_room(self, waiting: Sequence[Pod], request: Demand | GangRequest) -> tuple[str, str]:
        """Evict for pods that fit nowhere, if that helps and is allowed.

        Args:
            waiting: The pod, or all members of the gang that wait.
            request: What they ask for.

        Returns:
            The node where room is being made, empty for none; and a sentence about it, empty
            when there is nothing to say.
        """
        promised = self._placer.nominated(waiting[0].metadata.uid)
        if promised is not None:
            return promised.nodes[0], promised.message
        if not all(self._priorities.preempts(pod) for pod in waiting):
            return "", ""
        with self._placer.lock:
            priority = min(self._priorities.of(pod) for pod in waiting)
            disruptable = self._disruptable()
            if not any(v.priority < priority for v in disruptable.victims.values()):
                return "", ""
            if isinstance(request, GangRequest):
                plan = plan_gang_preemption(self._placer.engine, request, priority, disruptable)
            else:
                plan = plan_preemption(self._placer.engine, request, priority, disruptable)
            if isinstance(plan, NoPreemption):
                return "", f"preemption: {plan.message}"
            victims = self._pods_of(plan)
            nomination = self._nomination(request, plan, victims)
            self._placer.nominate(nomination)
        self._seen = None
        for victim in victims:
            self.evict(victim, f"made room for {nomination.name} of higher priority")
        self._instruments.count("tensorfusion_scheduler_preemptions_total", amount=len(victims))
        return plan.nodes[0], nomination.message

    def _disruptable(self) -> Disruptable:
        if self._seen is None:
            self._seen = disruptable_of(
                self._placer.ledger,
                self._pods.values(),
                self._budgets.values(),
                self._priorities.of,
                self._clock.now(),
                self._placer.promises,
            )
        return self._seen

    def _pods_of(self, plan: PreemptionPlan) -> list[Pod]:
        allocations = self._placer.ledger.allocations
        uids = {uid for key in plan.victims for uid in allocations[key].holders}
        found = [pod for pod in self._pods.values() if pod.metadata.uid in uids]
        return sorted(found, key=pod_view.key)

    def _nomination(
        self, request: Demand | GangRequest, plan: PreemptionPlan, victims: list[Pod]
    ) -> Nomination:
        if isinstance(request, GangRequest):
            name = f"gang {request.key}"
        else:
            name = f"pod {request.namespace}/{request.name}"
        return Nomination(
            name=name,
            request=request,
            nodes=plan.nodes,
            victims=frozenset(pod.metadata.uid for pod in victims),
            deadline=self._clock.monotonic() + NOMINATION_SECONDS,
        )

    def evict(
        self,
        pod: Pod,
        message: str,
        *,
        reason: str = "Preempted",
        cause: str = "PreemptionByScheduler",
    ) -> None:
        """Delete a running pod and say why, in its DisruptionTarget condition and in an event.

        Args:
            pod: The pod.
            message: One sentence.
            reason: Of the event.
            cause: Reason of the condition.
        """
        namespace, name = pod.metadata.namespace, pod.metadata.name
        present = [] if pod.status is None else [to_json(c) for c in pod.status.conditions]
        others = [c for c in present if c["type"] != "DisruptionTarget"]
        wanted = condition("DisruptionTarget", True, cause, message)
        status = {"conditions": others + merge([], [wanted], self._clock.now())}
        try:
            self._store.patch(
                PODS,
                name,
                {"status": status},
                namespace,
                subresource="status",
                field_manager=MANAGER,
            )
            self._store.delete(PODS, name, namespace, uid=pod.metadata.uid)
        except NotFound:
            return
        except ApiError as error:
            # The promise ends by itself; the next attempt plans anew.
            log.warning("pod not evicted", extra={"pod": f"{namespace}/{name}", "why": str(error)})
            return
        self._events.event(pod_view.reference(pod), reason, message, warning=True)
