"""The driver's management library by its C interface: what devices there are and what they do.

Layouts and functions are those of NVML's published ABI. The simulated library has two functions
more: to be told its state file, and to tell the truth about its processes.
"""

import ctypes as c
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tensorfusion.errors import BackendError
from tensorfusion_native.driver_library import open_library

REAL_LIBRARY = "libnvidia-ml.so.1"
_TEMPERATURE_GPU = 0
_CLOCK_SM = 1
_ROWS = 1024


class _Memory(c.Structure):
    _fields_ = (("total", c.c_ulonglong), ("free", c.c_ulonglong), ("used", c.c_ulonglong))


class _Rates(c.Structure):
    _fields_ = (("gpu", c.c_uint), ("memory", c.c_uint))


class _Sample(c.Structure):
    _fields_ = (
        ("pid", c.c_uint),
        ("stamp", c.c_ulonglong),
        ("sm", c.c_uint),
        ("memory", c.c_uint),
        ("encoder", c.c_uint),
        ("decoder", c.c_uint),
    )


class _Process(c.Structure):
    _fields_ = (
        ("pid", c.c_uint),
        ("used", c.c_ulonglong),
        ("gpu_instance", c.c_uint),
        ("compute_instance", c.c_uint),
    )


_TRUTH = struct.Struct("=I?3xQQQ")
"""A row of the simulator's account, in the order of `ProcessTruth`."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device: ordinal, driver's name and uuid, memory in bytes."""

    index: int
    uuid: str
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading; None where the device cannot tell. Base units."""

    utilization_ratio: float | None
    used_bytes: int | None
    temperature_celsius: float | None
    power_watts: float | None
    energy_joules: float | None
    clock_hertz: float | None


class ProcessTruth(NamedTuple):
    """What the simulator knows of a process: bytes held, and nanoseconds in which it kept the device busy."""

    pid: int
    alive: bool
    start_ticks: int
    used_bytes: int
    busy_ns: int


class Management:
    """One initialised management library.

    Args:
        library: Name or path of the shared library.
        state: State file of a simulated machine; None for a real one.
        config: Its configuration.

    Concurrency: NVML may be called from any thread.

    Raises:
        BackendError: The library is missing or its driver does not answer; says why.
    """

    def __init__(
        self,
        library: str | Path = REAL_LIBRARY,
        state: Path | None = None,
        config: Path | None = None,
    ) -> None:
        self._library = open_library("NVML", library, state, config)
        self._handles: dict[int, c.c_void_p] = {}
        """By ordinal; they hold until the library is shut down."""
        code = self._library.nvmlInit_v2()
        if code:
            raise BackendError("NVML", f"{library}: {self._text_of(code)}", code=str(code))

    def driver_version(self) -> str:
        """The driver's version; empty where it is not told."""
        text = c.create_string_buffer(96)
        failed = self._library.nvmlSystemGetDriverVersion(text, len(text))
        return "" if failed else text.value.decode()

    def devices(self) -> list[Device]:
        """List the devices in index order."""
        count = c.c_uint()
        self._check("nvmlDeviceGetCount_v2", self._library.nvmlDeviceGetCount_v2(c.byref(count)))
        return [self._device(index) for index in range(count.value)]

    def read(self, index: int) -> Reading:
        """Read one device."""
        handle = self._handle(index)
        rates, memory = _Rates(), _Memory()
        busy = self._library.nvmlDeviceGetUtilizationRates(handle, c.byref(rates)) == 0
        held = self._library.nvmlDeviceGetMemoryInfo(handle, c.byref(memory)) == 0
        celsius = self._number("nvmlDeviceGetTemperature", handle, _TEMPERATURE_GPU)
        milliwatts = self._number("nvmlDeviceGetPowerUsage", handle)
        millijoules = c.c_ulonglong()
        told = self._library.nvmlDeviceGetTotalEnergyConsumption(handle, c.byref(millijoules)) == 0
        megahertz = self._number("nvmlDeviceGetClockInfo", handle, _CLOCK_SM)
        return Reading(
            utilization_ratio=rates.gpu / 100 if busy else None,
            used_bytes=int(memory.used) if held else None,
            temperature_celsius=None if celsius is None else float(celsius),
            power_watts=None if milliwatts is None else milliwatts / 1e3,
            energy_joules=millijoules.value / 1e3 if told else None,
            clock_hertz=None if megahertz is None else megahertz * 1e6,
        )

    def process_bytes(self, index: int) -> dict[int, int]:
        """Bytes by process id, of the processes with a context on a device."""
        rows, count = (_Process * _ROWS)(), c.c_uint(_ROWS)
        function = self._library.nvmlDeviceGetComputeRunningProcesses_v3
        failed = function(self._handle(index), c.byref(count), rows)
        return {} if failed else {row.pid: int(row.used) for row in rows[: count.value]}

    def process_ratios(self, index: int) -> dict[int, float]:
        """Share of the device's time by process id, 0 to 1, in the driver's last samples."""
        rows, count = (_Sample * _ROWS)(), c.c_uint(_ROWS)
        function = self._library.nvmlDeviceGetProcessUtilization
        failed = function(self._handle(index), rows, c.byref(count), c.c_ulonglong(0))
        if failed:
            return {}
        newest: dict[int, _Sample] = {}
        for row in rows[: count.value]:
            if row.pid not in newest or row.stamp > newest[row.pid].stamp:
                newest[row.pid] = row
        return {pid: min(1.0, row.sm / 100) for pid, row in newest.items()}

    def truth(self, index: int) -> list[ProcessTruth]:
        """What the simulated driver knows of its processes, also of some that ended."""
        rows = c.create_string_buffer(_TRUTH.size * _ROWS)
        found = self._library.tfSimProcesses(c.c_uint(index), rows, c.c_uint(_ROWS))
        if found < 0:
            raise BackendError("simulated driver", f"no device {index}")
        return list(
            map(ProcessTruth._make, _TRUTH.iter_unpack(memoryview(rows)[: found * _TRUTH.size]))
        )

    def _device(self, index: int) -> Device:
        handle, memory = self._handle(index), _Memory()
        texts = []
        for name in ("nvmlDeviceGetUUID", "nvmlDeviceGetName"):
            text = c.create_string_buffer(128)
            self._check(name, getattr(self._library, name)(handle, text, c.c_uint(len(text))))
            texts.append(text.value.decode())
        code = self._library.nvmlDeviceGetMemoryInfo(handle, c.byref(memory))
        self._check("nvmlDeviceGetMemoryInfo", code)
        return Device(index, texts[0], texts[1], int(memory.total))

    def _handle(self, index: int) -> c.c_void_p:
        handle = self._handles.get(index)
        if handle is None:
            handle = c.c_void_p()
            code = self._library.nvmlDeviceGetHandleByIndex_v2(c.c_uint(index), c.byref(handle))
            self._check("nvmlDeviceGetHandleByIndex", code)
            self._handles[index] = handle
        return handle

    def _number(self, function: str, handle: c.c_void_p, *arguments: int) -> int | None:
        value = c.c_uint()
        code = getattr(self._library, function)(handle, *arguments, c.byref(value))
        return None if code else value.value

    def _check(self, function: str, code: int) -> None:
        if code:
            raise BackendError("NVML", f"{function}: {self._text_of(code)}", code=str(code))

    def _text_of(self, code: int) -> str:
        self._library.nvmlErrorString.restype = c.c_char_p
        text: bytes = self._library.nvmlErrorString(code) or b"unknown error"
        return text.decode()
