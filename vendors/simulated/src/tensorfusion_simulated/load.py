"""Load profiles: how much compute and memory a simulated worker wants at a time.

The annotation ``tensor-fusion.ai/simulated-load`` on a pod says which, in one line::

    constant,tflops=12,vram=3Gi
    sine,min=10%,max=90%,period=60s,vram=2Gi
    bursty,idle=2%,burst=100%,on=10s,off=20s,vram=1Gi
    ramp,from=0%,to=100%,over=2m,vram=1Gi..6Gi
    csv,file=/data/load.csv

A percentage is of one card; ``tflops`` is absolute. A CSV has the columns ``seconds``,
``utilization`` (0 to 1 of one card) and ``vram`` (a quantity), and repeats. Time counts from the
worker's start, so a profile does not depend on when the process was restarted.
"""

import csv
import math
import zlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.units import parse_bytes, parse_duration, parse_gflops

ALLOWED = "constant, sine, bursty, ramp or csv"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker wants of one card: GFLOP/s and bytes."""

    gflops: float
    vram_bytes: int


@dataclass(frozen=True, slots=True)
class Level:
    """An amount of compute: a fraction of a card, or absolute GFLOP/s."""

    ratio: float = 0.0
    gflops: float = 0.0

    def on(self, card_gflops: int) -> float:
        """Return GFLOP/s on a card of that rate."""
        return self.gflops + self.ratio * card_gflops


class Profile:
    """Wanted compute and memory over time."""

    def __init__(self, kind: str, values: Mapping[str, str], seed: int) -> None:
        self.kind = kind
        self._phase = (seed % 1000) / 1000.0
        self._low = _level(values.get("min") or values.get("from") or values.get("idle") or "0%")
        self._high = _high_level(values)
        self._period = parse_duration(values.get("period") or values.get("over") or "60s")
        self._on = parse_duration(values.get("on", "10s"))
        self._off = parse_duration(values.get("off", "20s"))
        low, _, high = values.get("vram", "1Gi").partition("..")
        self._vram = (parse_bytes(low), parse_bytes(high or low))
        self._rows = _read_csv(Path(values.get("file", ""))) if kind == "csv" else []

    def at(self, seconds: float, card_gflops: int) -> Wanted:
        """Return what is wanted ``seconds`` after the worker's start."""
        if self.kind == "csv":
            return self._replayed(seconds, card_gflops)
        share = self._share(seconds)
        low, high = self._low.on(card_gflops), self._high.on(card_gflops)
        vram = self._vram[0] + round((self._vram[1] - self._vram[0]) * share)
        return Wanted(low + (high - low) * share, vram)

    def _share(self, seconds: float) -> float:
        """Where between low and high the load is, 0 to 1."""
        if self.kind == "constant":
            return 1.0
        if self.kind == "ramp":
            return min(1.0, max(0.0, seconds / self._period))
        if self.kind == "bursty":
            return 1.0 if seconds % (self._on + self._off) < self._on else 0.0
        turn = seconds / self._period + self._phase
        return 0.5 - 0.5 * math.cos(2 * math.pi * turn)

    def _replayed(self, seconds: float, card_gflops: int) -> Wanted:
        length = self._rows[-1][0] or 1.0
        row = self._rows[max(0, bisect_right(self._rows, (seconds % length, 2.0, 0)) - 1)]
        return Wanted(row[1] * card_gflops, row[2])


def parse_profile(text: str, seed_text: str, default_gflops: int, default_vram: int) -> Profile:
    """Read the annotation; without one, a slow sine around 60 % of what was requested.

    Args:
        text: The annotation's value, possibly empty.
        seed_text: Identity of the worker: equal workers are not in step.
        default_gflops: The worker's request, for the default load.
        default_vram: Likewise, bytes.

    Raises:
        BackendError: The value cannot be read; says what is allowed.
    """
    seed = zlib.crc32(seed_text.encode())
    if not text.strip():
        values = {
            "min": f"{default_gflops * 0.3 / 1000}",
            "max": f"{default_gflops * 0.9 / 1000}",
            "vram": f"{default_vram * 6 // 10}",
            "period": "120s",
        }
        return Profile("sine", values, seed)
    kind, *parts = [part.strip() for part in text.split(",")]
    try:
        if kind not in ("constant", "sine", "bursty", "ramp", "csv"):
            raise ValueError(f"unknown profile {kind!r}; allowed: {ALLOWED}")
        pairs = [part.partition("=") for part in parts]
        unknown = [k for k, _, _ in pairs if k not in KEYS]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed: {', '.join(KEYS)}")
        return Profile(kind, {key: value for key, _, value in pairs}, seed)
    except (ValueError, OSError, KeyError) as error:
        raise BackendError("simulated", f"simulated-load {text!r}: {error}") from error


KEYS = (
    "tflops", "compute", "min", "max", "period", "idle", "burst", "on", "off", "from", "to",
    "over", "vram", "file",
)  # fmt: skip


def _high_level(values: Mapping[str, str]) -> Level:
    for key in ("max", "to", "burst", "compute", "tflops"):
        if key in values:
            return _level(values[key])
    return Level(ratio=0.5)


def _level(text: str) -> Level:
    if text.endswith("%"):
        return Level(ratio=float(text[:-1]) / 100)
    return Level(gflops=float(parse_gflops(text)))


def _read_csv(path: Path) -> list[tuple[float, float, int]]:
    with path.open(newline="") as file:
        rows = [
            (float(r["seconds"]), float(r["utilization"]), parse_bytes(r["vram"]))
            for r in csv.DictReader(file)
        ]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return sorted(rows)
