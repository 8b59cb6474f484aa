"""Gangs on the cluster: who belongs together, when they are tried, and how far they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tensorfusion.api import pod_view
from tensorfusion.api.core.pod import Pod
from tensorfusion.api.resource import JsonObject
from tensorfusion.clock import Clock, format_timestamp, parse_timestamp
from tensorfusion.errors import TensorFusionError
from tensorfusion.model.allocation import Allocation
from tensorfusion.model.demand import Demand
from tensorfusion.model.engine import Placement
from tensorfusion.model.gang import GangNoFit, GangPlan, GangRequest
from tensorfusion.scheduling.binding import waits
from tensorfusion.scheduling.gang_pods import GangSpec, gang_spec
from tensorfusion.scheduling.placer import Placer
from tensorfusion.scheduling.translate import demand_of
from tensorfusion.store.informer import Informer

BACKOFF_SECONDS = 1.0
"""Pause after a gang did not fit; doubled each time."""
MAX_BACKOFF_SECONDS = 10.0


class Placed(NamedTuple):
    """A pod with its reserved place."""

    pod: Pod
    placement: Placement
    allocation: Allocation


@dataclass(slots=True)
class GangState:
    """How the last attempt went; ``until`` and ``changed`` are monotonic and epoch seconds."""

    phase: str = "Pending"
    reason: str = "GangPending"
    message: str = ""
    failures: int = 0
    until: float = 0.0
    changed: float = 0.0


@dataclass(slots=True)
class Attempt:
    """What came of trying a gang.

    Attributes:
        placed: Members with a reserved place, to be bound together.
        refused: Members that wait, with a reason and a message.
        request: The gang, where evicting others could help.
        again_seconds: When to try again without any change; None for no such time.
        give_up: Members that run without their quorum and must go.
    """

    placed: list[Placed] = field(default_factory=list)
    refused: list[tuple[Pod, str, str]] = field(default_factory=list)
    request: GangRequest | None = None
    again_seconds: float | None = None
    give_up: list[Pod] = field(default_factory=list)


class Gangs:
    """Tries gangs as a whole. ``pods`` is indexed by ``gang``.

    Args:
        on_change: Told the key of a gang whose state has changed.

    Concurrency: `attempt` belongs to the scheduler's thread; `status` may be read from any.
    """

    def __init__(
        self, placer: Placer, pods: Informer[Pod], clock: Clock, on_change: Callable[[str], None]
    ) -> None:
        self._placer = placer
        self._pods = pods
        self._clock = clock
        self._on_change = on_change
        self._states: dict[str, GangState] = {}

    def members(self, key: str) -> list[Pod]:
        """Return the pods of a gang that run or want to, oldest first."""
        found = [
            pod
            for pod in self._pods.by_index("gang", key)
            if not pod_view.is_finished(pod) and not pod_view.is_deleting(pod)
        ]
        return sorted(found, key=_age)

    def waiting(self, key: str) -> list[Pod]:
        """Return the members that have no place yet, not even a reserved one."""
        ledger = self._placer.ledger
        return [p for p in self.members(key) if waits(p) and ledger.get(p.metadata.uid) is None]

    def attempt(self, key: str) -> Attempt:
        """Place what waits of a gang, all of it that must be or nothing."""
        members = self.members(key)
        if not members:
            self._states.pop(key, None)
            return Attempt()
        state = self._states.setdefault(key, GangState(changed=self._clock.now()))
        waiting = self.waiting(key)
        if not waiting:
            return Attempt()
        left = state.until - self._clock.monotonic()
        if left > 0:
            return Attempt(again_seconds=left)
        spec = gang_spec(members[-1])
        holding = [p for p in members if p not in waiting and _has_place(p, self._placer)]
        demands, broken = _demands(waiting)
        if broken:
            return Attempt(refused=broken)
        left = self._seconds_left(spec, waiting)
        if left <= 0 and len(holding) < spec.required:
            return self._time_out(key, state, spec, waiting, holding)
        request = GangRequest(
            key=key,
            members=tuple(demands),
            required=spec.required,
            placed=len(holding),
            closeness=spec.closeness,
        )
        found = self._placer.place_gang(request)
        if isinstance(found, GangPlan):
            return self._succeed(key, state, demands, found)
        attempt = self._fail(key, state, request, demands, found)
        if left < float("inf"):
            attempt.again_seconds = min(attempt.again_seconds or left, left)
        return attempt

    def _succeed(
        self, key: str, state: GangState, demands: Mapping[Demand, Pod], plan: GangPlan
    ) -> Attempt:
        state.failures, state.until = 0, 0.0
        count = len(plan.members)
        self._set(key, state, "Scheduling", "GangQuorumSatisfied", f"{count} members were placed")
        placed = []
        for member in plan.members:
            assert member.change.after is not None
            placed.append(Placed(demands[member.demand], member.placement, member.change.after))
        refused = [(demands[d], "Unschedulable", why.message) for d, why in plan.left]
        return Attempt(placed=placed, refused=refused)

    def _fail(
        self,
        key: str,
        state: GangState,
        request: GangRequest,
        demands: Mapping[Demand, Pod],
        found: GangNoFit,
    ) -> Attempt:
        pods = list(demands.values())
        if found.why is None:
            reason = "GangWaitingForMembers"
            self._set(key, state, "Waiting", reason, found.message)
            return Attempt(refused=[(pod, reason, found.message) for pod in pods])
        pause = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2.0 ** min(state.failures, 10))
        state.failures += 1
        state.until = self._clock.monotonic() + pause
        if not request.needed:
            # The quorum runs; those who come later wait each for themselves.
            refused = [(pod, "Unschedulable", found.why.message) for pod in pods]
            return Attempt(refused=refused, again_seconds=pause, request=request)
        reason = "GangMemberUnschedulable"
        phase = "Waiting" if found.why.resolvable else "Failed"
        self._set(key, state, phase, reason, found.message)
        refused = [(pod, reason, found.message) for pod in pods]
        return Attempt(refused=refused, again_seconds=pause, request=request)

    def _time_out(
        self,
        key: str,
        state: GangState,
        spec: GangSpec,
        waiting: list[Pod],
        holding: list[Pod],
    ) -> Attempt:
        reason = "GangSchedulingTimeout"
        message = (
            f"gang {key}: its members did not get a place together within"
            f" {spec.timeout_seconds:g} s of the last one to join; a new member starts it again"
        )
        self._set(key, state, "TimedOut", reason, message)
        return Attempt(refused=[(pod, reason, message) for pod in waiting], give_up=holding)

    def _seconds_left(self, spec: GangSpec, waiting: list[Pod]) -> float:
        """Time until the gang gives up, counted from the member that joined last."""
        if not spec.timeout_seconds:
            return float("inf")
        joined = [p.metadata.creation_timestamp for p in waiting if p.metadata.creation_timestamp]
        if not joined:
            return float("inf")
        newest = max(parse_timestamp(text) for text in joined)
        return newest + spec.timeout_seconds - self._clock.now()

    def phase(self, key: str) -> str:
        """The phase of a gang, as its members carry it."""
        state = self._states.get(key)
        return state.phase if state is not None else "Pending"

    def touched(self, key: str) -> None:
        """Forget a gang without members; tell about the others."""
        if not self.members(key):
            self._states.pop(key, None)
        self._on_change(key)

    def status(self, key: str) -> JsonObject | None:
        """Print how far a gang is; None when there is none of that key."""
        members = self.members(key)
        state = self._states.get(key)
        if not members or state is None:
            return None
        spec = gang_spec(members[-1])
        bound = [pod for pod in members if pod_view.node_name(pod)]
        ready = sum(pod_view.is_ready(pod) for pod in bound)
        phase, reason, message = state.phase, state.reason, state.message
        if len(bound) >= spec.required:
            up = ready >= spec.required
            phase = "Running" if up else "Scheduling"
            reason = "GangReady" if up else "GangQuorumSatisfied"
            message = f"{len(bound)} of {spec.desired} members are placed, {ready} are ready"
        status: JsonObject = {
            "phase": phase,
            "reason": reason,
            "message": message,
            "groupKey": key,
            "desiredMembers": spec.desired,
            "readyMembers": ready,
            "scheduledMembers": len(bound),
            "waitingMembers": len(members) - len(bound),
            "lastTransitionTime": format_timestamp(state.changed),
        }
        left = state.until - self._clock.monotonic()
        if left > 0 and phase in ("Waiting", "Failed"):
            status["backoffUntil"] = format_timestamp(self._clock.now() + left)
        return status

    def _set(self, key: str, state: GangState, phase: str, reason: str, message: str) -> None:
        if state.phase != phase:
            state.changed = self._clock.now()
        changed = (state.phase, state.reason, state.message) != (phase, reason, message)
        state.phase, state.reason, state.message = phase, reason, message
        if changed:
            self._on_change(key)


def _has_place(pod: Pod, placer: Placer) -> bool:
    return bool(pod_view.node_name(pod)) or placer.ledger.get(pod.metadata.uid) is not None


def _demands(waiting: list[Pod]) -> tuple[dict[Demand, Pod], list[tuple[Pod, str, str]]]:
    """Read what members ask for, the largest first; one that cannot be read stops the gang."""
    found: list[tuple[Demand, Pod]] = []
    broken = []
    for pod in waiting:
        try:
            found.append((demand_of(pod), pod))
        except (TensorFusionError, ValueError) as error:
            broken.append((pod, "SchedulerError", str(error)))
    found.sort(key=lambda item: _size(item[0]), reverse=True)
    return dict(found), broken


def _size(demand: Demand) -> tuple[int, int, int]:
    shape = demand.shape
    return (shape.gpu_count, shape.request.vram_bytes, shape.request.gflops)


def _age(pod: Pod) -> tuple[str, str]:
    return (pod.metadata.creation_timestamp or "", pod.metadata.name)
