"""One question to the fleet: what is looked at more than once in answering it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.device import RUNNING
from tensorfusion.model.engine import Engine
from tensorfusion.model.filters import node_key, profile_key
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.bits import BIT, Parts
from tensorfusion.model.relax.emptied import Emptied
from tensorfusion.model.relax.failures import Failures
from tensorfusion.model.relax.holdings import Holdings
from tensorfusion.model.relax.look import Look
from tensorfusion.model.relax.loosest import loosest
from tensorfusion.model.relax.request import REQUEST_KINDS, applies
from tensorfusion.model.relax.residents import Residents
from tensorfusion.model.relax.step import Step
from tensorfusion.model.relax.world import WorldChanges
from tensorfusion.model.surroundings import Surroundings

IN_SERVICE: Final = BIT["cordoned"] | BIT["phase"] | BIT["owner"]
"""Rules that a new node satisfies."""
ABOUT_OTHERS: Final = BIT["neighbours"] | BIT["claims"]
"""Rules about other pods."""
EMPTYING: Final = ("evict", "add-node")
"""Kinds of change that make room by having fewer workers in it."""
IN_PLACE: Final = ("worker-cap", "cordoned", "phase", "owner")
"""Kinds of change of a node that is there."""
WORLD: Final = (*IN_PLACE, *EMPTYING)
"""Kinds of change of everything but the request and the quotas."""

_replace = msgspec.structs.replace


class Question:
    """A request that does not fit, and the fleet as it is or as a change would make it.

    Attributes:
        engine: Left as it is, but for the time of a trial.
        holdings: Who holds what.
        demand: The request.
        shape: Of the request.
        failures: Of the request.
        violations: Quotas that refuse it.
        around: What other pods mean for it; None for nothing.
        spreads: Whether a rule compares nodes with each other.
        connected: Whether its cards must be connected.
        gave_up: Kinds of which there was more than was tried.
    """

    def __init__(
        self,
        engine: Engine,
        holdings: Holdings,
        emptied: Emptied,
        residents: Residents,
        demand: Demand,
    ) -> None:
        """Look at the request as it is.

        Args:
            engine: Decides, and holds fleet and accounts.
            holdings: Caught up.
            emptied: The fleet without workers.
            residents: Who is there.
            demand: The request.
        """
        self.engine = engine
        self.holdings = holdings
        self.demand = demand
        self.shape = demand.shape
        self.gave_up: set[str] = set()
        self._emptied = emptied
        self._residents = residents
        self._parts: dict[bool, Parts] = {}
        self._refits: dict[tuple[Shape, bool], Failures] = {}
        self._arounds: dict[object, Surroundings] = {}
        self._smallest: dict[object, int] = {}
        self._stated: dict[str, bool] = {}
        self.failures = self.refit(self.shape)
        self.violations = self.violated(self.shape)
        self.around = self.failures.around
        self.spreads = self.around is not None and self.around.spreads
        topology = demand.shape.topology
        self.connected = topology is not None and topology.required

    def states(self, kind: str) -> bool:
        """Tell whether there is anything of a kind to change."""
        found = self._stated.get(kind)
        if found is None:
            found = self._stated[kind] = self._states(kind)
        return found

    def _states(self, kind: str) -> bool:
        if kind == "quota":
            return bool(self.violations)
        if kind == "neighbours":
            return self.around is not None and self.shape.neighbours is not None
        if kind in EMPTYING:
            return True
        # Taints are named by the request only as far as it tolerates them.
        if kind in REQUEST_KINDS and kind != "taint":
            return applies(self.shape, kind)
        return self.failures.occurs(kind)

    @property
    def residents(self) -> Residents:
        """Who is there, caught up."""
        self._residents.catch_up()
        return self._residents

    def refit(self, shape: Shape, *, emptied: bool = False) -> Failures:
        """Return which rules each card fails for a changed request.

        Args:
            shape: The changed request.
            emptied: As if every worker had left.
        """
        known = self._refits.get((shape, emptied))
        if known is None:
            around = self._surroundings(shape)
            known = Failures(self._parts_of(emptied=emptied), shape, around)
            self._refits[shape, emptied] = known
        return known

    def probe(self, kind: str, shape: Shape) -> tuple[Failures, int]:
        """Return failures, and the rules to lift, as if a kind were relaxed all the way."""
        if kind == "evict":
            return self.refit(shape, emptied=True), ABOUT_OTHERS
        if kind == "add-node":
            return self.refit(shape, emptied=True), IN_SERVICE | ABOUT_OTHERS
        if kind in WORLD:
            return self.refit(shape), BIT[kind]
        return self.refit(loosest(shape, kind)), 0

    def look(self, failures: Failures, lifting: str = "") -> Look:
        """Look for changes of the request, while another kind is relaxed all the way."""

        def allows(shape: Shape) -> bool:
            if lifting == "quota":
                return True
            violations = self.violated(shape)
            return (lifting == "evict" and all(v.resolvable for v in violations)) or not violations

        emptied = lifting in EMPTYING
        return Look(failures, allows, lambda shape: self.refit(shape, emptied=emptied))

    def world(self, shape: Shape) -> WorldChanges:
        """Look for changes of everything else, while the quotas let a request pass."""
        return WorldChanges(self.refit(shape), self.holdings, (), self.passing(shape))

    def violated(self, shape: Shape) -> list[Violation]:
        """Return the quotas that refuse a changed request."""
        quotas = self.engine.ledger.quotas
        if not quotas.governs(self.demand.namespace):
            return []
        kind = (profile_key(shape), node_key(shape), shape.indices)
        smallest = self._smallest.get(kind)
        if smallest is None:
            smallest = self._smallest[kind] = self.refit(shape).smallest_card()
        return quotas.precheck(self.asking(shape), smallest)

    def passing(self, shape: Shape) -> Callable[[int], bool] | None:
        """Tell by the compute of its smallest card whether the quotas let a request pass.

        Returns:
            None when no quota counts it.
        """
        quotas = self.engine.ledger.quotas
        if not quotas.governs(self.demand.namespace):
            return None
        demand = self.asking(shape)
        return lambda smallest: not quotas.precheck(demand, smallest)

    def asking(self, shape: Shape) -> Demand:
        """Return the demand with a changed request."""
        return _replace(self.demand, shape=shape)

    @contextmanager
    def applied(self, step: Step) -> Iterator[None]:
        """Change a node or its cards as a step says, for as long as something is tried."""
        engine = self.engine
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
            self._forget()
            yield
        finally:
            for card in cards:
                if card is not None:
                    engine.upsert_device(card)
            if node is not None:
                engine.upsert_node(node)
            self._forget()

    def _forget(self) -> None:
        self._parts.clear()
        self._refits.clear()
        self._arounds.clear()

    def _parts_of(self, *, emptied: bool) -> Parts:
        parts = self._parts.get(emptied)
        if parts is None:
            if emptied:
                self._emptied.catch_up()
            engine, nobody = self.engine, self._emptied if emptied else None
            parts = self._parts[emptied] = Parts(engine.fleet, engine.masks, nobody)
        return parts

    def _surroundings(self, shape: Shape) -> Surroundings | None:
        """Return what other pods mean for a changed request; only spreads look at what suits it."""
        rules = shape.neighbours
        first = self._arounds.get(rules)
        if first is not None and not first.spreads:
            return first
        kind = (rules, profile_key(shape), node_key(shape), shape.indices)
        known = self._arounds.get(kind)
        if known is None and first is not None:
            # Many requests suit the same cards.
            suited = self.engine.suitability(shape)
            same = (rules, suited.nodes.tobytes(), suited.cards.tobytes())
            known = self._arounds.get(same) or self.engine.surroundings(self.asking(shape))
            if known is not None:
                self._arounds[same] = self._arounds[kind] = known
        elif known is None:
            known = self.engine.surroundings(self.asking(shape))
            if known is not None:
                self._arounds[rules] = self._arounds[kind] = known
        return known
