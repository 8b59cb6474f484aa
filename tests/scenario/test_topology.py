"""GPU topology from the pod's annotation to the words on the bound pod."""

import json

import pytest
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.registry import GPUS


@pytest.fixture
def world(cluster, tmp_path):
    made = World(cluster, tmp_path)
    made.nodes(n1=4)
    for index in range(4):
        status = {"numaNode": index % 2}
        if index in (1, 3):
            other = {1: 3, 3: 1}[index]
            peer = {"peerGPUUUID": f"N1-{other}", "tier": 0, "linkType": "NV4"}
            status["topology"] = {"peers": [peer]}
        made.store.patch(GPUS, f"n1-{index}", {"status": status}, subresource="status")
    made.start()
    return made


def reached(world, name):
    annotations = world.get(name)["metadata"]["annotations"]
    return json.loads(annotations[names.GPU_TOPOLOGY]), annotations[names.GPU_IDS]


def test_pod_gets_linked_gpus_and_says_so(world):
    world.pod("a", annotations={"gpu-count": "2"})
    world.settle()
    found, ids = reached(world, "a")
    assert ids == "n1-1,n1-3"
    assert found == {
        "tier": 0,
        "source": "vendor",
        "reason": "all 2 GPUs are linked to each other",
    }


def test_requirement_waits_and_preference_takes_what_there_is(world, conditions):
    world.pod("x", annotations={"gpu-count": "1", "gpu-indices": "3", "isolation": "shared"})
    world.settle()
    strict = {"require-gpu-topology": "true", "gpu-topology-max-tier": "0"}
    world.pod("strict", 10, annotations={"gpu-count": "2", **strict})
    world.pod("loose", 10, annotations={"gpu-count": "2", "require-gpu-topology": "false"})
    world.settle()
    condition = conditions(world.get("strict"))["PodScheduled"]
    assert "on nodes without 2 GPUs connected at tier 0 or better" in condition["message"]
    assert reached(world, "loose")[0]["reason"] == "all on NUMA node 0"
    assert reached(world, "loose")[1] == "n1-0,n1-2"
