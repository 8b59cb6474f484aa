"""Which rules each card of the fleet fails for one request, as one bit per rule.

A rule is lifted by ignoring its bit, so "would it fit without rule A and rule B" is one comparison
over the fleet, and every question about combinations of rules is answered from one matrix.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.relax.bits import BIT, EMPTY, LOAD, Bits, Parts
from tensorfusion.model.rows import Bools, Ints, Slots
from tensorfusion.model.surroundings import Rule, Surroundings
from tensorfusion.model.wishes import TopologyWishes

_EVERY_RULE: Final = EMPTY - 1
_ALL: Final = 0xFFFFFFFF


class Failures:
    """Failed rules of every card for one request, as of when it was made.

    Attributes:
        shape: The request.
        bits: (nodes, slots).
        large: Cards that hold the request when empty, limits aside; (nodes, slots).
        host: Free CPU and memory, (nodes, 2).
        headroom: What is left of each card, (quantities, nodes, slots).
        compute_left: Compute a card could still give this kind of request, in the unit of the
            request; (nodes, slots).
        compute_limit_left: The same for the ceiling, in the unit of the ceiling.
        vram_left: The same for memory, bytes.
        vram_limit_left: The same for the ceiling of memory, bytes.
    """

    def __init__(self, parts: Parts, shape: Shape, around: Surroundings | None = None) -> None:
        """Look at the whole fleet once.

        Args:
            parts: What single rules say, of the fleet as it is or as if every worker had left.
            shape: The request.
            around: What the pods that are there mean for it; None for nothing.
        """
        self.fleet = parts.fleet
        self.shape = shape
        self.around = around
        wish = shape.topology
        self._connected = (
            TopologyWishes(parts.fleet, shape) if wish is not None and wish.required else None
        )
        self.bits: Bits = parts.of(shape, around)
        self.large: Bools = parts.large(shape)
        self.host, self.headroom = parts.host, parts.headroom
        self.compute_left: Ints = parts.compute_left(in_percent=bool(shape.request.milli_percent))
        self.compute_limit_left: Ints = parts.compute_limit_left(
            in_percent=bool(shape.limit.milli_percent)
        )
        self.vram_left: Ints = parts.vram_left
        self.vram_limit_left: Ints = parts.vram_limit_left
        self._failed = int(np.bitwise_or.reduce(self.bits, axis=None)) if self.bits.size else 0

    def occurs(self, name: str) -> bool:
        """Tell whether any card fails a rule."""
        return bool(self._failed & BIT[name])

    def usable(self, lifted: int, slot: int | None = None) -> Bools:
        """Return which cards pass when some rules are lifted, on one node only if given."""
        bits = self.bits if slot is None else self.bits[slot : slot + 1]
        allowed: Bools = (bits & np.uint32(~lifted & _ALL)) == 0
        return allowed

    def fits(self, lifted: int = 0, slot: int | None = None) -> bool:
        """Tell whether a node has enough cards when some rules are lifted."""
        return bool(self.nodes(lifted, slot))

    def nodes(self, lifted: int, slot: int | None = None) -> list[int]:
        """Return the slots of nodes with enough cards when some rules are lifted."""
        usable = self.usable(lifted, slot)
        rows: list[int] = self._enough(usable).tolist()
        wishes = self._connected
        if not lifted & BIT["topology"] and wishes is not None and wishes.weighs:
            rows = [
                row
                for row in rows
                if self.connects(row + (slot or 0), usable[row].nonzero()[0].tolist())
            ]
        return [row + slot for row in rows] if slot else rows

    def _enough(self, usable: Bools) -> Slots:
        """Return the rows with enough cards; a product is faster than a sum over short rows."""
        counts = usable.astype(np.float32) @ np.ones(usable.shape[1], dtype=np.float32)
        return (counts >= self.shape.gpu_count).nonzero()[0]

    def connects(self, slot: int, places: list[int]) -> bool:
        """Tell whether enough cards of a node are connected as they must be.

        Args:
            slot: Of the node.
            places: The cards to choose from, at least as many as are asked for.
        """
        wishes = self._connected
        return wishes is None or not wishes.weighs or wishes.worth(slot, places) is not None

    def largest(self, left: Ints, lifted: int, slot: int | None = None) -> tuple[int, int] | None:
        """Return the largest amount that enough cards of one node can each give.

        Args:
            left: What each card has, (nodes, slots).
            lifted: Rules that do not count.
            slot: The only node to look at.

        Returns:
            The amount and the node's slot, None when no node has enough cards.
        """
        count = self.shape.gpu_count
        usable = self.usable(lifted, slot)
        rows = self._enough(usable)
        if usable.shape[1] < count or not rows.size:
            return None
        part = left if slot is None else left[slot : slot + 1]
        amounts = np.where(usable[rows], part[rows], -1)
        place = amounts.shape[1] - count
        per_node = np.partition(amounts, place, axis=1)[:, place]
        rows += slot or 0
        wishes = self._connected
        if wishes is None or not wishes.weighs or lifted & BIT["topology"]:
            best = int(per_node.argmax())
            amount = int(per_node[best])
            return None if amount < 0 else (amount, int(rows[best]))
        return self._largest_connected(amounts, per_node, rows)

    def _largest_connected(self, amounts: Ints, most: Ints, slots: Slots) -> tuple[int, int] | None:
        """Return the largest amount that cards can give which are connected as they must be.

        Args:
            amounts: What each card can give, -1 where it does not count; (nodes, cards).
            most: What enough cards of a node can each give, however connected; (nodes,).
            slots: Of the nodes.
        """
        best: tuple[int, int] | None = None
        for row in most.argsort(kind="stable")[::-1].tolist():
            if most[row] < 0 or (best is not None and most[row] <= best[0]):
                break
            given = amounts[row]
            tried = np.unique(given[(given >= 0) & (given <= most[row])])[::-1].tolist()
            for amount in tried:
                if best is not None and amount <= best[0]:
                    break
                slot = int(slots[row])
                if self.connects(slot, (given >= amount).nonzero()[0].tolist()):
                    best = (amount, slot)
                    break
        return best

    def smallest_card(self, lifted: int = 0, slot: int | None = None) -> int:
        """Return the compute of the smallest card the request may use, load aside; 0 for none.

        Args:
            lifted: Rules that do not count on one node.
            slot: The node.
        """
        static = (self.bits & np.uint32(~LOAD & _ALL)) == 0
        if slot is not None:
            static[slot] |= (self.bits[slot] & np.uint32(~(LOAD | lifted) & _ALL)) == 0
        capacities = self.fleet.capacity[0, : self.fleet.size][static]
        return int(capacities.min()) if capacities.size else 0

    def by_node(self, rules: Sequence[Rule] = ()) -> list[tuple[str, int, int, dict[str, int]]]:
        """Return for each node its name, its GPUs, those that pass, and those each rule excludes.

        In the order of the fleet; a GPU that fails several rules counts for each.

        Args:
            rules: What rules about other pods leave.
        """
        present = self.bits < EMPTY
        passing = self.usable(0)
        excluded = {
            name: failing
            for name, bit in BIT.items()
            if (failing := present & ((self.bits & np.uint32(bit)) != 0)).any()
        }
        for rule in rules:
            out = present & ~rule.cards
            excluded[rule.constraint] = excluded.get(rule.constraint, False) | out
            passing &= rule.cards
        wishes = self._connected
        if wishes is not None and wishes.weighs:
            apart = np.zeros_like(passing)
            for slot in (passing.sum(axis=1) >= self.shape.gpu_count).nonzero()[0].tolist():
                if wishes.worth(slot, passing[slot].nonzero()[0].tolist()) is None:
                    apart[slot] = passing[slot]
            excluded["topology"] = apart
            passing &= ~apart
        counts = {name: failing.sum(axis=1).tolist() for name, failing in excluded.items()}
        cards, usable = present.sum(axis=1).tolist(), passing.sum(axis=1).tolist()
        return [
            (
                node.name,
                cards[slot],
                usable[slot],
                {name: found[slot] for name, found in counts.items() if found[slot]},
            )
            for slot, node in enumerate(self.fleet.nodes[: self.fleet.size])
            if node is not None
        ]

    def rest(self, lifted: int) -> str:
        """Say what still stands in the way when some rules are lifted, the commonest first."""
        bits = self.bits & np.uint32(~lifted & _EVERY_RULE)
        bits = bits[self.bits < EMPTY]
        failed = self._failed & ~lifted
        counts = {
            name: int(np.count_nonzero(bits & np.uint32(bit)))
            for name, bit in BIT.items()
            if failed & bit
        }
        found = sorted((-n, name) for name, n in counts.items() if n)
        total = len(bits)
        if not found:
            connected = "" if self._connected is None else " and are connected as they must be"
            return f"no node has {self.shape.gpu_count} GPUs that pass{connected}"
        return ", ".join(f"{name} on {-n} of {total} GPUs" for n, name in found[:3])
