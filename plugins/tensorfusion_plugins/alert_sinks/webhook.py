"""A sink that posts alerts as JSON, in the shape of Alertmanager's webhook receiver."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tensorfusion.clock import format_timestamp
from tensorfusion.errors import ConfigError
from tensorfusion.spi.alerts import Alert, AlertState, Delivery

NEVER = "0001-01-01T00:00:00Z"


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the ``alert-sinks`` plugin.

    Attributes:
        webhook_url: Where to post; empty switches the sink off.
        webhook_headers: Extra headers, such as ``Authorization``; never logged.
        webhook_timeout_seconds: For one post.
    """

    webhook_url: str = ""
    webhook_headers: dict[str, str] = {}
    webhook_timeout_seconds: float = 5.0


class WebhookSink:
    """Posts one document per batch. The caller retries what a server error or the net refused."""

    name = "webhook"

    def __init__(self) -> None:
        self._settings = WebhookSettings()

    def configure(self, settings: WebhookSettings) -> None:
        """Take the address.

        Raises:
            ConfigError: It is not an http or https URL, or a header cannot be sent.
        """
        url = urlsplit(settings.webhook_url)
        if settings.webhook_url and not (url.scheme in ("http", "https") and url.hostname):
            raise ConfigError(
                f"webhook_url: {settings.webhook_url!r} is not a URL; allowed: http://... or https://..."
            )
        for name, value in settings.webhook_headers.items():
            # The value may be a secret: the message names the header only.
            if not (name.isascii() and value.isascii() and (name + value).isprintable()):
                raise ConfigError(
                    f"webhook_headers.{name!r}: the header has characters that cannot be sent;"
                    " allowed: printable ASCII"
                )
        self._settings = settings

    def send(self, alerts: Sequence[Alert]) -> Sequence[Delivery]:
        """Post the alerts."""
        if not self._settings.webhook_url:
            return [Delivery(a.fingerprint, True, message="switched off") for a in alerts]
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._settings.webhook_url,
            data=msgspec.json.encode(document(alerts)),
            headers={"Content-Type": "application/json", **self._settings.webhook_headers},
            method="POST",
        )
        try:
            timeout = self._settings.webhook_timeout_seconds
            with urllib.request.urlopen(request, timeout=timeout):  # noqa: S310
                return [Delivery(a.fingerprint, True) for a in alerts]
        except urllib.error.HTTPError as error:
            with error:
                # A client error will not get better by repeating it.
                retry = error.code >= 500 or error.code == 429
                message = f"the receiver answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            retry, message = True, str(error) or type(error).__name__
        return [Delivery(a.fingerprint, False, retry=retry, message=message) for a in alerts]


def document(alerts: Sequence[Alert]) -> Mapping[str, Any]:
    """Build the body: version 4 of Alertmanager's webhook format."""
    firing = any(a.state is AlertState.FIRING for a in alerts)
    return {
        "version": "4",
        "receiver": "tensorfusion",
        "status": "firing" if firing else "resolved",
        "alerts": [
            {
                "status": a.state.value,
                "labels": {"alertname": a.rule, "severity": a.severity, **a.labels},
                "annotations": {
                    "summary": a.summary,
                    "description": a.description,
                    **a.annotations,
                },
                "startsAt": format_timestamp(a.starts),
                "endsAt": NEVER if a.ends is None else format_timestamp(a.ends),
                "fingerprint": a.fingerprint,
            }
            for a in alerts
        ],
    }
