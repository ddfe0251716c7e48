"""The gallery: one self-contained HTML page over a run, most anomalous images first."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files as package_files
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import quote

from blemish.files import write_whole
from blemish.output.pictures import color_bar_png
from blemish.output.spool import GallerySpool
from blemish.output.tables import KINDS

__all__ = ["GallerySpool", "write_gallery"]

TABLE_ROWS = 10_000
TABLE_HEADS = ("Image", "Score", "Decision", "Size, regions", "Files")
BINS = 40
WIDE = 1.5
# key of run.json -> label in the page's head; looked for at the top and among "options"
FACTS = {
    "method": "Method",
    "backbone": "Backbone",
    "checkpoint": "Checkpoint",
    "image_size": "Input size",
    "tile": "Tile",
    "threshold": "Score threshold",
    "pixel_threshold": "Pixel threshold",
    "device": "Device",
    "precision": "Precision",
    "seconds": "Seconds",
}
BADGES = {
    state: f'<span class="badge {state}"><i aria-hidden="true">{sign}</i>{text}</span>'
    for state, sign, text in (
        ("anomalous", "▲", "Anomalous"),
        ("normal", "✓", "Normal"),
        ("scored", "–", "No threshold"),
    )
}


def write_gallery(
    out: Path,
    run: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    spool: GallerySpool,
    limit: int = 300,
) -> Path:
    """Write `index.html`, which needs no other file and no network, and return its path.

    run: what run.json holds. `map_range`, `threshold` and `pixel_threshold` (top level or under "options")
    draw the colour bar and the marks; the keys of FACTS make the head; everything is listed under "all
    settings". records: lines of predictions.jsonl, in any order. spool: their pictures. limit: images shown
    as cards; the others follow as rows of a table. The page is written piece by piece: besides one small row
    per image only one card is held in memory. Raises OutputError.
    """
    rows, failed = _sorted_rows(records)
    page = _Page(run, rows, failed, spool, limit)
    template = package_files("blemish.output").joinpath("report.html").read_text(encoding="utf-8")

    def write(file: BinaryIO) -> None:
        # text and {{name}} in turn
        for i, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
            for text in [piece] if i % 2 == 0 else page.part(piece):
                file.write(text.encode("utf-8", "replace"))

    write_whole(out / "index.html", write)
    return out / "index.html"


def _sorted_rows(
    records: Iterable[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """(records with counts in place of regions, highest score first; (path, cause) of failed images)."""
    rows, failed = [], []
    for values in records:
        if "error" in values:
            failed.append((str(values["path"]), str(values["error"])))
        else:
            rows.append({**values, "regions": len(values.get("regions") or ())})
    rows.sort(key=lambda r: (-r["score"], r["path"]))
    return rows, failed


def _setting(run: Mapping[str, Any], key: str) -> Any:
    options = run.get("options")
    value = run.get(key)
    return options.get(key) if value is None and isinstance(options, Mapping) else value


def _number(value: float) -> str:
    return f"{value:.4g}"


def _state(row: Mapping[str, Any]) -> str:
    decision = row.get("is_anomalous")
    return "scored" if decision is None else "anomalous" if decision else "normal"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{before}{key}", ", ".join(map(str, value))
        else:
            yield f"{before}{key}", "–" if value is None else str(value)


class _Page:
    """The parts of the template, each a stream of HTML."""

    def __init__(
        self,
        run: Mapping[str, Any],
        rows: Sequence[dict[str, Any]],
        failed: Sequence[tuple[str, str]],
        spool: GallerySpool,
        limit: int,
    ) -> None:
        self.run, self.rows, self.failed, self.spool, self.limit = run, rows, failed, spool, limit
        found = next((r["threshold"] for r in rows if r.get("threshold") is not None), None)
        given = _setting(run, "threshold")
        self.threshold: float | None = found if found is not None else given
        self.count = {s: sum(_state(r) == s for r in rows) for s in BADGES}
        marks = [r["score"] for r in rows] + ([self.threshold] if self.threshold is not None else [])
        low, high = (min(marks), max(marks)) if marks else (0.0, 1.0)
        margin = (high - low) * 0.02 or 0.5
        self.low = max(low - margin, 0.0) if low >= 0 else low - margin
        self.high = min(high + margin, 1.0) if high <= 1 else high + margin

    def part(self, name: str) -> Iterator[str]:
        """The HTML for one name of the template."""
        parts: dict[str, Any] = {
            "title": self.title,
            "summary": self.summary,
            "facts": self.facts,
            "histogram": self.histogram,
            "scale": self.scale,
            "buttons": self.buttons,
            "cards": self.cards,
            "table": self.table,
            "failures": self.failures,
            "settings": self.settings,
            "version": lambda: [escape(str(dict(_flat(self.run)).get("versions.blemish", "")))],
        }
        return iter(parts[name]())

    def title(self) -> Iterator[str]:
        scored = len(self.rows)
        images = "1 image" if scored == 1 else f"{scored:,} images"
        if not scored and self.failed:
            yield "No image could be scored"
        elif self.threshold is None:
            yield f"{images} scored"
        elif self.count["anomalous"]:
            yield f"{self.count['anomalous']:,} of {images} anomalous"
        else:
            yield f"{images}, none anomalous"

    def summary(self) -> Iterator[str]:
        numbers: dict[str, object] = {"images": f"{len(self.rows) + len(self.failed):,}"}
        if self.threshold is not None:
            numbers |= {"anomalous": f"{self.count['anomalous']:,}", "normal": f"{self.count['normal']:,}"}
        numbers["failed"] = f"{len(self.failed):,}"
        for label, text in numbers.items():
            yield f'<div class="stat {label}"><b>{text}</b><span>{label}</span></div>'

    def facts(self) -> Iterator[str]:
        for key, label in FACTS.items():
            value = _setting(self.run, key)
            if isinstance(value, Mapping):
                value = value.get("name") or ", ".join(text for _, text in islice(_flat(value), 2))
            if isinstance(value, float):
                value = _number(value)
            if isinstance(value, (list, tuple)):
                value = "×".join(map(str, value))
            if value not in (None, ""):
                yield f"<div><dt>{label}</dt><dd>{escape(str(value))}</dd></div>"

    def _place(self, score: float) -> float:
        """Position of a score on the page's score axis, per cent."""
        return min(100.0, max(0.0, 100 * (score - self.low) / (self.high - self.low)))

    def histogram(self) -> Iterator[str]:
        if not self.rows:
            yield '<p class="empty">No scores.</p>'
            return
        width = (self.high - self.low) / BINS
        # bins begin at the threshold, so that no bar holds images of both decisions
        origin = self.low if self.threshold is None else self.threshold
        counts: dict[int, int] = {}
        for row in self.rows:
            index = int((row["score"] - origin) // width)
            counts[index] = counts.get(index, 0) + 1
        tallest = max(counts.values())
        about = f"Histogram of {len(self.rows)} scores from {_number(self.rows[-1]['score'])} to "
        about += _number(self.rows[0]["score"])
        about += "" if self.threshold is None else f", threshold {_number(self.threshold)}"
        yield f'<svg viewBox="0 0 100 40" preserveAspectRatio="none" role="img" aria-label="{about}">'
        for index, count in sorted(counts.items()):
            kind = "scored" if self.threshold is None else "anomalous" if index >= 0 else "normal"
            x, tall = self._place(origin + index * width), 38 * count / tallest
            yield (
                f'<rect class="{kind}" x="{x:.2f}" y="{40 - tall:.2f}" width="{100 / BINS - 0.4:.2f}" '
                f'height="{tall:.2f}"><title>{count} × {_number(origin + index * width)} to '
                f"{_number(origin + (index + 1) * width)}</title></rect>"
            )
        yield "</svg>"
        yield f'<div class="axis"><span>{_number(self.low)}</span><span>{_number(self.high)}</span>'
        yield self._mark(self.threshold)
        yield "</div>"

    def _mark(self, threshold: float | None) -> str:
        if threshold is None:
            return ""
        place = f"--at:{self._place(threshold):.2f}%"
        return f'<span class="mark" style="{place}">threshold {_number(threshold)}</span>'

    def scale(self) -> Iterator[str]:
        low, high = (float(v) for v in _setting(self.run, "map_range") or (0.0, 1.0))
        threshold = _setting(self.run, "pixel_threshold")
        bar = base64.b64encode(color_bar_png((low, high), threshold)).decode()
        mark = "" if threshold is None else f", line at the pixel threshold {_number(threshold)}"
        yield f'<img class="bar" alt="Colour scale from {_number(low)} to {_number(high)}{mark}" '
        yield f'src="data:image/png;base64,{bar}">'
        yield f'<div class="axis"><span>{_number(low)}</span><span>{_number(high)}</span>'
        if threshold is not None and low <= threshold <= high:
            place = 100 * (threshold - low) / (high - low)
            yield f'<span class="mark" style="--at:{place:.2f}%">contour {_number(threshold)}</span>'
        yield "</div>"

    def buttons(self) -> Iterator[str]:
        choices = {"all": len(self.rows) + len(self.failed)}
        if self.threshold is not None:
            choices |= {"anomalous": self.count["anomalous"], "normal": self.count["normal"]}
        choices["failed"] = len(self.failed)
        for name, count in choices.items():
            pressed = "true" if name == "all" else "false"
            yield f'<button type="button" data-show="{name}" aria-pressed="{pressed}">'
            yield f"{name.capitalize()} <small>{count:,}</small></button>"

    def cards(self) -> Iterator[str]:
        for row in self.rows[: self.limit]:
            yield self._card(row, self.spool.pictures(row["path"]))

    def _card(self, row: Mapping[str, Any], pictures: tuple[bytes, bytes] | None) -> str:
        path, state = PurePosixPath(str(row["path"]).replace("\\", "/")), _state(row)
        whole = escape(str(row["path"]))
        name, folder = escape(path.name), escape("" if str(path.parent) == "." else f"{path.parent}/")
        size = f'width="{row["width"]}" height="{row["height"]}" loading="lazy" decoding="async"'
        wide = " wide" if row["width"] > WIDE * row["height"] else ""
        if pictures is None:
            shown = '<div class="pair none">no preview</div>'
        else:
            photo, heat = ("data:image/jpeg;base64," + base64.b64encode(p).decode() for p in pictures)
            shown = (
                f'<button type="button" class="pair{wide}" aria-label="Enlarge {name}">'
                f'<img class="photo" {size} alt="{name}, photo" src="{photo}">'
                f'<img class="heat" {size} alt="{name}, heat map" src="{heat}"></button>'
            )
        return (
            f'<article class="card" data-state="{state}" data-name="{whole.lower()}">{shown}'
            f'<div class="body"><h3 title="{whole}"><span>{folder}</span>{name}</h3>'
            f'<div class="line"><span class="score">{row["score"]:.4f}</span>{BADGES[state]}</div>'
            f"{self._gauge(row['score'], state)}"
            f'<div class="line small"><span>{self._about(row)}</span><span>{_links(row)}</span></div>'
            "</div></article>\n"
        )

    def _gauge(self, score: float, state: str) -> str:
        mark = "" if self.threshold is None else f'<u style="left:{self._place(self.threshold):.2f}%"></u>'
        bar = f'<b class="{state}" style="width:{self._place(score):.2f}%"></b>'
        return f'<div class="gauge" aria-hidden="true">{bar}{mark}</div>'

    @staticmethod
    def _about(row: Mapping[str, Any]) -> str:
        regions = (
            "" if row["regions"] == 0 else f" · {row['regions']} region{'s' if row['regions'] > 1 else ''}"
        )
        return f"{row['width']}×{row['height']}{regions}"

    def table(self) -> Iterator[str]:
        rest = self.rows[self.limit :]
        if not rest:
            return
        yield f'<section class="rest"><h2>{len(rest):,} more, by score</h2>'
        if len(rest) > TABLE_ROWS:
            yield f"<p>The first {TABLE_ROWS:,} of them; predictions.csv lists all.</p>"
        heads = "".join(f'<th scope="col">{h}</th>' for h in TABLE_HEADS)
        yield f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>'
        for row in rest[:TABLE_ROWS]:
            name, state = escape(str(row["path"])), _state(row)
            yield f'<tr data-state="{state}" data-name="{name.lower()}"><td>{name}</td>'
            yield f"<td>{row['score']:.4f}</td><td>{BADGES[state]}</td>"
            yield f"<td>{self._about(row)}</td><td>{_links(row)}</td></tr>\n"
        yield "</tbody></table></div></section>"

    def failures(self) -> Iterator[str]:
        if not self.failed:
            return
        yield f'<section class="failed"><h2>{len(self.failed):,} failed</h2><ul>'
        for path, cause in self.failed[:TABLE_ROWS]:
            name = escape(path)
            yield f'<li data-state="failed" data-name="{name.lower()}"><b>{name}</b>'
            yield f"<span>{escape(cause)}</span></li>"
        yield "</ul>"
        if len(self.failed) > TABLE_ROWS:
            yield f"<p>The first {TABLE_ROWS:,} of them; predictions.csv lists all.</p>"
        yield "</section>"

    def settings(self) -> Iterator[str]:
        for key, text in _flat(self.run):
            yield f"<div><dt>{escape(key)}</dt><dd>{escape(text)}</dd></div>"


def _links(row: Mapping[str, Any]) -> str:
    """Links to the files saved for an image, relative to the page."""
    files = row.get("files") or {}
    return " ".join(
        f'<a href="{escape(quote(str(files[kind])))}">{kind.replace("_", " ")}</a>'
        for kind in KINDS
        if kind in files
    )
