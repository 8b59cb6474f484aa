"""What is left of a card, and who may join it: figures that the fleet keeps as columns."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.allocation import DeviceUsage
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT
from tensorfusion.model.device import DYNAMIC, ISOLATION_MODES, Device
from tensorfusion.model.rows import MILLI_PLANE
from tensorfusion.model.typical import MILLI_CARD

GFLOPS, VRAM, LIMIT_GFLOPS, LIMIT_VRAM, PERCENT, LIMIT_PERCENT = range(6)
"""Quantities of `tensorfusion.model.fleet.Fleet.headroom`, in order. Percent is compute as milli-percent of the card."""

QUANTITIES: Final = MILLI_PLANE

ROUGH: Final = (PERCENT, LIMIT_PERCENT, VRAM, LIMIT_VRAM, GFLOPS, LIMIT_GFLOPS)
"""Order of the rough columns: those that a request looks at lie side by side."""

MIB_SHIFT: Final = 20
"""Memory is looked at in whole MiB where a rough answer will do."""
MILLIONTHS: Final = 1_000_000
_PER_MILLI: Final = MILLIONTHS // MILLI_CARD
MOST_ROUGH: Final = (1 << 31) - 1

IDLE_BIT: Final = 1
"""Gate bit of a card that nobody uses: a whole-card request may take it."""

GATE_BITS: Final = {mode: 2 << position for position, mode in enumerate(ISOLATION_MODES)}
"""Gate bit per isolation mode: a worker of that mode may join the card as it is now."""

_OPEN: Final = sum(GATE_BITS.values())
_PARTITIONED: Final = GATE_BITS["partitioned"]
FIRST_PARTITION_BIT: Final = 1 + len(ISOLATION_MODES)


def gate_of(usage: DeviceUsage, node_full: bool, partitions: int = 0) -> int:
    """Tell who may join a card now, as bits.

    Args:
        usage: Of the card.
        node_full: Whether its node runs as many workers as it may.
        partitions: Bits of the kinds of partition that fit now.
    """
    if node_full or usage.exclusive_holders:
        return 0
    if not usage.members:
        return _OPEN | IDLE_BIT | partitions
    device = usage.device
    if device is None:
        return _OPEN
    if usage.conflict:
        return 0
    if device.isolation_policy == DYNAMIC:
        return GATE_BITS[usage.active_isolation]
    # A card is either cut into partitions or shared, never both.
    return _PARTITIONED | partitions if usage.cuts else _OPEN & ~_PARTITIONED


def largest_percent(free_gflops: int, capacity_gflops: int) -> int:
    """Return the largest share of a card that still fits, thousandths of a percent.

    A share of p on a card of c GFLOP/s is ``p * c // 100000``, and that is at most ``free``
    exactly while ``p <= ((free + 1) * 100000 - 1) // c``.
    """
    return ((free_gflops + 1) * FULL_CARD_MILLI_PERCENT - 1) // (capacity_gflops or 1)


def headroom_of(usage: DeviceUsage, device: Device) -> tuple[int, ...]:
    """Return what is left of a card: one figure per quantity, then as shares of the card.

    Of the shares the first is in thousandths, the smaller of what compute and memory leave,
    rounded down; a dimension that the card does not have does not limit it. The others are what
    compute and memory leave, each by itself, in millionths, rounded down, 0 without the dimension.

    The percentages are those of `largest_percent`.
    """
    capacity = device.capacity_gflops
    gflops = capacity - usage.used_gflops
    limit = device.limit_gflops - usage.limit_gflops
    vram = device.capacity_vram_bytes - usage.used_vram_bytes
    compute_share = gflops * MILLIONTHS // (capacity or 1)
    vram_share = vram * MILLIONTHS // (device.capacity_vram_bytes or 1)
    milli = compute_share // _PER_MILLI if capacity else MILLI_CARD
    if device.capacity_vram_bytes:
        milli = min(milli, vram_share // _PER_MILLI)
    return (
        gflops,
        vram,
        limit,
        device.limit_vram_bytes - usage.limit_vram_bytes,
        largest_percent(gflops, capacity),
        largest_percent(limit, capacity),
        max(milli, 0),
        compute_share,
        vram_share,
    )


def rough_needs(needs: Sequence[tuple[int, int]]) -> tuple[int, NDArray[np.int32]]:
    """Turn what a card must have left into what is compared with the rough columns.

    Args:
        needs: (quantity, amount) pairs, at least one.

    Returns:
        The first column, and the least of that and of each following column, to be compared with
        (columns, nodes, slots).
    """
    places = {ROUGH.index(quantity): _rough_amount(quantity, amount) for quantity, amount in needs}
    first, last = min(places), max(places)
    least = [places.get(place, -MOST_ROUGH) for place in range(first, last + 1)]
    return first, np.array(least, dtype=np.int32)[:, None, None]


def _rough_amount(quantity: int, amount: int) -> int:
    """Return an amount as the rough columns have it: never more than it is, at most 2^31 - 1."""
    if quantity in (VRAM, LIMIT_VRAM):
        amount >>= MIB_SHIFT
    return min(max(amount, -1), MOST_ROUGH)
