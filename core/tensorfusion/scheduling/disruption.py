"""What preemption may disturb, read from pods and budgets. Pure functions over objects."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from tensorfusion import names
from tensorfusion.api import pod_view
from tensorfusion.api.core.cluster import PodDisruptionBudget
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.meta import LabelSelector
from tensorfusion.clock import parse_timestamp
from tensorfusion.errors import ConfigError
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.budget import budget_state
from tensorfusion.model.demand import Requirement
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.victims import Disruptable, Victim
from tensorfusion.scheduling.gang_pods import gang_key, required_of
from tensorfusion.units import parse_duration


def disruptable_of(
    ledger: Ledger,
    pods: Iterable[Pod],
    budgets: Iterable[PodDisruptionBudget],
    priority_of: Callable[[Pod], int],
    now: float,
    promised: Callable[[str], bool] = lambda _uid: False,
) -> Disruptable:
    """Describe every running worker as preemption sees it.

    Args:
        ledger: Who holds what.
        pods: All pods.
        budgets: All disruption budgets.
        priority_of: The priority of a pod.
        now: Epoch seconds; decides whether a protection still holds.
        promised: Whether what a pod (by uid) leaves belongs to somebody already.
    """
    by_uid = {pod.metadata.uid: pod for pod in pods if not pod_view.is_finished(pod)}
    bound = {uid: pod for uid, pod in by_uid.items() if pod_view.node_name(pod)}
    covered, allowed = _budgets(list(by_uid.values()), budgets)
    victims: dict[str, Victim] = {}
    ending: list[str] = []
    members: Counter[str] = Counter()
    required: dict[str, int] = {}
    for key, allocation in ledger.allocations.items():
        users = [bound[uid] for uid in allocation.holders if uid in bound]
        if len(users) < len(allocation.holders) or any(promised(u) for u in allocation.holders):
            continue  # not bound yet, gone already, or making room for somebody else
        if all(pod_view.is_deleting(pod) for pod in users):
            ending.append(key)
            continue
        victims[key] = _victim(key, allocation, users, priority_of, now, ledger, covered)
        gang = victims[key].gang
        if gang:
            members[gang] += 1
            required[gang] = max(required.get(gang, 0), required_of(users[0]))
    return Disruptable(
        victims=victims,
        spare={gang: max(0, count - required[gang]) for gang, count in members.items()},
        allowed=allowed,
        ending=tuple(ending),
    )


def _victim(
    key: str,
    allocation: Allocation,
    users: list[Pod],
    priority_of: Callable[[Pod], int],
    now: float,
    ledger: Ledger,
    covered: Mapping[str, tuple[str, ...]],
) -> Victim:
    return Victim(
        key=key,
        priority=max(priority_of(pod) for pod in users),
        pods=len(users),
        protected=any(is_protected(pod, now) for pod in users),
        gang=gang_key(users[0]),
        lost_gpu_seconds=round(_gpus(allocation, ledger) * max(_age(pod, now) for pod in users)),
        budgets=tuple(sorted({b for pod in users for b in covered.get(pod.metadata.uid, ())})),
    )


def is_protected(pod: Pod, now: float) -> bool:
    """Whether the pod's protection against eviction still holds.

    It counts from the pod's creation. A duration that cannot be read protects nothing; admission
    refuses those, so it can only stand on pods that admission never saw.
    """
    text = pod.metadata.annotations.get(names.EVICTION_PROTECTION, "")
    created = pod.metadata.creation_timestamp
    if not text or not created:
        return False
    try:
        return now < parse_timestamp(created) + parse_duration(text)
    except (ConfigError, ValueError):
        return False


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Whether labels satisfy a selector; an empty one matches everything, none nothing."""
    if selector is None:
        return False
    return all(labels.get(k) == v for k, v in selector.match_labels.items()) and all(
        Requirement(e.key, e.operator, tuple(e.values)).matches(labels)
        for e in selector.match_expressions
    )


def _budgets(
    pods: list[Pod], budgets: Iterable[PodDisruptionBudget]
) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Return the budgets of each pod by uid, and what each budget still allows."""
    covered: dict[str, tuple[str, ...]] = {}
    allowed: dict[str, int] = {}
    for budget in budgets:
        if budget.spec is None:
            continue
        name = f"{budget.metadata.namespace}/{budget.metadata.name}"
        inside = [
            pod
            for pod in pods
            if pod.metadata.namespace == budget.metadata.namespace
            and matches(budget.spec.selector, pod.metadata.labels)
        ]
        healthy = sum(pod_view.is_ready(pod) and not pod_view.is_deleting(pod) for pod in inside)
        state = budget_state(
            len(inside), healthy, budget.spec.min_available, budget.spec.max_unavailable
        )
        allowed[name] = state.allowed
        for pod in inside:
            covered[pod.metadata.uid] = (*covered.get(pod.metadata.uid, ()), name)
    return covered, allowed


def _age(pod: Pod, now: float) -> float:
    started = pod.status.start_time if pod.status is not None else None
    text = started or pod.metadata.creation_timestamp
    return max(0.0, now - parse_timestamp(text)) if text else 0.0


def _gpus(allocation: Allocation, ledger: Ledger) -> float:
    """How many GPUs' worth of compute a worker holds."""
    total = 0.0
    for take in allocation.takes:
        usage = ledger.devices.get(take.uuid)
        device = usage.device if usage is not None else None
        share = take.gflops / device.capacity_gflops if device and device.capacity_gflops else 1.0
        total += share
    return total
