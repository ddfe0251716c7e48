"""The scripts in `examples/` run and write where the test says; the method among them keeps the contract."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTRACT = (
    "prediction_has_shape_and_range",
    "result_depends_on_the_image_alone",
    "only_learned_parts_are_registered",
    "same_generator_same_start",
    "loss_falls_and_reaches_every_parameter",
    "half_precision_backbone",
    "prediction_follows_the_parameters",
    "details_that_every_method_gives",
    "class_names_where_they_count",
)


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script that the test is parametrised with, imported; the working folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(request.param)


@pytest.fixture
def text_shift(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`add_a_method`, whose method is registered for the length of a test."""
    from blemish.methods import METHODS

    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("add_a_method")
    monkeypatch.setitem(METHODS, "text_shift", "add_a_method:TextShift")
    yield module
    monkeypatch.undo()
    METHODS.pop("text_shift", None)


def of(name: str) -> Any:
    return pytest.mark.parametrize("script", [name], indirect=True)


def test_every_script_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.stem}"' in text for path in EXAMPLES.glob("*.py"))


@of("metrics_on_own_maps")
def test_metrics_on_own_maps(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main()
    rows = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert rows["image_auroc"] == 1 and 0.9 < rows["pixel_auroc"] < 1 and 0.5 < rows["pixel_aupro"] < 1


@of("score_a_folder")
def test_score_a_folder(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("spindle_good.jpg", "spindle_pitting_1.jpg"):
        (folder / name).symlink_to(EXAMPLES / name)
    script.main(folder, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert "spindle_pitting_1" in lines[0] and "spindle_good" in lines[1]
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 2


@of("own_thresholds")
def test_own_thresholds(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(script.draw_normal(tmp_path / "good", 4), out=tmp_path / "mine.safetensors")
    before, after = capsys.readouterr().out.splitlines()[-2:]
    assert before.split()[:3] == ["before", "score", after.split()[2]]
    assert before.split()[4] != after.split()[4], "the threshold is another one"


@of("few_shot")
def test_few_shot(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(image_size=160)
    zero, few = capsys.readouterr().out.splitlines()
    assert zero.startswith("zero-shot") and few.startswith("few-shot") and zero.split()[2] != few.split()[2]


@of("compare_methods")
def test_compare_methods(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(out=tmp_path / "out", count=6)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == list(script.METHODS)


@of("train_on_own_defects")
def test_train_on_own_defects(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(run=tmp_path / "run", epochs=1)
    assert len(capsys.readouterr().out.splitlines()) == 4 and (tmp_path / "run" / "curves.svg").exists()


def test_the_method_can_be_trained_and_used(
    text_shift: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_shift.main(run=tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_method_keeps_the_contract(
    text_shift: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "methods")
    small, contract = importlib.import_module("small_clip"), importlib.import_module("test_contract")
    clip = small.make_clip(small.CONFIG)
    for variant in (("text_shift", {}), ("text_shift", {"preset": "middle"})):
        for name in CONTRACT:
            getattr(contract, f"test_{name}")(clip, variant)
        contract.test_saved_parts_restore_the_method(clip, variant, tmp_path)
        contract.test_builds_without_memory(variant)
