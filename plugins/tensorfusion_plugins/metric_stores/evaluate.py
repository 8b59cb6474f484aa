"""Evaluates a rule's expression tree on series in memory."""

import math
from collections.abc import Callable, Iterator, Sequence

from tensorfusion.spi.metrics import Labels
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
from tensorfusion_plugins.metric_stores.growth import growth
from tensorfusion_plugins.metric_stores.series import Series

Vector = dict[Labels, float]
Lookup = Callable[[str], Iterator[tuple[Labels, Series]]]

FOLDS: dict[str, Callable[[Sequence[float]], float]] = {
    "avg": lambda v: math.fsum(v) / len(v),
    "max": max,
    "min": min,
    "sum": math.fsum,
    "count": lambda v: float(len(v)),
    "last": lambda v: v[-1],
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


def evaluate(expression: Expression, lookup: Lookup, now: float) -> Vector:
    """Return label set to value; the metric's name is not part of the labels.

    Source: the semantics are PromQL's (Prometheus documentation, "Querying", operators and
    functions), with one difference: a series that is gone has no value in a range either, so an
    alert about a worker that ended resolves at once and not when the range has run out.
    """
    match expression:
        case Metric():
            return {labels: s.values[-1] for labels, s in _current(expression, lookup, now)}
        case Over():
            return _over(expression, lookup, now)
        case Increase():
            return _increase(expression, lookup, now)
        case Binary():
            return _binary(expression, lookup, now)
        case Aggregate():
            return _aggregate(expression, lookup, now)
        case Compare():
            vector = evaluate(expression.operand, lookup, now)
            holds = COMPARISONS[expression.op]
            return {k: v for k, v in vector.items() if holds(v, expression.threshold)}
        case Both():
            left = evaluate(expression.left, lookup, now)
            if not left:
                return left
            right = evaluate(expression.right, lookup, now)
            keys = {_project(labels, expression.on) for labels in right}
            return {k: v for k, v in left.items() if _project(k, expression.on) in keys}


def _current(metric: Metric, lookup: Lookup, now: float) -> Iterator[tuple[Labels, Series]]:
    wanted = metric.match.items()
    for labels, series in lookup(metric.name):
        if not series.times or now - series.times[-1] > series.stale_after():
            continue
        if wanted and not wanted <= dict(labels).items():
            continue
        yield labels, series


def _over(expression: Over, lookup: Lookup, now: float) -> Vector:
    result = {}
    for labels, series in _current(expression.metric, lookup, now):
        values = series.values_within(now - expression.seconds, now)
        if values:
            result[labels] = FOLDS[expression.fold](values)
    return result


def _increase(expression: Increase, lookup: Lookup, now: float) -> Vector:
    result = {}
    for labels, series in _current(expression.metric, lookup, now):
        start = now - expression.seconds
        times, values = series.window(start, now)
        if len(values) >= 2:
            grown = growth(times, values, start, now)
            result[labels] = grown / expression.seconds if expression.per_second else grown
    return result


def _aggregate(expression: Aggregate, lookup: Lookup, now: float) -> Vector:
    groups: dict[Labels, list[float]] = {}
    for labels, value in evaluate(expression.operand, lookup, now).items():
        key = tuple(pair for pair in labels if pair[0] in expression.by)
        groups.setdefault(key, []).append(value)
    fold = FOLDS[expression.fold]
    return {key: fold(values) for key, values in groups.items()}


def _binary(expression: Binary, lookup: Lookup, now: float) -> Vector:
    left = evaluate(expression.left, lookup, now)
    if not left:
        return left
    if isinstance(expression.right, float | int):
        number = float(expression.right)
        return {k: _apply(expression.op, v, number) for k, v in left.items()}
    right = {
        _project(labels, expression.on): value
        for labels, value in evaluate(expression.right, lookup, now).items()
    }
    result = {}
    for labels, value in left.items():
        other = right.get(_project(labels, expression.on))
        if other is None:
            continue
        key = (
            labels
            if expression.group_left or not expression.on
            else _project(labels, expression.on)
        )
        result[key] = _apply(expression.op, value, other)
    return result


def _project(labels: Labels, on: tuple[str, ...]) -> Labels:
    return tuple(pair for pair in labels if pair[0] in on) if on else labels


def _apply(op: str, a: float, b: float) -> float:
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "*":
        return a * b
    if b == 0:
        return math.nan if a == 0 else math.copysign(math.inf, a)
    return a / b
