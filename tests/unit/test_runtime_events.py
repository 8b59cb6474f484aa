"""Events, conditions and instruments: what people and scrapes see of the process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tensorfusion.api.registry import EVENTS
from tensorfusion.clock import format_timestamp
from tensorfusion.errors import NotFound, Unavailable
from tensorfusion.runtime.conditions import condition, merge
from tensorfusion.runtime.events import BURST, EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.catalogue import BY_NAME, METRICS
from tensorfusion.sqlite import SQLiteStore
from tensorfusion.testing.clock import FakeClock

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "namespace": "default", "uid": "u"},
}


@pytest.fixture
def world(tmp_path):
    clock = FakeClock()
    store = SQLiteStore(tmp_path / "s.db", clock=clock)
    yield store, clock, EventRecorder(store, EVENTS, "tester", clock)
    store.close()


def events(store):
    return store.list(EVENTS, "default").items


def test_event_says_who_what_and_when(world):
    store, clock, recorder = world
    recorder.event(POD, "Scaled", "It grew.", warning=True)
    (event,) = events(store)

    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Pod", **POD["metadata"]}
    assert (event["type"], event["reason"], event["message"]) == ("Warning", "Scaled", "It grew.")
    assert event["firstTimestamp"] == format_timestamp(clock.now())
    assert event["source"] == {"component": "tester"}


def test_equal_events_are_counted_in_one_object(world):
    store, clock, recorder = world
    for _ in range(3):
        recorder.event(POD, "Scaled", "It grew.")
        clock.advance(60)
    (event,) = events(store)

    assert event["count"] == 3
    assert event["lastTimestamp"] == format_timestamp(clock.now() - 60)


def test_equal_event_after_ten_quiet_minutes_is_a_new_one(world):
    store, clock, recorder = world
    recorder.event(POD, "Scaled", "It grew.")
    clock.advance(601)
    recorder.event(POD, "Scaled", "It grew.")

    assert [e["count"] for e in events(store)] == [1, 1]


def test_events_of_one_object_are_limited_and_the_allowance_refills(world):
    store, clock, recorder = world
    for number in range(BURST + 10):
        recorder.event(POD, "Scaled", f"It grew to {number}.")
    assert len(events(store)) == BURST

    other = {**POD, "metadata": {**POD["metadata"], "name": "q", "uid": "v"}}
    recorder.event(other, "Scaled", "It grew.")
    assert len(events(store)) == BURST + 1

    clock.advance(300)
    recorder.event(POD, "Scaled", "It grew again.")
    recorder.event(POD, "Scaled", "And again.")
    assert len(events(store)) == BURST + 2


def test_event_of_a_cluster_object_lies_in_the_default_namespace(world):
    store, _, recorder = world
    recorder.event({"kind": "Node", "metadata": {"name": "n", "uid": "u"}}, "Seen", "Hello.")

    assert len(events(store)) == 1


class Broken:
    def __init__(self):
        self.tries = 0

    def create(self, *args, **kwargs):
        self.tries += 1
        raise Unavailable("the disk is full")

    def patch(self, *args, **kwargs):
        raise NotFound("expired")


def test_event_that_cannot_be_written_harms_nobody_and_is_tried_anew():
    store, clock = Broken(), FakeClock()
    recorder = EventRecorder(store, EVENTS, "tester", clock)
    recorder.event(POD, "Scaled", "It grew.")
    recorder.event(POD, "Scaled", "It grew.")

    assert store.tries == 2


def test_condition_moves_its_time_only_when_the_status_changes():
    first = merge([], [condition("Ready", False, "Waiting", "0 of 2")], 100)
    same = merge(first, [condition("Ready", False, "Waiting", "1 of 2")], 200)
    changed = merge(same, [condition("Ready", True, "Done")], 300)

    times = [c[0]["lastTransitionTime"] for c in (first, same, changed)]
    assert times == [format_timestamp(t) for t in (100, 100, 300)]
    assert same[0]["message"] == "1 of 2"


KINDS = st.sampled_from(["Ready", "Reconciling", "Stalled", "Other"])
SOME = st.lists(st.tuples(KINDS, st.sampled_from([True, False, None])), unique_by=lambda c: c[0])


@given(SOME, SOME)
def test_merge_keeps_foreign_conditions_and_order(old, new):
    before = merge([], [condition(kind, status, "Before") for kind, status in old], 100)
    after = merge(before, [condition(kind, status, "After") for kind, status in new], 200)
    wanted = dict(new)

    assert [c["type"] for c in after[: len(before)]] == [c["type"] for c in before]
    assert {c["type"] for c in after} == {k for k, _ in old} | wanted.keys()
    for c in after:
        was = next((b for b in before if b["type"] == c["type"]), None)
        if c["type"] not in wanted:
            assert c == was
        else:
            moved = was is None or was["status"] != c["status"]
            assert c["lastTransitionTime"] == format_timestamp(200 if moved else 100)


def parse(instruments):
    text = instruments.exposition().decode()
    return {
        sample.name: sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("info", METRICS, ids=lambda info: info.name)
def test_every_metric_of_the_catalogue_can_be_exposed(info):
    instruments = Instruments()
    labels = {label: f'a "quoted\\" {label}\n' for label in info.labels}
    if info.kind == "histogram":
        instruments.observe(info.name, 0.01, labels)
        shown = parse(instruments)[f"{info.name}_count"]
    elif info.kind == "counter":
        instruments.count(info.name, labels)
        shown = parse(instruments)[info.name]
    else:
        instruments.set(info.name, 1, labels)
        shown = parse(instruments)[info.name]

    assert shown.value == 1
    assert shown.labels == labels


def test_snapshot_replaces_only_what_its_source_gave_before():
    name = "tensorfusion_gpu_workers"
    instruments = Instruments()
    instruments.replace(name, [(("p", "n", "a"), 1), (("p", "n", "b"), 2)], source="x")
    instruments.replace(name, [(("p", "n", "c"), 3)], source="y")
    instruments.replace(name, [(("p", "n", "a"), 5)], source="x")
    text = instruments.exposition().decode()

    assert [line.split()[-1] for line in text.splitlines() if line.startswith(name)] == [
        "5.0",
        "3.0",
    ]
    instruments.replace(name, [], source="x")
    instruments.replace(name, [], source="y")
    assert name not in instruments.exposition().decode()


def test_forgotten_series_is_gone():
    instruments = Instruments()
    for version in ("1", "2"):
        instruments.set("tensorfusion_build_info", 1, {"version": version})
    instruments.forget("tensorfusion_build_info", {"version": "1"})
    text = instruments.exposition().decode()

    assert 'version="2"' in text
    assert 'version="1"' not in text


def test_metric_that_is_not_in_the_catalogue_is_an_error():
    instruments = Instruments()
    for write in (
        lambda: instruments.count("tensorfusion_nope_total"),
        lambda: instruments.observe("tensorfusion_nope_seconds", 1),
        lambda: instruments.set("tensorfusion_nope", 1),
        lambda: instruments.replace("tensorfusion_nope", []),
    ):
        with pytest.raises(KeyError):
            write()
    assert "tensorfusion_gpu_workers" in BY_NAME
