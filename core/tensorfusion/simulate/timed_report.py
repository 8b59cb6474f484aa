"""Results of runs by the clock as tables, JSON or CSV, and as a picture."""

import csv
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, Final

import msgspec

from tensorfusion.simulate.plot import COLOURS
from tensorfusion.simulate.summary import Estimate, estimate
from tensorfusion.simulate.timeline import TimedRun

Table = tuple[str, list[str], list[list[str]]]
WIDTH, HEIGHT, MARGIN = 720, 220, 56
_COLUMNS: Final = (
    ("MEAN WAIT", "mean"),
    ("P50", "p50"),
    ("P95", "p95"),
    ("P99", "p99"),
    ("LONGEST", "longest"),
)


def groups(runs: Sequence[TimedRun]) -> dict[tuple[str, str], list[TimedRun]]:
    """Group runs by policy and rule for ties, in order of appearance."""
    found: dict[tuple[str, str], list[TimedRun]] = {}
    for run in runs:
        found.setdefault((run.policy, run.ties), []).append(run)
    return found


def to_json(runs: Sequence[TimedRun]) -> dict[str, Any]:
    """Return the object that ``-o json`` prints."""
    return {"runs": [msgspec.to_builtins(run) for run in runs]}


def to_csv(runs: Sequence[TimedRun]) -> str:
    """Return one line per run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    waits = ("tasks", "waited", "never", "mean", "p50", "p95", "p99", "longest")
    heading = ("policy", "ties", "seed", *waits, "utilization_pct", "peak_pct", "event_log_hash")
    writer.writerow(heading)
    for run in runs:
        values = [getattr(run.waits, name) for name in waits]
        figures = (f"{run.utilization_pct:.4f}", f"{run.peak_pct:.4f}")
        writer.writerow((run.policy, run.ties, run.seed, *values, *figures, run.event_log_hash))
    return text.getvalue()


def tables(runs: Sequence[TimedRun]) -> Iterator[Table]:
    """Yield one table: a line per policy and rule for ties, with intervals over the seeds."""
    headings = ["POLICY", "TIES", "UTILIZATION %", "PEAK %", "TASKS", "WAITED", "NEVER"]
    rows = []
    for (policy, ties), found in groups(runs).items():
        row = [
            policy,
            ties,
            _number(estimate([run.utilization_pct for run in found])),
            _number(estimate([run.peak_pct for run in found])),
            str(found[0].waits.tasks),
            _number(estimate([float(run.waits.waited) for run in found]), 0),
            _number(estimate([float(run.waits.never) for run in found]), 0),
        ]
        rows.append(row + [_span([getattr(r.waits, name) for r in found]) for _, name in _COLUMNS])
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in runs))
    days = runs[0].span_seconds / 86_400
    title = f"arrivals over {days:.1f} days, seeds {seeds}; ± is the 95 % confidence interval"
    yield title, headings + [heading for heading, _ in _COLUMNS], rows


def seconds_text(seconds: float) -> str:
    """Print a wait the way people say it: 45 s, 12.5 min, 3.4 h, 2.1 d."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} d"


def _span(values: Sequence[float]) -> str:
    found = estimate(values)
    text = seconds_text(found.mean)
    if found.margin in (0.0, float("inf")):
        return text
    return f"{text} ±{seconds_text(found.margin)}"


def _number(value: Estimate, digits: int = 2) -> str:
    mean = f"{value.mean:.{digits}f}"
    return mean if value.margin in (0.0, float("inf")) else f"{mean} ±{value.margin:.{digits}f}"


def to_svg(runs: Sequence[TimedRun]) -> str:
    """Draw allocation and the number of waiting tasks over time, a line per policy and rule."""
    first = [found[0] for found in groups(runs).values()]
    end = max(run.span_seconds for run in first) or 1.0
    most = max((sample.waiting for run in first for sample in run.samples), default=0) or 1
    parts = [
        *_panel(first, end, 100.0, 0, "allocated GPU, %", "allocated_pct"),
        *_panel(first, end, float(most), HEIGHT, "tasks that wait", "waiting"),
    ]
    for number, run in enumerate(first):
        x, y = MARGIN + 170 * (number % 4), 2 * HEIGHT + 18 + 18 * (number // 4)
        colour = COLOURS[number % len(COLOURS)]
        label = escape(f"{run.policy}, {run.ties}")
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{label}</text>')
    height = 2 * HEIGHT + 36 + 18 * ((len(first) - 1) // 4)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(
    runs: Sequence[TimedRun], end: float, top: float, offset: int, title: str, field: str
) -> list[str]:
    low, high = offset + HEIGHT - 34, offset + 24
    right = WIDTH - 16

    def place(moment: float, value: float) -> str:
        x = MARGIN + (right - MARGIN) * moment / end
        return f"{x:.1f},{low - (low - high) * value / top:.1f}"

    parts = [f'<text x="{MARGIN}" y="{offset + 14}">{title}</text>']
    for step in range(5):
        y = low - (low - high) * step / 4
        parts.append(f'<line x1="{MARGIN}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        label = f"{top * step / 4:g}"
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{label}</text>')
    for step in range(5):
        x = MARGIN + (right - MARGIN) * step / 4
        label = f"{end * step / 4 / 86_400:.3g} d"
        parts.append(f'<text x="{x}" y="{low + 18}" text-anchor="middle">{label}</text>')
    for number, run in enumerate(runs):
        path = " ".join(place(s.time, getattr(s, field)) for s in run.samples)
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>'
        )
    return parts
