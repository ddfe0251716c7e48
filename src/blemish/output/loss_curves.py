"""A training run as a free-standing SVG: panels of lines over the optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, LEGEND = 860, 260, 64, 12, 28, 30, 170
# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MOST_POINTS = 600

Series = Mapping[str, Sequence[tuple[float, float]]]


def line_panels(panels: Mapping[str, Series]) -> str:
    """SVG text. panels: title -> name of a line -> its (step, value) pairs; empty panels are left out."""
    drawn = {title: lines for title, lines in panels.items() if any(lines.values())}
    height = HEIGHT * max(len(drawn), 1)
    body = [
        f'<g transform="translate(0 {i * HEIGHT})">{_panel(title, lines)}</g>'
        for i, (title, lines) in enumerate(drawn.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="training curves" font-family="sans-serif" font-size="11">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def _panel(title: str, lines: Series) -> str:
    lines = {name: _thinned(points) for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x0, x1 = min(xs), max(*xs, min(xs) + 1)
    y0, y1 = min(*ys, 0.0), max(ys)
    y1 = y1 if y1 > y0 else y0 + 1
    wide, high = WIDTH - LEFT - RIGHT - LEGEND, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> str:
        return f"{LEFT + wide * (x - x0) / (x1 - x0):.1f},{TOP + high * (y1 - y) / (y1 - y0):.1f}"

    parts = [f'<text x="{LEFT}" y="17" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, value = TOP + high * (1 - share), y0 + (y1 - y0) * share
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        x = LEFT + wide * share
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x0 + (x1 - x0) * share:.0f}</text>'
        )
    for i, (name, points) in enumerate(lines.items()):
        colour, y = COLOURS[i % len(COLOURS)], TOP + 10 + 14 * i
        path = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        if y < HEIGHT - 6:
            parts.append(
                f'<text x="{LEFT + wide + 12}" y="{y}" fill="{colour}">{escape(name)} {points[-1][1]:.4g}</text>'
            )
    return "".join(parts)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points where there are more than can be seen."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
