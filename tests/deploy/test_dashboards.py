"""The generated dashboards and rules: complete, of known metrics, and what the sources make."""

import json
import re
from pathlib import Path

import pytest

from tensorfusion.spi.catalogue import BY_NAME
from tensorfusion.spi.rules import Aggregate, Binary, Both, Compare, Increase, Metric, Over
from tensorfusion_dashboards import fleet, rule_file
from tensorfusion_dashboards.rules import RULES

promql_parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / fleet.PATH).read_text())
PANELS = [p for p in BOARD["panels"] if p["type"] != "row"]
UNITS = {"none", "percentunit", "flops", "bytes", "celsius", "ops", "watt", "s", "joule"}
UNIT_OF = {"flops": "flops", "bytes": "bytes", "celsius": "celsius"}


@pytest.mark.parametrize("module", [fleet, rule_file], ids=["fleet.json", "rules.yaml"])
def test_committed_file_is_what_the_source_generates(module):
    for path, content in module.generate().items():
        assert (ROOT / path).read_text() == content, f"run `make generate`: {path} is stale"


def test_dashboard_has_one_data_source_variable_and_filters():
    variables = {v["name"]: v for v in BOARD["templating"]["list"]}

    assert variables["datasource"]["type"] == "datasource"
    assert variables.keys() == {"datasource", "pool", "node"}
    for name in ("pool", "node"):
        query = variables[name]["query"]
        metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query).groups()
        assert label in BY_NAME[metric].labels
    assert BOARD["editable"] is False
    assert BOARD["uid"] == "tensorfusion-fleet"


def test_panels_have_unique_ids_and_do_not_overlap():
    ids = [p["id"] for p in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in BOARD["panels"]:
        g = panel["gridPos"]
        mine = {
            (x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])
        }
        assert not mine & cells, panel["title"]
        assert g["x"] + g["w"] <= 24
        cells |= mine


@pytest.mark.parametrize("panel", PANELS, ids=lambda p: p["title"])
def test_panel_is_complete(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    letters = [t["refId"] for t in panel["targets"]]
    assert letters
    assert all(letters)
    assert len(set(letters)) == len(letters)
    assert all(t["datasource"]["uid"] == "${datasource}" for t in panel["targets"])


@pytest.mark.parametrize(
    ("panel", "target"),
    [(p, t) for p in PANELS for t in p["targets"]],
    ids=lambda x: f"{x['title']}" if "title" in x else x["refId"],
)
def test_query_parses_and_asks_for_what_exists(panel, target):
    text = target["expr"].replace("$__rate_interval", "5m")
    selectors = vector_selectors(promql_parser.parse(text))

    assert selectors
    for name, labels in selectors:
        assert labels <= set(BY_NAME[name].labels), f"{name} has no {labels}"
    for grouped in re.findall(r"by \(([^)]*)\)", text):
        for label in grouped.split(", "):
            assert all(label in BY_NAME[name].labels for name, _ in selectors)
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert re.search(rf"by \([^)]*\b{label}\b", text), f"the legend's {label} is summed away"
    unit = panel["fieldConfig"]["defaults"]["unit"]
    for name, _ in selectors:
        wanted = UNIT_OF.get(BY_NAME[name].unit)
        assert wanted in (unit, None) or "/" in text
        counter = BY_NAME[name].kind == "counter"
        assert counter == bool(re.search(rf"(rate|increase)\({name}\b", text))
        assert not counter or "$__rate_interval" in target["expr"]


def vector_selectors(node):
    """Every (metric, labels it is matched on) of a parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        return [(node.name, {m.name for m in node.matchers.matchers})]
    if isinstance(node, promql_parser.MatrixSelector):
        return vector_selectors(node.vector_selector)
    found = []
    for attribute in ("expr", "lhs", "rhs", "args", "param"):
        inner = getattr(node, attribute, None)
        for part in inner if isinstance(inner, list) else [inner]:
            if part is not None:
                found += vector_selectors(part)
    return found


def metrics_of(tree):
    match tree:
        case Metric():
            return [(tree, "gauge")]
        case Over(_, metric, _):
            return [(metric, "gauge")]
        case Increase(metric, _, _):
            return [(metric, "counter")]
        case Compare(operand) | Aggregate(_, operand):
            return metrics_of(operand)
        case Both(left, right) | Binary(_, left, right):
            return metrics_of(left) + (
                metrics_of(right) if not isinstance(right, float | int) else []
            )


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_rule_asks_for_what_exists_and_says_what_it_knows(rule):
    found = metrics_of(rule.expression)
    labels = set.union(*(set(BY_NAME[metric.name].labels) for metric, _ in found))
    for metric, kind in found:
        assert BY_NAME[metric.name].kind == kind
        assert set(metric.match) <= set(BY_NAME[metric.name].labels)

    assert set(re.findall(r"\{(\w+)\}", rule.description)) - {"value"} <= labels
    assert re.fullmatch(r"TensorFusion[A-Z]\w+", rule.name)
    for text in (rule.summary, rule.description):
        assert text[0].isupper() or text[0] == "{"
        assert text.endswith(".")
    assert "{" not in rule.summary


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
def test_rule_has_a_runbook(rule):
    page = ROOT / rule.runbook

    assert page.stem == rule.name
    assert page.read_text().startswith(f"# {rule.name}")


def test_every_runbook_is_of_a_rule():
    pages = {p.stem for p in (ROOT / "docs/runbooks").glob("TensorFusion*.md")}

    assert pages == {rule.name for rule in RULES}
