"""What a worker holds, and what a device gives: the records the ledger is made of."""

import hashlib
from typing import Final

import msgspec

from tensorfusion.model.claims import Claim
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount
from tensorfusion.model.device import DYNAMIC, Device
from tensorfusion.model.neighbours import Identity
from tensorfusion.model.partitions import Cut, Cuts
from tensorfusion.model.quota import Usage

DIGEST_MODULUS: Final = 1 << 128
TASK_KINDS: Final = 10
"""Kinds of allocation a node counts: a part of a card, one to eight whole cards, more."""

_ENCODER: Final = msgspec.json.Encoder()


class Take(msgspec.Struct, frozen=True):
    """What one worker holds of one device, in base units.

    The request is deducted from the card; the limit counts against its virtual capacity.
    ``cut`` is the hardware partition, if it is one; unset is not encoded.
    """

    uuid: str
    gflops: int
    vram_bytes: int
    limit_gflops: int
    limit_vram_bytes: int
    cut: Cut | msgspec.UnsetType = msgspec.UNSET


class HostTake(msgspec.Struct, frozen=True):
    """What a pod holds of its node besides devices: thousandths of a core, and bytes."""

    cpu_milli: int = 0
    memory_bytes: int = 0


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """One worker and everything it holds.

    Attributes:
        key: Uid of the pod the worker was made for.
        namespace: Namespace of that pod.
        name: Name of that pod.
        node: Node of all devices.
        workload: Workload the worker serves; pods that name it may share the worker.
        pool: Pool of the devices.
        qos: Quality of service.
        isolation: Isolation mode.
        exclusive: Whether whole cards are held.
        request: Request per GPU as it was asked for.
        limit: Limit per GPU as it was asked for.
        takes: What is held, one entry per device, in the order of the container assignment.
        holders: Uids of the pods that use the worker, sorted; the last one to leave frees it.
        containers: Container name and its device uuids, when dealt out by the pod.
        host: CPU and memory of the node. Unset is not encoded, so records written before it
            existed keep their bytes and their digest.
        identity: What other pods need to know of it. Unset is not encoded either.
        claims: Numbers it has for itself, sorted; unset as above.
    """

    key: str
    namespace: str
    name: str
    node: str
    workload: str = ""
    pool: str = ""
    qos: str = "medium"
    isolation: str = "soft"
    exclusive: bool = False
    request: Amount = Amount()
    limit: Amount = Amount()
    takes: tuple[Take, ...] = ()
    holders: tuple[str, ...] = ()
    containers: tuple[tuple[str, tuple[str, ...]], ...] = ()
    host: HostTake | msgspec.UnsetType = msgspec.UNSET
    identity: Identity | msgspec.UnsetType = msgspec.UNSET
    claims: tuple[Claim, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def devices(self) -> tuple[str, ...]:
        """Uuids of the devices held."""
        return tuple(take.uuid for take in self.takes)

    def cut_on(self, uuid: str) -> Cut | None:
        """Return the partition held of a device; None when there is none."""
        for take in self.takes:
            if take.uuid == uuid and take.cut is not msgspec.UNSET:
                return take.cut
        return None

    @property
    def usage(self) -> Usage:
        """What this worker adds to its namespace's usage."""
        if len(self.takes) == 1:
            take = self.takes[0]
            return Usage(take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes, 1)
        if not self.takes:
            return Usage()
        return Usage(
            sum(take.gflops for take in self.takes),
            sum(take.vram_bytes for take in self.takes),
            sum(take.limit_gflops for take in self.takes),
            sum(take.limit_vram_bytes for take in self.takes),
            1,
        )


def cuts_held(allocation: Allocation) -> dict[str, Cut]:
    """Return the hardware partitions of a worker by device."""
    return {take.uuid: take.cut for take in allocation.takes if take.cut is not msgspec.UNSET}


def canonical_bytes(allocation: Allocation) -> bytes:
    """Encode an allocation so that equal ones give equal bytes: JSON in order of declaration."""
    return _ENCODER.encode(allocation)


def allocation_hash(allocation: Allocation) -> int:
    """Hash an allocation to 128 bits; their sum is the digest of a whole ledger."""
    digest = hashlib.blake2b(_ENCODER.encode(allocation), digest_size=16).digest()
    return int.from_bytes(digest, "big")


def task_kind(allocation: Allocation) -> int | None:
    """Return the column of `NodeUsage.kinds` that counts this allocation.

    Returns:
        0 for a part of one card, n for n whole cards (the last column for more), None when no
        card is held.
    """
    count = len(allocation.takes)
    if not count:
        return None
    whole = allocation.exclusive or allocation.request.milli_percent >= FULL_CARD_MILLI_PERCENT
    return 0 if count == 1 and not whole else min(count, TASK_KINDS - 1)


class NodeUsage:
    """One node's running totals. Owned by the ledger; everyone else only reads.

    Attributes:
        workers: Allocations that hold devices.
        cpu_milli: CPU requested by pods that were placed with one, thousandths of a core.
        memory_bytes: Memory likewise.
        kinds: Allocations per kind; see `task_kind`.
    """

    __slots__ = ("cpu_milli", "kinds", "memory_bytes", "workers")

    def __init__(self) -> None:
        self.workers = 0
        self.cpu_milli = 0
        self.memory_bytes = 0
        self.kinds = [0] * TASK_KINDS

    def apply(self, allocation: Allocation, sign: int) -> None:
        """Add (1) or remove (-1) what one allocation holds."""
        kind = task_kind(allocation)
        if kind is not None:
            self.kinds[kind] += sign
            self.workers += sign
        host = allocation.host
        if host is not msgspec.UNSET:
            self.cpu_milli += sign * host.cpu_milli
            self.memory_bytes += sign * host.memory_bytes

    def totals(self) -> tuple[int, ...]:
        """Return all totals, for comparisons."""
        return (self.workers, self.cpu_milli, self.memory_bytes, *self.kinds)


NO_NODE_USAGE: Final = NodeUsage()
"""Usage of a node that nobody uses."""


class DeviceUsage:
    """One device's running totals. Owned by the ledger; everyone else only reads.

    A device that disappears while workers hold it stays, with ``device`` None and no capacity,
    until they have left.
    """

    __slots__ = (
        "cuts",
        "device",
        "exclusive_holders",
        "limit_gflops",
        "limit_vram_bytes",
        "members",
        "offered",
        "used_gflops",
        "used_vram_bytes",
        "uuid",
    )

    def __init__(self, uuid: str, device: Device | None = None) -> None:
        self.uuid = uuid
        self.device = device
        self.used_gflops = 0
        self.used_vram_bytes = 0
        self.limit_gflops = 0
        self.limit_vram_bytes = 0
        self.exclusive_holders = 0
        self.offered: frozenset[str] = frozenset()
        """Isolation modes the device can ever offer."""
        self.members: dict[str, str] = {}
        """Allocation key to isolation mode."""
        self.cuts: Cuts = ()
        """Hardware partitions that workers hold, sorted."""

    @property
    def free_gflops(self) -> int:
        """Compute not requested by anyone; negative when the card shrank under its workers."""
        return (self.device.capacity_gflops if self.device else 0) - self.used_gflops

    @property
    def free_vram_bytes(self) -> int:
        """Memory not requested by anyone; negative when the card shrank under its workers."""
        return (self.device.capacity_vram_bytes if self.device else 0) - self.used_vram_bytes

    @property
    def active_isolation(self) -> str:
        """Mode a card of dynamic policy is locked to; empty when idle or of static policy."""
        if not self.members or self.device is None or self.device.isolation_policy != DYNAMIC:
            return ""
        return next(iter(self.members.values()))

    @property
    def idle_cuts(self) -> Cuts:
        """Hardware partitions that exist and that nobody holds."""
        left = list(self.device.idle_partitions) if self.device is not None else []
        for cut in self.cuts:
            if cut in left:
                left.remove(cut)
        return tuple(sorted(left))

    @property
    def conflict(self) -> bool:
        """Whether workers of modes that exclude each other were found on the card."""
        modes = set(self.members.values())
        if self.device is None or len(modes) < 2:
            return False
        return self.device.isolation_policy == DYNAMIC or "partitioned" in modes

    def apply(self, take: Take, allocation: Allocation, sign: int) -> None:
        """Add (1) or remove (-1) what one worker holds."""
        self.used_gflops += sign * take.gflops
        self.used_vram_bytes += sign * take.vram_bytes
        self.limit_gflops += sign * take.limit_gflops
        self.limit_vram_bytes += sign * take.limit_vram_bytes
        if allocation.exclusive:
            self.exclusive_holders += sign
        if sign > 0:
            self.members[allocation.key] = allocation.isolation
        else:
            del self.members[allocation.key]
        if take.cut is not msgspec.UNSET:
            cuts = list(self.cuts)
            if sign > 0:
                cuts.append(take.cut)
            else:
                cuts.remove(take.cut)
            self.cuts = tuple(sorted(cuts))

    def totals(self) -> tuple[int, int, int, int, int]:
        """Return all totals, for comparisons."""
        return (
            self.used_gflops,
            self.used_vram_bytes,
            self.limit_gflops,
            self.limit_vram_bytes,
            self.exclusive_holders,
        )

    def state(self) -> tuple[object, ...]:
        """Return everything that is counted, for comparisons."""
        return (self.totals(), self.members, self.cuts)
