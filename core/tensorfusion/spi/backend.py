"""What a vendor backend does for a node: find devices, read them, hold workers to their share.

Nothing here assumes CUDA. Where a device cannot answer, the value is None, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from tensorfusion.clock import Clock


class Enforcement(StrEnum):
    """How strongly a worker's limits bind, as a workload's status reports it."""

    NONE = "none"
    """Limits are bookkeeping only."""
    SIMULATED = "simulated"
    """The device is a model; the model respects the limits."""
    COOPERATIVE = "cooperative"
    """A library inside the application enforces; a hostile tenant can get around it."""
    DRIVER = "driver"
    """The vendor's driver or hardware enforces."""


class Tier(StrEnum):
    """Where the device memory of a worker is."""

    HOT = "hot"
    """On its devices."""
    WARM = "warm"
    """In host memory; the devices are free of it."""
    COLD = "cold"
    """On disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do. Conformance tests check each claim.

    Attributes:
        isolation: Isolation mode (``shared``, ``soft``, ``hard``, ``partitioned``) to how
            strongly it is enforced. A mode that is missing is refused at placement.
        partitions: Hardware partitions can be created and removed.
        snapshot: A worker's device state can be saved and restored.
        freeze: Tiers that a worker can be frozen to.
        tells_waiting: `NodeBackend.frozen` tells which workers have work. Without it nobody is
            frozen for being idle, since nobody would know when to thaw it.
        remoting: Workers can serve clients on other nodes.
        metrics: `NodeBackend.metrics` answers.
        process_usage: `NodeBackend.usage` answers per worker.
        live_limits: Limits of a running worker can be changed.
        max_workers_per_device: Upper bound of the driver, if there is one.
    """

    isolation: Mapping[str, Enforcement]
    partitions: bool = False
    snapshot: bool = False
    freeze: tuple[Tier, ...] = ()
    tells_waiting: bool = False
    remoting: bool = False
    metrics: bool = False
    process_usage: bool = False
    live_limits: bool = False
    max_workers_per_device: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device as discovered.

    Attributes:
        uuid: Stable over restarts, unique in the cluster, a valid object name in lower case.
        index: The driver's ordinal on this node, from 0.
        vendor: Canonical vendor name, such as ``NVIDIA``.
        model: Family name as users write it, such as ``A100_SXM_80G``.
        full_model: The driver's own product name.
        compute_gflops: Dense FP16 rate in GFLOP/s.
        vram_bytes: Physical memory in bytes.
        partitioned: The device is set up to be cut into partitions and takes nothing else.
        healthy: False when the device must not take new work; ``message`` says why.
    """

    uuid: str
    index: int
    vendor: str
    model: str
    full_model: str
    compute_gflops: int
    vram_bytes: int
    numa_node: int | None = None
    driver_version: str = ""
    multiprocessors: int | None = None
    pci_bus_id: str = ""
    partitioned: bool = False
    healthy: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A direct interconnect between two devices of the node.

    Attributes:
        tier: 0 same interconnect, 1 same NUMA domain, 2 across NUMA domains.
        bandwidth_mbps: Sum over the links, MB/s, one direction.
    """

    source: str
    target: str
    kind: str
    tier: int
    bandwidth_mbps: int


class DeviceMetrics(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One reading of one device; None where the device cannot tell.

    Attributes:
        time: Seconds since the epoch of the reading.
        utilization_ratio: Fraction of the sample window with work running, 0 to 1.
    """

    uuid: str
    time: float
    utilization_ratio: float | None = None
    vram_used_bytes: int | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    energy_joules_total: float | None = None
    clock_hertz: float | None = None


class FullPolicy(StrEnum):
    """What an allocation within a worker's limit does when the device is physically full."""

    DENY = "deny"
    """It is refused at once."""
    WAIT = "wait"
    """It waits for room until a deadline, then it is refused."""
    SPILL = "spill"
    """It goes to host memory, which is slower."""
    EVICT = "evict"
    """It waits as under ``wait``, while the node makes room by freezing an idle neighbour."""


@dataclass(frozen=True, slots=True)
class WhenFull:
    """A worker's policy for a full device.

    Attributes:
        wait_seconds: The deadline of ``wait`` and ``evict``.
        host_bytes: Most that may be in host memory at a time under ``spill``, per device. It
            counts against the worker's memory limit too.
    """

    policy: FullPolicy = FullPolicy.DENY
    wait_seconds: float = 0.0
    host_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What a full device did to one worker.

    Attributes:
        wanted_bytes: What its processes wait for now.
        spilled_bytes: Of its memory, what is in host memory now.
        spilled_bytes_total: What ever went there.
        waits_total: Allocations that waited for room.
        waited_seconds_total: How long, summed over threads.
        evict_requests_total: Allocations for which the node was asked to make room.
        denied_total: Allocations within its limit that were refused.
    """

    wanted_bytes: int = 0
    spilled_bytes: int = 0
    spilled_bytes_total: int = 0
    waits_total: int = 0
    waited_seconds_total: float = 0.0
    evict_requests_total: int = 0
    denied_total: int = 0


class WorkerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker used of one device.

    Attributes:
        compute_gflops: Average rate over the last sample window, GFLOP/s.
        throttled_seconds_total: Time in which the worker wanted more than it was given.
        busy_seconds_total: Device time used, seconds; 0 where the device cannot tell.
        oom_total: Allocations refused because of the worker's VRAM limit.
        pressure: What a full device did to it; None where nobody counts.
    """

    worker: str
    uuid: str
    time: float
    compute_gflops: float
    vram_bytes: int
    throttled_seconds_total: float = 0.0
    busy_seconds_total: float = 0.0
    oom_total: int = 0
    pressure: Pressure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenWorker:
    """A worker that is off its devices.

    Attributes:
        vram_bytes: What it had on its devices, and takes again when it is thawed.
        waiting: Whether it has work: one of its calls waits for the device. None where the
            vendor cannot tell; such a worker is thawed when somebody asks for it.
    """

    worker: str
    tier: Tier
    vram_bytes: int
    waiting: bool | None = None


WHOLE_MILLI_PERCENT = 100_000


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's hold on one device: what is promised and what is the most it may take.

    Attributes:
        request_gflops: GFLOP/s; of the worker's first device, where it was asked for as a share.
        limit_gflops: Likewise.
        request_milli_percent: What was asked for as a share of a device, in thousandths of a
            percent; 0 where it was asked for in FLOP/s. Devices of a worker may differ.
        limit_milli_percent: Likewise.
    """

    request_gflops: int
    request_vram_bytes: int
    limit_gflops: int
    limit_vram_bytes: int
    request_milli_percent: int = 0
    limit_milli_percent: int = 0

    def request_on(self, card_gflops: int) -> int:
        """Return what is promised of a device with so much compute, GFLOP/s."""
        if self.request_milli_percent:
            return card_gflops * self.request_milli_percent // WHOLE_MILLI_PERCENT
        return self.request_gflops

    def limit_on(self, card_gflops: int) -> int:
        """Return the most that may be taken of a device with so much compute, GFLOP/s."""
        if self.limit_milli_percent:
            return card_gflops * self.limit_milli_percent // WHOLE_MILLI_PERCENT
        return self.limit_gflops

    def limited_to(self, gflops: int) -> "Share":
        """Return the same with another limit, GFLOP/s on the first device.

        Where the limit is a share of a device, it is the same share of each.
        """
        milli = self.limit_milli_percent
        if milli and self.limit_gflops:
            milli = max(1, milli * gflops // self.limit_gflops)
        return replace(self, limit_gflops=gflops, limit_milli_percent=milli)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A worker that is about to run on a node.

    Attributes:
        worker: Identity: the pod's uid.
        devices: uuids in the order the worker's containers see them.
        share: Per device.
        partitions: For isolation ``partitioned``: uuid of the slice of each device.
        when_full: What happens when a device is full although the worker is within its limit.
        annotations: The pod's, for vendor hints and the simulated load.
    """

    worker: str
    namespace: str
    name: str
    workload: str
    devices: tuple[str, ...]
    share: Share
    isolation: str = "soft"
    qos: str = "medium"
    partition_template: str = ""
    partitions: tuple[str, ...] = ()
    when_full: WhenFull = field(default_factory=WhenFull)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path to make visible to a worker."""

    host_path: str
    path: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorker:
    """What the node must give the worker's processes, and what then really binds.

    Attributes:
        command: Stands in for containers that name no command, or that only describe a load.
            Empty where workers are no processes of this machine, so that nothing is started.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[Mount] = ()
    device_paths: Sequence[str] = ()
    enforcement: Enforcement = Enforcement.NONE
    command: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A hardware slice of a device.

    Attributes:
        parent: uuid of the device.
        template: The vendor's name of its shape.
        start: First slot that it covers; see ``docs/explanation/partitions.md``.
    """

    uuid: str
    parent: str
    template: str
    start: int
    compute_gflops: int
    vram_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """Where a node session lives.

    Attributes:
        node: Name of the node.
        state_dir: Folder of the session's own; survives restarts.
        settings: The plugin's block of the configuration.
    """

    node: str
    state_dir: Path
    clock: Clock
    settings: Mapping[str, object] = field(default_factory=dict)


@runtime_checkable
class NodeBackend(Protocol):
    """A session with the devices of one node.

    Concurrency: every method may be called from any thread. No call may take longer than
    10 s, but those that move device memory, which take as long as it does. Errors are `tensorfusion.errors.BackendError`.
    """

    def discover(self) -> Sequence[DeviceInfo]:
        """List the devices in index order; the same uuid for the same device every time."""
        ...

    def topology(self) -> Sequence[Link]:
        """List the direct links; empty where there are none or they cannot be read."""
        ...

    def metrics(self) -> Sequence[DeviceMetrics]:
        """Read every device once."""
        ...

    def usage(self) -> Sequence[WorkerUsage]:
        """Read what each prepared worker uses, one row per worker and device."""
        ...

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        """Make ready for a worker; idempotent: the same spec again changes nothing.

        Raises:
            BackendError: A device is unknown or unhealthy, or the isolation mode is not offered.
        """
        ...

    def set_limits(self, worker: str, share: Share) -> None:
        """Change a running worker's share; takes effect within a second.

        Raises:
            BackendError: The worker was not prepared.
        """
        ...

    def release(self, worker: str) -> None:
        """Undo `prepare`; a worker that is not known is fine."""
        ...

    def workers(self) -> Sequence[WorkerSpec]:
        """List prepared workers, also those of a session before a restart."""
        ...

    def partitions(self) -> Sequence[Partition]:
        """List the slices that exist, whoever made them; empty without the capability."""
        ...

    def create_partition(self, uuid: str, template: str, start: int | None = None) -> Partition:
        """Cut a slice out of a device.

        Args:
            uuid: The device.
            template: The vendor's name of the shape.
            start: First slot; None leaves the place to the driver.

        Raises:
            BackendError: The capability is missing, the template is unknown, or there is no room.
        """
        ...

    def remove_partition(self, uuid: str) -> None:
        """Give a slice back; one that is gone is fine.

        Raises:
            BackendError: A worker uses it.
        """
        ...

    def freeze(self, worker: str, tier: Tier) -> None:
        """Move a worker's device memory to a tier below hot, and hold its calls until `thaw`.

        All of its processes or none. Work that it had submitted ends first. One that is frozen
        already moves between the tiers; one without processes is fine. Its memory still counts
        against its own limit, but takes nothing of the devices.

        Raises:
            BackendError: The tier is not offered, the worker was not prepared, its work did not
                end within seconds, or there is no room; it runs on, or stays as it was.
        """
        ...

    def thaw(self, worker: str) -> float:
        """Bring a worker back to its devices, contents as they were; a hot one is left alone.

        Returns:
            Seconds that it took, as measured; 0 for one that was hot.

        Raises:
            BackendError: The worker was not prepared, or its devices have no room now; it stays
                frozen, and a later call may succeed.
        """
        ...

    def frozen(self) -> Sequence[FrozenWorker]:
        """List frozen workers, also those of a session before a restart; cheap to ask."""
        ...

    def snapshot(self, worker: str, target: Path) -> None:
        """Save a worker's device state below a folder, and hold its calls until `resume`.

        Raises:
            BackendError: The capability is missing, the worker was not prepared or has no
                processes, or there is no room; it runs on.
        """
        ...

    def resume(self, worker: str, source: Path) -> None:
        """Restore what `snapshot` saved, onto the devices that the worker is prepared for by now.

        Raises:
            BackendError: The capability is missing, the folder has no such snapshot, or the
                devices have no room; the worker stays as it was, and a later call may succeed.
        """
        ...

    def close(self) -> None:
        """End the session; prepared workers keep running."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A vendor's support, as a plugin offers it.

    Attributes:
        name: Unique plugin name, lower case, such as ``nvidia``.
        vendor: Canonical vendor of its devices; empty when it has several (the simulator).
    """

    name: str
    vendor: str

    def available(self) -> tuple[bool, str]:
        """Tell whether this machine has such devices, and if not, why, in a sentence."""
        ...

    def capabilities(self) -> Capabilities:
        """Tell what the backend can do; constant for the life of the process."""
        ...

    def nodes(self, settings: Mapping[str, object]) -> Sequence[str]:
        """Name the nodes this process stands for: one real machine, or many simulated ones."""
        ...

    def open(self, context: NodeContext) -> NodeBackend:
        """Start a session for one node."""
        ...
