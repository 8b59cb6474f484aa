"""Rules of the scheduling cycle: what wakes a pod that waits, what is kept, what is taken back."""

import pytest
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.registry import GPUS, NAMESPACES, NODES, PODS, QUOTAS
from tensorfusion.scheduling.scheduler import LOST_SECONDS
from tensorfusion.testing import build


@pytest.fixture
def world(cluster, tmp_path):
    return World(cluster, tmp_path)


def gone(world, name="in-the-way", namespace="default"):
    world.store.delete(PODS, name, namespace)


def start(world, **cards):
    world.nodes(**cards)
    world.start()
    return world


SHAPES = [
    pytest.param({"annotations": {"isolation": "shared"}}, id="whole-card"),
    pytest.param({"annotations": {"dedicated-gpu": "true"}}, id="dedicated"),
    pytest.param({"tflops": 200}, id="amounts"),
    pytest.param({"tflops": 1, "vram": "75Gi"}, id="memory-only"),
    pytest.param({"annotations": {"isolation": "hard"}, "tflops": 1}, id="another-mode"),
    pytest.param(
        {"tflops": 1, "annotations": {"isolation": "partitioned", "partition-id": "1g.10gb"}},
        id="pinned-partition",
    ),
    pytest.param(
        {
            "annotations": {
                "tflops-request": "0",
                "tflops-limit": "0",
                "compute-percent-request": "60",
            }
        },
        id="percent",
    ),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_any_kind_of_request_is_woken_by_the_room_it_needs(world, shape):
    world.nodes(a=1)
    if shape.get("annotations", {}).get("isolation") == "partitioned":
        mode = {"status": {"isolationMode": "partitioned", "isolationPolicy": "Static"}}
        world.store.patch(GPUS, "a-0", mode, subresource="status")
        way = {"annotations": {"isolation": "partitioned", "partition-id": "7g.80gb"}}
    else:
        way = {}
    world.start()
    world.pod("in-the-way", **way)
    world.settle(2)
    world.pod("late", **shape)
    world.settle(5)
    assert list(world.bound()) == ["in-the-way"]
    gone(world)
    world.settle(5)
    assert list(world.bound()) == ["late"]
    assert world.healthy()


def card_runs(world):
    world.store.patch(GPUS, "a-0", {"status": {"phase": "Running"}}, subresource="status")


def card_breaks(world):
    world.store.patch(GPUS, "a-0", {"status": {"phase": "Pending"}}, subresource="status")


def node_cordoned(world):
    world.store.patch(NODES, "a", {"spec": {"unschedulable": True}})


def node_uncordoned(world):
    world.store.patch(NODES, "a", {"spec": {"unschedulable": None}})


def node_tainted(world):
    taint = {"key": "gpu", "value": "x", "effect": "NoSchedule"}
    world.store.patch(NODES, "a", {"spec": {"taints": [taint]}})


def node_untainted(world):
    world.store.patch(NODES, "a", {"spec": {"taints": None}})


def card_theirs(world):
    status = {"status": {"usedBy": "nvidia-device-plugin"}}
    world.store.patch(GPUS, "a-0", status, subresource="status")


def card_ours(world):
    world.store.patch(GPUS, "a-0", {"status": {"usedBy": names.SYSTEM}}, subresource="status")


def quota_made(world):
    world.store.create(QUOTAS, build.quota(tflops="1"))


def quota_gone(world):
    world.store.delete(QUOTAS, "quota", "default")


WAKES = [
    pytest.param(card_breaks, card_runs, "not running", id="phase"),
    pytest.param(card_theirs, card_ours, "managed by another system", id="owner"),
    pytest.param(node_cordoned, node_uncordoned, "on cordoned nodes", id="cordon"),
    pytest.param(node_tainted, node_untainted, "an untolerated taint", id="taint"),
    pytest.param(quota_made, quota_gone, "total.max.tflops.request", id="quota"),
]


@pytest.mark.parametrize(("breaks", "mends", "reason"), WAKES)
def test_what_kept_a_pod_out_wakes_it_when_it_goes(world, breaks, mends, reason):
    start(world, a=1)
    breaks(world)
    world.settle(1)
    world.pod("late")
    world.settle(5)
    assert world.bound() == {}
    condition = world.scheduled("late")
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    assert reason in condition["message"]
    mends(world)
    world.settle(5)
    assert list(world.bound()) == ["late"]


def test_reservation_whose_binding_was_lost_is_given_back_and_tried_again(world):
    start(world, a=1)
    real, calls = world.bind, []
    world.bind = lambda _namespace, name, _body: calls.append(name)
    world.pod("late")
    world.cluster.settle(2)
    assert calls == ["late"]
    assert world.placer.ledger.allocations
    world.bind = real
    world.settle(LOST_SECONDS + 5)
    assert list(world.bound()) == ["late"]
    assert world.healthy()


def test_reservation_that_a_crash_left_unbound_is_released_at_the_next_start(world):
    start(world, a=1)
    world.bind = lambda _namespace, _name, _body: None
    world.pod("late")
    world.cluster.settle(2)
    world.restart()
    assert world.repairs == ["released default/late: not bound"]
    world.settle(5)
    assert list(world.bound()) == ["late"]


@pytest.mark.parametrize("end", ["deleted", "Succeeded", "Failed"])
def test_worker_is_freed_at_once_when_its_pod_ends(world, end):
    start(world, a=1)
    world.pod("late")
    world.settle(2)
    if end == "deleted":
        gone(world, "late")
    else:
        status = {"status": {"phase": end}}
        world.store.patch(PODS, "late", status, "default", subresource="status")
    world.settle(2)
    assert not world.placer.ledger.allocations


def test_pod_that_ended_while_nobody_looked_is_freed_at_the_next_start(world):
    start(world, a=1)
    world.pod("late")
    world.settle(2)
    world.store.delete(PODS, "late", "default", grace_period_seconds=0)
    world.restart()
    assert world.repairs == ["released default/late: not bound"]
    assert not world.placer.ledger.allocations


def test_bound_pod_carries_what_it_was_given(world):
    start(world, a=2)
    counts = '{"one": 1, "two": 1}'
    world.pod("late", 10, annotations={"gpu-count": "2", "container-gpu-count": counts})
    world.settle(2)
    assert world.annotation("late", "gpu-ids") == "a-0,a-1"
    assert world.annotation("late", "container-gpus") == '{"one": ["a-0"], "two": ["a-1"]}'
    assert (
        "Scheduled",
        "placed on node a, GPU a-0, a-1 by policy compact-first",
    ) in world.cluster.reasons()


def test_pod_of_another_namespace_makes_room_and_its_quota_is_its_own(world):
    world.store.create(QUOTAS, build.quota(tflops="200"))
    world.store.create(NAMESPACES, {"metadata": {"name": "team"}})
    start(world, a=1)
    obj = build.pod(
        "theirs",
        "team",
        tflops="200",
        vram="10Gi",
        annotations={"qos": "low", "isolation": "soft"},
        labels={"component": "worker", "gpupool": "shared"},
    )
    world.store.create(PODS, obj)
    world.settle(2)
    assert world.placer.ledger.quotas.usage("team").workers == 1
    world.pod("urgent", qos="critical")
    world.settle()
    assert list(world.bound()) == ["urgent"]
    assert world.placer.ledger.quotas.usage("team").workers == 0


def test_pod_that_wants_no_gpu_is_left_to_others(world):
    start(world, a=1)
    world.store.create(PODS, build.pod("plain", tflops=""))
    world.settle(2)
    assert world.bound() == {}
    assert "conditions" not in world.get("plain").get("status", {})


def test_pod_whose_index_is_taken_starts_once_the_other_one_runs(world):
    start(world, a=1)
    world.pod("first", 10, annotations={"index": "5"})
    world.pod("second", 10, annotations={"index": "5"})
    world.cluster.settle(1)
    assert list(world.bound()) == ["first"]
    assert "index 5 of the node is taken" in world.scheduled("second")["message"]
    world.settle(5)
    assert sorted(world.bound()) == ["first", "second"]


def test_cpu_of_the_node_is_kept_through_restarts_and_given_back(world):
    def wants(cores):
        requests = {"requests": {"cpu": str(cores), "memory": "1Gi"}}
        return [{"name": "main", "image": "i", "resources": requests}]

    start(world, a=2)
    world.pod("first", 10, containers=wants(40))
    world.settle(2)
    world.pod("second", 10, containers=wants(30))
    world.settle(2)
    assert list(world.bound()) == ["first"]
    assert "2 on nodes without enough free CPU" in world.scheduled("second")["message"]
    state = world.placer.fingerprint()
    world.restart()
    assert world.repairs == []
    assert world.placer.fingerprint() == state
    gone(world, "first")
    world.settle(5)
    assert list(world.bound()) == ["second"]
    assert world.healthy()
