"""Alert sinks that come with the product."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorfusion import hookimpl

if TYPE_CHECKING:
    import msgspec

    from tensorfusion.spi.alerts import AlertSink


@hookimpl
def tensorfusion_alert_sinks() -> "Sequence[AlertSink]":
    """Offer the log and the generic webhook."""
    from tensorfusion_plugins.alert_sinks.log import LogSink
    from tensorfusion_plugins.alert_sinks.webhook import WebhookSink

    return [LogSink(), WebhookSink()]


@hookimpl
def tensorfusion_settings() -> "Sequence[type[msgspec.Struct]]":
    """Offer the webhook's address."""
    from tensorfusion_plugins.alert_sinks.webhook import WebhookSettings

    return [WebhookSettings]
