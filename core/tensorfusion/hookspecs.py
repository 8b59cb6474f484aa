"""Every hook of the plugin system, and nothing else.

Two kinds only. An *offer* hook is called once at start and returns objects that obey a Protocol
of `tensorfusion.spi`. An *observe* hook is told about something after it happened and returns
nothing. There are no first-result hooks, no wrappers and no order: ties are settled by names.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click
    import msgspec

    from tensorfusion.spi.alerts import Alert, AlertSink
    from tensorfusion.spi.backend import Backend, DeviceInfo
    from tensorfusion.spi.metrics import MetricStore
    from tensorfusion.spi.observe import AllocationEvent
    from tensorfusion.spi.policy import PlacementPolicy
    from tensorfusion.spi.recommender import Recommender
    from tensorfusion.spi.rules import AlertRule

hookspec = pluggy.HookspecMarker("tensorfusion")


@hookspec
def tensorfusion_backends() -> "Sequence[Backend]":
    """Offer vendor backends."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_placement_policies() -> "Sequence[PlacementPolicy]":
    """Offer placement policies; a pool chooses one by name."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_recommenders() -> "Sequence[Recommender]":
    """Offer recommenders; all that are enabled propose, the largest request wins."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_alert_sinks() -> "Sequence[AlertSink]":
    """Offer alert sinks; every alert goes to all that are enabled."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_metric_stores() -> "Sequence[MetricStore]":
    """Offer metric stores; the settings choose one by name."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_alert_rules() -> "Sequence[AlertRule]":
    """Offer alert rules, each declared once."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_settings() -> "Sequence[type[msgspec.Struct]]":
    """Offer settings structs; the block of a struct is named after its plugin."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_commands() -> "Sequence[click.Command]":
    """Offer commands for the ``tensorfusion`` program."""
    raise AssertionError("a specification is never called")


@hookspec
def tensorfusion_allocated(event: "AllocationEvent") -> None:
    """Observe that a worker was given devices."""


@hookspec
def tensorfusion_released(event: "AllocationEvent") -> None:
    """Observe that a worker gave its devices back."""


@hookspec
def tensorfusion_alert_changed(alert: "Alert") -> None:
    """Observe that an alert began to fire or resolved."""


@hookspec
def tensorfusion_device_changed(node: str, device: "DeviceInfo") -> None:
    """Observe that a device appeared, disappeared or changed its health."""


OFFERS: dict[str, str] = {
    "tensorfusion_backends": "backend",
    "tensorfusion_placement_policies": "placement-policy",
    "tensorfusion_recommenders": "recommender",
    "tensorfusion_alert_sinks": "alert-sink",
    "tensorfusion_metric_stores": "metric-store",
    "tensorfusion_alert_rules": "alert-rules",
    "tensorfusion_settings": "settings",
    "tensorfusion_commands": "command",
}
"""Offer hooks to the kind that ``tensorfusion plugins`` prints."""

OBSERVERS: tuple[str, ...] = (
    "tensorfusion_allocated",
    "tensorfusion_released",
    "tensorfusion_alert_changed",
    "tensorfusion_device_changed",
)


def hook_names() -> tuple[str, ...]:
    """Name every hook."""
    return (*OFFERS, *OBSERVERS)
