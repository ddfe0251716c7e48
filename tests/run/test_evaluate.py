"""An evaluation: numbers against plain ones, sharing, failures, resume, maps, refusals."""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_data import draw_dataset, save
from PIL import Image
from scipy.stats import rankdata

from blemish.data.layouts import Dataset, open_dataset
from blemish.data.transforms import map_to_size, resize_mask
from blemish.detector import Detector
from blemish.errors import BadDataset, BadOption, OutputError, UnknownName
from blemish.output.tables import read_map
from blemish.run import class_pass, parts, scoring
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate, exit_code
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.results import METRICS, ClassResult, Evaluation, Line, MethodResult, Speed, read_results
from blemish.run.tally import thin
from blemish.score_rule import image_score
from blemish.types import Sample

Make = Callable[..., Path]
TWO = ("anomaly_clip", "vcp_clip")


@pytest.fixture(scope="module")
def detectors(small_checkpoint: Make) -> dict[str, Detector]:
    return load_detectors((), [small_checkpoint(name) for name in TWO])


@pytest.fixture
def one(detectors: dict[str, Detector]) -> dict[str, Detector]:
    return {"anomaly_clip": detectors["anomaly_clip"]}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(draw_dataset(tmp_path / "set", ("plate", "gear_wheel"), side=40))


def without_speed(evaluation: Evaluation) -> list[MethodResult]:
    """What must not depend on how a run went; sums may differ in the last bit with where arrays lie in memory."""

    def rounded(found: ClassResult) -> ClassResult:
        metrics = {
            name: replace(s, value=s.value and round(s.value, 12), error_bound=round(s.error_bound, 12))
            for name, s in found.metrics.items()
        }
        return replace(found, metrics=metrics)

    return [
        replace(
            m,
            speed=Speed(0, 0),
            peak_memory_mib=0,
            classes={name: rounded(found) for name, found in m.classes.items()},
            mean={
                name: replace(v, value=v.value and round(v.value, 12), error_bound=0)
                for name, v in m.mean.items()
            },
        )
        for m in evaluation.methods
    ]


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = rankdata(scores)
    positives = int(labels.sum())
    pairs = positives * (len(labels) - positives)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / pairs)


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that receives the name of every picture that is decoded."""
    names: list[str] = []
    real = scoring.load_pixels

    def load(sample: Sample) -> np.ndarray:
        names.append(f"{sample.class_name}/{sample.defect}/{sample.image.name}")
        return real(sample)

    monkeypatch.setattr(scoring, "load_pixels", load)
    return names


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


def test_finished_classes_are_not_done_again(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = evaluate(detectors, dataset, tmp_path / "whole"), tmp_path / "cut"
    real = class_pass.ClassPass.run

    def run(self: Any, name: str, *rest: Any) -> Any:
        if name == "plate":
            raise KeyboardInterrupt
        return real(self, name, *rest)

    monkeypatch.setattr(class_pass.ClassPass, "run", run)
    with pytest.raises(KeyboardInterrupt):
        evaluate(detectors, dataset, cut)
    assert not (cut / "results.json").exists()
    monkeypatch.undo()
    names, seen = decoded(monkeypatch), []
    found = evaluate(detectors, dataset, cut, resume=True, on_progress=lambda *s: seen.append(s))
    assert {name.split("/")[0] for name in names} == {"plate"} and seen[0] == (10, 20, None)
    assert without_speed(found) == without_speed(whole)
    names.clear()
    again = evaluate(detectors, dataset, cut, resume=True)
    assert replace(again, started=found.started) == found and not names


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_an_interrupted_class_goes_on_where_it_was_saved(
    detectors: dict[str, Detector],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    options = EvaluateOptions(batch_size=2, mode=mode, resolution="native", classes="plate")
    whole, cut = evaluate(detectors, dataset, tmp_path / "whole", options), tmp_path / "cut"
    monkeypatch.setattr(parts, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(parts, "SHARE", 1e9)
    real, calls = scoring.Scorer.score, []

    def score(self: Any, batch: Sequence[Any]) -> Any:
        calls.append(len(batch))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(scoring.Scorer, "score", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate(detectors, dataset, cut, options)
    monkeypatch.setattr(scoring.Scorer, "score", real)
    assert (cut / "parts/state.pickle").exists()
    names = decoded(monkeypatch)
    found = evaluate(detectors, dataset, cut, options, resume=True)
    assert names == [f"plate/spot/00{i}.png" for i in (1, 2, 3, 4)]
    assert without_speed(found) == without_speed(whole)
    assert not (cut / "parts/state.pickle").exists()


def test_a_foreign_or_damaged_state_is_not_used(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    folder = parts.Parts(tmp_path / "out/parts")
    folder.folder.mkdir(parents=True)
    for state in (("x", 1, 0.0, Bad()), ("x", 1, 0.0, np.memmap), ("x", 1, 0.0, Path.unlink)):
        (folder.folder / parts.STATE_FILE).write_bytes(pickle.dumps(state))
        assert folder.load_state("x") is None
    assert not (tmp_path / "made").exists()
    (folder.folder / parts.STATE_FILE).write_bytes(pickle.dumps(("x", 1, 0.0, {})))
    assert folder.load_state("x") == (1, 0.0, {}) and folder.load_state("y") is None
    evaluate(one, dataset, tmp_path / "out", resume=True)


def test_mended_images_are_tried_again(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(one, dataset, tmp_path / "whole")
    path = dataset.root / "plate/test/good/001.png"
    good, out = path.read_bytes(), tmp_path / "out"
    path.write_bytes(good[:60])
    broken = evaluate(one, dataset, out)
    assert len(broken.failed) == 1
    names = decoded(monkeypatch)
    again = evaluate(one, dataset, out, resume=True)
    assert replace(again, started=broken.started) == broken and not names
    path.write_bytes(good)
    assert without_speed(evaluate(one, dataset, out, resume=True)) == without_speed(whole)
    assert {name.split("/")[0] for name in names} == {"plate"}


def test_resume_needs_the_same_settings(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, small_checkpoint: Make
) -> None:
    out = tmp_path / "out"
    evaluate(one, dataset, out)
    before = (out / "results.json").read_bytes()
    with pytest.raises(OutputError, match=r"protocol was 'exact' and is now 'anomalyclip'.*--overwrite"):
        evaluate(one, dataset, out, EvaluateOptions(protocol="anomalyclip"), resume=True)
    other = load_detectors((), [small_checkpoint()], image_size=40)
    with pytest.raises(OutputError, match=r"methods\.anomaly_clip\.image_size was 48 and is now 40"):
        evaluate(other, dataset, out, resume=True)
    with pytest.raises(OutputError, match=r"methods\.b was None"):
        evaluate({**one, "b": one["anomaly_clip"]}, dataset, out, resume=True)
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"):
        evaluate(one, dataset, out)
    with pytest.raises(BadOption, match="exclude"):
        evaluate(one, dataset, out, resume=True, overwrite=True)
    assert (out / "results.json").read_bytes() == before
    (out / "run.json").write_text("[")
    with pytest.raises(OutputError, match="damaged"):
        evaluate(one, dataset, out, resume=True)
    found = evaluate(one, dataset, out, EvaluateOptions(protocol="anomalyclip"), overwrite=True)
    assert read_results(out / "results.json") == found


def test_new_samples_are_seen_on_resume(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(one, dataset, out)
    less = replace(dataset, samples=dataset.samples[:-1])
    found = evaluate(one, less, out, resume=True)
    assert len(found.methods[0].classes["plate"].images) == 9


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


def test_results_inside_the_dataset_are_no_samples(one: dict[str, Detector], dataset: Dataset) -> None:
    out = dataset.root / "plate/test/out"
    first = evaluate(one, dataset, out, EvaluateOptions(save=("maps",)))
    again = evaluate(one, open_dataset(dataset.root), out, EvaluateOptions(save=("maps",)), overwrite=True)
    assert again.classes == first.classes


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


def test_names_that_are_no_text(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    odd = [replace(s, class_name="a\udcff", defect="b\udcff/..") for s in dataset.of_class("plate")]
    out = tmp_path / "out"
    found = evaluate(one, replace(dataset, samples=tuple(odd)), out, EvaluateOptions(save="maps"))
    assert list(found.classes) == ["a%FF"] and read_results(out / "results.json") == found
    maps = {p.relative_to(out).as_posix() for p in out.rglob("*.tiff")}
    assert "maps/anomaly_clip/a%FF/test/b%FF_/000.tiff" in maps and len(maps) == 10


def test_no_detectors(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="at least one method"):
        evaluate({}, dataset, tmp_path / "out")
