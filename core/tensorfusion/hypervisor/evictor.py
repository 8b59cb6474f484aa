"""Room on a card that is full: whose memory goes when a worker asks for somebody's.

A worker under the policy ``evict`` waits and shows in its usage what it wants. The evictor looks at
that a few times a second, and where a card has not enough free, has one idle neighbour frozen, which
takes its memory to the host. The worker finds the room by itself. Nobody is frozen in vain: when all
that may go would not be enough, the worker waits on, until its deadline.

The choice is pure (`pick`); `Evictor` reads the sessions and asks for the freeze.
"""

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tensorfusion.clock import Clock
from tensorfusion.errors import BackendError
from tensorfusion.hypervisor.looks import RUNG_SECONDS, look_is_due
from tensorfusion.spi.backend import DeviceInfo, FullPolicy, NodeBackend, WorkerSpec, WorkerUsage
from tensorfusion.spi.limited import LimitedWorkers

log = logging.getLogger(__name__)
TICK_SECONDS: Final = 0.25
"""Pause between two looks."""
IDLE_SECONDS: Final = 2.0
"""A worker that used nothing for so long may be frozen for others."""
IDLE_RATIO: Final = 0.01
"""Use of a device below which a worker counts as idle."""
AGAIN_SECONDS: Final = 10.0
"""A worker that could not be frozen is left alone for so long."""
RANKS: Final[Mapping[str, int]] = {"low": 0, "medium": 1, "high": 2, "critical": 3}
"""Order of the qualities of service; one that is not known counts as medium."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker waits for on one device.

    Attributes:
        missing_bytes: What it wants beyond what is free.
    """

    worker: str
    qos: str
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A worker on the same device.

    Attributes:
        idle_seconds: How long it has used none of its devices; 0 for one that waits for memory.
        held_bytes: What would come free.
    """

    worker: str
    qos: str
    idle_seconds: float
    held_bytes: int


def pick(request: Request, neighbours: Sequence[Neighbour]) -> str:
    """Choose the worker to freeze next.

    Only idle ones of no higher quality of service come into question, and only if together they
    hold enough. One that is enough by itself goes before several. Among those: the lowest quality
    of service, then the one that has been idle longest (in doublings: a minute more or less of an
    hour says nothing), then the smallest, since it is back soonest. Where none is enough by itself,
    the largest of the last goes first, so that few are frozen.

    Returns:
        The worker, empty when nobody should be frozen.
    """
    rank = _rank(request.qos)
    able = [
        n
        for n in neighbours
        if n.worker != request.worker
        and n.held_bytes > 0
        and n.idle_seconds >= IDLE_SECONDS
        and _rank(n.qos) <= rank
    ]
    if request.missing_bytes <= 0 or sum(n.held_bytes for n in able) < request.missing_bytes:
        return ""
    enough = [n for n in able if n.held_bytes >= request.missing_bytes]
    sign = 1 if enough else -1

    def order(one: Neighbour) -> tuple[int, int, int, str]:
        idle = int(math.log2(one.idle_seconds / IDLE_SECONDS))
        return _rank(one.qos), -idle, sign * one.held_bytes, one.worker

    return min(enough or able, key=order).worker


def _rank(qos: str) -> int:
    return RANKS.get(qos, RANKS["medium"])


class Evictor:
    """Answers the requests of all sessions.

    Args:
        promised: The workers of a node as their pods ask for them.
        infos: The devices of a node by uuid.
        usage: A fresh reading of a node's workers.
        freeze: Takes a worker of a node to host memory. Raises BackendError if it cannot.
        frozen: The workers of a node that are frozen already.

    Concurrency: one thread runs it.
    """

    def __init__(
        self,
        sessions: Mapping[str, NodeBackend],
        *,
        promised: Callable[[str], Sequence[WorkerSpec]],
        infos: Callable[[str], Mapping[str, DeviceInfo]],
        usage: Callable[[str], Sequence[WorkerUsage]],
        freeze: Callable[[str, str], None],
        frozen: Callable[[str], Collection[str]],
        clock: Clock,
    ) -> None:
        self._sessions = sessions
        self._promised = promised
        self._infos = infos
        self._usage = usage
        self._freeze = freeze
        self._frozen = frozen
        self._clock = clock
        self._active_at: dict[str, dict[str, float]] = {}
        """By node, worker to when it was last seen at work."""
        self._noted_at: dict[str, float] = {}
        self._bell = threading.Event()
        self._asked_at = float("-inf")
        self._spared: dict[tuple[str, str], float] = {}
        """Node and worker to when it may be tried again."""

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            self.run_once()
            self._clock.wait(stop, TICK_SECONDS)

    def run_rung(self, stop: threading.Event) -> None:
        """Look whenever `ring` was called, and now and then, until ``stop`` is set."""
        while not stop.is_set():
            self.run_once()
            self._clock.wait(self._bell, RUNG_SECONDS)
            self._bell.clear()

    def ring(self) -> None:
        """Have another thread's `run_rung` look, where a worker waits for memory or a look is due.

        For who has just read what all workers used: a look that is due goes by that reading.
        """
        now = self._clock.monotonic()
        due = look_is_due(now, self._asked_at)
        if not due and now - self._asked_at < TICK_SECONDS:
            return
        self._asked_at = now
        for session in self._sessions.values():
            if due or not isinstance(session, LimitedWorkers) or session.wants_memory():
                self._bell.set()
                return

    def run_once(self) -> None:
        """Look at every node once; at most one worker per device is frozen."""
        for node, session in self._sessions.items():
            try:
                self._look(node, session)
            except BackendError as error:
                log.warning("no room made", extra={"node": node, "error": str(error)})

    def _look(self, node: str, session: NodeBackend) -> None:
        promised = self._promised(node)
        if not any(spec.when_full.policy is FullPolicy.EVICT for spec in promised):
            return  # nobody can ask, so a reading would be for nothing
        now = self._clock.monotonic()
        due = look_is_due(now, self._noted_at.get(node, float("-inf")))
        if not due and isinstance(session, LimitedWorkers) and not session.wants_memory():
            return
        self._noted_at[node] = now
        specs = {spec.worker: spec for spec in promised}
        uses = [use for use in self._usage(node) if use.worker in specs]
        infos = self._infos(node)
        self._note(node, uses, infos)
        wanting = sorted({use.uuid for use in uses if _asks(specs[use.worker], use)})
        if not wanting:
            return
        used = {reading.uuid: reading.vram_used_bytes for reading in session.metrics()}
        gone = set(self._frozen(node))
        for uuid in wanting:
            if uuid in infos and used.get(uuid) is not None:
                free = infos[uuid].vram_bytes - (used[uuid] or 0)
                here = [use for use in uses if use.uuid == uuid]
                victim = self._victim(node, free, here, specs, gone)
                if victim and self._take(node, victim, uuid):
                    gone.add(victim)

    def _note(
        self, node: str, uses: Sequence[WorkerUsage], infos: Mapping[str, DeviceInfo]
    ) -> None:
        """Remember who works; a worker that was never seen before counts as at work."""
        now = self._clock.monotonic()
        before = self._active_at.get(node, {})
        known = self._active_at[node] = {}
        little = {uuid: IDLE_RATIO * info.compute_gflops for uuid, info in infos.items()}
        for use in uses:
            worker = use.worker
            works = use.compute_gflops > little.get(use.uuid, 0.0)
            if works or (use.pressure is not None and use.pressure.wanted_bytes > 0):
                known[worker] = now
            elif worker not in known:
                known[worker] = before.get(worker, now)

    def _victim(
        self,
        node: str,
        free: int,
        uses: Sequence[WorkerUsage],
        specs: Mapping[str, WorkerSpec],
        gone: Collection[str],
    ) -> str:
        now = self._clock.monotonic()
        neighbours = [
            Neighbour(
                use.worker,
                specs[use.worker].qos,
                now - self._active_at[node][use.worker],
                use.vram_bytes,
            )
            for use in uses
            if use.worker not in gone and now >= self._spared.get((node, use.worker), now)
        ]
        asking = [use for use in uses if _asks(specs[use.worker], use)]
        for use in sorted(asking, key=lambda u: (-_rank(specs[u.worker].qos), u.worker)):
            wanted = use.pressure.wanted_bytes if use.pressure is not None else 0
            request = Request(use.worker, specs[use.worker].qos, wanted - free)
            victim = pick(request, neighbours)
            if victim:
                return victim
        return ""

    def _take(self, node: str, worker: str, uuid: str) -> bool:
        extra = {"node": node, "worker": worker, "gpu": uuid}
        try:
            self._freeze(node, worker)
        except BackendError as error:
            now = self._clock.monotonic()
            spared = {who: until for who, until in self._spared.items() if until > now}
            self._spared = {**spared, (node, worker): now + AGAIN_SECONDS}
            log.warning("worker not frozen", extra={**extra, "error": str(error)})
            return False
        log.info("worker frozen to make room", extra=extra)
        return True


def _asks(spec: WorkerSpec, use: WorkerUsage) -> bool:
    wants = use.pressure is not None and use.pressure.wanted_bytes > 0
    return wants and spec.when_full.policy is FullPolicy.EVICT
