"""How `blemish predict` should use `tiny`: method, image size, cutting and score rule, by generated pictures alone.

    python tools/choose_default.py -o runs/choice [--methods anomaly_clip vip2_clip] [--sizes 320 448]

Draws pictures of families that the methods' checkpoints have not seen: each held-out material as a full frame and each
held-out shape, larger than the network input, every second pair cut to an oblong. Every class has as many normal as
defective ones, and figures are means over classes, as everywhere in the field. The sum of image AUROC, pixel AUROC and
AUPRO decides. OUT/choice.csv gets a row a combination; those that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import blemish
from blemish import synth
from blemish.config import parse_settings
from blemish.loading import Backbones
from blemish.machine import keep_freed_memory
from blemish.metrics import ClassMetrics
from blemish.predictor import Predictor
from blemish.score_rule import image_score
from blemish.synth.families import SURFACE

FIGURES = ("image_auroc", "pixel_auroc", "pixel_aupro")
PARTS = (1000, 300, 100)
"""Shares of the map that a `topk` rule averages: one in so many pixels."""
LONGEST = 2.5
Sample = tuple[str, np.ndarray, np.ndarray]


def crop(picture: synth.Picture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An oblong part of the picture and its mask that keeps most of the defect; the whole where none is found."""
    side, marked = len(picture.mask), picture.mask.sum()
    for _ in range(20):
        short = int(side / rng.uniform(1.2, LONGEST))
        start = int(rng.integers(0, side - short + 1))
        rows, columns = slice(start, start + short), slice(0, side)
        if rng.random() < 0.5:
            rows, columns = columns, rows
        if picture.mask[rows, columns].sum() >= 0.7 * marked:
            return picture.image[rows, columns], picture.mask[rows, columns]
    return picture.image, picture.mask


def pictures(folder: Path, pairs: int, seed: int) -> list[Sample]:
    """Class, image and mask of every picture, drawn once into `folder`; `pairs` normal and defective ones a class."""
    held = synth.HELD_OUT
    classes = [(m, (m,), (SURFACE,)) for m in held.materials]
    classes += [(s, synth.MATERIALS, (s,)) for s in held.shapes if s != SURFACE]
    found = []
    for number, (name, materials, shapes) in enumerate(classes):
        families = synth.Families(materials, shapes, held.defects)
        for i in range(2 * pairs):
            image, mask = folder / f"{name}_{i:02}.png", folder / f"{name}_{i:02}_mask.png"
            if not mask.exists():
                rng = np.random.default_rng([seed, number, i])
                drawn = synth.draw(rng, int(rng.integers(448, 769)), defect=bool(i % 2), families=families)
                pixels, marked = crop(drawn, rng) if i % 4 >= 2 else (drawn.image, drawn.mask)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(image)
                Image.fromarray(marked.astype(np.uint8) * 255).save(mask)
            found.append((name, np.asarray(Image.open(image)), np.asarray(Image.open(mask)) > 0))
    return found


def measure(detector: Predictor, samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Figures by score rule, means over classes, and milliseconds a picture."""
    area = detector.setup.image_size**2
    rules = ["native", "max", *(f"topk:{area // part}" for part in PARTS)]
    rules += [f"native+{rule}" for rule in rules[1:]]
    metrics = {rule: {name: ClassMetrics() for name, _, _ in samples} for rule in rules}
    seconds = 0.0
    for name, image, mask in samples:
        prepared = detector.prepare(image)
        started = time.perf_counter()
        raw = detector.infer([prepared])[0]
        seconds += time.perf_counter() - started
        result = detector.finish(prepared, raw)
        pixels = result.map[1::3, 1::3], mask[1::3, 1::3]
        for rule in rules:
            score = image_score(rule.removeprefix("native+"), raw.map, raw.score)
            if rule.startswith("native+"):
                score = (score + raw.score) / 2
            both = pixels if rule == "native" else (None, None)
            metrics[rule][name].update(bool(mask.any()), score, *both)
    values = {r: [one.compute() for one in by_class.values()] for r, by_class in metrics.items()}
    means = {
        r: {f: float(np.nanmean([float(v[f]) for v in rows if f in v])) for f in FIGURES if f in rows[0]}
        for r, rows in values.items()
    }
    shared = {f: means["native"][f] for f in FIGURES[1:]} | {"ms": 1000 * seconds / len(samples)}
    return {rule: found | shared for rule, found in means.items()}


def main() -> None:
    """Measure what is missing, print everything, best first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["anomaly_clip"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[320])
    parser.add_argument("--tiles", nargs="+", choices=["none", "square"], default=["none", "square"])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=333)
    parser.add_argument("--set", action="append", default=[], help="options of the method, as for predict")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    samples = pictures(given.out / "pictures", given.pairs, given.seed)
    table, clips = given.out / "choice.csv", Backbones()
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    own, options = parse_settings(given.set), " ".join(given.set)
    for method, size, tile in itertools.product(given.methods, given.sizes, given.tiles):
        key = {"method": method, "options": options, "size": str(size), "tile": tile}
        if any(all(r[k] == v for k, v in key.items()) for r in rows):
            continue
        detector = blemish.load(
            method, image_size=size, tile=tile, score_rule="native", backbones=clips, **own
        )
        for rule, found in measure(detector, samples).items():
            row = key | {"rule": rule}
            rows.append({k: str(v) for k, v in row.items()} | {k: f"{v:.4f}" for k, v in found.items()})
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    for row in sorted(rows, key=lambda r: -sum(float(r[f]) for f in FIGURES)):
        print("  ".join(f"{value:>12}" for value in row.values()))


if __name__ == "__main__":
    main()
