"""How well backbones find generated defects on surfaces that no generator drew: crops of scikit-learn's two photos.

    python tools/judge_on_photos.py CANDIDATE [CANDIDATE ...] [--pairs 150]

Training sees generated pictures only, and after long training its own families judge too kindly. Here each crop of a
photo (a temple, a flower) is shown as it is and with generated defects, so that content is the same in both halves.
Prints the image AUROC by the method's score and by the map's largest hundredth, the pixel AUROC and AUPRO, each the
mean over the two photos, by the plain prompts of `clip_ac`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

import blemish
from blemish import synth
from blemish.machine import keep_freed_memory
from blemish.metrics import ClassMetrics
from blemish.score_rule import image_score
from blemish.synth.camera import develop, expose, random_camera
from blemish.synth.compose import Scene
from blemish.synth.draw import damage
from blemish.synth.families import SURFACE

PHOTOS, SIZE = ("china.jpg", "flower.jpg"), 320
OPTIONS = {"temperature": 0.07, "noun": "object"}
Pair = tuple[np.ndarray, np.ndarray, np.ndarray]


def pairs(name: str, count: int, seed: int) -> list[Pair]:
    """Crops without and with defects, uint8 (SIZE, SIZE, 3) each, and the masks of the latter."""
    photo, found = Image.fromarray(load_sample_image(name)), []
    rng = np.random.default_rng([seed, PHOTOS.index(name)])
    while len(found) < count:
        side = int(rng.integers(100, 400))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in photo.size)
        crop = photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        image = np.rot90(np.asarray(crop, dtype=np.float32) / 255, int(rng.integers(4))).transpose(2, 0, 1)
        scene = Scene(np.ascontiguousarray(image), np.ones((SIZE, SIZE), np.float32), "photo", SURFACE)
        camera = random_camera(rng, SIZE, scanner=False)
        clean = expose(scene.image, camera)
        lit, mask, names = damage(rng, scene, camera, clean, synth.Families())
        if names:
            found.append((develop(clean, camera), develop(lit, camera), mask))
    return found


def judge(backbone: str, samples: dict[str, list[Pair]]) -> list[float]:
    """The four figures, means over the photos."""
    detector = blemish.load("clip_ac", backbone=backbone, image_size=SIZE, score_rule="native", **OPTIONS)
    rows = []
    for shown in samples.values():
        by_score, by_map = ClassMetrics(), ClassMetrics()
        for clean, damaged, mask in shown:
            for image, marked in ((clean, np.zeros_like(mask)), (damaged, mask)):
                raw = detector.infer([detector.prepare(image)])[0]
                values = np.asarray(raw.map)
                by_score.update(bool(marked.any()), raw.score, values[::2, ::2], marked[::2, ::2])
                by_map.update(
                    bool(marked.any()), image_score(f"topk:{SIZE * SIZE // 100}", values, raw.score)
                )
        figures = by_score.compute()
        rows.append(
            [float(figures["image_auroc"]), float(by_map.compute()["image_auroc"])]
            + [float(figures[name]) for name in ("pixel_auroc", "pixel_aupro")]
        )
    means: list[float] = np.mean(rows, axis=0).tolist()
    return means


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbones", nargs="+", metavar="CANDIDATE", help="folder of a backbone, or its name")
    parser.add_argument("--pairs", type=int, default=150, help="of each photo")
    parser.add_argument("--seed", type=int, default=444)
    given = parser.parse_args()
    torch.set_num_threads(2)
    keep_freed_memory()
    samples = {name: pairs(name, given.pairs, given.seed) for name in PHOTOS}
    for backbone in given.backbones:
        print(backbone, "  ".join(f"{value:.4f}" for value in judge(backbone, samples)), flush=True)


if __name__ == "__main__":
    main()
