"""What a placement policy sees: some nodes of the fleet as arrays, and fleet-wide statistics."""

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.allocation import TASK_KINDS
from tensorfusion.model.demand import Shape
from tensorfusion.model.typical import CardKind, TypicalTasks, wanted_milli

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Slots = NDArray[np.intp]
Scores = NDArray[np.float64] | NDArray[np.int64]

MILLI_PLANE: Final = 6
"""Plane of the free thousandths; before it lies one plane per quantity of headroom."""
FREE_SHARE_PLANE: Final = 7
"""First of two planes: free compute and free memory, millionths of the card."""
CAPACITY_PLANE: Final = 9
"""First of two planes: compute and memory of the card."""
GATE_PLANE: Final = 11
KIND_PLANE: Final = 12
PLANES: Final = 13

FREE_GPU_COLUMN: Final = 2
"""Free thousandths of all cards; before it lie free CPU and free memory."""
IDLE_COLUMN: Final = 3
USABLE_COLUMN: Final = 4
NODE_KIND_COLUMN: Final = 5
FREE_SHARE_COLUMN: Final = 6
"""First of two columns: sums of the planes of that name over the node's cards."""
CARDS_COLUMN: Final = 8
TASKS_COLUMN: Final = 9
HOST_COLUMNS: Final = TASKS_COLUMN + TASK_KINDS

UNTRACKED: Final = 1 << 60
"""Free CPU or memory of a node that does not say what it has."""


_CACHED_DEMANDS: Final = 4096


class FleetStatistics(msgspec.Struct, frozen=True):
    """Totals of the whole fleet that change only when hardware or the typical requests do.

    Attributes:
        nodes: Nodes.
        devices: Devices.
        capacity_gflops: Compute of all devices, GFLOP/s.
        capacity_vram_bytes: Memory of all devices, bytes.
        devices_by_model: Devices per family.
        kinds: Distinct cards by profile and capacity; `Rows.kinds` are positions in it.
        typical: What requests usually look like; None while nothing is known.
    """

    nodes: int = 0
    devices: int = 0
    capacity_gflops: int = 0
    capacity_vram_bytes: int = 0
    devices_by_model: Mapping[str, int] = {}
    kinds: tuple[CardKind, ...] = ()
    typical: TypicalTasks | None = None
    _wanted: dict[Shape, Ints] = msgspec.field(default_factory=dict)

    def wanted_milli(self, demand: Shape) -> Ints:
        """Return the thousandths of one card that the demand takes, per kind of card."""
        known = self._wanted.get(demand)
        if known is None:
            if len(self._wanted) >= _CACHED_DEMANDS:
                self._wanted.clear()
            wanted = [wanted_milli(demand, kind) for kind in self.kinds]
            known = self._wanted[demand] = np.array(wanted or [0], dtype=np.int64)
        return known


class Rows:
    """Some nodes with their devices, read-only.

    Shape: an array per card is (nodes, slots), a node's devices lie in order of their index, from
    slot 0. Slots without a device have capacity 1, free 0 or less, kind -1, and are not matching.
    An array per node is (nodes,).
    """

    __slots__ = ("_all_cells", "_bit", "_gathered", "_host", "_matching", "_where")

    def __init__(
        self, cells: Ints, host: Ints, matching: Bools | None, bit: int, where: Slots | None = None
    ) -> None:
        """Wrap columns of the fleet.

        Args:
            cells: (nodes, planes, slots).
            host: (nodes, `HOST_COLUMNS`).
            matching: Devices that count; None for all.
            bit: Gate bit of a card that is open to the request.
            where: Rows of ``cells`` that belong to ``host`` and ``matching``; None for all. They
                are copied out when a column per card is asked for, which many scores never do.
        """
        self._all_cells = cells
        self._where = where
        self._gathered = cells if where is None else None
        self._host = host
        self._bit = bit
        self._matching = matching

    @property
    def _cells(self) -> Ints:
        if self._gathered is None:
            assert self._where is not None
            self._gathered = self._all_cells.take(self._where, axis=0)
        return self._gathered

    @property
    def matching(self) -> Bools:
        """Devices that the demand's unchanging constraints allow, full or not."""
        if self._matching is None:
            self._matching = self._cells[:, KIND_PLANE] >= 0
        return self._matching

    @property
    def headroom(self) -> Ints:
        """All quantities of `Fleet.headroom`, (nodes, quantities, slots)."""
        return self._cells[:, :MILLI_PLANE]

    @property
    def free(self) -> Ints:
        """Compute and memory not requested by anyone, GFLOP/s and bytes, (nodes, 2, slots)."""
        return self._cells[:, :2]

    @property
    def capacity(self) -> Ints:
        """Compute and memory of the card, GFLOP/s and bytes, (nodes, 2, slots)."""
        return self._cells[:, CAPACITY_PLANE : CAPACITY_PLANE + 2]

    @property
    def free_gflops(self) -> Ints:
        """Compute not requested by anyone, GFLOP/s, per card."""
        return self._cells[:, 0]

    @property
    def free_vram_bytes(self) -> Ints:
        """Memory not requested by anyone, bytes, per card."""
        return self._cells[:, 1]

    @property
    def free_limit_gflops(self) -> Ints:
        """Room below the virtual compute capacity, GFLOP/s, per card."""
        return self._cells[:, 2]

    @property
    def free_limit_vram_bytes(self) -> Ints:
        """Room below the virtual memory capacity, bytes, per card."""
        return self._cells[:, 3]

    @property
    def free_milli(self) -> Ints:
        """Thousandths of the card that both compute and memory leave, 0 to 1000, per card."""
        return self._cells[:, MILLI_PLANE]

    @property
    def capacity_gflops(self) -> Ints:
        """Compute of the card, GFLOP/s."""
        return self._cells[:, CAPACITY_PLANE]

    @property
    def capacity_vram_bytes(self) -> Ints:
        """Memory of the card, bytes."""
        return self._cells[:, CAPACITY_PLANE + 1]

    @property
    def kinds(self) -> Ints:
        """Position of the card's kind in `FleetStatistics.kinds`, -1 in empty slots."""
        return self._cells[:, KIND_PLANE]

    @property
    def open(self) -> Bools:
        """Matching devices that no lock, whole-card holder or worker cap closes now."""
        is_open: Bools = (self._cells[:, GATE_PLANE] & self._bit) != 0
        # The gate of an empty slot is closed, so only a restriction has to be looked at.
        return is_open if self._matching is None else is_open & self._matching

    @property
    def free_cpu_milli(self) -> Ints:
        """CPU not requested by anyone, thousandths of a core, per node; huge when not tracked."""
        return self._host[:, 0]

    @property
    def free_memory_bytes(self) -> Ints:
        """Memory of the node not requested by anyone, bytes; huge when not tracked."""
        return self._host[:, 1]

    @property
    def free_gpu_milli(self) -> Ints:
        """Sum of `free_milli` per node."""
        return self._host[:, FREE_GPU_COLUMN]

    @property
    def idle_cards(self) -> Ints:
        """Cards of the node with everything free."""
        return self._host[:, IDLE_COLUMN]

    @property
    def free_shares(self) -> Ints:
        """Free compute and free memory, millionths of the card, (nodes, 2, slots)."""
        return self._cells[:, FREE_SHARE_PLANE : FREE_SHARE_PLANE + 2]

    @property
    def free_share_sums(self) -> tuple[Ints, Ints, Ints]:
        """Sums of `free_shares` over a node's matching devices, and how many those are."""
        if self._matching is None:
            host = self._host
            at = FREE_SHARE_COLUMN
            return host[:, at], host[:, at + 1], host[:, CARDS_COLUMN]
        sums = (self.free_shares * self._matching[:, None]).sum(axis=2)
        return sums[:, 0], sums[:, 1], self._matching.sum(axis=1)

    @property
    def usable(self) -> Ints:
        """What the typical requests can use of the node; see `TypicalTasks.usable`."""
        return self._host[:, USABLE_COLUMN]

    @property
    def node_kinds(self) -> Ints:
        """Kind of the node's first card, which stands for all of them, -1 without cards."""
        return self._host[:, NODE_KIND_COLUMN]

    @property
    def tasks(self) -> Ints:
        """Allocations on the node by kind, (nodes, kinds): part of a card, 1, 2, ... cards."""
        return self._host[:, TASKS_COLUMN:]

    def wanted_milli(self, demand: Shape, fleet: FleetStatistics) -> Ints:
        """Return the thousandths of one card that the demand takes, per node.

        What is asked in absolute amounts is a different share of each kind of card; the node's
        first card stands for all of them.
        """
        return fleet.wanted_milli(demand).take(self.node_kinds, mode="clip")


class Scorer(Protocol):
    """The part of a placement policy that the engine calls; see `tensorfusion.spi.policy`."""

    @property
    def name(self) -> str:
        """Name it is chosen by."""
        ...

    @property
    def reads_demand(self) -> bool:
        """Whether scores depend on the demand's amounts."""
        ...

    @property
    def random_ties(self) -> bool:
        """Whether ties are drawn by the pool's seed, whatever the pool's rule is."""
        ...

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Scores:
        """Score nodes; shape (nodes,)."""
        ...

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Scores:
        """Score devices; shape (nodes, slots)."""
        ...
