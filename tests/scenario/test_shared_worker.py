"""Pods that name the same workload share its worker, from admission to the last release."""

import json
from pathlib import Path

import pytest

from tensorfusion import names
from tensorfusion.app.control_plane import ControlPlane
from tensorfusion.runtime.settings import Settings


def pod(name: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {names.ENABLED: "true"},
            "annotations": {
                names.WORKLOAD: "team",
                names.TFLOPS_REQUEST: "10",
                names.VRAM_REQUEST: "4Gi",
            },
        },
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    }


@pytest.fixture
def plane(tmp_path: Path):
    made = ControlPlane(tmp_path / "data", Settings(backend="simulated"))
    made.start()
    yield made
    made.stop()


def wait(check) -> None:
    import threading

    from tensorfusion.clock import SystemClock

    clock = SystemClock()
    end = clock.monotonic() + 30
    while not check():
        assert clock.monotonic() < end, "it did not happen in time"
        clock.wait(threading.Event(), 0.05)


def running(plane: ControlPlane, *wanted: str) -> bool:
    pods = [plane.informers.pods.get(f"default/{n}") for n in wanted]
    return all(p is not None and p.status and p.status.phase == "Running" for p in pods)


def test_pods_that_name_one_workload_share_its_worker(plane: ControlPlane) -> None:
    from tensorfusion.api.registry import PODS

    for name in ("a", "b"):
        plane.store.create(PODS, pod(name), "default")
    wait(lambda: running(plane, "a", "b"))

    ids = {
        plane.store.get(PODS, n, "default")["metadata"]["annotations"][names.GPU_IDS]
        for n in ("a", "b")
    }
    assert len(ids) == 1
    assert plane.placer.fingerprint()["allocations"] == 1
    assert sum(len(s.workers()) for s in plane.hypervisor.sessions.values()) == 1

    plane.store.delete(PODS, "a", "default")
    wait(lambda: plane.informers.pods.get("default/a") is None)
    assert plane.placer.fingerprint()["allocations"] == 1
    assert sum(len(s.workers()) for s in plane.hypervisor.sessions.values()) == 1

    plane.store.delete(PODS, "b", "default")
    wait(lambda: plane.placer.fingerprint()["allocations"] == 0)
    wait(lambda: not any(s.workers() for s in plane.hypervisor.sessions.values()))


def test_shared_worker_survives_a_restart(tmp_path: Path) -> None:
    from tensorfusion.api.registry import PODS

    first = ControlPlane(tmp_path / "data", Settings(backend="simulated"))
    first.start()
    for name in ("a", "b"):
        first.store.create(PODS, pod(name), "default")
    wait(lambda: running(first, "a", "b"))
    before = json.dumps(first.placer.fingerprint(), sort_keys=True)
    first.stop()

    second = ControlPlane(tmp_path / "data", Settings(backend="simulated"))
    second.start()
    after = json.dumps(second.placer.fingerprint(), sort_keys=True)
    second.stop()

    assert before == after
