"""The bundled rules on the built-in evaluator, by the table that promtool is given too."""

import pytest
from rig.rule_cases import CASES, STEP_SECONDS

from tensorfusion.alerting import Dispatcher, Evaluator
from tensorfusion.alerting.states import describe, show
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.alerts import AlertState
from tensorfusion.spi.metrics import Sample
from tensorfusion.spi.rules import AlertRule, Metric
from tensorfusion.testing.clock import FakeClock
from tensorfusion_dashboards.rules import RULES
from tensorfusion_plugins.metric_stores.embedded import EmbeddedMetricStore

BY_NAME = {rule.name: rule for rule in RULES}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rule_fires_and_resolves_by_the_table(case):
    clock, instruments, store = FakeClock(0), Instruments(), EmbeddedMetricStore()
    rule = BY_NAME[case.rule]
    evaluator = Evaluator(
        {rule.name: rule},
        store,
        Dispatcher({}, clock, instruments),
        clock=clock,
        instruments=instruments,
    )
    samples = {}
    for series in case.series:
        labels = tuple(sorted(series.labels.items()))
        for time, value in series.samples():
            samples.setdefault(time, []).append(Sample(series.metric, labels, time, value))
    for time in range(0, max(case.firing) + 1, STEP_SECONDS):
        store.write(samples.get(time, []))
        evaluator.run_once()
        if time in case.firing:
            found = [a for a in evaluator.active() if a.state is AlertState.FIRING]
            assert sorted((sorted(a.labels.items()), a.description) for a in found) == sorted(
                (sorted(labels.items()), description(rule, labels, value))
                for labels, value in case.firing[time]
            ), f"at {time} s"
        clock.advance(STEP_SECONDS)


def description(rule, labels, value):
    return rule.description.replace("{value}", value).format(**labels)


def test_every_rule_has_a_case_that_fires_and_one_that_does_not():
    for name in BY_NAME:
        mine = [case for case in CASES if case.rule == name]
        assert any(any(case.firing.values()) for case in mine), name
        assert any(not any(case.firing.values()) for case in mine), name


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.975, "ratio", "98%"),
        (8 << 30, "bytes", "8Gi"),
        (2.5e12, "flops", "2.5 TFLOPS"),
        (2.5, "seconds", "2.5 s"),
        (2.5, "", "2.5"),
    ],
)
def test_value_is_printed_in_its_unit(value, unit, text):
    assert show(value, unit) == text


def test_label_that_is_missing_stays_visible():
    rule = AlertRule(
        name="TensorFusionX",
        expression=Metric("x"),
        for_seconds=0,
        severity="info",
        summary="Something.",
        description="{gpu_uuid} of {node}: {value}",
    )

    assert describe(rule, {"node": "n1"}, 3) == "{gpu_uuid} of n1: 3"
