"""A pod that waits says what would make it fit, in its condition and its event."""

import pytest
from rig.scheduling import World

from tensorfusion.scheduling import hints
from tensorfusion.scheduling.hints import KEEP_SECONDS, Hints
from tensorfusion.scheduling.translate import demand_of


@pytest.fixture
def world(cluster, tmp_path):
    found = World(cluster, tmp_path)
    found.nodes(a=1)
    found.start()
    return found


def test_condition_and_event_name_the_smallest_change(world):
    world.pod("big", vram="200Gi")
    world.settle()
    condition = world.scheduled("big")
    assert condition["reason"] == "Unschedulable"
    assert (
        "it would fit if you ask for at most 80Gi of VRAM per GPU, not 200Gi"
        in condition["message"]
    )
    events = [text for reason, text in world.cluster.reasons() if reason == "FailedScheduling"]
    assert events == [condition["message"]]


def test_what_it_says_is_enough(world):
    world.pod("big", vram="200Gi")
    world.pod("smaller", vram="80Gi")
    world.settle()
    assert list(world.bound()) == ["smaller"]


def test_a_pod_that_waits_for_nothing_but_room_is_told_how_little_is_in_the_way(world):
    world.pod("first")
    world.settle()
    world.pod("second")
    world.settle()
    assert "it would fit if you ask for at most 112 TFLOPS" in world.scheduled("second")["message"]


def test_equal_requests_are_looked_at_once_a_minute(world, monkeypatch):
    monkeypatch.setattr(hints, "SHARE", 1.0)
    world.pod("big", vram="200Gi")
    world.settle()
    demand = demand_of(world.pods.get("default/big"))
    asked = []

    class Counting:
        def relax(self, demand):
            asked.append(demand)
            return world.placer.relax(demand)

    found = Hints(Counting(), world.clock)
    assert found.of(demand) == found.of(demand) != ""
    assert len(asked) == 1
    world.clock.advance(KEEP_SECONDS)
    found.of(demand)
    assert len(asked) == 2
