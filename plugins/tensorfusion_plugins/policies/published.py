"""What the published policies share: units, and best fit on the chosen node.

Their definitions are those of the artifact of "Beware of Fragmentation" (USENIX ATC 2023). Node
scores are whole numbers from 0 to 100, rounded down; they are computed in integers, so that no
processor rounds one differently. Free GPU is in thousandths of a card.
"""

from dataclasses import dataclass

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Ints, Rows
from tensorfusion.model.typical import MILLI_CARD

LARGEST_CPU_MILLI = 128_000
"""CPU of the largest node of the published cluster, by which CPU is normalised."""
LARGEST_GPU_MILLI = 8_000
"""Cards of its largest node, eight, in thousandths."""
GPU_TO_CPU = LARGEST_CPU_MILLI // LARGEST_GPU_MILLI
"""Brings thousandths of a card to the scale of thousandths of a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFitCards:
    """The parts of a policy that most have in common.

    Attributes:
        name: Name a pool chooses it by.
        aliases: Other names that choose it.
        reads_demand: Whether scores depend on the demand's amounts.
        random_ties: Whether ties are drawn.
    """

    name: str
    aliases: tuple[str, ...] = ()
    reads_demand: bool = True
    random_ties: bool = False

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Prefer the card with the least left; idle ones are alike, so the first come first."""
        used: Ints = MILLI_CARD - rows.free_milli
        return used


def free_cpu(rows: Rows) -> Ints:
    """Return the free CPU per node, as if nodes that do not say were of the largest kind."""
    return np.minimum(rows.free_cpu_milli, LARGEST_CPU_MILLI)


def fitting(
    demand: Shape, rows: Rows, fleet: FleetStatistics
) -> "np.ndarray[tuple[int, int], np.dtype[np.bool_]]":
    """Tell which cards have enough left for their share of the demand, (nodes, slots)."""
    fits = rows.free_milli >= rows.wanted_milli(demand, fleet)[:, None]
    fits &= rows.open
    return fits
