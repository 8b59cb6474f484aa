"""Preemption from pods to pods: who is evicted, who never is, and who gets the room."""

import pytest
from rig.scheduling import World

from tensorfusion.api.registry import PODS, QUOTAS
from tensorfusion.scheduling.nomination import NOMINATION_SECONDS
from tensorfusion.testing import build


@pytest.fixture
def world(cluster, tmp_path):
    found = World(cluster, tmp_path)
    for name, value in (("critical", 100_000), ("high", 10_000), ("medium", 0), ("low", -1000)):
        found.priority_class(f"tensor-fusion-{name}", value)
    return found


def full(world, *pods, **cards):
    """A cluster of one card per pod by default, each card taken."""
    world.nodes(**(cards or {"a": len(pods)}))
    world.start()
    for name, fields in pods:
        world.pod(name, **fields)
        world.settle(1)
    assert sorted(world.bound()) == sorted(name for name, _ in pods)
    return world


def evicted(world):
    return [message for reason, message in world.cluster.reasons() if reason == "Preempted"]


def test_higher_qos_takes_the_place_of_the_lowest(world):
    full(world, ("low", {"qos": "low"}), ("medium", {}))
    world.pod("urgent", qos="critical")
    world.settle()
    assert sorted(world.bound()) == ["medium", "urgent"]
    assert evicted(world) == ["made room for pod default/urgent of higher priority"]
    assert world.healthy()
    text = world.cluster.instruments.exposition().decode()
    assert "tensorfusion_scheduler_preemptions_total 1.0" in text


def test_medium_is_above_low_and_equals_stay(world):
    full(world, ("low", {"qos": "low"}), ("medium", {}))
    world.pod("one")
    world.pod("two")
    world.settle()
    assert "low" not in world.bound()
    assert "medium" in world.bound()
    assert len(evicted(world)) == 1


def test_class_that_never_preempts_waits(world):
    world.priority_class("patient", 50_000, policy="Never")
    full(world, ("low", {"qos": "low"}))
    world.pod("new", priorityClassName="patient")
    world.settle()
    assert list(world.bound()) == ["low"]
    world.pod("pod-says-so", qos="critical", preemptionPolicy="Never")
    world.settle()
    assert list(world.bound()) == ["low"]


def test_value_of_a_class_of_ones_own_counts(world):
    world.priority_class("mine", 5)
    full(world, ("medium", {}))
    world.pod("new", priorityClassName="mine")
    world.settle()
    assert list(world.bound()) == ["new"]


def test_protection_holds_as_long_as_it_says(world):
    full(world, ("low", {"qos": "low", "annotations": {"eviction-protection": "10m"}}))
    world.pod("urgent", qos="critical")
    world.settle(60)
    assert list(world.bound()) == ["low"]
    assert (
        "all 1 workers of lower priority are protected against eviction"
        in (world.scheduled("urgent")["message"])
    )
    world.settle(600)
    assert list(world.bound()) == ["urgent"]


def test_budget_turns_the_choice_to_others(world):
    labels = {"app": "guarded"}
    full(world, ("guarded", {"qos": "low", "labels": labels}), ("free", {"qos": "medium"}))
    world.budget("keep", {"tensor-fusion.ai/app": "guarded"}, minAvailable=1)
    world.settle(1)
    world.pod("urgent", qos="critical")
    world.settle()
    assert sorted(world.bound()) == ["guarded", "urgent"]


def test_budget_gives_way_when_nothing_else_helps(world):
    full(world, ("guarded", {"qos": "low", "labels": {"app": "guarded"}}))
    world.budget("keep", {"tensor-fusion.ai/app": "guarded"}, maxUnavailable=0)
    world.settle(1)
    world.pod("urgent", qos="critical")
    world.settle()
    assert list(world.bound()) == ["urgent"]


def test_nobody_goes_when_the_pod_would_not_fit_anyway(world):
    full(world, ("low", {"qos": "low"}))
    world.pod("huge", tflops=400, qos="critical")
    world.settle()
    assert list(world.bound()) == ["low"]
    assert (
        "it would not fit even without the 1 workers of lower priority"
        in (world.scheduled("huge")["message"])
    )


def slow_to_end(world):
    """Pods that are deleted stay until the test lets them go."""
    world.kubelet = lambda: world.cluster.pump()


def test_room_is_kept_while_victims_end_one_by_one(world):
    full(
        world,
        ("small-1", {"tflops": 100, "qos": "low"}),
        ("small-2", {"tflops": 100, "qos": "low"}),
        ("small-3", {"tflops": 100, "qos": "low"}),
        a=1,
    )
    slow_to_end(world)
    world.pod("urgent", tflops=300, qos="critical")
    world.settle(2)
    going = [n for n in ("small-1", "small-2", "small-3") if n not in world.bound()]
    assert len(going) == 3
    urgent = world.get("urgent")["status"]
    assert urgent["nominatedNodeName"] == "a"
    assert "waits for 3 evicted pods to leave node a" in world.scheduled("urgent")["message"]
    # A small pod of the same rank arrives while the card is half empty.
    world.store.delete(PODS, "small-1", "default", grace_period_seconds=0)
    world.store.delete(PODS, "small-2", "default", grace_period_seconds=0)
    world.pod("thief", tflops=100, qos="critical")
    world.settle(5)
    assert world.bound() == {}
    world.store.delete(PODS, "small-3", "default", grace_period_seconds=0)
    world.settle(5)
    assert list(world.bound()) == ["urgent"]
    assert world.healthy()


def test_room_is_given_back_when_the_pod_goes_away(world):
    full(world, ("low", {"qos": "low"}))
    slow_to_end(world)
    world.pod("urgent", qos="critical")
    world.pod("patient", qos="low")
    world.settle(2)
    world.store.delete(PODS, "urgent", "default")
    world.store.delete(PODS, "low", "default", grace_period_seconds=0)
    world.settle(5)
    assert list(world.bound()) == ["patient"]
    assert world.healthy()


def test_promise_ends_when_victims_do_not_leave(world):
    full(world, ("low", {"qos": "low"}))
    slow_to_end(world)
    world.pod("urgent", qos="critical")
    world.settle(2)
    uid = world.get("urgent")["metadata"]["uid"]
    assert world.placer.nominated(uid) is not None
    world.settle(NOMINATION_SECONDS + 5)
    assert world.placer.nominated(uid) is None
    assert "low" in {a.name for a in world.placer.ledger.allocations.values()}
    world.store.delete(PODS, "low", "default", grace_period_seconds=0)
    world.settle(5)
    assert list(world.bound()) == ["urgent"]


def test_pods_that_end_anyway_are_waited_for(world):
    full(world, ("leaving", {"qos": "low"}), ("staying", {"qos": "low"}))
    slow_to_end(world)
    world.store.delete(PODS, "leaving", "default")
    world.pod("urgent", qos="critical")
    world.settle(5)
    assert list(world.bound()) == ["staying"]
    assert evicted(world) == []
    assert (
        "it fits once the pods that are ending have left" in (world.scheduled("urgent")["message"])
    )
    world.store.delete(PODS, "leaving", "default", grace_period_seconds=0)
    world.settle(5)
    assert sorted(world.bound()) == ["staying", "urgent"]


def test_gang_is_evicted_as_a_whole_or_spared(world):
    world.nodes(a=3)
    world.start()
    world.gang("job", 0, 1, required=2, qos="low")
    world.settle()
    world.pod("single", qos="low")
    world.settle()
    world.pod("urgent", qos="critical")
    world.settle()
    assert sorted(world.bound()) == ["job-0", "job-1", "urgent"]
    world.pod("urgent-too", qos="critical")
    world.settle()
    assert sorted(world.bound()) == ["urgent", "urgent-too"]
    assert world.healthy()


def test_quorum_gang_loses_its_spare_member_only(world):
    world.nodes(a=3)
    world.start()
    world.gang("job", 0, 1, 2, required=2, desired=3, qos="low")
    world.settle()
    world.pod("urgent", qos="critical")
    world.settle()
    assert len(world.bound()) == 3
    assert len(evicted(world)) == 1


def test_gang_preempts_for_all_its_members_at_once(world):
    full(world, *[(f"low-{n}", {"qos": "low"}) for n in range(3)])
    slow_to_end(world)
    world.gang("job", 0, 1, required=2, qos="high")
    world.settle(3)
    assert len(world.bound()) == 1
    going = sorted({f"low-{n}" for n in range(3)} - set(world.bound()))
    world.store.delete(PODS, going[0], "default", grace_period_seconds=0)
    world.settle(15)
    assert not [n for n in world.bound() if n.startswith("job")]
    world.store.delete(PODS, going[1], "default", grace_period_seconds=0)
    world.settle(15)
    assert sorted(n for n in world.bound() if n.startswith("job")) == ["job-0", "job-1"]
    assert world.healthy()


def test_quota_is_not_relaxed_by_victims_of_other_namespaces(world):
    world.store.create(QUOTAS, build.quota(tflops="200"))
    world.nodes(a=3)
    world.start()
    world.pod("mine", qos="low")
    world.settle()
    world.pod("urgent", qos="critical")
    world.settle()
    # Two cards are free: only the quota is in the way, and only its own namespace can free it.
    assert list(world.bound()) == ["urgent"]
    assert world.healthy()
