"""Which pictures training takes, what it calls their classes, and which of them the thresholds come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from blemish.data.augment import AUGMENTATIONS, Augmentation
from blemish.data.auxiliary import Auxiliary
from blemish.errors import BadOption, UnknownName
from blemish.run import train as training
from blemish.run.recipe import TrainOptions
from blemish.run.train import train
from blemish.run.train_data import gather
from run.drawn_data import draw_dataset

SIZES = {"image_size": 48}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("auxiliary"), ("plate", "metal_ring"), normal=4, anomalous=6)


def words(data: Path, **more: Any) -> set[str]:
    found = gather(TrainOptions(method="aa_clip", data=(str(data),), **SIZES, **more), False)
    return {sample.class_name for sample in found.samples}


def test_a_limit_takes_pictures_of_every_kind(data: Path) -> None:
    found = gather(TrainOptions(method="aa_clip", data=(str(data),), limit=10, **SIZES), False)
    kinds = Counter((sample.class_name, sample.label) for sample in found.samples)
    assert sum(kinds.values()) == 10
    assert len(kinds) == 4
    assert max(kinds.values()) - min(kinds.values()) <= 1


def test_classes_are_called_as_in_evaluation(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.toml"
    file.write_text('metal_ring = "steel ring seen from above"\nother = "of another dataset"\n')
    assert words(data) == {"plate", "metal ring"}
    assert words(data, class_name="part") == {"part"}
    assert words(data, class_names=str(file)) == {"plate", "steel ring seen from above"}
    assert words(data, class_names=str(file), class_name="part") == {"part", "steel ring seen from above"}
    held = gather(
        TrainOptions(data=(str(data),), class_names=str(file), validate_classes=("metal_ring",), **SIZES),
        False,
    )
    assert {s.class_name for s in held.held_out} == {"steel ring seen from above"}


def test_words_for_no_class_of_the_data_are_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.toml"
    file.write_text('bottle = "glass bottle"\n')
    with pytest.raises(UnknownName, match="bottle"):
        words(data, class_names=str(file))
    with pytest.raises(BadOption, match="threshold_images is 0"):
        TrainOptions(threshold_images=0)


@pytest.mark.parametrize("method", ["april_gan", "aa_clip"])
def test_thresholds_from_some_pictures(
    method: str, data: Path, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    class Finder(training.ThresholdFinder):
        def update(self, score: float, label: int, *rest: Any) -> None:
            seen.append(torch.tensor(label))
            super().update(score, label, *rest)

    monkeypatch.setattr(training, "ThresholdFinder", Finder)
    common: dict[str, Any] = {
        "data": (str(data),),
        "backbone": str(small_backbone),
        "image_size": 48,
        "epochs": 1,
    }
    common |= {
        "batch_size": 8,
        "augmentation": "none",
        "cache_dir": str(tmp_path / "cache"),
        "method": method,
    }
    own = {"stage": "text"} if method == "aa_clip" else {}
    few = train(TrainOptions(out=str(tmp_path / "few"), threshold_images=6, **common), own)
    assert len(seen) == 6
    assert {int(label) for label in seen} == {0, 1}
    assert few.thresholds is not None and few.thresholds.image is not None
    seen.clear()
    train(TrainOptions(out=str(tmp_path / "all"), **common), own)
    assert len(seen) == 20


@pytest.mark.parametrize("of_all", [False, True])
def test_mosaics_of_anomalous_pictures_or_of_all(data: Path, of_all: bool) -> None:
    samples = gather(TrainOptions(data=(str(data),), **SIZES), False).samples
    always = Augmentation(mosaic=1.0, mosaic_of_all=of_all)
    drawn = Auxiliary(samples, 48, 96, (0.5,) * 3, (0.5,) * 3, always)
    views = [drawn.view(index, copy) for index in range(len(samples)) for copy in range(8)]
    quarters = [view.mask.reshape(2, 48, 2, 48).any(axis=(1, 3)) for view in views if view.mask is not None]
    assert len(quarters) == len(views)
    shares = [float(q.mean()) for q in quarters]
    # Of a class's four normal and six anomalous pictures.
    assert 0.4 < sum(shares) / len(shares) < 0.75 if of_all else min(shares) == 1.0
    assert all(view.label == int(q.any()) for view, q in zip(views, quarters, strict=True))
    assert AUGMENTATIONS["mosaic"].mosaic_of_all and not AUGMENTATIONS["vcp_mosaic"].mosaic_of_all
