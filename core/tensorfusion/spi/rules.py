"""Alert rules as data: an expression tree that the embedded store evaluates and PromQL prints.

There is no PromQL engine here and no second copy of a rule. The tree has what rules of this
product need and nothing more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Comparison = Literal[">", ">=", "<", "<=", "==", "!="]
Arithmetic = Literal["+", "-", "*", "/"]
Fold = Literal["avg", "max", "min", "sum", "count", "last"]


@dataclass(frozen=True, slots=True)
class Metric:
    """The latest value of every series of a metric whose labels equal ``match``."""

    name: str
    match: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Over:
    """A fold of each series over the last ``seconds`` (``avg_over_time`` and its kin)."""

    fold: Fold
    metric: Metric
    seconds: float


@dataclass(frozen=True, slots=True)
class Increase:
    """Growth of a counter over the last ``seconds``; resets of the counter are added up.

    With ``per_second`` it is a rate.
    """

    metric: Metric
    seconds: float
    per_second: bool = False


@dataclass(frozen=True, slots=True)
class Binary:
    """Arithmetic of two vectors matched on ``on`` (all shared labels when empty), or a number.

    ``group_left`` keeps the left side's labels when several left series meet one right series.
    """

    op: Arithmetic
    left: "Expression"
    right: "Expression | float"
    on: tuple[str, ...] = ()
    group_left: bool = False


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A fold over series that agree in the labels ``by``."""

    fold: Fold
    operand: "Expression"
    by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compare:
    """Keep the series whose value compares true with the threshold."""

    operand: "Expression"
    op: Comparison
    threshold: float


@dataclass(frozen=True, slots=True)
class Both:
    """Keep the left series for which the right side has one with equal ``on`` labels."""

    left: "Expression"
    right: "Expression"
    on: tuple[str, ...] = ()


Expression = Metric | Over | Increase | Binary | Aggregate | Compare | Both


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One alert, declared once.

    Attributes:
        name: CamelCase, starts with ``TensorFusion``.
        expression: Each series it yields is one firing instance.
        for_seconds: How long it must hold before it fires.
        keep_firing_seconds: How long it goes on after the condition is gone.
        severity: ``critical`` pages, ``warning`` is a ticket, ``info`` is for looking up.
        summary: Constant sentence. ``description`` may hold ``{label}`` and ``{value}``.
        unit: How ``{value}`` is printed: ``ratio``, ``bytes``, ``flops``, ``seconds`` or empty.
    """

    name: str
    expression: Expression
    for_seconds: float
    severity: Literal["critical", "warning", "info"]
    summary: str
    description: str
    runbook: str = ""
    keep_firing_seconds: float = 0.0
    unit: str = ""
    group: str = "tensorfusion"
