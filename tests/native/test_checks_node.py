"""Many workers of one node: registered, found again, and gone without a trace."""

import os
from pathlib import Path

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.spi.backend import NodeContext, Share, WorkerSpec
from tensorfusion_native.libraries import libraries
from tensorfusion_native.workers import WorkerRecord, Workers
from tensorfusion_simulated.backend import SimulatedBackend

SETTINGS = {
    "fidelity": "driver",
    "nodes": [{"name": "sim", "gpus": [{"model": "A100_SXM_80G", "count": 8}]}],
}
WORKERS = 256


@pytest.fixture
def open_session(build, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))

    def open_():
        backend = SimulatedBackend()
        backend.nodes(SETTINGS)
        return backend.open(
            NodeContext(node="sim", state_dir=tmp_path, clock=SystemClock(), settings=SETTINGS)
        )

    return open_


def test_workers_on_eight_devices_are_registered_once_and_found_again(open_session, tmp_path):
    session = open_session()
    devices = tuple(device.uuid for device in session.discover())
    share = Share(1000, 1 << 30, 1000, 1 << 30)
    specs = [
        WorkerSpec(
            worker=f"w{number}", namespace="ns", name=f"w{number}", workload="w",
            devices=devices, share=share,
        )
        for number in range(WORKERS)
    ]  # fmt: skip
    first = [session.prepare(spec) for spec in specs]
    files = sorted(tmp_path.glob("native/workers/*/limits"))
    written = [path.stat().st_mtime_ns for path in files]
    again = [session.prepare(spec) for spec in specs]
    session.close()
    later = open_session()

    assert len(devices) == 8
    assert again == first
    assert [path.stat().st_mtime_ns for path in files] == written
    assert list(later.workers()) == specs
    assert [later.prepare(spec) for spec in specs] == first
    assert len(later.usage()) == WORKERS * 8
    later.close()


def own_bytes():
    """Memory of this process that is its own, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith("RssAnon:")).split()[1])


def test_workers_that_come_and_go_leave_no_files_and_no_memory(build, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORFUSION_NATIVE_BUILD", str(build))
    workers = Workers(tmp_path / "workers")
    before, held = len(os.listdir("/proc/self/fd")), 0
    for number in range(300):
        if number == 50:
            held = own_bytes()
        workers.put(WorkerRecord(name=f"w{number}", devices=["GPU-0"], vram_bytes=1 << 30))
        assert workers.environment(f"w{number}", libraries())["TENSORFUSION_WORKER"] == f"w{number}"
        workers.remove(f"w{number}")

    assert list((tmp_path / "workers").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert own_bytes() - held < 1 << 20
