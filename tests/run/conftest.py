"""Fixtures of several modules: detectors and a dataset to evaluate, data and a function to train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from run.drawn_data import draw_dataset
from run.evaluations import TWO


@pytest.fixture(scope="module")
def detectors(small_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """Detectors of two methods on one CLIP, by label."""
    from blemish.run.detectors import load_detectors

    return load_detectors((), [small_checkpoint(name) for name in TWO])


@pytest.fixture
def one(detectors: dict[str, Any]) -> dict[str, Any]:
    """One of them."""
    return {"anomaly_clip": detectors["anomaly_clip"]}


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    """A labelled dataset of two classes, with masks."""
    from blemish.data.layouts import open_dataset

    return open_dataset(draw_dataset(tmp_path / "set", ("plate", "gear_wheel"), side=40))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an auxiliary dataset."""
    return draw_dataset(tmp_path_factory.mktemp("auxiliary"), ("plate", "ring"), normal=4, anomalous=5)


@pytest.fixture
def run(small_backbone: Path, data: Path, tmp_path: Path) -> Any:
    """A function that trains a method for two short epochs, with other options where given."""
    from blemish.run.recipe import TrainOptions
    from blemish.run.train import train

    def go(
        method: str = "anomaly_clip", out: str = "run", own: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        loop = {key: more.pop(key) for key in ("resume", "overwrite", "show") if key in more}
        known: dict[str, Any] = {
            "data": (str(data),),
            "out": str(tmp_path / out),
            "backbone": str(small_backbone),
            "image_size": 48,
            "epochs": 2,
            "batch_size": 4,
            "augmentation": "none",
            "cache": "off",
            "cache_dir": str(tmp_path / "cache"),
        }
        return train(TrainOptions(method=method, **(known | more)), own, **loop)

    return go


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without Ray: a worker in this process is given what one in another would be."""
    from blemish.run import scale
    from blemish.run.scale_ray import Pool, opened, packed

    def run_units(
        units: Sequence[object], worker: Callable[..., Any], arguments: Sequence[object], *_: Any, **__: Any
    ) -> Iterator[Any]:
        made = worker(str(Path.cwd()), *arguments)
        for unit in units:
            yield opened(made({"unit": packed(unit)})["outcome"])

    monkeypatch.setattr(scale, "run_units", run_units)
    monkeypatch.setattr(scale, "cluster", lambda *_: contextlib.nullcontext(Pool(1, 1)))
