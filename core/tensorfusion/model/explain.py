"""Why a request does not fit: how many GPUs each constraint removes, in order and alone."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from tensorfusion.model.candidates import StaticMasks, needs_of
from tensorfusion.model.demand import Shape
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
    VRAM,
)
from tensorfusion.model.quota import Violation
from tensorfusion.model.rows import Bools
from tensorfusion.model.surroundings import Rule
from tensorfusion.model.topology import UNKNOWN
from tensorfusion.model.wishes import TopologyWishes


class Exclusion(msgspec.Struct, frozen=True):
    """What one constraint does.

    Attributes:
        constraint: Stable key: ``pool``, ``model``, ``vram``, ...
        phrase: Reads after a number of GPUs.
        removed: GPUs it removes of those that the constraints before it left.
        alone: GPUs it would remove if it were the only constraint.
    """

    constraint: str
    phrase: str
    removed: int
    alone: int


class NoFit(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing fits.

    Attributes:
        total: GPUs looked at.
        exclusions: Constraints in the order they are applied; those that remove nothing
            whatsoever are left out.
        violations: Quotas that refuse the request before any GPU is looked at.
        resolvable: Whether it can fit later without a change of request, quota or hardware.
        note: The reason in words, when it is none of these.
    """

    total: int
    exclusions: tuple[Exclusion, ...] = ()
    violations: tuple[Violation, ...] = ()
    resolvable: bool = True
    note: str = ""

    @property
    def message(self) -> str:
        """One line: ``0/12 GPUs fit: 7 insufficient VRAM, 5 wrong model``."""
        if self.note:
            return self.note
        if self.violations:
            return "; ".join(violation.message for violation in self.violations)
        if not self.total:
            return "0/0 GPUs fit: the fleet has no GPUs"
        parts = [
            f"{exclusion.removed} {exclusion.phrase}"
            for exclusion in sorted(self.exclusions, key=lambda item: -item.removed)
            if exclusion.removed
        ]
        return f"0/{self.total} GPUs fit: {', '.join(parts)}"


_PHRASES = {
    GFLOPS: ("compute", "insufficient compute"),
    PERCENT: ("compute", "insufficient compute"),
    VRAM: ("vram", "insufficient VRAM"),
    LIMIT_GFLOPS: ("compute-limit", "compute limits oversubscribed"),
    LIMIT_PERCENT: ("compute-limit", "compute limits oversubscribed"),
    LIMIT_VRAM: ("vram-limit", "VRAM limits oversubscribed"),
}

STATIC_CONSTRAINTS = frozenset(
    [rule.name for rule in PROFILE_RULES if rule.name != "phase"]
    + ["index", "node-name", "node-selector", "node-affinity", "capacity"]
)
"""Constraints that waiting does not lift."""


class StaticExclusions:
    """What the unchanging constraints of one kind of request remove; kept until they change."""

    def __init__(self, fleet: Fleet, shape: Shape, masks: StaticMasks) -> None:
        size = fleet.size
        self.version = fleet.static_journal.version
        self.present: Bools = fleet.present[:size].copy()
        self.remaining: Bools = self.present.copy()
        self.exclusions: list[Exclusion] = []
        self.total = int(np.count_nonzero(self.present))
        codes = fleet.profile_codes[:size]
        for profile_rule in PROFILE_RULES:
            table = [profile_rule.allows(shape, profile) for profile in fleet.profiles]
            if not all(table):
                allowed: Bools = np.array([*table, False], dtype=np.bool_)[codes]
                self._exclude(profile_rule.name, profile_rule.phrase, allowed)
        if shape.indices:
            allowed = np.isin(fleet.indices[:size], shape.indices)
            self._exclude("index", "at another index", allowed)
        for node_rule, mask in masks.node_rules(shape):
            allowed = np.broadcast_to(mask[:size, None], codes.shape)
            self._exclude(node_rule.name, node_rule.phrase, allowed)

    def _exclude(self, name: str, phrase: str, allowed: Bools) -> None:
        _exclude(self.exclusions, self.present, self.remaining, (name, phrase, allowed))


def explain(
    fleet: Fleet, shape: Shape, static: StaticExclusions, rules: Sequence[Rule] = ()
) -> tuple[int, int, tuple[Exclusion, ...]]:
    """Count what each constraint removes from the whole fleet.

    Costs one pass over the fleet's arrays; it is not on the path of a request that fits.

    Args:
        fleet: The columns.
        shape: The request.
        static: Up to date, for the same kind of request.
        rules: What rules about other pods leave.

    Returns:
        GPUs in the fleet, GPUs that remain, and the exclusions.
    """
    present = static.present
    remaining = static.remaining.copy()
    exclusions = list(static.exclusions)
    for constraint in _dynamic_constraints(fleet, shape):
        _exclude(exclusions, present, remaining, constraint)
    for rule in rules:
        _exclude(exclusions, present, remaining, (rule.constraint, rule.phrase, rule.cards))
    if shape.gpu_count > 1:
        exclusions += _same_node(present, remaining, shape.gpu_count)
        if shape.topology is not None and shape.topology.required:
            exclusions += _topology(fleet, shape, present, remaining)
    return static.total, int(np.count_nonzero(remaining)), tuple(exclusions)


def _exclude(
    exclusions: list[Exclusion],
    present: Bools,
    remaining: Bools,
    constraint: tuple[str, str, Bools],
) -> None:
    name, phrase, allowed = constraint
    refused = present & ~allowed
    alone = int(np.count_nonzero(refused))
    if alone:
        removed = int(np.count_nonzero(remaining & refused))
        remaining &= allowed
        exclusions.append(Exclusion(name, phrase, removed, alone))


def _dynamic_constraints(fleet: Fleet, shape: Shape) -> Iterator[tuple[str, str, Bools]]:
    size = fleet.size
    yield from _gate_constraints(fleet, shape)
    ceilings = _capacity_limits(fleet, shape)
    if ceilings is not None:
        yield "capacity", "too small for the request", ceilings
    for quantity, amount in needs_of(shape):
        name, phrase = _PHRASES[quantity]
        yield name, phrase, fleet.headroom[quantity, :size] >= amount
    for column, (name, phrase, amount) in enumerate(
        (
            ("node-cpu", "on nodes without enough free CPU", shape.cpu_milli),
            ("node-memory", "on nodes without enough free memory", shape.memory_bytes),
        )
    ):
        if amount:
            enough = fleet.host[:size, column, None] >= amount
            yield name, phrase, np.broadcast_to(enough, fleet.gate[:size].shape)


def _gate_constraints(fleet: Fleet, shape: Shape) -> Iterator[tuple[str, str, Bools]]:
    size = fleet.size
    gate = fleet.gate[:size]
    free = np.broadcast_to(~fleet.full[:size, None], gate.shape)
    if not free.all():
        yield "worker-cap", "on nodes with their maximum of workers", free
    if shape.exclusive:
        yield "idle", "not idle", ((gate & IDLE_BIT) != 0) | ~free
        return
    held = gate == 0
    yield "exclusive", "held exclusively or in conflict", ~held | ~free
    locked = (gate & GATE_BITS[shape.isolation]) == 0
    yield "isolation-lock", "locked to another isolation mode", ~locked | held
    if shape.wish is not None:
        free_slot = (gate & fleet.gate_asked(shape)) != 0
        what = shape.partition or "a partition that is large enough"
        yield "partition-slots", f"without a free slot for {what}", free_slot | locked | held


def _capacity_limits(fleet: Fleet, shape: Shape) -> Bools | None:
    """Tell which cards are large enough when idle; None when all are."""
    size = fleet.size
    request = shape.request
    allowed: Bools = (fleet.capacity[0, :size] >= request.gflops) & (
        fleet.capacity[1, :size] >= request.vram_bytes
    )
    if request.milli_percent > 100_000:
        allowed = np.zeros_like(allowed)
    return None if allowed.all() else allowed


def _same_node(present: Bools, remaining: Bools, count: int) -> list[Exclusion]:
    per_node = present.sum(axis=1)
    left = remaining.sum(axis=1)
    alone = int(per_node[per_node < count].sum())
    short = left < count
    removed = int(left[short].sum())
    remaining[short] = False
    if not alone and not removed:
        return []
    phrase = f"on nodes with fewer than {count} GPUs that fit"
    return [Exclusion("same-node", phrase, removed, alone)]


def _topology(fleet: Fleet, shape: Shape, present: Bools, remaining: Bools) -> list[Exclusion]:
    """Count the cards of nodes on which no set of cards is connected as well as it must be."""
    wishes = TopologyWishes(fleet, shape)

    def refused(cards: Bools) -> Bools:
        fails = np.zeros(len(cards), dtype=np.bool_)
        for slot in (cards.sum(axis=1) >= shape.gpu_count).nonzero()[0].tolist():
            fails[slot] = wishes.worth(slot, cards[slot].nonzero()[0].tolist()) is None
        return fails

    removed, alone = refused(remaining), refused(present)
    tier = shape.topology.max_tier if shape.topology is not None else UNKNOWN
    counts = (int(remaining[removed].sum()), int(present[alone].sum()))
    remaining[removed] = False
    if not any(counts):
        return []
    phrase = f"on nodes without {shape.gpu_count} GPUs connected at tier {tier} or better"
    return [Exclusion("topology", phrase, *counts)]
