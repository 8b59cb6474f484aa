"""Nodes, pools and clusters: what follows from what, as objects."""

import pytest

from tensorfusion import names
from tensorfusion.api.registry import (
    CLUSTERS,
    GPU_NODES,
    GPU_POOLS,
    GPUS,
    NODES,
    SCHEDULING_CONFIGS,
)
from tensorfusion.controllers.node import NodeController
from tensorfusion.controllers.pool import ClusterController, PoolController
from tensorfusion.errors import NotFound
from tensorfusion.testing import build
from tensorfusion_plugins.policies import tensorfusion_placement_policies as policies


@pytest.fixture
def world(cluster, request):
    i, store, clock = cluster.informers, cluster.store, cluster.clock
    marks = getattr(request, "param", False)
    cluster.add(
        NodeController(
            store,
            i.nodes,
            i.gpu_nodes,
            i.gpus,
            i.pools,
            devices=dict,
            clock=clock,
            marks=marks,
        ),
        PoolController(
            store, i.pools, i.gpu_nodes, policies={p.name: p for p in policies()}, clock=clock
        ),
        ClusterController(store, i.clusters, i.pools, clock=clock),
    )
    cluster.start()
    return cluster


def put(world, resource, obj):
    created = world.store.create(resource, obj)
    if "status" in obj and resource.has_status:
        body = {"status": obj["status"]}
        created = world.store.patch(resource, obj["metadata"]["name"], body, subresource="status")
    return created


def zone(name):
    """A pool for nodes that carry a label of that zone."""
    term = {"key": "zone", "operator": "In", "values": [name]}
    return {"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}}


def fleet(world, *, gpus=2, settle=True):
    put(world, GPU_POOLS, build.pool())
    put(world, NODES, build.node("n1"))
    for index in range(gpus):
        put(world, GPUS, build.gpu(f"gpu-{index}", "n1", index=index))
    if settle:
        world.settle()


def hold(world, gpu, *pods):
    """Say that pods hold a share of a GPU, as the scheduler does."""
    held = [
        {
            "name": pod,
            "namespace": "default",
            "uid": f"uid-{pod}",
            "limits": {"tflops": "50", "vram": "8Gi"},
        }
        for pod in pods
    ]
    apps = [{"name": "app", "namespace": "default", "count": len(held), "pods": held}]
    status = {"runningApps": apps if held else [], "available": {"tflops": "262", "vram": "72Gi"}}
    world.store.patch(GPUS, gpu, {"status": status}, subresource="status")


def test_node_with_gpus_joins_the_pool_that_selects_it(world, conditions):
    fleet(world)
    gpu_node = world.get(GPU_NODES, "n1")
    status = gpu_node["status"]
    card = world.get(GPUS, "gpu-0")

    assert gpu_node["metadata"]["labels"][names.MANAGED_BY] == "shared"
    assert gpu_node["metadata"]["labels"][f"{names.POOL_LABEL_PREFIX}shared"] == "true"
    assert (status["phase"], status["totalGPUs"], status["managedGPUs"]) == ("Running", 2, 2)
    assert status["managedGPUDeviceIDs"] == ["gpu-0", "gpu-1"]
    assert float(status["totalTFlops"]) == 2 * float(card["status"]["capacity"]["tflops"])
    assert card["metadata"]["labels"][names.GPU_POOL] == "shared"
    assert conditions(gpu_node)["Ready"]["status"] == "True"
    assert status["observedGeneration"] == gpu_node["metadata"]["generation"]


def test_pool_adds_its_nodes_up(world, conditions):
    fleet(world)
    pool = world.get(GPU_POOLS, "shared")

    assert pool["status"]["phase"] == "Running"
    assert (pool["status"]["totalNodes"], pool["status"]["totalGPUs"]) == (1, 2)
    assert pool["status"]["totalTFlops"] == world.get(GPU_NODES, "n1")["status"]["totalTFlops"]
    assert names.FINALIZER in pool["metadata"]["finalizers"]
    assert conditions(pool)["Ready"]["reason"] == "AllNodesReady"
    assert conditions(pool)["Reconciling"]["status"] == "False"


def test_use_of_a_gpu_reaches_node_and_pool(world):
    fleet(world)
    hold(world, "gpu-0", "p1", "p2")
    world.settle()
    node, pool = world.get(GPU_NODES, "n1")["status"], world.get(GPU_POOLS, "shared")["status"]

    assert (node["totalGPUPods"], pool["runningAppsCnt"]) == (2, 2)
    free = float(node["totalTFlops"]) - float(node["availableTFlops"])
    assert free == float(world.get(GPUS, "gpu-0")["status"]["capacity"]["tflops"]) - 262
    assert float(node["virtualTFlops"]) - float(node["virtualAvailableTFlops"]) == 100
    assert pool["availableVRAM"] == node["availableVRAM"]


def test_nothing_is_written_when_nothing_changed(world):
    put(world, CLUSTERS, cluster_object(one=build.pool()["spec"]))
    put(world, NODES, build.node("n1"))
    put(world, GPUS, build.gpu("gpu-0", "n1"))
    world.settle()
    before = world.store.version
    for controller, keys in zip(
        world.controllers,
        (world.informers.nodes, world.informers.pools, world.informers.clusters),
        strict=True,
    ):
        for key in keys.all_keys():
            controller.queue.add(key)
    world.settle()

    assert world.store.version == before


@pytest.mark.parametrize(
    ("broken", "phase", "reason"),
    [("gpu", "Pending", "NoHealthyGPU"), ("node", "Pending", "NodeNotReady")],
)
def test_node_is_not_ready_without_a_healthy_gpu_or_kubelet(
    world, conditions, broken, phase, reason
):
    fleet(world, gpus=1)
    was = conditions(world.get(GPU_NODES, "n1"))["Ready"]["lastTransitionTime"]
    if broken == "gpu":
        world.store.patch(GPUS, "gpu-0", {"status": {"phase": "Unknown"}}, subresource="status")
    else:
        status = build.node(ready=False)["status"]
        world.store.patch(NODES, "n1", {"status": status}, subresource="status")
    world.settle()
    found = world.get(GPU_NODES, "n1")
    ready = conditions(found)["Ready"]

    assert found["status"]["phase"] == phase
    assert (ready["status"], ready["reason"]) == ("False", reason)
    assert ready["lastTransitionTime"] > was
    assert conditions(found)["Reconciling"]["status"] == "True"
    assert world.get(GPU_POOLS, "shared")["status"]["phase"] == "Updating"


def test_device_that_is_missing_does_not_count(world):
    fleet(world)
    mark = {"metadata": {"annotations": {names.GPU_MISSING_SINCE: "2025-01-01T00:00:00Z"}}}
    world.store.patch(GPUS, "gpu-1", mark)
    world.settle()
    status = world.get(GPU_NODES, "n1")["status"]

    assert (status["totalGPUs"], status["managedGPUs"]) == (2, 1)
    assert status["totalTFlops"] == world.get(GPUS, "gpu-0")["status"]["capacity"]["tflops"]


def test_node_that_two_pools_want_goes_to_the_first_by_name(world):
    for name in ("b", "a"):
        put(world, GPU_POOLS, build.pool(name))
    put(world, NODES, build.node("n1"))
    world.settle()

    assert world.get(GPU_NODES, "n1")["metadata"]["labels"][names.MANAGED_BY] == "a"


def test_node_moves_with_its_labels(world):
    for name in ("a", "b"):
        put(world, GPU_POOLS, build.pool(name, nodeManagerConfig=zone(name)))
    put(world, NODES, build.node("n1", labels={"zone": "x"}))
    world.store.patch(NODES, "n1", {"metadata": {"labels": {"zone": "a"}}})
    put(world, GPUS, build.gpu("gpu-0", "n1"))
    world.settle()
    world.store.patch(NODES, "n1", {"metadata": {"labels": {"zone": "b"}}})
    world.settle()
    labels = world.get(GPU_NODES, "n1")["metadata"]["labels"]

    assert labels[names.MANAGED_BY] == "b"
    assert {k for k in labels if k.startswith(names.POOL_LABEL_PREFIX)} == {
        f"{names.POOL_LABEL_PREFIX}b"
    }
    assert world.get(GPUS, "gpu-0")["metadata"]["labels"][names.GPU_POOL] == "b"
    assert world.get(GPU_POOLS, "a")["status"]["totalNodes"] == 0
    assert world.get(GPU_POOLS, "b")["status"]["totalNodes"] == 1


def test_node_that_no_pool_wants_leaves_and_its_gpus_stay(world):
    put(world, GPU_POOLS, build.pool("a", nodeManagerConfig=zone("a")))
    put(world, NODES, {**build.node("n1"), "metadata": {"name": "n1", "labels": {"zone": "a"}}})
    put(world, GPUS, build.gpu("gpu-0", "n1"))
    world.settle()
    world.store.patch(NODES, "n1", {"metadata": {"labels": {"zone": "c"}}})
    world.settle()
    while world.store.collect():
        pass

    with pytest.raises(NotFound):
        world.get(GPU_NODES, "n1")
    assert names.GPU_POOL not in world.get(GPUS, "gpu-0")["metadata"]["labels"]

    world.store.patch(NODES, "n1", {"metadata": {"labels": {"zone": "a"}}})
    world.settle()
    assert world.get(GPU_NODES, "n1")["status"]["totalGPUs"] == 1
    assert world.get(GPUS, "gpu-0")["metadata"]["labels"][names.GPU_POOL] == "a"


def test_node_that_is_deleted_takes_its_gpu_node_along(world):
    fleet(world)
    world.store.delete(NODES, "n1")
    world.settle()

    with pytest.raises(NotFound):
        world.get(GPU_NODES, "n1")
    assert world.get(GPU_POOLS, "shared")["status"]["phase"] == "Pending"


def test_pool_is_held_back_while_workers_use_it(world, conditions):
    fleet(world)
    hold(world, "gpu-0", "p1")
    world.settle()
    world.store.delete(GPU_POOLS, "shared")
    world.settle()
    pool = world.get(GPU_POOLS, "shared")

    assert pool["status"]["phase"] == "Destroying"
    assert conditions(pool)["Ready"]["reason"] == "Draining"
    assert world.get(GPU_NODES, "n1")["status"]["totalGPUPods"] == 1

    hold(world, "gpu-0")
    world.settle()
    while world.store.collect():
        pass
    world.settle()
    for resource, name in ((GPU_POOLS, "shared"), (GPU_NODES, "n1")):
        with pytest.raises(NotFound):
            world.get(resource, name)
    assert names.GPU_POOL not in world.get(GPUS, "gpu-0")["metadata"]["labels"]


def test_pool_with_an_unknown_policy_is_stalled_until_it_is_right(world, conditions):
    template = {"metadata": {"name": "t"}, "spec": {"placement": {"policy": "tetris"}}}
    world.store.create(SCHEDULING_CONFIGS, template)
    put(world, GPU_POOLS, build.pool(schedulingConfigTemplate="t"))
    world.settle()
    stalled = conditions(world.get(GPU_POOLS, "shared"))["Stalled"]

    assert (stalled["status"], stalled["reason"]) == ("True", "UnknownPolicy")
    assert "'tetris' is not installed; installed: " in stalled["message"]

    right = {"spec": {"placement": {"policy": None, "mode": "CompactFirst"}}}
    world.store.patch(SCHEDULING_CONFIGS, "t", right)
    world.settle(40)
    found = conditions(world.get(GPU_POOLS, "shared"))
    assert "Stalled" not in found
    assert found["Ready"]["reason"] == "NoNodes"


def cluster_object(**pools):
    definitions = [
        {"name": name, "isDefault": name == "one", "specTemplate": spec}
        for name, spec in pools.items()
    ]
    return {
        "apiVersion": names.API_VERSION,
        "kind": "TensorFusionCluster",
        "metadata": {"name": "main"},
        "spec": {"gpuPools": definitions},
    }


def test_cluster_makes_changes_and_removes_its_pools(world, conditions):
    spec = build.pool()["spec"]
    put(world, CLUSTERS, cluster_object(one=spec, two=spec))
    put(world, NODES, build.node("n1"))
    put(world, GPUS, build.gpu("gpu-0", "n1"))
    world.settle()
    cluster = world.get(CLUSTERS, "main")
    one = world.get(GPU_POOLS, "main-one")

    assert cluster["status"]["totalPools"] == 2
    assert cluster["status"]["readyGPUPools"] == ["main-one"]
    assert cluster["status"]["notReadyGPUPools"] == ["main-two"]
    assert cluster["status"]["totalGPUs"] == 1
    assert conditions(cluster)["Ready"]["message"] == "1 of 2 pools are ready"
    assert one["metadata"]["annotations"][names.IS_DEFAULT_POOL] == "true"
    assert one["metadata"]["ownerReferences"][0]["name"] == "main"
    assert one["status"]["cluster"] == "main"

    changed = {**spec, "qosConfig": {"defaultQoS": "high"}}
    update = cluster_object(one=changed)
    world.store.patch(CLUSTERS, "main", {"spec": update["spec"]})
    world.settle()
    assert world.get(GPU_POOLS, "main-one")["spec"]["qosConfig"]["defaultQoS"] == "high"
    with pytest.raises(NotFound):
        world.get(GPU_POOLS, "main-two")
    ready = conditions(world.get(CLUSTERS, "main"))["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "AllPoolsReady")


def test_cluster_says_how_much_is_promised(world):
    put(world, CLUSTERS, cluster_object(one=build.pool()["spec"]))
    put(world, NODES, build.node("n1"))
    put(world, GPUS, build.gpu("gpu-0", "n1"))
    world.settle()
    capacity = float(world.get(GPUS, "gpu-0")["status"]["capacity"]["tflops"])
    hold(world, "gpu-0", "p1")
    world.settle()

    percent = float(world.get(CLUSTERS, "main")["status"]["allocatedTFlopsPercent"])
    assert percent == pytest.approx(100 * (capacity - 262) / capacity, abs=0.01)


USED = {"key": "tensor-fusion.ai/used-by", "value": "tensor-fusion", "effect": "PreferNoSchedule"}
MINE = {"key": "mine", "value": "", "effect": "NoSchedule"}


def taints(world, node="n1"):
    return world.get(NODES, node)["spec"].get("taints", [])


@pytest.mark.parametrize("world", [True], indirect=True)
def test_a_node_with_workers_is_marked_for_as_long_as_it_has_any(world):
    fleet(world)
    world.store.patch(NODES, "n1", {"spec": {"taints": [MINE]}})
    world.settle()
    assert taints(world) == [MINE]
    hold(world, "gpu-0", "a", "b")
    world.settle()
    assert taints(world) == [MINE, USED]
    hold(world, "gpu-0", "b")
    world.settle()
    assert taints(world) == [MINE, USED]
    hold(world, "gpu-0")
    world.settle()
    assert taints(world) == [MINE]


@pytest.mark.parametrize("world", [True], indirect=True)
def test_a_node_that_leaves_its_pool_is_not_marked_any_longer(world):
    fleet(world)
    hold(world, "gpu-0", "a")
    world.settle()
    assert taints(world) == [USED]
    world.store.delete(GPU_POOLS, "shared")
    for gpu in ("gpu-0", "gpu-1"):
        hold(world, gpu)
    world.settle()
    assert taints(world) == []


def test_without_progressive_migration_a_mark_that_was_left_is_removed(world):
    fleet(world)
    world.store.patch(NODES, "n1", {"spec": {"taints": [MINE, USED]}})
    hold(world, "gpu-0", "a")
    world.settle()
    assert taints(world) == [MINE]
