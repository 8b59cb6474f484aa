"""Reading one value of an annotation. Every function names field, value and form when it fails."""

import json
from collections.abc import Iterable

from tensorfusion.admission.refusal import RefusedValue
from tensorfusion.model.demand import MAX_GPU_COUNT
from tensorfusion.units import (
    QuantityError,
    parse_bytes,
    parse_duration,
    parse_gflops,
    parse_percent,
)

TFLOPS_FORM = 'must be an amount of TFLOPS such as "10", "62500m" or "1.5", not negative'
VRAM_FORM = 'must be an amount of bytes such as "4Gi" or "512Mi", not negative'
PERCENT_FORM = 'must be a percentage from 0 to 100 such as "25"'
BOOLEAN_FORM = 'must be "true" or "false"'
Amountish = str | int | float


def boolean(field: str, text: str) -> bool:
    """Read ``true`` or ``false``."""
    word = text.strip().lower()
    if word not in ("true", "false"):
        raise RefusedValue(field, text, BOOLEAN_FORM)
    return word == "true"


def integer(field: str, text: str, low: int, high: int | None = None) -> int:
    """Read a whole number within bounds."""
    form = f"must be a whole number of at least {low}"
    if high is not None:
        form = f"must be a whole number from {low} to {high}"
    word = text.strip()
    if not (word.isascii() and word.isdigit() and len(word) < 12):
        raise RefusedValue(field, text, form)
    number = int(word)
    if number < low or (high is not None and number > high):
        raise RefusedValue(field, text, form)
    return number


def choice(field: str, text: str, allowed: Iterable[str]) -> str:
    """Read one of some words, in any case."""
    word = text.strip().lower()
    words = tuple(allowed)
    if word not in words:
        raise RefusedValue(field, text, f"must be one of {', '.join(words)}")
    return word


def gflops(field: str, value: Amountish) -> int:
    """Read TFLOPS as GFLOP/s."""
    try:
        amount = parse_gflops(value)
    except QuantityError:
        amount = -1
    if amount < 0:
        raise RefusedValue(field, str(value), TFLOPS_FORM)
    return amount


def size_bytes(field: str, value: Amountish) -> int:
    """Read an amount of memory as bytes."""
    try:
        amount = parse_bytes(value)
    except QuantityError:
        amount = -1
    if amount < 0:
        raise RefusedValue(field, str(value), VRAM_FORM)
    return amount


def milli_percent(field: str, value: Amountish) -> int:
    """Read a percentage as milli-percent."""
    try:
        return parse_percent(value)
    except QuantityError:
        raise RefusedValue(field, str(value), PERCENT_FORM) from None


def duration_seconds(field: str, text: str) -> float:
    """Read a duration as seconds; empty and ``0`` mean none."""
    if not text.strip():
        return 0.0
    try:
        seconds = parse_duration(text.strip())
    except QuantityError:
        seconds = -1.0
    if seconds < 0:
        raise RefusedValue(field, text, 'must be a duration such as "30s", "10m" or "1h30m"')
    return seconds


def names_list(text: str) -> tuple[str, ...]:
    """Read a list separated by commas; empty and repeated items are dropped."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def indices(field: str, text: str) -> tuple[int, ...]:
    """Read device positions such as ``0,2``; all different."""
    form = 'must be device positions from 0 up, separated by commas, such as "0,2", each once'
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise RefusedValue(field, text, form)
    found = tuple(int(part) for part in parts)
    if len(set(found)) != len(found):
        raise RefusedValue(field, text, form)
    return found


def counts(field: str, text: str) -> dict[str, int]:
    """Read a JSON object of container names and GPU counts."""
    form = 'must be a JSON object of container names and GPU counts from 1 up, such as {"main": 1}'
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise RefusedValue(field, text, form) from None
    if not isinstance(found, dict) or not found:
        raise RefusedValue(field, text, form)
    for count in found.values():
        if type(count) is not int or not 1 <= count <= MAX_GPU_COUNT:
            raise RefusedValue(field, text, form)
    return found
