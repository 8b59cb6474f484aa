"""Offers the bundled alert rules through the same hook as anyone's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    from tensorfusion.spi.rules import AlertRule


@hookimpl
def tensorfusion_alert_rules() -> "Sequence[AlertRule]":
    """Offer the bundle."""
    from tensorfusion_dashboards.rules import RULES

    return RULES
