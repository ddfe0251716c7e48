"""Whether an exported file says what the detector says, and what quantisation changes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blemish.data.images import read_image
from blemish.deploy.engines import Engine
from blemish.errors import BadDataset, ExportError

TOLERANCE = 1e-4
# Resizing inside differs from Pillow's in single pixels, by one level of 255.
PREPROCESS_TOLERANCE = 0.02
# In eight bits such a level can push a value over the next step, and with it what follows.
PREPROCESS_TOLERANCE_INT8 = 0.2
SAMPLES, SAMPLE_SIDE = 4, 256
TIMED = 5


@dataclass(frozen=True)
class Samples:
    """Pictures that models are compared on. images: uint8 (H, W, 3). labels: 1 anomalous, 0 normal, None unknown."""

    images: list[np.ndarray]
    labels: list[int | None]
    source: str


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences over all pixels of all maps, and over all scores."""

    map: float
    score: float


@dataclass(frozen=True)
class Answers:
    """Maps (N, S, S) and scores (N,) of N pictures, and seconds an image (median, one at a time)."""

    maps: np.ndarray
    scores: np.ndarray
    seconds: float


def drawn_samples(count: int = SAMPLES) -> Samples:
    """Generated pictures, every second one with a defect."""
    from blemish.synth import draw

    made = [draw(np.random.default_rng(i), SAMPLE_SIDE, defect=i % 2 == 1) for i in range(count)]
    return Samples([picture.image for picture in made], [None] * count, "generated pictures")


def dataset_samples(root: Path, limit: int) -> Samples:
    """At most `limit` pictures of a dataset, evenly spread. Raises BadDataset, BadImage."""
    from blemish.data.layouts import open_dataset

    found = open_dataset(root).samples
    if not found:
        raise BadDataset(
            f"{root}: no pictures to compare on; name a folder of pictures or a labelled dataset"
        )
    places = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    chosen = [found[i] for i in places]
    return Samples([read_image(s.image) for s in chosen], [s.label for s in chosen], str(root))


def answers(engine: Engine, inputs: Sequence[np.ndarray]) -> Answers:
    """What an engine says of each input, asked one at a time."""
    maps, scores, seconds = [], [], []
    for pixels in inputs:
        started = time.perf_counter()
        one_map, score = engine.run(pixels[None])
        seconds.append(time.perf_counter() - started)
        maps.append(one_map[0])
        scores.append(score[0])
    # The first call of an engine also sets up its memory.
    timed = seconds[1 : TIMED + 1] or seconds
    return Answers(np.stack(maps), np.stack(scores), statistics.median(timed))


def difference(found: Answers, expected: Answers) -> Difference:
    """NaN counts as infinitely far."""
    worst = [
        float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())
        for a, b in ((found.maps, expected.maps), (found.scores, expected.scores))
    ]
    return Difference(*worst)


def check(engine: Engine, inputs: Sequence[np.ndarray], expected: Answers, limit: float) -> Difference:
    """Compare an engine with the detector, one by one and as one batch. Raises ExportError beyond `limit`."""
    found = [difference(answers(engine, inputs), expected)]
    if len({pixels.shape for pixels in inputs}) == 1:
        maps, scores = engine.run(np.stack(inputs))
        found.append(difference(Answers(maps, scores, 0.0), expected))
    worst = Difference(max(d.map for d in found), max(d.score for d in found))
    if not max(worst.map, worst.score) <= limit:
        raise ExportError(
            f"the exported {engine.name} model differs from the detector by {worst.map:.2g} on maps and "
            f"{worst.score:.2g} on scores, more than {limit:g}; no file was written"
        )
    return worst


def map_correlation(found: Answers, expected: Answers) -> float:
    """Mean over pictures of Pearson's correlation of two maps; NaN where all maps are constant."""
    values = []
    for a, b in zip(found.maps, expected.maps, strict=True):
        a, b = a.ravel() - a.mean(), b.ravel() - b.mean()  # noqa: PLW2901 - centred
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        if size > 0:
            values.append(float(a @ b) / size)
    return statistics.fmean(values) if values else float("nan")


def auroc(scores: np.ndarray, labels: Sequence[int | None]) -> float | None:
    """Share of (anomalous, normal) pairs in the right order, ties one half; None without both kinds."""
    known = np.array([-1 if label is None else label for label in labels])
    anomalous, normal = scores[known == 1], scores[known == 0]
    if not len(anomalous) or not len(normal):
        return None
    above = anomalous[:, None] - normal[None]
    return float((above > 0).mean() + (above == 0).mean() / 2)
