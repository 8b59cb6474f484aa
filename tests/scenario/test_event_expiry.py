"""Events older than their lifetime go; what happened again, or was just now, stays."""

import pytest

from tensorfusion.api.registry import EVENTS
from tensorfusion.controllers import event_expiry
from tensorfusion.controllers.event_expiry import EventExpiry
from tensorfusion.testing import build


@pytest.fixture
def expiry(cluster):
    return EventExpiry(cluster.store, EVENTS, 3600.0, cluster.clock)


def reasons(cluster):
    return sorted(event["reason"] for event in cluster.all(EVENTS))


def record(cluster, recorder, reason):
    recorder.event({"kind": "Pod", **build.pod("web")}, reason, "said once")


def test_an_event_goes_after_its_lifetime(cluster, expiry):
    recorder = cluster.events()
    record(cluster, recorder, "Old")
    cluster.clock.advance(3000)
    record(cluster, recorder, "Young")
    assert expiry.run_once() == 0
    cluster.clock.advance(700)
    assert expiry.run_once() == 1
    assert reasons(cluster) == ["Young"]


def test_an_event_that_happens_again_stays(cluster, expiry):
    recorder = cluster.events()
    for _ in range(9):
        record(cluster, recorder, "Again")
        cluster.clock.advance(500)
    assert expiry.run_once() == 0
    assert reasons(cluster) == ["Again"]
    cluster.clock.advance(3600)
    assert expiry.run_once() == 1


def test_every_page_is_looked_at(cluster, expiry, monkeypatch):
    monkeypatch.setattr(event_expiry, "PAGE", 3)
    recorder = cluster.events()
    for number in range(10):
        record(cluster, recorder, f"Old{number}")
    cluster.clock.advance(3601)
    record(cluster, recorder, "Young")
    assert expiry.run_once() == 10
    assert reasons(cluster) == ["Young"]
