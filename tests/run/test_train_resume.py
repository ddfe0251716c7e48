"""A training that goes on after it was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blemish.errors import BadCheckpoint, BadOption, OutputError
from blemish.run import train as training
from run.training_runs import lines, same, weights


@pytest.mark.parametrize("method", ["anomaly_clip", "vcp_clip"])
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_a_resumed_run_ends_with_the_same_bits(
    method: str, stop: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0 if stop == 7 else 1e9)
    whole = run(method, "whole")

    def interrupt(line: Any) -> None:
        if line["phase"] == "training" and line["step"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(method, "cut", show=interrupt)
    resumed = run(method, "cut", resume=True)
    assert same(weights(whole), weights(resumed))
    out = resumed.checkpoint.parent
    assert [line["step"] for line in lines(out)] == list(range(1, 11))
    assert [line["loss"] for line in lines(out)] == [line["loss"] for line in lines(whole.checkpoint.parent)]
    assert resumed.losses == pytest.approx(whole.losses)
    again = run(method, "cut", resume=True)  # a finished run can be resumed too
    assert same(weights(whole), weights(again))


def test_a_half_written_line_of_the_log_is_dropped(run: Any, tmp_path: Path) -> None:
    def interrupt(line: Any) -> None:
        if line["phase"] == "training" and line["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(show=interrupt)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "st')
    assert [line["step"] for line in lines(run(resume=True).checkpoint.parent)] == list(range(1, 11))


def test_settings_of_a_resumed_run_must_agree(run: Any) -> None:
    run()
    with pytest.raises(BadCheckpoint, match="learning_rate was"):
        run(resume=True, learning_rate=0.5)
    with pytest.raises(OutputError, match="--resume"):
        run()
    run(overwrite=True, learning_rate=0.5)
    with pytest.raises(BadOption, match="exclude each other"):
        run(resume=True, overwrite=True)


def test_a_damaged_state_is_refused_with_the_mend(run: Any) -> None:
    out = run().checkpoint.parent
    state = out / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(BadCheckpoint, match="--overwrite"):
        run(resume=True)
