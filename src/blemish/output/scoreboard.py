"""What a benchmark found, arranged for reading: datasets, in them methods, in them classes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

METRIC_TITLES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_aupro": "AUPRO",
    "pixel_ap": "Pixel AP",
    "pixel_f1max": "Pixel F1-max",
    "pixel_iou": "IoU",
}
OVERVIEW = ("image_auroc", "pixel_auroc", "pixel_aupro")
KINDS = {
    "tp": "True positive",
    "fp": "False positive",
    "fn": "False negative",
    "tn": "True negative",
}
Points = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds that have it. value: their mean, a fraction; None when undefined, see `reason`.

    spread: standard deviation over `count` seeds, None for one. bound: error bound of streaming metrics.
    """

    value: float | None
    spread: float | None = None
    count: int = 1
    reason: str = ""
    bound: float = 0.0


@dataclass(frozen=True)
class Printed:
    """A published figure, a fraction. source: paper and table. differs: what was measured otherwise."""

    value: float
    source: str
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassScores:
    """One method on one class. metrics: over seeds; the rest: of the first seed.

    curves: "image_roc", "pixel_roc", "pixel_pro" -> points. histogram: bin edges, normal and anomalous counts.
    """

    counts: tuple[int, int]
    metrics: dict[str, Measured]
    curves: dict[str, Points] = field(default_factory=dict)
    histogram: tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]] | None = None
    threshold: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One method on one dataset, over its seeds. facts: backbone, checkpoint, ... for the reader.

    errors: what failed, one line for each seed. seconds: of one image, (encoder, method); memory: MiB at peak.
    """

    label: str
    method: str
    auxiliary: str = ""
    overlap: str = ""
    seeds: tuple[int | None, ...] = ()
    mean: dict[str, Measured] = field(default_factory=dict)
    published: dict[str, Printed] = field(default_factory=dict)
    classes: dict[str, ClassScores] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    seconds: tuple[float, float] | None = None
    memory: float | None = None
    errors: tuple[str, ...] = ()
    failed_images: int = 0


@dataclass(frozen=True)
class Shot:
    """One picture of the grid, JPEG and PNG bytes. kind: of KINDS, judged by the first method.

    photo: JPEG. mask: PNG, or None where nobody has outlined anything. maps: label -> (overlay JPEG, score).
    """

    kind: str
    path: str
    photo: bytes
    mask: bytes | None
    maps: dict[str, tuple[bytes, float]]


@dataclass(frozen=True)
class DatasetScores:
    """Every method on one dataset. counts: class -> (normal, anomalous). shots: class -> pictures."""

    name: str
    dataset: str
    counts: dict[str, tuple[int, int]]
    entries: tuple[Entry, ...]
    shots: dict[str, tuple[Shot, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""
    medical: bool = False


@dataclass(frozen=True)
class Spread:
    """How far a metric of a method on a dataset moves when one thing is said otherwise at test time.

    usual: the figure without a change. values: variation -> figure, fractions.
    """

    dataset: str
    label: str
    factor: str
    metric: str
    usual: float | None
    values: dict[str, float]

    @property
    def all_values(self) -> list[float]:
        """The usual figure and those of the variations."""
        return [*([] if self.usual is None else [self.usual]), *self.values.values()]

    @property
    def statistics(self) -> tuple[float, float, float, float]:
        """Mean, least, greatest, standard deviation."""
        found = self.all_values
        return statistics.fmean(found), min(found), max(found), spread_of(found) or 0.0


@dataclass(frozen=True)
class Scoreboard:
    """A whole benchmark. facts: protocol and so on, for the head. run: all of run.json."""

    title: str
    about: str
    datasets: tuple[DatasetScores, ...]
    spreads: tuple[Spread, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every method's label, in the plan's order."""
        return tuple(dict.fromkeys(e.label for d in self.datasets for e in d.entries))

    def metrics(self, names: Iterable[str] = METRIC_TITLES) -> tuple[str, ...]:
        """Those of `names` that have a value anywhere, measured or published."""
        entries = [entry for dataset in self.datasets for entry in dataset.entries]
        return tuple(n for n in names if any(has_value(e, n) for e in entries))


def has_value(entry: Entry, metric: str) -> bool:
    """Whether a metric was measured for this entry."""
    found = entry.mean.get(metric)
    return found is not None and found.value is not None


def spread_of(values: Sequence[float]) -> float | None:
    """Sample standard deviation, None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def average(values: Sequence[float | None], reason: str = "", bound: float = 0.0) -> Measured:
    """The mean over seeds of a metric that may be undefined for some of them."""
    found = [v for v in values if v is not None]
    if not found:
        return Measured(None, None, 0, reason or "not measured")
    return Measured(math.fsum(found) / len(found), spread_of(found), len(found), "", bound)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as tables print it: 0.9154 is "91.5", None a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def difference(measured: float, printed: float) -> str:
    """Measured minus published in points, with sign: "+0.3", "−1.2"; both as printed."""
    points = round(100 * measured, 1) - round(100 * printed, 1)
    text = f"{abs(points):.1f}"
    return ("±" if text == "0.0" else "+" if points > 0 else "−") + text


def ranks(values: Mapping[str, float | None]) -> dict[str, int]:
    """key -> 1 for the best, 2 for the second, by the printed decimal; ties share. Nothing to rank: empty."""
    shown = {key: round(100 * v, 1) for key, v in values.items() if v is not None}
    if len(shown) < 2:
        return {}
    best = sorted(set(shown.values()), reverse=True)
    found = {key: 1 for key, v in shown.items() if v == best[0]}
    if len(found) == 1 and len(best) > 1:
        found |= {key: 2 for key, v in shown.items() if v == best[1]}
    return found


def mean_over_datasets(board: Scoreboard, label: str, metric: str) -> float | None:
    """Unweighted mean of a method over the datasets where any method has the metric; None if one is missing."""
    wanted = [d for d in board.datasets if any(has_value(e, metric) for e in d.entries)]
    found = []
    for dataset in wanted:
        entry = next((e for e in dataset.entries if e.label == label), None)
        value = entry.mean[metric].value if entry is not None and metric in entry.mean else None
        if value is None:
            return None
        found.append(value)
    return math.fsum(found) / len(found) if found else None
