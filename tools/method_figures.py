"""Draw the figures of the pages on methods: boxes and arrows, one SVG a method.

python tools/method_figures.py -o docs/images/methods

The figures have a background of their own, so that they read alike on light and dark pages, and use no font of their
own. What is in them is in `method_figures_data.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from blemish.files import write_whole
from method_figures_data import FIGURES

WIDTH, HEIGHT, PITCH_X, PITCH_Y, MARGIN = 172, 58, 214, 78, 16
# kind -> fill, outline, word of the legend
KINDS = {
    "given": ("#ffffff", "#6b7280", "given"),
    "frozen": ("#dbe7f5", "#3b6ea5", "frozen CLIP"),
    "tuned": ("#dbe7f5", "#c2571a", "frozen CLIP with learned parts inside"),
    "learned": ("#fbe3cf", "#c2571a", "learned"),
    "computed": ("#eef0f2", "#6b7280", "computed"),
    "memory": ("#efe3f7", "#7a4aa0", "optional"),
    "result": ("#d9f0dd", "#2f7d3b", "result"),
}


@dataclass(frozen=True)
class Box:
    """A box at a column and row of the grid; lines of text; its kind, a key of `KINDS`."""

    column: float
    row: float
    lines: tuple[str, ...]
    kind: str

    @property
    def left(self) -> float:
        return MARGIN + self.column * PITCH_X

    @property
    def top(self) -> float:
        return MARGIN + self.row * PITCH_Y

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + WIDTH / 2, self.top + HEIGHT / 2


def boxes_of(rows: Mapping[str, Sequence[object]]) -> dict[str, Box]:
    """name -> Box, from name -> (column, row, kind, text with | between lines)."""
    found = {}
    for name, (column, row, kind, text) in rows.items():
        found[name] = Box(float(str(column)), float(str(row)), tuple(str(text).split("|")), str(kind))
    return found


def draw_box(box: Box) -> Iterator[str]:
    """The SVG elements of a box."""
    fill, line, _ = KINDS[box.kind]
    dash = ' stroke-dasharray="5 3"' if box.kind == "memory" else ""
    yield (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" '
        f'stroke="{line}" stroke-width="1.6"{dash}/>'
    )
    x, y = box.middle
    first = y - 8 * (len(box.lines) - 1) + 4.5
    for i, text in enumerate(box.lines):
        yield f'<text x="{x:g}" y="{first + 16 * i:g}" text-anchor="middle">{escape(text)}</text>'


def draw_arrow(start: Box, end: Box) -> str:
    """An arrow from side to side where the columns differ, else from edge to edge.

    One that goes up over several columns enters from below, so as not to cross the boxes between.
    """
    (x0, y0), (x1, y1) = start.middle, end.middle
    if abs(x1 - x0) < WIDTH:
        way = 1 if y1 > y0 else -1
        y0, y1 = y0 + way * HEIGHT / 2, y1 - way * (HEIGHT / 2 + 2)
        line = f"M{x0:g} {y0:g}L{x1:g} {y1:g}"
    elif end.column - start.column > 1.5 and start.row > end.row:
        line = (
            f"M{x0 + WIDTH / 2:g} {y0:g}H{x1 - 10:g}Q{x1:g} {y0:g} {x1:g} {y0 - 10:g}V{y1 + HEIGHT / 2 + 2:g}"
        )
    else:
        way = 1 if x1 > x0 else -1
        x0, x1 = x0 + way * WIDTH / 2, x1 - way * (WIDTH / 2 + 2)
        bend = way * min(60.0, abs(x1 - x0) * 0.6)
        line = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
    return f'<path d="{line}" fill="none" stroke="#4b5563" stroke-width="1.5" marker-end="url(#tip)"/>'


def draw_legend(kinds: Sequence[str], top: float) -> Iterator[str]:
    """A line with the kinds that occur."""
    x = float(MARGIN)
    for kind in kinds:
        fill, line, word = KINDS[kind]
        yield (
            f'<rect x="{x:g}" y="{top:g}" width="18" height="12" rx="3" fill="{fill}" stroke="{line}" '
            'stroke-width="1.4"/>'
        )
        yield f'<text x="{x + 24:g}" y="{top + 10.5:g}">{escape(word)}</text>'
        x += 44 + 7.2 * len(word)


def figure(title: str, rows: Mapping[str, Sequence[object]], arrows: str) -> str:
    """A figure as SVG. arrows: "a>b>c d>b", between the names of boxes."""
    boxes = boxes_of(rows)
    width = max(box.left for box in boxes.values()) + WIDTH + MARGIN
    bottom = max(box.top for box in boxes.values()) + HEIGHT
    kinds = [kind for kind in KINDS if any(box.kind == kind for box in boxes.values())]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {bottom + 42:g}" width="{width:g}" '
        f'height="{bottom + 42:g}" role="img" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" '
        'font-size="13" fill="#111827">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8Z" fill="#4b5563"/></marker></defs>',
        '<rect width="100%" height="100%" rx="10" fill="#fafafa"/>',
    ]
    for chain in arrows.split():
        names = chain.split(">")
        parts += [draw_arrow(boxes[a], boxes[b]) for a, b in pairwise(names)]
    for box in boxes.values():
        parts += draw_box(box)
    parts += draw_legend(kinds, bottom + 18)
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/images/methods"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, rows, arrows) in FIGURES.items():
        write_whole(out / f"{name}.svg", figure(title, rows, arrows).encode())


if __name__ == "__main__":
    main()
