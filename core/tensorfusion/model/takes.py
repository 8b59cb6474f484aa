"""What a request takes of one card, and whether the card can give it."""

from collections.abc import Sequence

from tensorfusion.errors import TensorFusionError
from tensorfusion.model.allocation import DeviceUsage, Take
from tensorfusion.model.demand import Amount
from tensorfusion.model.device import Device
from tensorfusion.model.partitions import PartitionWish, best_of, conflicts
from tensorfusion.model.quota import Violation, resolve


class AllocationRefused(TensorFusionError):
    """The ledger cannot do what was asked; nothing changed.

    Attributes:
        reason: CamelCase, for conditions and events.
        violations: Quotas that would break, when that is the reason.
    """

    def __init__(self, reason: str, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.violations = tuple(violations)


def take_of(device: Device, request: Amount, limit: Amount, *, exclusive: bool) -> Take:
    """Turn amounts into what is held of a device; an exclusive worker holds all of it.

    Raises:
        AllocationRefused: An exclusive worker asks for more than the card has.
    """
    amounts = resolve(request, limit, device.capacity_gflops)
    if not exclusive:
        return Take(device.uuid, *amounts)
    if amounts[0] > device.capacity_gflops or amounts[1] > device.capacity_vram_bytes:
        raise AllocationRefused(
            "InsufficientCapacity", f"device {device.uuid} is smaller than the request"
        )
    whole = (device.capacity_gflops, device.capacity_vram_bytes)
    return Take(device.uuid, *whole, max(whole[0], amounts[2]), max(whole[1], amounts[3]))


def partition_take(usage: DeviceUsage, device: Device, wish: PartitionWish) -> Take:
    """Choose template and place of a partition on a card; see `best_of`.

    Raises:
        AllocationRefused: No template will do, or none that will has a free slot.
    """
    kinds = device.partition_kinds
    names = [kind.template for kind in kinds if kind.covers(wish)]
    if device.geometry is None or not names:
        raise AllocationRefused(
            "NoSuchPartition",
            f"device {usage.uuid} has no partition template "
            f"{wish.template or 'that covers the request'}",
        )
    found = best_of(device.geometry, usage.cuts, usage.idle_cuts, kinds, wish)
    if found is None:
        raise AllocationRefused(
            "NoFreeSlot", f"device {usage.uuid} has no free slot for {' or '.join(names)}"
        )
    kind, choice = found
    amounts = (kind.gflops, kind.vram_bytes)
    return Take(device.uuid, *amounts, *amounts, choice.cut)


_LABELS = ("compute", "VRAM", "compute limit", "VRAM limit")
_UNITS = ("GFLOP/s", "bytes", "GFLOP/s", "bytes")


def _amounts(take: Take | None) -> tuple[int, int, int, int]:
    if take is None:
        return (0, 0, 0, 0)
    return (take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes)


def require_fit(usage: DeviceUsage, device: Device, new: Take, old: Take | None) -> None:
    """Refuse what a card cannot give; what does not grow always fits."""
    used = (usage.used_gflops, usage.used_vram_bytes, usage.limit_gflops, usage.limit_vram_bytes)
    ceilings = (
        device.capacity_gflops,
        device.capacity_vram_bytes,
        device.limit_gflops,
        device.limit_vram_bytes,
    )
    after = _amounts(new)
    before = _amounts(old)
    for position in range(4):
        held = used[position] - before[position]
        if after[position] > before[position] or old is None:
            if held + after[position] <= ceilings[position]:
                continue
            raise AllocationRefused(
                "InsufficientCapacity",
                f"device {usage.uuid}: {_LABELS[position]} {after[position]} asked, "
                f"{ceilings[position] - held} of {ceilings[position]} "
                f"{_UNITS[position]} free",
            )


def overcommitted(usage: DeviceUsage) -> list[str]:
    """Name everything that a card has given away and does not have."""
    device = usage.device
    if device is None:
        return []
    found = []
    if usage.free_gflops < 0 or usage.free_vram_bytes < 0:
        found.append(f"device {usage.uuid}: requests exceed the card")
    if usage.limit_gflops > device.limit_gflops or usage.limit_vram_bytes > device.limit_vram_bytes:
        found.append(f"device {usage.uuid}: limits exceed the virtual capacity")
    if device.geometry is not None:
        found += [
            f"device {usage.uuid}: partition {cut.template} at slot {cut.start} has no room"
            for cut in conflicts(device.geometry, usage.cuts)
        ]
    if usage.exclusive_holders and len(usage.members) > 1:
        found.append(f"device {usage.uuid}: held exclusively by one of several workers")
    return found
