"""What the workers of each card hold, largest first: how many must leave at least, for all at once."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Final

import numpy as np

from tensorfusion.model.allocation import Allocation, DeviceUsage, Take
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.rows import Bools, Ints

DIMENSIONS: Final = ("gflops", "vram_bytes", "limit_gflops", "limit_vram_bytes")
"""What a worker holds of a card: GFLOP/s and bytes."""

IMPOSSIBLE: Final = 1 << 20
"""Workers that would have to leave a card on which nobody's leaving helps."""


class Holdings:
    """Sums over the largest holders of every card; reads changed nodes only, and when it must.

    Attributes:
        ledger: Who holds what.
        members: Workers per card, (nodes, slots).
        spans: Cards that one worker of the node holds at most, (nodes,).
    """

    def __init__(self, fleet: Fleet, ledger: Ledger) -> None:
        """Start empty."""
        self.ledger = ledger
        self._fleet = fleet
        self._version = -1
        self._layout = -1
        self._resize(1)

    def catch_up(self) -> None:
        """Note which nodes changed; they are read when they are asked for."""
        fleet = self._fleet
        changed = None
        if self._layout == fleet.layout and self._version >= 0:
            changed = fleet.journal.since(self._version)
        if changed is None:
            self._layout = fleet.layout
            self._resize(len(self._sums))
        else:
            self._stale[changed] = True
        self._version = fleet.journal.version

    def read(self, slots: Sequence[int]) -> None:
        """Look at those of some nodes that changed."""
        stale = [slot for slot in slots if self._stale[slot]]
        if stale:
            self._read(stale)

    def least(self, lacking: Ints, at: slice) -> Ints:
        """Return how many workers must leave each card before nothing is lacking.

        Right for nodes that have been `read`. This is a lower bound: each amount is looked at on its own.

        Args:
            lacking: What is missing, 0 or less where there is room; (dimensions, nodes, slots).
            at: The nodes that this is about.

        Returns:
            (nodes, slots); `IMPOSSIBLE` where it is missing even on an empty card.
        """
        short = np.ones(lacking.shape, dtype=np.int64)
        for sums in self._sums:
            short += sums[:, at] < lacking
        short[lacking <= 0] = 0
        counts: Ints = short.max(axis=0)
        counts[counts > self.members[at]] = IMPOSSIBLE
        return counts

    def _resize(self, depth: int) -> None:
        fleet = self._fleet
        shape = (depth, len(DIMENSIONS), fleet.rows, fleet.width)
        self._sums: Ints = np.zeros(shape, dtype=np.int64)
        """What the largest holder, the two largest, and so on hold of each card."""
        self.members: Ints = np.zeros((fleet.rows, fleet.width), dtype=np.int64)
        self.spans: Ints = np.ones(fleet.rows, dtype=np.int64)
        self._stale: Bools = np.ones(fleet.rows, dtype=np.bool_)

    def _read(self, slots: Sequence[int]) -> None:
        """Sum up what the workers of some nodes hold, all nodes at once."""
        width = self._fleet.width
        takes, spans, counts = self._takes_on(slots)
        members = np.array(counts, dtype=np.intp)
        cards = np.repeat(np.arange(len(counts)), members)
        ranks = np.arange(len(takes)) - np.repeat(members.cumsum() - members, members)
        self._deepen(max(counts, default=0))
        figures = chain.from_iterable(map(attrgetter(*DIMENSIONS), takes))
        held = np.fromiter(figures, np.int64, len(takes) * len(DIMENSIONS))
        amounts = np.zeros((len(self._sums), len(DIMENSIONS), len(counts)), dtype=np.int64)
        amounts[ranks, :, cards] = held.reshape(-1, len(DIMENSIONS))
        amounts.sort(axis=0)
        sums = amounts[::-1].cumsum(axis=0)
        where = np.array(slots, dtype=np.intp)
        self._sums[:, :, where] = sums.reshape(*sums.shape[:2], len(slots), width)
        self.members[where] = members.reshape(-1, width)
        widest = np.ones(len(slots), dtype=np.int64)
        np.maximum.at(widest, cards // width, np.array(spans, dtype=np.int64))
        self.spans[where] = widest
        self._stale[where] = False

    def _takes_on(self, slots: Sequence[int]) -> tuple[list[Take], list[int], list[int]]:
        """Return what is held of the cards of some nodes, card by card.

        Returns:
            What each worker holds, how many cards it holds, and how many workers are on each card
            slot of the nodes.
        """
        allocations, blocks = self.ledger.allocations, self._fleet.blocks
        workers: list[tuple[Take, ...]] = []
        uuids: list[str] = []
        counts: list[int] = []
        for block in map(blocks.__getitem__, slots):
            for usage in block:
                members = usage.members
                counts.append(len(members))
                workers += [allocations[key].takes for key in members]
                uuids += [usage.uuid] * len(members)
            counts += [0] * (self._fleet.width - len(block))
        takes = [
            held[0] if len(held) == 1 else _take_of(held, uuid)
            for held, uuid in zip(workers, uuids, strict=True)
        ]
        return takes, [len(held) for held in workers], counts

    def _deepen(self, depth: int) -> None:
        more = depth - len(self._sums)
        if more > 0:
            # The sum over more workers than there are stays what it was.
            self._sums = np.concatenate((self._sums, np.repeat(self._sums[-1:], more, axis=0)))


def _take_of(takes: Sequence[Take], uuid: str) -> Take:
    return next(take for take in takes if take.uuid == uuid)


def held_of(allocation: Allocation, uuid: str) -> tuple[int, int, int, int]:
    """Return what a worker holds of a card, one figure per dimension."""
    for take in allocation.takes:
        if take.uuid == uuid:
            return (take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes)
    return (0, 0, 0, 0)


def workers_of(block: list[DeviceUsage]) -> list[str]:
    """Return the keys of all workers on a node's cards, sorted."""
    return sorted({key for usage in block for key in usage.members})
