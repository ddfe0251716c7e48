"""What `blemish list` and `blemish info` show: rows of names with a few words, and flattened values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from blemish.loading import EMBEDDED

if TYPE_CHECKING:
    from blemish.data.check import Problem, Report


def methods() -> list[dict[str, Any]]:
    """Every method: name, what it is, options and presets."""
    from blemish.methods import METHODS, method_class, options_of, presets

    rows = []
    for name in METHODS:
        options = [{"name": o.name, "default": o.default, "help": o.help} for o in options_of(name).values()]
        rows.append(
            {"name": name, "about": _about(method_class(name)), "options": options}
            | {"presets": presets(name)}
        )
    return rows


def backbones() -> list[dict[str, Any]]:
    """Every named backbone."""
    from blemish.clip.hub import BACKBONES

    rows = []
    for name, known in BACKBONES.items():
        about = "embedded, needs no network"
        if known.config is not None:
            vision = known.config.vision
            about = f"{known.config.source}, {vision.image_size} px, patches of {vision.patch_size}"
            about += f", hub: {known.repositories[0]}"
        rows.append({"name": name, "about": about})
    return rows


def datasets() -> list[dict[str, Any]]:
    """Every known dataset: classes, test pictures as the papers count them, licence, source; generic layouts."""
    from blemish.data.catalog import CATALOG, GENERIC

    rows: list[dict[str, Any]] = []
    for entry in CATALOG.values():
        normal, anomalous = entry.total
        classes = f"{len(entry.classes)} class{'es' if len(entry.classes) > 1 else ''}"
        about = f"{entry.title}: {classes}, {normal} normal, {anomalous} anomalous; {entry.licence}; {entry.source}"
        known = {"classes": list(entry.classes), "normal": normal, "anomalous": anomalous}
        told = {"masks": entry.masks, "licence": entry.licence, "source": entry.source, "odd": entry.odd}
        rows.append({"name": entry.name, "about": about} | known | told)
    return rows + [{"name": name, "about": about} for name, about in GENERIC.items()]


def checkpoints() -> list[dict[str, Any]]:
    """The embedded checkpoints: those that `blemish predict` uses without --checkpoint."""
    from blemish.checkpoint import is_checkpoint, read_meta

    rows = []
    for path in sorted(EMBEDDED.glob("*.safetensors")):
        if is_checkpoint(path):
            meta = read_meta(path)
            made = f"trained on {meta.auxiliary}" if meta.auxiliary else "thresholds alone"
            about = f"embedded, {meta.backbone}, {made}"
            rows.append({"name": meta.method, "about": about, "file": path.name})
    return rows


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested values; what is empty is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        elif value not in (None, ""):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{before}{key}", text


def dataset_lines(report: Report, limit: int = 10) -> Iterator[str]:
    """A report on a dataset as lines of text. limit: how many problems of one kind are shown."""
    data, entry = report.dataset, report.dataset.entry
    named = f"{data.name} ({entry.title})" if entry else f"{data.name} (none of the known datasets)"
    yield f"dataset   {named}, read as {data.layout}"
    if entry:
        yield f"licence   {entry.licence}"
        yield f"source    {entry.source}"
        if entry.odd:
            yield f"know      {entry.odd}"
        if entry.medical:
            yield "          not for diagnosis"
    yield ""
    yield from _class_table(report)
    if data.notes or report.problems:
        yield ""
    for note in data.notes:
        yield f"note      {note}"
    kinds: dict[str, list[Problem]] = {}
    for problem in sorted(report.problems, key=lambda p: (not p.remark, not p.fatal)):
        kinds.setdefault(f"{'remark' if problem.remark else 'OFF':<10}{problem.kind}", []).append(problem)
    for kind, problems in kinds.items():
        yield from (f"{kind}: {problem.text}" for problem in problems[:limit])
        if len(problems) > limit:
            yield f"{kind}: and {len(problems) - limit} more (--json lists all)"
    yield ""
    wrong = sum(not problem.remark for problem in report.problems)
    yield "nothing is off" if report.ok else f"{wrong} {'things are' if wrong > 1 else 'thing is'} off"


def _class_table(report: Report) -> Iterator[str]:
    """Test pictures found (and expected) per class, with masks, training pictures and sizes."""
    rows = [("class", "normal", "anomalous", "masks", "train", "sizes in pixels")]
    for row in report.classes:
        expected = row.expected or (None, None)
        sizes = "unreadable" if row.smallest is None else "×".join(map(str, row.smallest))
        if row.sizes > 1 and row.largest is not None:
            sizes += f" to {'×'.join(map(str, row.largest))}, {row.sizes} different"
        name = row.name if not row.unlabelled else f"{row.name} ({row.unlabelled} without a label)"
        normal, anomalous = _of(row.normal, expected[0]), _of(row.anomalous, expected[1])
        rows.append((name, normal, anomalous, str(row.masks), str(row.train), sizes))
    if len(report.classes) > 1 or (report.expected and report.classes[0].expected is None):
        expected = report.expected or (None, None)
        normal, anomalous = (_of(found, e) for found, e in zip(report.total, expected, strict=True))
        masks, train = (str(sum(getattr(r, key) for r in report.classes)) for key in ("masks", "train"))
        rows.append(("all", normal, anomalous, masks, train, ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for texts in rows:
        numbers = "  ".join(text.rjust(width) for text, width in zip(texts[1:5], widths[1:], strict=True))
        yield f"{texts[0]:<{widths[0]}}  {numbers}  {texts[5]}".rstrip()


def _of(found: int, expected: int | None) -> str:
    return str(found) if expected is None else f"{found} of {expected}"


def _about(kind: type) -> str:
    """The first sentence of the module that a method stands in, or its own `about` where two share a module."""
    if own := getattr(kind, "about", ""):
        return str(own)
    text = " ".join((import_module(kind.__module__).__doc__ or "").split("\n\n")[0].split())
    return text.split(", as its")[0].rstrip(".")
