"""Metric stores that come with the product."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    from tensorfusion.spi.metrics import MetricStore


@hookimpl
def tensorfusion_metric_stores() -> "Sequence[MetricStore]":
    """Offer the embedded store."""
    from tensorfusion_plugins.metric_stores.embedded import EmbeddedMetricStore

    return [EmbeddedMetricStore()]
