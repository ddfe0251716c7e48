"""A whole run: outputs, failures, resume, refusals, interruption, bounded memory."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import blemish
from blemish.data.images import find_images, read_image
from blemish.detector import Detector
from blemish.errors import BadOption, OutputError, UnknownName
from blemish.output.attention import attention_sheet
from blemish.output.tables import read_map
from blemish.run.predict import RunSummary, predict_folder

Make = Callable[..., Path]


@pytest.fixture
def detector(small_checkpoint: Make) -> Detector:
    return blemish.load(checkpoint=small_checkpoint())


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def predict(detector: Detector, inputs: Path | list[Path], out: Path, **options: Any) -> RunSummary:
    names = [str(p) for p in (inputs if isinstance(inputs, list) else [inputs])]
    return predict_folder(detector, find_images(names), out, **options)


def names_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_everything_is_written(detector: Detector, draw: Make, tmp_path: Path) -> None:
    for name in ("in/a/1.png", "in/b/1.png", "in/b/1.jpg", "in/Größe 2.PNG"):
        draw(name, (50, 20))
    out = tmp_path / "out"
    summary = predict(detector, tmp_path / "in", out, save=("overlay", "mask", "map"))
    assert (summary.total, summary.done, summary.failed, summary.exit_code) == (4, 4, 0, 0)
    found = lines(out)
    assert len(found) == 4 and len({r["path"] for r in found}) == 4
    for values in found:
        assert list(values) == [
            *("path", "score", "threshold", "is_anomalous", "width", "height", "map_max"),
            *("regions", "files", "seconds"),
        ]
        assert (values["width"], values["height"]) == (50, 20)
        single = detector.predict(values["path"])
        assert values["score"] == pytest.approx(single.score, abs=1e-5)
        np.testing.assert_allclose(read_map(out / values["files"]["map"]), single.map, atol=1e-5)
        mask = np.asarray(Image.open(out / values["files"]["mask"]))
        assert mask.shape == (20, 50) and set(np.unique(mask)) <= {0, 255}
        assert Image.open(out / values["files"]["overlay"]).size == (50, 20)
    assert len({values["files"]["map"] for values in found}) == 4
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [r["path"] for r in found]
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == "done" and info["counts"]["done"] == 4 and info["method"] == "anomaly_clip"
    assert info["checkpoint_sha256"] == detector.setup.checkpoint_sha256
    assert str(Path.home()) not in json.dumps(info) and str(tmp_path) not in json.dumps(info)
    assert not [name for name in names_below(out) if name.endswith(".tmp")]
    page = summary.gallery.read_text(encoding="utf-8")
    assert "Größe 2.PNG" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_only_tables_and_page_without_save(detector: Detector, draw: Make, tmp_path: Path) -> None:
    predict(detector, draw("in/1.png"), tmp_path / "out", save=())
    assert [n for n in names_below(tmp_path / "out") if not n.startswith(".")] == [
        "index.html",
        "predictions.csv",
        "predictions.jsonl",
        "run.json",
    ]
    assert lines(tmp_path / "out")[0]["files"] == {}


def test_failures_are_recorded_and_the_rest_goes_on(
    detector: Detector, draw: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    good = [draw(f"in/{i}.png") for i in (1, 5, 9)]
    (folder / "2.png").write_bytes(b"")
    (folder / "3.png").write_text("words")
    whole = draw("in/4.png", (80, 80)).read_bytes()
    (folder / "4.png").write_bytes(whole[: len(whole) // 2])
    nan = draw("in/6.png")
    (folder / "7.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "empty").mkdir()
    real = detector._forward
    shape = np.asarray(detector.prepare(nan).pixels)

    def forward(inputs: np.ndarray, *options: Any) -> Any:
        maps, *rest = real(inputs, *options)
        spoiled = np.isclose(inputs, shape).all(axis=(1, 2, 3))
        return np.where(spoiled[:, None, None], np.nan, maps), *rest

    monkeypatch.setattr(detector, "_forward", forward)
    out, seen = tmp_path / "out", []
    summary = predict(
        detector,
        [folder, tmp_path / "missing.png", tmp_path / "empty"],
        out,
        on_progress=lambda *state: seen.append(state),
    )
    found = lines(out)
    assert [r["path"] for r in found if "error" not in r] == [str(p) for p in good]
    errors = {Path(r["path"]).name: r["error"] for r in found if "error" in r}
    assert errors.keys() == {"2.png", "3.png", "4.png", "6.png", "7.png", "missing.png", "empty"}
    assert "NaN" in errors["6.png"] and "0 bytes" in errors["2.png"] and "no images" in errors["empty"]
    assert all(set(r) == {"path", "error"} for r in found if "error" in r)
    assert (summary.done, summary.failed, summary.exit_code) == (3, 7, 1)
    assert seen[0] == (0, 10, None) and seen[-1][:2] == (10, 10)
    assert sum(error is not None for _, _, error in seen) == 7
    assert [p for p in names_below(out) if p.startswith("overlays")] == [
        f"overlays/{i}.png" for i in (1, 5, 9)
    ]


def test_nothing_done_is_status_two(detector: Detector, tmp_path: Path) -> None:
    summary = predict(detector, tmp_path / "no.png", tmp_path / "out")
    assert (summary.exit_code, summary.anomalous) == (2, None)
    with pytest.raises(BadOption, match="no images"):
        predict_folder(detector, [], tmp_path / "other")


def test_decisions_are_counted(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    paths = [draw(f"{i}.png") for i in range(5)]
    scores = sorted(r.score for r in blemish.load(checkpoint=small_checkpoint()).predict_many(paths))
    middle = blemish.load(checkpoint=small_checkpoint(image_threshold=(scores[1] + scores[2]) / 2))
    assert predict(middle, paths, tmp_path / "out").anomalous == 3
    none = blemish.load(checkpoint=small_checkpoint(image_threshold=None))
    assert predict(none, paths, tmp_path / "none").anomalous is None


def test_resume_after_a_kill(
    detector: Detector, draw: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [draw(f"in/{i}.png") for i in range(6)]
    (tmp_path / "in" / "bad.png").write_text("x")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    predict(detector, tmp_path / "in", whole)
    shutil.copytree(whole, cut)
    text = (cut / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "predictions.jsonl").write_bytes(b"".join(text[:3]) + text[3][:40])
    for name in ("index.html", "predictions.csv", "overlays/3.png", "overlays/4.png"):
        (cut / name).unlink()
    decoded: list[str] = []
    real = Detector.prepare
    monkeypatch.setattr(
        Detector, "prepare", lambda self, path: (decoded.append(str(path)), real(self, path))[1]
    )
    fresh: list[Any] = []
    summary = predict(detector, tmp_path / "in", cut, resume=True, on_record=fresh.append)
    assert sorted(decoded) == sorted([*(str(p) for p in paths[3:]), str(tmp_path / "in" / "bad.png")])
    assert (summary.total, summary.done, summary.skipped, summary.failed) == (7, 6, 3, 1)
    assert [r["path"] for r in fresh] == [r["path"] for r in lines(whole)[3:]]
    assert names_below(cut) == names_below(whole)
    for ours, theirs in zip(lines(cut), lines(whole), strict=True):
        assert ours["path"] == theirs["path"] and ours.get("files") == theirs.get("files")
        assert ours.get("score") == pytest.approx(theirs.get("score"), abs=1e-5)
    again = predict(detector, tmp_path / "in", cut, resume=True)
    assert (again.skipped, again.done, again.exit_code) == (6, 6, 1)


def test_resume_needs_the_same_settings(
    detector: Detector, draw: Make, tmp_path: Path, small_checkpoint: Make
) -> None:
    path, out = draw("1.png"), tmp_path / "out"
    predict(detector, path, out)
    before = (out / "predictions.jsonl").read_bytes()
    other = blemish.load(checkpoint=small_checkpoint(), image_size=40)
    with pytest.raises(OutputError, match=r"image_size was 48 and is now 40.*--overwrite"):
        predict(other, path, out, resume=True)
    with pytest.raises(OutputError, match="save was"):
        predict(detector, path, out, resume=True, save=("map",))
    (out / "run.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        predict(detector, path, out, resume=True)
    assert (out / "predictions.jsonl").read_bytes() == before


def test_an_earlier_run_is_not_touched_unasked(detector: Detector, draw: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    predict(detector, draw("1.png"), out)
    before = (out / "predictions.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"):
        predict(detector, draw("2.png"), out)
    assert (out / "predictions.jsonl").read_bytes() == before
    predict(detector, draw("2.png"), out, overwrite=True)
    assert [Path(r["path"]).name for r in lines(out)] == ["2.png"]
    assert (out / "mine.txt").read_text() == "keep" and (out / "overlays" / "1.png").exists()
    with pytest.raises(BadOption, match="exclude"):
        predict(detector, draw("2.png"), out, overwrite=True, resume=True)


def test_output_inside_the_input_folder(detector: Detector, draw: Make, tmp_path: Path) -> None:
    draw("in/1.png")
    for _ in range(2):
        summary = predict(detector, tmp_path / "in", tmp_path / "in", save=("overlay", "map"), overwrite=True)
        assert summary.total == 1


def test_impossible_output(detector: Detector, draw: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        predict(detector, draw("1.png"), tmp_path / "file" / "out")
    with pytest.raises(UnknownName, match="overlay"):
        predict(detector, draw("1.png"), tmp_path / "out", save=("overlays",))
    assert not (tmp_path / "out").exists()


def test_a_path_of_the_backbone_stays_private(
    small_backbone: Path, small_checkpoint: Make, draw: Make, tmp_path: Path
) -> None:
    detector = blemish.load(backbone=small_backbone, checkpoint=small_checkpoint())
    predict(detector, draw("1.png"), tmp_path / "out")
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["backbone"] == small_backbone.name


def test_masks_need_a_threshold(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    bare = blemish.load(checkpoint=small_checkpoint(pixel_threshold=None))
    with pytest.raises(BadOption, match="--pixel-threshold"):
        predict(bare, draw("1.png"), tmp_path / "out", save=("mask",))


def test_a_full_disk_ends_the_run_with_whole_files(
    detector: Detector, draw: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = [draw(f"{i}.png") for i in range(9)], tmp_path / "out"
    real, calls = os.replace, 0

    def full(source: Any, target: Any) -> None:
        nonlocal calls
        calls += str(target).endswith(".png")
        if calls > 3 and str(target).endswith(".png"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="no space left"):
        predict(detector, paths, out, batch_size=2)
    monkeypatch.undo()
    done = lines(out)
    assert 0 < len(done) <= 3 and all((out / r["files"]["overlay"]).exists() for r in done)
    assert not [name for name in names_below(out) if name.endswith(".tmp")]
    assert predict(detector, paths, out, resume=True).done == 9


def test_interruption_leaves_whole_lines(
    detector: Detector, draw: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = [draw(f"{i}.png") for i in range(12)], tmp_path / "out"
    real, calls = detector.infer, 0

    def infer(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(detector, "infer", infer)
    with pytest.raises(KeyboardInterrupt):
        predict(detector, paths, out, batch_size=2)
    assert (out / "predictions.jsonl").read_bytes().endswith((b"\n", b""))
    assert len(lines(out)) <= 6 and not (out / "index.html").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    monkeypatch.undo()
    summary = predict(detector, paths, out, resume=True)
    assert summary.done == 12 and [r["path"] for r in lines(out)] == [str(p) for p in paths]


def test_batches_shrink_when_memory_is_short(
    detector: Detector, draw: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = detector._forward

    def forward(inputs: np.ndarray, *options: Any) -> Any:
        if len(inputs) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return real(inputs, *options)

    monkeypatch.setattr(detector, "_forward", forward)
    assert predict(detector, [draw(f"{i}.png") for i in range(3)], tmp_path / "out").exit_code == 0

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a mistake in the model")

    monkeypatch.setattr(detector, "_forward", broken)
    with pytest.raises(RuntimeError, match="mistake"):
        predict(detector, draw("0.png"), tmp_path / "other")


def test_tiled_run(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    tiled = blemish.load(checkpoint=small_checkpoint(), tile=32)
    paths = [draw("small.png", (30, 30)), draw("large.png", (90, 70)), draw("s2.png", (9, 9))]
    predict(tiled, paths, tmp_path / "out", save=("map",))
    for values in lines(tmp_path / "out"):
        expected = tiled.predict(values["path"])
        assert values["score"] == pytest.approx(expected.score, abs=1e-5)
        assert read_map(tmp_path / "out" / values["files"]["map"]).shape == expected.map.shape


@pytest.mark.slow
def test_memory_stays_flat(detector: Detector, draw: Make, tmp_path: Path) -> None:
    paths = [draw(f"{i}.png", (120, 90)) for i in range(360)]
    marks: list[int] = []

    def mark(record: Any) -> None:
        marks.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        predict(detector, paths, tmp_path / "out", on_record=mark)
    finally:
        tracemalloc.stop()
    early, late = max(marks[60:150]), max(marks[270:])
    assert late < early + 1_000_000


@pytest.mark.parametrize("method", ["vcp_clip", "vcp_clip_plus", "vip2_clip"])
def test_attention_is_written(method: str, small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    detector = blemish.load(checkpoint=small_checkpoint(method))
    for i in range(3):
        draw(f"in/{i}.png", (60, 40))
    (tmp_path / "in/4.png").write_bytes(b"")
    out = tmp_path / "out"
    assert predict(detector, tmp_path / "in", out, save=("attention",), batch_size=2).done == 3
    plain = {r["path"]: r for r in lines(out)}
    assert sorted(names_below(out / "attention")) == ["0.npy", "0.png", "1.npy", "1.png", "2.npy", "2.png"]
    for path, values in plain.items():
        if "error" in values:
            continue
        files = values["files"]
        assert list(files) == ["attention", "attention_data"]
        maps = np.load(out / files["attention_data"])
        assert maps.shape == (4, 8, 2, 6, 6) and maps.dtype == np.float32
        np.testing.assert_allclose(maps.sum(axis=(3, 4)), 1, atol=1e-5)
        sheet = np.asarray(Image.open(out / files["attention"]))
        np.testing.assert_array_equal(sheet, attention_sheet(read_image(path), maps, (1, 2, 3, 4)))
        # The score is that of a run without attention, and a picture's maps are its own.
        assert values["score"] == pytest.approx(detector.predict(path).score, abs=1e-5)
        (alone,) = detector.infer([detector.prepare(path)], attention=True)
        assert alone.attention is not None
        np.testing.assert_allclose(alone.attention, maps, atol=1e-5)
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["attention_data"] == "attention/0.npy"
    assert detector.infer([detector.prepare(tmp_path / "in/0.png")])[0].attention is None


@pytest.mark.parametrize(
    ("method", "options", "loading", "text"),
    [
        ("anomaly_clip", {}, {}, "the texts of anomaly_clip do not"),
        ("vcp_clip", {"post_vcp": False}, {}, "this vcp_clip was made without attention"),
        ("vip2_clip", {"use_fgp": False}, {}, "this vip2_clip was made without attention"),
        ("vip2_clip", {}, {"tile": 20}, "leave out --tile"),
    ],
)
def test_attention_that_is_not_there_is_refused_at_once(
    method: str, options: Any, loading: Any, text: str, small_checkpoint: Make, draw: Make, tmp_path: Path
) -> None:
    detector = blemish.load(checkpoint=small_checkpoint(method, options), **loading)
    with pytest.raises(BadOption, match=text):
        predict(detector, draw("1.png"), tmp_path / "out", save=("overlay", "attention"))
    assert not (tmp_path / "out").exists()
