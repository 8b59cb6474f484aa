"""Amounts at the edge and inside: Kubernetes quantities, Go durations, percentages.

Inside, VRAM is counted in bytes, compute in GFLOP/s (a thousandth of a TFLOPS) and percentages in
milli-percent, all as integers. Quantities and durations exist only where text enters or leaves.

The quantity grammar, its rounding and its canonical form are those of the ``resource.Quantity``
type of the Kubernetes API: values are kept to a billionth, rounded away from zero, and capped at
``2**63 - 1``.
"""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Final

from tensorfusion.errors import ConfigError

GFLOPS_PER_TFLOPS: Final = 1000
MILLI_PERCENT_FULL: Final = 100_000

QUANTITY_PATTERN: Final = (
    r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
)
"""The grammar as a JSON-schema pattern, for amounts that may be negative."""

AMOUNT_PATTERN: Final = (
    r"^[+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
)
"""The same grammar without negative numbers."""

_QUANTITY: Final = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]+))?"
)
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL: Final = {
    "n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18,
}  # fmt: skip
_DECIMAL_SUFFIX: Final = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX: Final = {power: suffix for suffix, power in _BINARY.items()}
_NANO: Final = 10**9
_LARGEST: Final = 2**63 - 1
_EXPONENT_LIMIT: Final = 64  # beyond it a value is capped or rounds to one billionth anyway
_LONGEST_TEXT: Final = 256
_QUANTITY_FORM: Final = 'a number with an optional suffix out of n u m k M G T P E, Ki Mi Gi Ti Pi Ei or an exponent, such as "10", "500m", "4Gi" or "1e3"'


_REMEMBERED: Final = 1 << 14
"""Texts whose value is remembered: a fleet repeats few amounts many times."""


class QuantityError(ConfigError, ValueError):
    """A text is not a quantity, duration or percentage; the message says what is allowed."""


class QuantityFormat(StrEnum):
    """How a quantity was written, which decides how it is printed."""

    DECIMAL_SI = "DecimalSI"
    BINARY_SI = "BinarySI"
    DECIMAL_EXPONENT = "DecimalExponent"


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact amount and the format class it was written in.

    Attributes:
        value: The amount, a whole number of billionths.
        format: Suffixes of which family to print it with.
    """

    value: Fraction
    format: QuantityFormat = QuantityFormat.DECIMAL_SI

    def __str__(self) -> str:
        """Print the canonical form: largest suffix that leaves no fraction."""
        if not self.value:
            return "0"
        whole = self.value.denominator == 1
        if self.format is QuantityFormat.BINARY_SI and whole and abs(self.value) >= 1024:
            return _format_binary(self.value.numerator)
        mantissa, exponent = _split_decimal(self.value)
        if self.format is QuantityFormat.DECIMAL_EXPONENT:
            return f"{mantissa}e{exponent}" if exponent else str(mantissa)
        return f"{mantissa}{_DECIMAL_SUFFIX[exponent]}"


def _format_binary(value: int) -> str:
    power = 0
    while value % 1024 == 0 and power < max(_BINARY_SUFFIX):
        value //= 1024
        power += 1
    return f"{value}{_BINARY_SUFFIX.get(power, '')}"


def _split_decimal(value: Fraction) -> tuple[int, int]:
    """Split a non-zero amount into an integer and a power of ten that is a multiple of three."""
    mantissa = value.numerator * (_NANO // value.denominator)
    exponent = -9
    while mantissa % 1000 == 0 and exponent < max(_DECIMAL_SUFFIX):
        mantissa //= 1000
        exponent += 3
    return mantissa, exponent


@lru_cache(maxsize=8192)
def _read(text: str) -> Quantity:
    match = _QUANTITY.fullmatch(text)
    if match is None or len(text) > _LONGEST_TEXT:
        raise QuantityError(f"{text!r} is not a quantity: expected {_QUANTITY_FORM}")
    suffix, exponent = match["suffix"], match["exponent"]
    scale = Fraction(1)
    if suffix in _BINARY:
        form = QuantityFormat.BINARY_SI
        scale = Fraction(1024 ** _BINARY[suffix])
    elif exponent is not None:
        form = QuantityFormat.DECIMAL_EXPONENT
        limited = max(-_EXPONENT_LIMIT, min(_EXPONENT_LIMIT, int(exponent)))
        scale = Fraction(10) ** limited
    else:
        form = QuantityFormat.DECIMAL_SI
        scale = Fraction(10) ** _DECIMAL[suffix or ""]
    exact = Fraction(match["number"]) * scale * _NANO
    # Rounding goes away from zero: whoever asked for something gets at least that.
    billionths = math.ceil(exact) if exact > 0 else math.floor(exact)
    value = Fraction(billionths, _NANO)
    return Quantity(max(Fraction(-_LARGEST), min(Fraction(_LARGEST), value)), form)


def read_quantity(value: str | int | float) -> Quantity:
    """Read a quantity together with its format class.

    Raises:
        QuantityError: The text is outside the grammar, or the number is not finite.
    """
    if isinstance(value, str):
        return _read(value)
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise QuantityError(f"{value!r} is not a quantity: expected {_QUANTITY_FORM}")
    return _read(repr(value))


def parse_quantity(value: str | int | float) -> Fraction:
    """Read a quantity as an exact number.

    Raises:
        QuantityError: The text is outside the grammar, or the number is not finite.
    """
    return read_quantity(value).value


def count_of(value: str | int | float) -> int:
    """Read how many of an extended resource are asked for; 0 where the text is no quantity.

    The API's own validation refuses such a text with a better message.
    """
    try:
        return int(parse_quantity(value))
    except (QuantityError, TypeError):
        return 0


def canonical_quantity(value: str | int | float) -> str:
    """Print a quantity as the Kubernetes API would print it back.

    Raises:
        QuantityError: The text is outside the grammar.
    """
    return str(read_quantity(value))


def parse_bytes(value: str | int | float) -> int:
    """Read a quantity of bytes; fractions of a byte round up.

    Raises:
        QuantityError: The text is outside the grammar.
    """
    return _bytes_of(value) if type(value) is str else math.ceil(parse_quantity(value))


@lru_cache(_REMEMBERED)
def _bytes_of(text: str) -> int:
    return math.ceil(parse_quantity(text))


def parse_gflops(tflops: str | int | float) -> int:
    """Read a quantity of TFLOPS as GFLOP/s; fractions round up.

    Raises:
        QuantityError: The text is outside the grammar.
    """
    if type(tflops) is str:
        return _gflops_of(tflops)
    return math.ceil(parse_quantity(tflops) * GFLOPS_PER_TFLOPS)


@lru_cache(_REMEMBERED)
def _gflops_of(text: str) -> int:
    return math.ceil(parse_quantity(text) * GFLOPS_PER_TFLOPS)


def parse_cpu(cores: str | int | float) -> int:
    """Read a quantity of cores as thousandths of a core; fractions round up.

    Raises:
        QuantityError: The text is outside the grammar.
    """
    return _milli_of(cores) if type(cores) is str else math.ceil(parse_quantity(cores) * 1000)


@lru_cache(_REMEMBERED)
def _milli_of(text: str) -> int:
    return math.ceil(parse_quantity(text) * 1000)


def format_bytes(amount_bytes: int) -> str:
    """Print bytes as a canonical quantity with binary suffixes, such as ``4Gi``.

    Amounts that are no multiple of 1 KiB print plain, so that nothing is lost.
    """
    whole = amount_bytes and amount_bytes % 1024 == 0
    return _format_binary(amount_bytes) if whole else str(amount_bytes)


def format_tflops(gflops: int) -> str:
    """Print GFLOP/s as a canonical quantity of TFLOPS: ``10``, ``62500m``, ``1500m``."""
    milli, rest = divmod(gflops, GFLOPS_PER_TFLOPS)
    return f"{gflops}m" if rest else str(milli)


def parse_percent(value: str | int | float) -> int:
    """Read a percentage (``"50"``, ``12.5``, ``"50%"``) as milli-percent; fractions round up.

    Raises:
        QuantityError: It is no number, or outside 0 to 100.
    """
    text = value.strip().removesuffix("%").strip() if isinstance(value, str) else value
    try:
        percent = parse_quantity(text)
    except QuantityError:
        percent = Fraction(-1)
    if not 0 <= percent <= 100:
        raise QuantityError(f"{value!r} is not a percentage: expected a number from 0 to 100")
    return math.ceil(percent * 1000)


def format_percent(milli_percent: int) -> str:
    """Print milli-percent as a plain percentage without the sign: ``50``, ``14.286``."""
    whole, rest = divmod(abs(milli_percent), 1000)
    sign = "-" if milli_percent < 0 else ""
    return f"{sign}{whole}" + (f".{rest:03d}".rstrip("0") if rest else "")


def parse_fraction(value: str | int | float) -> float:
    """Read a ratio that may be written as number or text (``0.9``, ``"0.9"``).

    Raises:
        QuantityError: It is no finite number.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise QuantityError(f"{value!r} is not a ratio: expected a number such as 0.9")
    return number


_DURATION_UNITS: Final = {
    "ns": Fraction(1, 10**9), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6),
    "μs": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60),
    "h": Fraction(3600),
}  # fmt: skip
_DURATION_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> float:
    """Read a duration as Go writes it (``1h30m``, ``500ms``, ``-2s``, ``0``) as seconds.

    Raises:
        QuantityError: The text is no such duration.
    """
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0.0
    total, position = Fraction(0), 0
    while position < len(body) and (match := _DURATION_PART.match(body, position)) is not None:
        total += Fraction(match[1]) * _DURATION_UNITS[match[2]]
        position = match.end()
    if not body or position != len(body):
        raise QuantityError(
            f'{text!r} is not a duration: expected numbers with units ns, us, ms, s, m or h, such as "30s" or "1h30m"'
        )
    return float(sign * total)


def format_duration(seconds: float) -> str:
    """Print seconds as the shortest duration that reads back the same: ``1h30m``, ``500ms``."""
    nanoseconds = round(abs(seconds) * 10**9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1), ("us", 10**3), ("ms", 10**6)):
        if nanoseconds < size * 1000:
            return f"{sign}{_trim(Fraction(nanoseconds, size))}{unit}"
    hours, rest = divmod(nanoseconds, 3600 * 10**9)
    minutes, rest = divmod(rest, 60 * 10**9)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if rest:
        parts.append(f"{_trim(Fraction(rest, 10**9))}s")
    return sign + "".join(parts)


def _trim(value: Fraction) -> str:
    """Print a fraction of at most nine decimals without trailing zeros."""
    whole, rest = divmod(value.numerator * (_NANO // value.denominator), _NANO)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def human_bytes(amount_bytes: int) -> str:
    """Print bytes for a table, at most one decimal: ``80Gi``, ``22.5Gi``, ``512Mi``."""
    size: float = abs(amount_bytes)
    suffix = "B"
    for name in ("", *_BINARY):
        suffix = name or "B"
        if size < 1024 or name == "Ei":
            break
        size /= 1024
    return ("-" if amount_bytes < 0 else "") + f"{size:.1f}".removesuffix(".0") + suffix


def human_tflops(gflops: int) -> str:
    """Print GFLOP/s for a table, in TFLOPS with at most two decimals: ``312``, ``62.5``."""
    return f"{gflops / GFLOPS_PER_TFLOPS:.2f}".rstrip("0").rstrip(".") or "0"
