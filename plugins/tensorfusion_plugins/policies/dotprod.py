"""DotProd: the node whose free resources point least in the demand's direction."""

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
class DotProd(BestFitCards):
    """The vector heuristic of Tetris with its sign turned, so that it packs."""

    name: str = "dotprod"
    aliases: tuple[str, ...] = ("DotProd",)

    def score_nodes(self, demand: Shape, rows: Rows, fleet: FleetStatistics) -> Ints:
        """Return 100 x (1 - mean over CPU and GPU of free x requested), both normalised."""
        wanted = rows.wanted_milli(demand, fleet) * demand.gpu_count
        product = free_cpu(rows) * demand.cpu_milli
        product += GPU_TO_CPU**2 * rows.free_gpu_milli * wanted
        whole = 2 * LARGEST_CPU_MILLI**2
        score: Ints = 100 * (whole - product) // whole
        return score
