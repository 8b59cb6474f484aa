"""The life of an alert: pending, firing, resolved, over restarts, through sinks that fail."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.alerting import Dispatcher, Evaluator
from tensorfusion.alerting.delivery import GIVE_UP_SECONDS
from tensorfusion.alerting.states import RESTORE_SECONDS, RuleState, fingerprint
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.alerts import Alert, AlertState, Delivery
from tensorfusion.spi.metrics import SeriesValue
from tensorfusion.spi.rules import AlertRule, Metric
from tensorfusion.testing.clock import FakeClock

A, B = (("gpu", "a"),), (("gpu", "b"),)


def rule(name="TensorFusionX", for_seconds=10.0, keep=0.0):
    return AlertRule(
        name=name,
        expression=Metric("x"),
        for_seconds=for_seconds,
        keep_firing_seconds=keep,
        severity="warning",
        summary="Something is wrong.",
        description="{gpu} has {value}.",
        runbook="docs/runbooks/X.md",
    )


def steps(state, presence, every=5.0):
    """Evaluate every 5 s; True means the series is there. Returns what changed, by time."""
    changed = []
    for index, present in enumerate(presence):
        found = [SeriesValue(A, 1.0)] if present else []
        changed += [(index * every, a.state.value) for a in state.step(found, index * every)]
    return changed


@pytest.mark.parametrize(
    ("for_seconds", "keep", "presence", "wanted"),
    [
        (10, 0, [1, 1, 1, 1, 0], [(10, "firing"), (20, "resolved")]),
        (10, 0, [1, 1, 0, 1, 1, 1], [(25, "firing")]),
        (0, 0, [1, 0, 1], [(0, "firing"), (5, "resolved"), (10, "firing")]),
        (10, 0, [1, 1, 0, 0], []),
        (0, 10, [1, 0, 1, 0, 0, 0], [(0, "firing"), (20, "resolved")]),
    ],
)
def test_alert_fires_after_it_held_and_resolves_once(for_seconds, keep, presence, wanted):
    assert steps(RuleState(rule(for_seconds=for_seconds, keep=keep)), presence) == wanted


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0, 5, 12]), st.sampled_from([0, 7]))
def test_firing_and_resolved_alternate(presence, for_seconds, keep):
    states = [s for _, s in steps(RuleState(rule(for_seconds=for_seconds, keep=keep)), presence)]

    assert states == ["firing", "resolved"] * (len(states) // 2) + ["firing"] * (len(states) % 2)


def test_instances_are_independent():
    state = RuleState(rule(for_seconds=0))
    first = state.step([SeriesValue(A, 1.0)], 0)
    second = state.step([SeriesValue(A, 2.0), SeriesValue(B, 3.0)], 5)

    assert [a.labels for a in first] == [{"gpu": "a"}]
    assert [(a.labels, a.value, a.starts) for a in second] == [({"gpu": "b"}, 3.0, 5)]
    assert {a.fingerprint for a in state.active()} == {
        fingerprint("TensorFusionX", A),
        fingerprint("TensorFusionX", B),
    }


class Store:
    """A metric store that shows what the test says."""

    def __init__(self):
        self.found = []

    def evaluate(self, expression, now):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Sink:
    def __init__(self, name="sink", answer=None):
        self.name = name
        self.answer = answer or (lambda alerts: [Delivery(a.fingerprint, True) for a in alerts])
        self.batches = []

    def send(self, alerts):
        self.batches.append([(a.state.value, a.labels.get("gpu")) for a in alerts])
        return self.answer(alerts)


class World:
    def __init__(self, tmp_path=None, *sinks, rules=None):
        self.clock, self.instruments, self.store = FakeClock(), Instruments(), Store()
        self.sinks = sinks or (Sink(),)
        self.file = tmp_path / "alerts.json" if tmp_path else None
        self.told = []
        self.start(rules)

    def start(self, rules=None):
        rules = rules if rules is not None else [rule()]
        self.dispatcher = Dispatcher({s.name: s for s in self.sinks}, self.clock, self.instruments)
        self.evaluator = Evaluator(
            {r.name: r for r in rules},
            self.store,
            self.dispatcher,
            clock=self.clock,
            instruments=self.instruments,
            state_file=self.file,
            on_change=lambda alert: self.told.append(alert.state.value),
        )

    def run(self, *found, seconds=5.0):
        self.store.found = [SeriesValue(labels, 1.0) for labels in found]
        changed = self.evaluator.run_once()
        self.clock.advance(seconds)
        return [(a.state.value, a.labels["gpu"]) for a in changed]


def test_change_goes_to_sinks_and_observers():
    world = World()
    for _ in range(3):
        world.run(A)
    world.run()

    assert world.sinks[0].batches == [[("firing", "a")], [("resolved", "a")]]
    assert world.told == ["firing", "resolved"]
    text = world.instruments.exposition().decode()
    assert 'alert_evaluations_total{result="success",rule="TensorFusionX"} 4.0' in text


def test_rule_that_cannot_be_evaluated_does_not_stop_the_rest(caplog):
    world = World(None, rules=[rule("TensorFusionA", 0), rule("TensorFusionB", 0)])

    def evaluate(expression, now):
        evaluate.calls += 1
        if evaluate.calls == 1:
            raise RuntimeError("no such metric")
        return [SeriesValue(A, 1.0)]

    evaluate.calls = 0
    world.store.evaluate = evaluate
    with caplog.at_level(logging.CRITICAL):
        changed = world.evaluator.run_once()

    assert [a.rule for a in changed] == ["TensorFusionB"]
    assert 'result="error",rule="TensorFusionA"' in world.instruments.exposition().decode()


def test_alert_that_fired_before_a_restart_goes_on_and_resolves_later(tmp_path):
    world = World(tmp_path)
    for _ in range(3):
        world.run(A)
    started = world.evaluator.active()[0].starts
    world.start()

    assert [(a.state, a.starts) for a in world.evaluator.active()] == [(AlertState.FIRING, started)]
    assert world.run() == []  # its series is not back yet
    assert world.run(A) == []
    assert world.run() == [("resolved", "a")]
    assert world.evaluator.active() == []
    world.start()
    assert world.evaluator.active() == []


def test_alert_whose_series_never_comes_back_resolves_after_a_while(tmp_path):
    world = World(tmp_path)
    for _ in range(3):
        world.run(A)
    world.start()
    assert world.run(seconds=RESTORE_SECONDS) == []

    assert world.run() == [("resolved", "a")]


def test_alert_of_a_rule_that_is_no_longer_installed_resolves(tmp_path):
    world = World(tmp_path)
    for _ in range(3):
        world.run(A)
    world.start([rule("TensorFusionOther")])

    assert world.run() == [("resolved", "a")]
    assert world.sinks[0].batches[-1] == [("resolved", "a")]


@pytest.mark.parametrize("content", [b"", b"{", b'[{"rule": 1}]'])
def test_broken_state_file_is_said_and_left_behind(tmp_path, content, caplog):
    (tmp_path / "alerts.json").write_bytes(content)
    world = World(tmp_path)

    assert world.evaluator.active() == []
    assert "alert state not read" in caplog.text


def test_state_that_cannot_be_saved_does_not_stop_alerts(tmp_path, caplog):
    world = World(tmp_path / "missing", rules=[rule(for_seconds=0)])

    assert world.run(A) == [("firing", "a")]
    assert world.sinks[0].batches == [[("firing", "a")]]
    assert "alert state not saved" in caplog.text


def raising(alerts):
    raise RuntimeError("a defect")


def refused(alerts):
    return [Delivery(a.fingerprint, False, retry=True, message="down") for a in alerts]


def dropped(alerts):
    return [Delivery(a.fingerprint, False, message="400") for a in alerts]


@pytest.mark.parametrize(
    "answer",
    [raising, refused, dropped, lambda alerts: None, lambda alerts: []],
    ids=["raises", "refuses", "drops", "answers nothing", "answers for none"],
)
def test_sink_that_fails_does_not_keep_alerts_from_the_others(answer):
    world = World(None, Sink("bad", answer), Sink("good"), rules=[rule(for_seconds=0)])
    world.run(A)

    assert world.sinks[1].batches == [[("firing", "a")]]


@pytest.mark.parametrize(
    "answer", [raising, refused, lambda alerts: None], ids=["raises", "refuses", "none"]
)
def test_delivery_is_retried_with_growing_pauses_until_it_is_given_up(answer, caplog):
    sink = Sink("s", answer)
    world = World(None, sink, rules=[rule(for_seconds=0)])
    world.run(A, seconds=0)
    start = world.clock.now()
    while world.dispatcher.waiting():
        world.clock.advance(1)
        world.dispatcher.pump()
        assert world.clock.now() - start < GIVE_UP_SECONDS + 400

    assert world.clock.now() - start >= GIVE_UP_SECONDS
    assert 8 <= len(sink.batches) <= 120
    assert "alert not delivered" in caplog.text
    assert 'result="dropped",sink="s"} 1.0' in world.instruments.exposition().decode()


def test_delivery_that_is_refused_for_good_is_not_retried():
    sink = Sink("s", dropped)
    world = World(None, sink, rules=[rule(for_seconds=0)])
    world.run(A)

    assert world.dispatcher.waiting() == 0
    assert len(sink.batches) == 1


def test_newer_state_replaces_what_was_not_delivered():
    sink = Sink("s", refused)
    world = World(None, sink, rules=[rule(for_seconds=0)])
    world.run(A)
    sink.answer = Sink().answer
    world.run()

    assert sink.batches == [[("firing", "a")], [("resolved", "a")]]
    assert world.dispatcher.waiting() == 0


def test_partial_success_keeps_only_what_failed():
    def half(alerts):
        # In another order than they were given, as some receivers answer.
        answers = [Delivery(a.fingerprint, a.labels["gpu"] == "a", retry=True) for a in alerts]
        return answers[::-1]

    sink = Sink("s", half)
    world = World(None, sink, rules=[rule(for_seconds=0)])
    world.run(A, B)

    assert world.dispatcher.waiting() == 1
    world.clock.advance(60)
    world.dispatcher.pump()
    assert sink.batches[-1] == [("firing", "b")]


def test_fingerprint_is_stable_and_tells_instances_apart():
    prints = {fingerprint(r, labels) for r in ("X", "Y") for labels in (A, B, (("g", "pua"),))}

    assert len(prints) == 6
    assert fingerprint("X", A) == fingerprint("X", A)
    assert isinstance(
        Alert(
            fingerprint="f", rule="X", state=AlertState.FIRING, severity="info", labels={},
            summary="", description="", value=0, starts=0,
        ).state,
        AlertState,
    )  # fmt: skip
