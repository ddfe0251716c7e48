"""Training as a program of its own: killed, in two processes, without a terminal."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from run.training_runs import lines, same


def _command(out: Path, data: Path, backbone: Path, *more: str) -> list[str]:
    fixed = ["-m", "blemish", "train", "anomaly_clip", "--data", str(data), "--backbone", str(backbone)]
    sizes = ["--image-size", "48", "--batch-size", "4", "--threads", "1", "--cache", "off"]
    return [*fixed, *sizes, "-o", str(out), *more]


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed(tmp_path: Path, data: Path, small_backbone: Path) -> None:
    whole = tmp_path / "whole"
    call = [sys.executable, *_command(whole, data, small_backbone, "--epochs", "12")]
    subprocess.run(call, check=True, capture_output=True)
    cut = tmp_path / "cut"
    again = [sys.executable, *_command(cut, data, small_backbone, "--epochs", "12", "--resume")]
    for seconds in (0.1, 0.4):
        process = subprocess.Popen(again, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not (cut / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(again, check=True, capture_output=True)
    assert same(load_file(whole / "checkpoint.safetensors"), load_file(cut / "checkpoint.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["4", "5"])
def test_two_processes_learn_what_one_does(
    batch: str, tmp_path: Path, data: Path, small_backbone: Path
) -> None:
    more = ["--epochs", "1", "--batch-size", batch]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(
        [sys.executable, *_command(one, data, small_backbone, *more)], check=True, capture_output=True
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    done = subprocess.run(
        [sys.executable, *launcher, *_command(two, data, small_backbone, *more)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (load_file(out / "checkpoint.safetensors") for out in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=2e-5)
    first, second = lines(one), lines(two)
    assert len(first) == len(second)
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-5)


def test_nothing_is_shown_without_a_terminal(
    tmp_path: Path, data: Path, small_backbone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from blemish.cli import main

    arguments = _command(tmp_path / "run", data, small_backbone, "--epochs", "1", "--json")[2:]
    assert main(arguments) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["steps"] == 5
    assert "checkpoint:" in captured.err
    assert "\r" not in captured.err
    assert main(arguments) == 2
    assert "--resume" in capfd.readouterr().err
    logging.getLogger().handlers.clear()
