"""Which images of a dataset count: without masks or labels, damaged, left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.data.layouts import Dataset, open_dataset
from blemish.detector import Detector
from blemish.errors import BadDataset, UnknownName
from blemish.run.evaluate import evaluate, exit_code
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.results import METRICS, read_results
from run.drawn_data import save

Make = Callable[..., Path]


def test_without_masks(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    bare = [replace(s, mask=None) if s.class_name == "plate" else s for s in dataset.samples]
    found = evaluate(one, replace(dataset, samples=tuple(bare)), tmp_path / "out")
    plate = found.methods[0].classes["plate"]
    assert plate.metrics["image_auroc"].value is not None
    for name in METRICS:
        if name.startswith("pixel_"):
            assert plate.metrics[name].value is None
            assert plate.metrics[name].reason == "no masks for its 5 anomalous images"
    assert plate.notes == ("no pixel metrics: no masks for its 5 anomalous images",)
    mean = found.methods[0].mean["pixel_auroc"]
    assert (mean.used, mean.classes) == (1, 2)
    assert mean.value == found.methods[0].classes["gear_wheel"].metrics["pixel_auroc"].value


def test_an_anomalous_image_without_mask_counts_at_image_level_only(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    plate = list(dataset.of_class("plate"))
    bare = [replace(s, mask=None) if s.image.stem == "000" and s.label else s for s in plate]
    less = [s for s in plate if not (s.image.stem == "000" and s.label)]
    part, full = (
        evaluate(one, replace(dataset, samples=tuple(samples)), tmp_path / name).methods[0].classes["plate"]
        for name, samples in (("part", bare), ("less", less))
    )
    assert len(part.images) == 10 and len(full.images) == 9
    assert part.metrics["pixel_auroc"].value == pytest.approx(full.metrics["pixel_auroc"].value, abs=1e-5)
    assert part.notes == ("1 of 5 anomalous images have no mask: at image level only",)


def test_one_kind_of_images(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    anomalous = tuple(s for s in dataset.of_class("plate") if s.label)
    found = evaluate(one, replace(dataset, samples=anomalous), tmp_path / "a").methods[0].classes["plate"]
    assert found.metrics["image_auroc"].reason == "no normal image" and found.curves.keys() == {
        "pixel_roc",
        "pixel_pro",
    }
    assert found.metrics["pixel_auroc"].value is not None
    normal = tuple(s for s in dataset.of_class("plate") if not s.label)
    found = evaluate(one, replace(dataset, samples=normal), tmp_path / "n").methods[0].classes["plate"]
    assert found.metrics["pixel_auroc"].reason == found.metrics["image_auroc"].reason == "no anomalous image"


def test_masks_that_vanish_are_told(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    mask = np.zeros((40, 40))
    mask[0, 0] = 255
    save(mask, dataset.root / "plate/ground_truth/spot/001_mask.png")
    found = evaluate(one, dataset, tmp_path / "out", EvaluateOptions(resolution=8)).methods[0]
    assert any("1 masks are empty at 8×8" in note for note in found.classes["plate"].notes)


def test_unlabelled_images_are_refused(one: dict[str, Detector], draw: Make, tmp_path: Path) -> None:
    folder = draw("bare/1.png").parent
    with pytest.raises(BadDataset, match=r"which of its 1 images are anomalous[\s\S]*blemish predict"):
        evaluate(one, open_dataset(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failures_are_recorded_and_the_rest_goes_on(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, seen = dataset.root, []
    (root / "plate/test/good/001.png").write_text("words")
    (root / "plate/ground_truth/spot/002_mask.png").write_bytes(b"")
    save(np.zeros((9, 90)), root / "plate/ground_truth/spot/003_mask.png")
    (root / "gear_wheel/test/good/000.png").unlink()
    method = detectors["vcp_clip"].method
    real, calls = type(method).forward, []

    def forward(self: Any, features: Any, names: Any = None) -> Any:
        prediction = real(self, features, names)
        if not calls:
            prediction.map[0] = np.nan
        calls.append(1)
        return prediction

    monkeypatch.setattr(type(method), "forward", forward)
    found = evaluate(detectors, dataset, tmp_path / "out", on_progress=lambda *state: seen.append(state))
    first, second = (m.classes for m in found.methods)
    errors = {f.path: f.error for f in first["plate"].failed}
    assert errors.keys() == {"plate/test/good/001.png", "plate/test/spot/002.png", "plate/test/spot/003.png"}
    assert "not an image" in errors["plate/test/good/001.png"]
    assert "0 bytes" in errors["plate/test/spot/002.png"] and "90×9" in errors["plate/test/spot/003.png"]
    assert not any(str(tmp_path) in error for error in errors.values())
    assert [f.path for f in first["gear_wheel"].failed] == ["gear_wheel/test/good/000.png"]
    assert [f.error for f in second["gear_wheel"].failed if "NaN" in f.error]
    assert len(first["gear_wheel"].images) == 9 and len(second["gear_wheel"].images) == 8
    assert "3 images failed and are in no number" in first["plate"].notes
    assert exit_code(found) == 1 and len(found.failed) == 5
    assert seen[0] == (0, 20, None) and seen[-1][:2] == (20, 20)
    assert sum(error is not None for _, _, error in seen) == 5


def test_nothing_done_is_status_two(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    for sample in dataset.samples:
        sample.image.write_text("x")
    found = evaluate(one, dataset, tmp_path / "out")
    assert exit_code(found) == 2
    assert found.methods[0].classes["plate"].metrics["image_auroc"].reason == "no images"
    assert found.methods[0].classes["plate"].histogram is None


def test_results_inside_the_dataset_are_no_samples(one: dict[str, Detector], dataset: Dataset) -> None:
    out = dataset.root / "plate/test/out"
    first = evaluate(one, dataset, out, EvaluateOptions(save=("maps",)))
    again = evaluate(one, open_dataset(dataset.root), out, EvaluateOptions(save=("maps",)), overwrite=True)
    assert again.classes == first.classes


def test_limit_and_classes(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(one, dataset, tmp_path / "a", EvaluateOptions(limit=4, classes="plate, plate"))
    plate = found.methods[0].classes["plate"]
    assert list(found.classes) == ["plate"] and [r.label for r in plate.images] == [0, 0, 1, 1]
    assert any("at most 4 images" in note for note in found.notes)
    with pytest.raises(UnknownName, match="did you mean 'plate'"):
        evaluate(one, dataset, tmp_path / "b", EvaluateOptions(classes=("plat",)))


def test_no_pixel_reads_no_mask(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    for sample in dataset.samples:
        if sample.mask is not None:
            sample.mask.write_text("x")
    found = evaluate(one, dataset, tmp_path / "out", EvaluateOptions(no_pixel=True))
    assert not found.failed and found.methods[0].mean["image_auroc"].value is not None
    assert found.methods[0].classes["plate"].metrics["pixel_iou"].reason == "left out by no_pixel"


def test_names_that_are_no_text(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    odd = [replace(s, class_name="a\udcff", defect="b\udcff/..") for s in dataset.of_class("plate")]
    out = tmp_path / "out"
    found = evaluate(one, replace(dataset, samples=tuple(odd)), out, EvaluateOptions(save="maps"))
    assert list(found.classes) == ["a%FF"] and read_results(out / "results.json") == found
    maps = {p.relative_to(out).as_posix() for p in out.rglob("*.tiff")}
    assert "maps/anomaly_clip/a%FF/test/b%FF_/000.tiff" in maps and len(maps) == 10
