"""The fewest workers whose leaving makes room for a request, whoever they are.

Unlike preemption, which weighs priorities and budgets, this answers "how little stands in the way".
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Final, NamedTuple

from tensorfusion.model.allocation import Allocation, DeviceUsage, Take
from tensorfusion.model.demand import Shape
from tensorfusion.model.device import DYNAMIC, Device
from tensorfusion.model.ledger import Ledger, take_of
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.failures import BIT, LOAD, Failures
from tensorfusion.model.rows import UNTRACKED, Bools

TRIES: Final = 20_000
"""Sets of workers looked at per answer; about a microsecond each."""
JOINT_TRIES: Final = 3_000
"""The same where each set is tried on whole nodes, which takes ten times as long."""

Vector = tuple[int, ...]
"""Amounts, one per thing that may lack."""


class Eviction(NamedTuple):
    """Workers that leave, the node that gets room, and whether fewer would do for sure not."""

    keys: tuple[str, ...]
    slot: int
    exact: bool


class Evictions:
    """One search over the fleet."""

    def __init__(
        self, failures: Failures, ledger: Ledger, violations: Sequence[Violation] = ()
    ) -> None:
        """Look at one request.

        Args:
            failures: Of the request.
            ledger: Who holds what.
            violations: Quotas that refuse it; workers of their namespace can make room there.
        """
        self._violations = violations
        self._failures = failures
        self._shape = failures.shape
        self._ledger = ledger
        self._tries = TRIES

    def fewest(self, lifted: int, slot: int | None = None) -> Eviction | None:
        """Return the smallest set, None when nobody's leaving helps.

        Args:
            lifted: Rules that do not count.
            slot: The only node to look at.
        """
        if self._violations:
            return self._within_quota(lifted, slot)
        failures = self._failures
        possible = self._possible(lifted, slot)
        # A full node closes cards that have room; how many must leave it is looked at apart.
        passing = failures.usable(lifted & ~LOAD | BIT["worker-cap"], slot)
        enough = (possible.sum(axis=1) >= self._shape.gpu_count).nonzero()[0]
        best: Eviction | None = None
        for row in enough.tolist():
            limit = len(best.keys) - 1 if best is not None else 1 << 30
            node = row + (slot or 0)
            found = self._on_node(node, possible[row].nonzero()[0].tolist(), passing[row], limit)
            if found is not None:
                best = found
                if len(found.keys) == 1:
                    break
        if best is None:
            return None
        return best._replace(exact=best.exact and self._tries > 0)

    def _possible(self, lifted: int, slot: int | None) -> Bools:
        """Return the cards that might do when nobody uses them."""
        large = self._failures.large
        if slot is not None:
            large = large[slot : slot + 1]
        return self._failures.usable(lifted | LOAD, slot) & large

    def _within_quota(self, lifted: int, slot: int | None) -> Eviction | None:
        """Search for workers that make room in the quota as well as on cards."""
        violations = self._violations
        if not all(violation.resolvable for violation in violations):
            return None
        allocations = self._ledger.allocations
        namespace = violations[0].namespace
        lacking = tuple(v.used + v.requested - v.limit for v in violations)
        own = [
            (key, tuple(v.counted(allocation.usage) for v in violations))
            for key, allocation in sorted(allocations.items())
            if allocation.namespace == namespace
        ]
        fitting = self._failures.nodes(lifted, slot)
        if fitting:
            found = self._cover(lacking, own, len(own))
            return None if found is None else Eviction(found, fitting[0], self._tries > 0)
        return self._jointly(lifted, slot, dict(own), lacking)

    def _jointly(
        self, lifted: int, slot: int | None, own: dict[str, Vector], lacking: Vector
    ) -> Eviction | None:
        """Try sets of workers of the namespace and of the nodes that may do, small ones first."""
        possible = self._possible(lifted, slot)
        count = self._shape.gpu_count
        rows = (possible.sum(axis=1) >= count).nonzero()[0].tolist()
        blocks = self._failures.fleet.blocks
        nodes = {
            row + (slot or 0): [blocks[row + (slot or 0)][p] for p in possible[row].nonzero()[0]]
            for row in rows
        }
        workers = sorted(set(own).union(*(self._workers(node) for node in nodes)))
        self._tries = min(self._tries, JOINT_TRIES)
        nothing = (0,) * len(lacking)
        for size in range(1, len(workers) + 1):
            for chosen in combinations(workers, size):
                self._tries -= 1
                if self._tries <= 0:
                    return None
                freed = [own.get(key, nothing) for key in chosen]
                if not _covers(freed, lacking):
                    continue
                gone = frozenset(chosen)
                for node, cards in nodes.items():
                    if self._fits_without(node, cards, gone):
                        return Eviction(chosen, node, True)
        return None

    def _on_node(
        self, slot: int, places: Sequence[int], passing: Sequence[bool], limit: int
    ) -> Eviction | None:
        """Search one node for a set of at most ``limit`` workers."""
        block = self._failures.fleet.blocks[slot]
        cards = [block[place] for place in places]
        members = sorted({key for usage in cards for key in usage.members})
        if self._spans(members):
            return self._any_set(slot, cards, limit)
        sets = []
        for place, usage in zip(places, cards, strict=True):
            found: tuple[str, ...] | None = ()
            if not passing[place]:
                found = self._on_card(usage, limit)
            if found is not None:
                sets.append(found)
        sets.sort(key=len)
        chosen = sets[: self._shape.gpu_count]
        if len(chosen) < self._shape.gpu_count:
            return None
        keys = {key for found in chosen for key in found}
        return self._with_room_on_node(slot, keys, limit)

    def _spans(self, members: Iterable[str]) -> bool:
        """Tell whether the node needs a search over sets: workers on several cards, CPU, memory."""
        if self._shape.cpu_milli or self._shape.memory_bytes:
            return True
        allocations = self._ledger.allocations
        return any(len(allocations[key].takes) > 1 for key in members)

    def _with_room_on_node(self, slot: int, keys: set[str], limit: int) -> Eviction | None:
        """Add workers until the node may run one more."""
        node = self._failures.fleet.nodes[slot]
        if node is None:
            return None
        over = self._ledger.workers_on(node.name) + 1 - node.max_workers
        if over > len(keys):
            others = self._workers(slot)
            keys = keys | set([key for key in others if key not in keys][: over - len(keys)])
            if over > len(keys):
                return None
        return Eviction(tuple(sorted(keys)), slot, True) if len(keys) <= limit else None

    def _workers(self, slot: int) -> list[str]:
        block = self._failures.fleet.blocks[slot]
        return sorted({key for usage in block for key in usage.members})

    def _on_card(self, usage: DeviceUsage, limit: int) -> tuple[str, ...] | None:
        """Return the fewest workers that have to leave one card."""
        device = usage.device
        if device is None or self._is_too_large(device):
            return None
        keys = sorted(usage.members)
        if self._must_be_idle(usage, device):
            return tuple(keys) if len(keys) <= limit else None
        lacking = _lack(usage, device, _take(self._shape, device))
        takes = [(key, _held(self._ledger.allocations[key], usage.uuid)) for key in keys]
        return self._cover(lacking, takes, limit)

    def _cover(
        self, lacking: Vector, takes: Sequence[tuple[str, Vector]], limit: int
    ) -> tuple[str, ...] | None:
        """Return the fewest holders who give back what is lacking."""
        for count in range(_at_least(lacking, takes), min(len(takes), limit) + 1):
            for chosen in combinations(takes, count):
                self._tries -= 1
                if _covers([held for _, held in chosen], lacking):
                    return tuple(key for key, _ in chosen)
                if self._tries <= 0:
                    everyone = tuple(key for key, _ in takes)
                    return everyone if len(everyone) <= limit else None
        return None

    def _must_be_idle(self, usage: DeviceUsage, device: Device) -> bool:
        if self._shape.exclusive or usage.exclusive_holders:
            return True
        modes = set(usage.members.values())
        return device.isolation_policy == DYNAMIC and modes not in (set(), {self._shape.isolation})

    def _is_too_large(self, device: Device) -> bool:
        take = _take(self._shape, device)
        return take.limit_gflops > device.limit_gflops or (
            take.limit_vram_bytes > device.limit_vram_bytes
        )

    def _any_set(self, slot: int, cards: Sequence[DeviceUsage], limit: int) -> Eviction | None:
        """Try sets of the node's workers, small ones first."""
        workers = self._workers(slot)
        for count in range(1, min(len(workers), limit) + 1):
            for chosen in combinations(workers, count):
                self._tries -= 1
                if self._fits_without(slot, cards, frozenset(chosen)):
                    return Eviction(chosen, slot, True)
                if self._tries <= 0:
                    everyone = frozenset(workers)
                    if len(workers) <= limit and self._fits_without(slot, cards, everyone):
                        return Eviction(tuple(workers), slot, False)
                    return None
        return None

    def _fits_without(self, slot: int, cards: Sequence[DeviceUsage], gone: frozenset[str]) -> bool:
        ledger, shape = self._ledger, self._shape
        node = self._failures.fleet.nodes[slot]
        if node is None:
            return False
        leaving = [ledger.allocations[key] for key in gone]
        leaving = [allocation for allocation in leaving if allocation.node == node.name]
        if ledger.workers_on(node.name) - len(leaving) >= node.max_workers:
            return False
        hosts = [allocation.host for allocation in leaving]
        free = self._failures.fleet.host[slot, :2].tolist()
        back = (
            sum(host.cpu_milli for host in hosts if host),
            sum(host.memory_bytes for host in hosts if host),
        )
        for available, freed, asked in zip(
            free, back, (shape.cpu_milli, shape.memory_bytes), strict=True
        ):
            if available < UNTRACKED and available + freed < asked:
                return False
        return sum(self._card_fits(usage, gone) for usage in cards) >= shape.gpu_count

    def _card_fits(self, usage: DeviceUsage, gone: frozenset[str]) -> bool:
        device = usage.device
        if device is None or self._is_too_large(device):
            return False
        leaving = [key for key in usage.members if key in gone]
        if self._must_be_idle(usage, device):
            staying = {key: mode for key, mode in usage.members.items() if key not in gone}
            if self._shape.exclusive or usage.exclusive_holders:
                return not staying
            if set(staying.values()) - {self._shape.isolation}:
                return False
        lacking = _lack(usage, device, _take(self._shape, device))
        held = [_held(self._ledger.allocations[key], usage.uuid) for key in leaving]
        return _covers(held, lacking)


def _take(shape: Shape, device: Device) -> Take:
    return take_of(device, shape.request, shape.limit, exclusive=shape.exclusive)


def _lack(usage: DeviceUsage, device: Device, take: Take) -> Vector:
    """Return how much of each amount is missing on a card; negative where there is room."""
    return (
        usage.used_gflops + take.gflops - device.capacity_gflops,
        usage.used_vram_bytes + take.vram_bytes - device.capacity_vram_bytes,
        usage.limit_gflops + take.limit_gflops - device.limit_gflops,
        usage.limit_vram_bytes + take.limit_vram_bytes - device.limit_vram_bytes,
    )


def _held(allocation: Allocation, uuid: str) -> Vector:
    """Return what a worker holds of a card."""
    for take in allocation.takes:
        if take.uuid == uuid:
            return (take.gflops, take.vram_bytes, take.limit_gflops, take.limit_vram_bytes)
    return (0, 0, 0, 0)


def _covers(held: Sequence[Vector], lacking: Vector) -> bool:
    """Tell whether amounts add up to what is lacking."""
    return all(
        sum(part[d] for part in held) >= missing for d, missing in enumerate(lacking) if missing > 0
    )


def _at_least(lacking: Vector, takes: Sequence[tuple[str, Vector]]) -> int:
    """Return how many workers must leave at least: per amount, the largest holders first."""
    most = 1
    for dimension, missing in enumerate(lacking):
        count = 0
        for held in sorted((vector[dimension] for _, vector in takes), reverse=True):
            if missing <= 0:
                break
            missing -= held
            count += 1
        most = max(most, count + (missing > 0))
    return most
