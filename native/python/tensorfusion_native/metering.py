"""What workers had of a simulated device, from the simulator's truth about their processes."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tensorfusion_native.management import ProcessTruth
from tensorfusion_native.processes import worker_of

WINDOW_SECONDS = 1.0
"""Rates are over the last second, or since the last reading where that is longer ago."""


class Metered(NamedTuple):
    """Share of the device's time in the last window, 0 to 1; bytes held now; time used so far."""

    ratio: float = 0.0
    used_bytes: int = 0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class _Account:
    busy_ns: int = 0
    readings: deque[tuple[float, int]] = field(default_factory=deque)

    def ratio(self, now: float) -> float:
        """Note a reading; the rate since the youngest one that is a window old, else the oldest."""
        self.readings.append((now, self.busy_ns))
        while len(self.readings) > 1 and now - self.readings[1][0] >= WINDOW_SECONDS:
            self.readings.popleft()
        since, busy = self.readings[0]
        return min(1.0, (self.busy_ns - busy) / 1e9 / (now - since)) if now > since else 0.0


class Meter:
    """Adds the processes of a device up by worker.

    Concurrency: not safe from several threads; its owner's lock guards it.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._seen: dict[tuple[int, int], tuple[str, int]] = {}

    def read(self, rows: Sequence[ProcessTruth], workers: Sequence[str]) -> dict[str, Metered]:
        """Take the truth as of now; one entry per worker."""
        accounts = {name: self._accounts.get(name) or _Account() for name in workers}
        used = dict.fromkeys(workers, 0)
        seen: dict[tuple[int, int], tuple[str, int]] = {}
        for pid, alive, start_ticks, used_bytes, busy_ns in rows:
            worker, before = self._seen.get((pid, start_ticks), ("", 0))
            worker = worker or (worker_of(pid) if alive else "")
            seen[pid, start_ticks] = (worker, busy_ns)
            if worker in used:
                accounts[worker].busy_ns += busy_ns - before
                used[worker] += used_bytes
        self._seen, self._accounts = seen, accounts
        now = time.monotonic()
        return {
            name: Metered(account.ratio(now), used[name], account.busy_ns / 1e9)
            for name, account in accounts.items()
        }
