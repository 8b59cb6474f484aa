"""How the cards of a node are connected, and which of them to take together.

A pair of cards has a tier: 0 linked directly, 1 on one NUMA node, 2 across NUMA nodes, 3 not known.
A set is as good as its worst pair; between sets of equal tier the sum over all pairs decides, then
what is left of the neighbourhoods, so that large ones stay whole.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations
from math import comb
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.device import Device

LINKED, SAME_NUMA, ACROSS_NUMA, UNKNOWN = range(4)
SOURCES: Final = ("auto", "numa", "vendor")
DEFAULT_MAX_TIER: Final = SAME_NUMA

EXACT_SETS: Final = 20_000
"""Sets of cards up to which all are compared; eight of sixteen cards are 12,870."""

_NEARNESS: Final = np.array((10, 6, 2, 0), dtype=np.int64)
"""What a pair of each tier adds; the weights of the reference's peer evaluator."""

_POSITIONS = NDArray[np.intp]


class TopologyWish(msgspec.Struct, frozen=True, kw_only=True):
    """How a request wants its cards connected.

    Attributes:
        required: Refuse worse sets instead of only preferring better ones.
        max_tier: Worst tier that satisfies it, 0 to 3.
        source: ``numa`` looks at NUMA nodes only, ``vendor`` at the driver's tiers and at NUMA
            where it says nothing, ``auto`` at what there is.
    """

    required: bool = False
    max_tier: int = DEFAULT_MAX_TIER
    source: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: Names the field, its value and what is allowed.
        """
        if not 0 <= self.max_tier <= UNKNOWN:
            raise ValueError(f"max_tier is {self.max_tier}, allowed are 0 to {UNKNOWN}")
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}, allowed are {', '.join(SOURCES)}")


class NodeTopology(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """The connections of one node; nodes that are wired alike have equal ones.

    Attributes:
        tiers: Tier of each pair of cards, in order of index.
        bandwidths: Bandwidth of each pair, MB/s; 0 when not known.
        numa: NUMA node of each card, -1 when not known.
        source: ``vendor``, ``numa`` or ``none``: where the tiers come from.
    """

    tiers: tuple[tuple[int, ...], ...]
    bandwidths: tuple[tuple[int, ...], ...]
    numa: tuple[int, ...]
    source: str


class CardSet(NamedTuple):
    """Cards to take together.

    Attributes:
        positions: Of the cards, sorted.
        tier: Of the worst pair; 0 for a single card.
        nearness: Sum over the pairs in percent of the best there could be.
    """

    positions: tuple[int, ...]
    tier: int
    nearness: int


class Connection(msgspec.Struct, frozen=True):
    """What a request got: tier of the worst pair, where it was read, and words for people."""

    tier: int
    source: str
    reason: str


def topology_of(devices: Sequence[Device | None], source: str) -> NodeTopology:
    """Read the connections of a node from its devices.

    Args:
        devices: In order of index.
        source: See `TopologyWish.source`.
    """
    if all(d is None or (d.numa_node < 0 and not d.peers) for d in devices):
        return _nothing_known(len(devices))
    peers = {
        (device.uuid.lower(), peer.uuid.lower()): peer
        for device in devices
        if device is not None and source != "numa"
        for peer in device.peers
    }
    names = ["" if device is None else device.uuid.lower() for device in devices]
    numa = tuple(-1 if device is None else device.numa_node for device in devices)
    count = len(devices)
    tiers = [[LINKED] * count for _ in range(count)]
    bandwidths = [[0] * count for _ in range(count)]
    for a, b in combinations(range(count), 2):
        # Each end may say something; the better word counts.
        said = [p for key in ((names[a], names[b]), (names[b], names[a])) if (p := peers.get(key))]
        tier = min((p.tier for p in said if 0 <= p.tier < UNKNOWN), default=UNKNOWN)
        if tier == UNKNOWN and min(numa[a], numa[b]) >= 0:
            tier = SAME_NUMA if numa[a] == numa[b] else ACROSS_NUMA
        tiers[a][b] = tiers[b][a] = tier
        bandwidths[a][b] = bandwidths[b][a] = max((p.bandwidth_mbps for p in said), default=0)
    read = "vendor" if peers else "numa" if max(numa, default=-1) >= 0 else "none"
    return NodeTopology(
        tiers=tuple(map(tuple, tiers)),
        bandwidths=tuple(map(tuple, bandwidths)),
        numa=numa,
        source=read,
    )


@cache
def _nothing_known(count: int) -> NodeTopology:
    tiers = tuple(tuple(LINKED if a == b else UNKNOWN for b in range(count)) for a in range(count))
    return NodeTopology(
        tiers=tiers, bandwidths=((0,) * count,) * count, numa=(-1,) * count, source="none"
    )


@lru_cache(maxsize=1 << 14)
def best_set(topology: NodeTopology, order: tuple[int, ...], count: int) -> CardSet:
    """Choose the best connected cards.

    In this order: the lowest worst tier, the highest sum of nearness, the fewest cards left over
    in the neighbourhood, the highest bandwidth, and the cards that come first in ``order``. Exact
    while there are at most `EXACT_SETS` sets; of larger nodes the best set grown from each card.

    Args:
        topology: Of the node.
        order: Positions of the cards that fit, those preferred otherwise first.
        count: Cards to take, at most ``len(order)``.
    """
    cards = np.array(order, dtype=np.intp)
    if comb(len(order), count) <= EXACT_SETS:
        sets = _all_sets(len(order), count)
    else:
        sets = _grown_sets(topology, cards, count)
    chosen = cards[sets]
    tiers = np.array(topology.tiers, dtype=np.int64)
    bandwidths = np.array(topology.bandwidths, dtype=np.int64)
    worst = np.zeros(len(sets), dtype=np.int64)
    nearness = np.zeros(len(sets), dtype=np.int64)
    bandwidth = np.zeros(len(sets), dtype=np.int64)
    for a, b in combinations(range(count), 2):
        pair = tiers[chosen[:, a], chosen[:, b]]
        np.maximum(worst, pair, out=worst)
        nearness += _NEARNESS[pair]
        bandwidth += bandwidths[chosen[:, a], chosen[:, b]]
    left = _left_over(tiers, cards, sets, worst)
    best = int(np.lexsort((sets.sum(axis=1), -bandwidth, left, -nearness, worst))[0])
    pairs = comb(count, 2)
    percent = int(nearness[best]) * 10 // pairs if pairs else 100
    return CardSet(tuple(sorted(chosen[best].tolist())), int(worst[best]), percent)


@lru_cache(maxsize=256)
def _all_sets(size: int, count: int) -> _POSITIONS:
    found: _POSITIONS = np.array(list(combinations(range(size), count)), dtype=np.intp)
    return found.reshape(-1, count)


def _grown_sets(topology: NodeTopology, cards: _POSITIONS, count: int) -> _POSITIONS:
    """Grow one set from each card, always by the card that fits in best."""
    tiers = np.array(topology.tiers, dtype=np.int64)[np.ix_(cards, cards)]
    near = _NEARNESS[tiers]
    sets = []
    for first in range(len(cards)):
        members = [first]
        while len(members) < count:
            others = [c for c in range(len(cards)) if c not in members]
            members.append(
                min(others, key=lambda c: (tiers[c, members].max(), -near[c, members].sum(), c))
            )
        sets.append(sorted(members))
    return np.array(sets, dtype=np.intp)


def _left_over(
    tiers: NDArray[np.int64], cards: _POSITIONS, sets: _POSITIONS, worst: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count the cards that fit in the neighbourhood of each set and are not taken.

    A neighbourhood are the cards reached over pairs of the set's tier or better. For one card the
    direct links count first, then the NUMA node.
    """
    among = tiers[np.ix_(cards, cards)]
    sizes = [_neighbourhoods(among <= tier) for tier in range(UNKNOWN + 1)]
    count = sets.shape[1]
    first = sets[:, 0]
    if count == 1:
        single: NDArray[np.int64] = (
            sizes[LINKED][first] * (len(cards) + 1) + sizes[SAME_NUMA][first]
        )
        return single
    left = np.zeros(len(sets), dtype=np.int64)
    for tier in range(UNKNOWN + 1):
        here = worst == tier
        left[here] = sizes[tier][first[here]] - count
    return left


def _neighbourhoods(near: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each card how many cards its connected component has."""
    reach = near.copy()
    for middle in range(len(reach)):
        reach |= np.outer(reach[:, middle], reach[middle])
    sizes: NDArray[np.int64] = reach.sum(axis=1).astype(np.int64)
    return sizes


def connection(
    topology: NodeTopology, positions: Sequence[int], wish: TopologyWish | None
) -> Connection:
    """Say how cards that were chosen are connected."""
    tier = max((topology.tiers[a][b] for a, b in combinations(positions, 2)), default=LINKED)
    nodes = sorted({topology.numa[position] for position in positions})
    where = " and ".join(str(node) for node in nodes)
    if len(positions) == 1:
        reason = "a single GPU"
    elif tier == LINKED:
        reason = f"all {len(positions)} GPUs are linked to each other"
    elif tier == UNKNOWN:
        reason = "how the GPUs are connected is not known"
    elif len(nodes) == 1 and nodes[0] >= 0:
        reason = f"all on NUMA node {where}"
    else:
        reason = "within one NUMA node" if tier == SAME_NUMA else f"across NUMA nodes {where}"
    if wish is not None and tier > wish.max_tier:
        reason += f"; tier {wish.max_tier} was preferred and no better set was free there"
    return Connection(tier, topology.source, reason)
