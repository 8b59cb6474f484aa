"""Gangs from pods to bindings: all or nothing, quorum, timeout, status, crashes."""

import pytest
from rig.scheduling import World

from tensorfusion.api.registry import GPUS, PODS, WORKLOADS
from tensorfusion.errors import Conflict
from tensorfusion.model.decision_log import replay
from tensorfusion.testing import build


@pytest.fixture
def world(cluster, tmp_path):
    return World(cluster, tmp_path)


def start(world, **cards):
    world.nodes(**cards)
    world.start()
    return world


def test_gang_is_bound_once_all_members_exist(world):
    start(world, a=2, b=1)
    world.gang("job", 0, 1, required=3)
    world.settle()
    assert world.bound() == {}
    condition = world.scheduled("job-0")
    assert (condition["status"], condition["reason"]) == ("False", "GangWaitingForMembers")
    assert condition["message"] == "gang default/job: 2 of 3 required members exist"
    assert world.annotation("job-1", "gang-phase") == "Waiting"
    assert ("FailedScheduling", condition["message"]) in world.cluster.reasons()
    assert not world.placer.ledger.allocations

    world.gang("job", 2, required=3)
    world.settle()
    assert sorted(world.bound()) == ["job-0", "job-1", "job-2"]
    assert world.annotation("job-2", "gang-phase") == "Scheduled"
    assert world.healthy()


def test_gang_that_does_not_fit_holds_nothing_and_a_smaller_pod_gets_the_room(world):
    start(world, a=2)
    world.gang("job", 0, 1, 2, required=3)
    world.settle()
    assert world.bound() == {}
    condition = world.scheduled("job-2")
    assert condition["reason"] == "GangMemberUnschedulable"
    assert condition["message"].startswith("gang default/job: 2 of 3 required members fit together")
    world.pod("single")
    world.settle()
    assert list(world.bound()) == ["single"]
    assert world.healthy()


def test_gang_starts_when_room_appears(world):
    start(world, a=1)
    world.pod("in-the-way")
    world.settle()
    world.gang("job", 0, 1, required=2)
    world.settle()
    world.nodes(b=1)
    world.settle()
    assert list(world.bound()) == ["in-the-way"]
    world.store.delete(PODS, "in-the-way", "default")
    world.settle(15)
    assert sorted(world.bound()) == ["job-0", "job-1"]


def test_gang_with_quorum_admits_stragglers_later(world):
    start(world, a=2)
    world.gang("job", 0, 1, 2, required=2, desired=3)
    world.settle()
    assert len(world.bound()) == 2
    (late,) = {"job-0", "job-1", "job-2"} - set(world.bound())
    assert world.scheduled(late)["reason"] == "Unschedulable"
    world.nodes(b=1)
    world.settle(15)
    assert len(world.bound()) == 3
    assert world.healthy()


def test_gang_member_that_is_replaced_joins_the_others(world):
    start(world, a=3)
    world.gang("job", 0, 1, 2, required=3)
    world.settle()
    world.store.delete(PODS, "job-1", "default")
    world.settle()
    assert sorted(world.bound()) == ["job-0", "job-2"]
    world.gang("job", 3, required=3)
    world.settle()
    assert sorted(world.bound()) == ["job-0", "job-2", "job-3"]


def test_gang_times_out_and_starts_again_with_a_new_member(world):
    start(world, a=2)
    world.gang("job", 0, 1, 2, required=3, timeout="20s")
    world.settle(40)
    condition = world.scheduled("job-0")
    assert condition["reason"] == "GangSchedulingTimeout"
    assert "within 20 s" in condition["message"]
    assert world.annotation("job-0", "gang-phase") == "TimedOut"
    world.nodes(b=1)
    world.settle(40)
    assert world.bound() == {}
    world.store.delete(PODS, "job-2", "default")
    world.settle()
    world.gang("job", 3, required=3, timeout="20s")
    world.settle()
    assert sorted(world.bound()) == ["job-0", "job-1", "job-3"]


def test_gang_below_its_quorum_lets_go_after_its_timeout(world):
    start(world, a=2)
    world.gang("job", 0, 1, required=2, timeout="20s")
    world.settle()
    world.store.delete(PODS, "job-0", "default")
    world.pod("other")
    world.settle()
    assert sorted(world.bound()) == ["job-1", "other"]
    world.gang("job", 2, required=2, timeout="20s")
    world.settle(40)
    assert list(world.bound()) == ["other"]
    assert world.healthy()


def test_gang_in_one_zone_when_topology_is_required(world):
    world.nodes({"a": "x", "b": "y", "c": "y"}, a=1, b=1, c=1)
    world.start()
    wish = {"require-gpu-topology": "true"}
    world.gang("job", 0, 1, required=2, annotations=wish)
    world.settle()
    assert set(world.bound().values()) == {"b", "c"}
    world.gang("more", 0, 1, required=2, annotations=wish)
    world.settle()
    assert "1 of 2 required members fit together" in world.scheduled("more-0")["message"]
    assert set(world.bound()) == {"job-0", "job-1"}


def test_gang_status_on_the_workload(world):
    start(world, a=2)
    world.store.create(WORKLOADS, build.workload("job"))
    world.gang("job", 0, 1, 2, required=3)
    world.settle()
    status = world.store.get(WORKLOADS, "job", "default")["status"]
    gang = status["gang"]
    assert (gang["phase"], gang["reason"]) == ("Waiting", "GangMemberUnschedulable")
    assert (gang["desiredMembers"], gang["waitingMembers"], gang["scheduledMembers"]) == (3, 3, 0)
    assert (status["phase"], gang["groupKey"]) == ("Pending", "default/job")

    world.nodes(b=1)
    world.settle(20)
    status = world.store.get(WORKLOADS, "job", "default")["status"]
    assert (status["gang"]["phase"], status["gang"]["reason"]) == ("Running", "GangReady")
    assert (status["gang"]["readyMembers"], status["phase"]) == (3, "Running")
    version = world.store.get(WORKLOADS, "job", "default")["metadata"]["resourceVersion"]
    world.settle(20)
    again = world.store.get(WORKLOADS, "job", "default")["metadata"]["resourceVersion"]
    assert again == version


def test_gang_whose_binding_is_refused_for_one_is_bound_for_none(world):
    start(world, a=3)
    refused = []

    def bind(namespace, name, body):
        if name == "job-2" and not refused:
            refused.append(name)
            raise Conflict("pod job-2 is being deleted")
        world.store.bind(name, namespace, body)

    world.bind = bind
    world.gang("job", 0, 1, 2, required=3)
    world.cluster.settle(0.4)
    assert refused
    assert world.bound() == {}
    assert not world.placer.ledger.allocations
    world.settle()
    assert len(world.bound()) == 3
    assert world.healthy()


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("crash_at", range(5))
def test_gang_is_atomic_at_every_crash_point(cluster, tmp_path, crash_at, atomic):
    """Crash before the n-th binding (4 is none at all): afterwards all run, and none in between."""
    world = World(cluster, tmp_path, atomic=atomic)
    start(world, a=4)
    calls = []

    def bind(namespace, name, body):
        if len(calls) == crash_at:
            raise Crash
        calls.append(name)
        world.store.bind(name, namespace, body)

    world.bind = bind
    world.gang("job", 0, 1, 2, 3, required=4)
    if crash_at < 4:
        with pytest.raises(Crash):
            world.settle()
    else:
        world.settle()
    half = 0 < len(world.bound()) < 4
    assert half == (not atomic and 0 < crash_at < 4)
    world.restart()
    world.settle(15)
    assert len(world.bound()) == 4
    assert world.healthy()
    assert replay(world.log.lines()).ledger.digest == world.placer.ledger.digest


def test_gang_that_was_bound_in_part_and_lost_a_card_is_taken_back_whole(cluster, tmp_path):
    world = World(cluster, tmp_path, atomic=False)
    start(world, a=2)

    def bind(namespace, name, body):
        if world.bound():
            raise Crash
        world.store.bind(name, namespace, body)

    world.bind = bind
    world.gang("job", 0, 1, required=2)
    with pytest.raises(Crash):
        world.settle()
    (half,) = world.bound()
    gpu = world.annotation(half, "gpu-ids")
    world.store.delete(GPUS, "a-1" if gpu == "a-0" else "a-0")
    world.restart()
    assert any("cannot be completed" in line for line in world.repairs)
    world.settle()
    assert world.bound() == {}
    assert not world.placer.ledger.allocations


@pytest.mark.parametrize("cut", [1, 40, 400, 900])
def test_torn_log_of_a_gang_leaves_none_reserved(cluster, tmp_path, cut):
    """The write of a gang's reservations is cut short: nobody is bound, so nobody keeps a part."""
    world = World(cluster, tmp_path)
    start(world, a=3)

    def bind(namespace, name, body):
        raise Crash

    world.bind = bind
    world.gang("job", 0, 1, 2, required=3)
    with pytest.raises(Crash):
        world.settle()
    path = tmp_path / "decisions.log"
    path.write_bytes(path.read_bytes()[:-cut])
    world.restart()
    assert not world.placer.ledger.allocations
    world.settle()
    assert len(world.bound()) == 3
    assert world.healthy()


def test_two_gangs_that_both_want_everything_run_one_after_the_other(world):
    start(world, a=3)
    for number in range(3):
        world.gang("one", number, required=3)
        world.gang("two", number, required=3)
        world.settle(1)
    world.settle(15)
    first = {name.split("-")[0] for name in world.bound()}
    assert len(first) == 1
    assert len(world.bound()) == 3
    for name in world.bound():
        world.store.delete(PODS, name, "default")
    world.settle(15)
    second = {name.split("-")[0] for name in world.bound()}
    assert second == {"one", "two"} - first
    assert len(world.bound()) == 3
