"""The NVIDIA backend on a real GPU of this machine; the conformance suite runs there as well."""

import pytest

from tensorfusion.clock import SystemClock
from tensorfusion.spi.backend import NodeContext
from tensorfusion_nvidia.backend import NvidiaBackend

pytestmark = pytest.mark.gpu


@pytest.fixture
def session(tmp_path):
    backend = NvidiaBackend()
    works, why = backend.available()
    if not works:
        pytest.skip(f"nvidia has no devices on this machine: {why}")
    return backend.open(NodeContext(node="here", state_dir=tmp_path, clock=SystemClock()))


def test_driver_tells_identity_and_memory(session):
    for info in session.discover():
        assert info.uuid.startswith("GPU-")
        assert info.driver_version
        assert info.pci_bus_id
        assert info.healthy or info.message


def test_driver_tells_utilization_and_temperature(session):
    readings = session.metrics()
    assert readings
    for reading in readings:
        assert reading.utilization_ratio is not None
        assert reading.vram_used_bytes is not None
        assert reading.temperature_celsius is not None
