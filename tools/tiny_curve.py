"""The learning curve of `tiny` from its training log: a picture, and the log itself, thinned, for the documentation.

    python tools/tiny_curve.py runs/tiny -o docs

Writes images/tiny_curve.svg (figures on generated pictures of held-out families against pictures seen) and
tiny_log.jsonl (every validation, and running losses of about a hundred places), and prints a table of losses for the
model card.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from blemish.files import write_whole

SERIES = {
    "val_image": ("image AUROC, class token", "#b3261e"),
    "val_peak_qk": ("image AUROC, largest patches", "#1f5fa8"),
    "val_pixel_qk": ("pixel AUROC, last layer", "#2e7d32"),
    "val_pixel_vv": ("pixel AUROC, V-V stream", "#8a5a00"),
}
LOSSES = ("caption", "class", "qk3", "vv3", "qk_peak", "kind")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 360, 46, 14, 40
LOW = 0.5
THINNED = 100
Row = dict[str, Any]


def svg(rows: list[Row]) -> str:
    """The curves, on white, so that they read in light and dark."""
    most = max(row["seen"] for row in rows)
    right, floor = WIDTH - 200, HEIGHT - BOTTOM

    def at(seen: float, value: float) -> tuple[float, float]:
        x = LEFT + (right - LEFT) * seen / most
        return x, floor - (floor - TOP) * (value - LOW) / (1 - LOW)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in range(5, 11):
        _, y = at(0, tick / 10)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
    for seen in range(0, most + 1, 20_000):
        x, _ = at(seen, LOW)
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{seen:,}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">pictures seen</text>')
    for i, (name, (label, colour)) in enumerate(SERIES.items()):
        points = " ".join("{:.1f},{:.1f}".format(*at(row["seen"], row[name])) for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = TOP + 20 + 22 * i
        parts.append(
            f'<line x1="{right + 14}" x2="{right + 32}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{right + 38}" y="{y + 4}" font-size="11">{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def table(rows: list[Row]) -> str:
    """Losses at a dozen places, unweighted terms as logged."""
    lines = [
        f"| pictures seen | up to px | seconds | {' | '.join(LOSSES)} |",
        f"|{'---|' * (3 + len(LOSSES))}",
    ]
    for row in rows[:: max(1, len(rows) // 12)]:
        values = " | ".join(f"{row[name]:.3f}" for name in LOSSES)
        lines.append(f"| {row['seen']:,} | {row['size']} | {row['seconds']:,.0f} | {values} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "val_image" in row]
    losses = [row for row in rows if all(name in row for name in LOSSES)]
    write_whole(given.out / "images" / "tiny_curve.svg", svg(judged).encode())
    kept = sorted([*judged, *losses[:: max(1, len(losses) // THINNED)]], key=lambda row: row["seen"])
    write_whole(given.out / "tiny_log.jsonl", "".join(json.dumps(row) + "\n" for row in kept).encode())
    print(table(losses))


if __name__ == "__main__":
    main()
