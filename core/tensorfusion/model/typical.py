"""Typical requests, and how much of a node's idle GPU they could not use: its fragmentation.

The measure is the one of "Beware of Fragmentation" (USENIX ATC 2023): the idle thousandths of
card that a request drawn from the typical ones cannot use, in expectation. All of the node's idle
GPU counts when the request needs no GPU, another card, more CPU than is free or more whole cards
than are free; otherwise the idle parts too small for its share count.

What a request can use of a card depends on the card's kind, on the node's free CPU and on the
card's free part alone, so sums over all typical requests are tables, and the fragmentation of a
node costs a look-up per card. Everything is an integer: frequencies are counts.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.demand import MAX_GPU_COUNT, Amount, Shape
from tensorfusion.model.device import DeviceProfile
from tensorfusion.model.filters import allows_profile

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MILLI_CARD: Final = 1000
"""Thousandths of a card in a card."""

COVERAGE: Final = 0.95
"""Share of all requests that the typical ones cover, as in the paper's artifact."""


class CardKind(NamedTuple):
    """What decides how large a share of a card a request is: its profile and its capacity."""

    profile: DeviceProfile
    capacity_gflops: int
    capacity_vram_bytes: int


def wanted_milli(shape: Shape, kind: CardKind) -> int:
    """Return the thousandths of such a card that a request takes of each card, rounded up.

    The larger of its shares of compute and memory; more than 1000 when the card is too small.
    """
    if not shape.gpu_count:
        return 0
    if shape.exclusive:
        return MILLI_CARD
    request = shape.request
    wish = shape.wish
    if wish is not None:
        fitting = [part for part in kind.profile.partitions if part.covers(wish)]
        if not fitting:
            return MILLI_CARD + 1
        part = min(fitting, key=lambda p: (p.vram_bytes, p.gflops))
        request = Amount(part.gflops, part.vram_bytes)
    compute = -(-request.milli_percent // 100)
    if request.gflops:
        compute = -(-request.gflops * MILLI_CARD // (kind.capacity_gflops or 1))
    return max(compute, -(-request.vram_bytes * MILLI_CARD // (kind.capacity_vram_bytes or 1)))


def most_typical(counts: Mapping[Shape, int], coverage: float = COVERAGE) -> dict[Shape, int]:
    """Keep the most frequent requests until they cover a share of all.

    Requests that differ only in what the measure does not look at, such as memory of the node,
    count as one; equal counts go by the request itself, so the result does not depend on order.
    """
    merged: dict[tuple[object, ...], tuple[Shape, int]] = {}
    for shape, count in counts.items():
        key = _traits(shape)
        known = merged.get(key)
        merged[key] = (shape if known is None else known[0], count + (known[1] if known else 0))
    ordered = sorted(merged.items(), key=lambda item: (-item[1][1], repr(item[0])))
    total = sum(counts.values())
    kept: dict[Shape, int] = {}
    covered = 0
    for _, (shape, count) in ordered:
        if covered >= coverage * total:
            break
        kept[shape] = count
        covered += count
    return kept


def count_shapes(shapes: Iterable[Shape]) -> dict[Shape, int]:
    """Count equal requests."""
    counts: dict[Shape, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    return counts


class TypicalTasks:
    """Tables of what typical requests can use. Immutable.

    Attributes:
        counts: The typical requests and how often each occurs.
        kinds: Cards the tables are about.
        total: Sum of the counts; results are in thousandths of a card times this.
    """

    def __init__(self, counts: Mapping[Shape, int], kinds: tuple[CardKind, ...]) -> None:
        self.counts = dict(counts)
        self.kinds = kinds
        self.total = sum(counts.values())
        levels = sorted({shape.cpu_milli for shape in counts if shape.gpu_count} | {0})
        self._levels = np.array(levels[1:], dtype=np.int64)
        share = np.zeros((max(len(kinds), 1), len(levels), MILLI_CARD + 1), dtype=np.int64)
        whole = np.zeros((max(len(kinds), 1), len(levels), MAX_GPU_COUNT + 1), dtype=np.int64)
        for shape, count in counts.items():
            level = levels.index(shape.cpu_milli) if shape.gpu_count else 0
            for code, kind in enumerate(kinds):
                milli = wanted_milli(shape, kind)
                if milli > MILLI_CARD or not shape.gpu_count or not allows_profile(shape, kind[0]):
                    continue
                # Several parts of cards count as whole cards, which is at most too pessimistic.
                if shape.gpu_count == 1 and milli < MILLI_CARD:
                    share[code, level:, milli:] += count
                else:
                    whole[code, level:, shape.gpu_count :] += count
        self._share = (share * np.arange(MILLI_CARD + 1)).ravel()
        weighted = whole * np.arange(MAX_GPU_COUNT + 1) * MILLI_CARD
        self._whole = weighted.ravel()
        # What whole cards are worth less when one of them is no longer whole.
        self._broken = -np.diff(weighted, axis=2, prepend=0).ravel()
        self._level_list: list[int] = self._levels.tolist()
        self._share_list: list[int] = self._share.tolist()
        self._whole_list: list[int] = self._whole.tolist()

    def usable_by(self, kind: int, cpu: int, free: Sequence[int]) -> int:
        """Return what `usable` does, for one node; plain lists are faster for one."""
        row = bisect_right(self._level_list, cpu) + max(kind, 0) * (len(self._level_list) + 1)
        start = row * (MILLI_CARD + 1)
        share = self._share_list
        idle = sum([left == MILLI_CARD for left in free])
        parts = sum([share[start + left] for left in free])
        return parts + self._whole_list[row * (MAX_GPU_COUNT + 1) + idle]

    def usable(self, kinds: Ints, cpu: Ints, free: Ints) -> Ints:
        """Return what typical requests can use of nodes, in expectation times `total`.

        Args:
            kinds: Kind of the node's cards, (nodes,).
            cpu: Free CPU, (nodes,).
            free: Free thousandths of each card, (nodes, slots).
        """
        row = self._row(kinds, cpu)
        idle: Ints = (free == MILLI_CARD).sum(axis=1)
        parts = self._share.take(free + (row * (MILLI_CARD + 1))[:, None])
        total: Ints = parts.sum(axis=1)
        total += self._whole.take(row * (MAX_GPU_COUNT + 1) + idle)
        return total

    def usable_after(self, kinds: Ints, cpu: Ints, free: Ints, idle: Ints, wanted: Ints) -> Ints:
        """Return the same as it would be after one card gave ``wanted``, for each card.

        Args:
            kinds: As in `usable`.
            cpu: Free CPU afterwards.
            free: Free thousandths before.
            idle: Idle cards before, (nodes,).
            wanted: What is taken, (nodes,).

        Returns:
            (nodes, slots); meaningless for cards with less than ``wanted`` left.
        """
        row = self._row(kinds, cpu)
        start = row * (MILLI_CARD + 1)
        # Sums over cards run along the first axis, which is several times faster for few cards.
        before = free.T.copy()
        cell = before + start
        parts = self._share.take(cell, mode="clip")
        # Cards with less than is wanted read another row, which their result may.
        cell -= wanted
        change = self._share.take(cell, mode="clip")
        change -= parts
        last = row * (MAX_GPU_COUNT + 1) + idle
        whole = self._whole.take(last)
        change += (before == MILLI_CARD) * self._broken.take(last)
        whole += parts.sum(axis=0)
        change += whole
        result: Ints = change.T
        return result

    def _row(self, kinds: Ints, cpu: Ints) -> Ints:
        levels = self._levels.searchsorted(cpu, side="right")
        levels += np.maximum(kinds, 0) * (len(self._levels) + 1)
        return levels


def _traits(shape: Shape) -> tuple[object, ...]:
    if not shape.gpu_count:
        return (0, shape.cpu_milli, shape.pool)
    return (
        shape.gpu_count,
        shape.cpu_milli,
        shape.pool,
        shape.vendor,
        shape.models,
        shape.isolation,
        shape.exclusive,
        () if shape.exclusive else (shape.request.gflops, shape.request.vram_bytes),
        shape.request.milli_percent,
    )
