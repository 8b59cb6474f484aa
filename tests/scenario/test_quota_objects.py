"""Quotas from objects to status: use, what is left, the alert, several quotas, caps in percent."""

import pytest
from rig.scheduling import World

from tensorfusion.api.registry import PODS, QUOTAS
from tensorfusion.scheduling.quota_status import QuotaStatusWriter
from tensorfusion.testing import build


@pytest.fixture
def world(cluster, tmp_path):
    found = World(cluster, tmp_path)
    found.nodes(a=4)
    return found


def writer(world):
    cluster = world.cluster
    return QuotaStatusWriter(
        world.store,
        world.placer,
        cluster.informers.quotas,
        cluster.instruments,
        world.clock,
        cluster.events("tensorfusion-scheduler"),
    )


def status(world, name="quota"):
    return world.store.get(QUOTAS, name, "default")["status"]


def gauge(world):
    lines = world.cluster.instruments.exposition().decode().splitlines()
    (line,) = [x for x in lines if x.startswith("tensorfusion_quota_threshold_reached{")]
    return float(line.split()[-1])


def test_status_shows_use_and_what_is_left_in_percent(world, conditions):
    world.store.create(QUOTAS, build.quota(tflops="400", vram="40Gi", workers=4))
    world.start()
    world.pod("one", tflops=100)
    world.settle()
    writer(world).flush()
    found = status(world)
    assert found["used"] == {
        "requests": {"tflops": "100", "vram": "10Gi"},
        "limits": {"tflops": "100", "vram": "10Gi"},
        "workers": 1,
    }
    left = found["availablePercent"]
    assert (left["requests.tflops"], left["requests.vram"], left["workers"]) == (
        "75.00",
        "75.00",
        "75.00",
    )
    assert left["limits.tflops"] == "100"
    ready = conditions(world.store.get(QUOTAS, "quota", "default"))["Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "CapacitySufficient")


def test_threshold_is_told_by_condition_event_and_metric_and_taken_back(world, conditions):
    world.store.create(QUOTAS, build.quota(tflops="200", vram="100Gi"))
    world.start()
    world.pod("one", tflops=200)
    world.settle()
    status_writer = writer(world)
    status_writer.flush()
    world.cluster.pump()
    status_writer.flush()
    ready = conditions(world.store.get(QUOTAS, "quota", "default"))["Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "AlertThresholdReached")
    told = [m for reason, m in world.cluster.reasons() if reason == "AlertThresholdReached"]
    assert told == ["less than 5 % is left of requests.tflops"]
    assert gauge(world) == 1.0

    world.store.delete(PODS, "one", "default")
    world.settle()
    status_writer.flush()
    assert gauge(world) == 0.0
    assert "CapacitySufficient" in [reason for reason, _ in world.cluster.reasons()]


def test_all_quotas_of_a_namespace_apply_and_each_has_its_own_status(world):
    world.store.create(QUOTAS, build.quota("wide", tflops="1000"))
    world.store.create(QUOTAS, build.quota("narrow", tflops="150"))
    world.start()
    world.pod("one", tflops=100)
    world.settle()
    world.pod("two", tflops=100)
    world.settle()
    assert list(world.bound()) == ["one"]
    assert world.scheduled("two")["message"].startswith(
        "quota narrow of namespace default exceeded for total.max.tflops.request"
    )
    writer(world).flush()
    assert status(world, "wide")["availablePercent"]["requests.tflops"] == "90.00"
    assert status(world, "narrow")["availablePercent"]["requests.tflops"] == "33.33"


@pytest.mark.parametrize(
    ("single", "fits"),
    [
        pytest.param({"maxRequests": {"compute": "50"}}, False, id="percent-cap"),
        pytest.param({"maxRequests": {"compute": "80"}}, True, id="percent-cap-is-wide-enough"),
        pytest.param({"maxRequests": {"tflops": "100"}}, False, id="tflops-cap"),
        pytest.param({"maxRequests": {"tflops": "0"}}, True, id="zero-is-no-cap"),
        pytest.param({"maxGPUCount": 0}, True, id="zero-gpus-is-no-cap"),
    ],
)
def test_caps_on_one_worker(world, single, fits):
    world.store.create(QUOTAS, build.quota(tflops="1000", single=single))
    world.start()
    world.pod("one", tflops=200)
    world.settle()
    assert bool(world.bound()) == fits
