"""Pods without a share of a GPU, and those that ask for GPUs the native way: which node they get."""

import pytest
from rig.scheduling import World

from tensorfusion.api.registry import NODES, PODS
from tensorfusion.testing import build

NATIVE = "nvidia.com/gpu"


@pytest.fixture
def world(cluster, tmp_path):
    found = World(cluster, tmp_path)
    found.nodes(a=2, b=2)
    return found


def native(world, name, count=1, **spec):
    """Create a pod that asks for whole GPUs the native way, as admission leaves it."""
    found = build.pod(name, tflops="", **spec)
    found["spec"]["containers"][0]["resources"] = {"limits": {NATIVE: str(count)}}
    world.store.create(PODS, found)


def offer(world, **counts):
    """Say how many GPUs the device plugin of a node gives out."""
    for node, count in counts.items():
        amounts = {"cpu": "64", "memory": "512Gi", "pods": "256", NATIVE: str(count)}
        status = {"status": {"capacity": amounts, "allocatable": amounts}}
        world.store.patch(NODES, node, status, subresource="status")


def taint(world, node, effect, key="k"):
    body = {"spec": {"taints": [{"key": key, "value": "v", "effect": effect}]}}
    world.store.patch(NODES, node, body)


def test_a_plain_pod_goes_where_the_fewest_are(world):
    world.start(plain=True)
    for name in ("p1", "p2", "p3", "p4"):
        world.store.create(PODS, build.pod(name, tflops=""))
        world.settle(1.0)
    assert sorted(world.bound().values()) == ["a", "a", "b", "b"]


def test_selectors_taints_and_cordons_hold_for_plain_pods(world):
    world.start(plain=True)
    taint(world, "a", "NoSchedule")
    tolerant = {"tolerations": [{"key": "k", "operator": "Exists"}], "nodeSelector": {"x": "y"}}
    world.store.patch(NODES, "a", {"metadata": {"labels": {"x": "y"}}})
    for number in range(3):
        world.store.create(PODS, build.pod(f"p{number}", tflops=""))
    world.store.create(PODS, build.pod("tolerant", tflops="", **tolerant))
    world.settle()
    assert world.bound() == {"p0": "b", "p1": "b", "p2": "b", "tolerant": "a"}
    world.store.patch(NODES, "b", {"spec": {"unschedulable": True}})
    world.store.create(PODS, build.pod("late", tflops=""))
    world.settle()
    message = world.scheduled("late")["message"]
    assert message == (
        "0/2 nodes are available: 1 on cordoned nodes, 1 on nodes with an untolerated taint"
    )
    world.store.patch(NODES, "b", {"spec": {"unschedulable": False}})
    world.settle()
    assert world.node_of("late") == "b"
    placed = [text for reason, text in world.cluster.reasons() if reason == "Scheduled"]
    assert "placed on node b" in placed


def test_a_node_that_would_rather_be_left_alone_comes_last(world):
    world.start(plain=True)
    taint(world, "a", "PreferNoSchedule")
    for number in range(3):
        world.store.create(PODS, build.pod(f"p{number}", tflops=""))
    world.settle()
    assert set(world.bound().values()) == {"b"}


def test_native_gpus_are_not_given_out_twice(world):
    offer(world, a=1, b=2)
    world.start(plain=True)
    native(world, "two", 2)
    world.settle()
    native(world, "one")
    native(world, "none")
    world.settle()
    assert world.bound() == {"two": "b", "none": "a"} or world.bound() == {"two": "b", "one": "a"}
    waiting = "one" if "none" in world.bound() else "none"
    assert world.scheduled(waiting)["message"] == (
        f"0/2 nodes are available: 2 Insufficient {NATIVE}"
    )
    world.store.delete(PODS, "two", "default", grace_period_seconds=0)
    world.settle()
    assert world.node_of(waiting) == "b"


def test_a_node_without_a_device_plugin_has_no_native_gpus(world):
    world.start(plain=True)
    native(world, "one")
    world.settle()
    assert world.bound() == {}


def test_progressive_migration_keeps_native_pods_away_from_workers(world):
    offer(world, a=2, b=2)
    world.start(plain=True, progressive=True)
    world.pod("worker")
    world.settle()
    with_worker = world.node_of("worker")
    for name in ("n1", "n2", "n3"):
        native(world, name)
    world.settle()
    bound = world.bound()
    other = {"a": "b", "b": "a"}[with_worker]
    assert [node for name, node in bound.items() if name != "worker"] == [other, other]
    (waiting,) = {"n1", "n2", "n3"} - set(bound)
    assert world.scheduled(waiting)["message"] == (
        f"0/2 nodes are available: 1 Insufficient {NATIVE}, "
        "1 node(s) with workers of ours, and native GPU pods are kept apart from them"
    )
    told = [text for reason, text in world.cluster.reasons() if reason == "ScheduleWithNativeGPU"]
    assert told == [f"placed on node {other}, which has no workers of ours"] * 2
    world.store.delete(PODS, "worker", "default", grace_period_seconds=0)
    world.settle()
    assert world.node_of(waiting) == with_worker


def test_without_progressive_migration_they_share_nodes(world):
    offer(world, a=2, b=0)
    world.start(plain=True)
    world.pod("worker", nodeSelector={"kubernetes.io/hostname": "a"})
    world.settle()
    native(world, "one")
    world.settle()
    assert world.bound() == {"worker": "a", "one": "a"}
