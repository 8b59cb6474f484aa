"""The fidelity ``driver``: the cards of one node as devices of a simulated driver, and real processes under the limiter."""

import dataclasses
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tensorfusion import names
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.model.hardware import Card, find_card
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
from tensorfusion.spi.limited import Attachment, Attested, LimiterFaults
from tensorfusion_native.enforcement import Enforcer
from tensorfusion_native.libraries import libraries
from tensorfusion_native.processes import WORKER_NAME_VARIABLE, attachment, worker_of
from tensorfusion_native.simulated_machine import CONTEXT_BYTES, SimulatedMachine, device_uuid
from tensorfusion_native.suspension import Suspension
from tensorfusion_simulated.description import CardGroup
from tensorfusion_simulated.links import find_links
from tensorfusion_simulated.mig import DriverPartitions
from tensorfusion_simulated.partitions import ISOLATION, Partitions, check_resizable
from tensorfusion_simulated.state import CardState, SessionState, load_faults, write_atomic
from tensorfusion_simulated.usage import UsageReader

ENFORCEMENT: Mapping[str, Enforcement] = {
    "shared": Enforcement.NONE,
    "soft": Enforcement.COOPERATIVE,
    ISOLATION: Enforcement.DRIVER,
}
NEWEST: Mapping[str, object] = {"cuda_version": 13000, "driver_version": "580.65.06"}
"""The driver that is simulated: of the newest that its calls are checked against."""
TIERS = (Tier.WARM, Tier.COLD)
"""What workers can be frozen to."""
MOST_DEVICES = 8
"""Devices that the simulated driver has room for."""


class DriverState(msgspec.Struct):
    """What a session keeps: prepared workers by name."""

    workers: dict[str, WorkerSpec] = {}


class DriverSession:
    """The simulated driver's devices of one node, and its workers. One lock guards everything.

    Raises:
        BackendError: The driver is not built, or cannot simulate such cards.
    """

    def __init__(self, context: NodeContext, groups: Sequence[CardGroup]) -> None:
        self._context = context
        self._lock = threading.RLock()
        self._file = context.state_dir / "driver.json"
        self._faults = context.state_dir / "faults.json"
        self._state = _load(self._file)
        described = _described(context.node, groups)
        self._cards = {uuid: card for uuid, (card, _) in described.items()}
        try:
            self._libraries = libraries()
        except ConfigError as error:
            raise BackendError("simulated", str(error)) from error
        folder = context.state_dir / "native"
        self._machine = SimulatedMachine.create(
            folder / "simulated" / context.node,
            list(self._cards.items()),
            self._libraries,
            settings=NEWEST,
        )
        self._management = self._machine.management()
        self._devices = {device.uuid: device for device in self._management.devices()}
        partitioned = [uuid for uuid, (_, partitioned) in described.items() if partitioned]
        self._mig = DriverPartitions(self._machine, self._cards, partitioned)
        self._partitions = Partitions(self._mig)
        self._set_up()
        self._enforcer = Enforcer(folder, self._libraries, CONTEXT_BYTES)
        self._usage = UsageReader(
            self._management,
            self._enforcer,
            context.clock,
            devices={uuid: device.index for uuid, device in self._devices.items()},
            rate=self._rate,
            limited=_is_limited,
            lock=self._lock,
        )
        self._suspension = Suspension(
            self._machine.checkpoints(),
            folder / "frozen",
            processes=self._processes,
            free_bytes=self._free_bytes,
        )
        for spec in self._state.workers.values():
            self._put(spec)
        # ``tensorfusion simulated`` looks up there which cards it may break.
        known = SessionState(cards={uuid.lower(): CardState() for uuid in self._cards})
        write_atomic(context.state_dir / "simulated.json", msgspec.json.encode(known))

    def discover(self) -> Sequence[DeviceInfo]:
        """List the devices as the driver tells them."""
        faults = load_faults(self._faults).cards
        version = self._management.driver_version()
        waiting = self._set_up()
        found = []
        for device in self._devices.values():
            card = self._cards[device.uuid]
            failed = faults[device.uuid.lower()].failed if device.uuid.lower() in faults else ""
            found.append(
                DeviceInfo(
                    uuid=device.uuid,
                    index=device.index,
                    vendor=card.vendor,
                    model=card.model,
                    full_model=device.name,
                    compute_gflops=card.compute_gflops,
                    vram_bytes=device.memory_bytes,
                    numa_node=device.index * 2 // max(len(self._devices), 2),
                    driver_version=version,
                    multiprocessors=card.multiprocessors,
                    pci_bus_id=f"0000:{device.index:02x}:00.0",
                    partitioned=self._mig.is_set_up(device.uuid),
                    healthy=not failed,
                    message=failed or waiting.get(device.uuid, ""),
                )
            )
        return found

    def topology(self) -> Sequence[Link]:
        """Connect cards of one model that have links, pairwise."""
        return find_links(self._cards)

    def metrics(self) -> Sequence[DeviceMetrics]:
        """Read every device."""
        now = self._context.clock.now()
        rows = []
        for uuid, device in self._devices.items():
            reading = self._management.read(device.index)
            rows.append(
                DeviceMetrics(
                    uuid=uuid,
                    time=now,
                    utilization_ratio=reading.utilization_ratio,
                    vram_used_bytes=reading.used_bytes,
                    temperature_celsius=reading.temperature_celsius,
                    power_watts=reading.power_watts,
                    energy_joules_total=reading.energy_joules,
                    clock_hertz=reading.clock_hertz,
                )
            )
        return rows

    def usage(self) -> Sequence[WorkerUsage]:
        """Meter the workers: the simulator's truth, and the limiter's counters."""
        with self._lock:
            return self._usage.read(self._state.workers)

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        """Make a worker's files; its processes run under the limiter with the returned variables."""
        if spec.isolation not in ENFORCEMENT:
            raise BackendError(
                "simulated",
                f"worker {spec.namespace}/{spec.name}: isolation {spec.isolation!r} is not"
                f" offered; allowed: {', '.join(ENFORCEMENT)}",
            )
        with self._lock:
            self._check_devices(spec)
            if spec.isolation == ISOLATION:
                self._partitions.check(spec, self._state.workers)
            if self._state.workers.get(spec.worker) != spec:
                self._put(spec)
                self._store({**self._state.workers, spec.worker: spec})
            env = {
                **self._machine.environment(),
                "CUDA_VISIBLE_DEVICES": ",".join(spec.partitions or spec.devices),
                WORKER_NAME_VARIABLE: spec.worker,
            }
            if _is_limited(spec):
                env |= self._enforcer.environment(spec.worker)
        return PreparedWorker(
            env=env, enforcement=ENFORCEMENT[spec.isolation], command=_load_program(spec)
        )

    def set_limits(self, worker: str, share: Share) -> None:
        """Put a new share in force; threads that are held back notice at once."""
        with self._lock:
            spec = self._known(worker)
            check_resizable(spec, share)
            changed = dataclasses.replace(spec, share=share)
            self._put(changed)
            self._store({**self._state.workers, worker: changed})

    def release(self, worker: str) -> None:
        """Forget a worker; its processes are for whoever started them to end."""
        with self._lock:
            if worker in self._state.workers:
                left = {w: spec for w, spec in self._state.workers.items() if w != worker}
                self._store(left)
                self._enforcer.remove(worker)
                self._suspension.forget(worker)

    def workers(self) -> Sequence[WorkerSpec]:
        """List prepared workers."""
        with self._lock:
            return list(self._state.workers.values())

    def beat(self) -> None:
        """Give every worker a sign of life."""
        with self._lock:
            self._enforcer.beat()

    def wants_memory(self) -> bool:
        """Whether some worker waits for memory."""
        with self._lock:
            return self._enforcer.wants_memory()

    def attest(self, worker: str) -> Sequence[Attested]:
        """What the processes of a worker attest."""
        return self._enforcer.attest(worker)

    def faults(self, worker: str) -> LimiterFaults:
        """Counters of a worker's limiter."""
        with self._lock:
            return self._enforcer.faults(worker)

    def attachment(self, worker: str, pid: int) -> Attachment:
        """How a process of a worker stands to the driver."""
        with self._lock:
            spec = self._state.workers.get(worker)
        limited = spec is not None and _is_limited(spec)
        return attachment(pid) if limited else Attachment.EXEMPT

    def partitions(self) -> Sequence[Partition]:
        """List what the driver has."""
        with self._lock:
            return self._partitions.all()

    def create_partition(self, uuid: str, template: str, start: int | None = None) -> Partition:
        """Cut a card that is set up for it."""
        with self._lock:
            card = self._cards.get(uuid)
            if card is None:
                raise BackendError("simulated", f"no device {uuid!r} here")
            if card.geometry is not None and not self._mig.is_set_up(uuid):
                raise BackendError(
                    "simulated",
                    f"device {uuid}: MIG mode is off; `partitioned: true` in the description of the"
                    " card turns it on when nobody uses the card",
                )
            made = self._partitions.create(uuid, card, template, start)
            # Rates of workers are looked up anew: their partition may have been gone until now.
            self._state = DriverState(dict(self._state.workers))
            return made

    def remove_partition(self, uuid: str) -> None:
        """Give a partition back."""
        with self._lock:
            self._partitions.remove(uuid, self._state.workers)

    def freeze(self, worker: str, tier: Tier) -> None:
        """Move the device memory of a worker's processes to host memory or disk."""
        self._suspension.freeze(self._suspendable(worker), tier)

    def thaw(self, worker: str) -> float:
        """Bring a frozen worker back to its devices."""
        return self._suspension.thaw(self._suspendable(worker))

    def frozen(self) -> Sequence[FrozenWorker]:
        """List frozen workers; those wait whose processes are held at a call."""
        return self._suspension.frozen()

    def snapshot(self, worker: str, target: Path) -> None:
        """Save the device memory of a worker's processes to files; the processes keep the rest."""
        self._suspension.snapshot(self._suspendable(worker), target)

    def resume(self, worker: str, source: Path) -> None:
        """Let the same processes go on, on the devices that the worker has now."""
        self._suspension.resume(self._suspendable(worker), source)

    def close(self) -> None:
        """Unmap the workers' files; the workers keep running under their limits."""
        with self._lock:
            self._enforcer.close()

    def _known(self, worker: str) -> WorkerSpec:
        with self._lock:
            spec = self._state.workers.get(worker)
        if spec is None:
            raise BackendError("simulated", f"worker {worker!r} was not prepared")
        return spec

    def _suspendable(self, worker: str) -> WorkerSpec:
        spec = self._known(worker)
        if spec.partitions:
            raise BackendError(
                "simulated", f"worker {worker}: the driver has no checkpoints on partitions"
            )
        return spec

    def _set_up(self) -> dict[str, str]:
        """Bring the cards into the mode that the description says; what there is to say where that must wait."""
        with self._lock:
            workers = self._state.workers.values()
            return self._mig.set_up({u for w in workers for u in w.partitions or w.devices})

    def _rate(self, spec: WorkerSpec, uuid: str) -> int:
        if spec.isolation == ISOLATION:
            return self._partitions.share_on(spec, uuid).limit_gflops
        return self._cards[uuid].compute_gflops

    def _processes(self, spec: WorkerSpec) -> dict[int, dict[str, int]]:
        """A worker's processes on the driver, with their bytes by device."""
        found: dict[int, dict[str, int]] = {}
        for uuid, device in self._devices.items():
            for row in self._management.truth(device.index):
                if row.alive and worker_of(row.pid) == spec.worker:
                    found.setdefault(row.pid, {})[uuid] = row.used_bytes
        return found

    def _free_bytes(self) -> dict[str, int]:
        return {
            uuid: device.memory_bytes - (self._management.read(device.index).used_bytes or 0)
            for uuid, device in self._devices.items()
        }

    def _put(self, spec: WorkerSpec) -> None:
        if _is_limited(spec):
            rates = {uuid: self._cards[uuid].compute_gflops for uuid in spec.devices}
            self._enforcer.put(spec, rates)

    def _check_devices(self, spec: WorkerSpec) -> None:
        healthy = {info.uuid: info for info in self.discover()}
        for uuid in spec.devices:
            if uuid not in healthy:
                raise BackendError(
                    "simulated", f"worker {spec.namespace}/{spec.name}: no device {uuid!r} here"
                )
            if not healthy[uuid].healthy:
                raise BackendError("simulated", f"device {uuid} failed: {healthy[uuid].message}")
            cut = healthy[uuid].partitioned
            if cut != (spec.isolation == ISOLATION):
                allowed = (mode for mode in ENFORCEMENT if cut == (mode == ISOLATION))
                raise BackendError(
                    "simulated",
                    f"worker {spec.namespace}/{spec.name}: MIG mode of device {uuid} is"
                    f" {'on' if cut else 'off'}: it takes isolation {' or '.join(allowed)}, not"
                    f" {spec.isolation!r}",
                )

    def _store(self, workers: dict[str, WorkerSpec]) -> None:
        """Change the workers, on disk first: what could not be written is not believed either."""
        changed = DriverState(workers)
        try:
            write_atomic(self._file, msgspec.json.encode(changed))
        except OSError as error:
            raise BackendError(
                "simulated", f"{self._file} cannot be written: {error.strerror}"
            ) from error
        self._state = changed


def _is_limited(spec: WorkerSpec) -> bool:
    """A worker with its cards or partitions to itself runs without the limiter."""
    return ENFORCEMENT[spec.isolation] is Enforcement.COOPERATIVE


def _load_program(spec: WorkerSpec) -> tuple[str, ...]:
    """The program that plays a worker's load profile on the driver."""
    return (
        sys.executable,
        "-m",
        "tensorfusion_simulated.program",
        f"--load={spec.annotations.get(names.SIMULATED_LOAD, '')}",
        f"--worker={spec.worker}",
        f"--gflops={spec.share.request_gflops}",
        f"--vram={spec.share.request_vram_bytes}",
    )


def _described(node: str, groups: Sequence[CardGroup]) -> dict[str, tuple[Card, bool]]:
    """By uuid the cards of a node, each with whether it is set up for partitions."""
    cards = [(find_card(g.model), g.partitioned) for g in groups for _ in range(g.count)]
    if len(cards) > MOST_DEVICES:
        raise BackendError(
            "simulated",
            f"node {node!r}: {len(cards)} cards; the fidelity driver has at most {MOST_DEVICES}",
        )
    for card, _ in cards:
        if card.vendor != "NVIDIA":
            raise BackendError(
                "simulated",
                f"node {node!r}: {card.model} is of {card.vendor}; the fidelity driver simulates"
                " NVIDIA's driver, take the fidelity model",
            )
    return {device_uuid(node, index, row[0].model): row for index, row in enumerate(cards)}


def _load(path: Path) -> DriverState:
    try:
        return msgspec.json.decode(path.read_bytes(), type=DriverState)
    except FileNotFoundError:
        return DriverState()
    except (OSError, msgspec.MsgspecError) as error:
        raise BackendError("simulated", f"{path} cannot be read: {error}") from error
