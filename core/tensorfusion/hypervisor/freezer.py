"""Freezing idle workers, and thawing them when they have work again.

A worker that used nothing of its devices for as long as its pool's template says for its quality
of service goes to host memory, later to disk. One whose call waits for the device is thawed at
once. When there is no room on the device the thaw is tried again, and the worker's call waits. Where
a vendor cannot tell who waits, nobody is frozen for being idle, only by annotation.

The annotation ``freeze`` of a pod goes before the rules: ``warm`` and ``cold`` keep it frozen
whatever it wants, ``hot`` keeps it on its devices.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from tensorfusion import names
from tensorfusion.api.core.pod import Pod
from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError, ConfigError
from tensorfusion.hypervisor.freeze_moves import Moves
from tensorfusion.hypervisor.freeze_report import FreezeReport
from tensorfusion.hypervisor.freeze_rules import NEVER, FreezeRule, due_tier
from tensorfusion.hypervisor.looks import RUNG_SECONDS, look_is_due
from tensorfusion.runtime.events import EventRecorder
from tensorfusion.runtime.instruments import Instruments
from tensorfusion.spi.backend import (
    Capabilities,
    FrozenWorker,
    NodeBackend,
    Tier,
    WorkerSpec,
    WorkerUsage,
)
from tensorfusion.store.interface import Store

log = logging.getLogger(__name__)
TICK_SECONDS: Final = 0.1
"""Pause between two looks at who waits: what a thaw takes beyond the copy."""
REST_SECONDS: Final = 10.0
"""A worker that was thawed stays on its devices for so long, or two would push each other out."""
RETRY_SECONDS: Final = 1.0
"""Pause after a freeze or thaw that failed."""


@dataclass(slots=True)
class _Seen:
    """What is known of a worker from the last looks."""

    active_at: float
    totals: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    """By device: seconds busy, seconds held back, bytes."""
    thawed_at: float = float("-inf")
    retry_at: float = float("-inf")


class WorkerFreezer:
    """Keeps the workers of all nodes where their use says they belong.

    Args:
        sessions: By node.
        capabilities: Of the backend: which tiers it has, and whether it tells who waits.
        promised: The workers of a node as their pods ask for them.
        rules: A node's rules by quality of service. Raises ConfigError where they are wrong.
        pool_of: Names the pool of a node.
        pod_of: Finds the pod of a worker.
        usage: What a node's workers used, read within the last second; asks the session by default.

    Concurrency: one thread runs it, and others move the workers; `freeze`, `frozen` and `ring` may
    be called from any.
    """

    def __init__(
        self,
        sessions: Mapping[str, NodeBackend],
        capabilities: Capabilities,
        *,
        promised: Callable[[str], Sequence[WorkerSpec]],
        rules: Callable[[str], Mapping[str, FreezeRule]],
        pool_of: Callable[[str], str],
        pod_of: Callable[[WorkerSpec], Pod | None],
        store: Store,
        events: EventRecorder,
        instruments: Instruments,
        clock: Clock,
        usage: Callable[[str], Sequence[WorkerUsage]] | None = None,
    ) -> None:
        self._sessions = sessions
        self._usage = usage or (lambda node: sessions[node].usage())
        self._offered = capabilities.freeze
        self._tells_waiting = capabilities.tells_waiting
        self._promised = promised
        self._rules = rules
        self._pool_of = pool_of
        self._pod_of = pod_of
        self._report = FreezeReport(pod_of, store, events, clock)
        self._moves = Moves()
        self._instruments = instruments
        self._clock = clock
        self._seen: dict[tuple[str, str], _Seen] = {}
        self._looked_at = float("-inf")
        self._bell = threading.Event()
        self._some_frozen = False
        """Somebody was frozen at the last look, or has been since."""

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            self._look_around()
            self._clock.wait(stop, TICK_SECONDS)
        self._moves.close()

    def run_rung(self, stop: threading.Event) -> None:
        """Look whenever `ring` found a reason to, until ``stop`` is set."""
        while not stop.is_set():
            self._look_around()
            self._clock.wait(self._bell, RUNG_SECONDS)
            self._bell.clear()
        self._moves.close()

    def ring(self) -> None:
        """Have another thread's `run_rung` look, where somebody may wait or a look is due.

        For who has just read what all workers used, and comes by at least every `TICK_SECONDS`.
        """
        if self._some_frozen or look_is_due(self._clock.monotonic(), self._looked_at):
            self._bell.set()

    def run_once(self) -> None:
        """Look once, and return when all that it began is done."""
        self._look_around()
        self._moves.wait()

    def _look_around(self) -> None:
        """Thaw who waits; now and then freeze who is idle, and tell how all are."""
        now = self._clock.monotonic()
        looks = look_is_due(now, self._looked_at)
        if looks:
            self._looked_at = now
        rows: list[tuple[tuple[str, ...], float]] = []
        some, self._some_frozen = False, False
        for node, session in self._sessions.items():
            try:
                frozen = session.frozen()
                some = some or bool(frozen)
                if not (frozen or looks):
                    continue
                specs = {spec.worker: spec for spec in self._promised(node)}
                self._thaw_waiting(node, session, specs, frozen)
                if looks:
                    self._look(node, specs, frozen)
                    rows += self._tell(node, session, specs)
            except BackendError as error:
                log.warning("not frozen or thawed", extra={"node": node, "error": str(error)})
        if some:
            self._some_frozen = True  # and no False here: somebody may have been frozen meanwhile
        if looks:
            self._instruments.replace("tensorfusion_hypervisor_frozen_workers", rows)

    def freeze(self, node: str, worker: str) -> None:
        """Take a worker to host memory now, to make room for others.

        Raises:
            BackendError: Nobody could tell when it waits, it was thawed just now, keeps its place
                by annotation, has a partition, leaves, is being moved, or cannot be frozen.
        """
        spec = next((s for s in self._promised(node) if s.worker == worker), None)
        seen = self._seen.get((node, worker))
        if not self._tells_waiting:
            raise BackendError("freezer", f"node {node!r}: nobody would know when to thaw a worker")
        if spec is None or spec.partitions or self._wanted(spec) == Tier.HOT:
            raise BackendError("freezer", f"worker {worker!r} must not be frozen")
        if seen is not None and self._clock.monotonic() - seen.thawed_at < REST_SECONDS:
            raise BackendError("freezer", f"worker {worker!r} was thawed just now")
        with self._moves.alone((node, worker)):
            self._freeze(node, spec, Tier.WARM)

    def frozen(self, node: str) -> Collection[str]:
        """The frozen workers of a node."""
        return {row.worker for row in self._sessions[node].frozen()}

    def _thaw_waiting(
        self,
        node: str,
        session: NodeBackend,
        specs: Mapping[str, WorkerSpec],
        frozen: Sequence[FrozenWorker],
    ) -> None:
        for row in frozen:
            spec = specs.get(row.worker)
            if spec is None:
                continue
            wanted = self._wanted(spec)
            # One that nobody could see waiting comes back when its annotation goes.
            waits = row.waiting or not self._tells_waiting
            if wanted == Tier.HOT or (waits and wanted not in (Tier.WARM, Tier.COLD)):
                self._begin_thaw(node, session, spec, row)

    def _wanted(self, spec: WorkerSpec) -> str:
        """The tier that the pod asks for; empty when it leaves that to the rules.

        A pod that is deleted wants its devices: it has its grace period for putting things in
        order, and a thread that waits in the driver cannot act on a signal.
        """
        pod = self._pod_of(spec)
        if pod is None:
            return spec.annotations.get(names.FREEZE, "")
        if pod.metadata.deletion_timestamp:
            return Tier.HOT.value
        return pod.metadata.annotations.get(names.FREEZE, "")

    def _begin_thaw(
        self, node: str, session: NodeBackend, spec: WorkerSpec, row: FrozenWorker
    ) -> None:
        seen = self._known(node, spec.worker)
        if self._clock.monotonic() >= seen.retry_at:
            call = partial(self._thaw, node, session, spec, row, seen)
            self._moves.thaw((node, spec.worker), call)

    def _thaw(
        self, node: str, session: NodeBackend, spec: WorkerSpec, row: FrozenWorker, seen: _Seen
    ) -> None:
        labels = {"pool": self._pool_of(node), "node": node, "tier": row.tier.value}
        try:
            seconds = session.thaw(spec.worker)
        except BackendError as error:
            seen.retry_at = self._clock.monotonic() + RETRY_SECONDS
            self._instruments.count("tensorfusion_hypervisor_thaw_failures_total", labels)
            message = f"from tier {row.tier}: {error}"
            self._report.event(spec, "ThawFailed", message, warning=True)
            return
        seen.active_at = seen.thawed_at = self._clock.monotonic()
        self._instruments.observe("tensorfusion_hypervisor_thaw_seconds", seconds, labels)
        text = f"{row.vram_bytes} bytes from tier {row.tier} in {seconds:.3f} s"
        self._report.event(spec, "Thawed", text)
        self._report.thawed(spec, text)

    def _look(
        self, node: str, specs: Mapping[str, WorkerSpec], frozen: Sequence[FrozenWorker]
    ) -> None:
        """Freeze who has been idle for long enough."""
        now = self._clock.monotonic()
        for use in self._usage(node):
            if use.worker in specs:
                self._note(node, use, now)
        gone = [key for key in self._seen if key[0] == node and key[1] not in specs]
        for key in gone:
            del self._seen[key]
        try:
            rules = self._rules(node)
        except ConfigError as error:
            log.warning("freeze rules not used", extra={"node": node, "error": str(error)})
            rules = {}
        tiers = {row.worker: row.tier for row in frozen}
        for spec in specs.values():
            seen = self._seen.get((node, spec.worker))
            if seen is None or now < seen.retry_at:
                continue
            tier = tiers.get(spec.worker, Tier.HOT) if tiers else Tier.HOT
            due = self._due(spec, seen, rules, tier, now)
            if due is not tier:
                call = partial(self._try_freeze, node, spec, due, seen)
                self._moves.freeze((node, spec.worker), call)

    def _due(
        self,
        spec: WorkerSpec,
        seen: _Seen,
        rules: Mapping[str, FreezeRule],
        tier: Tier,
        now: float,
    ) -> Tier:
        """Where a worker that is in a tier belongs now, as long as it has no work."""
        wanted = self._wanted(spec)
        if wanted and wanted in self._offered:
            return Tier(wanted)
        # The memory of a partition is nobody else's, so nothing is gained by freezing its worker.
        frees = self._tells_waiting and not spec.partitions
        rule = rules.get(spec.qos, NEVER) if frees else NEVER
        if rule is NEVER or wanted == Tier.HOT or now - seen.thawed_at < REST_SECONDS:
            return tier
        return due_tier(rule, now - seen.active_at, tier, self._offered)

    def _note(self, node: str, use: WorkerUsage, now: float) -> None:
        """Remember whether a worker used anything since the last look; a new one did."""
        seen = self._known(node, use.worker)
        busy, held, size = use.busy_seconds_total, use.throttled_seconds_total, use.vram_bytes
        busy_before, held_before, most = seen.totals.get(use.uuid, (0.0, 0.0, 0))
        wants = use.pressure is not None and use.pressure.wanted_bytes > 0
        grown = busy > busy_before or held > held_before or size > most
        if grown or wants or use.compute_gflops > 0:
            seen.active_at = now
        # What a frozen worker gave back and takes again is no use.
        seen.totals[use.uuid] = (busy, held, max(size, most))

    def _known(self, node: str, worker: str) -> _Seen:
        seen = self._seen.get((node, worker))
        if seen is None:
            seen = self._seen[node, worker] = _Seen(self._clock.monotonic())
        return seen

    def _try_freeze(self, node: str, spec: WorkerSpec, tier: Tier, seen: _Seen) -> None:
        try:
            self._freeze(node, spec, tier)
        except BackendError as error:
            seen.retry_at = self._clock.monotonic() + RETRY_SECONDS
            self._report.event(spec, "FreezeFailed", f"to tier {tier}: {error}", warning=True)

    def _freeze(self, node: str, spec: WorkerSpec, tier: Tier) -> None:
        session = self._sessions[node]
        started = self._clock.monotonic()
        session.freeze(spec.worker, tier)
        self._some_frozen = True
        seconds = self._clock.monotonic() - started
        row = next((r for r in session.frozen() if r.worker == spec.worker), None)
        if row is None:
            return  # it has no processes: there is nothing to freeze
        labels = {"pool": self._pool_of(node), "node": node, "tier": tier.value}
        self._instruments.observe("tensorfusion_hypervisor_freeze_seconds", seconds, labels)
        text = f"{row.vram_bytes} bytes to tier {tier} in {seconds:.3f} s"
        self._report.event(spec, "Frozen", text)
        self._report.frozen(spec, tier, row.vram_bytes)

    def _tell(
        self, node: str, session: NodeBackend, specs: Mapping[str, WorkerSpec]
    ) -> list[tuple[tuple[str, ...], float]]:
        """Write the pods' conditions, and count the frozen by tier."""
        counts = dict.fromkeys(self._offered, 0)
        # Asked first: what is thawed while the list is read says so itself.
        moving = self._moves.under_way()
        for row in session.frozen():
            counts[row.tier] = counts.get(row.tier, 0) + 1
            if row.worker in specs and (node, row.worker) not in moving:
                self._report.frozen(specs[row.worker], row.tier, row.vram_bytes)
        pool = self._pool_of(node)
        return [((pool, node, tier.value), float(count)) for tier, count in counts.items()]
