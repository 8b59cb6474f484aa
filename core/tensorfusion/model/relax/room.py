"""Whether amounts would allow a request on one node once some workers have left."""

from collections.abc import Collection, Sequence

from tensorfusion.model.candidates import needs_of
from tensorfusion.model.demand import Shape
from tensorfusion.model.engine import Engine
from tensorfusion.model.headroom import (
    GFLOPS,
    LIMIT_GFLOPS,
    LIMIT_PERCENT,
    PERCENT,
    largest_percent,
)
from tensorfusion.model.relax.holdings import held_of


class Room:
    """What a try on the ledger can be spared for; only the cards of those who leave are looked at.

    A node without room is out for sure; whether one with room will do is for the engine to say.
    """

    def __init__(self, engine: Engine, shape: Shape, slot: int) -> None:
        """Look at a node as it is.

        Args:
            engine: Holds fleet and accounts.
            shape: The request.
            slot: Of the node.
        """
        fleet, self._ledger = engine.fleet, engine.ledger
        self._shape = shape
        self._needs = needs_of(shape)
        self._node = fleet.nodes[slot]
        self._block = fleet.blocks[slot]
        self._cards = fleet.cards[slot]
        self._on: dict[str, list[int]] = {}
        for place, usage in enumerate(self._block):
            for key in usage.members:
                self._on.setdefault(key, []).append(place)
        self._fitting = [self._fits(place, ()) for place in range(len(self._block))]

    def without(self, gone: Collection[str]) -> bool:
        """Tell whether enough cards have room, and the node for one worker more."""
        node, ledger = self._node, self._ledger
        if node is None:
            return False
        if self._shape.wish is not None:  # which partitions fit is not a matter of amounts
            return True
        leaving = sum(ledger.allocations[key].node == node.name for key in gone)
        if ledger.workers_on(node.name) - leaving >= node.max_workers:
            return False
        fitting = sum(self._fitting)
        for place in {place for key in gone for place in self._on.get(key, ())}:
            fitting += self._fits(place, gone) - self._fitting[place]
        return fitting >= self._shape.gpu_count

    def _fits(self, place: int, gone: Collection[str]) -> bool:
        usage, card = self._block[place], self._cards[place]
        left = [key for key in usage.members if key in gone]
        if not card or (self._shape.exclusive and len(left) < len(usage.members)):
            return False
        held = [held_of(self._ledger.allocations[key], usage.uuid) for key in left]
        free = [amount + sum(freed) for amount, *freed in zip(card, *held, strict=False)]
        capacity = usage.device.capacity_gflops if usage.device is not None else 0
        return all(_left_of(what, free, capacity) >= amount for what, amount in self._needs)


def _left_of(quantity: int, free: Sequence[int], capacity: int) -> int:
    """Return what is left of a card, given what is left of compute and memory and their limits."""
    if quantity not in (PERCENT, LIMIT_PERCENT):
        return free[quantity]
    return largest_percent(free[GFLOPS if quantity == PERCENT else LIMIT_GFLOPS], capacity)
