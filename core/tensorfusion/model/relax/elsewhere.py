"""Workers anywhere in the fleet that rules about other pods, or a quota, hold against a request."""

from collections.abc import Iterator

import numpy as np

from tensorfusion.model.demand import Demand
from tensorfusion.model.engine import Engine
from tensorfusion.model.neighbours import Neighbours, PeerSelector, PeerTerm, SpreadRule
from tensorfusion.model.relax.residents import Residents
from tensorfusion.model.rows import Bools, Slots
from tensorfusion.model.surroundings import OWN_DOMAIN


class Elsewhere:
    """Such workers in order of their keys, and on which nodes each of them matters."""

    def __init__(
        self, engine: Engine, residents: Residents, demand: Demand, *, ruled: bool, refused: bool
    ) -> None:
        """Look at the workers of the whole fleet.

        Args:
            engine: Holds them.
            residents: The workers, caught up.
            demand: The request.
            ruled: Whether rules about other pods concern it.
            refused: Whether a quota refuses it; workers of its namespace matter everywhere then.
        """
        allocations, fleet = engine.ledger.allocations, engine.fleet
        self._domains: list[Slots] | None = []
        counted: set[str] = set()
        if ruled:
            kinds, selectors, anywhere = _rules(engine, demand)
            self._domains = None if anywhere else [fleet.domains(key)[0] for key in kinds]
            if kinds or anywhere:
                counted = residents.meant(selectors, demand)
        own = residents.of_namespace(demand.namespace) if refused else set()
        self._keys = sorted(counted | own)
        self._slots: Slots = fleet.slots_of([allocations[key].node for key in self._keys])
        self._everywhere: Bools = np.array([key in own for key in self._keys], dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._keys)

    def matter(self, slot: int) -> Iterator[str]:
        """Yield the workers that matter on a node."""
        found: Bools = np.full(len(self._keys), self._domains is None)
        for codes in self._domains or ():
            if codes[slot] >= 0:
                found |= codes[self._slots] == codes[slot]
        found &= self._slots >= 0
        found |= self._everywhere
        return (self._keys[place] for place in found.nonzero()[0])


def _rules(engine: Engine, demand: Demand) -> tuple[list[str], list[PeerSelector], bool]:
    """Return what rules count on other nodes than the one they decide about.

    Returns:
        Kinds of domain that are larger than a node, the pods that are counted there, and whether
        pods matter wherever they are.
    """
    rules = demand.shape.neighbours or Neighbours()
    labels = dict(demand.labels)
    stated: list[PeerTerm | SpreadRule] = [*rules.apart, *rules.spread]
    wide = [rule for rule in stated if rule.key not in OWN_DOMAIN]
    kinds = {rule.key for rule in wide}
    repelling = engine.ledger.peers.repelling(demand.namespace, labels)
    kinds |= {term.key for term, _ in repelling if term.key not in OWN_DOMAIN}
    # Where all that it must be near have left, it is the first of them.
    near = [term.selector for term in rules.near]
    near = [one for one in near if one.matches(demand.namespace, labels)]
    return sorted(kinds), [rule.selector for rule in wide] + near, bool(near)
