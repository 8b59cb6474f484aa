"""FGD, fragmentation gradient descent: where the least idle GPU becomes useless to others.

Fragmentation is explained in `tensorfusion.model.typical`. The score of a node is
100 x sigmoid of the decrease of its fragmentation in cards, rounded down; a decrease of 0 is 50.
"""

from dataclasses import dataclass
from math import log

import numpy as np

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Ints, Rows
from tensorfusion.model.typical import MILLI_CARD
from tensorfusion_plugins.policies.published import BestFitCards, fitting

_STEPS = np.array([MILLI_CARD * log(score / (100 - score)) for score in range(1, 100)])
"""Decrease in thousandths of a card from which on the score is 1, 2, ... 99."""
_NEVER = -(1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class FGD(BestFitCards):
    """Scores cards one by one for a part of a card, and the first that fit for several."""

    name: str = "fgd"
    aliases: tuple[str, ...] = ("FGD",)

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return the best score among the node's cards."""
        return self._scores(fleet, self._decrease(demand, rows, fleet).max(axis=1))

    def score_devices(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Score cards by what the node's fragmentation would be after taking from them."""
        return self._scores(fleet, self._decrease(demand, rows, fleet))

    def _scores(self, fleet: FleetStatistics, decrease: Ints) -> Ints:
        total = fleet.typical.total if fleet.typical is not None else 1
        return _STEPS.searchsorted(decrease / total, side="right").astype(np.int64)

    def _decrease(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return the decrease of fragmentation times the number of typical tasks, per card."""
        free = rows.free_milli
        typical = fleet.typical
        if typical is None:
            return np.zeros_like(free)
        wanted = rows.wanted_milli(demand, fleet)
        kinds, cpu = rows.node_kinds, rows.free_cpu_milli - demand.cpu_milli
        fits = fitting(demand, rows, fleet)
        if demand.gpu_count == 1:
            gain = typical.usable_after(kinds, cpu, free, rows.idle_cards, wanted)
            gain += (wanted * typical.total - rows.usable)[:, None]
            return np.where(fits, gain, _NEVER)
        taken = np.where(fits & (fits.cumsum(axis=1) <= demand.gpu_count), wanted[:, None], 0)
        after = typical.usable(kinds, cpu, free - taken) - rows.usable
        after += taken.sum(axis=1) * typical.total
        return np.repeat(after[:, None], free.shape[1], axis=1)
