"""Train the methods' own embedded checkpoints for `tiny` on generated auxiliary pictures.

    python tools/train_tiny_methods.py [anomaly_clip vcp_clip]

The backbone is frozen, so its features are computed once and kept in memory as half precision; the losses, learned
parts and optimiser groups are the library's own. Thresholds come from further generated pictures: the
best balance of hits and false alarms for images, the best F1 for pixels.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import blemish
from blemish import synth
from blemish.checkpoint import CheckpointMeta, save_checkpoint
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip
from blemish.data.transforms import preprocess
from blemish.methods import build
from blemish.types import FeatureSpec, ImageFeatures, Target

TINY = Path(__file__).parents[1] / "src/blemish/clip/tiny"
# what differs from the methods' defaults: measured in pixels, or tied to a picture of 518 px
OPTIONS: dict[str, dict[str, object]] = {
    "anomaly_clip": {},
    "vcp_clip": {"sigma": 4.0, "top_k": 300},
    "vcp_clip_plus": {"sigma": 4.0, "top_k": 300},
    "vip2_clip": {"sigma": 4.0, "top_k": 15},
    "gen_clip": {"sigma": 4.5},
}
# the VCP family's published rates are for a hundred times as many steps
SLOWEST_RATE = 5e-4
LEARNING_RATES = {
    "anomaly_clip": 1e-3,
    "vcp_clip": 1e-3,
    "vcp_clip_plus": 1e-3,
    "vip2_clip": 1e-3,
    "gen_clip": 1e-3,
}


@dataclasses.dataclass
class Auxiliary:
    """Frozen features and ground truth of generated pictures, in half precision and bits."""

    features: list[ImageFeatures]
    masks: Tensor
    names: list[str]

    def batch(self, rows: list[int], half_size: bool = False) -> tuple[ImageFeatures, Target]:
        """The named pictures as one batch in float32.

        half_size: maps and masks at half the size, four times cheaper and as good on a grid of 20 patches.
        """
        chosen = [self.features[i] for i in rows]
        tokens = {
            stream: tuple(
                torch.cat([f.tokens[stream][k] for f in chosen]).float()
                for k in range(len(chosen[0].tokens[stream]))
            )
            for stream in chosen[0].tokens
        }
        cls = torch.cat([f.class_feature for f in chosen]).float()
        masks = self.masks[rows].float()
        label = masks.flatten(1).any(1).long()
        size = chosen[0].image_size
        if half_size:
            masks = (F.avg_pool2d(masks[:, None], 2)[:, 0] >= 0.5).float()
            size = (size[0] // 2, size[1] // 2)
        return ImageFeatures(cls, tokens, chosen[0].grid, size), Target(label=label, mask=masks)


@functools.cache
def pool(count: int, size: int, seed: int) -> list[synth.Picture]:
    """`count` generated pictures of `size` px."""
    rng = np.random.default_rng(seed)
    return [synth.draw(rng, size) for _ in range(count)]


@functools.cache
def auxiliary(clip: CLIP, spec: FeatureSpec, count: int, size: int, seed: int) -> Auxiliary:
    """`count` generated pictures of `size` px seen through the frozen tower."""
    pictures = pool(count, size, seed)
    features = []
    for i in range(0, count, 8):
        inputs = [preprocess(p.image, size, clip.config.mean, clip.config.std) for p in pictures[i : i + 8]]
        with torch.inference_mode():
            f = clip.encode_image(torch.from_numpy(np.stack(inputs)), spec)
        for row in range(len(inputs)):
            tokens = {s: tuple(t[row : row + 1].half() for t in rows) for s, rows in f.tokens.items()}
            features.append(ImageFeatures(f.class_feature[row : row + 1], tokens, f.grid, f.image_size))
    masks = torch.from_numpy(np.stack([p.mask for p in pictures]))
    return Auxiliary(features, masks, [p.shape for p in pictures])


def best_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The score from which calling a sample anomalous gives the highest F1."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + labels.sum())
    return float(scores[order][int(np.argmax(f1))])


def balanced_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The score with the largest sum of true positive and true negative rate, whatever share is anomalous."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order]) / labels.sum()
    alarms = np.cumsum(1 - labels[order]) / (1 - labels).sum()
    return float(scores[order][int(np.argmax(hits - alarms))])


def train(clip: CLIP, name: str, pictures: int, epochs: int, size: int, seed: int = 111) -> None:
    """Learn one method and write its checkpoint beside the backbone."""
    torch.manual_seed(seed)
    method = build(name, clip, **OPTIONS[name])
    assert isinstance(method, torch.nn.Module)
    started = time.time()
    data = auxiliary(clip, method.needs, pictures, size, seed)
    print(f"{name}: {pictures} pictures encoded in {time.time() - started:.0f} s", flush=True)
    groups = method.parameter_groups(LEARNING_RATES[name])
    for group in groups:
        # the papers' slowest groups would not move in this many steps
        group["lr"] = max(group["lr"], SLOWEST_RATE)
    optimiser = torch.optim.Adam(groups)
    start_rates = [group["lr"] for group in optimiser.param_groups]
    rng = np.random.default_rng(seed)
    method.train()
    for epoch in range(epochs):
        order = rng.permutation(pictures).tolist()
        total, steps = {}, 0
        for i in range(0, pictures, 8):
            progress = (epoch + i / pictures) / epochs
            for group, rate in zip(optimiser.param_groups, start_rates, strict=True):
                group["lr"] = rate * min(1.0, 4 * (1 - progress))
            rows = order[i : i + 8]
            features, target = data.batch(rows, half_size=True)
            terms = method.loss(features, target, [data.names[row] for row in rows])
            optimiser.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimiser.step()
            steps += 1
            for key, value in terms.items():
                total[key] = total.get(key, 0.0) + float(value.detach())
        print(
            f"{name} epoch {epoch + 1}: {sum(total.values()) / steps:.4f}, {time.time() - started:.0f} s",
            flush=True,
        )
    finish(name, method, clip, size, pictures)


def finish(name: str, method: torch.nn.Module, clip: CLIP, size: int, pictures: int, held: int = 400) -> None:
    """Set the thresholds on pictures not trained on and write the checkpoint (half precision)."""
    method.eval()
    data = auxiliary(clip, method.needs, held, size, seed=2_000_000)
    scores, labels, maps, masks = [], [], [], []
    for i in range(0, held, 8):
        features, target = data.batch(list(range(i, min(i + 8, held))))
        with torch.inference_mode():
            found = method(features)
        scores.append(found.score.numpy())
        labels.append(target.label.numpy())
        maps.append(found.map[:, ::4, ::4].numpy())
        masks.append(target.mask[:, ::4, ::4].numpy())
    score, label = np.concatenate(scores), np.concatenate(labels)
    pixel, truth = np.concatenate(maps).ravel(), np.concatenate(masks).ravel()
    image_threshold, pixel_threshold = balanced_threshold(score, label), best_f1_threshold(pixel, truth)
    from sklearn.metrics import roc_auc_score

    print(
        f"{name} on {held} further generated pictures: image AUROC {roc_auc_score(label, score):.4f}, "
        f"pixel AUROC {roc_auc_score(truth > 0.5, pixel):.4f}, thresholds {image_threshold:.4f} {pixel_threshold:.4f}",
        flush=True,
    )
    meta = CheckpointMeta(
        method=name,
        options=dataclasses.asdict(method.config),
        backbone="tiny",
        backbone_fingerprint=clip.fingerprint,
        backbone_config=clip.config.to_dict(),
        auxiliary=f"{pictures} generated pictures (blemish.synth {blemish.__version__})",
        image_size=size,
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
    )
    save_checkpoint(TINY / f"{name}.safetensors", method.half(), meta)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=list(OPTIONS))
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=320)
    given = parser.parse_args()
    clip = load_clip("tiny")
    for name in given.methods:
        train(clip, name, given.pictures, given.epochs, given.size)


if __name__ == "__main__":
    main()
