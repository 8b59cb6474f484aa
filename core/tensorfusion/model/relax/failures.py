"""Which rules each card of the fleet fails for one request, as one bit per rule.

A rule is lifted by ignoring its bit, so "would it fit without rule A and rule B" is one comparison
over the fleet, and every question about combinations of rules is answered from one matrix.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.allocation import DeviceUsage
from tensorfusion.model.candidates import StaticMasks
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount, Shape
from tensorfusion.model.filters import PROFILE_RULES
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.headroom import (
    GATE_BITS,
    GFLOPS,
    IDLE_BIT,
    LIMIT_GFLOPS,
    LIMIT_PERCENT,
    LIMIT_VRAM,
    PERCENT,
    QUANTITIES,
    VRAM,
    headroom_of,
)
from tensorfusion.model.rows import UNTRACKED, Bools, Ints
from tensorfusion.model.surroundings import TAKEN, Rule, Surroundings
from tensorfusion.model.wishes import TopologyWishes

Bits = NDArray[np.uint32]

NAMES: Final = (
    "pool",
    "phase",
    "owner",
    "vendor",
    "model",
    "isolation",
    "partition",
    "index",
    "node-name",
    "node-selector",
    "node-affinity",
    "cordoned",
    "taint",
    "worker-cap",
    "idle",
    "exclusive",
    "isolation-lock",
    "partition-slots",
    "topology",
    "compute",
    "compute-limit",
    "vram",
    "vram-limit",
    "cpu",
    "memory",
    "neighbours",
    "claims",
)
"""Rules in the order of their bits; keys as in `tensorfusion.model.explain.Exclusion`."""

BIT: Final = {name: 1 << position for position, name in enumerate(NAMES)}
_NOTHING_LEFT: Final = 1 << 30
"""A card with nothing at all of an amount that is asked for, so that less of it does not help."""
_EMPTY: Final = 1 << 31
"""A slot without a card, which nothing can change."""

_NO_AMOUNTS: Final = (Amount(), Amount())

LOAD: Final = (
    BIT["worker-cap"]
    | BIT["idle"]
    | BIT["exclusive"]
    | BIT["isolation-lock"]
    | BIT["partition-slots"]
    | BIT["compute"]
    | BIT["compute-limit"]
    | BIT["vram"]
    | BIT["vram-limit"]
    | BIT["cpu"]
    | BIT["memory"]
    | _NOTHING_LEFT
)
"""Rules that workers who leave can satisfy."""


class Failures:
    """Failed rules of every card for one request, as of when it was made.

    Attributes:
        shape: The request.
        bits: (nodes, slots).
        large: Cards that hold the request when empty, limits aside; (nodes, slots).
        host: Free CPU and memory, (nodes, 2 or more).
        compute_left: Compute a card could still give this kind of request, in the unit of the
            request; (nodes, slots).
        vram_left: The same for memory, bytes.
    """

    def __init__(
        self,
        fleet: Fleet,
        shape: Shape,
        masks: StaticMasks,
        emptied: "Emptied | None" = None,
        around: Surroundings | None = None,
    ) -> None:
        """Look at the whole fleet once.

        Args:
            fleet: The columns.
            shape: The request.
            masks: Of the fleet.
            emptied: Look at the fleet as if every worker had left.
            around: What the pods that are there mean for it; None for nothing.
        """
        self.fleet = fleet
        self.shape = shape
        self.around = around
        self._emptied = emptied
        wish = shape.topology
        self._connected = (
            TopologyWishes(fleet, shape) if wish is not None and wish.required else None
        )
        size = fleet.size
        self.bits: Bits = np.where(fleet.present[:size], 0, _EMPTY).astype(np.uint32)
        self._static(masks)
        self._gates()
        self._amounts()
        for rule in around.rules if around is not None else ():
            self._fail("claims" if rule.constraint == TAKEN else "neighbours", rule.cards)

    def usable(self, lifted: int, slot: int | None = None) -> Bools:
        """Return which cards pass when some rules are lifted, on one node only if given."""
        bits = self.bits if slot is None else self.bits[slot : slot + 1]
        allowed: Bools = (bits & np.uint32(~lifted & 0xFFFFFFFF)) == 0
        return allowed

    def fits(self, lifted: int = 0, slot: int | None = None) -> bool:
        """Tell whether a node has enough cards when some rules are lifted."""
        return bool(self.nodes(lifted, slot))

    def nodes(self, lifted: int, slot: int | None = None) -> list[int]:
        """Return the slots of nodes with enough cards when some rules are lifted."""
        usable = self.usable(lifted, slot)
        enough: list[int] = (usable.sum(axis=1) >= self.shape.gpu_count).nonzero()[0].tolist()
        if not lifted & BIT["topology"]:
            enough = [
                row
                for row in enough
                if self.connects(row + (slot or 0), usable[row].nonzero()[0].tolist())
            ]
        return [row + (slot or 0) for row in enough]

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
        if usable.shape[1] < count or not usable.size:
            return None
        part = left if slot is None else left[slot : slot + 1]
        amounts = np.where(usable, part, -1)
        place = amounts.shape[1] - count
        per_node = np.partition(amounts, place, axis=1)[:, place]
        wishes = self._connected
        if wishes is None or not wishes.weighs or lifted & BIT["topology"]:
            best = int(per_node.argmax())
            amount = int(per_node[best])
            return None if amount < 0 else (amount, best + (slot or 0))
        return self._largest_connected(amounts, per_node, slot or 0)

    def _largest_connected(self, amounts: Ints, most: Ints, offset: int) -> tuple[int, int] | None:
        """Return the largest amount that cards can give which are connected as they must be.

        Args:
            amounts: What each card can give, -1 where it does not count; (nodes, slots).
            most: What enough cards of a node can each give, however connected; (nodes,).
            offset: Slot of the first node.
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
                if self.connects(row + offset, (given >= amount).nonzero()[0].tolist()):
                    best = (amount, row + offset)
                    break
        return best

    def smallest_card(self, lifted: int = 0, slot: int | None = None) -> int:
        """Return the compute of the smallest card the request may use, load aside; 0 for none.

        Args:
            lifted: Rules that do not count on one node.
            slot: The node.
        """
        static = (self.bits & np.uint32(~LOAD & 0xFFFFFFFF)) == 0
        if slot is not None:
            static[slot] |= (self.bits[slot] & np.uint32(~(LOAD | lifted) & 0xFFFFFFFF)) == 0
        capacities = self.fleet.capacity[0, : self.fleet.size][static]
        return int(capacities.min()) if capacities.size else 0

    def by_node(self, rules: Sequence[Rule] = ()) -> list[tuple[str, int, int, dict[str, int]]]:
        """Return for each node its name, its GPUs, those that pass, and those each rule excludes.

        In the order of the fleet; a GPU that fails several rules counts for each.

        Args:
            rules: What rules about other pods leave.
        """
        present = self.bits < _EMPTY
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
        bits = self.bits & np.uint32(~lifted & 0x7FFFFFFF)
        bits = bits[self.bits < _EMPTY]
        counts = {name: int(np.count_nonzero(bits & np.uint32(bit))) for name, bit in BIT.items()}
        found = sorted((-n, name) for name, n in counts.items() if n)
        total = len(bits)
        if not found:
            connected = "" if self._connected is None else " and are connected as they must be"
            return f"no node has {self.shape.gpu_count} GPUs that pass{connected}"
        return ", ".join(f"{name} on {-n} of {total} GPUs" for n, name in found[:3])

    def _fail(self, name: str, allowed: Bools) -> None:
        self.bits |= np.where(allowed, 0, BIT[name]).astype(np.uint32)

    def _static(self, masks: StaticMasks) -> None:
        fleet, shape = self.fleet, self.shape
        size = fleet.size
        codes = fleet.profile_codes[:size]
        for profile_rule in PROFILE_RULES:
            table = [profile_rule.allows(shape, profile) for profile in fleet.profiles]
            if not all(table):
                self._fail(profile_rule.name, np.array([*table, True], dtype=np.bool_)[codes])
        if shape.indices:
            self._fail("index", np.isin(fleet.indices[:size], shape.indices))
        for node_rule, mask in masks.node_rules(shape):
            self._fail(node_rule.name, np.broadcast_to(mask[:size, None], codes.shape))

    def _gates(self) -> None:
        fleet, shape = self.fleet, self.shape
        if self._emptied is not None:
            return
        size = fleet.size
        gate = fleet.gate[:size].astype(np.int64)
        for slot in fleet.full[:size].nonzero()[0].tolist():
            # A full node closes every card; what else would close them is asked for here.
            block = fleet.blocks[slot]
            gate[slot, : len(block)] = [fleet.gate_of(usage, node_full=False) for usage in block]
        self._fail("worker-cap", np.broadcast_to(~fleet.full[:size, None], gate.shape))
        if shape.exclusive:
            self._fail("idle", (gate & IDLE_BIT) != 0)
            return
        held = gate == 0
        self._fail("exclusive", ~held)
        locked = (gate & GATE_BITS[shape.isolation]) == 0
        self._fail("isolation-lock", ~locked | held)
        if shape.wish is not None:
            self._fail("partition-slots", ((gate & fleet.gate_asked(shape)) != 0) | locked | held)

    def _amounts(self) -> None:
        fleet, shape = self.fleet, self.shape
        # A partition has the amounts of its template.
        request, limit = (shape.request, shape.limit) if shape.wish is None else _NO_AMOUNTS
        size = fleet.size
        emptied = self._emptied
        head = fleet.headroom[:, :size] if emptied is None else emptied.headroom
        host = fleet.host[:size] if emptied is None else emptied.host
        in_percent = bool(request.milli_percent)
        asked = request.milli_percent or request.gflops
        own, own_limit = (PERCENT, LIMIT_PERCENT) if in_percent else (GFLOPS, LIMIT_GFLOPS)
        self.compute_left: Ints = np.minimum(head[own], head[own_limit])
        self.compute_limit_left: Ints = head[LIMIT_PERCENT if limit.milli_percent else LIMIT_GFLOPS]
        self.vram_left: Ints = np.minimum(head[VRAM], head[LIMIT_VRAM])
        self.vram_limit_left: Ints = head[LIMIT_VRAM]
        nothing = np.zeros(self.bits.shape, dtype=np.bool_)
        if asked:
            nothing |= self.compute_left < 1
            self._fail("compute", self.compute_left >= asked)
        ceiling = limit.milli_percent or limit.gflops
        if ceiling > (asked if in_percent == bool(limit.milli_percent) else 0):
            nothing |= self.compute_limit_left < 1
            self._fail("compute-limit", self.compute_limit_left >= ceiling)
        if request.vram_bytes:
            nothing |= self.vram_left < 1
            self._fail("vram", self.vram_left >= request.vram_bytes)
        if limit.vram_bytes > request.vram_bytes:
            nothing |= self.vram_limit_left < 1
            self._fail("vram-limit", self.vram_limit_left >= limit.vram_bytes)
        self.bits |= np.where(nothing, _NOTHING_LEFT, 0).astype(np.uint32)
        self.host: Ints = host
        capacity = fleet.capacity[:, :size]
        if request.gflops or request.vram_bytes or request.milli_percent > FULL_CARD_MILLI_PERCENT:
            large = (capacity[0] >= request.gflops) & (capacity[1] >= request.vram_bytes)
            self.large: Bools = large & (request.milli_percent <= FULL_CARD_MILLI_PERCENT)
        else:
            self.large = np.ones((size, capacity.shape[2]), dtype=np.bool_)
        self._host(host)

    def _host(self, host: Ints) -> None:
        shape = self.shape
        for column, (name, amount) in enumerate(
            (("cpu", shape.cpu_milli), ("memory", shape.memory_bytes))
        ):
            if amount:
                enough = host[:, column] >= amount
                self._fail(name, np.broadcast_to(enough[:, None], self.bits.shape))


class Emptied:
    """What cards and nodes have when nobody uses them.

    Attributes:
        headroom: As in the fleet, (quantities, nodes, slots).
        host: CPU and memory, (nodes, 2).
    """

    def __init__(self, fleet: Fleet) -> None:
        """Read the hardware of the whole fleet."""
        self.headroom: Ints = np.full((QUANTITIES, fleet.size, fleet.width), -1, dtype=np.int64)
        self.host: Ints = np.full((fleet.size, 2), UNTRACKED, dtype=np.int64)
        for slot, block in enumerate(fleet.blocks[: fleet.size]):
            node = fleet.nodes[slot]
            if node is not None:
                self.host[slot] = (node.cpu_milli or UNTRACKED, node.memory_bytes or UNTRACKED)
            for place, usage in enumerate(block):
                if usage.device is not None:
                    empty = headroom_of(DeviceUsage(usage.uuid), usage.device)
                    self.headroom[:, slot, place] = empty[:QUANTITIES]
