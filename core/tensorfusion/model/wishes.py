"""What a request wishes of the set of cards it gets, besides their amounts.

Most requests wish nothing, and the engine then decides on arrays alone. The others cost a look at
the cards of each node that may do: which slots a partition finds, and how the cards are connected.
A wish is asked about one node at a time, with the cards that fit there.
"""

from collections.abc import Sequence
from typing import Protocol

from tensorfusion.model.demand import Shape
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.partitions import CutChoice, PartitionWish, best_of, choices
from tensorfusion.model.topology import UNKNOWN, Connection, best_set, connection

REUSE_POINTS = 100
"""Points for an idle partition of the right template, which need not be made."""


class Wishes(Protocol):
    """A wish about the cards of one node."""

    @property
    def weighs(self) -> bool:
        """Whether `worth` matters; False when only the choice among a node's cards does."""
        ...

    def worth(self, slot: int, fitting: Sequence[int]) -> int | None:
        """Return points to add to the policy's score of a node, None when it will not do.

        Args:
            slot: The node.
            fitting: Positions of the cards that fit, in order; at least as many as asked for.
        """
        ...

    def choose(self, slot: int, fitting: Sequence[int]) -> list[int]:
        """Return the cards to take, as many as asked for or more, those to take first.

        Args:
            slot: The node.
            fitting: Positions of the cards that fit, the best by policy and ties first.
        """
        ...

    def connection(self, slot: int, chosen: Sequence[int]) -> Connection | None:
        """Say how the cards that were taken are connected, where that is worth saying."""
        ...


class PartitionWishes:
    """Cuts cards so that as many other partitions as possible still fit.

    A card is worth 0 to 100 points for what remains possible, relative to an empty card, and
    `REUSE_POINTS` more when an idle partition is reused.
    """

    weighs = True

    def __init__(self, fleet: Fleet, shape: Shape, wish: PartitionWish) -> None:
        self._fleet = fleet
        self._wish = wish
        self._count = shape.gpu_count

    def worth(self, slot: int, fitting: Sequence[int]) -> int | None:
        """Return the mean of the best cards."""
        best = sorted((self._points(slot, place) for place in fitting), reverse=True)
        return sum(best[: self._count]) // self._count

    def choose(self, slot: int, fitting: Sequence[int]) -> list[int]:
        """Return the cards worth most first; the order given decides between equals."""
        return sorted(fitting, key=lambda place: -self._points(slot, place))

    def connection(self, slot: int, chosen: Sequence[int]) -> Connection | None:
        """Say nothing: partitions do not reach each other."""
        return None

    def _points(self, slot: int, place: int) -> int:
        usage = self._fleet.blocks[slot][place]
        device = usage.device
        if device is None or device.geometry is None:
            return 0
        geometry, kinds = device.geometry, device.partition_kinds
        found = best_of(geometry, usage.cuts, usage.idle_cuts, kinds, self._wish)
        if found is None:
            return 0
        choice: CutChoice = found[1]
        points = 100 - 100 * choice.loss // choices(geometry, ())
        return points + REUSE_POINTS if choice.reuses else points


class TopologyWishes:
    """Takes the best connected cards of a node.

    A stated wish adds up to 99 points to a node's score, 25 for each tier and up to 24 for how
    near the pairs are to each other, the plan score of the reference.
    """

    def __init__(self, fleet: Fleet, shape: Shape) -> None:
        self._fleet = fleet
        self._wish = shape.topology
        self._source = self._wish.source if self._wish is not None else "auto"
        self._count = shape.gpu_count

    @property
    def weighs(self) -> bool:
        """Whether the request states a wish about several cards."""
        return self._wish is not None and self._count > 1

    def worth(self, slot: int, fitting: Sequence[int]) -> int | None:
        """Return the points of the node's best set, None when it does not satisfy the wish."""
        topology = self._fleet.topology(slot, self._source)
        best = best_set(topology, tuple(fitting), self._count)
        wish = self._wish
        if wish is not None and wish.required and best.tier > wish.max_tier:
            return None
        return 25 * (UNKNOWN - best.tier) + 24 * best.nearness // 100

    def choose(self, slot: int, fitting: Sequence[int]) -> list[int]:
        """Return the best set."""
        topology = self._fleet.topology(slot, self._source)
        if topology.source == "none":
            return list(fitting)
        return list(best_set(topology, tuple(fitting), self._count).positions)

    def connection(self, slot: int, chosen: Sequence[int]) -> Connection | None:
        """Say how the cards are connected, if there are several or a wish was stated."""
        if self._count < 2:
            return None
        topology = self._fleet.topology(slot, self._source)
        if topology.source == "none" and self._wish is None:
            return None
        return connection(topology, chosen, self._wish)


def wishes_of(fleet: Fleet, shape: Shape) -> Wishes | None:
    """Return what a request wishes; None when amounts are all that counts."""
    if not shape.gpu_count:
        return None
    if shape.wish is not None:
        return PartitionWishes(fleet, shape, shape.wish)
    if shape.gpu_count > 1 or shape.topology is not None:
        return TopologyWishes(fleet, shape)
    return None
