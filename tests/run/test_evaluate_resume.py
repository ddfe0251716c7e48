"""An interrupted evaluation goes on where it was, and only with the same settings."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blemish.data.layouts import Dataset
from blemish.detector import Detector
from blemish.errors import BadOption, OutputError
from blemish.run import class_pass, parts, scoring
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.results import read_results
from run.evaluations import decoded, without_speed

Make = Callable[..., Path]


def test_finished_classes_are_not_done_again(
    detectors: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = evaluate(detectors, dataset, tmp_path / "whole"), tmp_path / "cut"
    real = class_pass.ClassPass.run

    def run(self: Any, name: str, *rest: Any) -> Any:
        if name == "plate":
            raise KeyboardInterrupt
        return real(self, name, *rest)

    monkeypatch.setattr(class_pass.ClassPass, "run", run)
    with pytest.raises(KeyboardInterrupt):
        evaluate(detectors, dataset, cut)
    assert not (cut / "results.json").exists()
    monkeypatch.undo()
    names, seen = decoded(monkeypatch), []
    found = evaluate(detectors, dataset, cut, resume=True, on_progress=lambda *s: seen.append(s))
    assert {name.split("/")[0] for name in names} == {"plate"} and seen[0] == (10, 20, None)
    assert without_speed(found) == without_speed(whole)
    names.clear()
    again = evaluate(detectors, dataset, cut, resume=True)
    assert replace(again, started=found.started) == found and not names


@pytest.mark.parametrize("mode", ["exact", "streaming"])
def test_an_interrupted_class_goes_on_where_it_was_saved(
    detectors: dict[str, Detector],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    options = EvaluateOptions(batch_size=2, mode=mode, resolution="native", classes="plate")
    whole, cut = evaluate(detectors, dataset, tmp_path / "whole", options), tmp_path / "cut"
    monkeypatch.setattr(parts, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(parts, "SHARE", 1e9)
    real, calls = scoring.Scorer.score, []

    def score(self: Any, batch: Sequence[Any]) -> Any:
        calls.append(len(batch))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(scoring.Scorer, "score", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate(detectors, dataset, cut, options)
    monkeypatch.setattr(scoring.Scorer, "score", real)
    assert (cut / "parts/state.pickle").exists()
    names = decoded(monkeypatch)
    found = evaluate(detectors, dataset, cut, options, resume=True)
    assert names == [f"plate/spot/00{i}.png" for i in (1, 2, 3, 4)]
    assert without_speed(found) == without_speed(whole)
    assert not (cut / "parts/state.pickle").exists()


def test_a_foreign_or_damaged_state_is_not_used(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path
) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    folder = parts.Parts(tmp_path / "out/parts")
    folder.folder.mkdir(parents=True)
    for state in (("x", 1, 0.0, Bad()), ("x", 1, 0.0, np.memmap), ("x", 1, 0.0, Path.unlink)):
        (folder.folder / parts.STATE_FILE).write_bytes(pickle.dumps(state))
        assert folder.load_state("x") is None
    assert not (tmp_path / "made").exists()
    (folder.folder / parts.STATE_FILE).write_bytes(pickle.dumps(("x", 1, 0.0, {})))
    assert folder.load_state("x") == (1, 0.0, {}) and folder.load_state("y") is None
    evaluate(one, dataset, tmp_path / "out", resume=True)


def test_mended_images_are_tried_again(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(one, dataset, tmp_path / "whole")
    path = dataset.root / "plate/test/good/001.png"
    good, out = path.read_bytes(), tmp_path / "out"
    path.write_bytes(good[:60])
    broken = evaluate(one, dataset, out)
    assert len(broken.failed) == 1
    names = decoded(monkeypatch)
    again = evaluate(one, dataset, out, resume=True)
    assert replace(again, started=broken.started) == broken and not names
    path.write_bytes(good)
    assert without_speed(evaluate(one, dataset, out, resume=True)) == without_speed(whole)
    assert {name.split("/")[0] for name in names} == {"plate"}


def test_resume_needs_the_same_settings(
    one: dict[str, Detector], dataset: Dataset, tmp_path: Path, small_checkpoint: Make
) -> None:
    out = tmp_path / "out"
    evaluate(one, dataset, out)
    before = (out / "results.json").read_bytes()
    with pytest.raises(OutputError, match=r"protocol was 'exact' and is now 'anomalyclip'.*--overwrite"):
        evaluate(one, dataset, out, EvaluateOptions(protocol="anomalyclip"), resume=True)
    other = load_detectors((), [small_checkpoint()], image_size=40)
    with pytest.raises(OutputError, match=r"methods\.anomaly_clip\.image_size was 48 and is now 40"):
        evaluate(other, dataset, out, resume=True)
    with pytest.raises(OutputError, match=r"methods\.b was None"):
        evaluate({**one, "b": one["anomaly_clip"]}, dataset, out, resume=True)
    with pytest.raises(OutputError, match=r"--resume.*--overwrite"):
        evaluate(one, dataset, out)
    with pytest.raises(BadOption, match="exclude"):
        evaluate(one, dataset, out, resume=True, overwrite=True)
    assert (out / "results.json").read_bytes() == before
    (out / "run.json").write_text("[")
    with pytest.raises(OutputError, match="damaged"):
        evaluate(one, dataset, out, resume=True)
    found = evaluate(one, dataset, out, EvaluateOptions(protocol="anomalyclip"), overwrite=True)
    assert read_results(out / "results.json") == found


def test_new_samples_are_seen_on_resume(one: dict[str, Detector], dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(one, dataset, out)
    less = replace(dataset, samples=dataset.samples[:-1])
    found = evaluate(one, less, out, resume=True)
    assert len(found.methods[0].classes["plate"].images) == 9
