"""The fleet as columns: one block of device slots per node, updated in place.

Arrays have the shape (nodes, slots), where slots is the largest number of devices on one node.
What changes with load lies in two of them, one for cards and one for nodes, so that some nodes are
copied out with one call each; the columns by name are views of those.
Nodes keep their slot for life and freed slots are reused, so adding or removing hardware touches
one block; only growing beyond the arrays' size copies them, which doubling amortises.
"""

import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.allocation import NO_NODE_USAGE, DeviceUsage, NodeUsage
from tensorfusion.model.demand import Shape
from tensorfusion.model.device import Device, DeviceProfile, NodeInfo
from tensorfusion.model.headroom import (
    FIRST_PARTITION_BIT,
    GATE_BITS,
    IDLE_BIT,
    MIB_SHIFT,
    MOST_ROUGH,
    QUANTITIES,
    gate_of,
    headroom_of,
)
from tensorfusion.model.journal import Journal
from tensorfusion.model.neighbours import HOSTNAME
from tensorfusion.model.partitions import PartitionBits
from tensorfusion.model.rows import (
    CAPACITY_PLANE,
    FREE_GPU_COLUMN,
    FREE_SHARE_PLANE,
    GATE_PLANE,
    HOST_COLUMNS,
    MILLI_PLANE,
    PLANES,
    TASKS_COLUMN,
    UNTRACKED,
    Bools,
    FleetStatistics,
    Ints,
)
from tensorfusion.model.topology import SOURCES, NodeTopology, topology_of
from tensorfusion.model.typical import MILLI_CARD, CardKind, TypicalTasks

LANES: Final = 8
"""Device slots of the rough columns come in eights, so that eight answers are one number."""


class Scratch(NamedTuple):
    """Arrays for answers that are wanted for a moment, so that none are made for each.

    Attributes:
        cards: Per quantity, one answer per card of `Fleet.rough`, in a row.
        words: The same, eight at a time.
        nodes: One answer per node; (nodes,).
    """

    cards: tuple[Bools, ...]
    words: tuple[NDArray[np.uint64], ...]
    nodes: Bools


_HOST_ROW: Final = struct.Struct(f"={HOST_COLUMNS}q")


class Fleet:
    """Columns of all nodes and devices.

    Attributes:
        cells: Everything about cards that changes with load, and what is read together with it;
            (nodes, planes, slots). The planes are named in `tensorfusion.model.rows`.
        host: Free CPU and memory, then allocations per kind; (nodes, columns).
        headroom: What is left of each card; (quantities, nodes, slots).
        rough: The same in 32 bits and whole MiB, -1 where there is no card, slots in eights, in
            the order of `headroom.ROUGH`; what fits a card fits these columns, too, and they are
            compared four times as fast.
        scratch: Room for answers about all nodes.
        kinds: Distinct cards by profile and capacity, which `cells` refers to.
        gate: Who may join each card, bits; (nodes, slots).
        profile_codes: Position in `profiles`, -1 in empty slots; (nodes, slots).
        present: Whether a slot carries a device; (nodes, slots).
        indices: Position of each card on its node; (nodes, slots).
        full: Whether a node runs as many workers as it may; (nodes,).
        nodes: Node per slot, None when free.
        blocks: Devices per node slot, in order of index.
        cards: `headroom` and the free thousandths once more as one tuple per device, since
            single nodes are read faster from Python objects than from arrays.
        gates: `gate` once more, for the same reason.
        journal: Node slots whose columns changed in any way.
        static_journal: Node slots whose hardware, labels or taints changed.
        layout: Grows when whatever readers have kept is void, as when the arrays are replaced
            by larger ones.
    """

    def __init__(self) -> None:
        self._set_arrays(
            _empty_cells(0, 1), _empty_rough(0, 1), np.zeros((0, HOST_COLUMNS), dtype=np.int64)
        )
        self.profile_codes: NDArray[np.int32] = np.full((0, 1), -1, dtype=np.int32)
        self.present: Bools = np.zeros((0, 1), dtype=np.bool_)
        self.full: Bools = np.zeros(0, dtype=np.bool_)
        self.indices: NDArray[np.int32] = np.full((0, 1), -1, dtype=np.int32)
        self.nodes: list[NodeInfo | None] = []
        self.blocks: list[list[DeviceUsage]] = []
        self.cards: list[list[tuple[int, ...]]] = []
        self.gates: list[list[int]] = []
        self.profiles: list[DeviceProfile] = []
        self.journal = Journal()
        self.static_journal = Journal()
        self.layout = 0
        self.kinds: list[CardKind] = []
        self._kind_codes: dict[CardKind, int] = {}
        self._typical: Mapping[Shape, int] = {}
        self._typical_tasks: TypicalTasks | None = None
        self._codes: dict[DeviceProfile, int] = {}
        self._partitions = PartitionBits(FIRST_PARTITION_BIT)
        self._domains: dict[str, tuple[int, NDArray[np.intp], int]] = {}
        self._topologies: dict[tuple[int, str], NodeTopology] = {}
        self._slots: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._positions: dict[str, tuple[int, int]] = {}
        self._full: list[bool] = []
        self._first_kinds: list[int] = []
        self._totals: list[list[int]] = []
        """By node slot, sums over its cards: free thousandths, idle ones, free shares, cards."""
        self._last_name = ""
        self._ranks: dict[str, int] | None = {}
        self._ordered = True
        self._statistics: FleetStatistics | None = None

    @property
    def size(self) -> int:
        """Node slots in use or freed; arrays are valid up to here."""
        return len(self.nodes)

    @property
    def rows(self) -> int:
        """Node slots the arrays have room for."""
        return int(self.gate.shape[0])

    @property
    def width(self) -> int:
        """Device slots per node."""
        return int(self.gate.shape[1])

    @property
    def ordered(self) -> bool:
        """Whether node slots are in order of node name, so that the first of equals is right."""
        return self._ordered

    @property
    def statistics(self) -> FleetStatistics:
        """Totals of the hardware."""
        if self._statistics is None:
            devices = [usage.device for block in self.blocks for usage in block if usage.device]
            models: dict[str, int] = {}
            for device in devices:
                models[device.model] = models.get(device.model, 0) + 1
            self._statistics = FleetStatistics(
                nodes=len(self._slots),
                devices=len(devices),
                capacity_gflops=sum(device.capacity_gflops for device in devices),
                capacity_vram_bytes=sum(device.capacity_vram_bytes for device in devices),
                devices_by_model=models,
                kinds=tuple(self.kinds),
                typical=self._typical_tasks,
            )
        return self._statistics

    @property
    def headroom(self) -> Ints:
        """What is left of each card; (quantities, nodes, slots), a view."""
        return self._headroom

    @property
    def capacity(self) -> Ints:
        """GFLOP/s and bytes of each card, 1 in empty slots; (2, nodes, slots), a view."""
        return self._capacity

    def gate_of(self, usage: DeviceUsage, *, node_full: bool) -> int:
        """Tell who may join a card now, as bits."""
        device = usage.device
        if device is None or device.geometry is None:
            return gate_of(usage, node_full)
        size = (device.capacity_gflops, device.capacity_vram_bytes)
        return gate_of(usage, node_full, self._partitions.open(device.geometry, *size, usage.cuts))

    def gate_asked(self, shape: Shape) -> int:
        """Return the gate bits of which a card must show one for a request."""
        if shape.exclusive:
            return IDLE_BIT
        wish = shape.wish
        return GATE_BITS[shape.isolation] if wish is None else self._partitions.asked(wish)

    def topology(self, slot: int, source: str) -> NodeTopology:
        """Return how the cards of a node are connected; see `TopologyWish.source`."""
        known = self._topologies.get((slot, source))
        if known is None:
            devices = [usage.device for usage in self.blocks[slot]]
            known = self._topologies[slot, source] = topology_of(devices, source)
        return known

    def set_typical(self, counts: Mapping[Shape, int]) -> None:
        """Say which requests are typical and how often each occurs.

        Scores may depend on it, so that caches are void afterwards.
        """
        self._typical = counts
        self._tabulate()
        self.layout += 1

    def slot_of(self, node: str) -> int | None:
        """Return the slot of a node, None when unknown."""
        return self._slots.get(node)

    def slots_of(self, nodes: Collection[str]) -> NDArray[np.intp]:
        """Return the slots of many nodes, -1 for those that are unknown."""
        slots = self._slots
        return np.fromiter((slots.get(node, -1) for node in nodes), np.intp, len(nodes))

    def position_of(self, uuid: str) -> tuple[int, int] | None:
        """Return the slot of a device's node and its own, None when unknown."""
        return self._positions.get(uuid)

    def domains(self, key: str) -> tuple[NDArray[np.intp], int]:
        """Number the values of a node label.

        A node without a host name label is a host all the same.

        Returns:
            A number per node slot, -1 without the label, and how many there are; not to be
            changed.
        """
        version = self.static_journal.version
        known = self._domains.get(key)
        if known is not None and known[0] == version:
            return known[1], known[2]
        numbers: dict[str, int] = {}
        codes: NDArray[np.intp] = np.full(self.size, -1, dtype=np.intp)
        for slot, node in enumerate(self.nodes):
            own = node.name if node is not None and key == HOSTNAME else None
            value = node.labels.get(key, own) if node is not None else None
            if value is not None:
                codes[slot] = numbers.setdefault(value, len(numbers))
        self._domains[key] = (version, codes, len(numbers))
        return codes, len(numbers)

    def by_name(self, slots: Sequence[int]) -> list[int]:
        """Return slots in order of their nodes' names."""
        if self._ranks is None:
            self._ranks = {name: rank for rank, name in enumerate(sorted(self._slots))}
        ranks = self._ranks
        return sorted(slots, key=lambda slot: ranks[self._name(slot)])

    def put_node(self, node: NodeInfo, usage: NodeUsage = NO_NODE_USAGE) -> None:
        """Add a node or replace what is known about it; its devices stay."""
        slot = self._slots.get(node.name)
        if slot is None:
            slot = self._new_slot(node)
        elif self.nodes[slot] == node:
            return
        self.nodes[slot] = node
        self._set_usage(slot, usage)
        self._mark(slot)

    def remove_node(self, name: str) -> list[str]:
        """Remove a node with its devices.

        Returns:
            Uuids of the devices that were on it.
        """
        slot = self._slots.pop(name, None)
        if slot is None:
            return []
        uuids = [usage.uuid for usage in self.blocks[slot]]
        for uuid in uuids:
            del self._positions[uuid]
        self.blocks[slot] = []
        self.nodes[slot] = None
        self._free_slots.append(slot)
        self.host[slot] = 0
        self._write_block(slot)
        self._ranks = None
        return uuids

    def put_device(self, usage: DeviceUsage, node_usage: NodeUsage = NO_NODE_USAGE) -> None:
        """Add a device or replace what is known about it."""
        device = usage.device
        if device is None:
            return
        slot = self._slots.get(device.node)
        if slot is None:
            self.put_node(NodeInfo(name=device.node, pool=device.pool), node_usage)
            slot = self._slots[device.node]
        position = self._positions.get(device.uuid)
        if position is not None and position[0] != slot:
            self.remove_device(device.uuid)
        block = [other for other in self.blocks[slot] if other.uuid != device.uuid]
        block.append(usage)
        block.sort(key=_block_order)
        self.blocks[slot] = block
        if len(block) > self.width:
            self._grow(self.rows, max(len(block), self.width * 2 if self.width > 1 else 2))
        if position is None and block[-1] is usage:
            self.cards[slot].append(())
            self.gates[slot].append(0)
            self._write_card(slot, len(block) - 1, usage, device)
            self._summarise(slot)
            self._mark(slot)
        else:
            self._write_block(slot)

    def put_devices(
        self, node: str, usages: Sequence[DeviceUsage], node_usage: NodeUsage = NO_NODE_USAGE
    ) -> None:
        """Add devices of one node, or replace what is known about them, as one change."""
        if node not in self._slots or len(usages) == 1:
            for usage in usages:
                self.put_device(usage, node_usage)
            return
        slot = self._slots[node]
        new = {usage.uuid for usage in usages}
        for uuid in new:
            if self._positions.get(uuid, (slot, 0))[0] != slot:
                self.remove_device(uuid)
        block = [other for other in self.blocks[slot] if other.uuid not in new]
        block += usages
        block.sort(key=_block_order)
        self.blocks[slot] = block
        if len(block) > self.width:
            self._grow(self.rows, max(len(block), self.width * 2 if self.width > 1 else 2))
        self._write_block(slot)

    def remove_device(self, uuid: str) -> None:
        """Remove a device; unknown ones are ignored."""
        position = self._positions.pop(uuid, None)
        if position is None:
            return
        slot = position[0]
        self.blocks[slot] = [usage for usage in self.blocks[slot] if usage.uuid != uuid]
        self._write_block(slot)

    def usage_changed(
        self, node: str, node_usage: NodeUsage, touched: Sequence[DeviceUsage]
    ) -> None:
        """Take over new totals from the ledger; its listener."""
        for usage in touched:
            position = self._positions.get(usage.uuid)
            device = usage.device
            if position is None or device is None:
                continue
            block, place = position
            card = headroom_of(usage, device)
            cards = self.cards[block]
            self._move_totals(block, cards[place], card)
            cards[place] = card
            self._write_load(block, place, card)
            gate = self.gate_of(usage, node_full=self._full[block])
            if self.gates[block][place] != gate:
                self.gates[block][place] = gate
                self.gate[block, place] = gate
        slot = self._slots.get(node)
        if slot is not None:
            self._set_usage(slot, node_usage)
            self.journal.append(slot)

    def _write_load(self, slot: int, position: int, card: tuple[int, ...]) -> None:
        """Write what is left of a card; by items of flat views, which is faster than by rows."""
        cells, width = self._flat_cells, self.width
        at = slot * PLANES * width + position
        for value in card:
            cells[at] = value
            at += width
        gflops, vram, limit, limit_vram, percent, limit_percent, *_ = card
        values = (
            percent,
            limit_percent,
            vram >> MIB_SHIFT,
            limit_vram >> MIB_SHIFT,
            gflops,
            limit,
        )
        rough, at, step = self._flat_rough, slot * self._lanes + position, self.rows * self._lanes
        for value in values:
            rough[at] = value if -1 <= value <= MOST_ROUGH else min(max(value, -1), MOST_ROUGH)
            at += step

    def _name(self, slot: int) -> str:
        node = self.nodes[slot]
        return node.name if node is not None else ""

    def _new_slot(self, node: NodeInfo) -> int:
        self._ranks = None
        if self._free_slots:
            slot = self._free_slots.pop()
            self._ordered = False
        else:
            slot = len(self.nodes)
            self.nodes.append(None)
            self.blocks.append([])
            self.cards.append([])
            self.gates.append([])
            self._full.append(False)
            self._first_kinds.append(-1)
            self._totals.append([0] * 5)
            if node.name < self._last_name:
                self._ordered = False
            self._last_name = max(self._last_name, node.name)
            if slot >= self.rows:
                self._grow(max(16, 2 * self.rows), self.width)
        self._slots[node.name] = slot
        return slot

    def _set_usage(self, slot: int, usage: NodeUsage) -> None:
        node = self.nodes[slot]
        if node is None:
            return
        cpu = node.cpu_milli - usage.cpu_milli if node.cpu_milli else UNTRACKED
        memory = node.memory_bytes - usage.memory_bytes if node.memory_bytes else UNTRACKED
        sums = self._sums(slot, cpu)
        at = slot * _HOST_ROW.size
        _HOST_ROW.pack_into(self._host_bytes, at, cpu, memory, *sums, *usage.kinds)
        full = usage.workers >= node.max_workers
        if full != self._full[slot]:
            self._full[slot] = full
            self.full[slot] = full
            for position, card in enumerate(self.blocks[slot]):
                gate = self.gate_of(card, node_full=full)
                self.gates[slot][position] = gate
                self.gate[slot, position] = gate

    def _mark(self, slot: int) -> None:
        self.journal.append(slot)
        self.static_journal.append(slot)
        self._statistics = None
        for source in SOURCES:
            self._topologies.pop((slot, source), None)

    def _write_block(self, slot: int) -> None:
        self.cells[slot] = _empty_cells(1, self.width)[0]
        self.rough[:, slot] = -1
        self.profile_codes[slot] = -1
        self.present[slot] = False
        self.indices[slot] = -1
        cards: list[tuple[int, ...]] = [()] * len(self.blocks[slot])
        gates = [0] * len(cards)
        self.cards[slot] = cards
        self.gates[slot] = gates
        self._first_kinds[slot] = -1
        for position, usage in enumerate(self.blocks[slot]):
            device = usage.device
            if device is None:
                continue
            self._write_card(slot, position, usage, device)
        self._summarise(slot)
        self._mark(slot)

    def _write_card(self, slot: int, position: int, usage: DeviceUsage, device: Device) -> None:
        card = headroom_of(usage, device)
        profile = device.profile
        code = self._code(profile)
        gate = self.gate_of(usage, node_full=self._full[slot])
        self._positions[usage.uuid] = (slot, position)
        self.cards[slot][position] = card
        self.gates[slot][position] = gate
        kind = self._kind(profile, device)
        if not position:
            self._first_kinds[slot] = kind
        self._write_load(slot, position, card)
        fixed = (device.capacity_gflops or 1, device.capacity_vram_bytes or 1, gate, kind)
        at = (slot * PLANES + CAPACITY_PLANE) * self.width + position
        for value in fixed:
            self._flat_cells[at] = value
            at += self.width
        self.profile_codes[slot, position] = code
        self.present[slot, position] = True
        self.indices[slot, position] = device.index

    def _code(self, profile: DeviceProfile) -> int:
        code = self._codes.get(profile)
        if code is None:
            if self._partitions.add(profile.partitions):
                self.layout += 1
            code = self._codes[profile] = len(self.profiles)
            self.profiles.append(profile)
        return code

    def _kind(self, profile: DeviceProfile, device: Device) -> int:
        kind = CardKind(profile, device.capacity_gflops, device.capacity_vram_bytes)
        code = self._kind_codes.get(kind)
        if code is None:
            code = self._kind_codes[kind] = len(self.kinds)
            self.kinds.append(kind)
            self._tabulate()
        return code

    def _tabulate(self) -> None:
        """Make the tables of the typical requests, and what they can use of each node."""
        self._statistics = None
        if not self._typical:
            return
        self._typical_tasks = TypicalTasks(self._typical, tuple(self.kinds))
        for slot in range(self.size):
            self._summarise(slot)

    def _summarise(self, slot: int) -> None:
        """Write the sums over a node's cards."""
        cards = [card for card in self.cards[slot] if card]
        milli = [card[MILLI_PLANE] for card in cards]
        compute = sum([card[FREE_SHARE_PLANE] for card in cards])
        vram = sum([card[FREE_SHARE_PLANE + 1] for card in cards])
        self._totals[slot] = [sum(milli), milli.count(MILLI_CARD), compute, vram, len(cards)]
        host = self.host[slot]
        host[FREE_GPU_COLUMN:TASKS_COLUMN] = self._sums(slot, int(host[0]))

    def _move_totals(self, slot: int, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        """Keep the sums over a node's cards up when one of them changes."""
        totals = self._totals[slot]
        old, new = before[MILLI_PLANE], after[MILLI_PLANE]
        if old != new:
            totals[0] += new - old
            totals[1] += (new == MILLI_CARD) - (old == MILLI_CARD)
        totals[2] += after[FREE_SHARE_PLANE] - before[FREE_SHARE_PLANE]
        totals[3] += after[FREE_SHARE_PLANE + 1] - before[FREE_SHARE_PLANE + 1]

    def _sums(self, slot: int, cpu: int) -> tuple[int, ...]:
        """Return free thousandths, idle cards, what is usable to the typical, the kind, shares."""
        milli, idle, compute, vram, count = self._totals[slot]
        kind = self._first_kinds[slot]
        tasks = self._typical_tasks
        usable = 0
        if tasks is not None:
            free = [card[MILLI_PLANE] for card in self.cards[slot] if card]
            usable = tasks.usable_by(kind, cpu, free)
        return milli, idle, usable, kind, compute, vram, count

    def _set_arrays(self, cells: Ints, rough: NDArray[np.int32], host: Ints) -> None:
        self.cells, self.rough, self.host = cells, rough, host
        cards = tuple(np.zeros(rough[0].size, dtype=np.bool_) for _ in range(QUANTITIES))
        words = tuple(answers.view(np.uint64) for answers in cards)
        self.scratch = Scratch(cards, words, np.zeros(len(host), dtype=np.bool_))
        self._flat_cells = cells.reshape(-1).data
        self._flat_rough = rough.reshape(-1).data
        self._host_bytes = host.reshape(-1).data.cast("B")
        self._lanes = rough.shape[2]
        self._headroom = cells[:, :QUANTITIES].transpose(1, 0, 2)
        self._capacity = cells[:, CAPACITY_PLANE : CAPACITY_PLANE + 2].transpose(1, 0, 2)
        self.gate = cells[:, GATE_PLANE]

    def _grow(self, rows: int, width: int) -> None:
        old_rows, old_width = self.gate.shape
        cells = _empty_cells(rows, width)
        host = np.zeros((rows, HOST_COLUMNS), dtype=np.int64)
        codes = np.full((rows, width), -1, dtype=np.int32)
        present = np.zeros((rows, width), dtype=np.bool_)
        full = np.zeros(rows, dtype=np.bool_)
        indices = np.full((rows, width), -1, dtype=np.int32)
        rough = _empty_rough(rows, width)
        cells[:old_rows, :, :old_width] = self.cells
        rough[:, :old_rows, : self.rough.shape[2]] = self.rough
        host[:old_rows] = self.host
        codes[:old_rows, :old_width] = self.profile_codes
        present[:old_rows, :old_width] = self.present
        full[:old_rows] = self.full
        indices[:old_rows, :old_width] = self.indices
        self._set_arrays(cells, rough, host)
        self.profile_codes, self.indices = codes, indices
        self.present, self.full = present, full
        self.layout += 1


def _empty_cells(rows: int, width: int) -> Ints:
    cells = np.full((rows, PLANES, width), -1, dtype=np.int64)
    cells[:, MILLI_PLANE] = 0
    cells[:, CAPACITY_PLANE : CAPACITY_PLANE + 2] = 1
    cells[:, GATE_PLANE] = 0
    return cells


def _empty_rough(rows: int, width: int) -> NDArray[np.int32]:
    lanes = -(-width // LANES) * LANES
    return np.full((QUANTITIES, rows, lanes), -1, dtype=np.int32)


def _block_order(usage: DeviceUsage) -> tuple[int, str]:
    return (usage.device.index if usage.device else 0, usage.uuid)
