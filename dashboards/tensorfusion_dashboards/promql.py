"""Prints a rule's expression tree as PromQL."""

import math

from tensorfusion.errors import ConfigError
from tensorfusion.spi.rules import (
    Aggregate,
    Binary,
    Both,
    Compare,
    Expression,
    Increase,
    Metric,
    Over,
)


def print_expression(expression: Expression | float, selector: str = "") -> str:
    """Print an expression.

    Args:
        selector: Label matchers that every metric gets, such as ``cluster="$cluster"``.

    Raises:
        ConfigError: PromQL has no such expression.
    """
    match expression:
        case Metric():
            return _metric(expression, selector)
        case Over():
            inner = f"{_metric(expression.metric, selector)}[{duration(expression.seconds)}]"
            return f"{expression.fold}_over_time({inner})"
        case Increase():
            inner = f"{_metric(expression.metric, selector)}[{duration(expression.seconds)}]"
            return f"{'rate' if expression.per_second else 'increase'}({inner})"
        case Binary():
            return _binary(expression, selector)
        case Aggregate():
            if expression.fold == "last":
                raise ConfigError(
                    "an aggregation cannot be 'last'; allowed: avg, max, min, sum, count"
                )
            by = f" by ({', '.join(expression.by)})" if expression.by else ""
            return f"{expression.fold}{by} ({print_expression(expression.operand, selector)})"
        case Compare():
            operand = _operand(expression.operand, selector)
            return f"{operand} {expression.op} {number(expression.threshold)}"
        case Both():
            on = f" on ({', '.join(expression.on)})" if expression.on else ""
            left = print_expression(expression.left, selector)
            right = print_expression(expression.right, selector)
            return f"({left}) and{on} ({right})"
        case _:
            return number(expression)


def number(value: float) -> str:
    """Print a number exactly, without a needless fraction."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def duration(seconds: float) -> str:
    """Print a duration as PromQL spells it."""
    if seconds != int(seconds):
        return f"{round(seconds * 1000)}ms"
    whole = int(seconds)
    for size, unit in ((3600, "h"), (60, "m")):
        if whole % size == 0 and whole:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def _metric(metric: Metric, selector: str) -> str:
    matchers = [f"{k}={_quoted(v)}" for k, v in sorted(metric.match.items())]
    if selector:
        matchers.append(selector)
    return f"{metric.name}{{{', '.join(matchers)}}}" if matchers else metric.name


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _binary(expression: Binary, selector: str) -> str:
    left = _operand(expression.left, selector)
    on = f" on ({', '.join(expression.on)})" if expression.on else ""
    group = " group_left ()" if expression.group_left else ""
    if isinstance(expression.right, float | int):
        return f"{left} {expression.op} {number(float(expression.right))}"
    return f"{left} {expression.op}{on}{group} {_operand(expression.right, selector)}"


def _operand(expression: Expression, selector: str) -> str:
    text = print_expression(expression, selector)
    return f"({text})" if isinstance(expression, Binary | Compare | Both) else text
