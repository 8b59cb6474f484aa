"""The two files of a worker, from outside: create them, write limits, read what is used.

The owner (a hypervisor or a launcher) makes a folder per worker with ``limits`` and ``ledger``, and gives the tenant
the folder by ``TENSORFUSION_WORKER_DIR``. ``limits`` may belong to another user than the tenant: it is only read there.
"""

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorfusion_native import layout
from tensorfusion_native.processes import start_ticks

WORKER_VARIABLE = "TENSORFUSION_WORKER_DIR"
FAULT_POLICY_VARIABLE = "TENSORFUSION_FAULT_POLICY"
FULL_POLICIES = {
    "deny": layout.FULL_DENY,
    "wait": layout.FULL_WAIT,
    "spill": layout.FULL_SPILL,
    "evict": layout.FULL_EVICT,
}
"""What an allocation within the cap does when the card is full, by name."""

_ROW = struct.Struct("<48sQQQIIQQ")
_BEAT, _BEAT_AT = struct.Struct("<Q"), layout.LIMITS["heartbeat_ns"]
_CLASSES = ("plain", "managed", "pool", "physical", "array", "context", "graph", "spilled")
LONGEST_WAIT_SECONDS = 24 * 3600
_FULL_COUNTERS = (
    "spilled_bytes",
    "spilled_total_bytes",
    "wanted_bytes",
    "full_denied",
    "full_waits",
    "full_waited_ns",
    "evict_requests",
)
_FUTEX_WAKE = 1
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
"""Number of the futex system call by machine (the kernel's system call tables)."""


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

    def pack(self) -> bytes:
        """Lay the row out as the limiter reads it."""
        return _ROW.pack(
            self.uuid.encode(),
            self.vram_bytes,
            self.context_bytes,
            self.spill_bytes,
            max(1, round(self.compute_ratio * layout.WHOLE_DEVICE_PPM)),
            int(self.contended),
            self.measured_busy_ns,
            self.measured_at_ns,
        )


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
class DeviceUse:
    """What a worker uses of one device; the tenant can write these figures, so check them against the driver's.

    Attributes:
        used_bytes: All allocations of all its processes.
        peak_bytes: The most it ever was.
        denied: Allocations refused at the cap.
        charged_ns: Device time charged, as the limiter estimates it.
        launches: Launches admitted under a share.
        throttled_ns: Time that its threads were held back, summed.
        trim_ratio: Measured over charged device time.
        spilled_bytes: The part of ``used_bytes`` that is in host memory.
        spilled_total_bytes: Bytes that ever went there.
        wanted_bytes: What its threads wait for now because the card is full.
        full_denied: Allocations within the cap, refused because the card was full.
        full_waits: Allocations that waited for room.
        full_waited_ns: How long, summed over threads.
        evict_requests: Allocations for which the owner was asked to make room.
    """

    used_bytes: int
    peak_bytes: int
    denied: int
    charged_ns: int
    launches: int
    throttled_ns: int
    trim_ratio: float
    spilled_bytes: int = 0
    spilled_total_bytes: int = 0
    wanted_bytes: int = 0
    full_denied: int = 0
    full_waits: int = 0
    full_waited_ns: int = 0
    evict_requests: int = 0


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """Bytes of one process, per device row, by class: plain, managed, pool, physical, array, context, graph, spilled."""

    pid: int
    devices: tuple[dict[str, int], ...]


@dataclass(frozen=True, slots=True)
class Faults:
    """Counters of faults: work let through, held back, dead processes recovered, unreadable limits."""

    fail_open: int
    fail_closed: int
    recovered: int
    bad_limits: int


def _fnv1a(data: bytes) -> int:
    """Fowler-Noll-Vo 1a, 64 bit."""
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return digest


class WorkerRegion:
    """The owner's handle on one worker's files.

    Rows keep their places for the life of a worker: change a row's values, add rows at the end, never reorder.

    Concurrency: one owner writes at a time; readers need nothing.
    """

    def __init__(self, folder: Path, limits: mmap.mmap, ledger: mmap.mmap) -> None:
        self.folder = folder
        self._limits = limits
        self._ledger = ledger

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
        # The ledger first: whoever sees limits can rely on both.
        ledger = _new_file(folder / "ledger", layout.LEDGER_BYTES, 0o666)
        _init_mutexes(ledger)
        struct.pack_into(
            "<QII", ledger, 0, layout.LEDGER_MAGIC, layout.LAYOUT_VERSION, layout.LAYOUT_HASH
        )
        limits = _new_file(folder / "limits", layout.LIMITS_BYTES, 0o644)
        region = cls(folder, limits, ledger)
        struct.pack_into("<II", limits, 8, layout.LAYOUT_VERSION, layout.LAYOUT_HASH)
        region.beat()
        region.write(devices, closed=closed, heartbeat=heartbeat, full=full)
        struct.pack_into("<Q", limits, 0, layout.LIMITS_MAGIC)
        return region

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open what another owner created, after a restart.

        Raises:
            FileNotFoundError: There are no such files.
            ValueError: They have another layout; names the file and both versions.
        """
        maps = []
        for name, magic, size in (
            ("limits", layout.LIMITS_MAGIC, layout.LIMITS_BYTES),
            ("ledger", layout.LEDGER_MAGIC, layout.LEDGER_BYTES),
        ):
            path = folder / name
            with path.open("r+b") as file:
                if os.fstat(file.fileno()).st_size < size:
                    raise ValueError(f"{path}: shorter than the {size} bytes of the layout")
                area = mmap.mmap(file.fileno(), size)
            found = struct.unpack_from("<QII", area)
            if found != (magic, layout.LAYOUT_VERSION, layout.LAYOUT_HASH):
                raise ValueError(
                    f"{path}: version {found[1]} hash {found[2]}, expected version"
                    f" {layout.LAYOUT_VERSION} hash {layout.LAYOUT_HASH}"
                )
            maps.append(area)
        return cls(folder, *maps)

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
        """Unmap the files; they stay."""
        self._limits.close()
        self._ledger.close()

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
        at = layout.LIMITS
        head = struct.pack(
            "<IIIII",
            len(devices),
            int(closed),
            int(heartbeat),
            FULL_POLICIES[full.name],
            round(full.wait_seconds * 1000),
        )
        rows = b"".join(device.pack() for device in devices)
        sequence = self._sequence() | 1
        struct.pack_into("<I", self._limits, at["sequence"], sequence)
        self._limits[at["device_count"] : at["device_count"] + len(head)] = head
        self._limits[at["devices"] : at["devices"] + len(rows)] = rows
        struct.pack_into("<Q", self._limits, at["checksum"], _fnv1a(head + bytes(4) + rows))
        struct.pack_into("<I", self._limits, at["sequence"], sequence + 1 & 0xFFFFFFFF)
        self._wake()

    def beat(self, now_ns: int = 0) -> None:
        """Give a sign of life; ``now_ns`` of ``CLOCK_MONOTONIC``, for who has just asked it."""
        _BEAT.pack_into(
            self._limits, _BEAT_AT, now_ns or time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        )

    def place(self, row: int) -> tuple[mmap.mmap, int]:
        """Where one device's shared state lies, for who copies it often: the file and the offset.

        `states.decode_state` reads a copy. Once the region is closed, copying raises ValueError.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= row < layout.DEVICES:
            raise IndexError(f"worker {self.folder}: row {row} must be 0 to {layout.DEVICES - 1}")
        return self._ledger, layout.LEDGER["states"] + row * layout.DEVICE_STATE_BYTES

    def use(self, row: int) -> DeviceUse:
        """Read one device's shared state.

        Raises:
            IndexError: There is no such row.
        """
        if not 0 <= row < layout.DEVICES:
            raise IndexError(f"worker {self.folder}: row {row} must be 0 to {layout.DEVICES - 1}")
        base = layout.LEDGER["states"] + row * layout.DEVICE_STATE_BYTES
        at = {name: base + offset for name, offset in layout.DEVICE_STATE.items()}
        return DeviceUse(
            used_bytes=self._u64(at["used_bytes"]),
            peak_bytes=self._u64(at["peak_bytes"]),
            denied=self._u64(at["denied"]),
            charged_ns=self._u64(at["charged_ns"]),
            launches=self._u64(at["launches"]),
            throttled_ns=self._u64(at["throttled_ns"]),
            trim_ratio=(self._u32(at["trim_ppm"]) or layout.WHOLE_DEVICE_PPM)
            / layout.WHOLE_DEVICE_PPM,
            **{name: self._u64(at[name]) for name in _FULL_COUNTERS},
        )

    def wanted(self, row: int) -> int:
        """Bytes that living processes wait for on a device because the card is full.

        A process that was killed while it waited stays in `DeviceUse.wanted_bytes` until another
        one notices, so who makes room for others asks here.

        Raises:
            IndexError: There is no such row.
        """
        if not self.use(row).wanted_bytes:
            return 0
        base = layout.LEDGER["processes"]
        field = layout.PROCESS["devices"] + row * layout.DEVICE_USE_BYTES
        field += layout.DEVICE_USE["wanted_bytes"]
        total = 0
        for at in range(base, base + layout.PROCESSES * layout.PROCESS_BYTES, layout.PROCESS_BYTES):
            wanted = self._u64(at + field)
            if wanted and self._lives(at):
                total += wanted
        return total

    def _lives(self, slot: int) -> bool:
        """Whether a slot's process runs; one of another pid namespace is believed to."""
        if self._u64(slot + layout.PROCESS["pid_namespace"]) != os.stat("/proc/self/ns/pid").st_ino:
            return True
        ticks = start_ticks(self._u32(slot + layout.PROCESS["pid"]))
        return bool(ticks) and ticks == self._u64(slot + layout.PROCESS["start_ticks"])

    def processes(self, devices: int = 1) -> list[ProcessUse]:
        """List the attached processes with their bytes on the first ``devices`` rows."""
        found = []
        for slot in range(layout.PROCESSES):
            base = layout.LEDGER["processes"] + slot * layout.PROCESS_BYTES
            pid = self._u32(base)
            if not pid:
                continue
            first = base + layout.PROCESS["devices"]
            uses = tuple(
                dict(
                    zip(
                        _CLASSES,
                        struct.unpack_from(
                            f"<{len(_CLASSES)}Q",
                            self._ledger,
                            first + row * layout.DEVICE_USE_BYTES,
                        ),
                        strict=True,
                    )
                )
                for row in range(devices)
            )
            found.append(ProcessUse(pid, uses))
        return found

    def faults(self) -> Faults:
        """Read the counters of faults."""
        at = layout.LEDGER
        return Faults(
            *(self._u64(at[n]) for n in ("fail_open", "fail_closed", "recovered", "bad_limits"))
        )

    def _sequence(self) -> int:
        value: int = struct.unpack_from("<I", self._limits, layout.LIMITS["sequence"])[0]
        return value

    def _u64(self, offset: int) -> int:
        value: int = struct.unpack_from("<Q", self._ledger, offset)[0]
        return value

    def _u32(self, offset: int) -> int:
        value: int = struct.unpack_from("<I", self._ledger, offset)[0]
        return value

    def _wake(self) -> None:
        """Wake threads that wait on the sequence word; without the system call they look every 50 ms."""
        number = _SYS_FUTEX.get(os.uname().machine)
        if number is None:
            return
        word = ctypes.c_uint32.from_buffer(self._limits, layout.LIMITS["sequence"])
        ctypes.CDLL(None).syscall(number, ctypes.byref(word), _FUTEX_WAKE, 2**31 - 1, None, None, 0)
        del word


def _new_file(path: Path, size: int, mode: int) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _init_mutexes(ledger: mmap.mmap) -> None:
    """Make both mutexes robust and shared between processes, with the C library's own functions."""
    library = ctypes.CDLL(None)
    attributes = ctypes.create_string_buffer(64)
    library.pthread_mutexattr_init(attributes)
    library.pthread_mutexattr_setpshared(attributes, 1)  # PTHREAD_PROCESS_SHARED
    library.pthread_mutexattr_setrobust(attributes, 1)  # PTHREAD_MUTEX_ROBUST
    for field in ("lock", "sampler"):
        mutex = ctypes.c_char.from_buffer(ledger, layout.LEDGER[field])
        library.pthread_mutex_init(ctypes.byref(mutex), attributes)
        del mutex
