"""What single rules say of every card, as one bit per rule; each is looked at once per answer.

An answer asks about dozens of requests that differ in one field. What each rule says is kept by
what the rule reads of a request, so that another request costs a union of a few arrays.
"""

from collections.abc import Callable, Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.candidates import StaticMasks
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount, Shape
from tensorfusion.model.filters import PROFILE_RULES, node_key, profile_key
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.headroom import (
    GATE_BITS,
    GFLOPS,
    IDLE_BIT,
    LIMIT_GFLOPS,
    LIMIT_PERCENT,
    LIMIT_VRAM,
    PERCENT,
    VRAM,
)
from tensorfusion.model.relax.emptied import Emptied
from tensorfusion.model.rows import Bools, Ints
from tensorfusion.model.surroundings import TAKEN, Surroundings

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
EMPTY: Final = 1 << 31
"""A slot without a card, which nothing can change."""

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

_NO_AMOUNTS: Final = (Amount(), Amount())


class Parts:
    """Bits by rule, and by what the rule reads of a request; void when the fleet changes.

    Attributes:
        fleet: The columns.
        headroom: What is left of each card, (quantities, nodes, slots); copied, since the columns
            of the fleet lie apart.
        host: Free CPU and memory, (nodes, 2).
        vram_left: Memory that a card could still give, bytes; (nodes, slots).
        vram_limit_left: Room for limits of memory, bytes; (nodes, slots).
    """

    def __init__(self, fleet: Fleet, masks: StaticMasks, emptied: Emptied | None = None) -> None:
        """Copy what is looked at again and again.

        Args:
            fleet: The columns.
            masks: Of the fleet.
            emptied: Look at the fleet as if every worker had left.
        """
        self.fleet = fleet
        self._masks = masks
        self._loaded = emptied is None
        size = fleet.size
        head = fleet.headroom[:, :size] if emptied is None else emptied.headroom[:, :size]
        self.headroom: Ints = np.ascontiguousarray(head)
        self.host: Ints = (fleet.host if emptied is None else emptied.host)[:size, :2].copy()
        self.vram_left: Ints = np.minimum(self.headroom[VRAM], self.headroom[LIMIT_VRAM])
        self.vram_limit_left: Ints = self.headroom[LIMIT_VRAM]
        self._capacity: Ints = np.ascontiguousarray(fleet.capacity[:, :size])
        self._gate: Ints | None = None
        self._bits: dict[Hashable, Bits] = {}
        self._compute_left: dict[bool, Ints] = {}
        self._large: dict[Amount, Bools] = {}

    def of(self, shape: Shape, around: Surroundings | None) -> Bits:
        """Return the rules that each card fails for a request, (nodes, slots)."""
        kind = (profile_key(shape), node_key(shape), shape.indices)
        bits = self._kept(kind, lambda: self._static(shape)).copy()
        if self._loaded:
            gate = ("gate", shape.exclusive, shape.isolation, shape.wish)
            bits |= self._kept(gate, lambda: self._gates(shape))
        # A partition has the amounts of its template.
        request, limit = (shape.request, shape.limit) if shape.wish is None else _NO_AMOUNTS
        in_percent = bool(request.milli_percent)
        asked = request.milli_percent or request.gflops
        if asked:
            left = self.compute_left(in_percent=in_percent)
            bits |= self._lacking("compute", left, asked, in_percent)
        percent_limit = bool(limit.milli_percent)
        ceiling = limit.milli_percent or limit.gflops
        if ceiling > (asked if in_percent == percent_limit else 0):
            left = self.compute_limit_left(in_percent=percent_limit)
            bits |= self._lacking("compute-limit", left, ceiling, percent_limit)
        if request.vram_bytes:
            bits |= self._lacking("vram", self.vram_left, request.vram_bytes)
        if limit.vram_bytes > request.vram_bytes:
            bits |= self._lacking("vram-limit", self.vram_limit_left, limit.vram_bytes)
        if shape.cpu_milli:
            bits |= self._lacking_host("cpu", 0, shape.cpu_milli)
        if shape.memory_bytes:
            bits |= self._lacking_host("memory", 1, shape.memory_bytes)
        if around is not None:
            bits |= self._kept(around, lambda: self._around(around))
        return bits

    def compute_left(self, *, in_percent: bool) -> Ints:
        """Return the compute that a card could still give, GFLOP/s or thousandths of a percent."""
        own, own_limit = (PERCENT, LIMIT_PERCENT) if in_percent else (GFLOPS, LIMIT_GFLOPS)
        found = self._compute_left.get(in_percent)
        if found is None:
            found = np.minimum(self.headroom[own], self.headroom[own_limit])
            self._compute_left[in_percent] = found
        return found

    def compute_limit_left(self, *, in_percent: bool) -> Ints:
        """Return the room for limits of compute, GFLOP/s or thousandths of a percent."""
        left: Ints = self.headroom[LIMIT_PERCENT if in_percent else LIMIT_GFLOPS]
        return left

    def large(self, shape: Shape) -> Bools:
        """Return the cards that hold a request when empty, limits aside; (nodes, slots)."""
        request = shape.request if shape.wish is None else _NO_AMOUNTS[0]
        found = self._large.get(request)
        if found is None:
            gflops, vram = self._capacity
            large: Bools = (gflops >= request.gflops) & (vram >= request.vram_bytes)
            large &= request.milli_percent <= FULL_CARD_MILLI_PERCENT
            found = self._large[request] = large
        return found

    def _kept(self, key: Hashable, look: Callable[[], Bits]) -> Bits:
        found = self._bits.get(key)
        if found is None:
            found = self._bits[key] = look()
        return found

    def _static(self, shape: Shape) -> Bits:
        """Look at what a card is and where it is, which load does not change."""
        fleet = self.fleet
        size = fleet.size
        table = [
            sum(BIT[rule.name] for rule in PROFILE_RULES if not rule.allows(shape, profile))
            for profile in fleet.profiles
        ]
        bits: Bits = np.array([*table, EMPTY], dtype=np.uint32)[fleet.profile_codes[:size]]
        if shape.indices:
            bits |= _failing(~np.isin(fleet.indices[:size], shape.indices), BIT["index"])
        nodes: Bits = np.zeros(size, dtype=np.uint32)
        for rule, mask in self._masks.node_rules(shape):
            nodes |= _failing(~mask[:size], BIT[rule.name])
        bits |= nodes[:, None]
        return bits

    def _gates(self, shape: Shape) -> Bits:
        """Look at who is on the cards and how many workers their nodes run."""
        fleet = self.fleet
        size = fleet.size
        if self._gate is None:
            self._gate = self._gates_if_not_full()
        gate = self._gate
        full = _failing(fleet.full[:size], BIT["worker-cap"])[:, None]
        if shape.exclusive:
            return _failing((gate & IDLE_BIT) == 0, BIT["idle"]) | full
        held = gate == 0
        locked = ((gate & GATE_BITS[shape.isolation]) == 0) & ~held
        bits: Bits = _failing(held, BIT["exclusive"]) | full
        bits |= _failing(locked, BIT["isolation-lock"])
        if shape.wish is not None:
            taken = ((gate & fleet.gate_asked(shape)) == 0) & ~(locked | held)
            bits |= _failing(taken, BIT["partition-slots"])
        return bits

    def _gates_if_not_full(self) -> Ints:
        fleet = self.fleet
        gate = fleet.gate[: fleet.size].astype(np.int64)
        for slot in fleet.full[: fleet.size].nonzero()[0].tolist():
            # A full node closes every card; what else would close them is asked for here.
            block = fleet.blocks[slot]
            gate[slot, : len(block)] = [fleet.gate_of(usage, node_full=False) for usage in block]
        return gate

    def _lacking(self, name: str, left: Ints, amount: int, in_percent: bool = False) -> Bits:
        def look() -> Bits:
            return _failing(left < amount, BIT[name]) | _failing(left < 1, _NOTHING_LEFT)

        return self._kept((name, amount, in_percent), look)

    def _lacking_host(self, name: str, column: int, amount: int) -> Bits:
        return self._kept(
            (name, amount), lambda: _failing(self.host[:, column] < amount, BIT[name])[:, None]
        )

    def _around(self, around: Surroundings) -> Bits:
        shape = (self.fleet.size, self.fleet.width)
        bits: Bits = np.zeros(shape, dtype=np.uint32)
        for rule in around.rules:
            name = "claims" if rule.constraint == TAKEN else "neighbours"
            bits |= _failing(~rule.cards, BIT[name])
        return bits


def _failing(failing: Bools, bit: int) -> Bits:
    """Return a bit where something fails; a product is faster than a choice."""
    return np.multiply(failing, np.uint32(bit), dtype=np.uint32)
