"""`blemish serve` as a program of its own, and `blemish calibrate --from-db` after it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

import blemish
from blemish.checkpoint import read_meta
from blemish.cli import main
from blemish.deploy.history import Filter, History, Inspection
from blemish.deploy.history_databases import open_database
from blemish.deploy.history_models import describe_model, fingerprint, weights_hash
from blemish.predictor import Predictor
from serving import form, png

Make = Callable[..., Path]


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program on a free port, and the first line that it prints."""
    command = [sys.executable, "-m", "blemish", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def predict(url: str, data: bytes) -> tuple[int, dict]:
    body, kind = form((("part.png", data),), {})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/predict", body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture
def checkpoint(small_checkpoint: Make, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copy(small_checkpoint(), tmp_path / "mine.safetensors"))


@pytest.mark.slow
def test_from_start_to_end(checkpoint: Path, tmp_path: Path) -> None:
    database = tmp_path / "h.db"
    with program("--checkpoint", str(checkpoint), "--db", str(database), "--json", "--threads", "1") as (
        process,
        line,
    ):
        url = json.loads(line)["url"]
        assert url.startswith("http://127.0.0.1:")
        status, answer = predict(url, png(seed="x"))
        assert status == 200
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(predict, url, png(seed=str(i))) for i in range(8)]
            wait(futures, return_when=FIRST_COMPLETED)
            process.send_signal(signal.SIGTERM)
            # A connection that the server had not yet taken may be reset; what it answers is whole.
            done = [future.result() for future in futures if not future.exception()]
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    assert done and all(status == 200 for status, _ in done) and out == ""
    lines = [json.loads(text) for text in err.splitlines()]
    assert lines[0]["message"] == "ready" and lines[-1]["message"] == "stopped"
    detector = blemish.load(checkpoint=checkpoint)
    with contextlib.closing(History(open_database(database))) as history:
        items = list(history.all(Filter()))
        assert len(items) == 1 + len(done)
        assert set(history.models()) == {fingerprint(describe_model(detector, checkpoint))}
    assert items[-1]["score"] == answer["results"][0]["score"] and items[-1]["sha256"]


def test_wrong_use(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "words.toml"
    names.write_text('nut = "steel nut"\n')
    for arguments, words in (
        (["--host", "0.0.0.0"], "--token"),
        (["--port", "99999"], "port is 99999"),
        (["--keep", str(tmp_path)], "--db"),
        (["--db", f"{tmp_path}/x.db", "--queue", "1"], "queue is 1"),
        (["--class-names", str(names)], "--class-names has words for --class-name"),
        (["--class-names", str(names), "--class-name", "nutt"], "did you mean 'nut'"),
        (["--db", "postgresql://u:hu%zzsh@127.0.0.1:1/x", "--port", "0"], "special characters"),
        (["--port", "0", "--runtime", str(tmp_path / "no.onnx")], "no.onnx"),
    ):
        assert main(["serve", *arguments]) == 2
        shown = capfd.readouterr()
        assert words in shown.err and shown.err.count("\n") <= 2 and shown.out == ""
        assert "hu%zzsh" not in shown.err


def test_images_are_scored_by_the_rule_asked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served: list[Predictor] = []
    monkeypatch.setattr(
        "blemish.deploy.serve_run.run_service", lambda options, load, on_ready: served.append(load()[0])
    )
    rules = ("native", "max", "topk:7")
    for rule in rules:
        assert main(["serve", "--checkpoint", str(checkpoint), "--score-rule", rule]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    scores = [predictor.predict(picture).score for predictor in served]
    expected = [blemish.load(checkpoint=checkpoint, score_rule=rule).predict(picture).score for rule in rules]
    assert scores == pytest.approx(expected, abs=1e-6) and len({f"{score:.4f}" for score in scores}) == 3
    # the checkpoint's threshold holds for its own rule alone
    assert [predictor.setup.threshold for predictor in served] == [0.5, None, None]
    capfd.readouterr()
    assert main(["serve", "--checkpoint", str(checkpoint), "--score-rule", "mean"]) == 2
    assert "expected native, max, or topk:K" in capfd.readouterr().err


def record(history: History, model: str, scores: dict[str, list[float]]) -> None:
    """Inspections of different pictures with verdicts ("none": without)."""
    for verdict, values in scores.items():
        for score in values:
            called = verdict in ("confirmed", "false_alarm")
            sha256 = f"{verdict}{score}"
            one = Inspection(
                "2026-11-22T06:00:00.000000Z", "a", sha256, 4, 3, score, 0, 1, 0.5, None, called, model
            )
            (number,) = history.add([one])
            if verdict != "none":
                history.judge(number, verdict)


@pytest.fixture
def model(checkpoint: Path) -> str:
    return fingerprint(describe_model(blemish.load(checkpoint=checkpoint), checkpoint))


@pytest.fixture
def database(tmp_path: Path, model: str, checkpoint: Path) -> Path:
    path = tmp_path / "judged.db"
    with contextlib.closing(History(open_database(path))) as history:
        about = describe_model(blemish.load(checkpoint=checkpoint), checkpoint)
        history.add_model(model, about)
        history.add_model("other", about | {"image_size": 999})
        record(
            history,
            model,
            {
                "correct": [0.1, 0.2, 0.3],
                "false_alarm": [0.55],
                "missed": [0.45],
                "confirmed": [0.7, 0.8, 0.9],
                "none": [0.95] * 4,
            },
        )
        record(history, "other", {"correct": [0.99], "confirmed": [0.01]})
    return path


def test_best_f1_of_verdicts(checkpoint: Path, database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, tensors = read_meta(checkpoint), weights_hash(checkpoint)
    arguments = ["calibrate", "--from-db", str(database), "--checkpoint", str(checkpoint)]
    for _ in range(2):  # the fingerprint does not change with the thresholds
        assert main(arguments) == 0
        shown = capfd.readouterr()
        assert "4 normal and 4 anomalous images" in shown.out and "the pixel threshold stays" in shown.out
        assert "8 of 12 inspections" in shown.out and shown.err == f"thresholds written to {checkpoint}\n"
        after = read_meta(checkpoint)
        # Of 0.45 and 0.7 on, F1 is 8/9 and 6/7.
        assert after.image_threshold == pytest.approx((0.3 + 0.45) / 2)
        assert after.pixel_threshold == before.pixel_threshold and weights_hash(checkpoint) == tensors
    assert main([*arguments, "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["normal"] == 4


def test_false_alarm_rate_of_verdicts(
    checkpoint: Path, database: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["calibrate", "--from-db", str(database), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--false-alarm-rate", "0.2"]) == 0
    assert read_meta(checkpoint).image_threshold == pytest.approx(0.55, abs=1e-4)
    assert read_meta(checkpoint).image_threshold > 0.55
    assert "20.0%" in capfd.readouterr().out


def test_pictures_count_once(
    checkpoint: Path, database: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(History(open_database(database))) as history:
        item = history.page(Filter(verdict="missed"), 1)[0]
        known = {key: item[key] for key in Inspection.__dataclass_fields__}
        (again,) = history.add([replace(Inspection(**known), score=0.45)])
        history.judge(again, "correct")  # the later verdict holds
    assert main(["calibrate", "--from-db", str(database), "--checkpoint", str(checkpoint), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["normal"], found["anomalous"]) == (5, 3) and found["total"] == 9


def test_too_few_verdicts(checkpoint: Path, database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = checkpoint.read_bytes()
    with contextlib.closing(History(open_database(database))) as history:
        for item in history.all(Filter(decision="anomalous")):
            history.judge(item["id"], None)
    base = ["calibrate", "--checkpoint", str(checkpoint), "--from-db"]
    for arguments, words in (
        ([str(database)], "3 images judged normal and 1 judged anomalous of 12"),
        ([str(database), "--image-size", "32"], "image_size 48, here 32"),
        ([str(database), "--data", "x"], "exclude each other"),
        ([str(database), "--pixel-false-alarm-rate", "0.1"], "verdicts are on images"),
        ([str(database.parent / "none.db")], "no history"),
    ):
        assert main([*base, *arguments]) == 2
        shown = capfd.readouterr()
        assert words in shown.err and shown.err.count("\n") <= 2
    assert checkpoint.read_bytes() == before and not (database.parent / "none.db").exists()
    assert main([*base, str(database), "--false-alarm-rate", "0.5"]) == 0


def test_verdicts_on_an_exported_model_count(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    detector, path = blemish.load(checkpoint=checkpoint), tmp_path / "exported.db"
    runtime = replace(detector.setup, runtime="onnx", runtime_sha256="ab")
    with contextlib.closing(History(open_database(path))) as history:
        for precision in ("int8", detector.precision):
            about = describe_model(SimpleNamespace(setup=runtime, precision=precision), None)  # type: ignore[arg-type]
            history.add_model(fingerprint(about), about)
            scores = {"correct": [0.1, 0.2], "confirmed": [0.8, 0.9]}
            record(history, fingerprint(about), {"correct": [0.99] * 2} if precision == "int8" else scores)
    assert main(["calibrate", "--from-db", str(path), "--checkpoint", str(checkpoint)]) == 0
    assert "2 normal and 2 anomalous images" in capfd.readouterr().out
    assert read_meta(checkpoint).image_threshold == pytest.approx(0.5)


@pytest.mark.slow
def test_calibration_from_either_database(
    checkpoint: Path, place: str, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(History(open_database(place))) as history:
        history.add_model(model, describe_model(blemish.load(checkpoint=checkpoint), checkpoint))
        record(history, model, {"correct": [0.1, 0.2], "confirmed": [0.8, 0.9]})
    assert main(["calibrate", "--from-db", place, "--checkpoint", str(checkpoint)]) == 0
    assert "2 normal and 2 anomalous images" in capfd.readouterr().out
    assert read_meta(checkpoint).image_threshold == pytest.approx(0.5)


def test_weights_hash(tmp_path: Path) -> None:
    for content in (b"", b"short", b"\xff" * 100, (5).to_bytes(8, "little") + b"[1,2]xyz"):
        path = tmp_path / "x"
        path.write_bytes(content)
        assert len(weights_hash(path)) == 64
