"""The error curve as text and as an SVG file, without a plotting library."""

from html import escape

from tensorfusion_native.show import format_rows
from tensorfusion_native.verify import Report, Row

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 180, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which people with colour blindness can tell apart."""
LEAST_SPAN = 6.0
"""Points of error that the plot shows at least, so that noise does not look large."""
BAR = 10


def table(report: Report) -> list[str]:
    """One line per row, with a bar of the mean's error: each cell half a point."""
    kind = "simulated, " if report.simulated else ""
    lines = format_rows(
        ("CAP", "KERNEL", "BLOCKS", "MEAN", "WORST SECOND", "SETTLED", "ERROR"),
        [
            (
                f"{row.cap_pct} %",
                f"{row.kernel_us} us",
                str(row.grid),
                f"{row.mean_pct:.2f} %",
                f"{row.worst_window_pct:.2f} %",
                f"{row.settle_s:.1f} s",
                error_bar(row.mean_pct - row.cap_pct),
            )
            for row in report.rows
        ],
    )
    errors = [abs(row.mean_pct - row.cap_pct) for row in report.rows]
    worst = max(abs(row.worst_window_pct - row.cap_pct) for row in report.rows)
    return [
        f"{report.device} ({kind}{report.time} time, {report.seconds} s each)",
        *lines,
        f"error of the mean: {sum(errors) / len(errors):.2f} points on average, {max(errors):.2f}"
        f" at most; of a single second: {worst:.2f} at most",
    ]


def error_bar(points: float) -> str:
    """Draw an error to the left (less than the cap) or to the right (more)."""
    length = min(BAR, round(abs(points) * 2))
    left, right = (length, 0) if points < 0 else (0, length)
    return " " * (BAR - left) + "█" * left + "|" + "█" * right


def to_svg(report: Report) -> str:
    """Draw the error of the mean over the cap; a thin line reaches to the worst second."""
    span = max(
        LEAST_SPAN,
        *(
            abs(value - row.cap_pct) + 0.5
            for row in report.rows
            for value in (row.mean_pct, row.worst_window_pct)
        ),
    )
    parts = _frame(report, span)
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in report.rows:
        groups.setdefault((row.kernel_us, row.grid), []).append(row)
    for number, ((kernel, grid), rows) in enumerate(groups.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
        shift = (number - len(groups) / 2) * 1.5
        places = [(_x(row.cap_pct) + shift, row) for row in rows]
        path = " ".join(f"{x:.1f},{_y(row.mean_pct - row.cap_pct, span):.1f}" for x, row in places)
        parts.append(f'<polyline fill="none" stroke="{colour}"{dash} points="{path}"/>')
        for x, row in places:
            mean = _y(row.mean_pct - row.cap_pct, span)
            worst = _y(row.worst_window_pct - row.cap_pct, span)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{mean:.1f}" y2="{worst:.1f}"'
                f' stroke="{colour}" opacity="0.6"/><circle cx="{x:.1f}" cy="{mean:.1f}" r="2.5"'
                f' fill="{colour}"/>'
            )
        y = TOP + 14 + 16 * number
        if y < HEIGHT - BOTTOM:
            label = f"{kernel} us, {grid} blocks"
            parts.append(
                f'<text x="{WIDTH - RIGHT + 12}" y="{y}" fill="{colour}">{escape(label)}</text>'
            )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _x(cap: float) -> float:
    return LEFT + cap / 100 * (WIDTH - LEFT - RIGHT)


def _y(error: float, span: float) -> float:
    return TOP + (span - error) / (2 * span) * (HEIGHT - TOP - BOTTOM)


def _frame(report: Report, span: float) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    kind = "simulated, " if report.simulated else ""
    title = f"{report.device} ({kind}{report.time} time): error of the limiter"
    parts = [f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>']
    for cap in range(0, 101, 10):
        x = _x(cap)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{cap}</text>')
    for error in range(-int(span), int(span) + 1, 1 if span < 12 else 5):
        y, shade = _y(error, span), "#888" if error == 0 else "#eee"
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{shade}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{error:+d}</text>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "cap, % of the device's time; line: mean, stroke: to the worst second, points</text>"
    )
    return parts
