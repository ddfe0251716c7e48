"""Calibration on datasets: a detector's own thresholds, and what the pictures leave open."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blemish
from blemish.calibrate import Thresholds
from blemish.data.layouts import Dataset, open_dataset
from blemish.detector import Detector
from blemish.errors import BadDataset, BadOption
from blemish.run.calibrate import calibrate
from blemish.types import Result

Make = Callable[..., Path]


# With a detector


def write(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A class with 8 normal and 6 anomalous pictures, all with masks, in MVTec's arrangement."""
    base = tmp_path / "nuts"
    for i in range(8):
        write(base / "nut" / "test" / "good" / f"{i}.png", i)
    for i in range(6):
        write(base / "nut" / "test" / "bent" / f"{i}.png", 100 + i)
        mask = np.zeros((30, 40), dtype=np.uint8)
        mask[5:15, 8:20] = 255
        place = base / "nut" / "ground_truth" / "bent" / f"{i}_mask.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(place)
    for i in range(4):
        write(base / "nut" / "train" / "good" / f"{i}.png", 200 + i)
    return base


@pytest.fixture
def detector(small_checkpoint: Make) -> Detector:
    return blemish.load(checkpoint=small_checkpoint())


def judged(detector: Detector, dataset: Dataset, found: Thresholds) -> list[tuple[int | None, Result]]:
    detector.setup = dataclasses.replace(detector.setup, threshold=found.image, pixel_threshold=found.pixel)
    return [(sample.label, detector.predict(sample.image)) for sample in dataset.samples]


@pytest.mark.parametrize("rate", [None, 0.2])
def test_calibrated_detectors_decide_as_reported(detector: Detector, root: Path, rate: float | None) -> None:
    dataset = open_dataset(root)
    seen: list[int] = []
    found = calibrate(
        detector,
        dataset,
        false_alarm_rate=rate,
        batch_size=1,
        on_progress=lambda done, total, error: seen.append(done),
    )
    assert seen == list(range(1, 15)) and found.total == 14 and found.exit_code == 0
    thresholds = found.thresholds
    assert (thresholds.normal, thresholds.anomalous, thresholds.masks) == (8, 6, 6)
    results = judged(detector, dataset, thresholds)
    rates = thresholds.false_alarms, thresholds.detections
    for label in (0, 1):
        rate_found = rates[label]
        assert rate_found is not None
        assert sum(bool(r.is_anomalous) for its, r in results if its == label) == rate_found.count
    assert thresholds.region_alarms is not None
    assert sum(bool(r.regions) for its, r in results if its == 0) == thresholds.region_alarms.count


def test_batches_do_not_matter(detector: Detector, root: Path) -> None:
    one, many = (calibrate(detector, open_dataset(root), batch_size=n).thresholds for n in (1, 6))
    assert one.image == pytest.approx(many.image, rel=1e-4)
    assert one.pixel == pytest.approx(many.pixel, rel=1e-3)


def test_bad_pictures_are_recorded(detector: Detector, root: Path) -> None:
    (root / "nut/test/good/3.png").write_text("words")
    (root / "nut/ground_truth/bent/2_mask.png").write_bytes(b"\x89PNG")
    seen: list[str | None] = []
    found = calibrate(detector, open_dataset(root), on_progress=lambda d, t, error: seen.append(error))
    assert [Path(path).name for path, _ in found.failed] == ["2.png", "3.png"] or len(found.failed) == 2
    assert found.exit_code == 1 and found.thresholds.normal == 7 and found.thresholds.anomalous == 5
    assert len([error for error in seen if error]) == 2
    assert len(found.to_dict()["failed"]) == 2 and json.dumps(found.to_dict())


def test_no_usable_picture(detector: Detector, tmp_path: Path) -> None:
    for label in ("good", "bad"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "1.png").write_text("words")
    with pytest.raises(BadDataset, match="none of the 2 images"):
        calibrate(detector, open_dataset(tmp_path / "d"))


def test_only_normal_pictures_default_to_a_rate(
    detector: Detector, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found = calibrate(detector, open_dataset(root, split="train"))
    assert found.thresholds.how == "false-alarm rate 0.01" and found.thresholds.anomalous == 0
    assert any("by default" in note for note in found.notes)
    assert found.thresholds.false_alarms is not None
    assert found.thresholds.false_alarms.value == pytest.approx(1 / 5)


def test_pictures_without_labels(detector: Detector, root: Path) -> None:
    bare = open_dataset(root / "nut/train/good")
    with pytest.raises(BadDataset, match="--false-alarm-rate"):
        calibrate(detector, bare)
    found = calibrate(detector, bare, false_alarm_rate=0.3)
    assert found.thresholds.normal == 4 and any("taken as normal" in note for note in found.notes)
    some = open_dataset(root)
    unknown = dataclasses.replace(some.samples[0], label=None)
    mixed = dataclasses.replace(some, samples=(unknown, *some.samples[1:]))
    found = calibrate(detector, mixed)
    assert found.total == 13 and found.notes[0] == "1 images without a label were left out"


def test_no_masks_leave_the_pixel_threshold(detector: Detector, root: Path) -> None:
    dataset = open_dataset(root)
    bare = tuple(dataclasses.replace(sample, mask=None) for sample in dataset.samples)
    found = calibrate(detector, dataclasses.replace(dataset, samples=bare))
    assert found.thresholds.pixel is None and found.thresholds.image is not None
    assert any("pixel threshold stays as it was, 0.5" in note for note in found.notes)


def test_only_anomalous_pictures(detector: Detector, root: Path) -> None:
    dataset = open_dataset(root)
    bad = dataclasses.replace(dataset, samples=tuple(s for s in dataset.samples if s.label))
    found = calibrate(detector, bad)
    assert found.thresholds.image is None and found.thresholds.pixel is not None
    with pytest.raises(BadDataset, match="no normal images"):
        calibrate(detector, bad, false_alarm_rate=0.1)
    with pytest.raises(BadDataset, match="determines no threshold"):
        maskless = tuple(dataclasses.replace(s, mask=None) for s in bad.samples)
        calibrate(detector, dataclasses.replace(bad, samples=maskless))
    with pytest.raises(BadOption, match="pass both"):
        calibrate(detector, dataset, pixel_false_alarm_rate=0.1)
