"""GpuPacking: cards in use before idle cards, idle cards of used nodes before idle nodes."""

from dataclasses import dataclass

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Ints, Rows
from tensorfusion.model.typical import MILLI_CARD
from tensorfusion_plugins.policies.published import BestFitCards, fitting

USED_CARD, IDLE_CARD, IDLE_NODE = 100, 50, 33
"""Best score by what has to be taken; the next one is the worst of its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPacking(BestFitCards):
    """Takes the fitting cards with the least left, and scores what those are."""

    name: str = "gpupacking"
    aliases: tuple[str, ...] = ("GpuPacking",)

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return 50 to 100 for used cards only, 33 to 50 with idle ones, below for idle nodes."""
        if not demand.gpu_count:
            return np.zeros_like(rows.node_kinds)
        free = rows.free_milli
        present = rows.kinds >= 0
        cards = present.sum(axis=1)
        left = np.where(fitting(demand, rows, fleet), free, MILLI_CARD)
        left.sort(axis=1)
        taken = left[:, : demand.gpu_count]
        idle = (taken == MILLI_CARD).sum(axis=1)
        on_used = np.maximum(USED_CARD - (taken * 100 // MILLI_CARD).sum(axis=1) // 10, IDLE_CARD)
        score = np.where(idle > 0, np.maximum(IDLE_CARD - idle, IDLE_NODE), on_used)
        all_idle = rows.idle_cards == cards
        result: Ints = np.where(all_idle, np.maximum(IDLE_NODE - cards, cards), score).astype(float)
        return result
