"""Pictures for a benchmark's page: true and false positives and negatives of each class, with every method's map."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.data.layouts import Dataset
from blemish.data.samples import load_mask, load_pixels
from blemish.data.transforms import map_to_size
from blemish.detector import Detector
from blemish.errors import BadImage
from blemish.files import printable_name, write_whole
from blemish.output.pictures import gallery_pair, thumbnail
from blemish.output.scoreboard import KINDS, Shot
from blemish.run.results import ClassResult, ImageRow, MethodResult
from blemish.run.scoring import Scored, Scorer
from blemish.score_rule import image_score
from blemish.types import Sample

EACH, SIDE = 2, 208
log = logging.getLogger(__name__)


def choose(rows: Iterable[ImageRow], threshold: float | None) -> list[tuple[str, ImageRow]]:
    """(kind, image): at most two of each kind, the clearest true ones and the worst false ones.

    threshold: image score that counts as anomalous; None (one kind of label only): everything would be one.
    """
    kinds: dict[str, list[ImageRow]] = {kind: [] for kind in KINDS}
    for row in rows:
        positive = threshold is None or row.score >= threshold
        kinds[("t" if positive == bool(row.label) else "f") + ("p" if positive else "n")].append(row)
    chosen = []
    for kind, found in kinds.items():
        found.sort(key=lambda row: (row.score if kind.endswith("n") else -row.score, row.path))
        chosen += [(kind, row) for row in found[:EACH]]
    return chosen


def draw_shots(
    dataset: Dataset,
    detectors: Mapping[str, Detector],
    results: Mapping[str, MethodResult],
    name_of: Callable[[Sample], str],
) -> dict[str, tuple[Shot, ...]]:
    """class -> its pictures, chosen by the first of `results`. detectors, results: the same labels.

    A picture that cannot be read any more is left out with a warning.
    """
    first = next(iter(results.values()))
    samples = {_key(dataset, sample): sample for sample in dataset.samples}
    scorer = Scorer(detectors, {}, name_of)
    shots: dict[str, tuple[Shot, ...]] = {}
    for class_name, scores in first.classes.items():
        made = []
        for kind, row in choose(scores.images, scores.image_threshold):
            sample = samples.get((row.path, row.box))
            if sample is None:
                continue
            try:
                made.append(_draw(kind, row.path, sample, scorer, results, class_name))
            except BadImage as error:
                log.warning("no picture of %s for the page: %s", row.path, error)
        shots[class_name] = tuple(made)
    return shots


def _key(dataset: Dataset, sample: Sample) -> tuple[str, tuple[int, ...] | None]:
    """How an evaluation calls a sample."""
    base = (dataset.root if dataset.root.is_dir() else dataset.root.parent).absolute()
    path = sample.image.absolute()
    below = path.relative_to(base) if path.is_relative_to(base) else Path(*path.parts[-3:])
    return printable_name(below.as_posix()), sample.box


def _draw(
    kind: str,
    path: str,
    sample: Sample,
    scorer: Scorer,
    results: Mapping[str, MethodResult],
    class_name: str,
) -> Shot:
    pixels = load_pixels(sample)
    _, outcome = next(iter(scorer.score([scorer.prepare(sample, False)])))
    maps = {}
    for label, result in results.items():
        found = outcome.get(label)
        scores = result.classes.get(class_name)
        if isinstance(found, Scored) and scores is not None:
            picture = _overlay(pixels, found, scorer.detectors[label].map_range, scores)
            maps[label] = picture, image_score(result.protocol.score_rule, found.map, found.score)
    return Shot(kind, path, thumbnail(pixels, SIDE), _mask(sample, pixels.shape[:2]), maps)


def _overlay(
    pixels: np.ndarray, scored: Scored, map_range: tuple[float, float], scores: ClassResult
) -> bytes:
    """The heat map over the picture, with a line around what is above t* of the class's pixels. JPEG."""
    anomaly_map = map_to_size(scored.map, (pixels.shape[0], pixels.shape[1]))
    threshold = scores.pixel_threshold
    mask = None if threshold is None else anomaly_map >= np.float32(threshold)
    return gallery_pair(pixels, anomaly_map, map_range, mask, SIDE)[1]


def _mask(sample: Sample, size: tuple[int, ...]) -> bytes | None:
    """The mask as two-valued PNG; a defect of any size keeps at least one pixel."""
    mask = load_mask(sample, (size[0], size[1]))
    if mask is None:
        return None
    scale = max(1.0, max(size) / SIDE)
    small = (max(1, round(size[1] / scale)), max(1, round(size[0] / scale)))
    shown = np.asarray(Image.fromarray(mask).convert("F").resize(small, Image.Resampling.BOX)) > 0
    buffer = io.BytesIO()
    Image.fromarray(shown.astype(np.uint8) * np.uint8(255)).convert("1").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_shots(path: Path, digest: str, shots: Mapping[str, Sequence[Shot]]) -> None:
    """Keep pictures for a resumed run. Raises OutputError."""
    values = {name: [_plain(shot) for shot in found] for name, found in shots.items()}
    write_whole(path, json.dumps({"digest": digest, "classes": values}).encode())


def load_shots(path: Path, digest: str) -> dict[str, tuple[Shot, ...]] | None:
    """What `save_shots` kept under the same digest; None when there is no such thing."""
    try:
        values = json.loads(path.read_bytes())
        if values["digest"] != digest:
            return None
        return {name: tuple(map(_shot, found)) for name, found in values["classes"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _plain(shot: Shot) -> dict[str, Any]:
    return {
        "kind": shot.kind,
        "path": shot.path,
        "photo": _text(shot.photo),
        "mask": None if shot.mask is None else _text(shot.mask),
        "maps": {label: [_text(picture), score] for label, (picture, score) in shot.maps.items()},
    }


def _shot(values: Mapping[str, Any]) -> Shot:
    mask = values["mask"]
    return Shot(
        values["kind"],
        values["path"],
        base64.b64decode(values["photo"]),
        None if mask is None else base64.b64decode(mask),
        {label: (base64.b64decode(p), float(score)) for label, (p, score) in values["maps"].items()},
    )
