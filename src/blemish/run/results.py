"""What an evaluation found: plain frozen data, the same in memory and in results.json.

What has no value is None with a reason, never 0 and never NaN. Fractions are inside [0, 1].
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from blemish.errors import BadOption
from blemish.files import write_whole

FORMAT, VERSION = "blemish-results", 1
RESULTS_FILE = "results.json"
IMAGE_METRICS = ("auroc", "ap", "f1max", "f1max_threshold", "tpr", "fnr", "tnr", "fpr")
PIXEL_METRICS = ("auroc", "ap", "f1max", "f1max_threshold", "iou", "aupro")
METRICS = (*(f"image_{name}" for name in IMAGE_METRICS), *(f"pixel_{name}" for name in PIXEL_METRICS))
T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """One metric of one class. value: None when undefined, `reason` says why.

    error_bound: the true value lies within value ± error_bound; 0 for exact metrics.
    """

    value: float | None
    reason: str | None = None
    error_bound: float = 0.0


@dataclass(frozen=True)
class MeanScore:
    """Unweighted mean of a metric over the classes that have it: `used` of `classes`; error_bound: of theirs."""

    value: float | None
    used: int
    classes: int
    error_bound: float = 0.0


@dataclass(frozen=True)
class Line:
    """A curve for drawing, at most 200 points from (0, 0) to (1, 1), both coordinates rising."""

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Histogram:
    """Image scores in equal bins. edges: one more than there are bins; normal, anomalous: counts."""

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    anomalous: tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """Images of a class as the dataset lists them. with_mask: anomalous ones that somebody has outlined."""

    normal: int
    anomalous: int
    with_mask: int


@dataclass(frozen=True)
class ImageRow:
    """One scored image. path: below the dataset's root, with `/`. box: the part that counts, None for all.

    label: 1 anomalous, 0 normal. score: by the protocol's score rule.
    """

    path: str
    label: int
    score: float
    defect: str = ""
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FailedImage:
    """An image that is in none of the numbers, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class Protocol:
    """How numbers came about; they compare only with numbers of the same protocol.

    resolution: side of square maps and masks in pixels, or "native": every image's own size. protocol: "exact"
    or "anomalyclip" (AUPRO from 200 thresholds, as in the papers' code). fpr_limit: of AUPRO. connectivity:
    neighbours that join mask pixels, 8 or 4. mode: "exact", or "streaming" with error bounds. strict_iou: IoU
    of the pixels above the threshold, not at it. smoothing: the Gaussian's standard deviation in pixels of the
    network input; None when the method has none. score_rule: "native" is the method's own image score,
    "max" and "topk:K" are taken from the map at the network's size.
    """

    resolution: int | str
    protocol: str
    fpr_limit: float
    connectivity: int
    mode: str
    strict_iou: bool
    smoothing: float | None
    score_rule: str


@dataclass(frozen=True)
class Speed:
    """Seconds per image. encoder: of the image tower's passes that this method used, which `shared_by` methods
    used together (a share of `encoder / shared_by` each). method: what came after, up to map and score.
    """

    encoder: float
    method: float
    shared_by: int = 1

    @property
    def total(self) -> float:
        """What the method alone would have taken."""
        return self.encoder + self.method


@dataclass(frozen=True)
class ClassResult:
    """One method on one class.

    metrics: every name of `METRICS`. image_threshold, pixel_threshold: those of F1-max (t*), the lowest that
    reach it; an item counts as anomalous from there on (score >= t*). curves: "image_roc", "pixel_roc" (true
    against false positive rate) and "pixel_pro" (region overlap against false positive rate), where they
    exist. histogram: None without images. notes: what a reader of the numbers must know, such as why pixel
    metrics are absent.
    """

    counts: Counts
    metrics: dict[str, Score]
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    curves: dict[str, Line] = field(default_factory=dict)
    histogram: Histogram | None = None
    images: tuple[ImageRow, ...] = ()
    failed: tuple[FailedImage, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MethodResult:
    """One method with one checkpoint on one dataset.

    label: unique in its evaluation, the method's name unless two checkpoints are compared. options: the
    method's own, all of them. checkpoint: file name, empty for methods that learn nothing. auxiliary: dataset
    it was trained on, as the checkpoint says. peak_memory_mib: of the whole process (on a GPU: of the device),
    which methods evaluated together share.
    """

    label: str
    method: str
    backbone: str
    backbone_fingerprint: str
    checkpoint: str
    checkpoint_sha256: str
    auxiliary: str
    options: dict[str, Any]
    image_size: int
    precision: str
    device: str
    protocol: Protocol
    speed: Speed
    peak_memory_mib: float
    classes: dict[str, ClassResult]
    mean: dict[str, MeanScore]


@dataclass(frozen=True)
class Evaluation:
    """Methods on one dataset. layout: how the dataset was read. classes: its counts by class.

    settings: the run's options. notes: what the dataset's reader remarked. seconds: for all classes, also those
    of an earlier run that was resumed, without loading the models.
    """

    dataset: str
    layout: str
    classes: dict[str, Counts]
    methods: tuple[MethodResult, ...]
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> dict[str, str]:
        """Path -> error of every image that at least one method could not use."""
        return {
            image.path: image.error
            for method in self.methods
            for found in method.classes.values()
            for image in found.failed
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for results.json, with `format` and `version` first."""
        return {"format": FORMAT, "version": VERSION, **plain(self)}

    @classmethod
    def from_json(cls, values: Any, source: str = "these values") -> Evaluation:
        """The reverse of `to_json`; keys that this version does not know are passed over.

        source: how errors call it. Raises BadOption for anything else, naming the first key that does not fit.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise BadOption(f"{source}: no results of an evaluation (expected format {FORMAT!r})")
        if values.get("version") != VERSION:
            raise BadOption(
                f"{source}: results of version {values.get('version')!r}, this program reads {VERSION}; "
                f"update blemish"
            )
        return from_plain(cls, values, source)


def read_results(path: Path) -> Evaluation:
    """The evaluation in a results.json. Raises BadOption when it cannot be read or is something else."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise BadOption(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise BadOption(f"{path} is damaged or no JSON ({error})") from error
    return Evaluation.from_json(values, str(path))


def plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def from_plain(kind: type[T], values: Any, where: str) -> T:
    """The reverse of `plain` for the dataclass `kind`. Raises BadOption that names the place."""
    if not isinstance(values, dict):
        raise BadOption(f"{where}: expected an object, got {type(values).__name__}")
    hints, given = typing.get_type_hints(kind), {}
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass, by the docstring
        if f.name in values:
            given[f.name] = _typed(hints[f.name], values[f.name], f"{where}: {f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise BadOption(f"{where}: {f.name} is missing")
    return kind(**given)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """A plain value as `hint`: a dataclass, tuple[X, ...], dict[str, X], a union, a simple type, Any."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast("type[Any]", hint), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], one, where) for one in value)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    if origin is types.UnionType:
        if value is None and type(None) in inner:
            return None
        rest = [one for one in inner if one is not type(None)]
        return _typed(rest[0], value, where) if len(rest) == 1 else _checked(tuple(rest), value, where)
    return value if hint is Any else _checked((hint,), value, where)


def _checked(kinds: tuple[type, ...], value: Any, where: str) -> Any:
    if float in kinds and type(value) is int:
        return value if int in kinds else float(value)
    if type(value) not in kinds:
        expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
        raise BadOption(f"{where} is {value!r}; expected {expected}")
    return value


def csv_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """One row per method and class, and one per method with class "mean"; None where there is no value.

    Every row says how its numbers came about.
    """
    for found in evaluation.methods:
        about = {
            "dataset": evaluation.dataset,
            "label": found.label,
            "method": found.method,
            "backbone": found.backbone,
            "checkpoint": found.checkpoint,
        }
        how = {
            **plain(found.protocol),
            "image_size": found.image_size,
            "precision": found.precision,
            "encoder_seconds": found.speed.encoder,
            "method_seconds": found.speed.method,
        }
        for name, one in found.classes.items():
            values = {metric: one.metrics[metric].value for metric in METRICS}
            failed = {"failed": len(one.failed)}
            yield {**about, "class": name, **plain(one.counts), **failed, **values, **how}
        counts = [one.counts for one in found.classes.values()]
        total = {f.name: sum(getattr(c, f.name) for c in counts) for f in dataclasses.fields(Counts)}
        values = {metric: found.mean[metric].value if metric in found.mean else None for metric in METRICS}
        failed = {"failed": sum(len(one.failed) for one in found.classes.values())}
        yield {**about, "class": "mean", **total, **failed, **values, **how}


def write_csv(path: Path, evaluation: Evaluation) -> None:
    """results.csv: the rows of `csv_rows`. Raises OutputError."""
    rows = list(csv_rows(evaluation))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({key: _cell(value) for key, value in row.items()})
    write_whole(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else value
