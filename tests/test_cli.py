"""The command line: options, configuration, exit statuses, messages, standard input and output."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blemish import loading
from blemish.cli import main

Make = Callable[..., Path]


@pytest.fixture
def checkpoint(small_checkpoint: Make) -> str:
    return str(small_checkpoint())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def settings(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return found


def test_predict(checkpoint: str, draw: Make, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = draw("in/ä b.PNG").parent
    draw("in/deep/2.jpg")
    status = main(["predict", str(folder), "-o", str(out), "--checkpoint", checkpoint])
    shown = capfd.readouterr()
    assert status == 0 and shown.out == ""
    assert "2 of 2 images done" in shown.err and str(out / "index.html") in shown.err
    assert len(shown.err.splitlines()) == 2 and "\x1b" not in shown.err
    assert [Path(r["path"]).name for r in lines(out)] == ["2.jpg", "ä b.PNG"]


def test_json_lines_on_standard_output(
    checkpoint: str, draw: Make, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [str(draw(f"{i}.png")) for i in range(3)]
    missing = str(out.parent / "no.png")
    status = main(["predict", *paths, missing, "-o", str(out), "--checkpoint", checkpoint, "--json", "-q"])
    shown = capfd.readouterr()
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert status == 1 and shown.err.splitlines() == [f"failed: {missing}: {records[3]['error']}"]
    assert records == lines(out) and [r["path"] for r in records] == [*paths, missing]


def test_failures_are_named_on_standard_error(
    checkpoint: str, draw: Make, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = draw("1.png"), out.parent / "bad.png"
    bad.write_text("words")
    common = ["-o", str(out), "--checkpoint", checkpoint]
    assert main(["predict", str(good), str(bad), *common]) == 1
    shown = capfd.readouterr().err
    assert "bad.png" in shown and "not an image" in shown and "1 failed" in shown
    assert main(["predict", str(bad), *common, "--overwrite"]) == 2


def test_messages_of_odd_names_are_one_line_of_ours(
    checkpoint: str, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    strange, torn = out.parent / "a\nb\x1b[2J.png", out.parent / "torn.tif"
    strange.write_text("words")
    torn.write_bytes(b"II*\0" + (999).to_bytes(4, "little"))
    assert main(["predict", str(strange), str(torn), "-o", str(out), "--checkpoint", checkpoint]) == 2
    shown = capfd.readouterr().err
    assert "a\\nb\\x1b[2J.png: not an image" in shown and "\x1b" not in shown
    assert len(shown.splitlines()) == 4  # tifffile logs nothing beside our own line
    assert lines(out)[0]["path"] == str(strange)


def test_paths_on_standard_input(
    checkpoint: str, draw: Make, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [draw("a.png"), draw("b c.png")]
    text = io.TextIOWrapper(io.BytesIO("".join(f"{p}\n" for p in paths).encode()))
    monkeypatch.setattr(sys, "stdin", text)
    assert main(["predict", "-", "-o", str(out), "--checkpoint", checkpoint]) == 0
    assert [r["path"] for r in lines(out)] == [str(p) for p in paths]


def test_every_option_arrives(checkpoint: str, draw: Make, out: Path) -> None:
    arguments = [
        *("--method", "anomaly_clip", "--device", "cpu", "--precision", "fp32", "--image-size", "40"),
        *("--batch-size", "2", "--seed", "3", "--set", "sigma=2", "--set", "layers=[2, 0.5]"),
        *("--save", "map,mask", "--tile", "30", "--overlap", "0.5", "--class-name", "nut"),
        *("--threshold", "0.125", "--pixel-threshold", "0.25", "--limit", "2"),
    ]
    paths = [str(draw(f"{i}.png")) for i in range(3)]
    assert main(["predict", *paths, "-o", str(out), "--checkpoint", checkpoint, *arguments]) == 0
    found = settings(out)
    assert len(lines(out)) == 2 and {*lines(out)[0]["files"]} == {"map", "mask"}
    assert (found["image_size"], found["tile"], found["overlap"], found["class_name"]) == (40, 30, 0.5, "nut")
    assert (found["threshold"], found["pixel_threshold"], found["precision"]) == (0.125, 0.25, "fp32")
    assert (found["seed"], found["limit"], found["batch_size"]) == (3, 2, 2)
    assert (found["options"]["sigma"], found["options"]["layers"]) == (2.0, [2, 0.5])


def test_command_line_goes_before_file_before_checkpoint(checkpoint: str, draw: Make, out: Path) -> None:
    config = out.parent / "run.toml"
    config.write_text(
        f'image-size = 40\nbatch_size = 3\nsave = ["map"]\nsigma = 1\npreset = "paper"\ncheckpoint = "{checkpoint}"\n'
    )
    base = ["predict", str(draw("1.png")), "-o", str(out), "--config", str(config)]
    assert main(base) == 0
    found = settings(out)
    assert (found["image_size"], found["batch_size"], found["save"]) == (40, 3, ["map"])
    assert (found["options"]["sigma"], found["options"]["local_weight"]) == (1.0, 1.0)
    assert main([*base, "--image-size", "56", "--set", "sigma=0.5", "--overwrite"]) == 0
    assert (settings(out)["image_size"], settings(out)["options"]["sigma"]) == (56, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "50"], "48 or 56"),
        (["--method", "anomaly_clop"], "did you mean 'anomaly_clip'"),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999; expected 0 to"),
        (["--seed=-1"], "seed is -1; expected 0 to"),
        (["--set", "sigmaa=1"], "did you mean 'sigma'"),
        (["--set", "sigma"], "key=value"),
        (["--set", "sigma=[1"], "cannot read the value"),
        (["--set", "sigma=wide"], "sigma"),
        (["--set", "preset=papers"], "did you mean 'paper'"),
        (["--device", "gpu"], "cuda:N"),
        (["--precision", "int8"], "bf16"),
        (["--save", "overlay,maps"], "did you mean 'map'"),
        (["--batch-size", "0"], "at least 1"),
        (["--limit", "0"], "at least 1"),
        (["--config", "none.toml"], "none.toml"),
        (["--backbone", "Vit-L"], "ViT-L"),
        (["--resume", "--overwrite"], "exclude"),
        (["--nope"], "--nope"),
        (["--batch-size", "x"], "--batch-size"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    words: str,
    checkpoint: str,
    draw: Make,
    out: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    status = main(["predict", str(draw("1.png")), "-o", str(out), "--checkpoint", checkpoint, *arguments])
    shown = capfd.readouterr()
    assert status == 2 and words in shown.err and shown.out == ""
    assert len(shown.err.splitlines()) <= 2 and "Traceback" not in shown.err
    assert not out.exists()


def test_unknown_options_name_what_there_is_in_few_words(
    checkpoint: str, draw: Make, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["predict", str(draw("1.png")), "-o", str(out), "--checkpoint", checkpoint]
    assert main([*common, "--set", "sigmaa=1"]) == 2
    shown = capfd.readouterr().err
    # of the checkpoint's method, not of all methods together
    assert "did you mean 'sigma'" in shown and "anomaly_clip" in shown and "top_k" not in shown
    config = out.parent / "run.toml"
    for key, near in (("image_sise", "image_size"), ("sigmaa", "sigma")):
        config.write_text(f"{key} = 4\n")
        assert main([*common, "--config", str(config)]) == 2
        shown = capfd.readouterr().err
        assert f"did you mean '{near}'" in shown and str(config) in shown and len(shown) < 600


def test_wrong_use_before_any_command(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["predictt"], "predict"),
        (["predict"], "INPUT"),
        (["list", "cats"], "cats"),
        (["info", "no.file"], "does not exist"),
    ):
        assert main(arguments) == 2
        shown = capfd.readouterr().err
        assert words in shown and len(shown.splitlines()) <= 2
    assert main([]) == 2
    assert "Usage" in capfd.readouterr().err


def test_tracebacks_only_with_verbose(checkpoint: str, capfd: pytest.CaptureFixture[str]) -> None:
    for extra, expected in (([], False), (["--verbose"], True)):
        assert main(["info", "no.file", *extra]) == 2
        assert ("Traceback" in capfd.readouterr().err) is expected


def test_mistakes_in_the_program_are_short_too(
    checkpoint: str, draw: Make, out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(loading, "_load_backbone", broken)
    assert main(["predict", str(draw("1.png")), "-o", str(out), "--checkpoint", checkpoint]) == 2
    shown = capfd.readouterr().err
    assert "KeyError" in shown and "--verbose" in shown and len(shown.splitlines()) == 2


def test_an_earlier_run(checkpoint: str, draw: Make, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    common = ["predict", str(draw("1.png")), "-o", str(out), "--checkpoint", checkpoint]
    assert main(common) == 0
    assert main(common) == 2
    shown = capfd.readouterr().err
    assert "--resume" in shown and "--overwrite" in shown
    assert main([*common, "--resume"]) == 0
    assert "1 of them earlier" in capfd.readouterr().err
    assert main([*common, "--overwrite"]) == 0


def test_output_that_cannot_be_written(
    checkpoint: str, draw: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    target = tmp_path / "file" / "out"
    assert main(["predict", str(draw("1.png")), "-o", str(target), "--checkpoint", checkpoint]) == 2
    assert "file" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_from_outside(kind: int, checkpoint: str, draw: Make, out: Path) -> None:
    for i in range(400):
        draw(f"in/{i:03}.png")
    command = [sys.executable, "-m", "blemish", "predict", str(out.parent / "in"), "-o", str(out)]
    command += ["--checkpoint", checkpoint, "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True) as process:
        deadline = time.monotonic() + 60
        table = out / "predictions.jsonl"
        while (not table.exists() or table.stat().st_size < 2000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(kind)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in shown and "Traceback" not in shown
    before = lines(out)
    assert 0 < len(before) < 400
    assert all((out / r["files"]["overlay"]).exists() for r in before)
    assert not [p for p in out.rglob("*") if p.name.endswith(".tmp")]
    done = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and f"{len(before)} of them earlier" in done.stderr
    assert [Path(r["path"]).name for r in lines(out)] == [f"{i:03}.png" for i in range(400)]


def test_a_reader_that_goes_away(checkpoint: str, draw: Make, out: Path) -> None:
    paths = [str(draw(f"{i}.png")) for i in range(3)]
    command = [sys.executable, "-m", "blemish", "predict", *paths, "-o", str(out), "--checkpoint", checkpoint]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*command, "--json"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 2 and done.stderr == ""


def test_standard_output_that_cannot_be_written(checkpoint: str, draw: Make, out: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-m", "blemish", "predict", str(draw("1.png")), "-o", str(out), "--json"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*command, "--checkpoint", checkpoint],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: cannot write to standard output: no space left on device"]
