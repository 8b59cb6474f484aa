"""Compaction: which empty nodes a pool can give back and stay as large and as warm as promised."""

from collections.abc import Iterable
from typing import Final

import msgspec

MIN_AGE_SECONDS: Final = 300
"""A younger node may have been added for somebody who is about to use it."""


class Amounts(msgspec.Struct, frozen=True):
    """Compute in GFLOP/s and memory in bytes."""

    gflops: int = 0
    vram_bytes: int = 0

    def minus(self, other: "Amounts") -> "Amounts":
        """Subtract."""
        return Amounts(self.gflops - other.gflops, self.vram_bytes - other.vram_bytes)

    def covers(self, other: "Amounts") -> bool:
        """Whether both amounts are at least the other's."""
        return self.gflops >= other.gflops and self.vram_bytes >= other.vram_bytes


class NodeSize(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the pool.

    Attributes:
        gpus: How many GPUs it has.
        total: What its GPUs have.
        free: What of it no worker holds.
        workers: How many workers it runs.
        age_seconds: Since it joined.
        obstacle: Why it must stay; empty when it may go.
    """

    name: str
    gpus: int
    total: Amounts
    free: Amounts
    workers: int
    age_seconds: float
    obstacle: str = ""


class PoolFloor(msgspec.Struct, frozen=True, kw_only=True):
    """What a pool keeps: its least size, and what stays free for whoever comes next."""

    least: Amounts = Amounts()
    warm: Amounts = Amounts()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an empty node goes, and why it stays if it does not."""

    node: str
    gpus: int
    total: Amounts
    goes: bool
    reason: str


class CompactionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict per empty node, those that go first.

    Attributes:
        before: Size of the pool now.
        after: Size without the nodes that go.
    """

    verdicts: tuple[Verdict, ...]
    before: Amounts
    after: Amounts

    @property
    def goes(self) -> tuple[str, ...]:
        """Names of the nodes that can be given back."""
        return tuple(v.node for v in self.verdicts if v.goes)


def plan_compaction(nodes: Iterable[NodeSize], floor: PoolFloor) -> CompactionPlan:
    """Decide for every empty node; the largest first, since each that goes saves most."""
    nodes = list(nodes)
    total, free = total_of(n.total for n in nodes), total_of(n.free for n in nodes)
    before = total
    verdicts = []
    empty = [n for n in nodes if not n.workers]
    for node in sorted(empty, key=lambda n: (-n.total.gflops, -n.total.vram_bytes, n.name)):
        reason = _reason(node, total, free, floor)
        if not reason:
            total, free = total.minus(node.total), free.minus(node.free)
        verdicts.append(
            Verdict(
                node=node.name, gpus=node.gpus, total=node.total, goes=not reason, reason=reason
            )
        )
    ordered = sorted(verdicts, key=lambda v: not v.goes)
    return CompactionPlan(verdicts=tuple(ordered), before=before, after=total)


def _reason(node: NodeSize, total: Amounts, free: Amounts, floor: PoolFloor) -> str:
    """Say why an empty node stays; empty when it can go."""
    if node.obstacle:
        return node.obstacle
    if node.age_seconds < MIN_AGE_SECONDS:
        return f"it joined less than {MIN_AGE_SECONDS // 60} minutes ago"
    if not free.minus(node.free).covers(floor.warm):
        return "the pool's warm resources would not be free any more"
    if not total.minus(node.total).covers(floor.least):
        return "the pool would fall below its least resources"
    return ""


def total_of(amounts: Iterable[Amounts]) -> Amounts:
    """Add amounts up."""
    parts = list(amounts)
    return Amounts(sum(a.gflops for a in parts), sum(a.vram_bytes for a in parts))
