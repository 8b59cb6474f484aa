"""Policies that look at load alone: fill what is used, or spread over what is free.

The load of a card is the weighted mean of the used percentages of its memory and its compute;
the load of a node is the mean over its matching cards. Weights are those of the reference's
scheduler configuration: memory 0.7, compute 0.3, since memory is what runs out first.
"""

from dataclasses import dataclass

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Floats, Ints, Rows

VRAM_WEIGHT = 0.7
COMPUTE_WEIGHT = 0.3
_MILLIONTHS_PER_PERCENT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPolicy:
    """Scores by load.

    Attributes:
        name: Name a pool chooses it by.
        aliases: Other names that choose it.
        fill_nodes: Prefer loaded nodes; False prefers free ones.
        fill_devices: The same for the devices of the chosen node.
        vram_weight: Weight of memory.
        compute_weight: Weight of compute.
        reads_demand: Always False: load is a property of the card.
        random_ties: Always False: ties are the pool's business.
    """

    name: str
    aliases: tuple[str, ...]
    fill_nodes: bool
    fill_devices: bool
    vram_weight: float = VRAM_WEIGHT
    compute_weight: float = COMPUTE_WEIGHT
    reads_demand: bool = False
    random_ties: bool = False

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score nodes by the mean load of their matching cards, 0 to 100."""
        compute, vram, count = rows.free_share_sums
        mean = self._free_percent(compute, vram) / np.maximum(count, 1)
        return 100.0 - mean if self.fill_nodes else mean

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score cards by their load, 0 to 100."""
        shares = rows.free_shares
        free = self._free_percent(shares[:, 0], shares[:, 1])
        return 100.0 - free if self.fill_devices else free

    def _free_percent(self, compute: Ints, vram: Ints) -> Floats:
        total = (self.compute_weight + self.vram_weight) * _MILLIONTHS_PER_PERCENT
        free: Floats = (compute * (self.compute_weight / total)).astype(np.float64, copy=False)
        free += vram * (self.vram_weight / total)
        return free


def compact_first() -> LoadPolicy:
    """Return the policy that fills nodes and cards one after the other."""
    return LoadPolicy(
        name="compact-first", aliases=("CompactFirst",), fill_nodes=True, fill_devices=True
    )


def low_load_first() -> LoadPolicy:
    """Return the policy that spreads over nodes and cards."""
    return LoadPolicy(
        name="low-load-first", aliases=("LowLoadFirst",), fill_nodes=False, fill_devices=False
    )


def node_compact_gpu_low_load() -> LoadPolicy:
    """Return the policy that fills nodes and spreads over the cards of each."""
    return LoadPolicy(
        name="node-compact-gpu-low-load",
        aliases=("NodeCompactGPULowLoad",),
        fill_nodes=True,
        fill_devices=False,
    )
