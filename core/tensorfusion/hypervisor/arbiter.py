"""Who may use how much of a device right now: quality of service, and lending of what is idle.

Limits of the workers on one device may add up to more than the device has. While they do not all
want it at once, each keeps its limit. When they do, each gets what it requested, and what is left
is divided by the weight of its quality of service, up to its limit. Where a pool lends, a worker
may also go beyond its limit while the others leave the device idle; the next look after one of
them wakes up takes it back.

The decision is pure (`divide`); `Arbiter` reads the sessions, decides and sets limits.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tensorfusion.api.scheduling_config import HypervisorScheduling
from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.spi.backend import NodeBackend, Share, WorkerSpec, WorkerUsage

log = logging.getLogger(__name__)
TICK_SECONDS: Final = 0.2
"""Pause between two looks: lent compute is taken back within twice this."""
IDLE_SECONDS: Final = 0.5
"""A worker that used nothing for so long lends its share."""
IDLE_RATIO: Final = 0.01
"""Use of a device below which a worker counts as idle."""
MOST_LENT: Final = 0.99
"""Of a device, to one worker: one that has all of it is not paced, and what it queues for a second
ahead would hold up those that wake."""
WEIGHTS: Final[Mapping[str, float]] = {"low": 1.0, "medium": 2.0, "high": 4.0, "critical": 8.0}
"""Weight by quality of service where the pool's template names no coefficients."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A worker on one device; compute in GFLOP/s.

    Attributes:
        key: The worker.
        request: What it is promised.
        limit: The most it may use while others want the device.
        weight: Its claim on what is left, against the others'.
        active: Whether it wants compute now.
    """

    key: str
    request: float
    limit: float
    weight: float
    active: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """How a pool's devices are shared.

    Attributes:
        lends: Whether what is idle may be used beyond limits.
        weights: By quality of service.
    """

    lends: bool = False
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)


def rules_of(scheduling: HypervisorScheduling | None) -> Rules:
    """Read the rules of a pool's template.

    Raises:
        ConfigError: A coefficient is no positive number; names the field.
    """
    if scheduling is None:
        return Rules()
    weights = dict(WEIGHTS)
    queuing = scheduling.multi_process_queuing_parameters
    for qos in ("low", "medium", "high") if queuing is not None else ():
        text = getattr(queuing, f"coefficient_{qos}")
        if text:
            weights[qos] = _coefficient(qos, text)
    return Rules(lends=bool(scheduling.lend_idle_compute), weights=weights)


def _coefficient(qos: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigError(
            f"multiProcessQueuingParameters.coefficient{qos.capitalize()} is {text!r}, allowed are"
            " numbers above 0"
        )
    return value


def divide(capacity: float, tenants: Sequence[Tenant], *, lends: bool) -> dict[str, float]:
    """Say how much of a device each worker may use until the next look.

    An idle worker keeps its limit, so that it can begin at once. The active ones get their limits
    if those fit together. If not, each gets its request (all of them scaled down alike when even
    the requests do not fit), then the rest by weight, no one beyond its limit. What then is left
    is lent, by weight, if the pool lends.

    Returns:
        GFLOP/s by worker, each above 0 and at most ``capacity``.
    """
    active = [tenant for tenant in tenants if tenant.active]
    granted = {tenant.key: min(tenant.limit, capacity) for tenant in tenants}
    if active and sum(granted[t.key] for t in active) > capacity:
        requests = {t.key: min(t.request, t.limit) for t in active}
        scale = min(1.0, capacity / (sum(requests.values()) or 1.0))
        shares = {key: request * scale for key, request in requests.items()}
        _pour(capacity, shares, {t.key: (t.weight, min(t.limit, capacity)) for t in active})
        granted |= shares
    elif active and lends:
        shares = {t.key: granted[t.key] for t in active}
        _pour(capacity, shares, {t.key: (t.weight, MOST_LENT * capacity) for t in active})
        granted |= shares
    least = capacity * IDLE_RATIO
    return {key: max(share, least) for key, share in granted.items()}


def _pour(
    capacity: float, shares: dict[str, float], room: Mapping[str, tuple[float, float]]
) -> None:
    """Add what is left of the capacity to the shares, by weight, up to each one's ceiling."""
    left = capacity - sum(shares.values())
    open_ = {key for key, (_, ceiling) in room.items() if shares[key] < ceiling}
    while left > 1e-9 * capacity and open_:
        total = sum(room[key][0] for key in open_)
        full = {key for key in open_ if shares[key] + left * room[key][0] / total >= room[key][1]}
        if not full:
            for key in open_:
                shares[key] += left * room[key][0] / total
            return
        for key in full:
            left -= room[key][1] - shares[key]
            shares[key] = room[key][1]
        open_ -= full


@dataclass(slots=True)
class _Seen:
    """What is known of a worker from the last looks."""

    busy_seconds: float = 0.0
    throttled_seconds: float = 0.0
    read_at: float = 0.0
    wanted_at: float = float("-inf")
    promised: Share | None = None
    granted: float = 0.0


@dataclass(frozen=True, slots=True)
class _Calm:
    """A node where nobody's wishes make a difference, until something of this changes.

    Attributes:
        same: The list of promises itself, and ``promised`` what was in it.
    """

    same: Sequence[WorkerSpec]
    promised: list[WorkerSpec]
    rules: Rules
    capacities: Mapping[str, int]
    workers: frozenset[str]

    def holds(
        self, promised: Sequence[WorkerSpec], rules: Rules, capacities: Mapping[str, int]
    ) -> bool:
        """Whether all is as it was; cheap where the same objects come again."""
        return (
            (rules is self.rules or rules == self.rules)
            and (capacities is self.capacities or capacities == self.capacities)
            and (promised is self.same or [*promised] == self.promised)
        )


class Arbiter:
    """Keeps the limits of running workers in step with who wants what.

    Args:
        sessions: By node.
        promised: Workers of a node as their pods ask for them.
        capacities: Compute of the devices of a node, GFLOP/s by uuid.
        rules: How a node's pool shares.
        usage: What a node's workers used, read within the last `TICK_SECONDS`; asks the session
            by default.

    Concurrency: one thread calls `run_once`.
    """

    def __init__(
        self,
        sessions: Mapping[str, NodeBackend],
        *,
        promised: Callable[[str], Sequence[WorkerSpec]],
        capacities: Callable[[str], Mapping[str, int]],
        rules: Callable[[str], Rules],
        clock: Clock,
        usage: Callable[[str], Sequence[WorkerUsage]] | None = None,
    ) -> None:
        self._sessions = sessions
        self._usage = usage or (lambda node: sessions[node].usage())
        self._promised = promised
        self._capacities = capacities
        self._rules = rules
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._calm: dict[str, _Calm] = {}
        self._looked_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            self.run_once()
            self._clock.wait(stop, TICK_SECONDS)

    def run_due(self) -> None:
        """Look, if the last look is long enough ago; for who calls this more often."""
        now = self._clock.monotonic()
        # Half a tick of whoever calls may be missing.
        if now - self._looked_at >= 0.75 * TICK_SECONDS:
            self._looked_at = now
            self.run_once()

    def run_once(self) -> int:
        """Look at every node once; returns how many limits were changed."""
        changed = 0
        known: set[str] = set()
        for node, session in self._sessions.items():
            promised, rules = self._promised(node), self._rules(node)
            capacities = self._capacities(node)
            calm = self._calm.get(node)
            if calm is not None and calm.holds(promised, rules, capacities):
                if promised is not calm.same:
                    # Equal, but other objects, which take longer to compare.
                    workers = calm.workers
                    self._calm[node] = _Calm(promised, [*promised], rules, capacities, workers)
                known |= calm.workers
                continue
            # Workers on several devices have one share for all of them, which is left as it is; a
            # partition is what it is.
            specs = {s.worker: s for s in promised if len(s.devices) == 1 and not s.partitions}
            known |= specs.keys()
            contested = self._contested(specs, rules, capacities)
            if not contested:
                self._calm[node] = _Calm(promised, [*promised], rules, capacities, frozenset(specs))
                continue
            self._calm.pop(node, None)
            try:
                wanted = {spec.worker for here in contested.values() for spec in here}
                for use in self._usage(node):
                    if use.worker in wanted:
                        self._note(use)
                changed += self._arbitrate(session, contested, rules, capacities)
            except BackendError as error:
                log.warning("not arbitrated", extra={"node": node, "error": str(error)})
        for worker in self._seen.keys() - known:
            del self._seen[worker]
        return changed

    def _note(self, use: WorkerUsage) -> None:
        now = self._clock.monotonic()
        seen = self._seen.get(use.worker)
        if seen is None:
            seen = self._seen[use.worker] = _Seen(wanted_at=now)
        elif now > seen.read_at:
            busy = (use.busy_seconds_total - seen.busy_seconds) / (now - seen.read_at)
            if busy > IDLE_RATIO or use.throttled_seconds_total > seen.throttled_seconds:
                seen.wanted_at = now
        seen.busy_seconds = use.busy_seconds_total
        seen.throttled_seconds = use.throttled_seconds_total
        seen.read_at = now

    def _contested(
        self, specs: Mapping[str, WorkerSpec], rules: Rules, capacities: Mapping[str, int]
    ) -> dict[str, list[WorkerSpec]]:
        """The workers by device, of those devices where who wants what makes a difference.

        Where all limits fit together and nothing is lent, everyone has his limit whatever he does.
        """
        by_device: dict[str, list[WorkerSpec]] = {}
        for spec in specs.values():
            by_device.setdefault(spec.devices[0], []).append(spec)
        return {
            uuid: here
            for uuid, here in by_device.items()
            if uuid in capacities
            and (
                rules.lends
                or sum(spec.share.limit_gflops for spec in here) > capacities[uuid]
                or any(map(self._deviates, here))
            )
        }

    def _deviates(self, spec: WorkerSpec) -> bool:
        """Whether a worker has been given something else than its limit."""
        seen = self._seen.get(spec.worker)
        return (
            seen is not None
            and seen.promised == spec.share
            and seen.granted != spec.share.limit_gflops
        )

    def _arbitrate(
        self,
        session: NodeBackend,
        contested: Mapping[str, Sequence[WorkerSpec]],
        rules: Rules,
        capacities: Mapping[str, int],
    ) -> int:
        now, changed = self._clock.monotonic(), 0
        for uuid, here in contested.items():
            tenants = [self._tenant(spec, rules, now) for spec in here]
            granted = divide(float(capacities[uuid]), tenants, lends=rules.lends)
            changed += sum(self._set(session, spec, granted[spec.worker]) for spec in here)
        return changed

    def _tenant(self, spec: WorkerSpec, rules: Rules, now: float) -> Tenant:
        seen = self._seen.get(spec.worker)
        return Tenant(
            key=spec.worker,
            request=float(spec.share.request_gflops),
            limit=float(spec.share.limit_gflops),
            weight=rules.weights.get(spec.qos, WEIGHTS["medium"]),
            active=seen is not None and now - seen.wanted_at < IDLE_SECONDS,
        )

    def _set(self, session: NodeBackend, spec: WorkerSpec, gflops: float) -> bool:
        seen = self._seen.get(spec.worker)
        if seen is None:
            return False  # not running yet
        if seen.promised != spec.share:
            # A new promise was put in force as it is.
            seen.promised, seen.granted = spec.share, float(spec.share.limit_gflops)
        before = seen.granted
        wanted = max(1, round(gflops))
        if abs(wanted - before) <= 0.002 * before:
            return False
        session.set_limits(spec.worker, spec.share.limited_to(wanted))
        seen.granted = float(wanted)
        return True
