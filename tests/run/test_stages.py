"""Methods that learn in stages: one run for each, resumed bit for bit, and runs that begin with a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import blemish
from blemish.checkpoint import read_meta
from blemish.errors import BadCheckpoint, BadOption, OutputError
from blemish.methods import build
from blemish.methods.aa_clip import AACLIP
from blemish.run import train as training
from blemish.run.recipe import TrainOptions
from blemish.run.train import TrainSummary, train
from run.drawn_data import draw_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("auxiliary"), ("plate", "ring"), normal=2, anomalous=3)


@pytest.fixture
def run(small_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    text = AACLIP.stage_recipes["text"] | {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
    monkeypatch.setattr(AACLIP, "stage_recipes", {"text": text})

    def go(out: str = "run", own: Mapping[str, Any] | None = None, **more: Any) -> TrainSummary:
        loop = {key: more.pop(key) for key in ("resume", "overwrite", "show") if key in more}
        known: dict[str, Any] = {
            "method": "aa_clip",
            "data": (str(data),),
            "out": str(tmp_path / out),
            "backbone": str(small_backbone),
            "image_size": 48,
            "epochs": 2,
            "batch_size": 5,
            "cache_dir": str(tmp_path / "cache"),
        }
        return train(TrainOptions(**(known | more)), own, **loop)

    return go


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_all_stages_are_gone_through(run: Any, tmp_path: Path, small_backbone: Path) -> None:
    shown: list[Mapping[str, Any]] = []
    summary = run(show=shown.append)
    assert summary.checkpoint == tmp_path / "run" / "checkpoint.safetensors"
    first = tmp_path / "run" / "text" / "checkpoint.safetensors"
    assert read_meta(first).options["stage"] == "text" and "2 epochs of batch 4" in read_meta(first).notes
    assert read_meta(summary.checkpoint).options["stage"] == "image"
    start = _fresh(small_backbone)
    text, image = weights(first), weights(summary.checkpoint)
    for name in text:
        in_text, in_image = not torch.equal(text[name], start[name]), not torch.equal(image[name], text[name])
        if name != "ranges":
            assert (in_text, in_image) == (name.startswith("text."), name.startswith("image.")), name
    assert not torch.equal(image["ranges"], start["ranges"]) and not torch.equal(
        text["ranges"], image["ranges"]
    )
    assert [line["steps"] for line in shown if line["phase"] == "training"] == [6] * 6 + [4] * 4
    assert any(line["phase"] == "features" for line in shown), "frozen features are kept in stage text"
    detector = blemish.load(checkpoint=summary.checkpoint, class_name="plate")
    picture = next((tmp_path / "..").resolve().rglob("*.png"))
    result = detector.predict(picture)
    assert 0 < result.score < 1 and result.threshold is not None and result.pixel_threshold is not None


def _fresh(backbone: Path) -> dict[str, torch.Tensor]:
    from blemish.clip.weights import load_clip

    torch.manual_seed(111)
    return dict(build("aa_clip", load_clip(str(backbone)).freeze()).state_dict())


def test_two_runs_of_one_stage_each_are_the_same(run: Any, tmp_path: Path) -> None:
    whole = run()
    first = run(out="a", own={"stage": "text"}, epochs=None, batch_size=None)
    second = run(out="b", own={"stage": "image"}, init=str(first.checkpoint))
    assert same(weights(whole.checkpoint), weights(second.checkpoint))
    assert same(weights(first.checkpoint), weights(tmp_path / "run" / "text" / "checkpoint.safetensors"))


@pytest.mark.parametrize("kill_at", [1, 4, 6, 7, 9])
def test_a_killed_run_is_resumed_bit_for_bit(kill_at: int, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of stage text, then four of stage image."""
    whole = run(out="whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    steps = 0

    def show(line: Mapping[str, Any]) -> None:
        nonlocal steps
        if line["phase"] == "training":
            steps += 1
            if steps == kill_at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out="cut", show=show)
    resumed = run(out="cut", resume=True)
    assert same(weights(whole.checkpoint), weights(resumed.checkpoint))
    assert read_meta(resumed.checkpoint).image_threshold == read_meta(whole.checkpoint).image_threshold


def test_a_folder_that_holds_a_run_is_left_alone(run: Any) -> None:
    before = run()
    with pytest.raises(OutputError, match="holds an earlier run"):
        run()
    again = run(overwrite=True)
    assert same(weights(before.checkpoint), weights(again.checkpoint))
    with pytest.raises(BadCheckpoint, match=r"cannot resume.*seed"):
        run(resume=True, seed=7)


def test_a_later_stage_needs_what_it_goes_on_from(run: Any) -> None:
    with pytest.raises(BadOption, match=r"stage image of aa_clip goes on from stage text.*--init"):
        run(own={"stage": "image"})
    with pytest.raises(BadOption, match="leave --cache out"):
        run(cache="on")


def test_a_run_may_begin_with_a_checkpoint(run: Any, tmp_path: Path) -> None:
    """Of any method, if it is the same."""
    common = {"method": "anomaly_clip", "epochs": 1}
    first = run(out="a", **common)
    second = run(out="b", init=str(first.checkpoint), learning_rate=1e-12, **common)
    for name, tensor in weights(first.checkpoint).items():
        torch.testing.assert_close(weights(second.checkpoint)[name], tensor)
    other = run(out="c", seed=5, **common)
    with pytest.raises(BadCheckpoint, match=r"cannot resume.*init"):
        run(out="b", init=str(other.checkpoint), learning_rate=1e-12, resume=True, **common)
    with pytest.raises(BadCheckpoint, match="is a checkpoint of anomaly_clip; --init needs one of vcp_clip"):
        run(out="d", init=str(first.checkpoint), method="vcp_clip")
    with pytest.raises(BadCheckpoint, match="does not exist"):
        run(out="e", init=str(tmp_path / "none.safetensors"), **common)
