"""Panels in the house style: a unit and a sentence on each, one query data source, no ids.

The Grafana SDK is a build-time dependency: what is shipped is the JSON.
"""

from grafana_foundation_sdk.builders import prometheus, stat, timeseries
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTOR = 'pool=~"$pool", node=~"$node"'


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    """One PromQL query."""
    return (
        prometheus.Dataquery().datasource(SOURCE).expr(expression).legend_format(legend or "__auto")
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
    for expression, legend in queries:
        panel = panel.with_target(query(expression, legend))
    return panel


__all__ = ["SELECTOR", "SOURCE", "graph", "model", "number", "query"]
