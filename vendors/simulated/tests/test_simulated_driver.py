"""The fidelity ``driver``: the conformance suite, metering, limits of real processes."""

import os
import re
import subprocess
import sys
import time

import msgspec
import pytest

from tensorfusion import names
from tensorfusion.clock import SystemClock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion.testing import conformance
from tensorfusion_native.libraries import built, libraries
from tensorfusion_native.workers import Workers
from tensorfusion_simulated.backend import SimulatedBackend
from tensorfusion_simulated.description import SimulatedSettings, read_settings
from tensorfusion_simulated.state import Fault, Faults, load_state, write_atomic

GIB = 1 << 30
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not built(), reason="the native part is not built")
SETTINGS = {
    "fidelity": "driver",
    "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 2}]}],
}


CUT = {"model": "A100_SXM_80G", "partitioned": True}
WITH_CUT = {**SETTINGS, "nodes": [{"name": "sim", "gpus": [*SETTINGS["nodes"][0]["gpus"], CUT]}]}


class TestSimulatedDriver(conformance.BackendConformance):
    """Two cards as they come, and one that is set up for partitions, on which these are tried."""

    vendor = "simulated"
    settings = WITH_CUT

    @pytest.fixture
    def backend(self):
        backend = SimulatedBackend()
        backend.configure(read_settings(WITH_CUT))
        return backend

    @pytest.fixture(autouse=True)
    def load(self, request, monkeypatch):
        """A program that wants the whole device, read after two seconds instead of ten."""
        command = f"{libraries().load} kernel_us=500 seconds=60 hold={GIB}"
        monkeypatch.setattr(request.config.option, "load_command", command)
        for name, module in list(sys.modules.items()):
            if name.startswith("tensorfusion.testing.conformance") and hasattr(
                module, "LOAD_SECONDS"
            ):
                monkeypatch.setattr(module, "LOAD_SECONDS", 2.0)


@pytest.fixture
def settings():
    return SETTINGS


def spec(session, name, percent, device=0, vram=2 * GIB, **changes):
    info = session.discover()[device]
    gflops = info.compute_gflops * percent // 100
    values = {
        "worker": name,
        "namespace": "ns",
        "name": name,
        "workload": "w",
        "devices": (info.uuid,),
        "share": Share(gflops, vram, gflops, vram),
    }
    return WorkerSpec(**{**values, **changes})


def measured(session, seconds):
    """Percent of the device by worker, over some seconds."""
    session.usage()
    time.sleep(seconds)
    whole = session.discover()[0].compute_gflops
    return {row.worker: 100 * row.compute_gflops / whole for row in session.usage()}


def test_two_tenants_get_their_shares_and_one_is_resized(driver):
    session = driver.open()
    small, large = spec(session, "small", 20), spec(session, "large", 60)
    for one in (small, large):
        driver.start(session.prepare(one), libraries().load, "seconds=60", "kernel_us=500")
    time.sleep(1.5)

    shares = measured(session, 2)
    assert shares == {"small": pytest.approx(20, abs=5), "large": pytest.approx(60, abs=5)}
    session.set_limits("small", spec(session, "small", 40).share)
    time.sleep(0.5)
    assert measured(session, 2)["small"] == pytest.approx(40, abs=5)
    rows = {row.worker: row for row in session.usage()}
    assert rows["small"].throttled_seconds_total > 1
    assert rows["small"].vram_bytes == 300 * MIB


def test_a_session_finds_its_workers_again(driver):
    session = driver.open()
    prepared = session.prepare(spec(session, "w", 30))
    driver.start(prepared, libraries().load, "seconds=60", "kernel_us=500", f"hold={GIB}")
    time.sleep(1)
    session.close()

    again = driver.open()
    assert [w.worker for w in again.workers()] == ["w"]
    assert again.prepare(again.workers()[0]) == prepared
    assert measured(again, 2)["w"] == pytest.approx(30, abs=5)


def test_a_worker_sees_its_own_device_only(driver):
    session = driver.open()
    second = spec(session, "w", 50, device=1)
    code = (
        "import ctypes as c; cuda = c.CDLL('libcuda.so.1'); n, name = c.c_int(), (c.c_ubyte * 16)()\n"
        "assert cuda.cuInit(0) == 0; cuda.cuDeviceGetCount(c.byref(n))\n"
        "cuda.cuDeviceGetUuid_v2(name, 0); print(n.value, bytes(name).hex())"
    )
    out, _ = driver.start(session.prepare(second), sys.executable, "-c", code).communicate(
        timeout=20
    )
    assert out.split() == ["1", second.devices[0].removeprefix("GPU-").replace("-", "")]


def test_without_the_native_part_it_is_not_available_and_says_why(tmp_path, monkeypatch):
    backend = SimulatedBackend()
    backend.configure(SimulatedSettings(fidelity="driver"))
    assert backend.available() == (True, "")
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(tmp_path))
    works, why = backend.available()
    assert (works, why) == (
        False,
        f"TENSORFUSION_NATIVE_BUILD: {tmp_path} has no complete build of native/",
    )
    backend.configure(SimulatedSettings())
    assert backend.available() == (True, "")


def test_the_load_of_an_annotation_is_played_and_stopped_at_its_memory_limit(driver):
    session = driver.open()
    load = {names.SIMULATED_LOAD: "constant,compute=40%,vram=3Gi"}
    prepared = session.prepare(spec(session, "w", 100, annotations=load))
    process = driver.start(prepared)
    process.stdout.readline()
    time.sleep(1)

    assert measured(session, 2)["w"] == pytest.approx(40, abs=6)
    [row] = session.usage()
    assert 2 * GIB - 64 * MIB < row.vram_bytes <= 2 * GIB
    assert row.oom_total >= 1
    told = re.search(r"holds 2Gi, (\d+) allocations refused", process.stdout.readline())
    assert 1 <= int(told.group(1)) <= session.usage()[0].oom_total


def test_a_load_is_played_on_every_device_of_a_worker(driver):
    session = driver.open()
    uuids = tuple(info.uuid for info in session.discover())
    load = {names.SIMULATED_LOAD: "constant,compute=100%,vram=1Gi"}
    wanted = spec(session, "w", 30, devices=uuids, annotations=load)
    process = driver.start(session.prepare(wanted))
    for _ in uuids:
        assert process.stdout.readline().startswith("device ")
    time.sleep(1)
    session.usage()
    time.sleep(2)
    whole = session.discover()[0].compute_gflops
    rows = {row.uuid: 100 * row.compute_gflops / whole for row in session.usage()}
    assert rows == {uuid: pytest.approx(30, abs=6) for uuid in uuids}


@pytest.mark.parametrize(("milli", "second"), [(20_000, 20), (0, 96)])
def test_cards_of_several_models_each_have_a_limit_of_their_own(tmp_path, milli, second):
    gpus = [{"model": "A100_SXM_80G"}, {"model": "T4"}]
    settings = {"fidelity": "driver", "nodes": [{"name": "sim", "gpus": gpus}]}
    backend = SimulatedBackend()
    backend.nodes(settings)
    session = backend.open(
        NodeContext(node="sim", state_dir=tmp_path, clock=SystemClock(), settings=settings)
    )
    infos = session.discover()
    share = Share(62_400, GIB, 62_400, GIB, milli, milli)
    session.prepare(
        WorkerSpec(
            worker="w",
            namespace="ns",
            name="w",
            workload="w",
            devices=tuple(info.uuid for info in infos),
            share=share,
        )
    )
    record = Workers(tmp_path / "native" / "workers").find("w")
    session.close()
    assert [info.compute_gflops for info in infos] == [312_000, 65_000]
    ratios = [100 * limit.compute_ratio for limit in record.limits()]
    assert ratios == [pytest.approx(20), pytest.approx(second)]


def test_a_card_that_failed_takes_no_work(tmp_path, driver):
    session = driver.open()
    first = session.discover()[0].uuid.lower()
    known = load_state(tmp_path / "simulated.json").cards
    assert first in known
    faults = Faults(cards={first: Fault(failed="fell off the bus")})
    write_atomic(tmp_path / "faults.json", msgspec.json.encode(faults))
    assert [info.healthy for info in session.discover()] == [False, True]
    with pytest.raises(BackendError, match="fell off the bus"):
        session.prepare(spec(session, "w", 10))


def test_nodes_are_machines_of_their_own(tmp_path):
    """Both in one process: each looks at its own state."""
    nodes = [{"name": name, "gpus": [{"model": "T4"}]} for name in ("a", "b")]
    backend = SimulatedBackend()
    settings = {"fidelity": "driver", "nodes": nodes}
    sessions = {}
    for name in backend.nodes(settings):
        folder = tmp_path / name
        folder.mkdir()
        sessions[name] = backend.open(
            NodeContext(node=name, state_dir=folder, clock=SystemClock(), settings=settings)
        )
    device = sessions["a"].discover()[0]
    share = Share(0, 2 * GIB, device.compute_gflops, 2 * GIB)
    prepared = sessions["a"].prepare(
        WorkerSpec(
            worker="w", namespace="ns", name="w", workload="w", devices=(device.uuid,), share=share
        )
    )
    command = [str(libraries().load), "seconds=30", f"hold={GIB}"]
    with subprocess.Popen(
        command, env=process_environment(os.environ, prepared.env), stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        used = [s.metrics()[0].vram_used_bytes for s in sessions.values()]
        process.kill()
    for session in sessions.values():
        session.close()
    assert used == [GIB + 300 * MIB, 0]


def test_a_shared_worker_has_no_limiter(driver):
    session = driver.open()
    prepared = session.prepare(spec(session, "w", 10, isolation="shared"))
    assert prepared.enforcement is Enforcement.NONE
    assert "LD_PRELOAD" not in prepared.env
    driver.start(prepared, libraries().load, "seconds=60", "kernel_us=500")
    time.sleep(1)
    assert measured(session, 1)["w"] > 90


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ([{"model": "MI300X"}], "MI300X is of AMD; the fidelity driver simulates NVIDIA's driver"),
        ([{"model": "T4", "count": 9}], "node 'sim': 9 cards; the fidelity driver has at most 8"),
    ],
)
def test_cards_that_cannot_be_simulated_are_named(tmp_path, gpus, words):
    settings = {"fidelity": "driver", "nodes": [{"name": "sim", "gpus": gpus}]}
    context = NodeContext(node="sim", state_dir=tmp_path, clock=SystemClock(), settings=settings)
    with pytest.raises(BackendError, match=words):
        SimulatedBackend().open(context)
