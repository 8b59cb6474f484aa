"""The built-in placement policies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    from tensorfusion.spi.policy import PlacementPolicy


@hookimpl
def tensorfusion_placement_policies() -> "Sequence[PlacementPolicy]":
    """Offer all built-in policies; numpy is imported only when they are asked for."""
    from tensorfusion_plugins.policies import load
    from tensorfusion_plugins.policies.bestfit import BestFit
    from tensorfusion_plugins.policies.dotprod import DotProd
    from tensorfusion_plugins.policies.fgd import FGD
    from tensorfusion_plugins.policies.gpuclustering import GpuClustering
    from tensorfusion_plugins.policies.gpupacking import GpuPacking
    from tensorfusion_plugins.policies.random import Random

    return [
        load.compact_first(),
        load.low_load_first(),
        load.node_compact_gpu_low_load(),
        Random(),
        DotProd(),
        GpuClustering(),
        GpuPacking(),
        BestFit(),
        FGD(),
    ]
