"""What the pods that are there mean for one that is to be placed: nodes and cards that are out.

Rules about neighbours, and numbers that one pod has alone.

Unlike every other rule this one looks beyond the node it decides about, so nothing is kept from
one placement to the next but the counts of `tensorfusion.model.neighbours.PeerIndex`. A request
that states no rule, and that no rule of another pod concerns, costs one look at whether there
are any.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from tensorfusion import names
from tensorfusion.model.claims import FLEET, Claim
from tensorfusion.model.demand import Demand
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.neighbours import (
    HOSTNAME,
    Census,
    Neighbours,
    PeerIndex,
    PeerTerm,
    SpreadRule,
)
from tensorfusion.model.rows import Bools, Ints

APART = ("anti-affinity", "too near to pods that must be apart")
NEAR = ("affinity", "away from the pods they must be near")
TAKEN = "claims"
SPREAD = ("spread", "where more pods would be too uneven a spread")
OWN_DOMAIN = (HOSTNAME, names.GPU_DOMAIN)
"""Keys by which every node, or every card, is a domain of its own."""


class Rule(NamedTuple):
    """What one rule leaves.

    Attributes:
        cards: Those allowed, (nodes, slots).
        like: Those allowed of a new node with the labels of each; (nodes, slots).
        excess: Tells how many pods, at least, have to leave before a card is allowed;
            (nodes, slots).
    """

    constraint: str
    phrase: str
    cards: Bools
    like: Bools
    excess: Callable[[], Ints]


NEVER: Final = 1 << 30
"""Excess where no pod's leaving helps."""


class Surroundings:
    """What rules about other pods leave for one demand.

    Attributes:
        rules: Each with the cards it allows.
        cards: Cards that every rule allows, (nodes, slots).
        points: Preferences about nodes, 0 to 100 each; (nodes,).
        burden: Pods on each card that are better kept apart from, by weight; (nodes, slots).
    """

    def __init__(
        self,
        fleet: Fleet,
        peers: PeerIndex,
        demand: Demand,
        suited: tuple[Bools, Bools],
        taken: Sequence[tuple[Claim, frozenset[str]]] = (),
    ) -> None:
        """Look at every rule that concerns a demand.

        Args:
            fleet: The nodes.
            peers: Where other pods are.
            demand: The pod to place.
            suited: Nodes, and cards, that the unchanging constraints allow.
            taken: Numbers it needs and the nodes where somebody has them.
        """
        self._taken = taken
        self._by_card = False
        self._fleet = fleet
        self._peers = peers
        self._demand = demand
        self._labels = dict(demand.labels)
        size = fleet.size
        self._suited = (suited[0][:size], suited[1][:size])
        self.rules = list(self._required(demand.shape.neighbours or Neighbours()))
        self.cards: Bools = np.ones((size, fleet.width), dtype=np.bool_)
        for rule in self.rules:
            self.cards &= rule.cards
        self.points: Ints = np.zeros(size, dtype=np.int64)
        self.burden: Ints = np.zeros((size, fleet.width), dtype=np.int64)
        self._prefer(demand.shape.neighbours or Neighbours())

    def _required(self, rules: Neighbours) -> Iterator[Rule]:
        for claim, nodes in self._taken:
            yield self._free(claim, nodes)
        for term in rules.apart:
            if not term.weight:
                yield self._apart(term, self._census(term))
        for term, census in self._peers.repelling(self._demand.namespace, self._labels):
            yield self._apart(term, census)
        for term in rules.near:
            if not term.weight:
                yield self._near(term)
        for spread in rules.spread:
            if spread.required:
                yield self._even(spread)

    def _free(self, claim: Claim, nodes: frozenset[str]) -> Rule:
        mask = np.full(self._fleet.size, FLEET not in nodes, dtype=np.bool_)
        for node in nodes:
            slot = self._fleet.slot_of(node)
            if slot is not None:
                mask[slot] = False
        shape = (self._fleet.size, self._fleet.width)
        cards = np.broadcast_to(mask[:, None], shape)
        like = np.full(shape, FLEET not in nodes, dtype=np.bool_)
        phrase = f"where {claim} is taken"
        return Rule(TAKEN, phrase, cards, like, lambda: (~cards).astype(np.int64))

    def _apart(self, term: PeerTerm, census: Census) -> Rule:
        counts = self._counted(term, census)
        cards = counts == 0
        like = np.ones_like(cards) if term.key in OWN_DOMAIN else cards
        return Rule(*APART, cards, like, lambda: counts)

    def _near(self, term: PeerTerm) -> Rule:
        census = self._census(term)
        counts = self._counted(term, census, outside=-1)
        # The first of pods that must be near each other may go anywhere.
        alone = not census and term.selector.matches(self._demand.namespace, self._labels)
        cards = counts >= (0 if alone else 1)
        like = np.full_like(cards, alone) if term.key in OWN_DOMAIN else cards

        def excess() -> Ints:
            # Where all of them have left, a pod that is one of them may go anywhere.
            last = term.selector.matches(self._demand.namespace, self._labels)
            total = sum(census.nodes.values()) if last else NEVER
            return np.where(cards, 0, np.where(counts >= 0, total, NEVER))

        return Rule(*NEAR, cards, like, excess)

    @property
    def spreads(self) -> bool:
        """Whether a rule compares domains, so that what is allowed depends on which nodes suit."""
        return any(rule.constraint == SPREAD[0] for rule in self.rules)

    def allows_like(self, slot: int) -> bool:
        """Tell whether the rules would allow a new, empty node with the labels of another one."""
        return all(rule.like[slot].any() for rule in self.rules)

    def fewest(self) -> Ints:
        """Return how many pods, at least, have to leave before a card of each node is allowed.

        Of a spread that is too few where the nodes that it compares change as well.
        """
        found: Ints = np.zeros(self._fleet.size, dtype=np.int64)
        for rule in self.rules:
            np.maximum(found, rule.excess().min(axis=1), out=found)
        return found

    def _even(self, rule: SpreadRule) -> Rule:
        """Allow domains that stay within the skew; those that cannot take the pod do not count."""
        counts = self._counted(rule, self._peers.census(rule.selector), outside=-1)
        by_card = rule.key == names.GPU_DOMAIN
        suited = self._suited[1] if by_card else self._suited[0][:, None]
        eligible = np.broadcast_to(suited, counts.shape) & (counts >= 0)
        own = int(rule.selector.matches(self._demand.namespace, self._labels))
        lowest = int(counts[eligible].min()) if eligible.any() else 0
        domains = self._domains(rule.key) if rule.min_domains else 0
        floor = 0 if domains < rule.min_domains else lowest
        cards = (counts >= 0) & (counts + own - floor <= rule.max_skew)
        # A new node counts itself: alone in a domain of its own, or in the one it shares.
        with_it = np.zeros_like(counts) if rule.key in OWN_DOMAIN else counts
        floors = np.minimum(with_it, lowest) if eligible.any() else with_it
        if rule.min_domains and domains + (rule.key in OWN_DOMAIN) < rule.min_domains:
            floors = np.zeros_like(with_it)
        like = (counts >= 0) & (with_it + own - floors <= rule.max_skew)

        def excess() -> Ints:
            beyond = np.maximum(counts + own - floor - rule.max_skew, 0)
            return np.where(counts >= 0, beyond, NEVER)

        return Rule(*SPREAD, cards, like, excess)

    def _domains(self, key: str) -> int:
        if key == names.GPU_DOMAIN:
            return int(self._suited[1].sum())
        codes, _ = self._fleet.domains(key)
        return len(np.unique(codes[self._suited[0] & (codes >= 0)]))

    def _census(self, term: PeerTerm) -> Census:
        return self._peers.census(term.selector)

    def _counted(self, rule: PeerTerm | SpreadRule, census: Census, outside: int = 0) -> Ints:
        """Return the pods in the domain of each card, (nodes, slots).

        Args:
            rule: Names the kind of domain.
            census: The pods.
            outside: What stands for nodes that are in no domain.
        """
        fleet = self._fleet
        shape = (fleet.size, fleet.width)
        if rule.key == names.GPU_DOMAIN:
            self._by_card = True
            found: Ints = np.zeros(shape, dtype=np.int64)
            for uuid, count in census.devices.items():
                position = fleet.position_of(uuid)
                if position is not None:
                    found[position] = count
            return found
        codes, number = fleet.domains(rule.key)
        counts = np.full(number + 1, outside, dtype=np.int64)
        slots = fleet.slots_of(census.nodes)
        pods = np.fromiter(census.nodes.values(), dtype=np.int64, count=len(slots))
        there = slots >= 0
        counts[:-1] = np.bincount(codes[slots[there]] + 1, pods[there], number + 1)[1:]
        # The code -1 of nodes without the label points to the last one, which stands for them.
        by_node: Ints = np.broadcast_to(counts[codes][:, None], shape)
        return by_node

    def _prefer(self, rules: Neighbours) -> None:
        terms = [(term, -term.weight) for term in rules.apart if term.weight]
        terms += [(term, term.weight) for term in rules.near if term.weight]
        total: Ints = np.zeros(self._fleet.size, dtype=np.int64)
        for term, weight in terms:
            counts = self._counted(term, self._census(term))
            if term.key == names.GPU_DOMAIN:
                self.burden -= weight * counts
            else:
                total += weight * counts[:, 0]
        self._add_points(total)
        for rule in rules.spread:
            if rule.required:
                continue
            counts = self._counted(rule, self._peers.census(rule.selector))
            if rule.key == names.GPU_DOMAIN:
                self.burden += counts
            else:
                self._add_points(-counts[:, 0])
        if self._by_card and self.burden.any():
            worst = self.burden.max() + 1
            burden = np.where(self._suited[1] & self.cards, self.burden, worst)
            count = max(1, self._demand.shape.gpu_count)
            self._add_points(-np.sort(burden, axis=1)[:, :count].sum(axis=1))

    def _add_points(self, raw: Ints) -> None:
        """Add 0 to 100 points, from the worst to the best node."""
        if not raw.size:
            return
        low, high = int(raw.min()), int(raw.max())
        if high > low:
            self.points += 100 * (raw - low) // (high - low)

    def keys(self, keys: Ints, not_fitting: int, scale: int) -> Ints:
        """Return keys of nodes with preferences added, and those that rules exclude marked.

        Args:
            keys: One per node slot.
            not_fitting: The mark.
            scale: What a point is worth.
        """
        size = self._fleet.size
        if self._by_card:
            count = self._demand.shape.gpu_count
            enough = (self._suited[1] & self.cards).sum(axis=1) >= count
        else:
            enough = self.cards[:, 0]  # rules about nodes allow all of a node's cards or none
        found = np.full_like(keys, not_fitting)
        possible = enough & (keys[:size] != not_fitting)
        found[:size] = np.where(possible, keys[:size] + self.points * scale, not_fitting)
        return found

    def allowed(self, slot: int, fitting: list[int]) -> list[int]:
        """Return those of a node's cards that no rule excludes."""
        row = self.cards[slot]
        return [place for place in fitting if row[place]]

    def order(self, slot: int, fitting: list[int]) -> list[int]:
        """Return a node's cards, those with the least burden first; else as they come."""
        return sorted(fitting, key=self.burden[slot].__getitem__)


def concerned(peers: PeerIndex, demand: Demand) -> bool:
    """Tell whether any rule about other pods concerns a demand."""
    if demand.shape.neighbours is not None:
        return True
    if not peers.repels:
        return False
    return next(peers.repelling(demand.namespace, dict(demand.labels)), None) is not None
