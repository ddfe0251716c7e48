"""`blemish calibrate`: what is written where, what is left alone, reports and exit statuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish.checkpoint import load_checkpoint, read_meta, rewrite_checkpoint
from blemish.cli import main
from blemish.loading import EMBEDDED

Make = Callable[..., Path]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folders good and bad of 6 and 4 pictures with masks."""
    base = tmp_path / "nuts"
    for label, count in (("good", 6), ("bad", 4), ("mask", 0)):
        (base / label).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([len(label), i]).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(base / label / f"{i}.png")
    for i in range(4):
        mask = np.zeros((30, 40), dtype=np.uint8)
        mask[4:20, 5:30] = 255
        Image.fromarray(mask).save(base / "mask" / f"{i}.png")
    return base


@pytest.fixture
def checkpoint(small_checkpoint: Make, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    path = tmp_path / "mine.safetensors"
    shutil.copy(small_checkpoint(notes="trained on drawings"), path)
    return path


def test_own_checkpoint_in_place(
    root: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, tensors = load_checkpoint(checkpoint)
    link = tmp_path / "link.safetensors"
    link.symlink_to(checkpoint)
    status = main(["calibrate", "--data", str(root), "--checkpoint", str(link)])
    shown = capfd.readouterr()
    assert status == 0, shown.err
    assert "6 normal and 4 anomalous images, 4 with masks" in shown.out and "95 % interval" in shown.out
    assert "best F1 on nuts (test)" in shown.out and "these very images" in shown.out
    assert shown.err == f"thresholds written to {checkpoint}\n" and link.is_symlink()
    after, same = load_checkpoint(checkpoint)
    assert list(tensors) == list(same) and all(torch.equal(tensors[k], same[k]) for k in tensors)
    changed = {"image_threshold", "pixel_threshold", "notes"}
    for field in dataclasses.fields(after):
        differs = getattr(before, field.name) != getattr(after, field.name)
        assert differs == (field.name in changed), field.name
    assert after.notes.splitlines() == [
        "trained on drawings",
        "thresholds: best F1 on nuts (test), 6 normal and 4 anomalous images",
    ]
    assert [p for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_again_replaces_the_note(root: Path, checkpoint: Path) -> None:
    arguments = ["calibrate", "--data", str(root), "--checkpoint", str(checkpoint), "-q"]
    assert main(arguments) == 0 and main([*arguments, "--false-alarm-rate", "0.2"]) == 0
    notes = read_meta(checkpoint).notes.splitlines()
    assert len(notes) == 2 and notes[1].startswith("thresholds: false-alarm rate 0.2 on nuts")


def test_predict_decides_as_reported(
    root: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "deep" / "new.safetensors"
    before = digest(checkpoint)
    command = ["calibrate", "--data", str(root), "--checkpoint", str(checkpoint), "-o", str(new)]
    assert main([*command, "--false-alarm-rate", "0.3", "--json"]) == 0
    shown = capfd.readouterr()
    report = json.loads(shown.out)
    assert report["checkpoint"] == str(new) and digest(checkpoint) == before
    meta = read_meta(new)
    assert (report["image"], report["pixel"]) == (meta.image_threshold, meta.pixel_threshold)
    for label, key in (("good", "false_alarms"), ("bad", "detections")):
        out = tmp_path / label
        assert main(["predict", str(root / label), "-o", str(out), "--checkpoint", str(new), "-q"]) == 0
        found = rows(out)
        assert sum(row["is_anomalous"] for row in found) == report[key]["count"]
        if label == "good":
            assert sum(bool(row["regions"]) for row in found) == report["region_alarms"]["count"]
    assert report["false_alarms"]["count"] <= 0.3 * 6
    assert set(report["false_alarms"]) == {"value", "low", "high", "count", "total"}


def test_options_that_change_scores_are_stored(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    command = ["calibrate", "--data", str(root), "--checkpoint", str(checkpoint), "-o", str(new), "-q"]
    assert main([*command, "--image-size", "32", "--set", "sigma=2.0", "--tile", "24"]) == 0
    meta = read_meta(new)
    assert meta.image_size == 32 and meta.options["sigma"] == 2.0 and "tiles of 24 pixels" in meta.notes
    assert blemish.load(checkpoint=new).setup.image_size == 32


def test_config_file(root: Path, checkpoint: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'data = "{root}"\ncheckpoint = "{checkpoint}"\nfalse-alarm-rate = 0.4\n', encoding="utf-8"
    )
    assert main(["calibrate", "--config", str(config), "-q"]) == 0
    assert "false-alarm rate 0.4" in read_meta(checkpoint).notes
    assert main(["calibrate", "--config", str(config), "-q", "--false-alarm-rate", "0.2"]) == 0
    assert "false-alarm rate 0.2" in read_meta(checkpoint).notes


def test_embedded_checkpoints_are_never_changed(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = EMBEDDED / "anomaly_clip.safetensors"
    before = digest(source)
    for name, extra in (("clip_ac", []), ("anomaly_clip", ["--checkpoint", str(source)])):
        assert main(["calibrate", "--data", str(root), *extra]) == 2
        assert f"-o {name}-calibrated.safetensors" in capfd.readouterr().err
    assert main(["calibrate", "--data", str(root), "-o", str(source), "--overwrite"]) == 2
    assert "never changed" in capfd.readouterr().err
    new = tmp_path / "new.safetensors"
    given = ["--method", "anomaly_clip", "--false-alarm-rate", "0.2"]
    assert main(["calibrate", "--data", str(root), "-o", str(new), *given]) == 0
    assert digest(source) == before
    old, now = load_checkpoint(source), load_checkpoint(new)
    assert all(torch.equal(old[1][k], now[1][k]) for k in old[1]) and old[0].auxiliary == now[0].auxiliary
    assert now[0].image_threshold != old[0].image_threshold


def test_authors_files_are_never_changed(
    root: Path, small_backbone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from blemish.clip.weights import load_clip
    from blemish.methods import build
    from blemish.methods.official import write_official

    path = tmp_path / "epoch_15.pth"
    write_official(build("anomaly_clip", load_clip(small_backbone)), path)
    before = digest(path)
    command = ["calibrate", "--data", str(root), "--checkpoint", str(path), "--backbone", str(small_backbone)]
    assert main(command) == 2
    assert "-o epoch_15-calibrated.safetensors" in capfd.readouterr().err
    new = tmp_path / "new.safetensors"
    assert main([*command, "-o", str(new), "-q"]) == 0
    assert digest(path) == before
    detector = blemish.load(checkpoint=new, backbone=small_backbone)
    assert detector.setup.threshold is not None and detector.setup.pixel_threshold is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data"),
        (["--data", "nowhere"], "no such folder"),
        (["--data", "DATA", "--false-alarm-rate", "0"], "expected a share"),
        (["--data", "DATA", "--pixel-false-alarm-rate", "0.1"], "pass both"),
        (["--data", "DATA", "--split", "tst"], "expected one of test, train, all"),
        (["--data", "DATA", "-o", "x.pth"], "ends in .safetensors"),
        (["--data", "DATA/good"], "--false-alarm-rate"),
        (["--data", "DATA", "--checkpoint", "nope.safetensors"], "does not exist"),
        (["--data", "DATA", "--batch-size", "0"], "at least 1"),
    ],
)
def test_wrong_use_leaves_the_checkpoint(
    arguments: list[str],
    words: str,
    root: Path,
    checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = digest(checkpoint)
    given = [text.replace("DATA", str(root)) for text in arguments]
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(checkpoint)]
    assert main(["calibrate", *given]) == 2
    shown = capfd.readouterr()
    assert words in shown.err and shown.out == "" and len(shown.err.splitlines()) <= 2
    assert "Traceback" not in shown.err and digest(checkpoint) == before


def test_existing_files_are_kept(
    root: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"mine")
    command = ["calibrate", "--data", str(root), "--checkpoint", str(checkpoint), "-o", str(other), "-q"]
    assert main(command) == 2 and other.read_bytes() == b"mine"
    assert "--overwrite" in capfd.readouterr().err
    assert main([*command, "--overwrite"]) == 0 and read_meta(other).image_threshold is not None
    assert main([*command[:-2], str(checkpoint), "-q"]) == 0  # itself, by name


def test_failed_pictures(root: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "good" / "2.png").write_text("words")
    assert main(["calibrate", "--data", str(root), "--checkpoint", str(checkpoint)]) == 1
    shown = capfd.readouterr()
    assert "5 normal and 4 anomalous" in shown.out and "1 of 10 images failed" in shown.out
    assert "failed: " in shown.err and "2.png" in shown.err
    for path in root.rglob("*.png"):
        path.write_text("words")
    before = digest(checkpoint)
    assert main(["calibrate", "--data", str(root), "--checkpoint", str(checkpoint), "-q"]) == 2
    assert "none of the 10 images" in capfd.readouterr().err and digest(checkpoint) == before


def test_a_bare_folder_of_normal_pictures(
    root: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", "--data", str(root / "good"), "--checkpoint", str(checkpoint)]
    assert main([*command, "--false-alarm-rate", "0.01"]) == 0
    shown = capfd.readouterr().out
    assert "all 6 images are taken as normal" in shown and "that takes 99" in shown
    assert shown.count("cannot promise") == 1 and "anomalous images called" not in shown


def test_interruption_writes_nothing(
    root: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from blemish.detector import Detector

    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Detector, "infer", stop)
    before = digest(checkpoint)
    assert main(["calibrate", "--data", str(root), "--checkpoint", str(checkpoint)]) == 130
    assert "no checkpoint was written" in capfd.readouterr().err and digest(checkpoint) == before


def test_rewritten_checkpoints_keep_their_tensors(checkpoint: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.safetensors"
    rewrite_checkpoint(checkpoint, new, image_threshold=0.25)
    (old, tensors), (now, same) = load_checkpoint(checkpoint), load_checkpoint(new)
    assert now == dataclasses.replace(old, image_threshold=0.25)
    assert all(torch.equal(tensors[k], same[k]) and tensors[k].dtype == same[k].dtype for k in tensors)


def test_checkpoints_of_methods_that_learn_nothing(tmp_path: Path) -> None:
    from blemish.checkpoint import CheckpointMeta, save_checkpoint

    path = tmp_path / "none.safetensors"
    save_checkpoint(path, torch.nn.Module(), CheckpointMeta("clip", backbone="tiny"))
    rewrite_checkpoint(path, path, image_threshold=0.5)
    meta, tensors = load_checkpoint(path)
    assert meta.image_threshold == 0.5 and not tensors
