"""The NVIDIA backend, unchanged, on the simulated driver: nvidia-ml-py, the limiter, real processes."""

import os
import subprocess
import sys
import time

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.hypervisor.environment import process_environment
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion.spi.limited import Attachment, TellsAttachment
from tensorfusion.testing import conformance
from tensorfusion_native.libraries import built, libraries
from tensorfusion_nvidia.backend import NvidiaBackend

GIB = 1 << 30
pytestmark = pytest.mark.skipif(not built(), reason="the native part is not built")


@pytest.fixture
def simulated(simulated_nvml, monkeypatch):
    """The same, and programs of this process's environment run there."""
    for name, value in simulated_nvml.environment.items():
        monkeypatch.setenv(name, value)
    return simulated_nvml


class TestNvidiaOnSimulatedDriver(conformance.BackendConformance):
    """Two cards as they come, and one in MIG mode, on which partitions are tried."""

    @pytest.fixture
    def cards(self):
        return ("A100_SXM_80G",) * 3

    @pytest.fixture
    def backend(self, simulated):
        simulated.nvmlInit()
        last = simulated.nvmlDeviceGetHandleByIndex(2)
        assert simulated.nvmlDeviceSetMigMode(last, 1) == 0
        return NvidiaBackend(simulated, checkpoints=simulated.checkpoints())

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


@pytest.mark.parametrize(
    ("limiter", "isolation", "dropped", "expected"),
    [
        (True, "soft", (), Attachment.LIMITED),
        (True, "soft", ("LD_PRELOAD",), Attachment.BYPASSED),
        (True, "shared", (), Attachment.EXEMPT),
        (False, "soft", (), Attachment.EXEMPT),
    ],
)
def test_a_process_past_the_limiter_is_told(
    simulated, tmp_path, limiter, isolation, dropped, expected
):
    context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
    session = NvidiaBackend(simulated, limiter=limiter).open(context)
    assert isinstance(session, TellsAttachment)
    device = session.discover()[0]
    share = Share(0, GIB, device.compute_gflops, 2 * GIB)
    prepared = session.prepare(
        WorkerSpec(
            worker="w",
            namespace="ns",
            name="w",
            workload="w",
            devices=(device.uuid,),
            share=share,
            isolation=isolation,
        )
    )
    environment = process_environment(os.environ, prepared.env)
    program = "import ctypes; print(flush=True); input(); ctypes.CDLL('libcuda.so.1'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={name: value for name, value in environment.items() if name not in dropped},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            process.stdout.readline()
            before = session.attachment("w", process.pid)
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            assert session.attachment("w", process.pid) is expected
        finally:
            process.kill()
    assert before is (Attachment.NONE if expected is Attachment.BYPASSED else expected)
    assert session.attachment("nobody", os.getpid()) is Attachment.EXEMPT
    session.release("w")
    session.close()


def settled(session, device):
    time.sleep(1.2)
    session.usage()
    time.sleep(1.2)
    return 100 * session.usage()[0].compute_gflops / device.compute_gflops
