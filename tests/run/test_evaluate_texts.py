"""`evaluate`: text embeddings on disk, and methods that survey a class before it is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_data import draw_dataset
from PIL import Image

from blemish.data.layouts import Dataset, open_dataset
from blemish.errors import BadOption
from blemish.output.embeddings import read_texts
from blemish.parts.class_names import ClassNameFilter
from blemish.run.class_pass import ClassPass
from blemish.run.detectors import load_detectors
from blemish.run.evaluate import evaluate
from blemish.run.evaluate_options import EvaluateOptions

Make = Callable[..., Path]
TEXTS = EvaluateOptions(save="embeddings", batch_size=4)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return open_dataset(draw_dataset(tmp_path / "set", ("plate", "gear_wheel"), side=40))


def names_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_embeddings_of_every_class_and_a_picture(
    dataset: Dataset, small_checkpoint: Make, tmp_path: Path
) -> None:
    detectors = load_detectors((), [small_checkpoint(n) for n in ("anomaly_clip", "vcp_clip", "gen_clip")])
    broken = dataset.of_class("plate")[1].image
    broken.write_bytes(b"")
    found = evaluate(detectors, dataset, tmp_path / "out", TEXTS)
    folder = tmp_path / "out/embeddings"
    assert names_below(folder) == sorted(
        f"{name}{rest}" for name in detectors for rest in (".png", "/plate.npz", "/gear_wheel.npz")
    )
    for method in found.methods:
        assert np.asarray(Image.open(folder / f"{method.label}.png")).ndim == 3
        for name, result in method.classes.items():
            texts = read_texts(folder / method.label / f"{name}.npz")
            assert texts.class_name == name and len(texts.images) == len(result.images) > 0
            assert texts.images == tuple(row.path for row in result.images)
            assert texts.labels == tuple(row.label for row in result.images)
            np.testing.assert_allclose(np.linalg.norm(texts.rows, axis=-1), 1, atol=1e-5)
            layers = (4,) if method.method == "gen_clip" else ()
            assert texts.rows.shape[1:-1] == (*layers, 2)
            same = np.ptp(texts.rows, axis=0).max() < 1e-6
            assert same == (method.method == "anomaly_clip"), "only these texts follow the image"
    assert len(read_texts(folder / "vcp_clip/plate.npz").images) == len(dataset.of_class("plate")) - 1
    plain = evaluate(detectors, dataset, tmp_path / "plain", EvaluateOptions(batch_size=4))
    assert not (tmp_path / "plain/embeddings").exists()
    for a, b in zip(plain.methods, found.methods, strict=True):
        assert a.classes == b.classes


def test_interrupted_embeddings_are_whole_after_resuming(
    dataset: Dataset, small_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detectors, first = load_detectors((), [small_checkpoint("vcp_clip")]), dataset.classes[0]
    evaluate(detectors, dataset, tmp_path / "whole", TEXTS)
    real, calls = ClassPass._take, 0

    def take(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == len(dataset.of_class(first)) + 6:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(ClassPass, "_take", take)
    monkeypatch.setattr("blemish.run.parts.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("blemish.run.parts.SHARE", 1e9)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate(detectors, dataset, out, TEXTS)
    monkeypatch.undo()
    assert names_below(out / "embeddings") == [f"vcp_clip/{first}.npz"]
    assert (out / "parts/state.pickle").exists()
    evaluate(detectors, dataset, out, TEXTS, resume=True)
    for name in dataset.classes:
        whole, found = (read_texts(p / f"embeddings/vcp_clip/{name}.npz") for p in (tmp_path / "whole", out))
        assert found.images == whole.images and len(whole.images) == len(dataset.of_class(name))
        np.testing.assert_allclose(found.rows, whole.rows, atol=1e-6)
    # A lost file is made again.
    (out / "embeddings/vcp_clip/plate.npz").unlink()
    evaluate(detectors, dataset, out, TEXTS, resume=True)
    assert (out / "embeddings/vcp_clip/plate.npz").exists()


def test_tiles_have_no_single_text(dataset: Dataset, small_checkpoint: Make, tmp_path: Path) -> None:
    detectors = load_detectors((), [small_checkpoint("vcp_clip")], tile=20)
    with pytest.raises(BadOption, match="leave out --tile"):
        evaluate(detectors, dataset, tmp_path / "out", TEXTS)
    assert not (tmp_path / "out").exists()


def test_methods_without_texts_are_refused(
    dataset: Dataset, small_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detectors = load_detectors((), [small_checkpoint()])
    method: Any = detectors["anomaly_clip"].method
    real = method.forward

    def forward(*arguments: Any) -> Any:
        prediction = real(*arguments)
        del prediction.details["text_features"]
        return prediction

    monkeypatch.setattr(method, "forward", forward)
    with pytest.raises(BadOption, match="anomaly_clip compares images with no texts"):
        evaluate(detectors, dataset, tmp_path / "out", TEXTS)


@pytest.mark.parametrize("tile", [None, 24])
def test_a_class_is_surveyed_before_it_is_scored(
    dataset: Dataset,
    small_checkpoint: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tile: int | None,
) -> None:
    checkpoint = small_checkpoint("gen_clip", {"cnf_scope": "class"})
    detectors = load_detectors((), [checkpoint, small_checkpoint()], tile=tile)
    events: list[str] = []
    real = ClassNameFilter.vote, ClassNameFilter.clear, ClassNameFilter.per_class

    def vote(self: ClassNameFilter, feature: Any, names: Sequence[str]) -> None:
        events.extend(f"vote {name}" for name in names)
        real[0](self, feature, names)

    def clear(self: ClassNameFilter) -> None:
        events.append("clear")
        real[1](self)

    def decide(self: ClassNameFilter, feature: Any, names: Sequence[str]) -> list[str]:
        if not events[-1].startswith("score"):
            events.append(f"score {names[0]}")
        assert all(name in self._votes for name in names)
        return real[2](self, feature, names)

    for name, function in (("vote", vote), ("clear", clear), ("per_class", decide)):
        monkeypatch.setattr(ClassNameFilter, name, function)
    evaluate(detectors, dataset, tmp_path / "out", EvaluateOptions(batch_size=4, no_pixel=True))
    expected = []
    for name in dataset.classes:
        word = dataset.prompt_name(name)
        expected += ["clear", *[f"vote {word}"] * len(dataset.of_class(name)), f"score {word}"]
    assert events == expected
