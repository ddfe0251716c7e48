"""Few-shot evaluation: whose normal images, their memories, resuming, refusals; words for classes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import draw_dataset, save

from blemish.cli import main
from blemish.data.layouts import Dataset, open_dataset
from blemish.detector import Detector
from blemish.errors import BadDataset, BadImage, BadOption, OutputError
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.normals import find_normals
from blemish.run.results import Evaluation

Make = Callable[..., Path]
CLASSES = ("plate", "gear_wheel")


@pytest.fixture(scope="module")
def detectors(small_checkpoint: Make) -> dict[str, Detector]:
    return load_detectors((), [small_checkpoint("april_gan")], precision="fp32")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """With a training split: noise as in the normal test pictures, darker for gear wheels."""
    root, rng = draw_dataset(tmp_path / "set", CLASSES, side=40), np.random.default_rng(3)
    for name, top in zip(CLASSES, (120, 80), strict=True):
        for i in range(4):
            save(rng.integers(60, top, (40, 40, 3)), root / name / "train/good" / f"{i}.png")
    return open_dataset(root)


def scores(found: Evaluation, name: str) -> list[float]:
    return [row.score for row in found.methods[0].classes[name].images]


def with_memory_of(
    detectors: dict[str, Detector], dataset: Dataset, name: str, paths: list[Path]
) -> list[float]:
    """The plain way: remember, score one by one, forget."""
    detector = detectors["april_gan"]
    detector.remember(paths)
    found = []
    for sample in dataset.of_class(name):
        prepared = detector.prepare(sample.image)
        features = detector.clip.encode_image(_tensor(prepared.pixels), detector.method.needs)
        found.append(float(detector.method(features, [name]).score))
    detector.forget()
    return found


def _tensor(pixels: np.ndarray | None) -> torch.Tensor:
    assert pixels is not None
    return torch.from_numpy(pixels)[None]


def test_the_training_split_by_class(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    before = detectors["april_gan"].setup
    plain = evaluate(detectors, dataset, tmp_path / "plain")
    found = evaluate(detectors, dataset, tmp_path / "few", EvaluateOptions(normal=str(dataset.root)))
    for name in CLASSES:
        paths = sorted((dataset.root / name / "train/good").iterdir())
        expected = with_memory_of(detectors, dataset, name, paths)
        assert scores(found, name) == pytest.approx(expected, abs=1e-5)
        assert scores(plain, name) != pytest.approx(expected, abs=1e-3)
    assert "few-shot: 4 normal images a class" in found.notes
    assert not any("remembered as normal" in note for note in found.notes)
    assert detectors["april_gan"].method.memory() == {}  # type: ignore[attr-defined]
    assert detectors["april_gan"].setup.memory_sha256 == before.memory_sha256 == ""
    described = found.settings["normal"]
    assert described["plate"]["images"] == ["0.png", "1.png", "2.png", "3.png"]
    assert described["plate"]["sha256"] != described["gear_wheel"]["sha256"]
    assert str(tmp_path) not in json.dumps(found.settings)


def test_one_folder_for_all_classes_and_folders_by_class(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    folder = dataset.root / "plate/train/good"
    shared = evaluate(detectors, dataset, tmp_path / "a", EvaluateOptions(normal=str(folder)))
    paths = sorted(folder.iterdir())
    assert "few-shot: 4 normal images for all classes" in shared.notes
    for name in CLASSES:
        expected = with_memory_of(detectors, dataset, name, paths)
        assert scores(shared, name) == pytest.approx(expected, abs=1e-5)
    for name in CLASSES:
        for i, path in enumerate(paths[:2]):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name / f"{i}.png").write_bytes(path.read_bytes())
    own = evaluate(detectors, dataset, tmp_path / "b", EvaluateOptions(normal=str(tmp_path / "own")))
    assert scores(own, "plate") == pytest.approx(
        with_memory_of(detectors, dataset, "plate", paths[:2]), abs=1e-5
    )


def test_memories_are_kept_and_used_again(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    options = EvaluateOptions(normal=str(dataset.root), shots=2, seed=5, save="memory")
    first = evaluate(detectors, dataset, tmp_path / "a", options)
    kept = tmp_path / "a/memory/april_gan"
    assert sorted(p.name for p in kept.iterdir()) == ["gear_wheel.safetensors", "plate.safetensors"]
    second = evaluate(detectors, dataset, tmp_path / "b", EvaluateOptions(normal=str(kept)))
    for name in CLASSES:
        assert scores(first, name) == scores(second, name)
    folder = str(dataset.root / "plate/train/good")
    shared = evaluate(detectors, dataset, tmp_path / "c", EvaluateOptions(normal=folder, save="memory"))
    alone = tmp_path / "c/memory/april_gan.safetensors"
    again = evaluate(detectors, dataset, tmp_path / "d", EvaluateOptions(normal=str(alone)))
    assert scores(shared, "plate") == scores(again, "plate")
    with pytest.raises(BadOption, match="memory already made"):
        evaluate(detectors, dataset, tmp_path / "e", EvaluateOptions(normal=str(alone), shots=2))


def test_shots_are_drawn_by_the_seed(dataset: Dataset) -> None:
    drawn = {
        tuple(s.image.name for s in find_normals(dataset.root, dataset, CLASSES, 2, seed).sources["plate"])  # type: ignore[union-attr]
        for seed in range(12)
    }
    assert len(drawn) > 2 and all(len(names) == 2 for names in drawn)


def test_resume_needs_the_same_normal_images(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    options = EvaluateOptions(normal=str(dataset.root), shots=2)
    first = evaluate(detectors, dataset, tmp_path / "out", options)
    (tmp_path / "out/parts").joinpath("0.json").unlink(missing_ok=True)
    again = evaluate(detectors, dataset, tmp_path / "out", options, resume=True)
    assert scores(again, "plate") == scores(first, "plate")
    with pytest.raises(OutputError, match=r"normal\.gear_wheel\.images was"):
        evaluate(
            detectors,
            dataset,
            tmp_path / "out",
            EvaluateOptions(normal=str(dataset.root), shots=3),
            resume=True,
        )
    target = dataset.root / "plate/train/good"
    for path in target.iterdir():
        save(np.zeros((40, 40, 3)), path)
    with pytest.raises(OutputError, match="sha256"):
        evaluate(detectors, dataset, tmp_path / "out", options, resume=True)


def test_test_images_among_the_normal_ones_are_told(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    folder = dataset.root / "plate/test/good"
    found = evaluate(detectors, dataset, tmp_path / "a", EvaluateOptions(normal=str(folder)))
    assert "5 of the images measured are remembered as normal ones too" in found.notes


def test_refusals(
    detectors: dict[str, Detector], dataset: Dataset, small_checkpoint: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / "own/plate").mkdir(parents=True)
    save(np.zeros((40, 40, 3)), tmp_path / "own/plate/0.png")
    with pytest.raises(BadDataset, match="normal images of plate and none of gear_wheel"):
        evaluate(detectors, dataset, out, EvaluateOptions(normal=str(tmp_path / "own")))
    (tmp_path / "own/gear_wheel").mkdir()
    with pytest.raises(BadImage, match="gear_wheel: no images in this folder"):
        evaluate(detectors, dataset, out, EvaluateOptions(normal=str(tmp_path / "own")))
    other = load_detectors((), [small_checkpoint("anomaly_clip")]) | detectors
    with pytest.raises(BadOption, match=r"anomaly_clip cannot use normal images.*april_gan"):
        evaluate(other, dataset, out, EvaluateOptions(normal=str(dataset.root)))
    bare = open_dataset(draw_dataset(tmp_path / "bare", ("plate",), side=40))
    with pytest.raises(BadDataset):
        evaluate(detectors, bare, out, EvaluateOptions(normal=str(bare.root)))
    detectors["april_gan"].remember([tmp_path / "own/plate/0.png"])
    with pytest.raises(BadOption, match="april_gan remembers normal images already"):
        evaluate(detectors, dataset, out, EvaluateOptions(normal=str(dataset.root)))
    detectors["april_gan"].forget()
    for given in ({"shots": 2}, {"save": "memory"}):
        with pytest.raises(BadOption, match="--normal"):
            EvaluateOptions(**given)
    assert not out.exists()


def test_command(
    dataset: Dataset, small_checkpoint: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.toml"
    words.write_text('gear_wheel = "brass gear"\nscrew = "long screw"\n')
    common = ["evaluate", "--data", str(dataset.root), "--checkpoint", str(small_checkpoint("april_gan"))]
    common += ["--normal", str(dataset.root), "--shots", "2", "--class-names", str(words)]
    assert main([*common, "-o", str(tmp_path / "out"), "--save", "memory"]) == 0
    assert "few-shot: 2 normal images a class" in capfd.readouterr().err
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert settings["class_names"] == {"plate": "plate", "gear_wheel": "brass gear"}
    assert (tmp_path / "out/memory/april_gan/plate.safetensors").is_file()
    words.write_text('screw = "long screw"\n')
    assert main([*common, "-o", str(tmp_path / "b")]) == 2
    assert "unknown class of set 'screw'" in capfd.readouterr().err


def test_one_warning_where_nothing_names_the_class(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("good", "bad"):
        for i in range(2):
            save(np.full((40, 40, 3), 90 * i), tmp_path / "flat" / kind / f"{i}.png")
    flat = open_dataset(tmp_path / "flat", "folder:normal=good,abnormal=bad")
    assert flat.classes == ("object",)
    with caplog.at_level(logging.WARNING):
        evaluate(detectors, flat, tmp_path / "a")
        assert sum('"object" stands for them' in r.message for r in caplog.records) == 1
        caplog.clear()
        evaluate(detectors, flat, tmp_path / "b", EvaluateOptions(class_name="cloth"))
        evaluate(detectors, dataset, tmp_path / "c")
    assert not [r for r in caplog.records if "object" in r.message]
