"""The two files of a worker, from outside: create them, write limits, read what is used.

The owner (a hypervisor or a launcher) makes a folder per worker with ``limits`` and ``ledger``, and gives the tenant
the folder by ``TENSORFUSION_WORKER_DIR``. ``limits`` may belong to another user than the tenant: it is only read there.

What is done to the files is compiled, `native/owner/owner.h`: memory order, checksum and locks are those of the limiter.
"""

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorfusion_native import layout
from tensorfusion_native.libraries import compiled
from tensorfusion_native.states import DeviceUse, Place, States, decode_state

WORKER_VARIABLE = "TENSORFUSION_WORKER_DIR"
FAULT_POLICY_VARIABLE = "TENSORFUSION_FAULT_POLICY"
FULL_POLICIES = {
    "deny": layout.FULL_DENY,
    "wait": layout.FULL_WAIT,
    "spill": layout.FULL_SPILL,
    "evict": layout.FULL_EVICT,
}
"""What an allocation within the cap does when the card is full, by name."""

LONGEST_WAIT_SECONDS = 24 * 3600
_FILES = (("limits", 0o644), ("ledger", 0o666))


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """What a worker may use of one device.

    Attributes:
        uuid: The driver's name of the device, ``GPU-...``.
        vram_bytes: Cap of all allocations together; 0 is no cap.
        compute_ratio: Share of the device's time, above 0 up to 1; 1 is no cap.
        context_bytes: What the driver takes for one context; charged for each.
        contended: Other workers were active in the last measurement.
        measured_busy_ns: Busy time so far, as the owner measures it; with ``measured_at_ns``.
        measured_at_ns: When that was, ``CLOCK_MONOTONIC``; 0 leaves measuring to the worker.
        spill_bytes: Cap of what may be in host memory instead, where the policy is to spill.
    """

    uuid: str
    vram_bytes: int = 0
    compute_ratio: float = 1.0
    context_bytes: int = 0
    contended: bool = False
    measured_busy_ns: int = 0
    measured_at_ns: int = 0
    spill_bytes: int = 0

    def __post_init__(self) -> None:
        if not 0 < len(self.uuid.encode()) < 48:
            raise ValueError(f"device limit: uuid {self.uuid!r} must have 1 to 47 bytes")
        if not 0 < self.compute_ratio <= 1:
            raise ValueError(
                f"device limit {self.uuid}: compute_ratio {self.compute_ratio} must be above 0, up to 1"
            )
        for name in (
            "vram_bytes",
            "context_bytes",
            "measured_busy_ns",
            "measured_at_ns",
            "spill_bytes",
        ):
            if not 0 <= getattr(self, name) < 2**63:
                raise ValueError(
                    f"device limit {self.uuid}: {name} {getattr(self, name)} must be 0 to 2^63-1"
                )

    def row(self) -> dict[str, object]:
        """The row as the layout declares it."""
        return {
            "uuid": self.uuid.encode(),
            "vram_bytes": self.vram_bytes,
            "context_bytes": self.context_bytes,
            "spill_bytes": self.spill_bytes,
            "compute_ppm": max(1, round(self.compute_ratio * layout.WHOLE_DEVICE_PPM)),
            "contended": self.contended,
            "measured_busy_ns": self.measured_busy_ns,
            "measured_at_ns": self.measured_at_ns,
        }


@dataclass(frozen=True, slots=True)
class FullPolicy:
    """What an allocation within the cap does when the card is full.

    Attributes:
        name: deny, wait, spill or evict.
        wait_seconds: How long it may wait under wait and evict.
    """

    name: str = "deny"
    wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in FULL_POLICIES:
            raise ValueError(f"full policy {self.name!r} must be one of {', '.join(FULL_POLICIES)}")
        if not 0 <= self.wait_seconds <= LONGEST_WAIT_SECONDS:
            raise ValueError(
                f"full policy: wait_seconds {self.wait_seconds} must be 0 to {LONGEST_WAIT_SECONDS}"
            )


DENY = FullPolicy()


@dataclass(frozen=True, slots=True)
class Faults:
    """Counters of faults: work let through, held back, dead processes recovered, unreadable limits."""

    fail_open: int
    fail_closed: int
    recovered: int
    bad_limits: int


class WorkerRegion:
    """The owner's handle on one worker's files.

    Rows keep their places for the life of a worker: change a row's values, add rows at the end, never reorder.

    Concurrency: one owner writes at a time; readers need nothing.
    """

    def __init__(self, folder: Path, maps: Sequence[mmap.mmap]) -> None:
        self.folder = folder
        self._native = compiled()
        limits, ledger = maps
        # Each keeps its mapping alive, and so does what `pointer` gives out.
        self._limits = self._native.ffi.from_buffer("struct tf_limits *", limits)
        self._ledger = self._native.ffi.from_buffer("struct tf_ledger *", ledger)

    @classmethod
    def create(
        cls,
        folder: Path,
        devices: Sequence[DeviceLimit],
        *,
        closed: bool = False,
        heartbeat: bool = False,
        full: FullPolicy = DENY,
    ) -> Self:
        """Make a worker's folder and files.

        Args:
            folder: Made if missing; must not hold a worker's files yet.
            devices: One row per device.
            closed: On a fault of ours work is held back instead of let through.
            heartbeat: Silence of the owner for 2.5 s is a fault; `beat` must be called.
            full: What an allocation within the cap does when the card is full.

        Raises:
            ValueError: More devices than the layout has rows for.
            FileExistsError: The folder has files of a worker.
        """
        folder.mkdir(parents=True, exist_ok=True)
        native = compiled()
        # The ledger first: whoever sees limits can rely on both.
        maps = [
            _new_file(folder / name, native.size(name), mode) for name, mode in reversed(_FILES)
        ]
        region = cls(folder, maps[::-1])
        region.beat()
        region.write(devices, closed=closed, heartbeat=heartbeat, full=full)
        native.lib.tf_owner_create(region._limits, region._ledger)
        return region

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what another owner created, after a restart.

        Raises:
            FileNotFoundError: There are no such files.
            ValueError: They have another layout; names the file and both versions.
        """
        native = compiled()
        maps = []
        for name, _ in _FILES:
            path, size = folder / name, native.size(name)
            with path.open("r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    raise ValueError(f"{path}: shorter than the {size} bytes of the layout")
                maps.append(mmap.mmap(file.fileno(), size))
        region = cls(folder, maps)
        wrong = native.lib.tf_owner_check(region._limits, region._ledger)
        if wrong:
            found = (region._limits, region._ledger)[wrong - 1]
            raise ValueError(
                f"{folder / _FILES[wrong - 1][0]}: version {found.version} hash"
                f" {found.layout_hash}, expected version {layout.LAYOUT_VERSION} hash"
                f" {layout.LAYOUT_HASH}"
            )
        return region

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; they stay."""
        self._limits = self._ledger = None

    def environment(self) -> dict[str, str]:
        """Tell the variables that put a process under these limits, apart from the preload itself."""
        return {WORKER_VARIABLE: str(self.folder)}

    def write(
        self,
        devices: Sequence[DeviceLimit],
        *,
        closed: bool = False,
        heartbeat: bool = False,
        full: FullPolicy = DENY,
    ) -> None:
        """Put limits in force; held threads are woken, the others read them at their next call.

        Raises:
            ValueError: More devices than the layout has rows for.
        """
        if len(devices) > layout.DEVICES:
            raise ValueError(
                f"worker {self.folder}: {len(devices)} devices, at most {layout.DEVICES}"
            )
        wanted = {
            "device_count": len(devices),
            "policy": closed,
            "heartbeat_needed": heartbeat,
            "full_policy": FULL_POLICIES[full.name],
            "full_wait_ms": round(full.wait_seconds * 1000),
            "devices": [device.row() for device in devices],
        }
        self._native.lib.tf_owner_write(
            self._open(self._limits), self._native.ffi.new("struct tf_limits *", wanted)
        )

    def beat(self, now_ns: int = 0) -> None:
        """Give a sign of life; ``now_ns`` of ``CLOCK_MONOTONIC``, for who has just asked it."""
        now_ns = now_ns or time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._native.lib.tf_owner_beat(self._open(self._limits), now_ns)

    def use(self, row: int) -> DeviceUse:
        """Read one device's shared state.

        Raises:
            IndexError: There is no such row.
            ValueError: The region is closed.
        """
        return decode_state(States([self.state(row)]).take()[0])

    def wanted(self, row: int) -> int:
        """Bytes that living processes wait for on a device because the card is full.

        A process that was killed while it waited stays in `DeviceUse.wanted_bytes` until another
        one notices, so who makes room for others asks here. One of another pid namespace is
        believed to live.

        Raises:
            IndexError: There is no such row.
            ValueError: The region is closed.
        """
        self._check(row)
        namespace = os.stat("/proc/self/ns/pid").st_ino
        wanted: int = self._native.lib.tf_owner_wanted(self._open(self._ledger), row, namespace)
        return wanted

    def pids(self) -> list[int]:
        """List the attached processes."""
        found = self._native.ffi.new("uint32_t[]", layout.PROCESSES)
        count = self._native.lib.tf_owner_pids(self._open(self._ledger), found)
        return list(found[0:count])

    def faults(self) -> Faults:
        """Read the counters of faults."""
        ledger = self._open(self._ledger)
        return Faults(ledger.fail_open, ledger.fail_closed, ledger.recovered, ledger.bad_limits)

    def state(self, row: int) -> Place:
        """Where one device's shared state lies, for `States`.

        Raises:
            IndexError: There is no such row.
            ValueError: The region is closed.
        """
        self._check(row)
        ledger = self._open(self._ledger)
        return Place(self._native.ffi.addressof(ledger.states, row), ledger)

    def _check(self, row: int) -> None:
        if not 0 <= row < layout.DEVICES:
            raise IndexError(f"worker {self.folder}: row {row} must be 0 to {layout.DEVICES - 1}")

    def _open(self, file: Any) -> Any:
        if file is None:
            raise ValueError(f"worker {self.folder}: its files are closed")
        return file


def _new_file(path: Path, size: int, mode: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
