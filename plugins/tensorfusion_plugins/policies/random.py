"""Random: any node that fits, and any of its cards."""

from dataclasses import dataclass

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Floats, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Finds everything equal and leaves the rest to the draw. Attributes as in `BestFitCards`."""

    name: str = "random"
    aliases: tuple[str, ...] = ("Random",)
    reads_demand: bool = False
    random_ties: bool = True

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score every node alike."""
        return np.zeros(rows.matching.shape[0])

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Floats:
        """Score every card alike; of idle ones for a whole-card request, the first are taken."""
        return np.zeros(rows.matching.shape)
