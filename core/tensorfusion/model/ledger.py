"""Who holds what: exact accounting of devices and quotas, with nested checkpoints.

Two sums are bounded on every card: requests by its physical capacity, limits by its virtual
capacity. The second is what makes oversubscription a promise and not a report.

Every mutation replaces one allocation by another (or by nothing), so undoing one is the same
operation with the arguments swapped. All amounts are integers; undo is exact.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from tensorfusion.model.allocation import (
    DIGEST_MODULUS,
    NO_NODE_USAGE,
    Allocation,
    DeviceUsage,
    HostTake,
    NodeUsage,
    Take,
    allocation_hash,
    canonical_bytes,
)
from tensorfusion.model.claims import ClaimBook
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount, Demand
from tensorfusion.model.device import (
    DYNAMIC,
    ISOLATION_MODES,
    Device,
    DeviceProfile,
    NodeInfo,
)
from tensorfusion.model.neighbours import PeerIndex
from tensorfusion.model.quota import QuotaBook
from tensorfusion.model.takes import (
    AllocationRefused,
    overcommitted,
    partition_take,
    require_fit,
    take_of,
)

Operation = Literal["allocate", "resize", "hold", "settle", "release"]


class Change(msgspec.Struct, frozen=True):
    """One mutation: ``before`` became ``after``; ``digest`` is that of the ledger afterwards."""

    operation: Operation
    key: str
    before: Allocation | None
    after: Allocation | None
    digest: int


class Checkpoint(msgspec.Struct, frozen=True):
    """A point to return to."""

    depth: int
    position: int


def _ignore(node: str, usage: NodeUsage, touched: Sequence[DeviceUsage]) -> None:
    """Stand in for a listener."""


class Ledger:
    """Allocations by key, usage by device and by namespace.

    Concurrency: not safe for threads; the owner serialises calls.
    """

    def __init__(self, quotas: QuotaBook | None = None) -> None:
        self.quotas = quotas or QuotaBook()
        self.listener: Callable[[str, NodeUsage, Sequence[DeviceUsage]], None] = _ignore
        """Told after each change: node, its totals, devices whose totals changed."""
        self._devices: dict[str, DeviceUsage] = {}
        self._allocations: dict[str, Allocation] = {}
        self._hashes: dict[str, int] = {}
        self._holders: dict[str, str] = {}
        self._workloads: dict[tuple[str, str], dict[str, None]] = {}
        self._nodes: dict[str, NodeUsage] = {}
        self._host_capacity: dict[str, tuple[int, int]] = {}
        self._digest = 0
        self._depth = 0
        self._undo: list[Change] = []
        self.peers = PeerIndex(self._allocations)
        """Where the pods are that rules about neighbours ask for."""
        self.claims = ClaimBook()
        """Ports and indices in use."""

    @property
    def digest(self) -> int:
        """Order-independent 128-bit digest of all allocations, kept up in constant time."""
        return self._digest

    @property
    def allocations(self) -> Mapping[str, Allocation]:
        """All allocations by key; a live view, not to be changed."""
        return self._allocations

    @property
    def devices(self) -> Mapping[str, DeviceUsage]:
        """All devices by uuid; a live view, not to be changed."""
        return self._devices

    def get(self, holder: str) -> Allocation | None:
        """Return the allocation that a pod uses, None when it has none."""
        key = self._holders.get(holder)
        return None if key is None else self._allocations[key]

    def workers_of(self, namespace: str, workload: str) -> list[Allocation]:
        """Return the workers that serve a workload, in order of key."""
        keys = self._workloads.get((namespace, workload), ())
        return [self._allocations[key] for key in sorted(keys)]

    def workers_on(self, node: str) -> int:
        """Count the workers on a node."""
        return self.node_usage(node).workers

    def node_usage(self, node: str) -> NodeUsage:
        """Return a node's totals; not to be changed."""
        return self._nodes.get(node, NO_NODE_USAGE)

    def set_node(self, node: NodeInfo) -> None:
        """Say what CPU and memory a node has; what is held of it stays."""
        self._host_capacity[node.name] = (node.cpu_milli, node.memory_bytes)

    def remove_node(self, node: str) -> None:
        """Forget what CPU and memory a node has."""
        self._host_capacity.pop(node, None)

    def set_device(self, device: Device) -> DeviceUsage:
        """Add a device or replace what is known about it; its usage stays.

        Capacity may shrink below what is in use: nothing is evicted, nothing more fits.
        """
        usage = self._devices.get(device.uuid)
        if usage is None:
            usage = self._devices[device.uuid] = DeviceUsage(device.uuid)
        usage.device = device
        usage.offered = _offered(device.profile)
        return usage

    def remove_device(self, uuid: str) -> None:
        """Forget a device; workers that hold it keep their record until they are released."""
        usage = self._devices.get(uuid)
        if usage is None:
            return
        usage.device = None
        if not usage.members:
            del self._devices[uuid]

    def allocate(self, demand: Demand, devices: Sequence[str], node: str = "") -> Change:
        """Reserve devices for a pod, and its CPU and memory on their node.

        Args:
            demand: The request.
            devices: Uuids on one node, as many as ``gpu_count``.
            node: The node, for a request without GPUs; otherwise the devices tell.

        Raises:
            AllocationRefused: The pod has an allocation, a device is unknown or too full, the
                node lacks CPU or memory, or a quota would break.
        """
        shape = demand.shape
        if demand.uid in self._holders or demand.uid in self._allocations:
            raise AllocationRefused(
                "AlreadyAllocated",
                f"pod {demand.namespace}/{demand.name} already has an allocation",
            )
        usages = self._resolve_devices(demand, devices)
        takes = tuple(self._take(usage, demand) for usage in usages)
        first = usages[0].device if usages else None
        if first is not None:
            node = first.node
        elif node not in self._host_capacity:
            raise AllocationRefused("UnknownNode", f"node {node!r} is not in the fleet")
        self._require_claims(node, demand)
        host = self._host_take(node, demand)
        allocation = Allocation(
            key=demand.uid,
            namespace=demand.namespace,
            name=demand.name,
            workload=demand.workload,
            pool=first.pool if first is not None else shape.pool,
            node=node,
            isolation=shape.isolation,
            exclusive=shape.exclusive,
            qos=demand.qos,
            request=shape.request,
            limit=shape.limit,
            takes=takes,
            holders=(demand.uid,),
            containers=shape.deal(tuple(devices)) if shape.containers else (),
            host=host,
            identity=demand.identity,
            claims=tuple(sorted(demand.claims)) or msgspec.UNSET,
        )
        if takes and self.quotas.quotas(demand.namespace):
            self._require_quota(allocation, None)
        return self._swap("allocate", None, allocation)

    def hold(self, key: str, holder: str) -> Change:
        """Let one more pod use an existing worker.

        Raises:
            AllocationRefused: There is no such worker, or the pod uses one already.
        """
        before = self._require(key)
        if holder in self._holders:
            raise AllocationRefused(
                "AlreadyAllocated", f"pod uid {holder} already uses worker {self._holders[holder]}"
            )
        holders = tuple(sorted((*before.holders, holder)))
        return self._swap("hold", before, msgspec.structs.replace(before, holders=holders))

    def settle(self, key: str) -> Change | None:
        """Let go of what a worker held only until its pod runs; see `Claim.passing`.

        Returns:
            None when there is no such worker or it holds nothing of the kind.
        """
        before = self._allocations.get(key)
        if before is None or before.claims is msgspec.UNSET:
            return None
        kept = tuple(claim for claim in before.claims if not claim.passing)
        if kept == before.claims:
            return None
        after = msgspec.structs.replace(before, claims=kept or msgspec.UNSET)
        return self._swap("settle", before, after)

    def release(self, holder: str) -> Change | None:
        """Let a pod go; the last one to use a worker frees its devices.

        Returns:
            None when the pod holds nothing, so that releasing twice is harmless.
        """
        key = self._holders.get(holder)
        if key is None:
            return None
        before = self._allocations[key]
        if len(before.holders) == 1:
            return self._swap("release", before, None)
        holders = tuple(uid for uid in before.holders if uid != holder)
        return self._swap("hold", before, msgspec.structs.replace(before, holders=holders))

    def resize(self, key: str, request: Amount, limit: Amount, *, dry_run: bool = False) -> Change:
        """Change what a worker holds of its devices, in place.

        Shrinking always succeeds. Growing is checked per device and against the quotas.

        Args:
            key: Key of the allocation.
            request: New request per GPU.
            limit: New limit per GPU.
            dry_run: Check and compute the result without applying it.

        Raises:
            AllocationRefused: Unknown worker, a device or quota too full, or a worker that
                cannot be resized (partitions are fixed in size, whole cards stay whole).
        """
        before = self._require(key)
        if before.isolation == "partitioned":
            raise AllocationRefused(
                "PartitionFixed", f"worker {key}: a hardware partition cannot be resized in place"
            )
        takes = tuple(self._resized_take(before, take, request, limit) for take in before.takes)
        after = msgspec.structs.replace(before, request=request, limit=limit, takes=takes)
        self._require_quota(after, before)
        if dry_run:
            return Change("resize", key, before, after, self._digest)
        return self._swap("resize", before, after)

    def restore(self, allocation: Allocation) -> Change:
        """Put back a known allocation without checking capacity or quota.

        Used for replay and for rebuilding from objects: what runs is a fact, even when it no
        longer fits. An allocation of the same key is replaced.
        """
        before = self._allocations.get(allocation.key)
        return self._swap("allocate", before, allocation)

    def checkpoint(self) -> Checkpoint:
        """Mark the present state; checkpoints nest."""
        self._depth += 1
        return Checkpoint(self._depth, len(self._undo))

    def rollback(self, checkpoint: Checkpoint) -> None:
        """Return to the innermost checkpoint exactly.

        Raises:
            ValueError: ``checkpoint`` is not the innermost one.
        """
        self._require_innermost(checkpoint)
        while len(self._undo) > checkpoint.position:
            change = self._undo.pop()
            self._replace(change.after, change.before)
        self._depth -= 1

    def commit(self, checkpoint: Checkpoint) -> list[Change]:
        """Keep what happened since the innermost checkpoint.

        Returns:
            All changes, in order, when this was the outermost checkpoint: what belongs in the
            decision log. Empty otherwise, since an outer rollback can still undo them.

        Raises:
            ValueError: ``checkpoint`` is not the innermost one.
        """
        self._require_innermost(checkpoint)
        self._depth -= 1
        if self._depth:
            return []
        changes, self._undo = self._undo, []
        return changes

    def state_hash(self) -> str:
        """Return the SHA-256 of all allocations in order of key, hexadecimal.

        Two ledgers agree exactly when their hashes do; devices and quotas are not part of it.
        """
        total = hashlib.sha256()
        for key in sorted(self._allocations):
            total.update(canonical_bytes(self._allocations[key]))
            total.update(b"\n")
        return total.hexdigest()

    def check_invariants(self) -> list[str]:
        """Recount everything from the allocations and name each difference; for tests and doctor.

        Cards that were over-committed by `restore` or by losing capacity are reported too.
        """
        recount = Ledger()
        for usage in self._devices.values():
            if usage.device is not None:
                recount.set_device(usage.device)
        for allocation in self._allocations.values():
            recount.restore(allocation)
        found = [
            f"node {node}: totals differ from a recount"
            for node in sorted(self._nodes.keys() | recount._nodes.keys())
            if self.node_usage(node).totals() != recount.node_usage(node).totals()
        ]
        for uuid, usage in self._devices.items():
            other = recount._devices.get(uuid)
            if other is None or other.state() != usage.state():
                found.append(f"device {uuid}: totals {usage.totals()} differ from a recount")
            found += overcommitted(usage)
        if recount._digest != self._digest:
            found.append("digest differs from a recount")
        if recount.claims.state() != self.claims.state():
            found.append("ports or indices differ from a recount")
        found += self.claims.contested()
        if recount.quotas.usages() != self.quotas.usages():
            found.append("namespace usage differs from a recount")
        return found

    def _require(self, key: str) -> Allocation:
        allocation = self._allocations.get(key)
        if allocation is None:
            raise AllocationRefused("NotAllocated", f"there is no worker {key}")
        return allocation

    def _require_innermost(self, checkpoint: Checkpoint) -> None:
        if checkpoint.depth != self._depth:
            raise ValueError(
                f"checkpoint {checkpoint.depth} is not the innermost one, {self._depth} are open"
            )

    def _require_quota(self, after: Allocation, before: Allocation | None) -> None:
        change = after.usage.minus(before.usage) if before else after.usage
        per_gpu = [
            (take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes)
            for take in after.takes
        ]
        violations = self.quotas.check(
            after.namespace,
            change,
            per_gpu,
            len(per_gpu),
            shares=self._largest_shares(after),
            only_increases=before is not None,
        )
        if violations:
            message = "; ".join(violation.message for violation in violations)
            raise AllocationRefused("QuotaExceeded", message, violations)

    def _largest_shares(self, allocation: Allocation) -> tuple[int, int]:
        """Return the largest request and limit as a share of its card, rounded up."""
        request = limit = 0
        for take in allocation.takes:
            device = self._devices[take.uuid].device
            if device is not None and device.capacity_gflops:
                card = device.capacity_gflops
                request = max(request, -(-take.gflops * FULL_CARD_MILLI_PERCENT // card))
                limit = max(limit, -(-take.limit_gflops * FULL_CARD_MILLI_PERCENT // card))
        return request, limit

    def _resolve_devices(self, demand: Demand, devices: Sequence[str]) -> list[DeviceUsage]:
        if len(devices) != demand.shape.gpu_count or len(set(devices)) != len(devices):
            raise AllocationRefused(
                "WrongDevices",
                f"pod {demand.namespace}/{demand.name} asks for {demand.shape.gpu_count} GPUs, "
                f"got {', '.join(devices) or 'none'}",
            )
        usages = []
        for uuid in devices:
            usage = self._devices.get(uuid)
            if usage is None or usage.device is None:
                raise AllocationRefused("UnknownDevice", f"device {uuid} is not in the fleet")
            usages.append(usage)
        if len(usages) > 1 and len({usage.device.node for usage in usages if usage.device}) > 1:
            raise AllocationRefused(
                "WrongDevices", f"devices {', '.join(devices)} are not on one node"
            )
        return usages

    def _require_claims(self, node: str, demand: Demand) -> None:
        for claim in demand.claims:
            holder = self.claims.holder(claim, node)
            if holder is not None:
                other = self._allocations[holder]
                raise AllocationRefused(
                    "ClaimTaken",
                    f"pod {demand.namespace}/{demand.name}: {claim} {node} is held by "
                    f"{other.namespace}/{other.name}",
                )

    def _host_take(self, node: str, demand: Demand) -> HostTake | msgspec.UnsetType:
        shape = demand.shape
        if not shape.cpu_milli and not shape.memory_bytes:
            return msgspec.UNSET
        used = self.node_usage(node)
        for label, asked, held, capacity in zip(
            ("CPU", "memory"),
            (shape.cpu_milli, shape.memory_bytes),
            (used.cpu_milli, used.memory_bytes),
            self._host_capacity.get(node, (0, 0)),
            strict=True,
        ):
            if capacity and held + asked > capacity:
                raise AllocationRefused(
                    "InsufficientNode",
                    f"node {node}: {label} {asked} asked, {capacity - held} of {capacity} free",
                )
        return HostTake(shape.cpu_milli, shape.memory_bytes)

    def _take(self, usage: DeviceUsage, demand: Demand) -> Take:
        device = usage.device
        if device is None:
            raise AllocationRefused("UnknownDevice", f"device {usage.uuid} is not in the fleet")
        shape = demand.shape
        if usage.exclusive_holders or (shape.exclusive and usage.members):
            raise AllocationRefused("DeviceBusy", f"device {usage.uuid} is not idle")
        if shape.isolation not in usage.offered:
            raise AllocationRefused(
                "IsolationNotOffered",
                f"device {usage.uuid} does not offer isolation {shape.isolation!r}",
            )
        wish = shape.wish
        # Modes exclude each other on cards of dynamic policy, and partitions everywhere.
        if usage.members and (device.isolation_policy == DYNAMIC or wish or usage.cuts):
            others = set(usage.members.values()) - {shape.isolation}
            if others:
                raise AllocationRefused(
                    "IsolationLocked",
                    f"device {usage.uuid} is locked to isolation {', '.join(sorted(others))}",
                )
        if wish is not None:
            take = partition_take(usage, device, wish)
        else:
            take = take_of(device, shape.request, shape.limit, exclusive=shape.exclusive)
        if (
            usage.used_gflops + take.gflops > device.capacity_gflops
            or usage.used_vram_bytes + take.vram_bytes > device.capacity_vram_bytes
            or usage.limit_gflops + take.limit_gflops > device.limit_gflops
            or usage.limit_vram_bytes + take.limit_vram_bytes > device.limit_vram_bytes
        ):
            require_fit(usage, device, take, None)
        return take

    def _resized_take(self, before: Allocation, old: Take, request: Amount, limit: Amount) -> Take:
        usage = self._devices[old.uuid]
        device = usage.device
        if device is None:
            raise AllocationRefused("UnknownDevice", f"device {old.uuid} is not in the fleet")
        new = take_of(device, request, limit, exclusive=before.exclusive)
        require_fit(usage, device, new, old)
        return new

    def _swap(
        self, operation: Operation, before: Allocation | None, after: Allocation | None
    ) -> Change:
        self._replace(before, after)
        key = after.key if after is not None else before.key if before is not None else ""
        change = Change(operation, key, before, after, self._digest)
        if self._depth:
            self._undo.append(change)
        return change

    def _replace(self, before: Allocation | None, after: Allocation | None) -> None:
        if before is not None:
            self._drop(before)
        if after is not None:
            self._put(after)

    def _put(self, allocation: Allocation) -> None:
        key = allocation.key
        hashed = allocation_hash(allocation)
        self._allocations[key] = allocation
        self._hashes[key] = hashed
        self._digest = (self._digest + hashed) % DIGEST_MODULUS
        for holder in allocation.holders:
            self._holders[holder] = key
        if allocation.workload:
            owner = (allocation.namespace, allocation.workload)
            self._workloads.setdefault(owner, {})[key] = None
        self._account(allocation, 1)

    def _drop(self, allocation: Allocation) -> None:
        key = allocation.key
        del self._allocations[key]
        self._digest = (self._digest - self._hashes.pop(key)) % DIGEST_MODULUS
        for holder in allocation.holders:
            del self._holders[holder]
        if allocation.workload:
            owner = (allocation.namespace, allocation.workload)
            keys = self._workloads[owner]
            del keys[key]
            if not keys:
                del self._workloads[owner]
        self._account(allocation, -1)

    def _account(self, allocation: Allocation, sign: int) -> None:
        touched = []
        for take in allocation.takes:
            usage = self._devices.get(take.uuid)
            if usage is None:
                usage = self._devices[take.uuid] = DeviceUsage(take.uuid)
            usage.apply(take, allocation, sign)
            touched.append(usage)
            if usage.device is None and not usage.members:
                del self._devices[take.uuid]
        node = allocation.node
        node_usage = self._nodes.get(node)
        if node_usage is None:
            node_usage = self._nodes[node] = NodeUsage()
        node_usage.apply(allocation, sign)
        if sign < 0 and not any(node_usage.totals()):
            del self._nodes[node]
        self.quotas.add(allocation.namespace, allocation.usage, sign)
        self.peers.apply(allocation, sign)
        self.claims.apply(allocation, sign)
        self.listener(node, node_usage, touched)


@lru_cache(maxsize=1024)
def _offered(profile: DeviceProfile) -> frozenset[str]:
    """Modes that a card can ever offer; a fleet has few kinds of cards."""
    return frozenset(mode for mode in ISOLATION_MODES if profile.offers(mode))


def replayed(allocations: Iterable[Allocation]) -> Ledger:
    """Build a ledger from allocations alone; devices may be added later."""
    ledger = Ledger()
    for allocation in allocations:
        ledger.restore(allocation)
    return ledger
