"""A sink that writes alerts to the log."""

import logging
from collections.abc import Sequence

from tensorfusion.spi.alerts import Alert, AlertState, Delivery

log = logging.getLogger("tensorfusion.alerts")


class LogSink:
    """One line per alert: firing at warning level, resolved at info."""

    name = "log"

    def send(self, alerts: Sequence[Alert]) -> Sequence[Delivery]:
        """Write the alerts."""
        for alert in alerts:
            level = logging.WARNING if alert.state is AlertState.FIRING else logging.INFO
            log.log(
                level,
                "alert %s",
                alert.state.value,
                extra={
                    "alert": alert.rule,
                    "severity": alert.severity,
                    "description": alert.description,
                    "labels": dict(alert.labels),
                },
            )
        return [Delivery(alert.fingerprint, True) for alert in alerts]
