"""Devices as NVML tells them, in our units."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.model.hardware import Card, find_card
from tensorfusion.spi.backend import DeviceInfo, DeviceMetrics
from tensorfusion_nvidia.nvml import VENDOR, Nvml, scaled, text

PREFIX = re.compile(r"^(NVIDIA|Tesla|Quadro)\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """A device with its handle.

    Attributes:
        handle: NVML's own reference; valid as long as the library is initialised.
        minor: Number of ``/dev/nvidia<minor>``, None where the driver does not tell.
    """

    handle: Any
    info: DeviceInfo
    minor: int | None


def catalogue_card(name: str) -> Card | None:
    """Find the catalogue's card of a driver's product name, with or without the brand in front."""
    for candidate in (name, PREFIX.sub("", name)):
        try:
            return find_card(candidate)
        except ConfigError:
            continue
    return None


def find_devices(nvml: Nvml, sysfs: Path) -> list[Found]:
    """List the devices in index order.

    Raises:
        BackendError: The driver does not answer at all. A device that does not is left out.
    """
    driver = text(nvml.ask("nvmlSystemGetDriverVersion") or "")
    found = []
    for index in range(int(nvml.call("nvmlDeviceGetCount"))):
        try:
            handle = nvml.call("nvmlDeviceGetHandleByIndex", index)
            found.append(_find(nvml, handle, index, driver, sysfs))
        except BackendError:
            # A lost device cannot tell its uuid; the session reports it from what it knew.
            continue
    return found


def _find(nvml: Nvml, handle: Any, index: int, driver: str, sysfs: Path) -> Found:
    name = text(nvml.call("nvmlDeviceGetName", handle))
    card = catalogue_card(name)
    cut, will_be = mig_mode(nvml, handle)
    problem = _problem(name, card, cut=cut)
    bus_id = text(scaled(nvml.ask("nvmlDeviceGetPciInfo", handle), lambda pci: pci.busId) or "")
    info = DeviceInfo(
        uuid=text(nvml.call("nvmlDeviceGetUUID", handle)),
        index=index,
        vendor=VENDOR,
        model=card.model if card else PREFIX.sub("", name).replace(" ", "_"),
        full_model=name,
        compute_gflops=card.compute_gflops if card else 0,
        vram_bytes=int(nvml.call("nvmlDeviceGetMemoryInfo", handle).total),
        numa_node=_numa_node(sysfs, bus_id),
        driver_version=driver,
        multiprocessors=card.multiprocessors if card else None,
        pci_bus_id=bus_id,
        partitioned=cut and not problem,
        healthy=not problem,
        message=problem or _pending(cut=cut, will_be=will_be),
    )
    return Found(handle, info, nvml.ask("nvmlDeviceGetMinorNumber", handle))


def mig_mode(nvml: Nvml, handle: Any) -> tuple[bool, bool]:
    """Whether a device is in MIG mode, and whether it will be after its next reset."""
    told = nvml.ask("nvmlDeviceGetMigMode", handle)
    return (bool(told[0]), bool(told[1])) if told else (False, False)


def _problem(name: str, card: Card | None, *, cut: bool) -> str:
    """Say why a device must not take work; empty when it may."""
    if card is None:
        return (
            f"{name} is not in the hardware catalogue, so its compute rate is not known;"
            " add it to core/tensorfusion/model/hardware.toml"
        )
    if cut and card.geometry is None:
        return (
            f"MIG mode is on, and the hardware catalogue does not know how {name} is cut;"
            " turn it off with nvidia-smi -mig 0"
        )
    return ""


def _pending(*, cut: bool, will_be: bool) -> str:
    """Say what the next reset changes; empty when nothing."""
    if cut == will_be:
        return ""
    return f"MIG mode is {'on' if cut else 'off'} until the device is reset: nvidia-smi --gpu-reset"


def _numa_node(sysfs: Path, bus_id: str) -> int | None:
    """Read the kernel's NUMA node of a PCI device; it writes -1 where there is none.

    NVML prints the domain with eight digits, sysfs with four.
    """
    domain, _, rest = bus_id.lower().partition(":")
    path = sysfs / "bus" / "pci" / "devices" / f"{domain[-4:]}:{rest}" / "numa_node"
    try:
        node = int(path.read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def read_metrics(nvml: Nvml, device: Found, now: float) -> DeviceMetrics:
    """Read one device; what it cannot tell is None.

    Raises:
        DeviceLost: The device fell off the bus.
    """
    handle = device.handle
    sensor = nvml.constant("NVML_TEMPERATURE_GPU", 0)
    clock = nvml.constant("NVML_CLOCK_SM", 1)
    return DeviceMetrics(
        uuid=device.info.uuid,
        time=now,
        utilization_ratio=scaled(
            nvml.ask("nvmlDeviceGetUtilizationRates", handle), lambda rates: rates.gpu / 100
        ),
        vram_used_bytes=scaled(
            nvml.ask("nvmlDeviceGetMemoryInfo", handle), lambda memory: int(memory.used)
        ),
        temperature_celsius=scaled(nvml.ask("nvmlDeviceGetTemperature", handle, sensor), float),
        power_watts=scaled(
            nvml.ask("nvmlDeviceGetPowerUsage", handle), lambda milliwatts: milliwatts / 1000
        ),
        energy_joules_total=scaled(
            nvml.ask("nvmlDeviceGetTotalEnergyConsumption", handle),
            lambda millijoules: millijoules / 1000,
        ),
        clock_hertz=scaled(
            nvml.ask("nvmlDeviceGetClockInfo", handle, clock), lambda mhz: mhz * 1e6
        ),
    )
