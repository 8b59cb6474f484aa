"""Panels in the house style: a unit and a sentence on each, one query data source.

The Grafana SDK is a build-time dependency: what is shipped is the JSON.
"""

from string import ascii_uppercase

from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTOR = 'pool=~"$pool", node=~"$node"'


def query(expression: str, legend: str = "", letter: str = "A") -> prometheus.Dataquery:
    """One PromQL query; ``letter`` tells the queries of a panel apart."""
    return (
        prometheus.Dataquery()
        .ref_id(letter)
        .datasource(SOURCE)
        .expr(expression)
        .legend_format(legend or "__auto")
    )


def number(title: str, description: str, unit: str, expression: str) -> stat.Panel:
    """A single figure."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .no_value("none")
        .height(4)
        .span(6)
        .with_target(query(expression))
    )


def graph(
    title: str, description: str, unit: str, *queries: tuple[str, str], maximum: float | None = None
) -> timeseries.Panel:
    """Lines over time; each query is (expression, legend)."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(8)
        .span(12)
        .fill_opacity(8)
        .span_nulls(False)
    )
    if maximum is not None:
        panel = panel.max(maximum)
    for letter, (expression, legend) in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(query(expression, legend, letter))
    return panel


__all__ = ["SELECTOR", "SOURCE", "graph", "model", "number", "query"]
