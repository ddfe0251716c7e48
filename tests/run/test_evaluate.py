"""An evaluation: numbers against plain ones, sharing, maps, words, tiles, refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import rankdata

from blemish.data.layouts import Dataset, open_dataset
from blemish.data.transforms import map_to_size, resize_mask
from blemish.detector import Detector
from blemish.errors import BadOption, UnknownName
from blemish.output.tables import read_map
from blemish.run import scoring
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate, exit_code
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.results import METRICS, Line, read_results
from blemish.run.tally import thin
from blemish.score_rule import image_score
from run.drawn_data import save
from run.evaluations import TWO, decoded, without_speed

Make = Callable[..., Path]


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = rankdata(scores)
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs)


@pytest.mark.parametrize("resolution", [None, "native", 32])
def test_numbers_equal_plain_ones(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, resolution: Any
) -> None:
    found = evaluate(detectors, dataset, tmp_path / "out", EvaluateOptions(resolution=resolution))
    assert found.dataset == "set" and found.classes["plate"].with_mask == 5
    for method in found.methods:
        detector = detectors[method.label]
        assert method.protocol.resolution == (resolution or detector.setup.image_size)
        for name, one_class in method.classes.items():
            maps, masks, scores, labels = [], [], [], []
            for sample in dataset.of_class(name):
                prepared = detector.prepare(sample.image)
                # class names change nothing here, and batches only the last bits
                raw = detector.infer([prepared])[0]
                mask = np.zeros(prepared.size, dtype=np.uint8)
                if sample.mask is not None:
                    mask = np.asarray(Image.open(sample.mask))
                size = resolution or detector.setup.image_size
                native = size == "native"
                maps.append(map_to_size(raw.map, prepared.size if native else (size, size)).ravel())
                masks.append((mask > 0 if native else resize_mask(mask, size)).ravel())
                scores.append(raw.score)
                labels.append(sample.label)
            rows = {row.path: row for row in one_class.images}
            for sample, score in zip(dataset.of_class(name), scores, strict=True):
                row = rows[sample.image.relative_to(dataset.root).as_posix()]
                assert row.score == pytest.approx(score, abs=1e-5)
                assert (row.label, row.defect) == (sample.label, sample.defect)
            expected = auroc(np.array(scores), np.array(labels))
            assert one_class.metrics["image_auroc"].value == pytest.approx(expected, abs=1e-6)
            pixels = auroc(np.concatenate(maps), np.concatenate(masks))
            assert one_class.metrics["pixel_auroc"].value == pytest.approx(pixels, abs=1e-4)
            assert set(one_class.metrics) == set(METRICS)
            assert one_class.image_threshold == one_class.metrics["image_f1max_threshold"].value
        values = [c.metrics["image_auroc"].value for c in method.classes.values()]
        mean = method.mean["image_auroc"]
        assert mean.value == pytest.approx(np.mean(values)) and (mean.used, mean.classes) == (2, 2)


def test_methods_together_equal_methods_alone(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = decoded(monkeypatch)
    together = evaluate(detectors, dataset, tmp_path / "out")
    assert len(names) == len(set(names)) == len(dataset.samples)
    for method, (label, detector) in zip(without_speed(together), detectors.items(), strict=True):
        alone = evaluate({label: detector}, dataset, tmp_path / label)
        assert method == without_speed(alone)[0]
    assert detectors["anomaly_clip"].clip is detectors["vcp_clip"].clip
    assert all(m.speed.encoder > 0 and m.speed.method > 0 for m in together.methods)


def test_methods_of_one_pass_know_it(small_checkpoint: Make, dataset: Dataset, tmp_path: Path) -> None:
    same = load_detectors((), [f"{name}={small_checkpoint('vcp_clip')}" for name in ("a", "b")])
    found = evaluate(same, dataset, tmp_path / "out")
    assert [(m.label, m.method, m.speed.shared_by) for m in found.methods] == [
        ("a", "vcp_clip", 2),
        ("b", "vcp_clip", 2),
    ]
    assert found.methods[0].classes == found.methods[1].classes


def test_files(detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evaluate(detectors, dataset, out, EvaluateOptions(protocol="anomalyclip", fpr_limit=0.2))
    assert read_results(out / "results.json") == found
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["label"], r["class"]) for r in rows] == [
        (label, name) for label in TWO for name in ("gear_wheel", "plate", "mean")
    ]
    assert set(METRICS) < set(rows[0])
    for row in rows:
        assert (row["protocol"], row["fpr_limit"], row["resolution"]) == ("anomalyclip", "0.2", "48")
        assert (row["connectivity"], row["score_rule"], row["mode"]) == ("8", "native", "exact")
    assert [r["smoothing"] for r in rows[::3]] == ["4", "8"]
    assert rows[2]["normal"] == "10" and rows[2]["image_f1max_threshold"] == ""
    value = found.methods[0].classes["plate"].metrics["pixel_aupro"].value
    assert float(rows[1]["pixel_aupro"]) == pytest.approx(value)
    text = (out / "results.json").read_text() + (out / "run.json").read_text()
    assert str(tmp_path) not in text and str(Path.home()) not in text and "NaN" not in text
    assert json.loads((out / "run.json").read_text())["status"] == "done"


def test_maps_in_the_convention_of_mvtec(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    save(np.full((30, 50, 3), 90), dataset.root / "plate/test/good/000.jpg")
    again = open_dataset(dataset.root)
    halves = [replace(s, box=box) for s in again.samples[:1] for box in ((0, 0, 40, 20), (0, 20, 40, 40))]
    both = replace(again, samples=(*again.samples, *halves))
    out = tmp_path / "out"
    evaluate(detectors, both, out, EvaluateOptions(save="maps"))
    for label, detector in detectors.items():
        folder = out / "maps" / label / "plate/test"
        expected = detector.predict(dataset.root / "plate/test/spot/002.png").map
        np.testing.assert_allclose(read_map(folder / "spot/002.tiff"), expected, atol=1e-4)
        # of a.jpg beside a.png, and of parts of one picture, the later ones get a number
        assert {read_map(folder / f"good/{n}.tiff").shape for n in ("000", "000_1")} == {(40, 40), (30, 50)}
        first = out / "maps" / label / "gear_wheel/test/good"
        assert [read_map(first / f"000{n}.tiff").shape for n in ("", "_1", "_2")] == [
            (40, 40),
            (20, 40),
            (20, 40),
        ]
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("rule", "count"), [("max", 1), ("topk:1", 1), ("topk:50", 50), ("topk:99999", 2304)]
)
def test_score_rules(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, rule: str, count: int
) -> None:
    found = evaluate(one, dataset, tmp_path / "out", EvaluateOptions(score_rule=rule, classes=("plate",)))
    detector = one["anomaly_clip"]
    sample = dataset.of_class("plate")[-1]
    raw = detector.infer([detector.prepare(sample.image)])[0]
    expected = np.sort(raw.map.ravel())[-count:].mean()
    assert found.methods[0].classes["plate"].images[-1].score == pytest.approx(expected, abs=1e-5)
    assert found.methods[0].protocol.score_rule == rule
    assert image_score("native", raw.map, 0.25) == 0.25


def test_what_methods_are_told(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[str] = set()
    kind = type(one["anomaly_clip"].method)
    real = kind.forward

    def forward(self: Any, features: Any, names: Sequence[str]) -> Any:
        told.update(names)
        return real(self, features, names)

    monkeypatch.setattr(kind, "forward", forward)
    evaluate(one, dataset, tmp_path / "a")
    assert told == {"plate", "gear wheel"}
    told.clear()
    evaluate(one, dataset, tmp_path / "b", EvaluateOptions(class_name="thing"), class_names={"plate": "disc"})
    assert told == {"disc", "thing"}
    with pytest.raises(UnknownName, match="plate"):
        evaluate(one, dataset, tmp_path / "c", class_names={"plat": "disc"})


def test_streaming_is_within_its_bounds(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    exact, binned = (
        evaluate(one, dataset, tmp_path / mode, EvaluateOptions(mode=mode)).methods[0].classes["plate"]
        for mode in ("exact", "streaming")
    )
    for name in METRICS:
        a, b = exact.metrics[name], binned.metrics[name]
        assert a.value is not None and b.value is not None and a.error_bound == 0
        assert abs(a.value - b.value) <= b.error_bound + 1e-9


@pytest.mark.parametrize("name", ["anomaly_clip", "win_clip"])
def test_tiles(small_checkpoint: Make, dataset: Dataset, tmp_path: Path, name: str) -> None:
    """Of 24 pixels, or the squares that a method asks for."""
    if name == "win_clip":
        tiled = load_detectors((), [small_checkpoint(name, {"square_tiles": True})])
    else:
        tiled = load_detectors((), [small_checkpoint()], tile=24)
    save(np.full((20, 20, 3), 90), dataset.root / "plate/test/good/000.png")
    long = np.random.default_rng(0).integers(0, 256, (40, 26, 3))
    save(long.astype(np.uint8), dataset.root / "plate/test/good/001.png")
    found = evaluate(tiled, dataset, tmp_path / "out", EvaluateOptions(save="maps")).methods[0]
    assert found.protocol.resolution == "native"
    rows = found.classes["plate"].images
    for row in (rows[0], rows[1], rows[-1]):
        tiled[name].setup = replace(tiled[name].setup, class_name="plate")
        expected = tiled[name].predict(dataset.root / row.path)
        assert row.score == pytest.approx(expected.score, abs=1e-5)
        found_map = read_map(tmp_path / "out/maps" / name / Path(row.path).with_suffix(".tiff"))
        np.testing.assert_allclose(found_map, expected.map, atol=1e-4)


def test_batches_shrink_when_memory_is_short(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(detectors, dataset, tmp_path / "whole")
    real = scoring.encode_for

    def encode(clip: Any, method: Any, images: Any) -> Any:
        if len(images) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(clip, method, images)

    monkeypatch.setattr(scoring, "encode_for", encode)
    found = evaluate(detectors, dataset, tmp_path / "out")
    assert not found.failed
    for a, b in zip(found.methods, whole.methods, strict=True):
        assert a.mean["image_auroc"].value == pytest.approx(b.mean["image_auroc"].value, abs=0.02)

    def broken(clip: Any, method: Any, images: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(scoring, "encode_for", broken)
    found = evaluate(detectors, dataset, tmp_path / "none")
    assert exit_code(found) == 2 and "not enough memory" in next(iter(found.failed.values()))


def test_curves_and_histogram(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    found = evaluate(one, dataset, tmp_path / "out").methods[0].classes["plate"]
    assert found.curves.keys() == {"image_roc", "pixel_roc", "pixel_pro"}
    for line in found.curves.values():
        assert 2 <= len(line.x) == len(line.y) <= 200
        assert (line.x[0], line.y[0], line.x[-1], line.y[-1]) == (0, 0, 1, 1)
        assert all(np.diff(line.x) >= 0) and all(np.diff(line.y) >= 0)
    for kind in ("image", "pixel"):
        line = found.curves[f"{kind}_roc"]
        area = np.trapezoid(line.y, line.x)
        assert area == pytest.approx(found.metrics[f"{kind}_auroc"].value, abs=0.01)
    assert found.histogram is not None
    assert (sum(found.histogram.normal), sum(found.histogram.anomalous)) == (5, 5)
    assert len(found.histogram.edges) == len(found.histogram.normal) + 1


def test_a_thinned_curve_keeps_its_ends_and_its_shape() -> None:
    x = np.sort(np.random.default_rng(0).random(5000)) ** 4
    x[0], x[-1] = 0, 1
    line = thin(x, x**0.2)
    assert isinstance(line, Line) and len(line.x) <= 200 and line.x[-1] == line.y[-1] == 1
    assert np.max(np.abs(np.interp(x, line.x, line.y) - x**0.2)) < 0.02
    assert thin(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == Line((0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": "big"}, "518, or native"),
        ({"resolution": 0}, "resolution is 0"),
        ({"score_rule": "topk:0"}, "topk:2000"),
        ({"score_rule": "median"}, "score_rule is 'median'"),
        ({"protocol": "exakt"}, "did you mean 'exact'"),
        ({"mode": "stream"}, "streaming"),
        ({"fpr_limit": 0.0}, "fpr_limit"),
        ({"connectivity": 6}, "4 or 8"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"save": "map"}, "did you mean 'maps'"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises((BadOption, UnknownName), match=words):
        EvaluateOptions(**options)


def test_training_data_under_measurement_is_told(
    small_checkpoint: Make, dataset: Dataset, tmp_path: Path
) -> None:
    files = [f"{name}={small_checkpoint(auxiliary=name)}" for name in ("visa+set: 5 normal", "settle", "set")]
    named = [text.replace("visa+set: 5 normal=", "first=") for text in files]
    found = evaluate(load_detectors((), named), dataset, tmp_path / "out")
    assert [note.split(" was trained on ")[0] for note in found.notes] == ["first", "set"]


def test_no_detectors(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="at least one method"):
        evaluate({}, dataset, tmp_path / "out")
