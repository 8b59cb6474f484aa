"""The conformance suite on the NVIDIA backend with a stand-in for the management library."""

import pytest

from tensorfusion.testing.conformance import BackendConformance
from tensorfusion_nvidia.backend import NvidiaBackend


class TestNvidiaOnFakeLibrary(BackendConformance):
    stand_in = True

    @pytest.fixture
    def backend(self, machine):
        nvml = machine.make(count=4)
        for device in nvml.devices:
            machine.join_switch(device, 12, version=4)
        return NvidiaBackend(nvml, proc=machine.proc.path, sysfs=machine.sysfs, limiter=False)
