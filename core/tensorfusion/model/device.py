"""Devices and nodes as placement sees them: identity, capacity, and what may run there."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from tensorfusion.model.partitions import Cuts, Geometry, PartitionKind

ISOLATION_MODES: Final = ("shared", "soft", "hard", "partitioned")
"""``shared`` hands out a whole idle card; the others hand out parts of one."""

STATIC: Final = "static"
DYNAMIC: Final = "dynamic"
RUNNING: Final = "Running"
OURS: Final = ("", "tensor-fusion")
"""Values of ``used_by`` that leave a card to us."""

DEFAULT_MAX_WORKERS: Final = 256
"""Workers one node runs at most, as in the reference's scheduler configuration."""


class DeviceProfile(NamedTuple):
    """Everything a static filter looks at; many devices share one profile.

    The engine decides a static filter once per profile, not once per device.
    """

    pool: str
    phase: str
    used_by: str
    vendor: str
    model: str
    full_model: str
    isolation_mode: str
    isolation_policy: str
    supported_isolation: tuple[str, ...] | None
    partitions: tuple[PartitionKind, ...] = ()

    def offers(self, isolation: str) -> bool:
        """Tell whether the card can ever run a worker of this isolation mode.

        Whether a card of dynamic policy is taken by another mode right now is not looked at.
        """
        if isolation == "shared":
            return True
        if self.supported_isolation is not None and isolation not in self.supported_isolation:
            return False
        if isolation == "partitioned" and not self.partitions:
            return False
        if self.isolation_policy == DYNAMIC:
            return isolation != "partitioned"
        return self.isolation_mode in ("", isolation)


class Peer(msgspec.Struct, frozen=True):
    """What a device's driver says about its connection to another one.

    Attributes:
        uuid: The other device.
        tier: 0 linked directly, 1 same NUMA node, 2 across NUMA nodes; anything else not known.
        bandwidth_mbps: Of the path, MB/s; 0 when not known.
    """

    uuid: str
    tier: int
    bandwidth_mbps: int = 0


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU.

    Attributes:
        uuid: Unique in the fleet and stable over restarts.
        node: Name of the node that carries it.
        pool: Name of its pool.
        index: Position on the node, from 0; ties between cards go to the smallest.
        vendor: ``NVIDIA``, ``AMD``, ...
        model: Family, such as ``A100``.
        full_model: Product name, such as ``NVIDIA A100-SXM4-80GB``.
        capacity_gflops: Dense FP16 compute, GFLOP/s.
        capacity_vram_bytes: Memory, bytes.
        virtual_gflops: Ceiling for the sum of limits; 0 means the physical capacity.
        virtual_vram_bytes: The same for memory.
        phase: Only ``Running`` takes new work.
        used_by: Who manages the card; anything but us keeps it out.
        isolation_mode: What a card of static policy offers; empty means any.
        isolation_policy: ``static``, or ``dynamic``: the first worker decides the mode and the
            card keeps it until it is idle.
        supported_isolation: Modes the vendor's backend can enforce, None when it does not say.
            ``shared`` needs no enforcement and is always possible.
        numa_node: NUMA node, -1 when unknown.
        peers: Connections to other devices of the node, as the driver tells them.
        geometry: How it may be cut into partitions; None when it may not.
        idle_partitions: Partitions that exist on the card and that no worker was given; they
            are reused or removed.
    """

    uuid: str
    node: str
    pool: str = ""
    index: int = 0
    vendor: str = ""
    model: str = ""
    full_model: str = ""
    capacity_gflops: int = 0
    capacity_vram_bytes: int = 0
    virtual_gflops: int = 0
    virtual_vram_bytes: int = 0
    phase: str = RUNNING
    used_by: str = ""
    isolation_mode: str = ""
    isolation_policy: str = STATIC
    supported_isolation: tuple[str, ...] | None = None
    numa_node: int = -1
    peers: tuple[Peer, ...] = ()
    geometry: Geometry | None = None
    idle_partitions: Cuts = ()

    def __post_init__(self) -> None:
        """Refuse what no card can be.

        Raises:
            ValueError: A capacity is negative or the isolation policy is unknown.
        """
        if self.capacity_gflops < 0 or self.capacity_vram_bytes < 0:
            raise ValueError(f"device {self.uuid!r}: capacity must not be negative")
        if self.isolation_policy not in (STATIC, DYNAMIC):
            raise ValueError(
                f"device {self.uuid!r}: isolation_policy is {self.isolation_policy!r}, "
                f"allowed are {STATIC!r} and {DYNAMIC!r}"
            )

    @property
    def profile(self) -> DeviceProfile:
        """The part of the device that static filters look at."""
        return DeviceProfile(
            self.pool,
            self.phase,
            self.used_by,
            self.vendor,
            self.model,
            self.full_model,
            self.isolation_mode,
            self.isolation_policy,
            self.supported_isolation,
            self.partition_kinds,
        )

    @property
    def partition_kinds(self) -> tuple[PartitionKind, ...]:
        """What a partition of each template is on this card; empty when it has none."""
        if self.geometry is None:
            return ()
        return self.geometry.kinds(self.capacity_gflops, self.capacity_vram_bytes)

    @property
    def limit_gflops(self) -> int:
        """Ceiling for the sum of compute limits on this card, GFLOP/s."""
        return self.virtual_gflops or self.capacity_gflops

    @property
    def limit_vram_bytes(self) -> int:
        """Ceiling for the sum of memory limits on this card, bytes."""
        return self.virtual_vram_bytes or self.capacity_vram_bytes


class Taint(msgspec.Struct, frozen=True):
    """A Kubernetes taint; ``PreferNoSchedule`` never excludes a node."""

    key: str
    value: str = ""
    effect: str = "NoSchedule"


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node.

    Attributes:
        name: Kubernetes node name; ties between nodes go to the smallest.
        pool: Pool it belongs to.
        labels: Node labels.
        taints: Node taints.
        schedulable: False when cordoned.
        max_workers: Workers it runs at most.
        host_memory_bytes: RAM, the base of VRAM expansion.
        host_disk_bytes: Data disk, the base of VRAM expansion.
        cpu_milli: CPU that pods may request, thousandths of a core; 0 when it is not tracked.
        memory_bytes: Memory that pods may request, bytes; 0 when it is not tracked.
    """

    name: str
    pool: str = ""
    labels: Mapping[str, str] = {}
    taints: tuple[Taint, ...] = ()
    schedulable: bool = True
    max_workers: int = DEFAULT_MAX_WORKERS
    host_memory_bytes: int = 0
    host_disk_bytes: int = 0
    cpu_milli: int = 0
    memory_bytes: int = 0


class Oversubscription(msgspec.Struct, frozen=True, kw_only=True):
    """How far the limits on a pool's cards may exceed the cards.

    Attributes:
        compute_percent: ``tflopsOversellRatio``: 500 lets compute limits sum to five times a card.
        vram_to_host_memory_percent: Share of host RAM that backs VRAM limits.
        vram_to_host_disk_percent: Share of the data disk that backs VRAM limits.
    """

    compute_percent: int = 100
    vram_to_host_memory_percent: int = 0
    vram_to_host_disk_percent: int = 0


def with_oversubscription(
    devices: Sequence[Device], node: NodeInfo, oversubscription: Oversubscription
) -> list[Device]:
    """Give the devices of one node their virtual capacity.

    Compute is multiplied per card. Host RAM and disk belong to the node, so each card gets an
    equal share of the expansion, rounded down: the sum over the node never exceeds what the
    host has.

    Args:
        devices: All devices of the node; expansion is divided among them.
        node: The node, for its RAM and disk.
        oversubscription: The pool's ratios.

    Returns:
        Copies with ``virtual_gflops`` and ``virtual_vram_bytes`` set; never below physical.
    """
    expansion = (
        node.host_memory_bytes * oversubscription.vram_to_host_memory_percent // 100
        + node.host_disk_bytes * oversubscription.vram_to_host_disk_percent // 100
    )
    share = expansion // len(devices) if devices else 0
    ratio = max(100, oversubscription.compute_percent)
    return [
        msgspec.structs.replace(
            device,
            virtual_gflops=device.capacity_gflops * ratio // 100,
            virtual_vram_bytes=device.capacity_vram_bytes + share,
        )
        for device in devices
    ]
