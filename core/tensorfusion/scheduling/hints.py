"""What would make a waiting pod fit, in its condition and event: found at most now and then."""

from dataclasses import dataclass

from tensorfusion.clock import Clock
from tensorfusion.model.demand import Demand, Shape
from tensorfusion.scheduling.placer import Placer

KEEP_SECONDS = 60.0
"""How long a hint is repeated as it is; `tensorfusion why` always looks anew."""
SHARE = 0.02
"""Part of the scheduler's time that hints may take."""
KEPT = 1024


@dataclass(frozen=True, slots=True)
class Hint:
    """What was found, and when (monotonic seconds)."""

    text: str
    found: float


class Hints:
    """The smallest change for each kind of request that waits.

    Concurrency: one thread.
    """

    def __init__(self, placer: Placer, clock: Clock) -> None:
        self._placer = placer
        self._clock = clock
        self._known: dict[tuple[str, Shape], Hint] = {}
        self._not_before = 0.0

    def of(self, demand: Demand) -> str:
        """Return the mildest change that makes a request fit; empty when none is known."""
        key = (demand.namespace, demand.shape)
        known = self._known.get(key)
        started = self._clock.monotonic()
        if known is not None and started - known.found < KEEP_SECONDS:
            return known.text
        if started < self._not_before:
            return known.text if known is not None else ""
        text = self._placer.relax(demand).message
        spent = self._clock.monotonic() - started
        self._not_before = started + spent / SHARE
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[key] = Hint(text, started)
        return text
