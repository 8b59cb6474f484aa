"""BestFit: the node that has the least left afterwards."""

from dataclasses import dataclass

from tensorfusion.model.demand import Shape
from tensorfusion.model.rows import FleetStatistics, Ints, Rows
from tensorfusion_plugins.policies.published import (
    GPU_TO_CPU,
    LARGEST_CPU_MILLI,
    BestFitCards,
    free_cpu,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestFit(BestFitCards):
    """Weighs CPU and GPU equally.

    The artifact stretches the scores of the feasible nodes to 0 to 100 afterwards. They are whole
    numbers and their range is at most 100, so that keeps their order and their ties; it is left
    out here, since a score may not depend on other nodes.
    """

    name: str = "bestfit"
    aliases: tuple[str, ...] = ("BestFit",)

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return 100 x (1 - mean over CPU and GPU of what is left), both normalised."""
        left = free_cpu(rows) - demand.cpu_milli
        left += GPU_TO_CPU * (
            rows.free_gpu_milli - rows.wanted_milli(demand, fleet) * demand.gpu_count
        )
        whole = 2 * LARGEST_CPU_MILLI
        score: Ints = 100 * (whole - left) // whole
        return score
