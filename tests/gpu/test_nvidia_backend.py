"""The NVIDIA backend on the device's own management library, beside what the driver itself tells programs."""

import time

import pytest
from gpu.target import follow
from native.machine import GIB, lines

from tensorfusion.clock import SystemClock
from tensorfusion.spi.backend import Enforcement, NodeContext, Share, WorkerSpec
from tensorfusion_nvidia.backend import NvidiaBackend

UTILIZATION_SECONDS = 3.0
"""NVML tells the utilization of the last sample period, which lasts up to a second (its API reference)."""


@pytest.fixture
def target(open_target):
    return open_target(clock="wall")


@pytest.fixture
def session(pynvml, tmp_path):
    """The first session on the target's library."""
    context = NodeContext(node="here", state_dir=tmp_path, clock=SystemClock())
    session = NvidiaBackend(pynvml).open(context)
    yield session
    session.close()


def test_discovery_says_what_the_driver_says(session, target):
    device = session.discover()[0]
    seen = target.run("init(); say(bytes=total(), multiprocessors=attribute(MULTIPROCESSORS))")

    assert device.uuid == target.uuid
    assert device.driver_version == target.place.management.driver_version()
    assert device.pci_bus_id
    assert device.healthy or device.message
    # NVML counts what the driver reserves for itself, programs do not see it.
    assert 0.9 * device.vram_bytes <= seen["bytes"] <= device.vram_bytes
    assert seen["multiprocessors"] > 0
    if device.multiprocessors:
        assert device.multiprocessors == seen["multiprocessors"]


def test_metrics_follow_a_program(session, target):
    idle = session.metrics()[0]
    program = target.program("init(); kernel = spin(); hold(1 << 30); work(1000, 60, kernel)")
    assert '"code": 0' in program.stdout.readline()
    held = session.metrics()[0]
    follow(program)
    deadline = time.monotonic() + UTILIZATION_SECONDS
    busy = session.metrics()[0]
    while busy.utilization_ratio < 0.5 and time.monotonic() < deadline:
        time.sleep(0.1)
        busy = session.metrics()[0]

    assert held.vram_used_bytes - idle.vram_used_bytes >= GIB
    assert busy.utilization_ratio >= 0.5
    assert busy.temperature_celsius is not None
    assert busy.energy_joules_total is None or busy.energy_joules_total >= idle.energy_joules_total


def test_a_prepared_worker_is_metered_and_its_memory_capped(session, target):
    device = session.discover()[0]
    share = Share(0, GIB, device.compute_gflops // 4, 2 * GIB)
    spec = WorkerSpec(
        worker="w", namespace="ns", name="w", workload="w", devices=(device.uuid,), share=share
    )
    prepared = session.prepare(spec)
    assert prepared.enforcement is Enforcement.COOPERATIVE

    program = target.program("init(); say(code=alloc(3 << 30)[0]); hold(1 << 30)", prepared.env)
    codes = [program.stdout.readline() for _ in range(2)]
    [row] = session.usage()
    follow(program)
    lines(program)
    session.release("w")

    assert codes == ['{"code": 2}\n', '{"code": 0}\n']
    assert row.worker == "w"
    assert row.oom_total == 1
    assert GIB <= row.vram_bytes <= 2 * GIB
    assert session.workers() == []
