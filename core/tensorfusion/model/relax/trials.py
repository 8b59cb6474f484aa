"""Changes that are found by trying them on the ledger, where more than amounts matter."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, islice
from typing import Final

import numpy as np

from tensorfusion.model.demand import Demand, Shape
from tensorfusion.model.relax.bits import BIT
from tensorfusion.model.relax.elsewhere import Elsewhere
from tensorfusion.model.relax.holdings import workers_of
from tensorfusion.model.relax.look import NODES_TRIED
from tensorfusion.model.relax.question import ABOUT_OTHERS, Question
from tensorfusion.model.relax.room import Room
from tensorfusion.model.relax.step import Step
from tensorfusion.model.relax.world import evict_step
from tensorfusion.model.surroundings import NEVER

EVICTIONS_TRIED: Final = 300
"""Sets of victims that are tried out where more than amounts matter, for each change."""
MOST_EVICTED: Final = 16
"""Workers of the largest set that is tried; nobody would evict more for one pod."""
TRIED_BY_CARDS: Final = 1_000_000
"""Such tries for a whole answer, times the cards of the fleet: a try looks at all nodes."""


class Trials:
    """Tries changes for one question, so many for the whole answer.

    Attributes:
        needed: Whether victims are found by trying: cards must be connected, or rules about other
            pods concern the request.
    """

    def __init__(self, question: Question) -> None:
        """Start with all tries left."""
        self._question = question
        self._engine = question.engine
        self.needed = question.connected or question.around is not None
        cards = int(np.count_nonzero(question.engine.fleet.present[: question.engine.fleet.size]))
        self._left = max(1, TRIED_BY_CARDS // max(1, cards))
        self._elsewhere: dict[bool, Elsewhere] = {}
        """By whether a quota refuses the request."""
        self._workers: dict[int, list[str]] = {}

    def in_place(self, kind: str, shape: Shape) -> Step | None:
        """Change a node or its cards, and see whether a spread comes out: it compares nodes."""
        question = self._question
        if question.violated(shape):
            return None
        failures = question.refit(shape)
        changes = question.world(shape)
        concerned = np.asarray((failures.bits & np.uint32(BIT[kind])).any(axis=1))
        slots = [slot for slot in failures.nodes(BIT[kind] | ABOUT_OTHERS) if concerned[slot]]
        found = [changes.kinds[kind](ABOUT_OTHERS, slot) for slot in slots[:NODES_TRIED]]
        for step in sorted((step for step in found if step is not None), key=self._size):
            with question.applied(step):
                if question.refit(shape).fits():
                    return step
        if len(slots) > NODES_TRIED:
            question.gave_up.add(kind)
        return None

    def _size(self, step: Step) -> int:
        """Return how large a change of a node is, compared with others of its kind."""
        if not step.max_workers:
            return len(step.devices)
        slot = self._engine.fleet.slot_of(step.node)
        node = self._engine.fleet.nodes[slot] if slot is not None else None
        return step.max_workers - (node.max_workers if node is not None else 0)

    def evict(self, shape: Shape, *, within_quota: bool = False) -> Step | None:
        """Try sets of workers, small ones first, on the ledger itself.

        Those of the node that gets room, and those elsewhere that rules about other pods or the
        quota count.

        Args:
            shape: The request.
            within_quota: The quota allows it, whatever it says now.
        """
        slots, least = self._likely(shape)
        if not slots or not self._left:
            return None
        demand, nodes = self._question.asking(shape), self._engine.fleet.nodes
        most = self._most_on(slots)
        refused = bool(self._question.violated(shape))
        rooms: dict[int, Room] = {}
        tries = EVICTIONS_TRIED
        for size in range(1, MOST_EVICTED + 1):
            if size > most and size > most + len(self._others(refused)):
                return None
            for slot in slots:
                if least[slot] > size:
                    break
                node = nodes[slot]
                if node is None:
                    continue
                if slot not in rooms:
                    rooms[slot] = Room(self._engine, shape, slot)
                for keys in self._sets(refused, slot, size, min(tries, self._left)):
                    if not tries or not self._left:
                        self._question.gave_up.add("evict")
                        return None
                    tries -= 1
                    self._left -= 1
                    if rooms[slot].without(keys) and self._fits_without(
                        keys, demand, node.name, within_quota=within_quota
                    ):
                        return evict_step(self._engine.ledger, keys, node.name, exact=True)
        if most + len(self._others(refused)) > MOST_EVICTED:
            self._question.gave_up.add("evict")
        return None

    def _likely(self, shape: Shape) -> tuple[list[int], list[int]]:
        """Return the nodes that may get room, and how many must leave for each, at least.

        Those for which the fewest must leave come first.
        """
        question = self._question
        around = question.refit(shape).around
        slots = question.refit(shape, emptied=True).nodes(ABOUT_OTHERS)
        if around is None:
            return slots, [0] * self._engine.fleet.size
        least = around.fewest().tolist()
        if any(MOST_EVICTED < least[slot] < NEVER for slot in slots):
            question.gave_up.add("evict")
        likely = [slot for slot in slots if least[slot] <= MOST_EVICTED]
        return sorted(likely, key=least.__getitem__), least

    def _most_on(self, slots: Iterable[int]) -> int:
        """Return how many workers a node has at most; more than `MOST_EVICTED` are not counted."""
        most = 0
        for slot in slots:
            most = max(most, len(self._own(slot)))
            if most > MOST_EVICTED:
                break
        return most

    def _own(self, slot: int) -> list[str]:
        found = self._workers.get(slot)
        if found is None:
            found = self._workers[slot] = workers_of(self._engine.fleet.blocks[slot])
        return found

    def _others(self, refused: bool) -> Elsewhere:
        found = self._elsewhere.get(refused)
        if found is None:
            question = self._question
            ruled = question.around is not None
            found = Elsewhere(
                self._engine, question.residents, question.demand, ruled=ruled, refused=refused
            )
            self._elsewhere[refused] = found
        return found

    def _sets(self, refused: bool, slot: int, size: int, count: int) -> Iterator[tuple[str, ...]]:
        """Return sets of workers whose leaving may help on a node, more than ``count`` of them."""
        leaving = self._leaving(refused, slot)
        if size == 1:
            return ((key,) for key in leaving)
        # More than can be tried need not be named.
        return combinations(islice(leaving, count + size), size)

    def _leaving(self, refused: bool, slot: int) -> Iterator[str]:
        """Yield the workers whose leaving may help on a node, its own first."""
        own = self._own(slot)
        yield from own
        known = set(own)
        yield from (key for key in self._others(refused).matter(slot) if key not in known)

    def _fits_without(
        self, keys: Sequence[str], demand: Demand, node: str, *, within_quota: bool
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
