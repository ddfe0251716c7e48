"""`blemish evaluate` on the command line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.cli import main
from blemish.run.results import Evaluation, read_results

Make = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes in MVTec's layout; `bag` has no masks."""
    rng = np.random.default_rng(1)
    for name in ("bag", "cup"):
        for i in range(3):
            for kind in ("good", "hole"):
                path = tmp_path / "set" / name / "test" / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(90, 160, (36, 44, 3), dtype=np.uint8)
                mask = np.zeros((36, 44), dtype=np.uint8)
                if kind == "hole":
                    mask[8:20, 10 + i : 24] = 255
                    pixels[mask > 0] = 5
                    if name == "cup":
                        outline = tmp_path / "set/cup/ground_truth/hole" / f"{i}_mask.png"
                        outline.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(mask).save(outline)
                Image.fromarray(pixels).save(path)
    return tmp_path / "set"


@pytest.fixture
def common(data: Path, small_checkpoint: Make, tmp_path: Path) -> list[str]:
    return [
        *("evaluate", "--data", str(data), "-o", str(tmp_path / "out")),
        *("--checkpoint", str(small_checkpoint())),
    ]


def test_tables_and_files(common: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(common) == 0
    shown = capfd.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].startswith("anomaly_clip, ") and "\x1b" not in shown.out + shown.err
    table = [line.split() for line in lines if line.startswith(" ") and line.strip()]
    rows = {
        words[0]: words[1:] for words in table if words[0] in ("bag", "cup", "mean") and words[1] != "over"
    }
    assert rows["bag"][:2] == ["3", "3"] and rows["bag"][-5:] == ["–"] * 5 and "–" not in rows["cup"]
    assert rows["mean"][:2] == ["6", "6"]
    assert "resolution 48×48, AUPRO exact to FPR 0.3" in shown.out and "smoothing sigma 4" in shown.out
    assert "mean over 1 of 2 classes for pixel AUROC" in shown.out
    assert shown.out.count("bag: no masks for its 3 anomalous images") == 1
    assert "12 of 12 images done, 1 method" in shown.err and "results.json" in shown.err
    found = read_results(tmp_path / "out/results.json")
    percent = 100 * (found.methods[0].classes["cup"].metrics["image_auroc"].value or 0)
    assert rows["cup"][2] == f"{percent:.1f}"
    with (tmp_path / "out/results.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["bag", "cup", "mean"]


def test_json_on_standard_output(
    common: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*common, "--json", "--quiet"]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert Evaluation.from_json(json.loads(shown.out)) == read_results(tmp_path / "out/results.json")


def test_several_checkpoints_and_options(
    common: list[str], small_checkpoint: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--checkpoint", f"second={small_checkpoint('vcp_clip')}", "--set", "second.sigma=1"]
    options = ["--resolution", "32", "--protocol", "anomalyclip", "--fpr-limit", "0.1", "--strict-iou"]
    options += ["--score-rule", "topk:9", "--mode", "streaming", "--connectivity", "4", "--save", "maps"]
    assert main([*common, *more, *options]) == 0
    shown = capfd.readouterr().out
    first, second = read_results(tmp_path / "out/results.json").methods
    assert (first.label, second.label, second.method) == ("anomaly_clip", "second", "vcp_clip")
    assert (first.protocol.smoothing, second.protocol.smoothing) == (4.0, 1.0)
    how = first.protocol
    assert (how.resolution, how.protocol, how.fpr_limit, how.connectivity) == (32, "anomalyclip", 0.1, 4)
    assert (how.mode, how.strict_iou, how.score_rule) == ("streaming", True, "topk:9")
    mean = read_results(tmp_path / "out/results.json").methods[1].mean["image_auroc"].value or 0
    assert shown.splitlines()[-2].split()[:2] == ["second", f"{100 * mean:.1f}"]
    assert "second (vcp_clip)" in shown and "error bounds of the streaming metrics" in shown
    assert (tmp_path / "out/maps/second/cup/test/hole/2.tiff").exists()


def test_configuration_file(common: list[str], data: Path, tmp_path: Path) -> None:
    config = tmp_path / "e.toml"
    config.write_text(
        f'data = "{data}"\nclasses = ["cup"]\nresolution = "native"\nsigma = 2\nlimit = 4\n'
        f'checkpoint = ["{common[-1]}"]\nout = "{tmp_path / "conf"}"\n'
    )
    assert main(["evaluate", "--config", str(config), "--limit", "2"]) == 0
    found = read_results(tmp_path / "conf/results.json")
    assert list(found.classes) == ["cup"] and found.classes["cup"].normal == 1
    assert found.methods[0].protocol.resolution == "native"
    assert found.methods[0].protocol.smoothing == 2.0


def test_failed_images_are_status_one(
    common: list[str], data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / "cup/test/good/1.png").write_text("x")
    assert main(common) == 1
    shown = capfd.readouterr()
    assert (
        shown.err.startswith("failed: cup/test/good/1.png: ")
        and "11 of 12 images done, 1 failed" in shown.err
    )
    assert "cup: 1 images failed and are in no number" in shown.out
    for path in data.rglob("test/*/*.png"):
        path.write_text("x")
    assert main([*common, "--overwrite"]) == 2


def test_an_earlier_run_is_kept(common: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(common) == 0
    assert main(common) == 2
    assert "holds an earlier run" in capfd.readouterr().err
    assert main([*common, "--resume"]) == 0
    assert main([*common, "--resume", "--no-pixel"]) == 2
    assert "no_pixel was False and is now True" in capfd.readouterr().err
    assert main([*common, "--overwrite", "--no-pixel"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no dataset given; name its folder with --data"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "DATA", "--dataset", "mvtek"], "did you mean 'mvtec'"),
        (["--data", "DATA", "--classes", "cap"], "did you mean 'cup'"),
        (["--data", "DATA", "--method", "vcp_clip,anomaly_clap"], "did you mean 'anomaly_clip'"),
        (["--data", "DATA", "--resolution", "-3"], "518, or native"),
        (["--data", "DATA", "--method", "anomaly_clip", "--set", "sigmma=3"], "did you mean 'sigma'"),
        (["--data", "DATA", "--limit", "0"], "limit is 0"),
        (["--data", "DATA", "--split", "val"], "test, train, all"),
        (["--data", "BARE"], "blemish predict"),
    ],
)
def test_wrong_use(
    arguments: list[str], words: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (20, 20)).save(bare / "1.png")
    given = [{"DATA": str(data), "BARE": str(bare)}.get(a, a) for a in arguments]
    assert main(["evaluate", "-o", str(tmp_path / "out"), *given]) == 2
    shown = capfd.readouterr()
    assert words in shown.err and len(shown.err.splitlines()) <= 2 and "Traceback" not in shown.err
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.slow
def test_a_kill_and_a_resume(common: list[str], data: Path, tmp_path: Path) -> None:
    for i in range(3, 60):
        for name in ("bag", "cup"):
            source = data / name / "test/good/0.png"
            (source.parent / f"{i}.png").write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "blemish", *common, "--batch-size", "1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out/parts/000.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    if run.returncode == 130:
        assert "--resume goes on" in errors and not (tmp_path / "out/results.json").exists()
    assert main([*common, "--batch-size", "1", "--resume"]) == 0
    resumed = read_results(tmp_path / "out/results.json").methods[0].classes
    fresh = str(tmp_path / "fresh")
    assert main([fresh if part == str(tmp_path / "out") else part for part in common]) == 0
    whole = read_results(tmp_path / "fresh/results.json").methods[0].classes
    assert resumed["bag"].counts == whole["bag"].counts
    assert resumed["cup"].metrics["pixel_aupro"].value == pytest.approx(
        whole["cup"].metrics["pixel_aupro"].value, abs=1e-4
    )
