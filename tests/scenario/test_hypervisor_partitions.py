"""Partitions from a pod to a cut card and back, through the whole control plane."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tensorfusion import names
from tensorfusion.api.registry import GPUS, PODS
from tensorfusion.app.control_plane import ControlPlane
from tensorfusion.clock import SystemClock
from tensorfusion.runtime.settings import Settings

GPU = {"model": "A100_SXM_80G", "partitioned": True, "count": 2}
CARDS = {"nodes": [{"name": "n", "gpus": [GPU]}]}


def start(folder: Path) -> ControlPlane:
    settings = Settings(backend="simulated", plugin_settings={"simulated": CARDS})
    made = ControlPlane(folder, settings)
    made.start()
    return made


@pytest.fixture
def plane(tmp_path: Path):
    made = start(tmp_path / "data")
    yield made
    made.stop()


def ask(plane: ControlPlane, name: str, template: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {names.ENABLED: "true"},
            "annotations": {names.ISOLATION: "partitioned", names.PARTITION_ID: template},
        },
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
    }
    plane.store.create(PODS, body, "default")


def wait(check: Callable[[], bool]) -> None:
    clock = SystemClock()
    end = clock.monotonic() + 30
    while not check():
        assert clock.monotonic() < end, "it did not happen in time"
        clock.wait(threading.Event(), 0.05)


def running(plane: ControlPlane, name: str) -> bool:
    pod = plane.informers.pods.get(f"default/{name}")
    return bool(pod is not None and pod.status and pod.status.phase == "Running")


def cuts(plane: ControlPlane) -> set[tuple[str, str, int]]:
    """Device, template and slot of every partition that a worker uses."""
    session = plane.hypervisor.sessions["n"]
    used = {uuid for spec in session.workers() for uuid in spec.partitions}
    return {(p.parent, p.template, p.start) for p in session.partitions() if p.uuid in used}


def shown(plane: ControlPlane) -> dict[tuple[str, str, int], str]:
    """The same from the objects, with the name of the pod; empty for idle ones."""
    return {
        (gpu["metadata"]["name"], part["templateId"], part["allocatedSlotStart"]): part["podName"]
        for gpu in plane.store.list(GPUS).items
        for part in gpu["status"].get("allocatedPartitions", {}).values()
    }


def test_partition_is_cut_where_the_scheduler_chose_and_used_again(tmp_path: Path) -> None:
    plane = start(tmp_path / "data")
    try:
        ask(plane, "a", "3g.40gb")
        ask(plane, "b", "1g.10gb")
        wait(lambda: running(plane, "a") and running(plane, "b"))
        first = cuts(plane)
        assert {template for _, template, _ in first} == {"3g.40gb", "1g.10gb"}
        wait(lambda: set(shown(plane)) == first)
    finally:
        plane.stop()

    plane = start(tmp_path / "data")
    try:
        assert cuts(plane) == first, "a restart changes nothing"
        (large,) = (one for one in first if one[1] == "3g.40gb")
        plane.store.delete(PODS, "a", "default")
        wait(lambda: shown(plane).get(large) == "")
        ask(plane, "c", "3g.40gb")
        wait(lambda: running(plane, "c"))
        assert cuts(plane) == first, "the idle partition is taken as it is"
        wait(lambda: shown(plane).get(large) == "c")
        assert len(plane.hypervisor.sessions["n"].partitions()) == 2
    finally:
        plane.stop()


def test_partition_in_the_way_makes_room(plane: ControlPlane) -> None:
    for number in range(14):
        ask(plane, f"small-{number}", "1g.10gb")
    wait(lambda: all(running(plane, f"small-{n}") for n in range(14)))
    assert len(cuts(plane)) == 14
    for number in range(14):
        plane.store.delete(PODS, f"small-{number}", "default")
    wait(lambda: not cuts(plane))
    ask(plane, "whole", "7g.80gb")
    wait(lambda: running(plane, "whole"))
    ((device, template, start_slot),) = cuts(plane)
    assert (template, start_slot) == ("7g.80gb", 0)
    left = [p for p in plane.hypervisor.sessions["n"].partitions() if p.parent == device]
    assert [p.template for p in left] == ["7g.80gb"]
