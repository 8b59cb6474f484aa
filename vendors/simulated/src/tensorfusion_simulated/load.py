"""Load profiles: how much compute and memory a simulated worker wants at a time.

The annotation ``tensor-fusion.ai/simulated-load`` on a pod says which, in one line::

    constant,tflops=12,vram=3Gi
    sine,min=10%,max=90%,period=60s,vram=2Gi
    bursty,idle=2%,burst=100%,on=10s,off=20s,vram=1Gi
    ramp,from=0%,to=100%,over=2m,vram=1Gi..6Gi
    csv,file=/data/load.csv

A percentage is of one card; a plain number is TFLOPS. A CSV has the columns ``seconds``,
``utilization`` (0 to 1 of one card) and ``vram`` (a quantity), and repeats. Time counts from the
worker's start, so a profile does not depend on when the process was restarted.
"""

import csv
import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorfusion.errors import BackendError
from tensorfusion.units import parse_bytes, parse_duration, parse_gflops

KEYS: Mapping[str, tuple[str, ...]] = {
    "constant": ("tflops", "compute", "vram"),
    "sine": ("min", "max", "period", "vram"),
    "bursty": ("idle", "burst", "on", "off", "vram"),
    "ramp": ("from", "to", "over", "vram"),
    "csv": ("file",),
}
"""Kind of profile to the keys that it takes."""

DEFAULT_PERIOD_SECONDS = 120.0
STEPS_PER_CURVE = 32
"""Steps that follow one period of a sine, or one ramp, to a thousandth of its mean."""
EDGE_SECONDS = 0.5
"""Step at which curves with jumps are followed."""
COLUMNS = ("seconds", "utilization", "vram")


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


@dataclass(frozen=True, slots=True)
class Profile:
    """Wanted compute and memory over time.

    Attributes:
        kind: One of `KEYS`.
        low: Compute at the bottom of the curve.
        high: Compute at its top.
        vram_bytes: Memory at the bottom and at the top.
        curve: Seconds since the worker's start to where between bottom and top, 0 to 1.
        step_seconds: The longest step of time at which the curve is still followed.
        rows: Of a CSV: seconds, fraction of a card, bytes; sorted.
    """

    kind: str
    low: Level
    high: Level
    vram_bytes: tuple[int, int]
    curve: Callable[[float], float]
    step_seconds: float = EDGE_SECONDS
    rows: tuple[tuple[float, float, int], ...] = ()

    def at(self, seconds: float, card_gflops: int) -> Wanted:
        """Return what is wanted ``seconds`` after the worker's start."""
        if self.rows:
            return self._replayed(seconds, card_gflops)
        share = self.curve(max(0.0, seconds))
        low, high = self.low.on(card_gflops), self.high.on(card_gflops)
        bottom, top = self.vram_bytes
        return Wanted(low + (high - low) * share, bottom + round((top - bottom) * share))

    def _replayed(self, seconds: float, card_gflops: int) -> Wanted:
        length = self.rows[-1][0] or 1.0
        after = bisect_right(self.rows, (max(0.0, seconds) % length, math.inf, 0))
        _, ratio, vram = self.rows[max(0, after - 1)]
        return Wanted(ratio * card_gflops, vram)


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
    phase = zlib.crc32(seed_text.encode()) % 1000 / 1000
    if not text.strip():
        return default_profile(phase, default_gflops, default_vram)
    kind, *parts = [part.strip() for part in text.split(",")]
    try:
        if kind not in KEYS:
            raise ValueError(f"unknown profile {kind!r}; allowed: {', '.join(KEYS)}")
        return _build(kind, _read_keys(kind, parts), phase)
    except (ValueError, OSError) as error:
        raise BackendError("simulated", f"simulated-load {text!r}: {error}") from error


def default_profile(phase: float, gflops: int, vram_bytes: int) -> Profile:
    """The load of a worker that describes none: 30 % to 90 % of its request, slowly."""
    vram = vram_bytes * 6 // 10
    return Profile(
        "sine",
        Level(gflops=gflops * 0.3),
        Level(gflops=gflops * 0.9),
        (vram, vram),
        _sine(DEFAULT_PERIOD_SECONDS, phase),
        DEFAULT_PERIOD_SECONDS / STEPS_PER_CURVE,
    )


def _read_keys(kind: str, parts: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in parts:
        key, sign, value = part.partition("=")
        if not sign or not value:
            raise ValueError(f"{part!r} is not of the form key=value")
        if key not in KEYS[kind]:
            allowed = ", ".join(KEYS[kind])
            raise ValueError(f"unknown key {key!r} of {kind}; allowed: {allowed}")
        if key in values:
            raise ValueError(f"{key} is given twice")
        values[key] = value
    return values


def _build(kind: str, values: Mapping[str, str], phase: float) -> Profile:
    if kind == "csv":
        if "file" not in values:
            raise ValueError("csv needs file=PATH")
        rows = _read_csv(Path(values["file"]))
        return Profile(kind, Level(), Level(), (0, 0), _always, rows=rows)
    low_key, high_key = {
        "constant": ("", "compute"),
        "sine": ("min", "max"),
        "bursty": ("idle", "burst"),
        "ramp": ("from", "to"),
    }[kind]
    if "tflops" in values and "compute" in values:
        raise ValueError("compute and tflops mean the same; give one")
    high = values.get("tflops") or values.get(high_key, "50%")
    curve, step = _curve(kind, values, phase)
    return Profile(
        kind,
        _level(low_key, values.get(low_key, "0%")),
        _level(high_key, high),
        _vram(values.get("vram", "1Gi")),
        curve,
        step,
    )


def _curve(
    kind: str, values: Mapping[str, str], phase: float
) -> tuple[Callable[[float], float], float]:
    if kind == "sine":
        period = _seconds("period", values.get("period", "60s"))
        return _sine(period, phase), period / STEPS_PER_CURVE
    if kind == "ramp":
        over = _seconds("over", values.get("over", "60s"))
        return (lambda seconds: min(1.0, seconds / over)), over / STEPS_PER_CURVE
    if kind == "bursty":
        on = _seconds("on", values.get("on", "10s"))
        cycle = on + _seconds("off", values.get("off", "20s"))
        return (lambda seconds: 1.0 if seconds % cycle < on else 0.0), EDGE_SECONDS
    return _always, math.inf


def _always(_seconds_since_start: float) -> float:
    return 1.0


def _sine(period: float, phase: float) -> Callable[[float], float]:
    return lambda seconds: 0.5 - 0.5 * math.cos(2 * math.pi * (seconds / period + phase))


def _seconds(key: str, text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError(f"{key} must be longer than 0s, got {text!r}")
    return seconds


def _level(key: str, text: str) -> Level:
    if not text.endswith("%"):
        gflops = parse_gflops(text)
        if gflops < 0:
            raise ValueError(f"{key or 'tflops'} must not be negative, got {text!r}")
        return Level(gflops=float(gflops))
    try:
        percent = float(text[:-1])
    except ValueError:
        percent = math.nan
    # Comparing this way round refuses "nan%" as well.
    if not 0 <= percent <= 1000:
        raise ValueError(f"{key} must be TFLOPS or 0% to 1000% of a card, got {text!r}")
    return Level(ratio=percent / 100)


def _vram(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    bottom, top = parse_bytes(low), parse_bytes(high or low)
    if bottom < 0 or top < 0:
        raise ValueError(f"vram must not be negative, got {text!r}")
    return bottom, top


def _read_csv(path: Path) -> tuple[tuple[float, float, int], ...]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} lacks the column {missing[0]!r}; expected {', '.join(COLUMNS)}"
            )
        rows = [_row(path, reader.line_num, row) for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return tuple(sorted(rows))


def _row(path: Path, line: int, row: Mapping[str, str | None]) -> tuple[float, float, int]:
    try:
        seconds, ratio = float(row["seconds"] or ""), float(row["utilization"] or "")
        vram = parse_bytes(row["vram"] or "")
    except ValueError as error:
        raise ValueError(f"{path} line {line}: {error}") from error
    if not (0 <= seconds < math.inf and 0 <= ratio < math.inf and vram >= 0):
        raise ValueError(f"{path} line {line}: no value may be negative or infinite")
    return seconds, ratio, vram
