"""GpuClustering: tasks of one kind on one node."""

from dataclasses import dataclass

import numpy as np

from tensorfusion.model.demand import FULL_CARD_MILLI_PERCENT, Shape
from tensorfusion.model.rows import FleetStatistics, Ints, Rows
from tensorfusion_plugins.policies.published import LARGEST_GPU_MILLI, BestFitCards

MIXED, FREE, SAME_AND_OTHERS, ONLY_SAME = 0, 25, 50, 75
"""What a node gets for the tasks it runs, beside up to 25 for being full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClustering(BestFitCards):
    """Kinds are a part of one card, one card, two cards, and so on."""

    name: str = "gpuclustering"
    aliases: tuple[str, ...] = ("GpuClustering",)

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return the node's class by the kinds of task on it, plus its use of GPU."""
        if not demand.gpu_count:
            return np.zeros_like(rows.node_kinds)
        whole = demand.exclusive or demand.request.milli_percent >= FULL_CARD_MILLI_PERCENT
        kinds = rows.tasks > 0
        kind = 0 if demand.gpu_count == 1 and not whole else demand.gpu_count
        same = kinds[:, min(kind, kinds.shape[1] - 1)]
        count = kinds.sum(axis=1)
        used = 25 * (LARGEST_GPU_MILLI - rows.free_gpu_milli) // LARGEST_GPU_MILLI
        score = np.where(count == 0, FREE, MIXED)
        score[same] = SAME_AND_OTHERS
        score[same & (count == 1)] = ONLY_SAME
        result: Ints = score + used
        return result
