"""Workloads, profiles and connections: what their users look at."""

import pytest

from tensorfusion import names
from tensorfusion.api.registry import CONNECTIONS, GPU_POOLS, PODS, PROFILES, WORKLOADS
from tensorfusion.controllers.workload import (
    ConnectionController,
    ProfileController,
    WorkloadController,
    summarize,
)
from tensorfusion.hypervisor.workers import running_status
from tensorfusion.testing import build


@pytest.fixture
def world(cluster):
    i, store, clock = cluster.informers, cluster.store, cluster.clock
    cluster.add(
        WorkloadController(
            store,
            i.workloads,
            i.pods,
            enforcement=lambda node, mode: {"n1/soft": "cooperative"}.get(f"{node}/{mode}", "none"),
            clock=clock,
            instruments=cluster.instruments,
        ),
        ProfileController(store, i.profiles, i.pools, clock=clock),
        ConnectionController(store, i.connections, clock=clock),
    )
    cluster.start()
    return cluster


def worker(name):
    return build.pod(name, labels={"workload": "job", "component": "worker"}, nodeName="n1")


def serve(world, name):
    world.pump()
    status = running_status(world.informers.pods.get(f"default/{name}"), "2025-01-01T00:00:00Z")
    world.store.patch(PODS, name, {"status": status}, "default", subresource="status")


def workload(world):
    return world.get(WORKLOADS, "job", "default")


def series(world, name):
    lines = world.instruments.exposition().decode().splitlines()
    return [line for line in lines if line.startswith(f"tensorfusion_workload_{name}_workers{{")]


def test_workload_counts_its_workers(world, conditions):
    world.store.create(WORKLOADS, build.workload("job"), "default")
    world.settle()
    assert workload(world)["status"]["phase"] == "Pending"
    assert conditions(workload(world))["Ready"]["reason"] == "ScaledToZero"

    for name in ("w1", "w2"):
        world.store.create(PODS, worker(name), "default")
    serve(world, "w1")
    world.settle()
    status = workload(world)["status"]
    assert (status["workerCount"], status["readyWorkers"], status["phase"]) == (2, 1, "Pending")
    assert conditions(workload(world))["Ready"]["message"] == "1 of 2 workers are ready"

    serve(world, "w2")
    world.settle()
    found = workload(world)
    assert (found["status"]["phase"], found["status"]["readyWorkers"]) == ("Running", 2)
    assert found["status"]["enforcement"] == "cooperative"
    assert found["status"]["currentResources"]["requests"] == {"tflops": "10", "vram": "4Gi"}
    assert conditions(found)["Reconciling"]["status"] == "False"
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]


def test_worker_that_failed_is_said(world, conditions):
    world.store.create(WORKLOADS, build.workload("job"), "default")
    world.store.create(PODS, worker("w1"), "default")
    world.store.patch(PODS, "w1", {"status": {"phase": "Failed"}}, "default", subresource="status")
    world.settle()

    assert workload(world)["status"]["phase"] == "Failed"
    assert conditions(workload(world))["Ready"]["reason"] == "WorkerFailed"


def test_workers_are_counted_in_metrics_until_the_workload_is_gone(world):
    world.store.create(WORKLOADS, build.workload("job"), "default")
    for name in ("w1", "w2"):
        world.store.create(PODS, worker(name), "default")
    serve(world, "w1")
    world.settle()
    labels = '{namespace="default",pool="shared",workload="job"}'

    assert series(world, "desired") == [f"tensorfusion_workload_desired_workers{labels} 2.0"]
    assert series(world, "ready") == [f"tensorfusion_workload_ready_workers{labels} 1.0"]

    world.store.patch(WORKLOADS, "job", {"spec": {"poolName": "other"}}, "default")
    world.settle()
    assert len(series(world, "ready")) == 1
    assert 'pool="other"' in series(world, "ready")[0]

    world.store.delete(WORKLOADS, "job", "default")
    world.settle()
    assert series(world, "ready") == []


def test_status_of_others_is_left_alone(world, conditions):
    world.store.create(WORKLOADS, build.workload("job"), "default")
    foreign = {"type": "RecommendationProvided", "status": "True", "reason": "Updated"}
    patch = {"status": {"conditions": [foreign], "appliedRecommendedReplicas": 3}}
    world.store.patch(WORKLOADS, "job", patch, "default", subresource="status")
    world.settle()
    found = workload(world)

    assert found["status"]["appliedRecommendedReplicas"] == 3
    assert conditions(found).keys() == {"RecommendationProvided", "Ready", "Reconciling"}


def test_nothing_is_written_when_nothing_changed(world):
    world.store.create(WORKLOADS, build.workload("job"), "default")
    world.settle()
    before = world.store.version
    world.controllers[0].queue.add("default/job")
    world.settle()

    assert world.store.version == before


@pytest.mark.parametrize(
    ("counts", "phase"),
    [((0, 0, 0), "Pending"), ((2, 1, 0), "Pending"), ((2, 2, 0), "Running"), ((2, 2, 1), "Failed")],
)
def test_summary_of_workers(counts, phase):
    assert summarize(*counts)[0] == phase


def profile(pool=""):
    spec = {"poolName": pool, "resources": {"requests": {"tflops": "10", "vram": "1Gi"}}}
    return {"metadata": {"name": "p"}, "spec": {k: v for k, v in spec.items() if v}}


def test_profile_is_valid_once_its_pool_exists(world, conditions):
    world.store.create(PROFILES, profile("fast"), "default")
    world.store.create(GPU_POOLS, build.pool("slow"))
    world.settle()
    found = conditions(world.get(PROFILES, "p", "default"))
    assert found["Stalled"]["reason"] == "PoolNotFound"
    assert found["Stalled"]["message"] == (
        "spec.poolName: GPU pool 'fast' does not exist; existing: slow"
    )

    world.store.create(GPU_POOLS, build.pool("fast"))
    world.settle()
    found = conditions(world.get(PROFILES, "p", "default"))
    assert found["Ready"]["status"] == "True"
    assert "Stalled" not in found


def test_profile_without_a_pool_is_valid(world, conditions):
    world.store.create(PROFILES, profile(), "default")
    world.settle()

    assert conditions(world.get(PROFILES, "p", "default"))["Ready"]["status"] == "True"


def test_connection_is_refused_with_the_way_out(world, conditions):
    connection = {"metadata": {"name": "c"}, "spec": {"workloadName": "job", "clientPod": "c"}}
    world.store.create(CONNECTIONS, connection, "default")
    world.settle()
    found = world.get(CONNECTIONS, "c", "default")

    assert found["status"]["phase"] == "Failed"
    assert conditions(found)["Stalled"]["reason"] == "RemoteWorkerUnavailable"
    assert f"set {names.IS_LOCAL_GPU} to true" in conditions(found)["Ready"]["message"]
