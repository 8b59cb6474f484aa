"""A session with the NVIDIA devices of this machine.

Workers are told which devices are theirs by environment and device files. The limiter of
tensorfusion-native holds them to their limits, where it is installed; otherwise limits are kept as
bookkeeping, and every answer says so (`Enforcement.NONE`).
"""

import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tensorfusion.errors import BackendError, DeviceLost
from tensorfusion.spi.backend import (
    DeviceInfo,
    DeviceMetrics,
    Enforcement,
    FrozenWorker,
    Link,
    Mount,
    NodeContext,
    Partition,
    PreparedWorker,
    Share,
    Tier,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.spi.limited import Attachment, Attested, LimiterFaults
from tensorfusion_nvidia.devices import Found, find_devices, read_metrics
from tensorfusion_nvidia.limiter import attachment_of, levels, open_enforcer
from tensorfusion_nvidia.links import find_links
from tensorfusion_nvidia.mig import Mig
from tensorfusion_nvidia.nvml import VENDOR, Nvml
from tensorfusion_nvidia.processes import WORKER_VARIABLE, ProcessTable, ProcessUse, process_uses
from tensorfusion_nvidia.state import load_state, save_state
from tensorfusion_nvidia.suspension import open_suspension

if TYPE_CHECKING:
    from tensorfusion_native.checkpoint import Checkpoints
    from tensorfusion_native.suspension import Suspension

log = logging.getLogger(__name__)
IDLE = ("sleep", "infinity")
"""What a container without a command does, where pods are processes of this machine."""
SHARED_PATHS = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
LEAST_WINDOW_MICROSECONDS = 800_000
WINDOW_MICROSECONDS = 10_000_000
"""The first reading looks this far back; the driver keeps about that much."""


class NvidiaSession:
    """Devices and workers of one machine.

    Concurrency: one lock guards the workers and what was last read; the driver's own calls are
    safe from any thread.
    """

    def __init__(
        self,
        nvml: Nvml,
        context: NodeContext,
        *,
        proc: Path,
        sysfs: Path,
        limiter: bool = False,
        partitions: bool = False,
        checkpoints: "Checkpoints | None" = None,
    ) -> None:
        self._nvml = nvml
        self._levels = levels(limiter=limiter, partitions=partitions)
        self._mig = Mig(nvml, proc)
        self._enforcer = open_enforcer(context) if limiter else None
        self._suspension = None
        if checkpoints is not None:
            self._suspension = open_suspension(
                checkpoints, context, processes=self._held, free_bytes=self._free_bytes
            )
        self._clock = context.clock
        self._sysfs = sysfs
        self._file = context.state_dir / "nvidia.json"
        self._lock = threading.RLock()
        self._state = load_state(self._file)
        self._processes = ProcessTable(proc)
        self._known: dict[str, Found] = {}
        self._windows: dict[str, tuple[int, int]] = {}
        """By uuid, from when process use is asked for, and when that will move on to."""

    def discover(self) -> Sequence[DeviceInfo]:
        """List the devices; one that fell off the bus since is listed as unhealthy."""
        with self._lock:
            return [device.info for device in self._refresh()]

    def topology(self) -> Sequence[Link]:
        """List what NVLink joins."""
        with self._lock:
            return find_links(self._nvml, [d for d in self._refresh() if d.handle is not None])

    def metrics(self) -> Sequence[DeviceMetrics]:
        """Read every device that answers."""
        with self._lock:
            readings = []
            for device in self._devices():
                try:
                    readings.append(read_metrics(self._nvml, device, self._clock.now()))
                except DeviceLost as error:
                    log.warning("device lost", extra={"gpu": device.info.uuid, "error": str(error)})
            return readings

    def usage(self) -> Sequence[WorkerUsage]:
        """Add up the processes of each worker, per device."""
        with self._lock:
            now = self._clock.now()
            rows = []
            for device in self._devices():
                uuid = device.info.uuid
                specs = [s for s in self._state.workers.values() if uuid in s.devices]
                if not specs:
                    continue
                uses = self._uses_by_worker(device, [spec.worker for spec in specs], now)
                rows += [self._row(spec, device, uses.get(spec.worker, ()), now) for spec in specs]
            return rows

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        """Hand devices to a worker."""
        if spec.isolation not in self._levels:
            raise BackendError(
                VENDOR,
                f"worker {spec.namespace}/{spec.name}: isolation {spec.isolation!r} is not"
                f" offered; allowed: {', '.join(self._levels)}",
            )
        with self._lock:
            devices = [self._device(spec, uuid) for uuid in spec.devices]
            self._mig.check(spec, devices, self._state.workers)
            self._limit(spec)
            if self._state.workers.get(spec.worker) != spec:
                self._store({**self._state.workers, spec.worker: spec})
            limits, mounts = self._given(spec)
            files = [
                path
                for device, uuid in zip(devices, spec.partitions, strict=False)
                for path in self._mig.device_files(device, uuid)
            ]
        visible = ",".join(spec.partitions or spec.devices)
        return PreparedWorker(
            env={
                "NVIDIA_VISIBLE_DEVICES": visible,
                "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
                "CUDA_VISIBLE_DEVICES": visible,
                WORKER_VARIABLE: spec.worker,
                **limits,
            },
            mounts=mounts,
            device_paths=(
                *(f"/dev/nvidia{device.minor}" for device in devices if device.minor is not None),
                *SHARED_PATHS,
                *files,
            ),
            enforcement=self._levels[spec.isolation],
            command=IDLE,
        )

    def set_limits(self, worker: str, share: Share) -> None:
        """Change a worker's share; the limiter puts it in force at once."""
        with self._lock:
            spec = self._spec(worker)
            if spec.partitions:
                raise BackendError(
                    VENDOR, f"worker {worker}: a partition has the size of its template"
                )
            changed = dataclasses.replace(spec, share=share)
            self._limit(changed)
            self._store({**self._state.workers, worker: changed})

    def release(self, worker: str) -> None:
        """Take a worker's devices back; its processes are its pod's to end."""
        with self._lock:
            if worker in self._state.workers:
                left = {w: spec for w, spec in self._state.workers.items() if w != worker}
                self._store(left)
                self._processes.forget(worker)
                if self._enforcer is not None:
                    self._enforcer.remove(worker)
                if self._suspension is not None:
                    self._suspension.forget(worker)

    def workers(self) -> Sequence[WorkerSpec]:
        """List prepared workers."""
        with self._lock:
            return list(self._state.workers.values())

    def beat(self) -> None:
        """Give every limited worker a sign of life."""
        with self._lock:
            if self._enforcer is not None:
                self._enforcer.beat()

    def wants_memory(self) -> bool:
        """Whether some worker waits for memory; never where the limiter is not installed."""
        with self._lock:
            return self._enforcer is not None and self._enforcer.wants_memory()

    def attest(self, worker: str) -> Sequence[Attested]:
        """What the processes of a worker attest; nothing without the limiter."""
        return () if self._enforcer is None else self._enforcer.attest(worker)

    def faults(self, worker: str) -> LimiterFaults:
        """Counters of a worker's limiter; zeros without one."""
        with self._lock:
            return LimiterFaults() if self._enforcer is None else self._enforcer.faults(worker)

    def attachment(self, worker: str, pid: int) -> Attachment:
        """How a process of a worker stands to the driver; all are exempt where there is no limiter."""
        with self._lock:
            spec = self._state.workers.get(worker)
        limited = self._enforcer is not None and spec is not None and self._limited(spec)
        return attachment_of(pid) if limited else Attachment.EXEMPT

    def partitions(self) -> Sequence[Partition]:
        """List what the driver has, whoever made it."""
        with self._lock:
            return self._mig.all(self._devices())

    def create_partition(self, uuid: str, template: str, start: int | None = None) -> Partition:
        """Cut a device that is in MIG mode."""
        with self._lock:
            self._refresh()  # the mode may have been changed since
            return self._mig.create(self._device_of(f"partition {template}", uuid), template, start)

    def remove_partition(self, uuid: str) -> None:
        """Give a partition back."""
        with self._lock:
            for worker, spec in self._state.workers.items():
                if uuid in spec.partitions:
                    raise BackendError(VENDOR, f"partition {uuid} is used by worker {worker}")
            self._mig.remove(uuid)

    def freeze(self, worker: str, tier: Tier) -> None:
        """Move a worker's device memory to host memory by the driver's checkpoint calls."""
        self._suspender(worker).freeze(self._spec(worker), tier)

    def thaw(self, worker: str) -> float:
        """Bring a frozen worker back to its devices."""
        return self._suspender(worker).thaw(self._spec(worker))

    def frozen(self) -> Sequence[FrozenWorker]:
        """List frozen workers; the driver does not tell which of them have work."""
        return () if self._suspension is None else self._suspension.frozen()

    def snapshot(self, worker: str, target: Path) -> None:
        """Suspend a worker; its device memory stays in its processes, where a dump of them finds it."""
        self._suspender(worker).snapshot(self._spec(worker), target)

    def resume(self, worker: str, source: Path) -> None:
        """Let the same processes go on, on the devices that the worker has now."""
        self._suspender(worker).resume(self._spec(worker), source)

    def close(self) -> None:
        """End the session. The library stays initialised: other sessions of the process use it."""
        if self._enforcer is not None:
            self._enforcer.close()

    def _suspender(self, worker: str) -> "Suspension":
        if self._suspension is None:
            raise BackendError(VENDOR, f"worker {worker}: the driver has no checkpoint calls")
        spec = self._state.workers.get(worker)
        if spec is not None and spec.partitions:
            raise BackendError(
                VENDOR, f"worker {worker}: the driver has no checkpoints on partitions"
            )
        return self._suspension

    def _spec(self, worker: str) -> WorkerSpec:
        with self._lock:
            spec = self._state.workers.get(worker)
        if spec is None:
            raise BackendError(VENDOR, f"worker {worker!r} was not prepared")
        return spec

    def _held(self, spec: WorkerSpec) -> dict[int, dict[str, int]]:
        """A worker's processes, with their bytes by device."""
        found: dict[int, dict[str, int]] = {}
        with self._lock:
            for device in self._devices():
                for use in process_uses(self._nvml, device, int(self._clock.now() * 1e6)):
                    if self._processes.worker_of(use.pid, [spec.worker]):
                        found.setdefault(use.pid, {})[device.info.uuid] = use.vram_bytes
        return found

    def _free_bytes(self) -> dict[str, int]:
        sizes = {device.info.uuid: device.info.vram_bytes for device in self._devices()}
        return {row.uuid: sizes[row.uuid] - (row.vram_used_bytes or 0) for row in self.metrics()}

    def _limited(self, spec: WorkerSpec) -> bool:
        """A worker with its devices to itself runs without the limiter."""
        return self._levels.get(spec.isolation) is Enforcement.COOPERATIVE

    def _limit(self, spec: WorkerSpec) -> None:
        if self._enforcer is not None and self._limited(spec):
            infos = [self._device(spec, uuid).info for uuid in spec.devices]
            self._enforcer.put(spec, {info.uuid: info.compute_gflops for info in infos})

    def _given(self, spec: WorkerSpec) -> tuple[Mapping[str, str], Sequence[Mount]]:
        """What the limiter adds to a worker's environment and mounts."""
        if self._enforcer is None or not self._limited(spec):
            return {}, ()
        return self._enforcer.environment(spec.worker), self._enforcer.mounts(spec.worker)

    def _store(self, workers: dict[str, WorkerSpec]) -> None:
        """Change the workers, on disk first: what could not be written is not believed either."""
        changed = type(self._state)(workers)
        save_state(self._file, changed)
        self._state = changed

    def _refresh(self) -> list[Found]:
        """Ask the driver for its devices and keep those that it has lost as unhealthy."""
        found = {d.info.uuid: d for d in find_devices(self._nvml, self._sysfs)}
        for uuid, device in self._known.items():
            if uuid not in found:
                lost = "the driver does not find the device any more"
                info = dataclasses.replace(device.info, healthy=False, message=lost)
                found[uuid] = Found(None, info, device.minor)
        self._known = found
        return sorted(found.values(), key=lambda device: device.info.index)

    def _devices(self) -> list[Found]:
        """Devices that answer, as last found."""
        found = self._known.values() if self._known else self._refresh()
        return [device for device in found if device.handle is not None]

    def _device(self, spec: WorkerSpec, uuid: str) -> Found:
        return self._device_of(f"worker {spec.namespace}/{spec.name}", uuid)

    def _device_of(self, who: str, uuid: str) -> Found:
        if uuid not in self._known:
            self._refresh()
        device = self._known.get(uuid)
        if device is None:
            known = ", ".join(self._known) or "none"
            raise BackendError(
                VENDOR,
                f"{who}: no device {uuid!r} here; known: {known}",
            )
        if not device.info.healthy:
            raise BackendError(VENDOR, f"device {uuid} takes no work: {device.info.message}")
        return device

    def _uses_by_worker(
        self, device: Found, workers: Sequence[str], now: float
    ) -> dict[str, list[ProcessUse]]:
        uuid, until = device.info.uuid, int(now * 1e6)
        # The driver samples a few times a second: whoever asks more often sees a part again.
        since, latest = self._windows.get(uuid, (until - WINDOW_MICROSECONDS, until))
        if until - latest >= LEAST_WINDOW_MICROSECONDS:
            since, latest = latest, until
        self._windows[uuid] = (since, latest)
        found: dict[str, list[ProcessUse]] = {}
        try:
            for use in process_uses(self._nvml, device, since):
                worker = self._processes.worker_of(use.pid, workers)
                if worker:
                    found.setdefault(worker, []).append(use)
        except DeviceLost as error:
            log.warning("device lost", extra={"gpu": uuid, "error": str(error)})
        return found

    def _row(
        self, spec: WorkerSpec, device: Found, uses: Sequence[ProcessUse], now: float
    ) -> WorkerUsage:
        ratio = min(1.0, sum(use.compute_ratio for use in uses))
        row = WorkerUsage(
            worker=spec.worker,
            uuid=device.info.uuid,
            time=now,
            compute_gflops=ratio * device.info.compute_gflops,
            vram_bytes=sum(use.vram_bytes for use in uses),
        )
        if self._enforcer is None or not self._limited(spec):
            return row
        counters = self._enforcer.counters(spec, device.info.uuid)
        return msgspec.structs.replace(
            row,
            throttled_seconds_total=counters.throttled_seconds,
            busy_seconds_total=counters.charged_seconds,
            oom_total=counters.denied,
            pressure=counters.pressure,
            # In some containers the driver's process ids mean nothing here.
            vram_bytes=row.vram_bytes or counters.used_bytes,
        )
