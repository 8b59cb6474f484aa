"""The hypervisor on a backend whose devices the test moves: objects, workers, metrics."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tensorfusion import names
from tensorfusion.api.registry import GPUS, NODES, PODS
from tensorfusion.errors import BackendError, NotFound, Unavailable
from tensorfusion.hypervisor import Hypervisor
from tensorfusion.spi.backend import (
    Capabilities,
    DeviceInfo,
    DeviceMetrics,
    Enforcement,
    FullPolicy,
    Link,
    PreparedWorker,
    Pressure,
    WhenFull,
    WorkerUsage,
)
from tensorfusion.spi.catalogue import BY_NAME
from tensorfusion.testing import build

GIB = 1 << 30


def device(index, **changes):
    fields = {
        "uuid": f"GPU-{index}",
        "index": index,
        "vendor": "NVIDIA",
        "model": "A100_SXM_80G",
        "full_model": "NVIDIA A100-SXM4-80GB",
        "compute_gflops": 312_000,
        "vram_bytes": 80 * GIB,
    }
    return DeviceInfo(**{**fields, **changes})


class Session:
    """One node whose devices and workers are plain attributes."""

    def __init__(self, backend, context):
        self.backend, self.context = backend, context
        self.devices = list(backend.machines[context.node])
        self.specs = dict(backend.left.get(context.node, {}))
        self.broken = ""
        self.pressure = None
        self.calls = []

    def _check(self, call):
        if self.broken == call:
            raise BackendError("fake", f"{call} failed", code="E42")

    def discover(self):
        self._check("discover")
        return list(self.devices)

    def topology(self):
        uuids = [d.uuid for d in self.devices[:2]]
        return (
            [Link(source=uuids[0], target=uuids[1], kind="NVLink", tier=0, bandwidth_mbps=300)]
            if len(uuids) == 2
            else []
        )

    def metrics(self):
        self._check("metrics")
        now = self.context.clock.now()
        return [
            DeviceMetrics(
                uuid=d.uuid, time=now, utilization_ratio=0.5, vram_used_bytes=GIB,
                temperature_celsius=60, power_watts=300, energy_joules_total=1e6,
            )
            for d in self.devices
        ]  # fmt: skip

    def usage(self):
        now = self.context.clock.now()
        return [
            WorkerUsage(
                worker=s.worker, uuid=uuid, time=now, compute_gflops=31_200, vram_bytes=2 * GIB,
                throttled_seconds_total=1.5, oom_total=2, pressure=self.pressure,
            )
            for s in self.specs.values()
            for uuid in s.devices
        ]  # fmt: skip

    def prepare(self, spec):
        self._check("prepare")
        self.calls.append(("prepare", spec.name))
        self.specs[spec.worker] = spec
        return PreparedWorker(enforcement=Enforcement.SIMULATED)

    def set_limits(self, worker, share):
        self._check("set_limits")
        self.calls.append(("set_limits", self.specs[worker].name))
        self.specs[worker] = replace(self.specs[worker], share=share)

    def release(self, worker):
        self._check("release")
        spec = self.specs.pop(worker, None)
        self.calls.append(("release", spec.name if spec else worker))

    def workers(self):
        return list(self.specs.values())

    def close(self):
        self._check("close")
        self.calls.append(("close", ""))


class Backend:
    name = "fake"
    vendor = "NVIDIA"

    def __init__(self):
        self.machines = {"n1": [device(0), device(1)]}
        self.left = {}

    def capabilities(self):
        return Capabilities(
            isolation={"soft": Enforcement.SIMULATED}, metrics=True, process_usage=True
        )

    def nodes(self, settings):
        return list(self.machines)

    def open(self, context):
        return Session(self, context)


class Metrics:
    def __init__(self):
        self.samples = []

    def write(self, samples):
        if self.samples is None:
            raise OSError("the disk is gone")
        self.samples = list(samples)


@pytest.fixture
def world(cluster, tmp_path):
    cluster.backend, cluster.metrics, cluster.told = Backend(), Metrics(), []

    def boot(**kwargs):
        hypervisor = Hypervisor(
            cluster.backend,
            cluster.store,
            folder=tmp_path / "nodes",
            clock=cluster.clock,
            pods=cluster.informers.pods,
            metrics=cluster.metrics,
            instruments=cluster.instruments,
            events=cluster.events("hypervisor"),
            batch=nullcontext,
            **kwargs,
        )
        hypervisor.discovery.on_change = lambda node, info: cluster.told.append(
            (info.uuid, info.healthy)
        )
        hypervisor.sampling.pool_of = lambda node: "shared"
        cluster.controllers[:] = [hypervisor.workers.controller]
        cluster.hypervisor = hypervisor
        cluster.session = hypervisor.sessions.get("n1")
        return hypervisor

    cluster.boot = boot
    boot()
    cluster.start()
    return cluster


def discover(world):
    world.hypervisor.discovery.run_once()


def test_devices_are_published_as_objects(world):
    discover(world)
    card = world.get(GPUS, "gpu-0")
    status = card["status"]

    assert [g["metadata"]["name"] for g in world.all(GPUS)] == ["gpu-0", "gpu-1"]
    assert (status["phase"], status["uuid"], status["nodeName"]) == ("Running", "GPU-0", "n1")
    assert status["capacity"] == status["available"] == {"tflops": "312", "vram": "80Gi"}
    assert status["topology"]["peers"][0]["peerGPUUUID"] == "GPU-1"
    assert card["metadata"]["labels"][names.MANAGED_BY] == "n1"
    assert (
        '"SupportsSoftIsolation": true'
        in card["metadata"]["annotations"][names.VIRTUALIZATION_CAPABILITIES]
    )
    node = world.get(NODES, "n1")
    assert node["metadata"]["labels"]["nvidia.com/gpu.present"] == "true"
    assert node["status"]["conditions"][0]["type"] == "Ready"
    assert world.told == [("GPU-0", True), ("GPU-1", True)]


def test_node_object_is_left_to_the_kubelet_where_there_is_one(world):
    world.boot(registers_nodes=False)
    discover(world)

    assert world.all(NODES) == []
    assert len(world.all(GPUS)) == 2


def test_pass_without_news_writes_nothing(world):
    discover(world)
    before = world.store.version
    discover(world)

    assert world.store.version == before
    assert len(world.told) == 2


def test_restart_with_the_same_devices_writes_nothing(world):
    discover(world)
    before = world.store.version
    world.boot()
    discover(world)

    assert world.store.version == before


def test_health_of_a_device_is_published(world):
    discover(world)
    world.store.patch(
        GPUS, "gpu-0", {"status": {"available": {"tflops": "1"}}}, subresource="status"
    )
    world.session.devices[0] = device(0, healthy=False, message="fell off the bus")
    discover(world)
    status = world.get(GPUS, "gpu-0")["status"]

    assert (status["phase"], status["message"]) == ("Unknown", "fell off the bus")
    assert status["available"]["tflops"] == "1"  # what is free is the scheduler's to say
    assert world.told[-1] == ("GPU-0", False)


@pytest.mark.parametrize("restart", [False, True], ids=["while it runs", "over a restart"])
def test_device_that_goes_is_marked_and_unmarked_when_it_returns(world, restart):
    discover(world)
    world.backend.machines["n1"] = world.session.devices = [device(0)]
    if restart:
        world.boot()
    discover(world)
    gone = world.get(GPUS, "gpu-1")
    assert names.GPU_MISSING_SINCE in gone["metadata"]["annotations"]
    assert gone["status"]["phase"] == "Unknown"
    assert names.GPU_MISSING_SINCE not in world.get(GPUS, "gpu-0")["metadata"]["annotations"]

    world.clock.advance(60)
    if restart:
        world.boot()
    before = world.store.version
    discover(world)
    assert world.store.version == before  # the time of the mark stays

    world.session.devices = [device(0), device(1)]
    discover(world)
    back = world.get(GPUS, "gpu-1")
    assert names.GPU_MISSING_SINCE not in back["metadata"]["annotations"]
    assert back["status"]["phase"] == "Running"


def test_node_that_cannot_be_asked_keeps_its_devices_and_holds_up_nobody(world, caplog):
    world.backend.machines["n2"] = [device(2)]
    world.boot()
    discover(world)
    world.boot()
    world.session.broken = "discover"
    world.hypervisor.sessions["n2"].devices = [device(2), device(3)]
    discover(world)

    assert len(world.all(GPUS)) == 4
    for card in world.all(GPUS):
        assert names.GPU_MISSING_SINCE not in card["metadata"]["annotations"]
    assert "discovery failed" in caplog.text

    world.session.broken = ""
    world.session.devices = [device(0)]
    discover(world)
    assert names.GPU_MISSING_SINCE in world.get(GPUS, "gpu-1")["metadata"]["annotations"]


def test_news_that_could_not_be_written_are_written_later(world):
    discover(world)
    world.session.devices = [device(0, healthy=False, message="hot")]
    discovery = world.hypervisor.discovery
    store = discovery._store

    class Down:
        def __getattr__(self, name):
            raise Unavailable("the disk is full")

    discovery._store = Down()
    with pytest.raises(Unavailable):
        discovery.run_once()
    discovery._store = store
    discovery.run_once()

    assert world.get(GPUS, "gpu-0")["status"]["message"] == "hot"
    assert names.GPU_MISSING_SINCE in world.get(GPUS, "gpu-1")["metadata"]["annotations"]


def bound(name, gpus="gpu-0", annotations=None, **kwargs):
    return build.pod(
        name,
        annotations={"gpu-ids": gpus, **(annotations or {})},
        labels={"workload": "job", "component": "worker"},
        nodeName="n1",
        **kwargs,
    )


def create(world, *pods):
    for pod in pods:
        world.store.create(PODS, pod, "default")
    world.settle(2)


def pod(world, name):
    return world.get(PODS, name, "default")


def spec_of(world, name):
    (found,) = (s for s in world.session.specs.values() if s.name == name)
    return found


def test_bound_pod_becomes_a_running_worker(world):
    discover(world)
    create(world, bound("w", "gpu-0,gpu-1"))
    spec = spec_of(world, "w")

    assert spec.worker == pod(world, "w")["metadata"]["uid"]
    assert spec.devices == ("GPU-0", "GPU-1")
    assert (spec.share.request_gflops, spec.share.limit_vram_bytes) == (10_000, 4 * GIB)
    assert pod(world, "w")["status"]["phase"] == "Running"
    assert world.session.calls == [("prepare", "w")]


def test_pod_without_a_node_or_of_another_node_is_not_ours(world):
    pending, other = bound("pending"), bound("other")
    del pending["spec"]["nodeName"]
    other["spec"]["nodeName"] = "elsewhere"
    create(world, pending, other)

    assert world.session.calls == []


def test_pod_without_a_gpu_just_runs(world):
    create(world, build.pod("plain", tflops="", nodeName="n1"))

    assert pod(world, "plain")["status"]["phase"] == "Running"
    assert world.session.calls == []


def test_changed_amounts_are_set_without_a_new_worker(world):
    create(world, bound("w"))
    new = {names.TFLOPS_LIMIT: "20", names.VRAM_LIMIT: "8Gi"}
    world.store.patch(PODS, "w", {"metadata": {"annotations": new}}, "default")
    world.settle(2)

    assert world.session.calls == [("prepare", "w"), ("set_limits", "w")]
    assert spec_of(world, "w").share.limit_gflops == 20_000


def test_percentages_are_of_the_device(world):
    percent = {
        "tflops-request": None, "tflops-limit": None,
        "compute-percent-request": "10", "compute-percent-limit": "25",
    }  # fmt: skip
    asked = bound("w", annotations=percent)
    asked["metadata"]["annotations"] = {
        k: v for k, v in asked["metadata"]["annotations"].items() if v is not None
    }
    create(world, asked)
    share = spec_of(world, "w").share

    assert (share.request_gflops, share.limit_gflops) == (31_200, 78_000)
    assert (share.request_on(312_000), share.limit_on(312_000)) == (31_200, 78_000)
    # The worker's other cards need not be of the same model.
    assert (share.request_on(65_000), share.limit_on(65_000)) == (6_500, 16_250)


def test_deleted_pod_releases_its_worker_and_goes(world):
    create(world, bound("w"))
    world.store.delete(PODS, "w", "default")
    world.settle(2)

    assert world.session.specs == {}
    with pytest.raises(NotFound):
        pod(world, "w")


def test_finished_pod_releases_its_worker(world):
    create(world, bound("w"))
    world.store.patch(
        PODS, "w", {"status": {"phase": "Succeeded"}}, "default", subresource="status"
    )
    world.settle(2)

    assert world.session.specs == {}
    assert pod(world, "w")["status"]["phase"] == "Succeeded"


def test_pod_of_the_same_name_is_another_worker(world):
    create(world, bound("w"))
    first = spec_of(world, "w").worker
    world.store.delete(PODS, "w", "default", grace_period_seconds=0)
    create(world, bound("w"))

    assert spec_of(world, "w").worker != first
    assert world.session.calls == [("prepare", "w"), ("release", "w"), ("prepare", "w")]


@pytest.mark.parametrize("restart", [False, True], ids=["same run", "over a restart"])
def test_shared_worker_ends_with_its_last_user(world, restart):
    create(world, bound("a"))
    owner = f"{pod(world, 'a')['metadata']['uid']}/a"
    create(
        world, bound("b", annotations={"worker": owner}), bound("c", annotations={"worker": owner})
    )
    assert len(world.session.specs) == 1
    world.store.delete(PODS, "a", "default")
    world.settle(2)
    assert len(world.session.specs) == 1
    if restart:
        world.backend.left = {"n1": world.session.specs}
        world.boot()
        world.hypervisor.workers.recover()
    world.store.delete(PODS, "b", "default")
    world.settle(2)
    assert len(world.session.specs) == 1
    world.store.delete(PODS, "c", "default")
    world.settle(2)

    assert world.session.specs == {}


def test_workers_of_an_earlier_run_are_kept_or_released(world):
    create(world, bound("kept"), bound("gone"))
    world.backend.left = {"n1": world.session.specs}
    world.store.delete(PODS, "gone", "default", grace_period_seconds=0)
    world.pump()
    world.boot()
    world.hypervisor.workers.recover()
    world.settle(2)

    assert [s.name for s in world.session.specs.values()] == ["kept"]
    assert world.session.calls == [("release", "gone")]


def test_what_a_full_card_does_is_the_pools_choice_and_changes_with_it(world):
    asked, choice = [], WhenFull(FullPolicy.WAIT, 5.0)

    def chosen(node, qos, share):
        asked.append((node, qos, share.limit_vram_bytes > 0))
        return choice

    world.hypervisor.workers.when_full = chosen
    create(world, bound("w", annotations={"qos": "high"}))
    assert spec_of(world, "w").when_full == choice
    assert set(asked) == {("n1", "high", True)}

    choice = WhenFull(FullPolicy.EVICT, 5.0)
    world.hypervisor.workers.look_again()
    world.settle(2)
    world.hypervisor.workers.look_again()
    world.settle(2)

    assert spec_of(world, "w").when_full == choice
    assert world.session.calls == [("prepare", "w")] * 2


@pytest.mark.parametrize("call", ["prepare", "set_limits"])
def test_backend_that_fails_is_said_and_tried_again(world, call):
    if call == "set_limits":
        create(world, bound("w"))
    world.session.broken = call
    if call == "set_limits":
        change = {"metadata": {"annotations": {names.TFLOPS_LIMIT: "20"}}}
        world.store.patch(PODS, "w", change, "default")
        world.settle(2)
    else:
        create(world, bound("w"))
        assert pod(world, "w").get("status", {}).get("phase") != "Running"
    assert ("WorkerNotPrepared", f"node n1: fake: {call} failed (E42)") in world.reasons()

    world.session.broken = ""
    world.settle(120)
    assert (call, "w") in world.session.calls
    assert pod(world, "w")["status"]["phase"] == "Running"


def test_unknown_device_is_said(world):
    create(world, bound("w", "gpu-9"))

    assert "node 'n1' has no device 'gpu-9'" in dict(world.reasons())["WorkerNotPrepared"]


def test_worker_that_cannot_be_released_is_tried_again(world):
    create(world, bound("w"))
    world.session.broken = "release"
    world.store.delete(PODS, "w", "default")
    world.settle(2)
    assert len(world.session.specs) == 1
    assert pod(world, "w")["metadata"]["deletionTimestamp"]  # it holds its devices still

    world.session.broken = ""
    world.settle(120)
    assert world.session.specs == {}
    with pytest.raises(NotFound):
        pod(world, "w")


def exposed(world):
    text = world.instruments.exposition().decode()
    return {
        sample.name: sample.labels
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_sampling_writes_series_of_the_catalogue(world):
    discover(world)
    create(world, bound("w"))
    world.hypervisor.sampling.run_once()
    shown = exposed(world)

    for name, labels in shown.items():
        assert labels.keys() == set(BY_NAME[name].labels), name
    worker = {
        "pool": "shared", "node": "n1", "namespace": "default",
        "workload": "job", "worker": "w", "gpu_uuid": "gpu-0",
    }  # fmt: skip
    assert shown["tensorfusion_worker_compute_used_flops"] == worker
    stored = {(s.name, s.labels): s.value for s in world.metrics.samples}
    key = tuple(sorted(worker.items()))
    assert stored["tensorfusion_worker_compute_used_flops", key] == 31_200e9
    assert stored["tensorfusion_worker_throttled_seconds_total", key] == 1.5
    for (name, labels), _ in stored.items():
        assert [k for k, _ in labels] == sorted(BY_NAME[name].labels)


def test_series_of_a_worker_that_ended_are_gone(world):
    discover(world)
    create(world, bound("w"))
    world.hypervisor.sampling.run_once()
    assert "tensorfusion_worker_ready" in exposed(world)
    world.store.delete(PODS, "w", "default")
    world.settle(2)
    world.hypervisor.sampling.run_once()

    assert not [name for name in exposed(world) if name.startswith("tensorfusion_worker_")]
    assert "tensorfusion_gpu_workers" in exposed(world)


def test_node_that_cannot_be_read_does_not_hold_up_the_rest(world, caplog):
    world.backend.machines["n2"] = [device(2)]
    world.boot()
    discover(world)
    world.session.broken = "metrics"
    world.hypervisor.sampling.run_once()

    assert {dict(s.labels)["node"] for s in world.metrics.samples} == {"n2"}
    assert "sampling failed" in caplog.text


def test_what_a_full_card_did_is_counted_where_the_backend_knows(world):
    discover(world)
    create(world, bound("w"))
    world.hypervisor.sampling.run_once()
    assert "tensorfusion_worker_vram_spilled_bytes" not in exposed(world)

    world.session.pressure = Pressure(
        wanted_bytes=1, spilled_bytes=2, spilled_bytes_total=3, waits_total=4,
        waited_seconds_total=5.5, evict_requests_total=6, denied_total=7,
    )  # fmt: skip
    world.hypervisor.sampling.run_once()

    lines = world.instruments.exposition().decode().splitlines()
    found = {
        line.partition("{")[0].removeprefix("tensorfusion_worker_vram_"): float(line.split()[-1])
        for line in lines
        if line.startswith("tensorfusion_worker_vram_") and 'worker="w"' in line
    }
    expected = {
        "wanted_bytes": 1, "spilled_bytes": 2, "spilled_bytes_total": 3, "waits_total": 4,
        "waited_seconds_total": 5.5, "evict_requests_total": 6, "full_denials_total": 7,
        "denials_total": 2,
    }  # fmt: skip
    assert expected.items() <= found.items()


def test_metric_store_that_fails_does_not_stop_the_exposition(world, caplog):
    discover(world)
    world.metrics.samples = None
    world.hypervisor.sampling.run_once()

    assert "tensorfusion_gpu_healthy" in exposed(world)
    assert "samples not stored" in caplog.text


def test_sessions_are_closed_even_if_one_fails(world, caplog):
    world.backend.machines["n2"] = [device(2)]
    hypervisor = world.boot()
    world.session.broken = "close"
    hypervisor.close()

    assert hypervisor.sessions["n2"].calls == [("close", "")]
    assert "session not closed" in caplog.text
