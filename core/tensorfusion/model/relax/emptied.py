"""The fleet as if every worker had left."""

from collections.abc import Sequence

import numpy as np

from tensorfusion.model.allocation import DeviceUsage
from tensorfusion.model.device import Device, NodeInfo
from tensorfusion.model.fleet import Fleet
from tensorfusion.model.headroom import QUANTITIES, headroom_of
from tensorfusion.model.rows import UNTRACKED, Ints


class Emptied:
    """What cards and nodes have when nobody uses them; catches up on changed hardware only.

    Attributes:
        headroom: As in the fleet, (quantities, nodes, slots).
        host: CPU and memory, (nodes, 2).
    """

    def __init__(self, fleet: Fleet) -> None:
        """Start empty."""
        self._fleet = fleet
        self._layout = -1
        self._version = -1
        self._codes: dict[tuple[int, int, int, int], int] = {}
        """By the capacities of a card; a fleet has few kinds."""
        self._left: list[tuple[int, ...]] = [(-1,) * QUANTITIES]
        """What an empty card has left; first of a slot without a card."""
        self._resize()

    def catch_up(self) -> None:
        """Look at nodes whose hardware changed."""
        fleet = self._fleet
        changed = None
        if self._layout == fleet.layout and self._version >= 0:
            changed = fleet.static_journal.since(self._version)
        if changed is None:
            self._layout = fleet.layout
            self._resize()
        self._read(range(fleet.size) if changed is None else sorted(set(changed.tolist())))
        self._version = fleet.static_journal.version

    def _resize(self) -> None:
        fleet = self._fleet
        self.headroom: Ints = np.full((QUANTITIES, fleet.rows, fleet.width), -1, dtype=np.int64)
        self.host: Ints = np.full((fleet.rows, 2), UNTRACKED, dtype=np.int64)

    def _read(self, slots: Sequence[int]) -> None:
        fleet = self._fleet
        codes = []
        for slot in slots:
            block = [self._code(usage.device) for usage in fleet.blocks[slot]]
            codes.append(block + [0] * (fleet.width - len(block)))
        if not codes:
            return
        left = np.array(self._left, dtype=np.int64)[np.array(codes, dtype=np.intp)]
        where = np.array(slots, dtype=np.intp)
        self.headroom[:, where] = left.transpose(2, 0, 1)
        self.host[where] = [_host_of(fleet.nodes[slot]) for slot in slots]

    def _code(self, device: Device | None) -> int:
        """Return the position in `_left` of what an empty card has left."""
        if device is None:
            return 0
        size = (
            device.capacity_gflops,
            device.capacity_vram_bytes,
            device.virtual_gflops,
            device.virtual_vram_bytes,
        )
        code = self._codes.get(size)
        if code is None:
            code = self._codes[size] = len(self._left)
            self._left.append(headroom_of(DeviceUsage(device.uuid), device)[:QUANTITIES])
        return code


def _host_of(node: NodeInfo | None) -> tuple[int, int]:
    if node is None:
        return UNTRACKED, UNTRACKED
    return node.cpu_milli or UNTRACKED, node.memory_bytes or UNTRACKED
