"""The table of one method on a terminal: per class and mean, and what a reader of the numbers must know."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from blemish.run.results import ClassResult, Evaluation, MeanScore, MethodResult, Score
from blemish.run.tally import NO_PIXEL

COLUMNS = {
    "image_auroc": "image\nAUROC",
    "image_ap": "image\nAP",
    "image_f1max": "image\nF1-max",
    "pixel_auroc": "pixel\nAUROC",
    "pixel_ap": "pixel\nAP",
    "pixel_f1max": "pixel\nF1-max",
    "pixel_iou": "pixel\nIoU",
    "pixel_aupro": "\nAUPRO",
}
ABSENT = "–"


def method_table(found: MethodResult) -> Table:
    """Rows are classes, then the mean; values in percent."""
    table = _empty("class", "\nnormal", "\nanomalous", *COLUMNS.values())
    for name, one in found.classes.items():
        cells = [_percent(one.metrics[metric]) for metric in COLUMNS]
        table.add_row(name, str(one.counts.normal), str(one.counts.anomalous), *cells)
    table.add_section()
    counts = [one.counts for one in found.classes.values()]
    total = (str(sum(c.normal for c in counts)), str(sum(c.anomalous for c in counts)))
    table.add_row("mean", *total, *(_percent(found.mean[metric]) for metric in COLUMNS), style="bold")
    return table


def means_table(found: Evaluation) -> Table:
    """Rows are methods: the means over classes, in percent."""
    table = _empty("mean of", *COLUMNS.values())
    for method in found.methods:
        table.add_row(method.label, *(_percent(method.mean[metric]) for metric in COLUMNS))
    return table


def _empty(first: str, *titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def method_notes(found: MethodResult) -> Iterator[str]:
    """How the numbers came about, and where they do not tell the whole."""
    how = found.protocol
    size = how.resolution if isinstance(how.resolution, str) else f"{how.resolution}×{how.resolution}"
    smoothing = "none" if how.smoothing is None else f"sigma {how.smoothing:g}"
    yield (
        f"percent; resolution {size}, AUPRO {how.protocol} to FPR {how.fpr_limit:g}, {how.connectivity}-connected, "
        f"smoothing {smoothing}, image score {how.score_rule}" + (", IoU above t*" if how.strict_iou else "")
    )
    yield from _means(found)
    for name, one in found.classes.items():
        # Why pixel metrics are absent stands with the means.
        for note in one.notes:
            if not note.startswith(NO_PIXEL):
                yield f"{name}: {note}"
    if how.mode == "streaming":
        yield f"error bounds of the streaming metrics: at most {_largest_bound(found):.2g}"
    speed = found.speed
    shared = f" shared by {speed.shared_by} methods" if speed.shared_by > 1 else ""
    yield (
        f"{1000 * speed.encoder:.0f} ms an image in the encoder{shared}, {1000 * speed.method:.0f} ms in the "
        f"method; {found.peak_memory_mib:.0f} MiB at most"
    )


def method_title(found: MethodResult) -> str:
    """Method, backbone and checkpoint in a line."""
    parts = [found.label if found.label == found.method else f"{found.label} ({found.method})"]
    parts.append(f"{found.backbone} at {found.image_size}, {found.precision}")
    if found.checkpoint:
        parts.append(found.checkpoint + (f" trained on {found.auxiliary}" if found.auxiliary else ""))
    return ", ".join(parts)


def _percent(value: Score | MeanScore) -> str:
    return ABSENT if value.value is None else f"{100 * value.value:.1f}"


def _means(found: MethodResult) -> Iterator[str]:
    """Which means leave classes out, and which classes have no value why."""
    groups: dict[tuple[int, str], list[str]] = {}
    for metric, title in COLUMNS.items():
        mean = found.mean[metric]
        if mean.used < mean.classes:
            reasons = dict.fromkeys(_reason(name, one, metric) for name, one in found.classes.items())
            why = "; ".join(reason for reason in reasons if reason)
            groups.setdefault((mean.used, why), []).append(" ".join(title.split()))
    for (used, why), names in groups.items():
        yield f"mean over {used} of {len(found.classes)} classes for {', '.join(names)} ({why})"


def _reason(name: str, one: ClassResult, metric: str) -> str:
    score = one.metrics[metric]
    return "" if score.value is not None else f"{name}: {score.reason}"


def _largest_bound(found: MethodResult) -> float:
    bounds = [
        score.error_bound
        for one in found.classes.values()
        for name, score in one.metrics.items()
        if not name.endswith("_threshold")
    ]
    return max(bounds, default=0.0)
