"""`blemish benchmark` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blemish.cli import main
from run.drawn_data import draw_dataset

Make = Callable[..., Path]


@pytest.fixture
def plan(tmp_path: Path, small_checkpoint: Make) -> str:
    """A plan of one method on two sets, of which only the first is there."""
    draw_dataset(tmp_path / "sets" / "first", ("disc",), normal=3, anomalous=3, side=32)
    path = tmp_path / "plans" / "plan.toml"
    path.parent.mkdir()
    (path.parent / "c.safetensors").write_bytes(small_checkpoint("anomaly_clip").read_bytes())
    path.write_text(
        '[plan]\ntitle = "Small"\nauxiliary = "drawn"\n[[datasets]]\nname = "first"\n[[datasets]]\nname = "second"\n'
        '[[methods]]\nmethod = "anomaly_clip"\ncheckpoint = "c.safetensors"\n',
        encoding="utf-8",
    )
    return str(path)


def test_a_run_with_a_missing_set_resume_and_messages(
    plan: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, first = str(tmp_path / "out"), f"first={tmp_path / 'sets' / 'first'}"
    assert main(["benchmark", plan, "-o", out, "--data", first]) == 1
    printed, told = capfd.readouterr()
    assert printed == "" and "1 of 2 cells done, 1 failed" in told and "report.html" in told
    assert "failed: anomaly_clip on second: no folder; pass --data second=ROOT" in told
    assert main(["benchmark", plan, "-o", out, "--data", first]) == 2
    assert "--resume" in capfd.readouterr().err
    draw_dataset(tmp_path / "sets" / "second", ("ring",), normal=3, anomalous=3, side=32)
    given = ["--data", str(tmp_path / "sets"), "--resume", "--json", "--quiet"]
    assert main(["benchmark", plan, "-o", out, *given]) == 0
    printed, told = capfd.readouterr()
    summary = json.loads(printed)
    assert told == "" and (summary["done"], summary["skipped"], summary["failed"]) == (2, 1, 0)
    assert Path(summary["report"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "thrid=x"], "choose from drawn, first, second"),
        (["--data", "=x"], "expected NAME=ROOT"),
        (["--limit", "0"], "at least 1"),
        (["--device", "tpu"], "tpu"),
        (["--speed"], "No such option"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_wrong_use_is_one_or_two_lines(
    plan: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["benchmark", plan, "-o", str(tmp_path / "out"), *arguments]) == 2
    told = capfd.readouterr().err
    assert said in told and "Traceback" not in told


def test_a_plan_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text("[plan\n", encoding="utf-8")
    assert main(["benchmark", str(tmp_path / "p.toml")]) == 2
    assert "p.toml is not valid TOML" in capfd.readouterr().err
    assert main(["benchmark", str(tmp_path)]) == 2
    assert main(["benchmark", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capfd.readouterr().err
