"""Processes of workers that have the driver open and no limiter in front of it.

A program that drops the preload, or one that is linked so that nothing can be preloaded, takes what
it likes of a shared device. The limiter cannot tell, since it is not there; the kernel shows it. A
look lists the machine's processes and examines those that are new: whose they are, and, for those
of limited workers, what they have mapped.

A process becomes another program without getting another number (execve(2)). So a process that has
neither the driver nor the limiter is examined at every look, one that has the limiter at its first
few and then in turns, a few at a look.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorfusion.clock import Clock
from tensorfusion.hypervisor.pod_report import PodReport
from tensorfusion.hypervisor.registry import Origin
from tensorfusion.runtime.conditions import condition
from tensorfusion.runtime.instruments import Instruments, Row
from tensorfusion.spi.backend import WorkerSpec
from tensorfusion.spi.limited import Attachment, TellsAttachment

log = logging.getLogger(__name__)
LOOK_SECONDS: Final = 2.0
"""Pause between two looks: a process is reported within twice this, by its event within 5 s."""
FIRST_LOOKS: Final = 3
"""A program that is started sets its preload aside within the first moments, if ever; and it may be
there a moment before it is known which pod it is of."""
IN_TURN: Final = 4
"""Limited processes that are examined again at a look."""
CONDITION: Final = "LimiterBypassed"
"""Condition of a pod: some process of its worker uses the driver without the limiter."""
SHOWN: Final = 5
"""Process ids that a message names."""


@dataclass(slots=True)
class _Process:
    """What is known of a process.

    Attributes:
        origin: Where it comes from.
        worker: Whose it is; empty for nobody's.
        looks: How often it was examined.
    """

    origin: Origin
    worker: str
    looks: int = 0
    attachment: Attachment = Attachment.NONE


class BypassWatch:
    """Looks for such processes on one node.

    Args:
        session: Of the node.
        origin: Where a process comes from.
        led_by: The worker whose container a process leads; empty for any other process.
        specs: The workers of the node.
        labels: Of a worker's series.

    Concurrency: one thread runs it.
    """

    def __init__(
        self,
        session: TellsAttachment,
        *,
        origin: Callable[[int], Origin],
        led_by: Callable[[int], str],
        specs: Callable[[], Sequence[WorkerSpec]],
        labels: Callable[[WorkerSpec], tuple[str, ...]],
        report: PodReport,
        instruments: Instruments,
        clock: Clock,
        proc: Path = Path("/proc"),
    ) -> None:
        self._session = session
        self._origin = origin
        self._led_by = led_by
        self._specs = specs
        self._labels = labels
        self._report = report
        self._instruments = instruments
        self._clock = clock
        self._proc = proc
        self._present: frozenset[str] = frozenset()
        """The processes at the last look."""
        self._open: dict[int, _Process] = {}
        """Those that are examined at every look."""
        self._settled: dict[int, _Process] = {}
        """Those of workers that have the limiter, or need none."""
        self._done: tuple[Mapping[str, tuple[int, ...]], Sequence[WorkerSpec]] = ({}, ())
        """What was found last, and the workers then, if all was told."""
        self._told: dict[str, tuple[int, ...]] = {}
        """By worker, the processes that its pod was told of."""

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop`` is set."""
        while not stop.is_set():
            self.look()
            self._clock.wait(stop, LOOK_SECONDS)

    def look(self) -> None:
        """Look once, and tell what has changed."""
        # Process ids are used again after all others were (PID_MAX of the kernel), not within a look.
        present = frozenset(filter(str.isdecimal, os.listdir(self._proc)))
        for name in self._present - present:
            self._open.pop(int(name), None)
            self._settled.pop(int(name), None)
        for pid in sorted(map(int, present - self._present)):  # parents first, as a rule
            origin = self._origin(pid)
            self._open[pid] = _Process(origin, origin.worker)
        self._present = present
        self._examine()
        found: dict[str, list[int]] = {}
        for pid, one in self._open.items():
            if one.attachment is Attachment.BYPASSED:
                found.setdefault(one.worker, []).append(pid)
        self._tell({worker: tuple(sorted(pids)) for worker, pids in found.items()})

    def _examine(self) -> None:
        """Examine who is due, and sort them by whether they need it again."""
        due = {**self._open, **self._next_in_turn()}
        for pid, one in due.items():
            one.looks += 1
            one.worker = one.worker or self._worker_of(one.origin)
            if one.worker:
                one.attachment = self._session.attachment(one.worker, pid)
            moves = one.attachment in (Attachment.NONE, Attachment.BYPASSED)
            self._settled.pop(pid, None)
            self._open.pop(pid, None)
            if one.looks < FIRST_LOOKS or (one.worker and moves):
                self._open[pid] = one
            elif one.worker:
                self._settled[pid] = one

    def _next_in_turn(self) -> dict[int, _Process]:
        """A few of the settled ones; who was examined goes to the end."""
        return dict(itertools.islice(self._settled.items(), IN_TURN))

    def _worker_of(self, origin: Origin) -> str:
        """Whose a process is that shows nothing itself: its container's leader's, or its parent's."""
        parent = self._open.get(origin.parent) or self._settled.get(origin.parent)
        return self._led_by(origin.session) or (parent.worker if parent is not None else "")

    def _tell(self, found: Mapping[str, tuple[int, ...]]) -> None:
        promised = self._specs()
        if found == self._done[0] and promised is self._done[1]:
            return
        specs = {spec.worker: spec for spec in promised}
        rows: list[Row] = []
        taken = True
        for worker, spec in specs.items():
            pids = found.get(worker, ())
            rows.append((self._labels(spec), float(len(pids))))
            before = self._told.get(worker)
            if before is None and not pids:
                # An earlier run may have told of processes that ended meanwhile.
                stale = self._report.status_of(spec, CONDITION) == "True"
                before = (0,) if stale else ()
                self._told[worker] = before
            if pids != before:
                told = self._write(spec, pids, before or ())
                taken = taken and told
                if told:
                    self._told[worker] = pids
        self._told = {worker: pids for worker, pids in self._told.items() if worker in specs}
        self._instruments.replace("tensorfusion_worker_limiter_bypassed_processes", rows)
        if taken:
            self._done = (found, promised)

    def _write(self, spec: WorkerSpec, pids: tuple[int, ...], before: tuple[int, ...]) -> bool:
        if not pids:
            text = "no process has the driver open without the limiter"
            told = condition(CONDITION, status=False, reason="NoneFound", message=text)
            return self._report.write(spec, told)
        shown = ", ".join(map(str, pids[:SHOWN])) + (", ..." if len(pids) > SHOWN else "")
        text = f"processes that have the driver open without the limiter: {shown}"
        if set(pids) - set(before):
            self._report.event(spec, "LimiterBypassed", text, warning=True)
        told = condition(CONDITION, status=True, reason="DriverWithoutLimiter", message=text)
        return self._report.write(spec, told)
