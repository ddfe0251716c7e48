"""`blemish synth`: options, resuming, messages, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blemish.cli import main


def run(*arguments: str) -> int:
    return main(["synth", "--size", "80", "--workers", "1", *arguments])


def test_a_dataset_is_written_and_extended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    assert run("-n", "4", "-o", str(out), "--seed", "2") == 0
    shown = capfd.readouterr()
    assert shown.out == "" and "4 pictures" in shown.err and "\x1b" not in shown.err
    assert len(list(out.glob("*/test/*/*.png"))) == 4
    assert run("-n", "6", "-o", str(out), "--seed", "2", "--json", "-q") == 0
    shown = capfd.readouterr()
    summary = json.loads(shown.out)
    assert shown.err == ""
    assert (summary["pictures"], summary["drawn"]) == (6, 2)
    assert summary["normal"] + summary["anomalous"] == 6


def test_families(tmp_path: Path) -> None:
    from blemish.synth import HELD_OUT

    out = tmp_path / "set"
    assert run("-n", "12", "-o", str(out), "--families", "held_out", "-q") == 0
    kinds = {p.name for p in out.glob("*/test/*")}
    assert kinds <= {"good", *HELD_OUT.defects}
    assert {p.name for p in out.iterdir() if p.is_dir()} <= {*HELD_OUT.materials, *HELD_OUT.shapes}


def test_configuration(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "synth.toml"
    config.write_text(f"count = 2\nseed = 7\nout = {json.dumps(str(tmp_path / 'set'))}\n")
    assert run("--config", str(config), "--seed", "8") == 0
    about = json.loads((tmp_path / "set/synth.json").read_text())
    assert (about["count"], about["seed"], about["size"]) == (2, 8, 80)
    config.write_text("counts = 2\n")
    assert run("--config", str(config)) == 2
    config.write_text("k = 2\n")
    assert run("--config", str(config)) == 2
    assert "count" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-n", "0"], "count is 0"),
        (["--size", "9"], "size is 9"),
        (["--families", "trainin"], "did you mean 'training'"),
        (["--workers", "0"], "workers is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["-n", "many"], "integer"),
    ],
)
def test_wrong_use(
    tmp_path: Path, arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("-o", str(tmp_path / "set"), *arguments) == 2
    shown = capfd.readouterr().err
    assert text in shown and len(shown.splitlines()) <= 2
    assert not (tmp_path / "set").exists()


def test_a_folder_of_something_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    assert run("-n", "1", "-o", str(tmp_path)) == 2
    assert "something else" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_interrupted(tmp_path: Path, workers: str) -> None:
    out = tmp_path / "set"
    command = [sys.executable, "-m", "blemish", "synth", "-n", "4000", "--size", "64", "-o", str(out)]
    process = subprocess.Popen([*command, "--workers", workers], stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if list(out.glob("*/test/*/*.png")):
            break
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    shown = process.communicate(timeout=60)[1]
    assert process.returncode == 130, shown
    assert "goes on" in shown and "Traceback" not in shown
    assert not list(out.rglob(".*.tmp"))
