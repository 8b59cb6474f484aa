"""Alerting: evaluates every rule on the metric store, sends changes out, remembers what fires."""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from tensorfusion.alerting.delivery import Dispatcher
from tensorfusion.alerting.states import RuleState
from tensorfusion.clock import Clock
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.alerts import Alert, AlertState
from tensorfusion.spi.metrics import MetricStore
from tensorfusion.spi.rules import AlertRule

log = logging.getLogger(__name__)


class Evaluator:
    """The built-in evaluator; on a cluster Prometheus may evaluate the same rules instead.

    Args:
        state_file: Firing alerts live here over a restart, so that each one still resolves.
        on_change: Told of every alert that began to fire or resolved.

    Concurrency: `run` and `run_once` belong to one thread; `active` may be called from any.
    """

    def __init__(
        self,
        rules: Mapping[str, AlertRule],
        metrics: MetricStore,
        dispatcher: Dispatcher,
        *,
        clock: Clock,
        instruments: Instruments,
        state_file: Path | None = None,
        on_change: Callable[[Alert], None] | None = None,
    ) -> None:
        self._states = {name: RuleState(rule) for name, rule in sorted(rules.items())}
        self._metrics = metrics
        self._dispatcher = dispatcher
        self._clock = clock
        self._instruments = instruments
        self._state_file = state_file
        self._on_change = on_change
        self._active: list[Alert] = []
        self._orphans: list[Alert] = []
        """Restored alerts whose rule is no longer installed; they resolve in the first pass."""
        self._restore()

    def run(self, stop: threading.Event, interval_seconds: float) -> None:
        """Evaluate until ``stop`` is set."""
        while not stop.is_set():
            self.run_once()
            self._clock.wait(stop, interval_seconds)

    def run_once(self) -> list[Alert]:
        """Evaluate every rule once; return what changed."""
        now = self._clock.now()
        changed: list[Alert] = []
        for name, state in self._states.items():
            try:
                found = self._metrics.evaluate(state.rule.expression, now)
            except Exception:
                # Hook isolation: the store is a plugin, and one bad rule must not stop the rest.
                log.exception("rule not evaluated", extra={"rule": name})
                self._count(name, "error")
                continue
            self._count(name, "success")
            changed += state.step(found, now)
        self._active = [a for state in self._states.values() for a in state.active()]
        changed += self._orphans
        self._orphans = []
        if changed:
            self._dispatcher.submit(changed)
            self._save()
            for alert in changed:
                if self._on_change is not None:
                    self._on_change(alert)
        self._dispatcher.pump()
        return changed

    def active(self) -> list[Alert]:
        """Return pending and firing alerts as of the last evaluation."""
        return list(self._active)

    def _count(self, rule: str, result: str) -> None:
        self._instruments.count(
            "tensorfusion_alert_evaluations_total", {"rule": rule, "result": result}
        )

    def _save(self) -> None:
        if self._state_file is None:
            return
        firing = [a for a in self._active if a.state is AlertState.FIRING]
        part = self._state_file.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(firing))
            os.replace(part, self._state_file)
        except OSError as error:
            # Alerts still go out; only a restart would forget what fires now.
            log.error("alert state not saved", extra={"error": str(error)})

    def _restore(self) -> None:
        if self._state_file is None or not self._state_file.exists():
            return
        now = self._clock.now()
        try:
            saved = msgspec.json.decode(self._state_file.read_bytes(), type=list[Alert])
        except (OSError, msgspec.DecodeError) as error:
            log.error("alert state not read", extra={"error": str(error)})
            return
        for alert in saved:
            state = self._states.get(alert.rule)
            if state is not None:
                state.restore(alert, now)
            else:
                self._orphans.append(replace(alert, state=AlertState.RESOLVED, ends=now))
        self._active = [a for state in self._states.values() for a in state.active()]
