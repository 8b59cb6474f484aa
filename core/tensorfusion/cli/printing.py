"""Tables, YAML and JSON for people and for programs."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
import yaml


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print left-aligned columns, three spaces apart, as kubectl does."""
    click.echo("\n".join(format_table(headings, rows)))


def format_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table."""
    cells = [[str(c) for c in headings], *([_text(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def print_data(value: Any, output: str) -> None:
    """Print decoded JSON as YAML or JSON."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    else:
        click.echo(dump_yaml(value), nl=False)


def dump_yaml(value: Any) -> str:
    """Print YAML in the order of the keys."""
    return str(yaml.safe_dump(value, sort_keys=False, default_flow_style=False, width=100))


def bar(ratio: float, width: int = 20, mark: float | None = None) -> str:
    """Draw a bar of ``width`` cells; ``mark`` puts a tick at a limit."""
    filled = round(min(max(ratio, 0.0), 1.0) * width)
    cells = ["█"] * filled + ["·"] * (width - filled)
    if mark is not None and 0 <= mark <= 1:
        cells[min(width - 1, round(mark * width))] = "|"
    return "".join(cells)
