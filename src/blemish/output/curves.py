"""Inline SVG of our own: bars, curves, histograms. Colours are CSS classes of the page; no script is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from blemish.output.scoreboard import Points

SERIES = 8
WIDTH, LEFT, RIGHT, TOP = 360, 38, 8, 8


def _number(value: float) -> str:
    return f"{value:.4g}"


def _svg(width: int, height: int, about: str, body: str, kind: str = "") -> str:
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(about)}">'
        f"{body}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def legend(labels: Sequence[str]) -> str:
    """The colours of series, as a list."""
    items = "".join(
        f'<li><i class="s{i % SERIES}"></i>{escape(label)}</li>' for i, label in enumerate(labels)
    )
    return f'<ul class="legend">{items}</ul>'


def bars(groups: Mapping[str, Sequence[float | None]], labels: Sequence[str], about: str) -> str:
    """Horizontal bars, one group a class and one bar a method, from 0 to 100 %.

    groups: class -> fractions in the order of `labels`; None leaves the place empty and says so.
    """
    thick, gap, head = 13, 12, 20
    tall = len(labels) * thick
    height = TOP + 16 + len(groups) * (head + tall + gap)
    wide = WIDTH - 2 * RIGHT - 44
    body = []
    for tick in range(0, 101, 25):
        x = RIGHT + wide * tick / 100
        body += [_line(x, TOP + 14, x, height - gap), _text(x, TOP + 8, f"{tick}")]
    y = TOP + 16.0
    for name, values in groups.items():
        body.append(_text(RIGHT, y + head - 6, name, "start", "name"))
        y += head
        for i, (label, value) in enumerate(zip(labels, values, strict=True)):
            if value is None:
                body.append(_text(RIGHT + 4, y + thick - 3, "no value", "start"))
            else:
                length = max(wide * value, 0.5)
                text = f"{100 * value:.1f}"
                body.append(
                    f'<rect class="s{i % SERIES}" x="{RIGHT}" y="{y:.1f}" width="{length:.1f}" height="{thick - 2}">'
                    f"<title>{escape(name)}, {escape(label)}: {text}</title></rect>"
                    + _text(RIGHT + length + 4, y + thick - 3, text, "start")
                )
            y += thick
        y += gap
    return _svg(WIDTH, height, about, "".join(body), "bars")


def curves(
    series: Mapping[str, Points], about: str, x_name: str, y_name: str, limit: float | None = None
) -> str:
    """Lines in the unit square. limit: part of the x axis that counts, shaded beyond it."""
    side, bottom = 300, 34
    width, height = LEFT + side + RIGHT, TOP + side + bottom
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = LEFT + side * tick, TOP + side * (1 - tick)
        body += [_line(x, TOP, x, TOP + side), _line(LEFT, y, LEFT + side, y)]
        body += [_text(x, TOP + side + 14, f"{tick:g}"), _text(LEFT - 5, y + 4, f"{tick:g}", "end")]
    if limit is not None and limit < 1:
        x = LEFT + side * limit
        body.append(
            f'<rect class="beyond" x="{x:.1f}" y="{TOP}" width="{side * (1 - limit):.1f}" height="{side}"/>'
        )
    middle = TOP + side / 2
    body.append(_text(LEFT + side / 2, height - 4, x_name))
    body.append(
        f'<text class="tick" transform="translate(10 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    for i, (label, (xs, ys)) in enumerate(series.items()):
        points = " ".join(f"{LEFT + side * x:.1f},{TOP + side * (1 - y):.1f}" for x, y in _thinned(xs, ys))
        body.append(
            f'<polyline class="s{i % SERIES}" points="{points}"><title>{escape(label)}</title></polyline>'
        )
    return _svg(width, height, about, "".join(body), "curve")


def _thinned(xs: Sequence[float], ys: Sequence[float], step: float = 1 / 150) -> list[tuple[float, float]]:
    """Points that the eye can tell apart; the first and last stay."""
    kept: list[tuple[float, float]] = []
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        last = i == len(xs) - 1
        if not kept or last or abs(x - kept[-1][0]) + abs(y - kept[-1][1]) >= step:
            kept.append((x, y))
    return kept


def histogram(
    edges: Sequence[float],
    normal: Sequence[int],
    anomalous: Sequence[int],
    threshold: float | None,
    about: str,
) -> str:
    """Scores of normal images upwards and of anomalous ones downwards from one axis, with the threshold."""
    width, half, label = 360, 62, 16
    height = 2 * half + 2 * label
    middle = label + half
    low, high = edges[0], edges[-1]
    span = (high - low) or 1.0
    tallest = max(*normal, *anomalous, 1)
    body = [_line(0, middle, width, middle, "axis")]
    for kind, counts, sign in (("normal", normal, -1), ("anomalous", anomalous, 1)):
        for i, count in enumerate(counts):
            if not count:
                continue
            x = width * (edges[i] - low) / span
            wide = max(width * (edges[i + 1] - edges[i]) / span - 0.6, 0.8)
            tall = (half - 4) * count / tallest
            y = middle - tall if sign < 0 else middle
            about_bin = f"{count} {kind}, {_number(edges[i])} to {_number(edges[i + 1])}"
            body.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}">'
                f"<title>{about_bin}</title></rect>"
            )
    if threshold is not None and low <= threshold <= high:
        x = width * (threshold - low) / span
        anchor = "end" if x > width / 2 else "start"
        body.append(_line(x, label - 4, x, height - label, "mark"))
        body.append(_text(x + (-4 if anchor == "end" else 4), 10, f"t* {_number(threshold)}", anchor, "name"))
    body += [_text(0, height - 3, _number(low), "start"), _text(width, height - 3, _number(high), "end")]
    return _svg(width, height, about, "".join(body), "histogram")
