"""Hardware partitions from the pod's annotation to the GPU's status, through restarts."""

import json

import pytest
from rig.scheduling import World

from tensorfusion import names
from tensorfusion.api.registry import GPUS, PODS
from tensorfusion.scheduling.gpu_status import GpuStatusWriter


@pytest.fixture
def world(cluster, tmp_path):
    made = World(cluster, tmp_path)
    made.nodes(n1=2)
    for name in ("n1-0", "n1-1"):
        mode = {"status": {"isolationMode": "partitioned", "isolationPolicy": "Static"}}
        made.store.patch(GPUS, name, mode, subresource="status")
    made.start()
    return made


def partitioned(world, name, template, **more):
    annotations = {"isolation": "partitioned", **({"partition-id": template} if template else {})}
    world.pod(name, annotations=annotations, **more)


def held(world, name):
    annotations = world.get(name)["metadata"]["annotations"]
    return json.loads(annotations.get(names.PARTITIONS, "{}"))


def test_pod_is_bound_to_a_slot_and_gets_it_back_after_a_restart(world):
    partitioned(world, "small", "", tflops=20, vram="8Gi")
    partitioned(world, "large", "mig-3g.40gb", tflops=100, vram="10Gi")
    world.settle()
    assert world.get("small")["metadata"]["annotations"][names.PARTITION_ID] == "1g.10gb"
    (uuid,) = held(world, "large")
    assert held(world, "large")[uuid]["template"] == "3g.40gb"
    before = world.placer.fingerprint()
    assert before["findings"] == []
    world.restart()
    assert world.repairs == []
    assert world.placer.fingerprint() == before


def test_partitions_are_rebuilt_from_the_pods_when_the_log_is_lost(world, tmp_path):
    for number in range(3):
        partitioned(world, f"p{number}", "2g.20gb", tflops=10, vram="10Gi")
    world.settle()
    state = world.placer.fingerprint()["stateHash"]
    world._log_path = tmp_path / "fresh.log"
    world.restart()
    assert len(world.repairs) == 3
    assert world.placer.fingerprint()["stateHash"] == state


def test_pod_without_a_slot_waits_with_the_reason_and_takes_the_one_that_is_freed(
    world, conditions
):
    for number in range(4):
        partitioned(world, f"p{number}", "3g.40gb", tflops=10, vram="10Gi")
    partitioned(world, "z-late", "3g.40gb", tflops=10, vram="10Gi")
    world.settle()
    message = conditions(world.get("z-late"))["PodScheduled"]["message"]
    assert "2 without a free slot for 3g.40gb" in message
    freed = held(world, "p2")
    world.store.delete(PODS, "p2", "default")
    world.settle()
    assert held(world, "z-late") == freed


def test_gpu_shows_its_partitions_and_forgets_those_that_are_gone(world):
    def shown():
        writer = GpuStatusWriter(world.store, world.placer, world.cluster.instruments, world.clock)
        writer.flush()
        parts = [
            world.store.get(GPUS, name)["status"].get("allocatedPartitions", {})
            for name in ("n1-0", "n1-1")
        ]
        return {part["podName"]: part for found in parts for part in found.values()}

    partitioned(world, "a", "3g.40gb", tflops=10, vram="10Gi")
    partitioned(world, "b", "1g.20gb", tflops=10, vram="10Gi")
    world.settle()
    first = shown()
    (cut,) = held(world, "a").values()
    assert (first["a"]["allocatedSlotStart"], first["a"]["allocatedSlotEnd"]) == (
        cut["start"],
        cut["start"] + 4,
    )
    world.store.delete(PODS, "a", "default")
    world.settle()
    assert shown() == {"b": first["b"]}, "the time of the one that stays is kept"
