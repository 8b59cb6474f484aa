"""Results of a simulation as a table, JSON or CSV."""

import csv
import io
from dataclasses import dataclass
from typing import Any

import msgspec

from tensorfusion.simulate.published import Published
from tensorfusion.simulate.replay import Run
from tensorfusion.simulate.summary import (
    HOURS_PER_YEAR,
    Difference,
    Estimate,
    Series,
    differences,
    series_of,
)
from tensorfusion.simulate.trace import Trace

DEMANDS = (20, 40, 60, 80, 90, 95, 100, 110, 120, 130)
"""Demands that the table shows: those of the published ones."""

_FIELDS = (("allocated_pct", "ALLOCATED %"), ("frag_pct", "FRAG %"), ("frag_ratio_pct", "RATIO %"))


@dataclass(frozen=True, slots=True)
class Report:
    """All runs of one command.

    Attributes:
        trace: What was replayed.
        published: What is known of it.
        runs: In the order they were made.
        gpu_hour_price: Price of a GPU hour; 0 leaves money out.
    """

    trace: Trace
    published: Published | None
    runs: tuple[Run, ...]
    gpu_hour_price: float = 0.0

    @property
    def series(self) -> list[Series]:
        """The runs by policy and ties."""
        return series_of(self.runs)

    def differences(self) -> list[Difference]:
        """Everything against the first, at the end of the runs."""
        series = self.series
        return differences(series, min(one.last_demand_pct for one in series))

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``-o json`` prints."""
        known = self.published
        answer: dict[str, Any] = {
            "runs": [msgspec.to_builtins(run) for run in self.runs],
            "trace": {
                "nodes_sha256": self.trace.nodes_sha256,
                "tasks_sha256": self.trace.tasks_sha256,
                "gpus": self.trace.gpus,
                "known_as": known.name if known is not None else None,
            },
            "differences": [self._difference(one) for one in self.differences()],
        }
        if known is not None:
            answer["published"] = {
                policy: {
                    field: {str(demand): value for demand, value in column.items()}
                    for field, column in fields.items()
                }
                for policy, fields in known.values.items()
            }
        return answer

    def _difference(self, one: Difference) -> dict[str, Any]:
        gpus = one.points.mean / 100 * self.trace.gpus
        answer = {
            "policy": one.series.policy,
            "ties": one.series.ties,
            "against": {"policy": one.baseline.policy, "ties": one.baseline.ties},
            "points": one.points.mean,
            "margin_points": one.points.margin if len(one.series.runs) > 1 else None,
            "gpus": gpus,
        }
        if self.gpu_hour_price:
            answer["per_year"] = gpus * self.gpu_hour_price * HOURS_PER_YEAR
        return answer

    def to_csv(self) -> str:
        """Return one line per run and point."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            (
                "policy",
                "ties",
                "seed",
                "demand_pct",
                *(field for field, _ in _FIELDS),
                "event_log_hash",
            )
        )
        for run in self.runs:
            for point in run.points:
                values = [f"{getattr(point, field):.4f}" for field, _ in _FIELDS]
                writer.writerow(
                    (run.policy, run.ties, run.seed, point.demand_pct, *values, run.event_log_hash)
                )
        return text.getvalue()

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return title, headings and rows of each table for a person."""
        return [*(self._series_table(one) for one in self.series), *self._difference_table()]

    def _series_table(self, one: Series) -> tuple[str, list[str], list[list[str]]]:
        known = self.published if one.ties == "name" else None
        headings = ["DEMAND %"]
        for _, heading in _FIELDS:
            headings += [heading, "PUBLISHED"] if known is not None else [heading]
        rows: list[list[str]] = []
        for demand in [*DEMANDS, one.last_demand_pct]:
            if demand > one.last_demand_pct or (rows and rows[-1][0] == str(demand)):
                continue
            row = [str(demand)]
            for field, _ in _FIELDS:
                row.append(_text(one.estimate(field, demand)))
                if known is not None:
                    value = known.value(one.policy, field, demand)
                    row.append(f"{value:.2f}" if value is not None else "")
            rows.append(row)
        seeds = ", ".join(str(run.seed) for run in one.runs)
        title = f"{one.policy}, ties by {one.ties}, seeds {seeds}"
        if known is not None:
            title += f"; published: list {known.name}, figure {known.figure}"
        return title, headings, rows

    def _difference_table(self) -> list[tuple[str, list[str], list[list[str]]]]:
        found = self.differences()
        if not found:
            return []
        headings = ["POLICY", "TIES", "POINTS", "GPUS"]
        if self.gpu_hour_price:
            headings.append("PER YEAR")
        rows = []
        for one in found:
            gpus = one.points.mean / 100 * self.trace.gpus
            row = [one.series.policy, one.series.ties, _text(one.points, "+"), f"{gpus:+.0f}"]
            if self.gpu_hour_price:
                row.append(f"{gpus * self.gpu_hour_price * HOURS_PER_YEAR:+,.0f}")
            rows.append(row)
        baseline = found[0].baseline
        title = (
            f"allocated more than {baseline.policy} with ties by {baseline.ties}, "
            "seed by seed, at the end"
        )
        return [(title, headings, rows)]


def _text(value: Estimate, sign: str = "") -> str:
    mean = f"{value.mean:{sign}.2f}"
    return mean if value.margin == float("inf") else f"{mean} ±{value.margin:.2f}"
