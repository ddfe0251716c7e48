"""The commands that only look: info, list, doctor."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import blemish
from blemish.cli import main
from blemish.doctor import Check, examine

Make = Callable[..., Path]


@pytest.fixture
def checkpoint(small_checkpoint: Make) -> str:
    return str(small_checkpoint())


def test_info(
    checkpoint: str, small_backbone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", checkpoint]) == 0
    text = capfd.readouterr().out
    assert "anomaly_clip" in text and "options.sigma" in text
    assert main(["info", str(small_backbone), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["kind"] == "backbone"
    (tmp_path / "notes.txt").write_text("hello")
    assert main(["info", str(tmp_path / "notes.txt")]) == 2
    assert "not a checkpoint" in capfd.readouterr().out
    os.mkfifo(tmp_path / "pipe")
    assert main(["info", str(tmp_path / "pipe")]) == 2  # without waiting for a writer
    assert "neither a file nor a folder" in capfd.readouterr().out


def test_long_keys_of_info_stand_apart_from_their_values(
    checkpoint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", checkpoint]) == 0
    rows = [line.split("  ", 1) for line in capfd.readouterr().out.splitlines()]
    assert all(len(row) == 2 for row in rows)
    assert {key: value.strip() for key, value in rows}["backbone_config.text.context_length"] == "77"


def test_list(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capfd.readouterr().out
    assert all(f"  {name}" in text for name in (*blemish.methods(), *blemish.backbones()))
    assert main(["list", "methods", "--verbose"]) == 0
    assert "sigma = 4.0" in capfd.readouterr().out
    assert main(["list", "backbones", "--json"]) == 0
    assert [row["name"] for row in json.loads(capfd.readouterr().out)["backbones"]] == [*blemish.backbones()]


def test_list_of_embedded_checkpoints(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("blemish.catalogue.EMBEDDED", Path(checkpoint).parent)
    assert main(["list", "checkpoints"]) == 0
    assert "anomaly_clip" in capfd.readouterr().out


def test_doctor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    names = {check.name for check in examine()}
    assert {"python", "torch", "cpu", "threads", "precision auto", "free disk here", "hub cache"} <= names
    assert any(name.startswith("embedded") for name in names)
    for ok, status in ((True, 0), (False, 1)):
        monkeypatch.setattr("blemish.doctor.examine", lambda ok=ok: [Check("torch", "here", ok)])
        assert main(["doctor"]) == status
        assert ("BAD" in capfd.readouterr().out) is not ok
        assert main(["doctor", "--json"]) == status
        assert json.loads(capfd.readouterr().out) == [{"name": "torch", "value": "here", "ok": ok}]


def test_doctor_names_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("out of order")

    monkeypatch.setattr("blemish.doctor._room", broken)
    monkeypatch.setitem(sys.modules["blemish.doctor"].PACKAGES, "nonesuch", "nonesuch")
    bad = {check.name: check.value for check in examine() if not check.ok}
    assert "out of order" in bad["memory and disk"] and "pip install nonesuch" in bad["nonesuch"]
