"""What a placement policy sees: some nodes of the fleet as arrays, and fleet-wide statistics."""

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from tensorfusion.model.demand import Shape

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class FleetStatistics(msgspec.Struct, frozen=True):
    """Totals of the whole fleet that change only when hardware does.

    Attributes:
        nodes: Nodes.
        devices: Devices.
        capacity_gflops: Compute of all devices, GFLOP/s.
        capacity_vram_bytes: Memory of all devices, bytes.
        devices_by_model: Devices per family.
    """

    nodes: int = 0
    devices: int = 0
    capacity_gflops: int = 0
    capacity_vram_bytes: int = 0
    devices_by_model: Mapping[str, int] = {}


class Rows:
    """Some nodes with their devices, read-only.

    Shape: every array is (nodes, slots); a node's devices lie in order of their index, from slot
    0. Slots without a device have capacity 1, free 0, and are not matching.

    Attributes:
        free_gflops: Compute not requested by anyone, GFLOP/s.
        free_vram_bytes: Memory not requested by anyone, bytes.
        free_limit_gflops: Room below the virtual compute capacity, GFLOP/s.
        free_limit_vram_bytes: Room below the virtual memory capacity, bytes.
        matching: Devices that the demand's unchanging constraints allow, full or not.
        open: Of those, the ones that no lock, whole-card holder or worker cap closes now.
        capacity_gflops: Compute of the card.
        capacity_vram_bytes: Memory of the card.
    """

    __slots__ = (
        "capacity_gflops",
        "capacity_vram_bytes",
        "free_gflops",
        "free_limit_gflops",
        "free_limit_vram_bytes",
        "free_vram_bytes",
        "matching",
        "open",
    )

    def __init__(self, headroom: Ints, capacity: Ints, matching: Bools, is_open: Bools) -> None:
        self.free_gflops: Ints = headroom[0]
        self.free_vram_bytes: Ints = headroom[1]
        self.free_limit_gflops: Ints = headroom[2]
        self.free_limit_vram_bytes: Ints = headroom[3]
        self.capacity_gflops: Ints = capacity[0]
        self.capacity_vram_bytes: Ints = capacity[1]
        self.matching = matching
        self.open = is_open


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

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score nodes; shape (nodes,)."""
        ...

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score devices; shape (nodes, slots)."""
        ...
