"""Runs at scale in a cluster of Ray's that others have started, with the token that it asks for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blemish.cli import main
from blemish.output.tables import read_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Ray has clusters on Linux and macOS only"),
]
Make = Callable[..., Path]
TOKEN = "0123456789abcdef0123456789abcdef"
START = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"]


@dataclass(frozen=True)
class Head:
    """A machine's worth of cluster: `ray start --head` in the foreground, and where it answers."""

    process: subprocess.Popen[bytes]
    address: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster with one core that asks for `TOKEN`, on a port and in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Sockets lie in the folder, so its path has to be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "start.log")
        options = [f"--port={port}", "--object-store-memory=100000000", f"--temp-dir={folder}"]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", *START, *options],
                env=environment(RAY_AUTH_TOKEN=TOKEN),
                stdout=stream,
                stderr=stream,
            )
        try:
            until = time.monotonic() + 240
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield Head(process, f"127.0.0.1:{port}")
        finally:
            process.terminate()  # it ends what it started
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def environment(**more: str) -> dict[str, str]:
    """That of this process, without what it may say of other clusters, for one that asks for tokens."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"} | more


def predict(inputs: Path, out: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`blemish predict --engine ray` as users run it."""
    command = [sys.executable, "-m", "blemish", "predict", str(inputs), "--engine", "ray", "-o", str(out)]
    return subprocess.run(
        [*command, "--threads", "1", "--precision", "fp32", "--save", "none", *more],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_scores_in_a_running_cluster_and_leaves_it_running(
    head: Head, small_checkpoint: Make, draw: Make, tmp_path: Path
) -> None:
    for number in range(3):
        draw(f"in/{number}.png")
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    checkpoint, local, out = str(small_checkpoint()), tmp_path / "local", tmp_path / "out"
    given = ["--checkpoint", checkpoint, "--precision", "fp32", "--save", "none"]
    assert main(["predict", str(tmp_path / "in"), *given, "-o", str(local)]) == 1
    options = ["--checkpoint", checkpoint, "--address", head.address]
    done = predict(tmp_path / "in", out, *options, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 1, done.stderr
    found, expected = (list(read_records(place / "predictions.jsonl")) for place in (out, local))
    assert [v["path"] for v in found] == [v["path"] for v in expected] and len(found) == 4
    assert found[3] == expected[3] and "error" in found[3]
    for name in ("score", "map_max"):
        assert [v[name] for v in found[:3]] == pytest.approx([v[name] for v in expected[:3]], abs=2e-6)
    assert counts(out) == {"total": 4, "done": 3, "failed": 1, "skipped": 0}
    assert json.loads((out / "run.json").read_text())["workers"] == 1

    # The cluster is there for the next run, which joins it to compare the model's settings.
    assert head.process.poll() is None
    draw("in/broken.png")
    again = predict(tmp_path / "in", out, *options, "--resume", RAY_AUTH_TOKEN=TOKEN)
    assert again.returncode == 0, again.stderr
    assert counts(out) == {"total": 4, "done": 4, "failed": 0, "skipped": 3}
    assert head.process.poll() is None


@pytest.mark.parametrize(
    "variables", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token"}]
)
def test_without_the_token_of_the_cluster(
    variables: dict[str, str], head: Head, draw: Make, tmp_path: Path
) -> None:
    """Another one, none, and none where one is meant to be."""
    draw("in/a.png")
    started = time.monotonic()
    done = predict(
        tmp_path / "in", tmp_path / "out", "--address", head.address, HOME=str(tmp_path), **variables
    )
    assert done.returncode == 2, done.stderr
    assert f"the Ray cluster at {head.address} asks for a token" in done.stderr
    assert done.stderr.count("\n") == 1 and "RAY_AUTH_TOKEN" in done.stderr
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - started < 300
    assert head.process.poll() is None


def counts(out: Path) -> dict[str, Any]:
    """Of a run, without the verdicts."""
    found = json.loads((out / "run.json").read_text())["counts"]
    return {key: found[key] for key in ("total", "done", "failed", "skipped")}
