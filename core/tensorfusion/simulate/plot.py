"""Allocation against arrived demand as an SVG file, without a plotting library."""

from collections.abc import Sequence
from html import escape

from tensorfusion.simulate.published import Published
from tensorfusion.simulate.summary import Series

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 60, 170, 20, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which people with colour blindness can tell apart."""


def to_svg(series: Sequence[Series], published: Published | None) -> str:
    """Draw a line per series; dots are published values."""
    last = min(one.last_demand_pct for one in series)
    first = min(50, last // 2)
    values = [
        [one.estimate("allocated_pct", demand).mean for demand in range(first, last + 1)]
        for one in series
    ]
    axes = _Axes(first, last, 5 * (min(map(min, values)) // 5), 100.0)
    parts = axes.frame()
    for number, (one, line) in enumerate(zip(series, values, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(axes.at(first + step, value) for step, value in enumerate(line))
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        known = published.values.get(one.policy, {}) if published is not None else {}
        for demand, value in known.get("allocated_pct", {}).items():
            if one.ties == "name" and first <= demand <= last:
                x, y = axes.at(demand, value).split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>')
        y_label = TOP + 14 + 20 * number
        parts.append(
            f'<line x1="{WIDTH - RIGHT + 12}" x2="{WIDTH - RIGHT + 36}" y1="{y_label - 4}" '
            f'y2="{y_label - 4}" stroke="{colour}" stroke-width="2"/>'
        )
        label = f"{one.policy}, {one.ties}"
        parts.append(f'<text x="{WIDTH - RIGHT + 42}" y="{y_label}">{escape(label)}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


class _Axes:
    """Turns demand and allocation into places on the page."""

    def __init__(self, first: int, last: int, low: float, high: float) -> None:
        self._first, self._last, self._low, self._high = first, max(last, first + 1), low, high

    def at(self, demand: float, value: float) -> str:
        """Return ``x,y``."""
        across = (demand - self._first) / (self._last - self._first)
        up = (value - self._low) / (self._high - self._low)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def frame(self) -> list[str]:
        """Return grid lines with their labels."""
        parts = []
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for demand in range(-(-self._first // 10) * 10, self._last + 1, 10):
            x = self.at(demand, self._low).split(",")[0]
            parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}" stroke="#ddd"/>')
            parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{demand}</text>')
        for value in range(int(self._low), 101, 5):
            y = self.at(self._first, value).split(",")[1]
            parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" dy="4">{value}</text>')
        middle = (LEFT + right) / 2
        parts.append(
            f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">'
            "arrived demand, % of GPU capacity</text>"
        )
        parts.append(
            f'<text x="16" y="{(TOP + bottom) / 2}" text-anchor="middle" '
            f'transform="rotate(-90 16 {(TOP + bottom) / 2})">allocated GPU, %</text>'
        )
        return parts
