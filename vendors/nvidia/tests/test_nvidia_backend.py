"""The NVIDIA backend on a stand-in for the management library."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion_nvidia.backend import NvidiaBackend

GIB = 1 << 30


@pytest.fixture
def open_session(machine, tmp_path):
    def start(nvml):
        backend = NvidiaBackend(nvml, proc=machine.proc.path, sysfs=machine.sysfs, limiter=False)
        context = NodeContext(node="here", state_dir=tmp_path, clock=machine.clock)
        return backend.open(context)

    return start


def worker(session, name="uid-1", count=1):
    uuids = tuple(info.uuid for info in session.discover()[:count])
    share = Share(10_000, GIB, 20_000, 2 * GIB)
    return WorkerSpec(
        worker=name, namespace="ns", name=name, workload="w", devices=uuids, share=share
    )


def test_plugin_loads_without_the_library():
    code = (
        "import sys, tensorfusion_nvidia.plugin as p; p.tensorfusion_backends();"
        "assert 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_library_is_named(machine):
    nvml = machine.make()
    nvml.nvmlInit = lambda: (_ for _ in ()).throw(machine.missing(12))
    works, why = NvidiaBackend(nvml).available()
    assert not works
    assert "libnvidia-ml.so.1 is not found" in why
    with pytest.raises(BackendError, match=r"libnvidia-ml\.so\.1"):
        NvidiaBackend(nvml).open(None)


def test_machine_without_devices_is_not_available(machine):
    assert NvidiaBackend(machine.make(count=0)).available() == (
        False,
        "the NVIDIA driver has no device",
    )


def test_library_is_initialised_once(nvml):
    backend = NvidiaBackend(nvml)
    assert backend.available() == (True, "")
    backend.available()
    assert nvml.inits == 1


def test_discovery_takes_compute_from_the_catalogue(open_session, nvml, machine):
    folder = machine.sysfs / "bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    folder.joinpath("numa_node").write_text("1\n")
    first, second = open_session(nvml).discover()
    assert (first.model, first.compute_gflops, first.vram_bytes) == (
        "A100_SXM_80G",
        312_000,
        80 * GIB,
    )
    assert (first.numa_node, second.numa_node) == (1, None)
    assert (first.index, second.index) == (0, 1)
    assert first.driver_version == "570.86.15"
    assert first.healthy


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA H100 80GB HBM3", "H100_SXM"),
        ("NVIDIA B200", "B200"),
    ],
)
def test_driver_names_find_their_card(open_session, machine, name, model):
    assert open_session(machine.make(name, 24, 1)).discover()[0].model == model


def test_unknown_model_takes_no_work_and_names_the_catalogue(open_session, machine):
    session = open_session(machine.make("NVIDIA Quantum 9000", 24, 1))
    (info,) = session.discover()
    assert not info.healthy
    assert info.compute_gflops == 0
    assert "NVIDIA Quantum 9000 is not in the hardware catalogue" in info.message
    with pytest.raises(BackendError, match="takes no work"):
        session.prepare(worker(session))


def test_mig_device_is_one_to_cut(open_session, nvml):
    nvml.devices[1].mig = [1, 1]
    infos = open_session(nvml).discover()
    assert [(info.healthy, info.partitioned) for info in infos] == [(True, False), (True, True)]


def test_mig_device_that_the_catalogue_cannot_cut_takes_no_work(open_session, machine):
    nvml = machine.make("Tesla T4", 16, 1)
    nvml.devices[0].mig = [1, 1]
    (info,) = open_session(nvml).discover()
    assert not info.healthy
    assert not info.partitioned
    assert "does not know how Tesla T4 is cut" in info.message


def test_lost_device_stays_listed_as_unhealthy(open_session, nvml):
    session = open_session(nvml)
    before = session.discover()
    nvml.devices[0].lost = True
    assert [reading.uuid for reading in session.metrics()] == [before[1].uuid]
    after = session.discover()
    assert [info.uuid for info in after] == [info.uuid for info in before]
    assert [info.healthy for info in after] == [False, True]
    nvml.devices[0].lost = False
    assert session.discover() == before


def test_direct_links_add_up(open_session, machine):
    nvml = machine.make(count=3)
    machine.join(nvml.devices[0], nvml.devices[1], 0, 1, 2, 3)
    machine.join(nvml.devices[1], nvml.devices[2], 4, 5)
    session = open_session(nvml)
    found = [
        (link.source[4:12], link.target[4:12], link.bandwidth_mbps) for link in session.topology()
    ]
    assert found == [("00000000", "00000001", 100_000), ("00000001", "00000002", 50_000)]


def test_switch_joins_everyone(open_session, machine):
    nvml = machine.make("NVIDIA H100 80GB HBM3", 80, 4)
    for device in nvml.devices:
        machine.join_switch(device, 18)
    links = open_session(nvml).topology()
    assert len(links) == 6
    assert {link.bandwidth_mbps for link in links} == {450_000}


def test_machine_without_links_has_no_topology(open_session, nvml):
    assert open_session(nvml).topology() == []


def test_metrics_are_in_base_units(open_session, nvml, machine):
    nvml.devices[0].compute = [SimpleNamespace(pid=1, usedGpuMemory=3 * GIB)]
    nvml.devices[0].samples = [SimpleNamespace(pid=1, smUtil=40, timeStamp=0)]
    reading = open_session(nvml).metrics()[0]
    assert reading.utilization_ratio == 0.4
    assert reading.vram_used_bytes == 3 * GIB
    assert reading.power_watts == 61.5
    assert reading.energy_joules_total == 1001
    assert reading.clock_hertz == 1.41e9
    assert reading.time == machine.clock.now()


def test_reading_that_the_device_lacks_is_none(open_session, nvml, machine):
    def unsupported(*arguments):
        raise machine.error(3, "Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    nvml.nvmlDeviceGetTemperature = unsupported
    reading = open_session(nvml).metrics()[0]
    assert (reading.energy_joules_total, reading.temperature_celsius) == (None, None)
    assert reading.power_watts == 61.5


def test_processes_are_found_by_environment_and_by_cgroup(open_session, nvml, machine):
    session = open_session(nvml)
    local, pod = worker(session, "uid-local"), worker(session, "0a1b-22")
    prepared = session.prepare(local)
    session.prepare(pod)
    machine.proc.add(
        11, environ=f"PATH=/\0TENSORFUSION_WORKER={prepared.env['TENSORFUSION_WORKER']}\0"
    )
    machine.proc.add(12, cgroup="0::/kubepods.slice/kubepods-pod0a1b_22.slice/cri-x.scope\n")
    machine.proc.add(13, environ="TENSORFUSION_WORKER=somebody-else\0")
    now = int(machine.clock.now() * 1e6)
    nvml.devices[0].compute = [
        SimpleNamespace(pid=pid, usedGpuMemory=amount * GIB)
        for pid, amount in ((11, 2), (12, 5), (13, 7))
    ]
    nvml.devices[0].samples = [
        SimpleNamespace(pid=11, smUtil=20, timeStamp=now - 2_000_000),
        SimpleNamespace(pid=11, smUtil=40, timeStamp=now - 1_000_000),
        SimpleNamespace(pid=12, smUtil=10, timeStamp=now - 1_000_000),
        SimpleNamespace(pid=13, smUtil=99, timeStamp=now - 1_000_000),
    ]
    rows = {row.worker: row for row in session.usage()}
    assert rows.keys() == {"uid-local", "0a1b-22"}
    assert rows["uid-local"].compute_gflops == pytest.approx(312_000 * 0.3)
    assert rows["uid-local"].vram_bytes == 2 * GIB
    assert rows["0a1b-22"].compute_gflops == pytest.approx(312_000 * 0.1)
    assert rows["0a1b-22"].vram_bytes == 5 * GIB
    machine.clock.advance(1)
    assert {row.compute_gflops for row in session.usage()} == {0}, "samples count once"


def test_reused_pid_is_not_taken_for_the_old_process(open_session, nvml, machine):
    session = open_session(nvml)
    session.prepare(worker(session))
    machine.proc.add(11, environ="TENSORFUSION_WORKER=uid-1\0", started=100)
    nvml.devices[0].compute = [SimpleNamespace(pid=11, usedGpuMemory=GIB)]
    assert session.usage()[0].vram_bytes == GIB
    machine.proc.add(11, environ="", started=200)
    assert session.usage()[0].vram_bytes == 0


def test_prepared_worker_without_the_limiter_sees_its_devices_and_no_limits(open_session, nvml):
    session = open_session(nvml)
    spec = worker(session, count=2)
    prepared = session.prepare(spec)
    assert prepared.env["NVIDIA_VISIBLE_DEVICES"] == ",".join(spec.devices)
    assert prepared.env["CUDA_VISIBLE_DEVICES"] == ",".join(spec.devices)
    assert {"/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"} <= set(prepared.device_paths)
    assert prepared.enforcement is Enforcement.NONE


def test_damaged_state_is_named(open_session, nvml, tmp_path):
    tmp_path.joinpath("nvidia.json").write_text("{")
    with pytest.raises(BackendError, match=r"nvidia\.json cannot be read"):
        open_session(nvml)
