"""The NVIDIA backend on a real GPU of this machine."""

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.spi.backend import NodeContext
from tensorfusion.testing.conformance import BackendConformance
from tensorfusion_nvidia.backend import NvidiaBackend

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


class TestNvidia(BackendConformance):
    vendor = "nvidia"


def test_driver_tells_utilization_memory_and_power(tmp_path):
    backend = NvidiaBackend()
    works, why = backend.available()
    if not works:
        pytest.skip(f"nvidia has no devices on this machine: {why}")
    session = backend.open(NodeContext(node="here", state_dir=tmp_path, clock=SystemClock()))
    readings = session.metrics()
    assert readings
    for reading in readings:
        assert reading.utilization_ratio is not None
        assert reading.vram_used_bytes is not None
        assert reading.temperature_celsius is not None
