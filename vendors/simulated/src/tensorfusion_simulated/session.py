"""A session with the simulated cards of one node."""

import dataclasses
import logging
import threading
import uuid as uuids
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from tensorfusion import names
from tensorfusion.errors import BackendError
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
from tensorfusion_simulated.card import SimulatedCard, Tenant
from tensorfusion_simulated.description import CardGroup
from tensorfusion_simulated.links import find_links
from tensorfusion_simulated.load import Profile, default_profile, parse_profile
from tensorfusion_simulated.partitions import (
    ISOLATION,
    Partitions,
    SavedPartitions,
    check_resizable,
)
from tensorfusion_simulated.state import (
    CardState,
    CounterState,
    Fault,
    SessionState,
    WorkerChange,
    WorkerState,
    append_change,
    change_log,
    load_faults,
    load_state,
    spec_from_json,
    spec_to_json,
    write_atomic,
)

log = logging.getLogger(__name__)
NAMESPACE = uuids.UUID("5f0c9f0e-6f55-4a5c-8d3e-2f6f3d0a7b11")
CHECKPOINT_SECONDS = 60.0
"""How much of the counters a kill may lose; workers and their shares are logged at once."""
SOUND = Fault()
ENFORCEMENT: Mapping[str, Enforcement] = {
    "shared": Enforcement.NONE,
    "soft": Enforcement.SIMULATED,
    ISOLATION: Enforcement.SIMULATED,
}
"""Isolation mode to what binds: a shared worker has its cards to itself and no limits on them."""


def card_uuid(node: str, index: int, model: str) -> str:
    """Name a simulated card: the same for the same place and model, ever after."""
    return f"gpu-{uuids.uuid5(NAMESPACE, f'{node}/{index}/{model}')}"


class SimulatedSession:
    """The cards of one node. One lock guards everything; calls take microseconds."""

    def __init__(self, context: NodeContext, groups: Sequence[CardGroup]) -> None:
        self._context = context
        self._groups = groups
        self._lock = threading.RLock()
        self._state_file = context.state_dir / "simulated.json"
        self._faults_file = context.state_dir / "faults.json"
        self._faults_stamp = -1
        self._faults = load_faults(self._faults_file)
        self._cards: dict[str, SimulatedCard] = {}
        self._infos: list[DeviceInfo] = []
        self._specs: dict[str, WorkerSpec] = {}
        self._started: dict[str, float] = {}
        self._checkpointed = context.clock.monotonic()
        self._build()
        state = load_state(self._state_file)
        self._saved = SavedPartitions(state.partitions)
        self._partitions = Partitions(self._saved)
        self._restore(state)
        self._save()

    def discover(self) -> Sequence[DeviceInfo]:
        """List the cards that are there."""
        with self._lock:
            self._read_faults()
            return [self._apply_fault(info) for info in self._infos if not self._is_gone(info.uuid)]

    def topology(self) -> Sequence[Link]:
        """Connect cards of one model that have links, pairwise."""
        with self._lock:
            self._read_faults()
            infos = [info for info in self._infos if not self._is_gone(info.uuid)]
        return find_links({info.uuid: self._cards[info.uuid].card for info in infos})

    def metrics(self) -> Sequence[DeviceMetrics]:
        """Advance every card to now and read it."""
        with self._lock:
            self._advance()
            return [c.metrics() for u, c in self._cards.items() if not self._is_gone(u)]

    def usage(self) -> Sequence[WorkerUsage]:
        """Advance every card that has workers to now and read them."""
        with self._lock:
            busy = {uuid: card for uuid, card in self._cards.items() if card.tenants}
            self._advance(busy)
            return [row for card in busy.values() for row in card.usage()]

    def prepare(self, spec: WorkerSpec) -> PreparedWorker:
        """Put a worker on its cards."""
        if spec.isolation not in ENFORCEMENT:
            raise BackendError(
                "simulated",
                f"worker {spec.namespace}/{spec.name}: isolation {spec.isolation!r} is not"
                f" offered; allowed: {', '.join(ENFORCEMENT)}",
            )
        with self._lock:
            self._read_faults()
            self._check_devices(spec)
            if spec.isolation == ISOLATION:
                self._partitions.check(spec, self._specs)
            known = self._specs.get(spec.worker)
            if known != spec:
                profile = _profile(spec)
                self._advance({*spec.devices, *(known.devices if known else ())})
                counters = self._counters(known) if known else {}
                if known is not None:
                    self._detach(spec.worker)
                self._started.setdefault(spec.worker, self._context.clock.now())
                self._attach(spec, profile, counters)
                self._note(spec.worker)
        return PreparedWorker(
            env={"TENSORFUSION_SIMULATED_DEVICES": ",".join(spec.partitions or spec.devices)},
            enforcement=ENFORCEMENT[spec.isolation],
        )

    def set_limits(self, worker: str, share: Share) -> None:
        """Change a worker's share from now on."""
        with self._lock:
            spec = self._specs.get(worker)
            if spec is None:
                raise BackendError("simulated", f"worker {worker!r} was not prepared")
            check_resizable(spec, share)
            self._advance(spec.devices)
            self._specs[worker] = changed = dataclasses.replace(spec, share=share)
            for uuid in spec.devices:
                card = self._cards.get(uuid)
                if card is not None and worker in card.tenants:
                    card.tenants[worker].share = self._binding_share(changed, card)
            self._note(worker)

    def release(self, worker: str) -> None:
        """Take a worker off its cards."""
        with self._lock:
            if worker not in self._specs:
                return
            self._advance(self._specs[worker].devices)
            self._detach(worker)
            self._started.pop(worker, None)
            self._note(worker)

    def workers(self) -> Sequence[WorkerSpec]:
        """List prepared workers."""
        with self._lock:
            return list(self._specs.values())

    def partitions(self) -> Sequence[Partition]:
        """List the partitions in order of card and slot."""
        with self._lock:
            return self._partitions.all()

    def create_partition(self, uuid: str, template: str, start: int | None = None) -> Partition:
        """Cut a card by the catalogue's table of its model."""
        with self._lock:
            card = self._cards.get(uuid)
            if card is None or self._is_gone(uuid):
                raise BackendError("simulated", f"no device {uuid!r} here")
            whole = next((s for s in self._specs.values() if uuid in s.devices), None)
            if whole is not None and whole.isolation != ISOLATION:
                raise BackendError(
                    "simulated", f"device {uuid}: worker {whole.worker} uses it as a whole"
                )
            made = self._partitions.create(uuid, card.card, template, start)
            self._save()
            return made

    def remove_partition(self, uuid: str) -> None:
        """Give a partition back."""
        with self._lock:
            if self._partitions.remove(uuid, self._specs):
                self._save()

    def freeze(self, worker: str, tier: Tier) -> None:
        """Refuse: the model fidelity has no device memory."""
        raise BackendError("simulated", f"worker {worker}: freezing is not offered")

    def thaw(self, worker: str) -> float:
        """Refuse: the model fidelity has no device memory."""
        raise BackendError("simulated", f"worker {worker}: thawing is not offered")

    def frozen(self) -> Sequence[FrozenWorker]:
        """Return nothing: no worker is ever frozen."""
        return ()

    def snapshot(self, worker: str, target: Path) -> None:
        """Refuse: the model fidelity has no device state."""
        raise BackendError("simulated", f"worker {worker}: snapshot is not offered")

    def resume(self, worker: str, source: Path) -> None:
        """Refuse: the model fidelity has no device state."""
        raise BackendError("simulated", f"worker {worker}: resume is not offered")

    def close(self) -> None:
        """Write counters out."""
        with self._lock:
            self._advance()
            self._save()

    def _build(self) -> None:
        groups = [*self._groups, *(CardGroup(model=m) for m in self._faults.added)]
        total = sum(group.count for group in groups)
        now = self._context.clock.now()
        index = 0
        for group in groups:
            card = find_card(group.model)
            for _ in range(group.count):
                uuid = card_uuid(self._context.node, index, card.model)
                numa = group.numa if group.numa is not None else index * 2 // max(total, 2)
                if uuid not in self._cards:
                    self._cards[uuid] = SimulatedCard(uuid, card, now)
                    info = _info(card, uuid, index, numa)
                    self._infos.append(dataclasses.replace(info, partitioned=group.partitioned))
                index += 1

    def _restore(self, state: SessionState) -> None:
        for uuid, saved in state.cards.items():
            if uuid in self._cards:
                self._cards[uuid].joules = saved.joules
                self._cards[uuid].celsius = saved.celsius
        for worker, entry in state.workers.items():
            spec = spec_from_json(entry.spec)
            self._started[worker] = entry.started
            try:
                profile = _profile(spec)
            except BackendError as error:
                # Its CSV went away while nobody looked; the worker itself is still there.
                log.warning("load profile lost", extra={"worker": worker, "error": str(error)})
                share = spec.share
                profile = default_profile(0.0, share.request_gflops, share.request_vram_bytes)
            self._attach(spec, profile, entry.cards)

    def _attach(
        self, spec: WorkerSpec, profile: Profile, counters: Mapping[str, CounterState]
    ) -> None:
        self._specs[spec.worker] = spec
        for uuid in spec.devices:
            card = self._cards.get(uuid)
            if card is None:
                continue
            before = counters.get(uuid, CounterState())
            card.tenants[spec.worker] = Tenant(
                worker=spec.worker,
                share=self._binding_share(spec, card),
                profile=profile,
                started=self._started[spec.worker],
                vram_bytes=before.vram_bytes,
                throttled_seconds=before.throttled_seconds,
                oom_total=before.oom_total,
                refused=before.refused,
            )

    def _binding_share(self, spec: WorkerSpec, card: SimulatedCard) -> Share:
        """The share that the model holds a worker to."""
        if spec.isolation == ISOLATION:
            return self._partitions.share_on(spec, card.uuid)
        if ENFORCEMENT[spec.isolation] is not Enforcement.NONE:
            return spec.share
        return dataclasses.replace(
            spec.share,
            limit_gflops=card.card.compute_gflops,
            limit_vram_bytes=card.card.vram_bytes,
            limit_milli_percent=0,
        )

    def _detach(self, worker: str) -> None:
        spec = self._specs.pop(worker)
        for uuid in spec.devices:
            if uuid in self._cards:
                self._cards[uuid].tenants.pop(worker, None)

    def _check_devices(self, spec: WorkerSpec) -> None:
        for uuid in spec.devices:
            if uuid not in self._cards or self._is_gone(uuid):
                raise BackendError(
                    "simulated", f"worker {spec.namespace}/{spec.name}: no device {uuid!r} here"
                )
            failed = self._fault(uuid).failed
            if failed:
                raise BackendError("simulated", f"device {uuid} failed: {failed}")

    def _advance(self, uuids: Iterable[str] | None = None) -> None:
        """Bring cards up to now: all of them, or those whose tenants are about to change."""
        self._read_faults()
        now = self._context.clock.now()
        for uuid in self._cards if uuids is None else uuids:
            card = self._cards.get(uuid)
            if card is None:
                continue
            fault = self._fault(uuid)
            card.failed = fault.failed or ("removed" if fault.removed else "")
            card.speed_ratio = fault.speed_ratio
            card.advance(now)
        if self._context.clock.monotonic() - self._checkpointed > CHECKPOINT_SECONDS:
            self._checkpoint()

    def _read_faults(self) -> None:
        try:
            stamp = self._faults_file.stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        if stamp != self._faults_stamp:
            self._faults = load_faults(self._faults_file)
            self._faults_stamp = stamp
            known = len(self._cards)
            self._build()
            if len(self._cards) != known:
                self._checkpoint()

    def _fault(self, uuid: str) -> Fault:
        return self._faults.cards.get(uuid, SOUND)

    def _is_gone(self, uuid: str) -> bool:
        return self._fault(uuid).removed

    def _apply_fault(self, info: DeviceInfo) -> DeviceInfo:
        failed = self._fault(info.uuid).failed
        return dataclasses.replace(info, healthy=False, message=failed) if failed else info

    def _checkpoint(self) -> None:
        """Save counters now and then; a full disk must not take the readings away."""
        try:
            self._save()
        except BackendError as error:
            log.warning("state not saved", extra={"error": str(error)})

    def _note(self, worker: str) -> None:
        """Log what a worker is now: a line, where the whole state would be a file."""
        spec = self._specs.get(worker)
        change = WorkerChange(
            worker=worker,
            started=self._started.get(worker, 0.0),
            spec=spec_to_json(spec) if spec is not None else None,
        )
        try:
            append_change(self._state_file, change)
        except OSError as error:
            raise _unwritable(change_log(self._state_file), error) from error

    def _save(self) -> None:
        self._checkpointed = self._context.clock.monotonic()
        state = SessionState(
            workers={
                worker: WorkerState(
                    spec=spec_to_json(spec),
                    started=self._started[worker],
                    cards=self._counters(spec),
                )
                for worker, spec in self._specs.items()
            },
            cards={
                u: CardState(joules=c.joules, celsius=c.celsius) for u, c in self._cards.items()
            },
            partitions=self._saved.state(),
        )
        try:
            write_atomic(self._state_file, msgspec.json.encode(state))
            change_log(self._state_file).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self._state_file, error) from error

    def _counters(self, spec: WorkerSpec) -> dict[str, CounterState]:
        """What a worker holds and has counted, by card."""
        found = {}
        for uuid in spec.devices:
            tenant = self._cards[uuid].tenants.get(spec.worker) if uuid in self._cards else None
            if tenant is not None:
                found[uuid] = CounterState(
                    vram_bytes=tenant.vram_bytes,
                    oom_total=tenant.oom_total,
                    throttled_seconds=tenant.throttled_seconds,
                    refused=tenant.refused,
                )
        return found


def _unwritable(path: Path, error: OSError) -> BackendError:
    return BackendError("simulated", f"{path} cannot be written: {error.strerror}")


def _profile(spec: WorkerSpec) -> Profile:
    return parse_profile(
        spec.annotations.get(names.SIMULATED_LOAD, ""),
        spec.worker,
        spec.share.request_gflops,
        spec.share.request_vram_bytes,
    )


def _info(card: Card, uuid: str, index: int, numa: int) -> DeviceInfo:
    return DeviceInfo(
        uuid=uuid,
        index=index,
        vendor=card.vendor,
        model=card.model,
        full_model=card.full_model,
        compute_gflops=card.compute_gflops,
        vram_bytes=card.vram_bytes,
        numa_node=numa,
        driver_version="simulated",
        multiprocessors=card.multiprocessors,
        pci_bus_id=f"0000:{index + 1:02x}:00.0",
    )
