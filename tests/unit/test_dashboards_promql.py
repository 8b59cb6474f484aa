"""Rules as PromQL: every node of the tree prints what Prometheus reads as the same thing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfusion.errors import ConfigError
from tensorfusion.spi.rules import (
    Aggregate,
    AlertRule,
    Binary,
    Both,
    Compare,
    Increase,
    Metric,
    Over,
)
from tensorfusion_dashboards.promql import duration, number, print_expression
from tensorfusion_dashboards.rule_file import rule_entry

promql_parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")

A, B = Metric("a"), Metric("b", {"node": "n1", "gpu": "0"})
NODES = {
    "metric": (A, "a"),
    "labels": (B, 'b{gpu="0", node="n1"}'),
    "quoted": (Metric("a", {"x": 'a "b"\\c\nd'}), 'a{x="a \\"b\\"\\\\c\\nd"}'),
    "over": (Over("avg", B, 600), 'avg_over_time(b{gpu="0", node="n1"}[10m])'),
    "increase": (Increase(A, 90), "increase(a[90s])"),
    "rate": (Increase(A, 3600, per_second=True), "rate(a[1h])"),
    "with number": (Binary("*", A, 2.5), "a * 2.5"),
    "matched": (Binary("/", A, B, on=("node",)), 'a / on (node) b{gpu="0", node="n1"}'),
    "many to one": (
        Binary("+", A, Metric("b"), on=("node",), group_left=True),
        "a + on (node) group_left () b",
    ),
    "nested": (Binary("*", Binary("+", A, 1), Compare(A, ">", 2)), "(a + 1) * (a > 2)"),
    "aggregate": (Aggregate("sum", A, ("node", "gpu")), "sum by (node, gpu) (a)"),
    "aggregate all": (Aggregate("max", A), "max (a)"),
    "compare": (Compare(Binary("/", A, 3), ">=", 0.97), "(a / 3) >= 0.97"),
    "both": (Both(A, Compare(A, "<", 1), on=("node",)), "(a) and on (node) (a < 1)"),
}


@pytest.mark.parametrize(("tree", "text"), NODES.values(), ids=NODES.keys())
def test_node_prints_as_promql(tree, text):
    assert print_expression(tree) == text
    promql_parser.parse(text)


def test_selector_is_added_to_every_metric():
    tree = Binary("/", A, Over("max", B, 60))

    assert print_expression(tree, 'cluster="c"') == (
        'a{cluster="c"} / max_over_time(b{gpu="0", node="n1", cluster="c"}[1m])'
    )


def test_aggregation_that_promql_has_not_is_refused():
    with pytest.raises(ConfigError, match="cannot be 'last'; allowed: avg, max"):
        print_expression(Aggregate("last", A))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (97.0, "97"), (0.97, "0.97"), (123456789, "123456789"), (1e20, "1e+20"),
     (float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN"), (-2.5, "-2.5")],
)  # fmt: skip
def test_number_is_exact(value, text):
    assert number(value) == text
    promql_parser.parse(f"a > {text}")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_reads_back_as_it_was(value):
    assert float(number(value)) == value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (10, "10s"), (60, "1m"), (90, "90s"), (7200, "2h"), (0.5, "500ms")],
)
def test_duration_is_as_short_as_it_can_be(seconds, text):
    assert duration(seconds) == text


METRICS = st.builds(Metric, st.sampled_from(["a", "b"]), st.sampled_from([{}, {"x": "1"}]))
LEAVES = st.one_of(
    METRICS,
    st.builds(Over, st.sampled_from(["avg", "last", "count"]), METRICS, st.integers(1, 9000)),
    st.builds(Increase, METRICS, st.integers(1, 9000), st.booleans()),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Compare, inner, st.sampled_from([">", "==", "!="]), st.floats(-1e9, 1e9)),
        st.builds(Binary, st.sampled_from("+-*/"), inner, st.floats(-1e9, 1e9)),
        st.builds(Binary, st.sampled_from("+-*/"), inner, inner, st.sampled_from([(), ("x",)])),
        st.builds(Aggregate, st.sampled_from(["sum", "avg"]), inner, st.sampled_from([(), ("x",)])),
        st.builds(Both, inner, inner, st.sampled_from([(), ("x",)])),
    ),
    max_leaves=6,
)


@given(TREES)
def test_every_tree_parses(tree):
    promql_parser.parse(print_expression(tree))


def test_rule_prints_its_times_labels_and_text():
    rule = AlertRule(
        name="TensorFusionX",
        expression=Compare(A, ">", 1),
        for_seconds=90,
        keep_firing_seconds=300,
        severity="critical",
        summary="It broke.",
        description="{node} uses {value}.",
        runbook="docs/runbooks/TensorFusionX.md",
        unit="bytes",
    )

    assert rule_entry(rule) == {
        "alert": "TensorFusionX",
        "expr": "a > 1",
        "for": "90s",
        "keep_firing_for": "5m",
        "labels": {"severity": "critical"},
        "annotations": {
            "summary": "It broke.",
            "description": "{{ $labels.node }} uses {{ $value | humanize1024 }}B.",
            "runbook_url": "docs/runbooks/TensorFusionX.md",
        },
    }
