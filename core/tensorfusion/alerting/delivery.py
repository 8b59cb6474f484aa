"""Delivery: hands alerts to every sink, keeps what a sink could not take, and tries again."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorfusion.clock import Backoff, Clock
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.alerts import Alert, AlertSink, Delivery

log = logging.getLogger(__name__)
GIVE_UP_SECONDS = 3600.0
QUEUE = 10_000


@dataclass(slots=True)
class Waiting:
    """An alert that one sink has not taken yet."""

    alert: Alert
    since: float
    due: float


class Dispatcher:
    """One queue per sink. A newer state of the same alert replaces the older one.

    Concurrency: belongs to the alerting thread.
    """

    def __init__(
        self, sinks: Mapping[str, AlertSink], clock: Clock, instruments: Instruments
    ) -> None:
        self._sinks = sinks
        self._clock = clock
        self._instruments = instruments
        self._queues: dict[str, dict[str, Waiting]] = {name: {} for name in sinks}
        self._backoff = Backoff(1.0, 300.0)

    def submit(self, alerts: Sequence[Alert]) -> None:
        """Queue alerts for every sink."""
        now = self._clock.now()
        for queue in self._queues.values():
            for alert in alerts:
                queue[alert.fingerprint] = Waiting(alert, now, now)
            while len(queue) > QUEUE:
                queue.pop(next(iter(queue)))

    def pump(self) -> None:
        """Send what is due."""
        now = self._clock.now()
        for name, queue in self._queues.items():
            due = [w for w in queue.values() if w.due <= now]
            if due:
                self._send(name, due, now)

    def waiting(self) -> int:
        """Count what no sink has taken yet."""
        return sum(len(queue) for queue in self._queues.values())

    def _send(self, name: str, due: Sequence[Waiting], now: float) -> None:
        try:
            results = {r.fingerprint: r for r in self._sinks[name].send([w.alert for w in due])}
            missing = "the sink did not say what became of it"
        except Exception as error:  # noqa: BLE001 - hook isolation: a sink must not stop alerting
            results, missing = {}, f"{type(error).__name__}: {error}"
        queue = self._queues[name]
        for waiting in due:
            key = waiting.alert.fingerprint
            result = results.get(key) or Delivery(key, False, retry=True, message=missing)
            self._settle(name, queue, waiting, result, now)

    def _settle(
        self, name: str, queue: dict[str, Waiting], waiting: Waiting, result: Delivery, now: float
    ) -> None:
        key = (name, result.fingerprint)
        if result.delivered:
            outcome = "delivered"
        elif result.retry and now - waiting.since < GIVE_UP_SECONDS:
            outcome = "retried"
        else:
            outcome = "dropped"
        self._instruments.count(
            "tensorfusion_alert_notifications_total", {"sink": name, "result": outcome}
        )
        if outcome == "retried":
            waiting.due = now + self._backoff.next_seconds(key)
            log.info(
                "alert sink retries",
                extra={"sink": name, "alert": waiting.alert.rule, "why": result.message},
            )
            return
        self._backoff.reset(key)
        queue.pop(result.fingerprint, None)
        if outcome == "dropped":
            log.warning(
                "alert not delivered",
                extra={"sink": name, "alert": waiting.alert.rule, "why": result.message},
            )
