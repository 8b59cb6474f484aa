"""Recommenders that come with the product."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    from tensorfusion.spi.recommender import Recommender


@hookimpl
def tensorfusion_recommenders() -> "Sequence[Recommender]":
    """Offer the percentile recommender."""
    from tensorfusion_plugins.recommenders.percentile import PercentileRecommender

    return [PercentileRecommender()]
