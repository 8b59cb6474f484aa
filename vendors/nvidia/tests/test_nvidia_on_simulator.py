"""The NVIDIA backend, unchanged, on the simulated driver: nvidia-ml-py, the limiter, real processes."""

import importlib.util
import os
import subprocess
import sys
import time
from ctypes import CDLL

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.model.hardware import find_card
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion.testing import conformance
from tensorfusion_native.libraries import VIEW, built, libraries
from tensorfusion_native.simulated_machine import SimulatedMachine, device_uuid
from tensorfusion_nvidia.backend import NvidiaBackend

GIB = 1 << 30
NEWEST = {"cuda_version": 13000, "driver_version": "580.65.06"}
pytestmark = pytest.mark.skipif(not built(), reason="the native part is not built")


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    """A simulated machine of two A100, and nvidia-ml-py that talks to it."""
    card = find_card("A100_SXM_80G")
    cards = [(device_uuid("test", i, card.model), card) for i in range(2)]
    machine = SimulatedMachine.create(tmp_path / "machine", cards, libraries(), settings=NEWEST)
    machine.management()  # opens the state before nvidia-ml-py does, so that it needs no variables
    spec = importlib.util.find_spec("pynvml")
    pynvml = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)  # it looks itself up there
    spec.loader.exec_module(pynvml)
    pynvml.checkpoints = machine.checkpoints()
    pynvml.nvmlLib = CDLL(str(machine.folder / VIEW))
    for name, value in machine.environment().items():
        monkeypatch.setenv(name, value)
    return pynvml


class TestNvidiaOnSimulatedDriver(conformance.BackendConformance):
    @pytest.fixture
    def backend(self, simulated):
        return NvidiaBackend(simulated, checkpoints=simulated.checkpoints)

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


def test_limits_bind_and_change(simulated, tmp_path):
    backend = NvidiaBackend(simulated)
    context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
    session = backend.open(context)
    first = session.discover()[0]
    share = Share(0, GIB, first.compute_gflops // 4, 2 * GIB)
    spec = WorkerSpec(
        worker="w", namespace="ns", name="w", workload="w", devices=(first.uuid,), share=share
    )
    prepared = session.prepare(spec)
    assert prepared.enforcement is Enforcement.COOPERATIVE
    assert any(mount.read_only is False for mount in prepared.mounts)
    command = [str(libraries().load), "seconds=30", "kernel_us=500", f"hold={GIB}"]
    with subprocess.Popen(
        command, env=process_environment(os.environ, prepared.env), stdout=subprocess.DEVNULL
    ) as process:
        try:
            assert settled(session, first) == pytest.approx(25, abs=6)
            session.set_limits("w", Share(0, GIB, first.compute_gflops // 2, 2 * GIB))
            assert settled(session, first) == pytest.approx(50, abs=6)
            [row] = session.usage()
        finally:
            process.kill()
    assert row.throttled_seconds_total > 1
    assert row.vram_bytes == GIB + (300 << 20)
    session.release("w")
    assert not (tmp_path / "native" / "workers" / "w").exists()
    session.close()


def settled(session, device):
    time.sleep(1.2)
    session.usage()
    time.sleep(1.2)
    return 100 * session.usage()[0].compute_gflops / device.compute_gflops
