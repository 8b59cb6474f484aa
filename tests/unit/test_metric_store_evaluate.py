"""Rule expressions on the embedded store against a slow evaluator written from the definitions."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfusion.spi.metrics import Sample
from tensorfusion.spi.rules import (
    Aggregate,
    Binary,
    Both,
    Compare,
    Increase,
    Metric,
    Over,
)
from tensorfusion_plugins.metric_stores.embedded import EmbeddedMetricStore
from tensorfusion_plugins.metric_stores.growth import growth

NOW = 1000.0


def labels(**pairs):
    return tuple(sorted(pairs.items()))


A1, A2, B1 = labels(node="a", gpu="1"), labels(node="a", gpu="2"), labels(node="b", gpu="1")
STEADY = [NOW - 5 * n for n in range(20, -1, -1)]


def store_of(data):
    store = EmbeddedMetricStore()
    for (name, series), samples in data.items():
        store.write([Sample(name, series, t, v) for t, v in samples])
    return store


def run(store, expression, now=NOW):
    return {v.labels: v.value for v in store.evaluate(expression, now)}


DATA = {
    ("used", A1): [(t, 10.0) for t in STEADY],
    ("used", A2): [(t, 40.0) for t in STEADY],
    ("used", B1): [(t, n) for n, t in enumerate(STEADY)],
    ("size", A1): [(t, 100.0) for t in STEADY],
    ("size", A2): [(t, 0.0) for t in STEADY],
    ("total", A1): [(t, 2.0 * n) for n, t in enumerate(STEADY)],
    ("busy", labels(node="a")): [(t, 1.0) for t in STEADY],
}
USED, SIZE, TOTAL = Metric("used"), Metric("size"), Metric("total")
NODES = {
    "metric": (USED, {A1: 10, A2: 40, B1: 20}),
    "metric with match": (Metric("used", {"node": "a", "gpu": "2"}), {A2: 40}),
    "metric without series": (Metric("nothing"), {}),
    "avg over": (Over("avg", Metric("used", {"node": "b"}), 10), {B1: 19.5}),
    "max over": (Over("max", Metric("used", {"node": "b"}), 50), {B1: 20}),
    "min over": (Over("min", Metric("used", {"node": "b"}), 50), {B1: 11}),
    "sum over": (Over("sum", Metric("used", {"node": "b"}), 10), {B1: 39}),
    "count over": (Over("count", Metric("used", {"node": "b"}), 50), {B1: 10}),
    "last over": (Over("last", Metric("used", {"node": "b"}), 50), {B1: 20}),
    "increase": (Increase(TOTAL, 50), {A1: 20}),
    "rate": (Increase(TOTAL, 50, per_second=True), {A1: 0.4}),
    "times a number": (Binary("*", USED, 2), {A1: 20, A2: 80, B1: 40}),
    "division": (Binary("/", USED, SIZE), {A1: 0.1, A2: math.inf}),
    "difference on one label": (
        Binary("-", Aggregate("sum", USED, ("node",)), Metric("busy"), on=("node",)),
        {labels(node="a"): 49},
    ),
    "many to one": (
        Binary("+", USED, Metric("busy"), on=("node",), group_left=True),
        {A1: 11, A2: 41},
    ),
    "sum by": (Aggregate("sum", USED, ("node",)), {labels(node="a"): 50, labels(node="b"): 20}),
    "count": (Aggregate("count", USED), {(): 3}),
    "max by": (Aggregate("max", USED, ("gpu",)), {labels(gpu="1"): 20, labels(gpu="2"): 40}),
    "avg": (Aggregate("avg", Metric("used", {"node": "a"})), {(): 25}),
    "compare": (Compare(USED, ">=", 20), {A2: 40, B1: 20}),
    "compare equal": (Compare(USED, "==", 10), {A1: 10}),
    "compare unequal": (Compare(USED, "!=", 10), {A2: 40, B1: 20}),
    "both": (Both(USED, Compare(SIZE, ">", 50)), {A1: 10}),
    "both on": (Both(USED, Metric("busy"), on=("node",)), {A1: 10, A2: 40}),
}


@pytest.mark.parametrize(("expression", "wanted"), NODES.values(), ids=NODES.keys())
def test_expression_has_the_value_of_its_definition(expression, wanted):
    assert run(store_of(DATA), expression) == pytest.approx(wanted)


def test_series_that_is_gone_has_no_value_not_even_in_a_range():
    store = store_of(DATA)

    assert run(store, USED, NOW + 14) != {}
    for expression in (USED, Over("max", USED, 600), Increase(TOTAL, 600)):
        assert run(store, expression, NOW + 16) == {}


def test_counter_that_was_reset_still_grows():
    samples = [(NOW - 40, 100), (NOW - 30, 110), (NOW - 20, 5), (NOW - 10, 15), (NOW, 25)]
    store = store_of({("total", A1): samples})

    # 10 + 5 + 10 + 10 over 40 s, and half a step to the edge that is far away.
    assert run(store, Increase(TOTAL, 100)) == pytest.approx({A1: 35 * 45 / 40})


NAMES = st.sampled_from(["used", "size", "total"])
SERIES = st.sampled_from([A1, A2, B1])
POINTS = st.lists(st.integers(0, 9), min_size=2, max_size=12)
METRICS = st.builds(
    Metric, NAMES, st.sampled_from([{}, {"node": "a"}, {"gpu": "1"}, {"node": "c"}])
)
BYS = st.sampled_from([(), ("node",), ("gpu",), ("node", "gpu")])
FOLDS = ["avg", "max", "min", "sum", "count"]
LEAVES = st.one_of(
    METRICS,
    st.builds(Over, st.sampled_from([*FOLDS, "last"]), METRICS, st.sampled_from([10, 35])),
    st.builds(Increase, METRICS, st.sampled_from([20, 35]), st.booleans()),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Compare, inner, st.sampled_from([">", ">=", "<", "<=", "==", "!="]), st.just(4)),
        st.builds(Binary, st.sampled_from("+-*/"), inner, st.sampled_from([2, 0.5])),
        st.builds(Binary, st.sampled_from("+-*/"), inner, inner),
        st.builds(Aggregate, st.sampled_from(FOLDS), inner, BYS),
        st.builds(Both, inner, inner, st.sampled_from([(), ("node",)])),
    ),
    max_leaves=5,
)


def slow(tree, data):
    """The definitions, spelled out; every series is sampled every 5 s up to NOW."""
    match tree:
        case Metric(name, match):
            return {
                series: float(points[-1][1])
                for (other, series), points in data.items()
                if other == name and all(dict(series).get(k) == v for k, v in match.items())
            }
        case Over(fold, metric, seconds):
            return {k: folded(fold, [v for _, v in p]) for k, p in ranged(metric, seconds, data)}
        case Increase(metric, seconds, per_second):
            return {
                k: stretched(points, seconds) / (seconds if per_second else 1)
                for k, points in ranged(metric, seconds, data)
                if len(points) >= 2
            }
        case Compare(operand, op, threshold):
            return {
                k: v
                for k, v in slow(operand, data).items()
                if eval(f"v {op} t", {"v": v, "t": threshold})
            }
        case Aggregate(fold, operand, by):
            groups = {}
            for k, v in slow(operand, data).items():
                groups.setdefault(tuple(p for p in k if p[0] in by), []).append(v)
            return {k: folded(fold, vs) for k, vs in groups.items()}
        case Both(left, right, on):
            keys = [cut(k, on) for k in slow(right, data)]
            return {k: v for k, v in slow(left, data).items() if cut(k, on) in keys}
        case Binary(op, left, right, _, _):
            if not isinstance(right, int | float):
                other = slow(right, data)
                return {
                    k: calculated(op, v, other[k])
                    for k, v in slow(left, data).items()
                    if k in other
                }
            return {k: calculated(op, v, right) for k, v in slow(left, data).items()}


def cut(series, on):
    return tuple(p for p in series if p[0] in on) if on else series


def ranged(metric, seconds, data):
    for series in slow(metric, data):
        points = [p for p in data[metric.name, series] if NOW - seconds < p[0] <= NOW]
        if points:
            yield series, points


def stretched(points, seconds):
    import numpy as np

    times, values = np.array(points, dtype=float).T
    return growth(times, values, NOW - seconds, NOW)


def folded(fold, values):
    if fold == "avg":
        return sum(values) / len(values)
    return {"max": max, "min": min, "sum": sum, "count": len, "last": lambda v: v[-1]}[fold](values)


def calculated(op, a, b):
    if op == "/" and b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else 0}[op]


@settings(max_examples=120, deadline=None)
@given(TREES, st.dictionaries(st.tuples(NAMES, SERIES), POINTS, max_size=6))
def test_evaluation_equals_the_slow_reference(tree, points):
    data = {
        key: [(NOW - 5 * (len(values) - 1 - n), float(v)) for n, v in enumerate(values)]
        for key, values in points.items()
    }
    try:
        wanted = slow(tree, data)
    except ValueError:  # folding NaN with max and min is not ordered
        return
    found = run(store_of(data), tree)

    assert found.keys() == wanted.keys()
    for key, value in found.items():
        if not (math.isnan(value) or math.isnan(wanted[key])):
            assert value == pytest.approx(wanted[key])
