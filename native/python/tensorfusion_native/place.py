"""Where programs run: a real device of this machine, or a simulated one that all runs of a user share."""

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.model.hardware import Card, find_card
from tensorfusion_native.libraries import Libraries
from tensorfusion_native.management import Device, Management
from tensorfusion_native.simulated_machine import CONTEXT_BYTES, SimulatedMachine, device_uuid

RUN_VARIABLE = "TENSORFUSION_RUN_DIR"
DEFAULT_MODEL = "A100_SXM_80G"


@dataclass(frozen=True, slots=True)
class Place:
    """A device to run on.

    Attributes:
        card: Its entry in the hardware catalogue; None when the model is not there.
        context_bytes: What the driver takes for a context; 0 where it is not known.
        machine: The simulated machine; None on a real device.
    """

    device: Device
    card: Card | None
    management: Management
    context_bytes: int = 0
    machine: SimulatedMachine | None = None

    def environment(self) -> dict[str, str]:
        """The variables that let a process see this device and no other."""
        visible = {"CUDA_VISIBLE_DEVICES": self.device.uuid}
        return visible if self.machine is None else {**self.machine.environment(), **visible}


def run_folder() -> Path:
    """The folder of this user's runs, readable by nobody else.

    Raises:
        ConfigError: Another user made it, or others may write it.
    """
    given = os.environ.get(RUN_VARIABLE)
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(given) if given else Path(base) / f"tensorfusion-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise ConfigError(f"folder of runs {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ConfigError(
            f"folder of runs {folder} must belong to you and be writable by you alone;"
            f" remove it, or name another with {RUN_VARIABLE}"
        )
    return folder


def real_management() -> tuple[Management | None, str]:
    """Look for a real GPU; without one, the reason."""
    try:
        management = Management()
        if management.devices():
            return management, ""
    except BackendError as error:
        return None, str(error)
    return None, "the NVIDIA driver has no device"


def real_place(management: Management, index: int) -> Place:
    """Choose a real device by its ordinal.

    Raises:
        ConfigError: There is no such device.
    """
    devices = management.devices()
    if index >= len(devices):
        raise ConfigError(f"--gpu {index}: this machine has {len(devices)}, numbered from 0")
    device = devices[index]
    return Place(device, known_card(device.name), management)


def simulated_place(
    folder: Path, model: str, index: int, libraries: Libraries, *, time: str = "wall"
) -> Place:
    """Choose a device of the simulated machine of a model; it has four.

    Raises:
        ConfigError: The model is not in the catalogue, or the index is too large.
    """
    if index >= MOST_DEVICES:
        raise ConfigError(f"--gpu {index}: a simulated machine has 0 to {MOST_DEVICES - 1}")
    card = find_card(model)
    cards = [(device_uuid("run", i, card.model), card) for i in range(MOST_DEVICES)]
    machine = SimulatedMachine.create(
        folder / "simulated" / card.model, cards, libraries, time=time
    )
    management = machine.management()
    return Place(management.devices()[index], card, management, CONTEXT_BYTES, machine)


MOST_DEVICES = 4
"""Devices of the simulated machine that `tensorfusion run` uses."""


def known_card(name: str) -> Card | None:
    """Find the catalogue's card of a driver's product name, with or without the brand in front."""
    for candidate in (name, name.removeprefix("NVIDIA ")):
        try:
            return find_card(candidate)
        except ConfigError:
            continue
    return None
