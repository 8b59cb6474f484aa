"""Alerts in flight, and the sinks that carry them out of the product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable


class AlertState(StrEnum):
    """Where an alert stands; the words of Prometheus."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One instance of a rule.

    Attributes:
        fingerprint: Stable identity of (rule, labels).
        starts: Epoch seconds at which it began to fire.
        ends: Epoch seconds at which it resolved; None while it fires.
    """

    fingerprint: str
    rule: str
    state: AlertState
    severity: str
    labels: Mapping[str, str]
    summary: str
    description: str
    value: float
    starts: float
    ends: float | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one alert at one sink.

    Attributes:
        delivered: True when the sink took it. Otherwise it is retried if ``retry``.
    """

    fingerprint: str
    delivered: bool
    retry: bool = False
    message: str = ""


@runtime_checkable
class AlertSink(Protocol):
    """A way out for alerts. Called from one thread, a batch at a time."""

    name: str

    def send(self, alerts: Sequence[Alert]) -> Sequence[Delivery]:
        """Deliver firing and resolved alerts.

        Returns:
            One result per alert, in the same order. A sink reports failure here, it does not
            raise for a network's fault.
        """
        ...
