"""The life of an alert: pending, firing, resolved. Pure: values in, alerts out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorfusion.spi.alerts import Alert, AlertState
from tensorfusion.spi.metrics import Labels, SeriesValue
from tensorfusion.spi.rules import AlertRule
from tensorfusion.units import human_bytes, human_tflops


@dataclass(slots=True)
class Instance:
    """One series that a rule matches."""

    labels: Labels
    since: float
    seen: float
    value: float
    firing_since: float | None = None
    held_until: float = 0.0
    """A restored instance does not resolve before this time; see `RESTORE_SECONDS`."""


RESTORE_SECONDS = 60.0
"""How long an alert that fired before a restart is kept while its series may not be back yet."""


class RuleState:
    """Instances of one rule over time.

    An instance must hold for ``for_seconds`` without a gap before it fires, as in Prometheus;
    a firing one goes on for ``keep_firing_seconds`` after its series is gone.
    """

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self._instances: dict[Labels, Instance] = {}

    def step(self, found: Sequence[SeriesValue], now: float) -> list[Alert]:
        """Take one evaluation; return the alerts that began to fire or resolved."""
        changed: list[Alert] = []
        for series in found:
            instance = self._instances.get(series.labels)
            if instance is None:
                instance = Instance(series.labels, now, now, series.value)
                self._instances[series.labels] = instance
            instance.seen, instance.value, instance.held_until = now, series.value, 0.0
            held = now - instance.since >= self.rule.for_seconds
            if held and instance.firing_since is None:
                instance.firing_since = now
                changed.append(self._alert(instance, AlertState.FIRING))
        present = {series.labels for series in found}
        for labels in [key for key in self._instances if key not in present]:
            instance = self._instances[labels]
            if instance.firing_since is None:
                del self._instances[labels]
            elif (
                now - instance.seen >= self.rule.keep_firing_seconds and now >= instance.held_until
            ):
                del self._instances[labels]
                changed.append(self._alert(instance, AlertState.RESOLVED, ends=now))
        return changed

    def restore(self, alert: Alert, now: float) -> None:
        """Take over an alert that was firing before a restart, so that it can resolve."""
        labels = tuple(sorted(alert.labels.items()))
        self._instances[labels] = Instance(
            labels,
            alert.starts,
            now,
            alert.value,
            firing_since=alert.starts,
            held_until=now + RESTORE_SECONDS,
        )

    def active(self) -> list[Alert]:
        """Return pending and firing alerts."""
        return [
            self._alert(i, AlertState.PENDING if i.firing_since is None else AlertState.FIRING)
            for i in self._instances.values()
        ]

    def _alert(self, instance: Instance, state: AlertState, ends: float | None = None) -> Alert:
        labels = dict(instance.labels)
        starts = instance.firing_since if instance.firing_since is not None else instance.since
        return Alert(
            fingerprint=fingerprint(self.rule.name, instance.labels),
            rule=self.rule.name,
            state=state,
            severity=self.rule.severity,
            labels=labels,
            summary=self.rule.summary,
            description=describe(self.rule, labels, instance.value),
            value=instance.value,
            starts=starts,
            ends=ends,
            annotations={"runbook": self.rule.runbook} if self.rule.runbook else {},
        )


def fingerprint(rule: str, labels: Labels) -> str:
    """Identify one instance of one rule, in 16 hexadecimal digits."""
    text = "\0".join([rule, *(f"{k}\1{v}" for k, v in labels)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def describe(rule: AlertRule, labels: Mapping[str, str], value: float) -> str:
    """Fill in the description; a label that is missing stays visible as ``{label}``."""
    text = rule.description.replace("{value}", show(value, rule.unit))
    for key, label in labels.items():
        text = text.replace("{" + key + "}", label)
    return text


def show(value: float, unit: str) -> str:
    """Print a value for a person."""
    match unit:
        case "ratio":
            return f"{value:.0%}"
        case "bytes":
            return human_bytes(round(value))
        case "flops":
            return f"{human_tflops(round(value / 1e9))} TFLOPS"
        case "seconds":
            return f"{value:.1f} s"
        case _:
            return f"{value:g}"
