"""The smallest changes that make a request fit: one kind alone, else two together."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import msgspec

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.engine import Engine
from tensorfusion.model.filters import node_key, profile_key
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.failures import BIT, Emptied, Failures
from tensorfusion.model.relax.holdings import Holdings, workers_of
from tensorfusion.model.relax.request import RequestChanges, loosest, restored
from tensorfusion.model.relax.step import KINDS, Answer, Futile, Step
from tensorfusion.model.relax.world import WorldChanges, evict_step, quota_step

PAIRS: int = 3
"""Pairs that are given; more would not be read."""

EVICTIONS_TRIED: int = 300
"""Sets of victims that are tried out where more than amounts matter; some 100 microseconds each."""

_replace = msgspec.structs.replace
_IN_SERVICE = BIT["cordoned"] | BIT["phase"] | BIT["owner"]
_EMPTYING = ("evict", "add-node")
_WORLD = ("worker-cap", "cordoned", "phase", "owner", *_EMPTYING)
_UNBOUNDED = ("isolation", "partition", "dedicated", "gpu-count")
"""Request kinds that no single rule stands for; of a pair they are changed first."""
_FIRST = (*_UNBOUNDED, "compute", "vram")
"""Kinds that of a pair are changed first: a limit cannot go below its request."""


class Relaxer:
    """Answers for one engine; keeps what holds over answers.

    Concurrency: as the engine's.
    """

    def __init__(self, engine: Engine) -> None:
        """Answer for an engine; fleet, ledger and quotas are left as they are."""
        self._engine = engine
        self._holdings = Holdings(engine.fleet, engine.ledger)
        self._emptied: tuple[int, Emptied] | None = None

    def answer(self, demand: Demand) -> Answer:
        """Find what would make a request fit.

        Args:
            demand: A request with GPUs that does not fit. One that fits needs no answer and gets
                an empty one, and so does one without GPUs.
        """
        if not demand.shape.gpu_count:
            return Answer()
        self._holdings.catch_up()
        return _Relaxation(self._engine, self._holdings, self._nobody, demand).answer()

    def _nobody(self) -> Emptied:
        """Return the fleet without workers; it changes with the hardware only."""
        fleet = self._engine.fleet
        version = fleet.static_journal.version
        if self._emptied is None or self._emptied[0] != version:
            self._emptied = (version, Emptied(fleet))
        return self._emptied[1]


def relax(engine: Engine, demand: Demand) -> Answer:
    """Find what would make one request fit; see `Relaxer.answer`."""
    return Relaxer(engine).answer(demand)


def failures_of(engine: Engine, shape: Shape) -> Failures:
    """Return which rules each card fails for a request."""
    return Failures(engine.fleet, shape, engine.masks)


class _Relaxation:
    """One question to the fleet; keeps what is looked at more than once."""

    def __init__(
        self,
        engine: Engine,
        holdings: Holdings,
        nobody: Callable[[], Emptied],
        demand: Demand,
    ) -> None:
        self._engine = engine
        self._holdings = holdings
        self._demand = demand
        self._shape = demand.shape
        self._refits: dict[tuple[Shape, bool], Failures] = {}
        self._nobody = nobody
        self._smallest: dict[object, int] = {}
        self._failures = self._refit(self._shape)
        self._violations = self._violated(self._shape)
        self._around = engine.surroundings(demand)

    def answer(self) -> Answer:
        fits = not self._violations and self._failures.fits()
        if fits and (self._around is None or self._engine.find(self._demand) is not None):
            return Answer()
        alone: list[Step] = []
        futile: list[Futile] = []
        for kind in KINDS:
            if not self._states(kind):
                continue
            step = self._solve(kind, self._shape)
            if step is not None:
                alone.append(step)
            else:
                futile.append(Futile(kind, self._proof(kind)))
        pairs = () if alone or self._around is not None else tuple(self._some_pairs())
        return Answer(alone=tuple(alone), pairs=pairs, futile=tuple(futile))

    def _states(self, kind: str) -> bool:
        """Tell whether there is anything of the kind to change."""
        if kind == "quota":
            return bool(self._violations)
        if kind == "neighbours":
            return self._around is not None and self._shape.neighbours is not None
        if kind in ("evict", "add-node"):
            return True
        changes = self._request(self._failures)
        if kind in changes.kinds:
            # Taints are named by the request only as far as it tolerates them.
            return self._occurs(kind) if kind == "taint" else changes.applies(kind)
        return self._occurs(kind)

    def _occurs(self, kind: str) -> bool:
        return bool((self._failures.bits & BIT[kind]).any())

    def _solve(self, kind: str, shape: Shape) -> Step | None:
        """Return the smallest change of one kind that suffices for a request.

        Amounts and victims are sought card by card. Where cards must be connected, or other pods
        matter, what is found is tried out, and dropped when it does not suffice after all.
        """
        connected = shape.topology is not None and shape.topology.required
        special = connected or self._around is not None
        if special and kind == "evict":
            return None if self._violated(shape) else self._evict_tried(shape)
        if kind == "neighbours":
            step: Step | None = _without_neighbours(shape)
        else:
            step = self._sought(kind, shape)
        if step is None or not special:
            return step
        return step if self._suffices(step, shape) else None

    def _suffices(self, step: Step, shape: Shape) -> bool:
        if self._around is not None:
            changed = _replace(self._demand, shape=step.shape or shape)
            return step.kind == "quota" or self._engine.find(changed) is not None
        if step.shape is not None:
            return self._refit(step.shape).fits()
        if step.addition is not None:
            return self._refit(shape, emptied=True).fits(_IN_SERVICE)
        return True

    def _evict_tried(self, shape: Shape) -> Step | None:
        """Try sets of the workers of each node, small ones first, on the ledger itself."""
        engine = self._engine
        ledger, demand = engine.ledger, _replace(self._demand, shape=shape)
        places = [
            (node.name, workers_of(engine.fleet.blocks[slot]))
            for slot in self._refit(shape, emptied=True).nodes(0)
            if (node := engine.fleet.nodes[slot]) is not None
        ]
        tries = EVICTIONS_TRIED
        for size in range(1, max((len(workers) for _, workers in places), default=0) + 1):
            for name, workers in places:
                for keys in combinations(workers, size):
                    tries -= 1
                    mark = ledger.checkpoint()
                    for holder in [h for key in keys for h in ledger.allocations[key].holders]:
                        ledger.release(holder)
                    found = engine.find_on(demand, name)
                    ledger.rollback(mark)
                    if found is not None:
                        return evict_step(ledger, keys, name, exact=True)
                    if not tries:
                        return None
        return None

    def _sought(self, kind: str, shape: Shape) -> Step | None:
        failures = self._refit(shape)
        request = self._request(failures)
        if kind in request.kinds:
            return request.kinds[kind](0) if request.applies(kind) else None
        violations = self._violated(shape)
        if kind == "quota":
            return quota_step(violations) if violations and failures.fits() else None
        if violations and kind != "evict":
            return None
        changes = WorldChanges(failures, self._holdings, violations, self._passing(shape))
        return changes.kinds[kind](0, None)

    def _passing(self, shape: Shape) -> Callable[[int], bool]:
        """Tell by the compute of its smallest card whether the quotas let a request pass."""
        quotas = self._engine.ledger.quotas
        if not quotas.governs(self._demand.namespace):
            return lambda _smallest: True
        demand = _replace(self._demand, shape=shape)
        return lambda smallest: not quotas.precheck(demand, smallest)

    def _proof(self, kind: str) -> str:
        """Say what stands in the way when the kind is relaxed all the way."""
        if kind == "evict" and self._violations:
            return f"even with nobody there: {self._violations[0].message}"
        if self._around is not None and not self._violations:
            return "the rules about other pods leave no place"
        if self._violations and kind in _WORLD:
            return "the quota refuses it before any GPU is looked at"
        if self._violations and kind == "quota":
            return f"no GPU fits either: {self._failures.rest(0)}"
        probe, lifted = self._probe(kind, self._shape)
        if self._violations and probe.fits(lifted):
            return self._violations[0].message
        return f"without it there still are: {probe.rest(lifted)}"

    def _some_pairs(self) -> Iterator[tuple[Step, Step]]:
        """Yield pairs, those of mild kinds first."""
        kinds = [kind for kind in KINDS if self._states(kind)]
        places = {kind: place for place, kind in enumerate(kinds)}
        order = sorted(
            ((a, b) for a in kinds for b in kinds if places[a] < places[b]),
            key=lambda pair: (max(places[pair[0]], places[pair[1]]), places[pair[0]]),
        )
        found = 0
        for a, b in order:
            pair = self._pair(a, b)
            if pair is not None:
                yield pair
                found += 1
                if found == PAIRS:
                    return

    def _pair(self, a: str, b: str) -> tuple[Step, Step] | None:
        first, second = _in_order(a, b)
        ruled = first in BIT and second in BIT and first not in _UNBOUNDED
        if ruled and not self._failures.fits(BIT[first] | BIT[second]):
            return None
        if first in _WORLD:
            return self._pair_of_world(first, second)
        for step in self._first_steps(first, second):
            then = self._then(second, step)
            if then is not None:
                return step, then
        return None

    def _then(self, kind: str, step: Step) -> Step | None:
        """Solve the second kind of a pair after the first step."""
        shape = step.shape or self._shape
        if step.kind == "quota":
            violations = _remaining(self._violations, step)
            changes = WorldChanges(self._refit(shape), self._holdings, violations)
            return changes.kinds[kind](0, None)
        return self._solve(kind, shape)

    def _first_steps(self, first: str, second: str) -> Iterator[Step]:
        """Yield smallest changes of one kind that suffice once the other kind is lifted."""
        if first == "quota":
            violations = self._violations
            if second == "evict":  # what leaves makes room, up to the whole quota
                violations = [_replace(v, used=0) for v in violations if v.requested > v.limit]
            if violations:
                yield quota_step(violations)
            return
        probe, lifted = self._probe(second, self._shape)
        changes = self._request(probe, lifting=second)
        steps = changes.isolations() if first == "isolation" else [changes.kinds[first](lifted)]
        for step in steps:
            if step is None or step.shape is None:
                continue
            yield _replace(step, shape=restored(step.shape, self._shape, second))

    def _pair_of_world(self, first: str, second: str) -> tuple[Step, Step] | None:
        """Change two things about one node."""
        if self._violations or first in _EMPTYING:
            return None
        probe, lifted = self._probe(second, self._shape)
        passing = self._passing(self._shape)
        step = WorldChanges(probe, self._holdings, (), passing).kinds[first](lifted, None)
        slot = self._engine.fleet.slot_of(step.node) if step is not None else None
        if step is None or slot is None:
            return None
        changes = WorldChanges(self._failures, self._holdings, (), passing)
        then = changes.kinds[second](BIT[first], slot)
        return (step, then) if then is not None else None

    def _probe(self, kind: str, shape: Shape) -> tuple[Failures, int]:
        """Return failures, and the rules to lift, as if a kind were relaxed all the way."""
        if kind == "evict":
            return self._refit(shape, emptied=True), 0
        if kind == "add-node":
            return self._refit(shape, emptied=True), _IN_SERVICE
        if kind in _WORLD:
            return self._refit(shape), BIT[kind]
        return self._refit(loosest(shape, kind)), 0

    def _request(self, failures: Failures, lifting: str = "") -> RequestChanges:
        """Look for changes of the request, while another kind is relaxed all the way."""

        def allows(shape: Shape) -> bool:
            if lifting == "quota":
                return True
            violations = self._violated(shape)
            return (lifting == "evict" and all(v.resolvable for v in violations)) or not violations

        emptied = lifting in _EMPTYING
        return RequestChanges(failures, allows, lambda shape: self._refit(shape, emptied=emptied))

    def _refit(self, shape: Shape, *, emptied: bool = False) -> Failures:
        known = self._refits.get((shape, emptied))
        if known is not None:
            return known
        engine = self._engine
        nobody = self._nobody() if emptied else None
        failures = Failures(engine.fleet, shape, engine.masks, nobody)
        self._refits[shape, emptied] = failures
        return failures

    def _violated(self, shape: Shape) -> list[Violation]:
        quotas = self._engine.ledger.quotas
        if not quotas.governs(self._demand.namespace):
            return []
        kind = (profile_key(shape), node_key(shape), shape.indices)
        smallest = self._smallest.get(kind)
        if smallest is None:
            smallest = self._smallest[kind] = self._refit(shape).smallest_card()
        return quotas.precheck(_replace(self._demand, shape=shape), smallest)


def _without_neighbours(shape: Shape) -> Step:
    text = "drop its affinity to other pods and its spread constraints"
    return Step(kind="neighbours", text=text, shape=_replace(shape, neighbours=None))


def _in_order(a: str, b: str) -> tuple[str, str]:
    """Put the kind first that has to be changed first."""
    others = len(_FIRST)
    ranks = {kind: rank for rank, kind in enumerate(_FIRST)}
    ranks |= {kind: others + 1 + rank for rank, kind in enumerate(("quota", *_WORLD))}
    first, second = sorted((a, b), key=lambda kind: ranks.get(kind, others))
    return first, second


def _remaining(violations: Sequence[Violation], step: Step) -> list[Violation]:
    """Return what still violates quotas once a step has raised them."""
    needed = {(item.quota, item.resource): item.needed for item in step.raises}
    raised = [
        _replace(v, limit=max(v.limit, needed.get((v.quota, v.resource), 0))) for v in violations
    ]
    return [v for v in raised if v.used + v.requested > v.limit]
