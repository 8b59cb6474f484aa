"""A session with the Acme devices of one node.

Where a real backend calls its driver, this one computes: every worker wants the whole of its
devices and gets its limit, or an equal part when the limits add up to more than there is.
"""

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tensorfusion.errors import BackendError
from tensorfusion.spi.backend import (
    DeviceInfo,
    DeviceMetrics,
    Enforcement,
    FrozenWorker,
    Link,
    NodeContext,
    Partition,
    PreparedWorker,
    Share,
    Tier,
    WorkerSpec,
    WorkerUsage,
)

VENDOR = "Acme"
COMPUTE_GFLOPS = 100_000  # 100 TFLOPS: base units are GFLOP/s and bytes everywhere
VRAM_BYTES = 32 << 30
IDLE_WATTS, BUSY_WATTS = 30.0, 250.0
ENFORCEMENT: Mapping[str, Enforcement] = {
    "shared": Enforcement.NONE,
    "soft": Enforcement.SIMULATED,
}
"""Isolation mode to what really binds. Claim no more than the conformance suite can see."""


class Tenant(msgspec.Struct):
    """A prepared worker with its totals, which survive a restart."""

    spec: WorkerSpec
    throttled_seconds: float = 0.0


class State(msgspec.Struct):
    """What the session keeps on disk. ``time`` is where the totals have been counted to."""

    time: float
    tenants: dict[str, Tenant] = {}
    joules: dict[str, float] = {}


class AcmeSession:
    """One lock guards everything, so every method may be called from any thread."""

    def __init__(self, context: NodeContext) -> None:
        self._clock = context.clock
        self._file = context.state_dir / "acme.json"
        self._lock = threading.Lock()
        self._state = self._load()
        self._state.time = self._clock.now()

    def discover(self) -> Sequence[DeviceInfo]:
        """List both devices. A uuid comes from the hardware, never from a counter or a session."""
        return [
            DeviceInfo(
                uuid=f"acme-{serial}",
                index=index,
                vendor=VENDOR,
                model="ONE",
                full_model="Acme One 32GB",
                compute_gflops=COMPUTE_GFLOPS,
                vram_bytes=VRAM_BYTES,
                numa_node=0,
                driver_version="1.0",
            )
            for index, serial in enumerate(("0a11", "0b22"))
        ]

    def topology(self) -> Sequence[Link]:
        """One link joins the two."""
        first, second = self.discover()
        return [
            Link(
                source=first.uuid,
                target=second.uuid,
                kind="AcmeLink",
                tier=0,
                bandwidth_mbps=50_000,
            )
        ]

    def metrics(self) -> Sequence[DeviceMetrics]:
        """Read both devices."""
        with self._lock:
            self._count()
            return [self._reading(info.uuid) for info in self.discover()]

    def usage(self) -> Sequence[WorkerUsage]:
        """Read what each worker uses of each of its devices."""
        with self._lock:
            self._count()
            return [
                WorkerUsage(
                    worker=worker,
                    uuid=uuid,
                    time=self._state.time,
                    compute_gflops=self._given(tenant.spec, uuid),
                    vram_bytes=self._held(tenant.spec, uuid),
                    throttled_seconds_total=tenant.throttled_seconds,
                )
                for worker, tenant in self._state.tenants.items()
                for uuid in tenant.spec.devices
            ]

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        """Put a worker on its devices; the same spec again finds it there and changes nothing."""
        known = {info.uuid for info in self.discover()}
        unknown = [uuid for uuid in spec.devices if uuid not in known]
        if unknown:
            raise BackendError(
                VENDOR, f"no device {unknown[0]!r}; known: {', '.join(sorted(known))}"
            )
        if spec.isolation not in ENFORCEMENT:
            raise BackendError(
                VENDOR,
                f"isolation {spec.isolation!r} is not offered; allowed: {', '.join(ENFORCEMENT)}",
            )
        with self._lock:
            self._count()
            tenant = self._state.tenants.setdefault(spec.worker, Tenant(spec))
            tenant.spec = spec
            self._save()
        return PreparedWorker(
            env={"ACME_VISIBLE_DEVICES": ",".join(spec.devices)},
            enforcement=ENFORCEMENT[spec.isolation],
        )

    def set_limits(self, worker: str, share: Share) -> None:
        """Change a worker's share from now on."""
        with self._lock:
            tenant = self._state.tenants.get(worker)
            if tenant is None:
                raise BackendError(VENDOR, f"worker {worker!r} was not prepared")
            self._count()
            tenant.spec = dataclasses.replace(tenant.spec, share=share)
            self._save()

    def release(self, worker: str) -> None:
        """Take a worker off its devices; one that is not there is fine."""
        with self._lock:
            self._count()
            if self._state.tenants.pop(worker, None) is not None:
                self._save()

    def workers(self) -> Sequence[WorkerSpec]:
        """List prepared workers, those of an earlier session too."""
        with self._lock:
            return [tenant.spec for tenant in self._state.tenants.values()]

    def partitions(self) -> Sequence[Partition]:
        """Return nothing: no partitions are offered."""
        return ()

    def create_partition(self, uuid: str, template: str, start: int | None = None) -> Partition:
        """Refuse: the capability is not claimed."""
        raise BackendError(VENDOR, f"device {uuid}: partitions are not offered")

    def remove_partition(self, uuid: str) -> None:
        """Do nothing: there is none, and giving back what is gone is fine."""

    def freeze(self, worker: str, tier: Tier) -> None:
        """Refuse: the capability is not claimed."""
        raise BackendError(VENDOR, f"worker {worker}: freezing is not offered")

    def thaw(self, worker: str) -> float:
        """Refuse: the capability is not claimed."""
        raise BackendError(VENDOR, f"worker {worker}: thawing is not offered")

    def frozen(self) -> Sequence[FrozenWorker]:
        """Return nothing: no worker is ever frozen."""
        return ()

    def snapshot(self, worker: str, target: Path) -> None:
        """Refuse: the capability is not claimed."""
        raise BackendError(VENDOR, f"worker {worker}: snapshot is not offered")

    def resume(self, worker: str, source: Path) -> None:
        """Refuse: the capability is not claimed."""
        raise BackendError(VENDOR, f"worker {worker}: resume is not offered")

    def close(self) -> None:
        """Write the totals out; prepared workers keep running."""
        with self._lock:
            self._count()
            self._save()

    def _on(self, uuid: str) -> list[WorkerSpec]:
        """The workers of a device."""
        return [t.spec for t in self._state.tenants.values() if uuid in t.spec.devices]

    def _given(self, spec: WorkerSpec, uuid: str) -> float:
        """A worker's rate on a device: its limit, shrunk like everyone's when they exceed it."""
        wanted = sum(_limit(other).limit_gflops for other in self._on(uuid))
        return _limit(spec).limit_gflops * min(1.0, COMPUTE_GFLOPS / max(wanted, 1))

    def _held(self, spec: WorkerSpec, uuid: str) -> int:
        """A worker's memory on a device, by the same rule."""
        wanted = sum(_limit(other).limit_vram_bytes for other in self._on(uuid))
        return int(_limit(spec).limit_vram_bytes * min(1.0, VRAM_BYTES / max(wanted, 1)))

    def _reading(self, uuid: str) -> DeviceMetrics:
        used = sum(self._given(spec, uuid) for spec in self._on(uuid)) / COMPUTE_GFLOPS
        return DeviceMetrics(
            uuid=uuid,
            time=self._state.time,
            utilization_ratio=min(1.0, used),
            vram_used_bytes=sum(self._held(spec, uuid) for spec in self._on(uuid)),
            power_watts=IDLE_WATTS + (BUSY_WATTS - IDLE_WATTS) * min(1.0, used),
            energy_joules_total=self._state.joules.get(uuid, 0.0),
        )

    def _count(self) -> None:
        """Bring the totals up to now."""
        now = self._clock.now()
        passed = max(0.0, now - self._state.time)
        self._state.time = now
        for info in self.discover():
            watts = self._reading(info.uuid).power_watts or 0.0
            joules = self._state.joules.get(info.uuid, 0.0)
            self._state.joules[info.uuid] = joules + watts * passed
        for tenant in self._state.tenants.values():
            got = min(self._given(tenant.spec, uuid) for uuid in tenant.spec.devices)
            tenant.throttled_seconds += passed * (1 - got / COMPUTE_GFLOPS)

    def _load(self) -> State:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            return State(self._clock.now())
        except (OSError, msgspec.MsgspecError) as error:
            raise BackendError(VENDOR, f"{self._file} cannot be read: {error}") from error

    def _save(self) -> None:
        """Replace the file, so that a kill at any moment leaves the old or the new one."""
        part = self._file.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(self._state))
            os.replace(part, self._file)
        except OSError as error:
            raise BackendError(VENDOR, f"{self._file} cannot be written: {error}") from error


def _limit(spec: WorkerSpec) -> Share:
    """What binds a worker: its share, or the whole device where the mode enforces nothing."""
    if ENFORCEMENT[spec.isolation] is Enforcement.NONE:
        return Share(0, 0, COMPUTE_GFLOPS, VRAM_BYTES)
    return spec.share
