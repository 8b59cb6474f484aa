"""The fewest workers whose leaving makes room for a request, whoever they are.

Unlike preemption, which weighs priorities and budgets, this answers "how little stands in the way".
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np

from tensorfusion.model.allocation import DeviceUsage, Take
from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Amount, Shape
from tensorfusion.model.device import DYNAMIC, Device
from tensorfusion.model.headroom import GFLOPS, LIMIT_GFLOPS, LIMIT_VRAM, VRAM
from tensorfusion.model.partitions import best_of
from tensorfusion.model.quota import Violation
from tensorfusion.model.relax.bits import BIT, LOAD
from tensorfusion.model.relax.failures import Failures
from tensorfusion.model.relax.holdings import IMPOSSIBLE, Holdings, held_of, workers_of
from tensorfusion.model.rows import UNTRACKED, Bools, Ints
from tensorfusion.model.takes import take_of

TRIES: Final = 2_500
"""Sets of workers looked at per answer; about a microsecond each."""
JOINT_COST: Final = 20
"""What a look at a node counts, and a set that is tried on one: so many times as long."""

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
        self, failures: Failures, holdings: Holdings, violations: Sequence[Violation] = ()
    ) -> None:
        """Look at one request.

        Args:
            failures: Of the request.
            holdings: Up to date.
            violations: Quotas that refuse it; workers of their namespace can make room there.
        """
        self._violations = violations
        self._failures = failures
        self._shape = failures.shape
        self._holdings = holdings
        self._ledger = holdings.ledger
        self._tries = TRIES
        self._known: dict[str, tuple[Vector, Mapping[str, Vector]] | None] = {}

    def fewest(self, lifted: int, slot: int | None = None) -> Eviction | None:
        """Return the smallest set, None when nobody's leaving helps.

        Args:
            lifted: Rules that do not count.
            slot: The only node to look at.
        """
        if self._violations:
            return self._within_quota(lifted, slot)
        at = slice(0, self._failures.fleet.size) if slot is None else slice(slot, slot + 1)
        possible = self._possible(lifted, slot)
        count = self._shape.gpu_count
        rows = (np.count_nonzero(possible, axis=1) >= count).nonzero()[0] + at.start
        if not rows.size:
            return None
        self._holdings.read(rows.tolist())
        bounds = self._bounds(lifted, at)
        bounds[~possible] = IMPOSSIBLE
        cheapest = np.sort(bounds, axis=1)[:, :count]
        # A worker that leaves several cards counts once, but frees no more cards than it holds.
        spans = self._holdings.spans[at]
        lowest = np.maximum(cheapest[:, -1], -(-cheapest.sum(axis=1) // spans))
        lowest[cheapest[:, -1] >= IMPOSSIBLE] = IMPOSSIBLE
        best: Eviction | None = None
        for row in lowest.argsort(kind="stable").tolist():
            limit = len(best.keys) - 1 if best is not None else IMPOSSIBLE - 1
            if max(int(lowest[row]), 1) > limit or (best is not None and self._tries <= 0):
                break
            self._tries -= JOINT_COST
            found = self._on_node(row + (slot or 0), bounds[row].tolist(), int(lowest[row]), limit)
            best = found or best
        if best is None:
            return None
        return best._replace(exact=best.exact and self._tries > 0)

    def _bounds(self, lifted: int, at: slice) -> Ints:
        """Return how many workers must leave each card at least."""
        failures, shape = self._failures, self._shape
        holdings = self._holdings
        bounds = holdings.least(self._lacking(at), at)
        idle = BIT["idle"] | BIT["exclusive"] | BIT["isolation-lock"]
        must_be_idle = (failures.bits[at] & np.uint32(idle & ~lifted)) != 0
        members = holdings.members[at]
        no_slot = (failures.bits[at] & np.uint32(BIT["partition-slots"] & ~lifted)) != 0
        bounds = np.where(no_slot, np.maximum(bounds, 1), bounds)
        bounds = np.where(must_be_idle & (bounds < IMPOSSIBLE), members, bounds)
        if shape.exclusive:  # empty cards are looked at by what they have, not by what is asked
            bounds = np.where(must_be_idle, members, bounds)
        return bounds

    def _lacking(self, at: slice) -> Ints:
        """Return what is missing on each card, (dimensions, nodes, slots)."""
        request, limit = _amounts(self._shape)
        head = self._failures.headroom[:, at]
        gflops = self._share(request.milli_percent, at) + request.gflops
        ceiling = np.maximum(self._share(limit.milli_percent, at), limit.gflops)
        wanted = {
            GFLOPS: gflops,
            VRAM: request.vram_bytes,
            LIMIT_GFLOPS: np.maximum(ceiling, gflops),
            LIMIT_VRAM: max(request.vram_bytes, limit.vram_bytes),
        }
        return np.stack([asked - head[quantity] for quantity, asked in wanted.items()])

    def _share(self, milli_percent: int, at: slice) -> Ints | int:
        """Return the compute that a share of each card is."""
        if not milli_percent:
            return 0
        capacity: Ints = self._failures.fleet.capacity[0][at]
        return capacity * milli_percent // FULL_CARD_MILLI_PERCENT

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
        workers = sorted(set(own).union(*(workers_of(blocks[node]) for node in nodes)))
        nothing = (0,) * len(lacking)
        for size in range(1, len(workers) + 1):
            for chosen in combinations(workers, size):
                self._tries -= JOINT_COST
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
        self, slot: int, bounds: Sequence[int], lowest: int, limit: int
    ) -> Eviction | None:
        """Search one node for a set of at most ``limit`` workers."""
        block = self._failures.fleet.blocks[slot]
        places = [place for place, bound in enumerate(bounds) if bound < IMPOSSIBLE]
        cards = [block[place] for place in places]
        if self._lacks_host(slot):
            return self._any_set(slot, cards, limit)
        count = self._shape.gpu_count
        sets: list[tuple[str, ...]] = []
        for place in sorted(places, key=lambda place: bounds[place]):
            # Cards come in order of their bounds: once enough are no dearer, the rest is not needed.
            if len(sets) >= count and len(sorted(sets, key=len)[count - 1]) <= bounds[place]:
                break
            found = self._on_card(block[place], IMPOSSIBLE) if bounds[place] else ()
            if found is not None:
                sets.append(found)
        sets.sort(key=len)
        chosen = sets[:count]
        if len(chosen) < count:
            return None
        keys = {key for found in chosen for key in found}
        whole = self._with_room_on_node(slot, keys, limit)
        if count == 1 or self._holdings.spans[slot] == 1 or self._tries <= 0:
            return whole
        at_most = min(limit, len(whole.keys) - 1 if whole is not None else limit)
        return self._any_set(slot, cards, at_most, max(lowest, 1)) or whole

    def _lacks_host(self, slot: int) -> bool:
        """Tell whether CPU or memory of the node are missing."""
        asked = (self._shape.cpu_milli, self._shape.memory_bytes)
        free = self._failures.fleet.host[slot, :2].tolist()
        return any(want > have for want, have in zip(asked, free, strict=True))

    def _with_room_on_node(self, slot: int, keys: set[str], limit: int) -> Eviction | None:
        """Add workers until the node may run one more."""
        node = self._failures.fleet.nodes[slot]
        if node is None:
            return None
        over = self._ledger.workers_on(node.name) + 1 - node.max_workers
        if over > len(keys):
            others = workers_of(self._failures.fleet.blocks[slot])
            keys = keys | set([key for key in others if key not in keys][: over - len(keys)])
            if over > len(keys):
                return None
        return Eviction(tuple(sorted(keys)), slot, True) if len(keys) <= limit else None

    def _on_card(self, usage: DeviceUsage, limit: int) -> tuple[str, ...] | None:
        """Return the fewest workers that have to leave one card."""
        device = usage.device
        facts = self._facts(usage)
        if device is None or facts is None:
            return None
        lacking, held = facts
        keys = sorted(usage.members)
        if self._must_be_idle(usage, device):
            return tuple(keys) if len(keys) <= limit else None
        if self._shape.wish is not None:
            sets = (chosen for n in range(len(keys) + 1) for chosen in combinations(keys, n))
            found = next((chosen for chosen in sets if self._has_slot(usage, chosen)), None)
            return found if found is not None and len(found) <= limit else None
        takes = [(key, held[key]) for key in keys]
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
        others = set(usage.members.values()) - {self._shape.isolation}
        partitioned = "partitioned" in {self._shape.isolation, *others}
        return bool(others) and (device.isolation_policy == DYNAMIC or partitioned)

    def _has_slot(self, usage: DeviceUsage, gone: Collection[str]) -> bool:
        """Tell whether the partition fits on a card once some workers have left."""
        device, wish = usage.device, self._shape.wish
        if device is None or device.geometry is None or wish is None:
            return wish is None
        staying = [self._ledger.allocations[key] for key in usage.members if key not in gone]
        cuts = tuple(sorted(cut for one in staying if (cut := one.cut_on(usage.uuid)) is not None))
        return best_of(device.geometry, cuts, (), device.partition_kinds, wish) is not None

    def _is_too_large(self, device: Device) -> bool:
        take = _take(self._shape, device)
        return take.limit_gflops > device.limit_gflops or (
            take.limit_vram_bytes > device.limit_vram_bytes
        )

    def _any_set(
        self, slot: int, cards: Sequence[DeviceUsage], limit: int, lowest: int = 1
    ) -> Eviction | None:
        """Try sets of the node's workers, from ``lowest`` to ``limit`` of them, small ones first."""
        workers = workers_of(self._failures.fleet.blocks[slot])
        for count in range(lowest, min(len(workers), limit) + 1):
            for chosen in combinations(workers, count):
                self._tries -= JOINT_COST
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
        facts = self._facts(usage)
        if device is None or facts is None:
            return False
        lacking, held = facts
        if self._must_be_idle(usage, device):
            staying = {key: mode for key, mode in usage.members.items() if key not in gone}
            if self._shape.exclusive or usage.exclusive_holders:
                return not staying
            if set(staying.values()) - {self._shape.isolation}:
                return False
        if not self._has_slot(usage, gone):
            return False
        return _covers([part for key, part in held.items() if key in gone], lacking)

    def _facts(self, usage: DeviceUsage) -> tuple[Vector, Mapping[str, Vector]] | None:
        """Return what is lacking on a card and who holds what; None when it is too small."""
        if usage.uuid not in self._known:
            device = usage.device
            facts = None
            if device is not None and not self._is_too_large(device):
                allocations = self._ledger.allocations
                held = {key: held_of(allocations[key], usage.uuid) for key in usage.members}
                facts = (_lack(usage, device, _take(self._shape, device)), held)
            self._known[usage.uuid] = facts
        return self._known[usage.uuid]


def _amounts(shape: Shape) -> tuple[Amount, Amount]:
    """Return request and limit; a partition asks for slots instead."""
    return (shape.request, shape.limit) if shape.wish is None else (Amount(), Amount())


def _take(shape: Shape, device: Device) -> Take:
    return take_of(device, *_amounts(shape), exclusive=shape.exclusive)


def _lack(usage: DeviceUsage, device: Device, take: Take) -> Vector:
    """Return how much of each amount is missing on a card; negative where there is room."""
    return (
        usage.used_gflops + take.gflops - device.capacity_gflops,
        usage.used_vram_bytes + take.vram_bytes - device.capacity_vram_bytes,
        usage.limit_gflops + take.limit_gflops - device.limit_gflops,
        usage.limit_vram_bytes + take.limit_vram_bytes - device.limit_vram_bytes,
    )


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
