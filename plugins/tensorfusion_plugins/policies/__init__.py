"""The built-in placement policies."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    from tensorfusion.spi.policy import PlacementPolicy


@hookimpl
def tensorfusion_placement_policies() -> "Sequence[PlacementPolicy]":
    """Offer the three placement modes; numpy is imported only when they are asked for."""
    from tensorfusion_plugins.policies.load import (
        compact_first,
        low_load_first,
        node_compact_gpu_low_load,
    )

    return [compact_first(), low_load_first(), node_compact_gpu_low_load()]
