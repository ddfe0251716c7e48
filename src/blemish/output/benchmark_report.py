"""The benchmark's page: one self-contained HTML file without scripts, readable on a phone and on paper."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, BinaryIO

from blemish.files import write_whole
from blemish.output.benchmark_tables import (
    Cell,
    Table,
    class_tables,
    class_value,
    dataset_table,
    methods_table,
    overview,
    spread_tables,
)
from blemish.output.curves import bars, curves, histogram, legend
from blemish.output.scoreboard import (
    KINDS,
    METRIC_TITLES,
    OVERVIEW,
    ClassScores,
    DatasetScores,
    Entry,
    Scoreboard,
    Shot,
    percent,
)

PICTURE_BYTES = 10_000_000
OPEN_CLASSES = 2
CURVES = {
    "image_roc": ("Image ROC", "false positive rate", "true positive rate"),
    "pixel_roc": ("Pixel ROC", "false positive rate", "true positive rate"),
    "pixel_pro": ("PRO", "false positive rate", "per-region overlap"),
}


def write_benchmark_report(
    path: Path, board: Scoreboard, fpr_limit: float = 0.3, picture_bytes: int = PICTURE_BYTES
) -> None:
    """Write report.html, which needs no other file and no network.

    fpr_limit: share of the PRO curve's axis that AUPRO counts. picture_bytes: most that all pictures of the
    grid take; every dataset and class has its share, the rest is left out and counted. Raises OutputError.
    """
    page = _Page(board, fpr_limit, picture_bytes)
    template = package_files("blemish.output").joinpath("benchmark_report.html").read_text(encoding="utf-8")

    def write(file: BinaryIO) -> None:
        # text and {{name}} in turn
        for i, piece in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
            for text in [piece] if i % 2 == 0 else page.part(piece):
                file.write(text.encode("utf-8", "replace"))

    write_whole(path, write)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested settings."""
    for key, value in values.items():
        inner = dict(enumerate(value, 1)) if isinstance(value, (list, tuple)) else value
        if isinstance(inner, Mapping) and any(isinstance(v, (Mapping, list, tuple)) for v in inner.values()):
            yield from _flat({str(k): v for k, v in inner.items()}, f"{before}{key}.")
        elif isinstance(value, Mapping):
            yield from _flat({str(k): v for k, v in value.items()}, f"{before}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{before}{key}", ", ".join(map(str, value)) or "–"
        else:
            yield f"{before}{key}", "–" if value is None else str(value)


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = f"<b>{text}</b>" if cell.rank == 1 else f"<u>{text}</u>" if cell.rank == 2 else text
    kind = ' class="failed"' if cell.text == "failed" else ' class="text"' if cell.words else ""
    return f"<td{kind}>{text}" + (f"<small>{escape(cell.beside)}</small>" if cell.beside else "") + "</td>"


def _table(table: Table) -> Iterator[str]:
    """A table in a frame that scrolls by itself, reachable by keyboard."""
    name = escape(table.title)
    yield f'<h3>{name}</h3><div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><thead><tr>'
    yield "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    yield "</tr></thead><tbody>"
    for first, *rest in table.rows:
        yield f'<tr><th scope="row">{escape(first.text)}</th>{"".join(map(_cell, rest))}</tr>\n'
    yield "</tbody></table></div>"
    for note in table.notes:
        kind = " bad" if " failed: " in note else " warn" if "no zero-shot result" in note else ""
        yield f'<p class="note{kind}">{escape(note)}</p>'


class _Page:
    """The parts of the template, each a stream of HTML."""

    def __init__(self, board: Scoreboard, fpr_limit: float, picture_bytes: int) -> None:
        self.board, self.fpr_limit = board, fpr_limit
        shown = sum(1 for d in board.datasets for shots in d.shots.values() if shots)
        self.share = picture_bytes // max(shown, 1)

    def part(self, name: str) -> Iterator[str]:
        """The HTML for one name of the template."""
        parts: dict[str, Any] = {
            "title": lambda: [escape(self.board.title)],
            "about": self.about,
            "stats": self.stats,
            "facts": lambda: _terms(self.board.facts.items()),
            "contents": self.contents,
            "overview": self.overview,
            "datasets": self.datasets,
            "robustness": self.robustness,
            "speed": self.speed,
            "settings": lambda: _terms(_flat(self.board.run)),
            "version": lambda: [escape(str(self.board.run.get("versions", {}).get("blemish", "")))],
        }
        return iter(parts[name]())

    def about(self) -> Iterator[str]:
        for paragraph in self.board.about.strip().split("\n\n") if self.board.about.strip() else ():
            yield f'<p class="about">{escape(" ".join(paragraph.split()))}</p>'

    def stats(self) -> Iterator[str]:
        entries = [entry for dataset in self.board.datasets for entry in dataset.entries]
        images = sum(normal + bad for d in self.board.datasets for normal, bad in d.counts.values())
        numbers = {"methods": len(self.board.labels), "datasets": len(self.board.datasets), "images": images}
        if failed := sum(len(entry.errors) for entry in entries):
            numbers["failed"] = failed
        for label, number in numbers.items():
            text = label.removesuffix("s") if number == 1 else label
            text = ("run failed" if number == 1 else "runs failed") if label == "failed" else text
            yield f'<div class="stat {label}"><b>{number:,}</b><span>{text}</span></div>'

    def contents(self) -> Iterator[str]:
        places = {"overview": "Overview"} if self._overviews() else {}
        places |= {_anchor(i): d.name for i, d in enumerate(self.board.datasets)}
        places |= {"robustness": "Robustness"} if self.board.spreads else {}
        for anchor, name in {
            **places,
            "speed": "Speed and memory",
            "methods": "Methods",
            "settings": "Settings",
        }.items():
            yield f'<li><a href="#{anchor}">{escape(name)}</a></li>'

    def _overviews(self) -> list[Table]:
        return [t for metric in OVERVIEW if (t := overview(self.board, metric)) is not None]

    def overview(self) -> Iterator[str]:
        if not (found := self._overviews()):
            return
        yield '<section id="overview"><h2>Overview</h2>'
        for table in found:
            yield '<div class="panel">'
            yield from _table(table)
            yield "</div>"
        yield "</section>"

    def datasets(self) -> Iterator[str]:
        for i, dataset in enumerate(self.board.datasets):
            yield f'<section id="{_anchor(i)}"><h2>{escape(dataset.name)}</h2><div class="panel">'
            yield from _table(dataset_table(dataset, self.board.metrics()))
            yield "</div>"
            yield from self._by_class(dataset)
            for name in dataset.counts:
                yield from self._class(dataset, name)
            yield "</section>\n"

    def _by_class(self, dataset: DatasetScores) -> Iterator[str]:
        entries = [e for e in dataset.entries if e.classes]
        labels = [e.label for e in entries]
        charts = []
        for metric in OVERVIEW:
            groups = {name: [class_value(e, name, metric) for e in entries] for name in dataset.counts}
            if any(v is not None for row in groups.values() for v in row):
                title = f"{METRIC_TITLES[metric]} by class"
                chart = bars(
                    groups, labels, f"{title}: {dataset.name}, {', '.join(labels)}; figures in the table"
                )
                charts.append(f"<figure><figcaption>{title}</figcaption>{chart}</figure>")
        if not charts:
            return
        yield f'<div class="panel">{legend(labels)}<div class="charts wide">{"".join(charts)}</div>'
        for table in class_tables(dataset):
            yield f"<details><summary>{escape(table.title)}</summary>"
            yield from _table(table)
            yield "</details>"
        yield "</div>"

    def _class(self, dataset: DatasetScores, name: str) -> Iterator[str]:
        scored = {e.label: e.classes[name] for e in dataset.entries if name in e.classes}
        if not scored:
            return
        normal, bad = dataset.counts[name]
        opened = " open" if len(dataset.counts) <= OPEN_CLASSES else ""
        about = f"{normal:,} normal, {bad:,} anomalous"
        yield f'<section class="panel long"><details class="class"{opened}><summary>{escape(name)} '
        yield f"<small>{about}</small></summary>"
        for note in dict.fromkeys(note for scores in scored.values() for note in scores.notes):
            yield f'<p class="note">{escape(note)}</p>'
        yield from self._curves(f"{dataset.name}, {name}", scored)
        yield from _histograms(f"{dataset.name}, {name}", scored)
        yield from self._pictures(name, dataset.shots.get(name, ()), list(scored))
        yield "</details></section>\n"

    def _curves(self, place: str, scored: Mapping[str, ClassScores]) -> Iterator[str]:
        figures = []
        for kind, (title, x_name, y_name) in CURVES.items():
            # A method without this curve keeps its colour: its line is empty.
            series = {label: scores.curves.get(kind, ((), ())) for label, scores in scored.items()}
            if any(xs for xs, _ in series.values()):
                limit = self.fpr_limit if kind == "pixel_pro" else None
                chart = curves(series, f"{title} of {', '.join(series)}: {place}", x_name, y_name, limit)
                figures.append(f"<figure><figcaption>{title}</figcaption>{chart}</figure>")
        if figures:
            yield f'{legend(list(scored))}<div class="charts">{"".join(figures)}</div>'

    def _pictures(self, name: str, shots: Sequence[Shot], labels: Sequence[str]) -> Iterator[str]:
        kept = _within(shots, self.share)
        if not kept:
            return
        labels = [label for label in labels if any(label in shot.maps for shot in kept)]
        about = f"Pictures of {escape(name)}"
        yield f'<h4>Pictures, judged by {escape(labels[0])} at its t* of this class</h4><div class="pictures">'
        yield f'<div class="scroll" tabindex="0" role="region" aria-label="{about}"><table><thead><tr>'
        heads = ["Picture", "Input", "Mask", *labels]
        yield "".join(f'<th scope="col">{escape(head)}</th>' for head in heads) + "</tr></thead><tbody>"
        for shot in kept:
            yield _shot(shot, labels)
        yield "</tbody></table></div></div>"
        if len(kept) < len(shots):
            yield f'<p class="note">{len(shots) - len(kept)} more left out to keep this page small.</p>'

    def robustness(self) -> Iterator[str]:
        if not (found := spread_tables(self.board)):
            return
        yield '<section id="robustness"><h2>Robustness</h2>'
        for table in found:
            yield '<div class="panel">'
            yield from _table(table)
            yield "</div>"
        for factor in dict.fromkeys(s.factor for s in self.board.spreads):
            yield f'<div class="panel"><details><summary>Every variant: {escape(factor.replace("_", " "))}</summary>'
            yield from _variants(self.board, factor)
            yield "</details></div>"
        yield "</section>"

    def speed(self) -> Iterator[str]:
        yield '<section id="speed"><h2>Speed and memory</h2><div class="panel">'
        heads = ("Method, dataset", "Encoder, ms", "Method, ms", "Images a second", "Peak memory, MiB")
        rows = []
        for dataset in self.board.datasets:
            for entry in dataset.entries:
                if entry.seconds is not None:
                    rows.append((Cell(f"{entry.label}, {dataset.name}"), *_speed_cells(entry)))
        notes = (
            "Milliseconds an image, without reading files and without metrics; images a second as if the method "
            "ran alone. Memory is of the whole process and shared by methods that were evaluated together.",
        )
        yield from _table(Table("Speed and memory by dataset", heads, tuple(rows), notes))
        yield '</div></section><section id="methods"><h2>Methods</h2><div class="panel">'
        yield from _table(methods_table(self.board))
        yield "</div></section>"


def _anchor(index: int) -> str:
    return f"dataset-{index + 1}"


def _terms(pairs: Any) -> Iterator[str]:
    for key, text in pairs:
        yield f"<div><dt>{escape(str(key))}</dt><dd>{escape(str(text))}</dd></div>"


def _speed_cells(entry: Entry) -> tuple[Cell, ...]:
    encoder, method = entry.seconds or (0.0, 0.0)
    rate = 1 / (encoder + method) if encoder + method > 0 else 0.0
    memory = "–" if entry.memory is None else f"{entry.memory:,.0f}"
    return Cell(f"{1000 * encoder:.1f}"), Cell(f"{1000 * method:.1f}"), Cell(f"{rate:.1f}"), Cell(memory)


def _histograms(place: str, scored: Mapping[str, ClassScores]) -> Iterator[str]:
    figures = []
    for label, scores in scored.items():
        if scores.histogram is None:
            continue
        edges, normal, anomalous = scores.histogram
        about = (
            f"Scores of {label} on {place}: {sum(normal)} normal images upwards, {sum(anomalous)} anomalous "
        )
        about += "downwards"
        about += "" if scores.threshold is None else f", threshold of F1-max {scores.threshold:.4g}"
        chart = histogram(edges, normal, anomalous, scores.threshold, about)
        figures.append(f"<figure><figcaption>{escape(label)}</figcaption>{chart}</figure>")
    if figures:
        yield '<h4 class="key">Image scores: <i class="normal"></i>normal upwards, <i class="anomalous"></i>'
        yield "anomalous downwards; t* is the threshold of F1-max</h4>"
        yield f'<div class="charts">{"".join(figures)}</div>'


def _within(shots: Sequence[Shot], budget: int) -> list[Shot]:
    """Shots that fit into so many bytes of HTML: first one of each kind, then further ones; order kept."""
    seen: dict[str, int] = {}
    turns = []
    for i, shot in enumerate(shots):
        seen[shot.kind] = seen.get(shot.kind, -1) + 1
        turns.append((seen[shot.kind], i))
    kept = []
    for _, i in sorted(turns):
        shot = shots[i]
        size = sum(map(len, (shot.photo, shot.mask or b"", *(picture for picture, _ in shot.maps.values()))))
        budget -= size * 4 // 3
        if budget < 0:
            break
        kept.append(i)
    return [shots[i] for i in sorted(kept)]


def _shot(shot: Shot, labels: Sequence[str]) -> str:
    name = escape(shot.path)
    attributes = 'loading="lazy" decoding="async"'
    cells = [f'<td><img {attributes} alt="{name}, input" src="{_data("jpeg", shot.photo)}"></td>']
    if shot.mask is None:
        cells.append('<td><div class="none">no mask</div></td>')
    else:
        cells.append(f'<td><img {attributes} alt="{name}, mask" src="{_data("png", shot.mask)}"></td>')
    for label in labels:
        if label not in shot.maps:
            cells.append('<td><div class="none">none</div></td>')
            continue
        picture, score = shot.maps[label]
        alt = f"{name}, anomaly map of {escape(label)}, score {score:.4g}"
        cells.append(
            f'<td><img {attributes} alt="{alt}" src="{_data("jpeg", picture)}"><small>{score:.4g}</small></td>'
        )
    badge = f'<span class="badge {shot.kind}">{KINDS[shot.kind]}</span>'
    return f'<tr><th scope="row">{badge}<br>{name}</th>{"".join(cells)}</tr>\n'


def _variants(board: Scoreboard, factor: str) -> Iterator[str]:
    spreads = [s for s in board.spreads if s.factor == factor]
    names = dict.fromkeys(name for s in spreads for name in s.values)
    heads = ("Method, dataset", "Metric", "Usual", *names)
    rows = tuple(
        (
            Cell(f"{s.label}, {s.dataset}"),
            Cell(METRIC_TITLES[s.metric]),
            Cell(percent(s.usual)),
            *(Cell(percent(s.values.get(name))) for name in names),
        )
        for s in spreads
    )
    yield from _table(Table(f"{factor.replace('_', ' ').capitalize()} (%)", heads, rows))
