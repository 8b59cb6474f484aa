"""What the workers of each card hold, largest first: how many must leave at least, for all at once."""

from typing import Final

import numpy as np

from tensorfusion.model.allocation import Allocation, DeviceUsage
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.ledger import Ledger
from tensorfusion.model.rows import Ints

DIMENSIONS: Final = 4
"""Compute, memory, compute limit, memory limit: GFLOP/s and bytes."""

IMPOSSIBLE: Final = 1 << 20
"""Workers that would have to leave a card on which nobody's leaving helps."""


class Holdings:
    """Sums over the largest holders of every card; catches up on changed nodes only.

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
        """Look at nodes that changed."""
        fleet = self._fleet
        changed = None
        if self._layout == fleet.layout and self._version >= 0:
            changed = fleet.journal.since(self._version)
        if changed is None:
            self._layout = fleet.layout
            self._resize(self._sums.shape[2])
        slots = range(fleet.size) if changed is None else sorted(set(changed.tolist()))
        for slot in slots:
            self._read(slot)
        self._version = fleet.journal.version

    def least(self, lacking: Ints, at: slice) -> Ints:
        """Return how many workers must leave each card before nothing is lacking.

        This is a lower bound: each amount is looked at on its own.

        Args:
            lacking: What is missing, 0 or less where there is room; (nodes, slots, dimensions).
            at: The nodes that this is about.

        Returns:
            (nodes, slots); `IMPOSSIBLE` where it is missing even on an empty card.
        """
        sums = self._sums[at]
        short = (sums < lacking[:, :, None, :]).sum(axis=2) + 1
        short[lacking <= 0] = 0
        counts: Ints = short.max(axis=2)
        counts[counts > self.members[at]] = IMPOSSIBLE
        return counts

    def _resize(self, depth: int) -> None:
        fleet = self._fleet
        self._sums: Ints = np.zeros((fleet.rows, fleet.width, depth, DIMENSIONS), dtype=np.int64)
        self.members: Ints = np.zeros((fleet.rows, fleet.width), dtype=np.int64)
        self.spans: Ints = np.ones(fleet.rows, dtype=np.int64)

    def _read(self, slot: int) -> None:
        allocations = self.ledger.allocations
        block = self._fleet.blocks[slot]
        deepest = max((len(usage.members) for usage in block), default=0)
        if deepest > self._sums.shape[2]:
            more = np.zeros(
                (*self._sums.shape[:2], deepest - self._sums.shape[2], DIMENSIONS), dtype=np.int64
            )
            # The sum over more workers than there are stays what it was.
            self._sums = np.concatenate((self._sums, more + self._sums[:, :, -1:]), axis=2)
        self._sums[slot] = 0
        self.members[slot] = 0
        spans = 1
        for place, usage in enumerate(block):
            held = [held_of(allocations[key], usage.uuid) for key in usage.members]
            self.members[slot, place] = len(held)
            for dimension, column in enumerate(zip(*held, strict=True)):
                total = 0
                for rank, amount in enumerate(sorted(column, reverse=True)):
                    total += amount
                    self._sums[slot, place, rank, dimension] = total
                self._sums[slot, place, len(held) :, dimension] = total
            spans = max([spans, *(len(allocations[key].takes) for key in usage.members)])
        self.spans[slot] = spans


def held_of(allocation: Allocation, uuid: str) -> tuple[int, int, int, int]:
    """Return what a worker holds of a card, one figure per dimension."""
    for take in allocation.takes:
        if take.uuid == uuid:
            return (take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes)
    return (0, 0, 0, 0)


def workers_of(block: list[DeviceUsage]) -> list[str]:
    """Return the keys of all workers on a node's cards, sorted."""
    return sorted({key for usage in block for key in usage.members})
