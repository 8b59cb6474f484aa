"""The smallest changes that make a request fit: one kind alone, else two together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, islice

import msgspec
import numpy as np

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.device import RUNNING
from tensorfusion.model.engine import Engine
from tensorfusion.model.filters import node_key, profile_key
from tensorfusion.model.neighbours import Neighbours
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.failures import BIT, Emptied, Failures
from tensorfusion.model.relax.holdings import Holdings, workers_of
from tensorfusion.model.relax.request import (
    AMOUNTS,
    NODES_TRIED,
    RequestChanges,
    loosest,
    restored,
)
from tensorfusion.model.relax.step import KINDS, Answer, Futile, Step
from tensorfusion.model.relax.world import WorldChanges, evict_step, quota_step
from tensorfusion.model.surroundings import NEVER, Counted, Surroundings

PAIRS: int = 3
"""Pairs that are given; more would not be read."""

EVICTIONS_TRIED: int = 300
"""Sets of victims that are tried out where more than amounts matter, for each change."""
MOST_EVICTED: int = 16
"""Workers of the largest set that is tried; nobody would evict more for one pod."""
TRIED_BY_CARDS: int = 1_000_000
"""Such tries for a whole answer, times the cards of the fleet: a try looks at all nodes."""

_replace = msgspec.structs.replace
_IN_SERVICE = BIT["cordoned"] | BIT["phase"] | BIT["owner"]
_ABOUT_OTHERS = BIT["neighbours"] | BIT["claims"]
_EMPTYING = ("evict", "add-node")
_IN_PLACE = ("worker-cap", "cordoned", "phase", "owner")
_WORLD = (*_IN_PLACE, *_EMPTYING)
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
        self._arounds: dict[object, Surroundings] = {}
        self._nobody = nobody
        self._smallest: dict[object, int] = {}
        self._failures = self._refit(self._shape)
        self._violations = self._violated(self._shape)
        self._around = self._failures.around
        topology = demand.shape.topology
        self._connected = topology is not None and topology.required
        self._tries = self._connected or self._around is not None
        """Whether victims are found by trying: more than amounts matter."""
        self._tries_left = max(1, TRIED_BY_CARDS // max(1, engine.fleet.statistics.devices))
        self._counted: dict[Neighbours | None, Counted] = {}
        self._gave_up: set[str] = set()
        """Kinds of which there was more than was tried."""

    def answer(self) -> Answer:
        if not self._violations and self._failures.fits():
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
        pairs = () if alone else tuple(self._some_pairs())
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
        matter, victims are found by trying.
        """
        if kind == "evict" and self._tries:
            return self._evict_tried(shape)
        if kind in _IN_PLACE and self._around is not None and self._around.spreads:
            return self._in_place_tried(kind, shape)
        step = self._sought(kind, shape)
        # Amounts are sought card by card: those that have enough must be connected as well.
        if step is None or step.shape is None or not self._connected:
            return step
        return step if self._refit(step.shape).fits() else None

    def _in_place_tried(self, kind: str, shape: Shape) -> Step | None:
        """Change a node or its cards, and see whether a spread comes out: it compares nodes."""
        if self._violated(shape):
            return None
        failures = self._refit(shape)
        changes = WorldChanges(failures, self._holdings, (), self._passing(shape))
        concerned = np.asarray((failures.bits & BIT[kind]).any(axis=1))
        slots = [slot for slot in failures.nodes(BIT[kind] | _ABOUT_OTHERS) if concerned[slot]]
        found = [changes.kinds[kind](_ABOUT_OTHERS, slot) for slot in slots[:NODES_TRIED]]
        for step in sorted((step for step in found if step is not None), key=self._size):
            with self._applied(step):
                if self._refit(shape).fits():
                    return step
        if len(slots) > NODES_TRIED:
            self._gave_up.add(kind)
        return None

    def _size(self, step: Step) -> int:
        """Return how large a change of a node is, compared with others of its kind."""
        if not step.max_workers:
            return len(step.devices)
        slot = self._engine.fleet.slot_of(step.node)
        node = self._engine.fleet.nodes[slot] if slot is not None else None
        return step.max_workers - (node.max_workers if node is not None else 0)

    def _evict_tried(self, shape: Shape, *, within_quota: bool = False) -> Step | None:
        """Try sets of workers, small ones first, on the ledger itself.

        Those of the node that gets room, and those elsewhere that rules about other pods or the
        quota count.

        Args:
            shape: The request.
            within_quota: The quota allows it, whatever it says now.
        """
        demand = _replace(self._demand, shape=shape)
        fleet, around = self._engine.fleet, self._refit(shape).around
        slots = self._refit(shape, emptied=True).nodes(_ABOUT_OTHERS)
        least = around.fewest().tolist() if around is not None else [0] * fleet.size
        likely = [slot for slot in slots if least[slot] <= MOST_EVICTED]
        if any(MOST_EVICTED < least[slot] < NEVER for slot in slots):
            self._gave_up.add("evict")
        slots = sorted(likely, key=least.__getitem__)
        elsewhere = self._counted_elsewhere(shape) if slots and self._tries_left else {}
        most = max((len(workers_of(fleet.blocks[slot])) for slot in slots), default=0)
        tries = EVICTIONS_TRIED
        if most + len(elsewhere) > MOST_EVICTED:
            self._gave_up.add("evict")
        for size in range(1, min(most + len(elsewhere), MOST_EVICTED) + 1):
            for slot in slots:
                if least[slot] > size:
                    break
                node = fleet.nodes[slot]
                if node is None:
                    continue
                # More than can be tried need not be named.
                leaving = islice(self._leaving(slot, elsewhere), tries + size)
                for keys in combinations(leaving, size):
                    if not tries or not self._tries_left:
                        self._gave_up.add("evict")
                        return None
                    tries -= 1
                    self._tries_left -= 1
                    if self._fits_without(keys, demand, node.name, within_quota):
                        return evict_step(self._engine.ledger, keys, node.name, exact=True)
        return None

    def _leaving(self, slot: int, elsewhere: Mapping[str, Counted | None]) -> Iterator[str]:
        """Yield the workers whose leaving may help on a node, its own first."""
        fleet, allocations = self._engine.fleet, self._engine.ledger.allocations
        own = workers_of(fleet.blocks[slot])
        yield from own
        known = set(own)
        for key, counted in elsewhere.items():
            other = fleet.slot_of(allocations[key].node)
            if key in known or (other is None and counted is not None):
                continue
            if counted is None or other is None or counted.matter(slot, other):
                yield key

    def _fits_without(
        self, keys: Sequence[str], demand: Demand, node: str, within_quota: bool
    ) -> bool:
        engine, ledger = self._engine, self._engine.ledger
        mark = ledger.checkpoint()
        try:
            for holder in [h for key in keys for h in ledger.allocations[key].holders]:
                ledger.release(holder)
            allowed = within_quota or engine.precheck(demand) is None
            return allowed and engine.find_on(demand, node) is not None
        finally:
            ledger.rollback(mark)

    def _counted_elsewhere(self, shape: Shape) -> dict[str, Counted | None]:
        """Name the workers, wherever they are, that rules or a quota hold against a request.

        Returns:
            By key, where a worker matters; None where everywhere, as with a quota.
        """
        around = self._around
        found: dict[str, Counted | None] = {}
        if around is not None:
            known = self._counted.get(shape.neighbours)
            if known is None:
                known = self._counted[shape.neighbours] = around.counted()
            found = dict.fromkeys(known.keys, known)
        if self._violated(shape):
            allocations = self._engine.ledger.allocations
            own = [k for k, a in allocations.items() if a.namespace == self._demand.namespace]
            found |= dict.fromkeys(own)
        return {key: found[key] for key in sorted(found)}

    def _sought(self, kind: str, shape: Shape) -> Step | None:
        failures = self._refit(shape)
        request = self._request(failures)
        if kind in request.kinds:
            return next(request.each(kind, 0), None) if request.applies(kind) else None
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
        if kind in self._gave_up:
            if kind == "evict":
                return "none of the smallest sets of workers that were tried helps"
            return f"none of the {NODES_TRIED} nodes that were tried helps"
        if kind == "evict" and self._violations:
            return f"even with nobody there: {self._violations[0].message}"
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
        # Another mode than partitions makes amounts matter that did not before.
        amounts = AMOUNTS if self._shape.wish is not None else ()
        kinds = [kind for kind in KINDS if self._states(kind) or kind in amounts]
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
        spread = _ABOUT_OTHERS if self._around is not None and self._around.spreads else 0
        if ruled and not self._failures.fits(BIT[first] | BIT[second] | spread):
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
            if kind == "evict" and self._tries:
                return None if violations else self._evict_tried(shape, within_quota=True)
            changes = WorldChanges(self._refit(shape), self._holdings, violations)
            return changes.kinds[kind](0, None)
        return self._solve(kind, shape)

    def _first_steps(self, first: str, second: str) -> Iterator[Step]:
        """Yield smallest changes of one kind that suffice once the other kind is lifted."""
        if first == "quota":
            violations = self._violations
            if second == "evict":  # what leaves makes room, up to the whole quota
                violations = [_replace(v, used=0) for v in violations if v.requested > v.limit]
            elif second in _WORLD:
                violations = self._violated_with(second)
            if violations:
                yield quota_step(violations)
            return
        probe, lifted = self._probe(second, self._shape)
        changes = self._request(probe, lifting=second)
        if second in _IN_PLACE and self._around is not None and self._around.spreads:
            lifted |= _ABOUT_OTHERS  # which nodes a spread compares is known after the change
        steps = changes.isolations() if first == "isolation" else changes.each(first, lifted)
        for step in steps:
            if step.shape is None:
                continue
            yield _replace(step, shape=restored(step.shape, self._shape, second))

    def _violated_with(self, kind: str) -> list[Violation]:
        """Return what quotas object to once other cards come in: a whole card is counted whole."""
        step = WorldChanges(self._failures, self._holdings).kinds[kind](0, None)
        if step is None:
            return []
        if step.addition is not None:
            cards = list(step.addition.devices)
        else:
            slot = self._engine.fleet.slot_of(step.node)
            block = self._engine.fleet.blocks[slot] if slot is not None else []
            cards = [usage.device for usage in block if usage.device is not None]
        sizes = [card.capacity_gflops for card in cards]
        present = self._failures.smallest_card()
        smallest = min([*sizes, present] if present else sizes, default=0)
        return self._engine.ledger.quotas.precheck(self._demand, smallest)

    def _pair_of_world(self, first: str, second: str) -> tuple[Step, Step] | None:
        """Change two things about one node."""
        tried = second == "evict" and self._tries
        if first in _EMPTYING or (self._violations and not tried):
            return None
        probe, lifted = self._probe(second, self._shape)
        passing = self._passing(self._shape)
        if tried:  # whether the quota allows it is seen once somebody has left
            passing = _always
        step = WorldChanges(probe, self._holdings, (), passing).kinds[first](lifted, None)
        slot = self._engine.fleet.slot_of(step.node) if step is not None else None
        if step is None or slot is None:
            return None
        if tried:
            with self._applied(step):
                then = self._evict_tried(self._shape)
        else:
            changes = WorldChanges(self._failures, self._holdings, (), passing)
            then = changes.kinds[second](BIT[first], slot)
        return (step, then) if then is not None else None

    @contextmanager
    def _applied(self, step: Step) -> Iterator[None]:
        """Change a node or its cards as a step says, for as long as something is tried."""
        engine = self._engine
        slot = engine.fleet.slot_of(step.node)
        node = engine.fleet.nodes[slot] if slot is not None else None
        cards = [engine.ledger.devices[uuid].device for uuid in step.devices]
        try:
            if node is not None and step.kind == "cordoned":
                engine.upsert_node(_replace(node, schedulable=True))
            elif node is not None and step.kind == "worker-cap":
                engine.upsert_node(_replace(node, max_workers=step.max_workers))
            for card in cards:
                if card is not None:
                    engine.upsert_device(_replace(card, phase=RUNNING, used_by=""))
            self._refits.clear()
            self._arounds.clear()
            yield
        finally:
            for card in cards:
                if card is not None:
                    engine.upsert_device(card)
            if node is not None:
                engine.upsert_node(node)
            self._refits.clear()
            self._arounds.clear()

    def _probe(self, kind: str, shape: Shape) -> tuple[Failures, int]:
        """Return failures, and the rules to lift, as if a kind were relaxed all the way."""
        if kind == "evict":
            return self._refit(shape, emptied=True), _ABOUT_OTHERS
        if kind == "add-node":
            return self._refit(shape, emptied=True), _IN_SERVICE | _ABOUT_OTHERS
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
        around = self._surroundings(shape)
        failures = Failures(engine.fleet, shape, engine.masks, nobody, around)
        self._refits[shape, emptied] = failures
        return failures

    def _surroundings(self, shape: Shape) -> Surroundings | None:
        """Return what other pods mean for a changed request; only spreads look at what suits it."""
        kind: object = shape.neighbours
        known = self._arounds.get(kind)
        if known is not None and known.spreads:
            kind = (kind, profile_key(shape), node_key(shape), shape.indices, shape.exclusive)
            known = self._arounds.get(kind)
        if known is None:
            known = self._engine.surroundings(_replace(self._demand, shape=shape))
            if known is not None:
                self._arounds[shape.neighbours] = self._arounds[kind] = known
        return known

    def _violated(self, shape: Shape) -> list[Violation]:
        quotas = self._engine.ledger.quotas
        if not quotas.governs(self._demand.namespace):
            return []
        kind = (profile_key(shape), node_key(shape), shape.indices)
        smallest = self._smallest.get(kind)
        if smallest is None:
            smallest = self._smallest[kind] = self._refit(shape).smallest_card()
        return quotas.precheck(_replace(self._demand, shape=shape), smallest)


def _always(_smallest: int) -> bool:
    return True


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
