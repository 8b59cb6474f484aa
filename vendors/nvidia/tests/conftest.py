"""A stand-in for ``pynvml``: machines in memory, with the module's own names."""

# ruff: noqa: N801, N802 - the names are NVML's

import importlib.util
import sys
from ctypes import CDLL
from types import SimpleNamespace
from typing import Any

import pytest

from tensorfusion.model.hardware import find_card
from tensorfusion.testing.clock import FakeClock

NEWEST = {"cuda_version": 13000, "driver_version": "580.65.06"}
GIB = 1 << 30


class NVMLError(Exception):
    def __init__(self, value: int, message: str = "") -> None:
        super().__init__(message or f"error {value}")
        self.value = value


class NVMLError_LibraryNotFound(NVMLError):
    """The class by whose name the backend finds its words."""


NOT_SUPPORTED, NOT_FOUND, GPU_IS_LOST = 3, 6, 15


class FakeDevice:
    def __init__(self, index: int, name: str, gib: int) -> None:
        self.index, self.name, self.total = index, name, gib * GIB
        self.uuid = f"GPU-{index:08x}-0000-4000-8000-000000000000"
        self.bus = f"00000000:{index + 1:02X}:00.0"
        self.lost = False
        self.mig = [0, 0]
        self.energy_millijoules = 1_000_000
        self.links: dict[int, Any] = {}
        self.compute: list[Any] = []
        self.samples: list[Any] = []


class FakeNvml:
    """What the backend calls of ``pynvml``; a function that is missing here is not supported."""

    NVMLError = NVMLError
    NVML_ERROR_GPU_IS_LOST = GPU_IS_LOST
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_NVLINK_DEVICE_TYPE_SWITCH = 2

    def __init__(self, *devices: FakeDevice) -> None:
        self.devices = list(devices)
        self.inits = 0

    def nvmlInit(self):
        self.inits += 1

    def nvmlSystemGetDriverVersion(self):
        return b"570.86.15"

    def nvmlDeviceGetCount(self):
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._alive(self.devices[index])

    def nvmlDeviceGetName(self, device):
        return device.name

    def nvmlDeviceGetUUID(self, device):
        return device.uuid

    def nvmlDeviceGetMinorNumber(self, device):
        return device.index

    def nvmlDeviceGetPciInfo(self, device):
        return SimpleNamespace(busId=device.bus.encode())

    def nvmlDeviceGetMigMode(self, device):
        return device.mig

    def nvmlDeviceGetMemoryInfo(self, device):
        used = sum(p.usedGpuMemory or 0 for p in self._alive(device).compute)
        return SimpleNamespace(total=device.total, used=used, free=device.total - used)

    def nvmlDeviceGetUtilizationRates(self, device):
        self._alive(device)
        return SimpleNamespace(gpu=min(100, sum(s.smUtil for s in device.samples)), memory=0)

    def nvmlDeviceGetTemperature(self, device, sensor):
        return 41

    def nvmlDeviceGetPowerUsage(self, device):
        return 61_500

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        device.energy_millijoules += 1_000
        return device.energy_millijoules

    def nvmlDeviceGetClockInfo(self, device, clock):
        return 1410

    def nvmlDeviceGetNvLinkState(self, device, link):
        return int(link in device.links)

    def nvmlDeviceGetNvLinkVersion(self, device, link):
        return device.links[link].version

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, device, link):
        return 2 if device.links[link].peer is None else 0

    def nvmlDeviceGetNvLinkRemotePciInfo(self, device, link):
        return SimpleNamespace(busId=device.links[link].peer.bus.encode())

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return self._alive(device).compute

    def nvmlDeviceGetProcessUtilization(self, device, since):
        fresh = [sample for sample in device.samples if sample.timeStamp > since]
        if not fresh:
            raise NVMLError(NOT_FOUND, "Not Found")
        return fresh

    def _alive(self, device):
        if device.lost:
            raise NVMLError(GPU_IS_LOST, "GPU is lost")
        return device


def make_nvml(name: str = "NVIDIA A100-SXM4-80GB", gib: int = 80, count: int = 2) -> FakeNvml:
    return FakeNvml(*(FakeDevice(index, name, gib) for index in range(count)))


def join(a: FakeDevice, b: FakeDevice, *links: int, version: int = 4) -> None:
    """Put NVLinks between two devices."""
    for link in links:
        a.links[link] = SimpleNamespace(peer=b, version=version)
        b.links[link] = SimpleNamespace(peer=a, version=version)


def join_switch(device: FakeDevice, count: int, version: int = 6) -> None:
    """Put NVLinks from a device to a switch."""
    for link in range(count):
        device.links[link] = SimpleNamespace(peer=None, version=version)


class FakeProc:
    """A folder of processes, as the kernel writes it."""

    def __init__(self, path) -> None:
        self.path = path

    def add(self, pid: int, *, environ: str = "", cgroup: str = "0::/\n", started: int = 100):
        folder = self.path / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        fields = ["R", *["0"] * 18, str(started), "0"]
        folder.joinpath("stat").write_text(f"{pid} (my (odd) name) {' '.join(fields)}")
        folder.joinpath("environ").write_text(environ)
        folder.joinpath("cgroup").write_text(cgroup)


@pytest.fixture
def nvml():
    return make_nvml()


@pytest.fixture
def machine(tmp_path):
    """Everything a test builds machines from."""
    return SimpleNamespace(
        make=make_nvml,
        device=FakeDevice,
        library=FakeNvml,
        join=join,
        join_switch=join_switch,
        error=NVMLError,
        missing=NVMLError_LibraryNotFound,
        clock=FakeClock(),
        proc=FakeProc(tmp_path / "proc"),
        sysfs=tmp_path / "sys",
    )


@pytest.fixture
def cards():
    """What a simulated machine has; a module or a test may say otherwise."""
    return ("A100_SXM_80G", "A100_SXM_80G")


@pytest.fixture
def simulated_nvml(cards, tmp_path, monkeypatch):
    """A copy of nvidia-ml-py that talks to a simulated machine, with the variables of its programs."""
    from tensorfusion_native.libraries import VIEW, libraries
    from tensorfusion_native.simulated_machine import SimulatedMachine, device_uuid

    found = [(device_uuid("test", i, name), find_card(name)) for i, name in enumerate(cards)]
    machine = SimulatedMachine.create(tmp_path / "machine", found, libraries(), settings=NEWEST)
    machine.management()  # opens the state before nvidia-ml-py does, so that it needs no variables
    spec = importlib.util.find_spec("pynvml")
    pynvml = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)  # it looks itself up there
    spec.loader.exec_module(pynvml)
    pynvml.nvmlLib = CDLL(str(machine.folder / VIEW))
    pynvml.checkpoints = machine.checkpoints
    pynvml.environment = machine.environment()
    return pynvml
