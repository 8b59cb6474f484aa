"""Workers of one owner: a folder each, with their limits, their ledger and who they are.

The same for every owner: a vendor's session of a node, and `tensorfusion run`.
"""

import os
import shutil
import time
from pathlib import Path
from urllib.parse import quote, unquote

import msgspec

from tensorfusion_native.libraries import Libraries
from tensorfusion_native.processes import UNREADABLE, WORKER_NAME_VARIABLE, start_ticks
from tensorfusion_native.region import DeviceLimit, Faults, FullPolicy, WorkerRegion
from tensorfusion_native.states import DeviceUse, Place

RECORD = "worker.json"


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who a worker is and what it may use of each of its devices.

    Attributes:
        name: Unique among its owner's workers.
        devices: The driver's uuids.
        vram_bytes: Cap per device; 0 is none.
        compute_ratio: Share of each device's time, above 0 up to 1; the largest where they differ.
        compute_ratios: Per device, where they differ: the same rate is another share of each card.
        context_bytes: What is charged for a context; 0 where it is not known.
        pid: Its launcher, where it ends with one; 0 otherwise.
        start_ticks: When the launcher started, as the kernel counts.
        command: What runs, for people to read.
        full: What an allocation within the cap does when the card is full.
        full_wait_seconds: How long it may wait then.
        spill_bytes: Cap of what may be in host memory instead, per device.
    """

    name: str
    devices: list[str]
    vram_bytes: int = 0
    compute_ratio: float = 1.0
    compute_ratios: list[float] = []
    context_bytes: int = 0
    pid: int = 0
    start_ticks: int = 0
    command: list[str] = []
    full: str = "deny"
    full_wait_seconds: float = 0.0
    spill_bytes: int = 0

    def limits(self) -> list[DeviceLimit]:
        """The rows of the limits file."""
        return [
            DeviceLimit(
                uuid,
                self.vram_bytes,
                ratio,
                self.context_bytes,
                spill_bytes=self.spill_bytes,
            )
            for uuid, ratio in zip(
                self.devices,
                self.compute_ratios or [self.compute_ratio] * len(self.devices),
                strict=True,
            )
        ]

    def full_policy(self) -> FullPolicy:
        """The policy as the limits file has it."""
        return FullPolicy(self.full, self.full_wait_seconds)

    def over(self) -> bool:
        """Whether it had a launcher that is gone."""
        return bool(self.pid) and start_ticks(self.pid) != self.start_ticks


class Workers:
    """The workers below one folder.

    Concurrency: one owner writes; who only reads may do so at any time. Not safe from several
    threads of the owner without a lock of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._regions: dict[str, WorkerRegion] = {}
        self._beats = False
        self.generation = 0
        """Another number means that some worker's files are other ones."""

    def put(self, record: WorkerRecord) -> None:
        """Make a worker, or give one that is there its new limits.

        Raises:
            ValueError: A limit is out of range.
        """
        known = self.find(record.name)
        if known is not None and known.devices != record.devices and not self._moves(record):
            self.remove(record.name)
            known = None
        path = self.path(record.name)
        if known is None:
            shutil.rmtree(path, ignore_errors=True)
            self.generation += 1
            self._regions[record.name] = WorkerRegion.create(
                path, record.limits(), heartbeat=self._beats, full=record.full_policy()
            )
        elif known != record:
            self._write(record)
        if known != record:
            part = path / f"{RECORD}.part"
            part.write_bytes(msgspec.json.encode(record))
            os.replace(part, path / RECORD)

    def beat(self) -> None:
        """Give every worker a sign of life; from the first one on, they take silence for a fault."""
        if not self._beats:
            self._beats = True
            for record in self.records():
                try:
                    self._write(record)
                except (OSError, ValueError):
                    continue  # not usable; `put` makes it anew
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        for region in self._regions.values():
            region.beat(now)

    def faults(self, name: str) -> Faults:
        """Read a worker's counters of faults.

        Raises:
            OSError, ValueError: There is no such worker, or its files have another layout.
        """
        return self._region(name).faults()

    def find(self, name: str) -> WorkerRecord | None:
        """Read one worker; None when there is none, or its files are not complete."""
        try:
            return msgspec.json.decode((self.path(name) / RECORD).read_bytes(), type=WorkerRecord)
        except (OSError, *UNREADABLE):
            return None

    def records(self) -> list[WorkerRecord]:
        """List the workers by name."""
        if not self.folder.is_dir():
            return []
        found = (self.find(unquote(path.name)) for path in sorted(self.folder.iterdir()))
        return [record for record in found if record is not None]

    def use(self, name: str) -> list[DeviceUse]:
        """What a worker uses, in the order of its devices.

        Raises:
            OSError, ValueError: There is no such worker, or its files have another layout.
        """
        record = self.find(name)
        region = self._region(name)
        return [region.use(row) for row in range(len(record.devices) if record else 0)]

    def place(self, name: str, row: int) -> Place:
        """Where lies what the processes of a worker share about one of its devices.

        It holds as long as `generation` is the same.

        Raises:
            IndexError: A worker has no such row.
            OSError, ValueError: There is no such worker, or its files have another layout.
        """
        return self._region(name).state(row)

    def wanted(self, name: str, row: int) -> int:
        """Bytes that a worker's living processes wait for on a device that is full.

        Raises:
            OSError, ValueError: There is no such worker, or its files have another layout.
        """
        return self._region(name).wanted(row)

    def pids(self, name: str) -> set[int]:
        """Processes that attached to a worker's ledger."""
        return set(self._region(name).pids())

    def alive(self, name: str) -> bool:
        """Whether a process of the worker still runs."""
        try:
            return any(start_ticks(pid) for pid in self.pids(name))
        except (OSError, ValueError):
            return False

    def environment(self, name: str, libraries: Libraries) -> dict[str, str]:
        """The variables that put a process under the worker's limits."""
        return {
            "LD_PRELOAD": str(libraries.limiter),
            WORKER_NAME_VARIABLE: name,
            **self._region(name).environment(),
        }

    def remove(self, name: str) -> None:
        """Forget a worker; processes that still run keep their last limits."""
        region = self._regions.pop(name, None)
        self.generation += 1
        if region is not None:
            region.close()
        shutil.rmtree(self.path(name), ignore_errors=True)

    def close(self) -> None:
        """Unmap everything; the workers stay."""
        self.generation += 1
        for region in self._regions.values():
            region.close()
        self._regions.clear()

    def path(self, name: str) -> Path:
        """The folder of a worker."""
        return self.folder / quote(name, safe="")

    def _write(self, record: WorkerRecord) -> None:
        self._region(record.name).write(
            record.limits(), heartbeat=self._beats, full=record.full_policy()
        )

    def _moves(self, record: WorkerRecord) -> bool:
        """Whether a worker goes on on other devices: its rows keep their places and are renamed."""
        known = self.find(record.name)
        same = known is not None and len(known.devices) == len(record.devices)
        return same and self.alive(record.name)

    def _region(self, name: str) -> WorkerRegion:
        if name not in self._regions:
            self._regions[name] = WorkerRegion.open(self.path(name))
        return self._regions[name]
