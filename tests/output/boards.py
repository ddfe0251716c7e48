"""A made-up benchmark for the tests of its tables and page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from blemish.output.scoreboard import (
    ClassScores,
    DatasetScores,
    Entry,
    Measured,
    Printed,
    Scoreboard,
    Shot,
    Spread,
)

LABELS = ("vcp_clip", "gen_clip", "ours <&>")
LINE = ((0.0, 0.1, 0.4, 1.0), (0.0, 0.7, 0.9, 1.0))


def picture(kind: str, seed: int = 0, size: tuple[int, int] = (48, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def class_scores(value: float, **changed: Any) -> ClassScores:
    metrics = {
        "image_auroc": Measured(value),
        "pixel_auroc": Measured(value - 0.1),
        "pixel_aupro": Measured(None),
    }
    values: dict[str, Any] = {
        "counts": (3, 4),
        "metrics": metrics,
        "curves": {"image_roc": LINE, "pixel_pro": LINE},
        "histogram": ((0.0, 0.5, 1.0), (3, 0), (1, 3)),
        "threshold": 0.5,
        "notes": ("one mask is empty",),
    }
    return ClassScores(**(values | changed))


def entry(label: str, value: float, **changed: Any) -> Entry:
    mean = {"image_auroc": Measured(value), "pixel_auroc": Measured(value - 0.1)}
    mean["pixel_ap"] = Measured(None, None, 0, "no masks")
    values: dict[str, Any] = {
        "label": label,
        "method": "vcp_clip",
        "auxiliary": "visa",
        "seeds": (None,),
        "mean": mean,
        "classes": {"bottle": class_scores(value), "grid_2": class_scores(value - 0.05)},
        "seconds": (0.02, 0.005),
        "memory": 1234.0,
    }
    return Entry(**(values | changed))


def shot(kind: str, path: str, labels: tuple[str, ...] = LABELS, mask: bool = True) -> Shot:
    maps = {label: (picture("JPEG", i), 0.25 * i) for i, label in enumerate(labels)}
    return Shot(kind, path, picture("JPEG"), picture("PNG") if mask else None, maps)


def board() -> Scoreboard:
    printed = {
        "image_auroc": Printed(0.921, "VCP-CLIP, Table 10"),
        "pixel_auroc": Printed(0.9, "VCP-CLIP, Table 1", ("at 224 instead of 518 px",)),
    }
    seeded = {"image_auroc": Measured(0.934, 0.004, 3), "pixel_auroc": Measured(0.8, 0.01, 3)}
    first = (
        entry(LABELS[0], 0.9234, published=printed),
        entry(LABELS[1], 0.9512),
        entry(LABELS[2], 0.9, mean=seeded, seeds=(1, 2, 3), overlap="same name"),
    )
    failed = {"mean": {}, "classes": {}, "seconds": None, "memory": None}
    second = (
        entry(LABELS[0], 0.8, classes={"object": class_scores(0.8, histogram=None)}),
        entry(LABELS[1], 0.7, errors=("checkpoint b_1.pth: no such file",), **failed),
    )
    counts = {"bottle": (3, 4), "grid_2": (3, 4)}
    shots = {
        "bottle": tuple(shot(k, f"test/{k}/a<{k}>.png", mask=k != "tn") for k in ("tp", "fp", "fn", "tn"))
    }
    datasets = (
        DatasetScores("mvtec", "mvtec", counts, first, shots, ("zipper is missing",)),
        DatasetScores("head_ct", "head_ct", {"object": (3, 4)}, second, medical=True),
        DatasetScores(
            "lost", "visa", {}, (entry(LABELS[0], 0, errors=("no folder",), **failed),), error="no folder"
        ),
    )
    spreads = (
        Spread(
            "mvtec",
            LABELS[1],
            "state_words",
            "image_auroc",
            0.95,
            {"good / bad": 0.93, "fine / broken": 0.91},
        ),
    )
    run = {"versions": {"blemish": "9.8.7"}, "plan": {"datasets": [{"name": "mvtec"}]}, "command": "x <y>"}
    facts = {"Protocol": "exact", "Resolution": "518"}
    return Scoreboard("Two & two", "About <this>.", datasets, spreads, facts, run)
