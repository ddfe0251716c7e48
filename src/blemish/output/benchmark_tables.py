"""A benchmark as text: results.csv, tables.md, tables.tex. Best figures bold, second ones underlined."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blemish.files import write_whole
from blemish.output.scoreboard import (
    METRIC_TITLES,
    OVERVIEW,
    DatasetScores,
    Entry,
    Scoreboard,
    difference,
    has_value,
    mean_over_datasets,
    percent,
    ranks,
)

TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "²": r"\textsuperscript{2}",
    "×": r"$\times$",
}


@dataclass(frozen=True)
class Cell:
    """One place of a table. rank: 1 best, 2 second, 0 neither. beside: what is printed small after the figure.

    words: no figure but text, which may be long.
    """

    text: str
    rank: int = 0
    beside: str = ""
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under heads; the first column names the row. notes: lines below it."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def tables(board: Scoreboard) -> list[Table]:
    """Overview over datasets, then every dataset's methods and classes, then the robustness study."""
    found = [t for metric in OVERVIEW if (t := overview(board, metric)) is not None]
    for dataset in board.datasets:
        found.append(dataset_table(dataset, board.metrics()))
        found += class_tables(dataset)
    return [*found, *spread_tables(board), methods_table(board)]


def overview(board: Scoreboard, metric: str) -> Table | None:
    """Methods by datasets with their mean; None where a single dataset or none has the metric."""
    datasets = [d for d in board.datasets if any(has_value(e, metric) for e in d.entries)]
    if len(datasets) < 2:
        return None
    columns: list[dict[str, float | None]] = [
        {e.label: e.mean[metric].value if metric in e.mean else None for e in d.entries} for d in datasets
    ]
    columns.append({label: mean_over_datasets(board, label, metric) for label in board.labels})
    ranked = [ranks(column) for column in columns]
    rows = [
        (
            Cell(label),
            *(Cell(percent(c.get(label)), r.get(label, 0)) for c, r in zip(columns, ranked, strict=True)),
        )
        for label in board.labels
    ]
    heads = ("Method", *(d.name for d in datasets), "Mean")
    return Table(f"{METRIC_TITLES[metric]} by dataset (%)", heads, tuple(rows))


def figure(entry: Entry, metric: str, rank: int = 0) -> Cell:
    """A measured mean with its spread over seeds, and beside it the published figure and the difference."""
    measured, printed = entry.mean.get(metric), entry.published.get(metric)
    if entry.errors and not has_value(entry, metric):
        text = "failed"
    else:
        text = percent(None if measured is None else measured.value)
        if measured is not None and measured.value is not None and measured.spread is not None:
            text += f" ± {percent(measured.spread)}"
    if printed is None:
        return Cell(text, rank)
    beside = percent(printed.value)
    if measured is not None and measured.value is not None:
        beside += f", {difference(measured.value, printed.value)}"
    return Cell(text, rank, beside + ("*" if printed.differs else ""))


def dataset_table(dataset: DatasetScores, metrics: Sequence[str]) -> Table:
    """Methods by metrics, with the published figures beside the measured ones, and what failed."""
    shown = tuple(
        m for m in metrics if any(has_value(e, m) or m in e.published for e in dataset.entries)
    ) or tuple(metrics)
    ranked = {
        m: ranks({e.label: e.mean[m].value if m in e.mean else None for e in dataset.entries}) for m in shown
    }
    trained = dict.fromkeys(entry.auxiliary or "–" for entry in dataset.entries)
    alike = len(trained) < 2
    rows = [
        (
            Cell(entry.label),
            *([] if alike else [Cell(entry.auxiliary or "–", words=True)]),
            *(figure(entry, m, ranked[m].get(entry.label, 0)) for m in shown),
        )
        for entry in dataset.entries
    ]
    heads = ("Method", *([] if alike else ["Trained on"]), *(METRIC_TITLES[m] for m in shown))
    title = f"{dataset.name}: mean over {_classes(len(dataset.counts))} (%)"
    notes = [f"Trained on {name}." for name in trained if alike and name != "–"]
    return Table(title, heads, tuple(rows), (*notes, *notes_of(dataset)))


def methods_table(board: Scoreboard) -> Table:
    """What stands behind each label: backbone, input, checkpoint, options."""
    entries = [e for d in board.datasets for e in d.entries]
    keys = tuple(dict.fromkeys(key for e in entries for key in e.facts))
    rows = []
    for label in board.labels:
        own = [e.facts for e in entries if e.label == label and e.facts]
        values = (", ".join(dict.fromkeys(facts.get(key, "–") for facts in own)) or "–" for key in keys)
        rows.append((Cell(label), *(Cell(value, words=True) for value in values)))
    return Table("Methods", ("Label", *keys), tuple(rows))


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def notes_of(dataset: DatasetScores) -> Iterator[str]:
    """What a reader of a dataset's figures must know."""
    if dataset.error:
        yield f"{dataset.name} failed: {dataset.error}"
    sources = dict.fromkeys(p.source for e in dataset.entries for p in e.published.values())
    if sources:
        yield f"In brackets: published figure, difference in points ({'; '.join(sources)})."
    differs = dict.fromkeys(d for e in dataset.entries for p in e.published.values() for d in p.differs)
    if differs:
        yield f"* measured otherwise than published: {'; '.join(differs)}."
    reasons: dict[str, dict[str, None]] = {}
    for entry in dataset.entries:
        for name, m in entry.mean.items():
            if name in METRIC_TITLES and m.value is None and m.reason:
                reasons.setdefault(m.reason, {})[METRIC_TITLES[name]] = None
    for reason, names in reasons.items():
        yield f"No {', '.join(names)}: {reason}."
    for entry in dataset.entries:
        yield from (f"{entry.label} failed: {error}" for error in entry.errors if error != dataset.error)
        if entry.failed_images:
            yield f"{entry.label}: {entry.failed_images} images could not be used and are in no figure."
        if entry.overlap:
            yield f"{entry.label}: trained on data of this dataset ({entry.overlap}); no zero-shot result."
    yield from dataset.notes
    if dataset.medical:
        yield "Medical pictures: research figures, not for diagnosis."


def class_tables(dataset: DatasetScores) -> list[Table]:
    """Classes by methods for the main metrics; none for a dataset of one class."""
    if len(dataset.counts) < 2:
        return []
    found = []
    entries = [e for e in dataset.entries if e.classes]
    for metric in OVERVIEW:
        values = {name: {e.label: class_value(e, name, metric) for e in entries} for name in dataset.counts}
        if not any(v is not None for row in values.values() for v in row.values()):
            continue
        rows = []
        for name, row in values.items():
            best = ranks(row)
            rows.append((Cell(name), *(Cell(percent(row[e.label]), best.get(e.label, 0)) for e in entries)))
        heads = ("Class", *(e.label for e in entries))
        found.append(Table(f"{dataset.name}: {METRIC_TITLES[metric]} by class (%)", heads, tuple(rows)))
    return found


def class_value(entry: Entry, name: str, metric: str) -> float | None:
    """A metric of one class, None when absent or undefined."""
    scores = entry.classes.get(name)
    measured = None if scores is None else scores.metrics.get(metric)
    return None if measured is None else measured.value


def spread_tables(board: Scoreboard) -> list[Table]:
    """The robustness study: one table for each thing that was said otherwise."""
    found = []
    for factor in dict.fromkeys(s.factor for s in board.spreads):
        rows = []
        for spread in (s for s in board.spreads if s.factor == factor):
            mean, least, greatest, deviation = spread.statistics
            figures = (spread.usual, mean, least, greatest)
            rows.append(
                (
                    Cell(f"{spread.label}, {spread.dataset}"),
                    Cell(METRIC_TITLES[spread.metric]),
                    *(Cell(percent(v)) for v in figures),
                    Cell(percent(deviation, 2)),
                    Cell(str(len(spread.all_values))),
                )
            )
        heads = ("Method, dataset", "Metric", "Usual", "Mean", "Least", "Greatest", "Deviation", "Variants")
        found.append(Table(f"Robustness: {factor.replace('_', ' ')} (%)", heads, tuple(rows)))
    return found


def write_markdown(path: Path, board: Scoreboard) -> None:
    """tables.md. Raises OutputError."""
    lines = [f"# {board.title}", ""]
    lines += [board.about.strip(), ""] if board.about.strip() else []
    lines += [f"- {key}: {value}" for key, value in board.facts.items()]
    for table in tables(board):
        lines += ["", f"## {table.title}", ""]
        lines.append("| " + " | ".join(map(_md, table.heads)) + " |")
        lines.append("|" + "|".join([" --- "] + [" ---: "] * (len(table.heads) - 1)) + "|")
        lines += ["| " + " | ".join(map(_md_cell, row)) + " |" for row in table.rows]
        lines += [line for note in table.notes for line in ("", _md(note))]
    write_whole(path, ("\n".join(lines) + "\n").encode())


def _md(text: str) -> str:
    one_line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for mark in "|*_`[]":
        one_line = one_line.replace(mark, f"\\{mark}")
    return one_line


def _md_cell(cell: Cell) -> str:
    text = _md(cell.text)
    text = f"**{text}**" if cell.rank == 1 else f"<u>{text}</u>" if cell.rank == 2 else text
    return f"{text} ({_md(cell.beside)})" if cell.beside else text


def write_tex(path: Path, board: Scoreboard) -> None:
    r"""tables.tex: `table` environments for \input; needs the packages booktabs and graphicx. Raises OutputError."""
    lines = ["% \\usepackage{booktabs,graphicx}"]
    for table in tables(board):
        lines += ["", "\\begin{table}", "\\centering", f"\\caption{{{tex(table.title)}}}"]
        lines += ["\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"]
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(table.heads) - 1)}}}", "\\toprule"]
        lines += [" & ".join(map(tex, table.heads)) + r" \\", "\\midrule"]
        lines += [" & ".join(map(_tex_cell, row)) + r" \\" for row in table.rows]
        lines += ["\\bottomrule", "\\end{tabular}}"]
        lines += [f"\\par\\smallskip{{\\footnotesize {tex(note)}}}" for note in table.notes]
        lines.append("\\end{table}")
    write_whole(path, ("\n".join(lines) + "\n").encode())


def tex(text: str) -> str:
    """Text with LaTeX's special signs escaped."""
    return "".join(TEX_SPECIAL.get(c, c) for c in " ".join(text.split()))


def _tex_cell(cell: Cell) -> str:
    text = tex(cell.text)
    text = f"\\textbf{{{text}}}" if cell.rank == 1 else f"\\underline{{{text}}}" if cell.rank == 2 else text
    return f"{text} {{\\scriptsize({tex(cell.beside)})}}" if cell.beside else text


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """results.csv: None is an empty field, fractions have nine significant digits. Raises OutputError."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="raise", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: f"{v:.9g}" if isinstance(v, float) else v for key, v in row.items() if v is not None}
        )
    write_whole(path, buffer.getvalue().encode())
