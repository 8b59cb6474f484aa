"""A simulated machine: a folder with its configuration and the state that all its processes share."""

import hashlib
import os
import shutil
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.model.hardware import Card
from tensorfusion_native.checkpoint import Checkpoints
from tensorfusion_native.libraries import VIEW, Libraries
from tensorfusion_native.management import Management

NAMESPACE = uuids.UUID("9a0a3a34-6b64-4f0c-93a6-5b6f1b8f3f5d")
CONTEXT_BYTES = 300 << 20
"""What the simulated driver takes for a context, as a current driver does on a large card."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def device_uuid(place: str, index: int, model: str) -> str:
    """Name a simulated device: the same for the same place and model, ever after."""
    return f"GPU-{uuids.uuid5(NAMESPACE, f'{place}/{index}/{model}')}"


@dataclass(frozen=True, slots=True)
class SimulatedMachine:
    """What a process needs to run on the machine, and what its owner needs to look at it.

    The state is named after the configuration, the driver's build and the machine's start: its times are those of
    the kernel's monotonic clock, which begins anew with every start.
    """

    folder: Path
    state: Path
    config: Path
    libraries: Libraries
    time: str = "wall"

    @classmethod
    def create(
        cls,
        folder: Path,
        cards: Sequence[tuple[str, Card]],
        libraries: Libraries,
        *,
        time: str = "wall",
        settings: Mapping[str, object] | None = None,
    ) -> "SimulatedMachine":
        """Describe the machine on disk, or find it as described.

        Args:
            folder: Made if missing.
            cards: uuid and model of each device.
            libraries: The built files.
            time: ``wall``, or ``virtual`` for a clock that only moves while everyone waits.
            settings: Further settings of the machine, by the simulator's names.
        """
        lines = [f"{key}={value}" for key, value in (settings or {}).items()]
        lines.append(f"virtual_time={int(time == 'virtual')}")
        for uuid, card in cards:
            lines += [
                "[device]",
                f"uuid={uuid}",
                f"name={card.full_model}",
                f"memory_bytes={card.vram_bytes}",
                f"context_bytes={CONTEXT_BYTES}",
                f"sms={card.multiprocessors}",
            ]
            if card.geometry is not None and card.geometry.divides_memory:
                lines.append(f"slots={card.geometry.slots}")
        text = "\n".join(lines) + "\n"
        # Another build of the driver may keep its state differently.
        build = (libraries.simulated / VIEW).read_bytes()
        key = hashlib.sha256((text + BOOT_ID.read_text()).encode() + build).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        state, config = folder / f"state-{key}", folder / f"config-{key}"
        if not config.exists():
            for old in (*folder.glob("state-*"), *folder.glob("config-*")):
                old.unlink(missing_ok=True)
            part = config.with_suffix(f".{os.getpid()}")
            part.write_text(text)
            os.replace(part, config)
        return cls(folder, state, config, libraries, time)

    @classmethod
    def find(cls, folder: Path, libraries: Libraries) -> "SimulatedMachine | None":
        """Find a machine that some process has used; None when nobody has."""
        for config in folder.glob("config-*"):
            state = folder / config.name.replace("config-", "state-")
            if state.exists():
                return cls(folder, state, config, libraries)
        return None

    def environment(self) -> dict[str, str]:
        """The variables that put a process on the machine."""
        return {
            "LD_LIBRARY_PATH": str(self.libraries.simulated),
            "TF_SIM_STATE": str(self.state),
            "TF_SIM_CONFIG": str(self.config),
            "TF_SIM_TIME": self.time,
        }

    def management(self) -> Management:
        """Look at the machine from this process.

        The library keeps one machine per copy of itself, so each machine has a copy of its own.
        """
        return Management(self._view(), self.state, self.config)

    def checkpoints(self) -> Checkpoints:
        """The driver's checkpoint calls, for the machine's processes."""
        return Checkpoints(self._view(), self.state, self.config)

    def _view(self) -> Path:
        original = self.libraries.simulated / VIEW
        copy = self.folder / VIEW
        if not copy.exists() or copy.read_bytes() != original.read_bytes():
            part = self.folder / f"{VIEW}.{os.getpid()}"
            shutil.copyfile(original, part)
            os.replace(part, copy)
        return copy
