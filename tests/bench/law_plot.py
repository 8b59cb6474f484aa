"""Cumulative distributions as an SVG file: one panel per figure, one line per law."""

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Okabe and Ito's palette, which people with colour blindness can tell apart."""
WIDTH, HEIGHT = 300, 220
LEFT, TOP, BOTTOM, RIGHT = 40, 30, 34, 12
PER_ROW = 3
LEAST = 0.01
"""Left end of the logarithmic axis; what is smaller is drawn there."""

Panel = tuple[str, float | None, Mapping[str, Sequence[float]]]
"""Title with unit, target, and the values of each law."""


def to_svg(panels: Sequence[Panel]) -> str:
    """Draw, for each panel, what part of the workloads has at most so much; further left is better."""
    laws = list(panels[0][2])
    places = len(panels) + 1
    width, height = PER_ROW * WIDTH, math.ceil(places / PER_ROW) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({_corner(number)})">', *_panel(panel), "</g>"]
    parts.append(f'<g transform="translate({_corner(len(panels))})">')
    for number, law in enumerate(laws):
        y, colour = TOP + 20 + 20 * number, COLOURS[number % len(COLOURS)]
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + 24}" y1="{y}" y2="{y}" stroke="{colour}"/>')
        parts.append(f'<text x="{LEFT + 32}" y="{y + 4}">{escape(law)}</text>')
    y = TOP + 20 + 20 * len(laws)
    parts.append(
        f'<line x1="{LEFT}" x2="{LEFT + 24}" y1="{y}" y2="{y}" stroke="#888" stroke-dasharray="4 3"/>'
        f'<text x="{LEFT + 32}" y="{y + 4}">target</text>'
        f'<text x="{LEFT}" y="{y + 28}">Up: percent of the workloads.</text>'
    )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _corner(number: int) -> str:
    return f"{number % PER_ROW * WIDTH},{number // PER_ROW * HEIGHT}"


def _panel(panel: Panel) -> list[str]:
    title, target, values = panel
    most = max(max(map(max, values.values())), 10 * LEAST)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    span = math.log10(most / LEAST)

    def x(value: float) -> float:
        return LEFT + math.log10(max(value, LEAST) / LEAST) / span * (right - LEFT)

    def y(part: float) -> float:
        return bottom - part * (bottom - TOP)

    parts = [f'<text x="{LEFT}" y="{TOP - 12}">{escape(title)}</text>']
    for percent in (0, 50, 100):
        at = y(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{percent}</text>')
    for power in range(round(math.log10(LEAST)), math.floor(math.log10(most)) + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{10.0**power:g}</text>'
        )
    if target is not None:
        at = x(target)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}" stroke="#888"'
            ' stroke-dasharray="4 3"/>'
        )
    for number, numbers in enumerate(values.values()):
        ordered = sorted(numbers)
        points = " ".join(
            f"{x(ordered[math.ceil(step / 100 * len(ordered)) - 1]):.1f},{y(step / 100):.1f}"
            for step in range(1, 101)
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{points}"/>')
    return parts
