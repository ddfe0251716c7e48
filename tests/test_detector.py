"""`blemish.load` and `Detector`: defaults, overrides, sizes, tiles, order and independence of pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish import loading
from blemish.clip.config import CLIPConfig
from blemish.clip.weights import load_clip
from blemish.data.transforms import preprocess
from blemish.detector import Detector, Setup, check_image_size
from blemish.device import cpu_flags, precision_name, resolve_device, resolve_precision
from blemish.errors import BadCheckpoint, BadImage, BadOption, UnknownName
from blemish.loading import default_image_size
from blemish.methods import METHODS
from blemish.pipeline import ordered_map
from blemish.types import FeatureSpec, ImageFeatures, Prediction

Make = Callable[..., Path]


class Brightness:
    """A method whose map is the red channel's share of each patch, so that results can be foreseen."""

    config = None
    needs = FeatureSpec()
    map_range = score_range = (0.0, 1.0)

    def __call__(self, features: ImageFeatures, class_names: object = None) -> Prediction:
        red = features.class_feature
        return Prediction(red, red.flatten(1).amax(1))


class Window:
    """Stands in for a CLIP: hands the red channel through, back in 0..1; NaN where it is exactly white."""

    config = CLIPConfig()
    device = torch.device("cpu")
    dtype = torch.float32
    fingerprint = ""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_image(self, images: torch.Tensor, spec: FeatureSpec) -> Any:
        self.batches.append(len(images))
        red = images[:, 0] * self.config.std[0] + self.config.mean[0]
        red = torch.where(red > 0.999, torch.nan, red)
        return ImageFeatures(red, {}, (2, 2), tuple(images.shape[-2:]))


def window_detector(size: int = 28, **setup: Any) -> Detector:
    return Detector(Window(), Brightness(), Setup("brightness", "window", size, **setup))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", METHODS)
def test_results_are_at_the_pictures_own_size(name: str, small_checkpoint: Make, draw: Make) -> None:
    detector = blemish.load(checkpoint=small_checkpoint(name))
    result = detector.predict(draw("a.png", (61, 17)))
    assert result.map.shape == (17, 61) and result.map.dtype == np.float32 and result.size == (61, 17)
    low, high = result.map_range
    assert low <= result.map.min() and result.map.max() <= high
    assert result.threshold == 0.5 and result.is_anomalous is (result.score >= 0.5)
    assert result.mask is not None and result.mask.dtype == bool
    assert result.path is not None and result.path.endswith("a.png")


def test_no_thresholds_no_decision(small_checkpoint: Make, draw: Make) -> None:
    path = small_checkpoint(image_threshold=None, pixel_threshold=None)
    result = blemish.load(checkpoint=path).predict(draw("a.png"))
    assert (result.threshold, result.is_anomalous, result.mask, result.regions) == (None, None, None, [])
    given = blemish.load(checkpoint=path, threshold=-1, pixel_threshold=-1.0).predict(draw("a.png"))
    assert given.is_anomalous is True and given.mask is not None and given.mask.all()


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_stands_alone(name: str, small_checkpoint: Make, draw: Make) -> None:
    detector = blemish.load(checkpoint=small_checkpoint(name))
    paths = [draw(f"{i}.png", (20 + 7 * i, 50 - 3 * i)) for i in range(9)]
    alone = {path: detector.predict(path) for path in paths}
    for order, size in ((paths, 8), (paths[::-1], 4), (paths, 1)):
        found = list(detector.predict_many(order, batch_size=size))
        assert [r.path for r in found] == [str(p) for p in order]
        for path, result in zip(order, found, strict=True):
            assert result.score == pytest.approx(alone[path].score, abs=1e-5)
            np.testing.assert_allclose(result.map, alone[path].map, atol=1e-5)


def test_all_forms_of_a_picture_agree(small_checkpoint: Make, draw: Make) -> None:
    detector = blemish.load(checkpoint=small_checkpoint())
    path = draw("a.png")
    image = Image.open(path)
    scores = {detector.predict(form).score for form in (path, str(path), image, np.asarray(image))}
    assert len(scores) == 1
    grey = np.asarray(image.convert("L"))
    assert detector.predict(grey).map.shape == grey.shape


def test_input_and_map_are_resized_as_documented(draw: Make) -> None:
    pixels = np.asarray(Image.open(draw("x.png", (45, 31))))
    detector = window_detector()
    prepared = detector.prepare(pixels)
    config = detector.clip.config
    np.testing.assert_array_equal(prepared.pixels, preprocess(pixels, 28, config.mean, config.std))
    result = detector.predict(pixels)
    assert abs(result.map.mean() - pixels[:, :, 0].mean() / 255) < 0.01


def test_bad_pictures_and_nan(tmp_path: Path, draw: Make) -> None:
    detector = window_detector()
    (tmp_path / "bad.png").write_text("no picture")
    for bad in (tmp_path / "bad.png", tmp_path / "no.png", tmp_path, np.zeros((2, 2), dtype=np.float64)):
        with pytest.raises(BadImage):
            detector.predict(bad)
    white = np.full((30, 30, 3), 255, dtype=np.uint8)
    with pytest.raises(BadImage, match="NaN"):
        detector.predict(white)
    good = [draw("1.png"), draw("2.png")]
    found = detector.predict_many([*good, tmp_path / "bad.png", draw("3.png")], batch_size=8)
    assert [next(found).path, next(found).path] == [str(p) for p in good]
    with pytest.raises(BadImage, match=r"bad\.png"):
        next(found)


def test_nan_in_one_picture_leaves_its_batch_alone() -> None:
    detector = window_detector()
    dark, white = np.zeros((9, 9, 3), dtype=np.uint8), np.full((9, 9, 3), 255, dtype=np.uint8)
    prepared = [detector.prepare(p) for p in (dark, white, dark)]
    raws = detector.infer(prepared)
    assert detector.finish(prepared[0], raws[0]).score == detector.finish(prepared[2], raws[2]).score
    with pytest.raises(BadImage):
        detector.finish(prepared[1], raws[1])


def test_predict_many_is_lazy_and_bounded() -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((8, 8, 3), taken % 200, dtype=np.uint8)

    before = threading.active_count()
    results = window_detector().predict_many(endless(), batch_size=4)
    assert taken == 0
    for _ in range(10):
        next(results)
    assert taken <= 12 + 8 + 1
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_predict_many_refuses_one_picture_and_empty_batches(small_checkpoint: Make, draw: Make) -> None:
    detector, path = blemish.load(checkpoint=small_checkpoint()), draw("a.png")
    for single in (path, str(path), Image.open(path)):
        with pytest.raises(BadOption, match="use predict"):
            next(detector.predict_many(single))
    with pytest.raises(BadOption, match="batch_size is 0"):
        next(detector.predict_many([path], batch_size=0))


def test_large_pictures_travel_in_smaller_batches() -> None:
    detector = window_detector()
    big = np.zeros((4000, 8000, 3), dtype=np.uint8)
    list(detector.predict_many([big] * 3, batch_size=8))
    assert max(detector.clip.batches) <= 2  # type: ignore[attr-defined]


def test_tiles_cover_and_blend() -> None:
    pixels = np.zeros((100, 130, 3), dtype=np.uint8)
    pixels[60:64, 90:94] = 180
    whole, tiled = window_detector(), window_detector(tile=40, overlap=0.5)
    far, near = whole.predict(pixels), tiled.predict(pixels)
    assert near.map.shape == (100, 130)
    # A small spot keeps its strength in tiles and is diluted in the whole picture made small.
    assert near.score > 0.65 > far.score
    assert 60 <= np.unravel_index(near.map.argmax(), near.map.shape)[0] < 64
    flat = np.full((100, 130, 3), 128, dtype=np.uint8)
    result = tiled.predict(flat)
    np.testing.assert_allclose(result.map, result.map[0, 0], atol=1e-6)
    assert len(tiled.prepare(flat).boxes) > 4 and tiled.prepare(flat).pixels is None


def test_a_tile_larger_than_the_picture_changes_nothing(small_checkpoint: Make, draw: Make) -> None:
    path, checkpoint = draw("a.png", (64, 48)), small_checkpoint()
    plain = blemish.load(checkpoint=checkpoint).predict(path)
    tiled = blemish.load(checkpoint=checkpoint, tile=64).predict(path)
    np.testing.assert_array_equal(plain.map, tiled.map)


def test_tiles_score_is_the_largest(small_checkpoint: Make, draw: Make) -> None:
    path, checkpoint = draw("a.png", (64, 32)), small_checkpoint()
    parts = blemish.load(checkpoint=checkpoint)
    pixels = np.asarray(Image.open(path))
    expected = max(parts.predict(pixels[:, :32]).score, parts.predict(pixels[:, 32:]).score)
    found = blemish.load(checkpoint=checkpoint, tile=32, overlap=0).predict(path)
    assert found.score == pytest.approx(expected, abs=1e-5)


def test_methods_may_ask_for_squares() -> None:
    detector = window_detector()
    asking = Brightness()
    asking.square_tiles = True  # type: ignore[attr-defined]
    squares = Detector(detector.clip, asking, detector.setup)
    assert (detector.setup.tile, squares.setup.tile) == (None, "square")
    pixels = np.zeros((28, 42, 3), dtype=np.uint8)
    pixels[4:12, 18:24] = 180
    found = squares.predict(pixels)
    # At the size of the network's input nothing is resized: the map is the picture.
    np.testing.assert_allclose(found.map, pixels[..., 0] / 255, atol=1e-6)
    assert found.score == found.map.max()
    np.testing.assert_array_equal(squares.predict(pixels[:, :28]).map, detector.predict(pixels[:, :28]).map)
    named = Detector(detector.clip, asking, replace(detector.setup, tile=14))
    assert named.setup.tile == 14 and len(named.prepare(pixels).boxes) > 2


def test_freed_memory_is_kept_for_the_embedded_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for stem, place in (("patch", "cpu"), ("lite", "meta"), ("lite", "cpu")):
        monkeypatch.setattr(
            "blemish.detector.keep_freed_memory", lambda name=f"{stem} {place}": calls.append(name)
        )
        window = Window()
        window.config = replace(window.config, vision=replace(window.config.vision, stem=stem))  # type: ignore[misc]
        window.device = torch.device(place)  # type: ignore[misc]
        Detector(window, Brightness(), Setup("brightness", "window", 28))  # type: ignore[arg-type]
    assert calls == ["lite cpu"]


def test_windows_must_fit_the_image_size() -> None:
    method = Brightness()
    method.needs = FeatureSpec(windows=(2, 3))  # type: ignore[misc]
    setup = Setup("windows", "window", 28)
    with pytest.raises(
        BadOption, match=r"3 x 3 patches do not fit image size 28, which has 2 patches.* of 42"
    ):
        Detector(Window(), method, setup)  # type: ignore[arg-type]
    Detector(Window(), method, replace(setup, image_size=42))  # type: ignore[arg-type]


def test_image_sizes(small_checkpoint: Make, draw: Make) -> None:
    checkpoint = small_checkpoint()
    assert blemish.load(checkpoint=checkpoint).setup.image_size == 48
    for size in (8, 40, 104):
        detector = blemish.load(checkpoint=checkpoint, image_size=size)
        assert detector.predict(draw("a.png")).map.shape == (30, 40)
    with pytest.raises(BadOption, match="48 or 56"):
        blemish.load(checkpoint=checkpoint, image_size=50)
    with pytest.raises(BadOption, match=r"nearest valid: 14$"):
        check_image_size(3, 14)
    with pytest.raises(BadOption, match="image size is 0; expected a positive multiple"):
        blemish.load(checkpoint=checkpoint, image_size=0)
    assert blemish.load(checkpoint=small_checkpoint(image_size=None)).setup.image_size == 32
    assert default_image_size(CLIPConfig()) == 518


def test_options_go_before_the_checkpoints(small_checkpoint: Make) -> None:
    path = small_checkpoint(options={"sigma": 2.0})
    assert blemish.load(checkpoint=path).method.config.sigma == 2.0
    assert blemish.load(checkpoint=path, sigma=1).method.config.sigma == 1.0
    preset = blemish.load(checkpoint=path, preset="paper", sigma=3.0)
    assert (preset.method.config.sigma, preset.method.config.local_weight) == (3.0, 1.0)
    assert preset.setup.options["sigma"] == 3.0
    for wrong in ({"sigmaa": 1}, {"preset": "papers"}, {"sigma": "x"}):
        with pytest.raises((BadOption, UnknownName)):
            blemish.load(checkpoint=path, **wrong)


def test_what_load_refuses(small_backbone: Path, small_checkpoint: Make) -> None:
    with pytest.raises(UnknownName, match="did you mean 'anomaly_clip'"):
        blemish.load("anomalyclip")
    with pytest.raises(BadCheckpoint, match="--checkpoint"):
        blemish.load("vcp_clip", backbone="ViT-L-14-336")
    with pytest.raises(BadCheckpoint, match="--checkpoint"):
        blemish.load(backbone=str(small_backbone))
    path = small_checkpoint()
    for wrong in (
        {"device": "gpu"},
        {"precision": "fp8"},
        {"tile": 0},
        {"overlap": 1.0},
        {"threads": 0},
        {"threshold": float("nan")},
    ):
        with pytest.raises(BadOption):
            blemish.load(checkpoint=path, **wrong)


def test_method_and_backbone_come_from_the_checkpoint(small_backbone: Path, small_checkpoint: Make) -> None:
    setup = blemish.load(checkpoint=small_checkpoint("vcp_clip")).setup
    assert (setup.method, setup.backbone) == ("vcp_clip", str(small_backbone))
    assert setup.backbone_fingerprint == load_clip(small_backbone).fingerprint
    assert len(setup.checkpoint_sha256) == 64 and setup.auxiliary == "drawn"


def test_saved_detector_is_the_same(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    first = blemish.load(checkpoint=small_checkpoint("vcp_clip"), threshold=0.75, image_size=40, sigma=1.0)
    first.save(tmp_path / "own.safetensors", notes="kept")
    second = blemish.load(checkpoint=tmp_path / "own.safetensors")
    assert (second.setup.threshold, second.setup.image_size) == (0.75, 40)
    assert second.method.config == first.method.config
    path = draw("a.png")
    assert second.predict(path).score == pytest.approx(first.predict(path).score, abs=1e-6)


def test_embedded_checkpoints_are_the_default(
    small_backbone: Path, small_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in METHODS:
        small_checkpoint(name, backbone="tiny").rename(tmp_path / f"{name}.safetensors")
    real = loading._load_backbone
    monkeypatch.setattr(loading, "EMBEDDED", tmp_path)
    monkeypatch.setattr(loading, "_load_backbone", lambda base, *rest: real(str(small_backbone), *rest))
    assert blemish.load().setup.method == "clip_ac"
    setup = blemish.load("vcp_clip").setup
    assert (setup.method, setup.backbone, setup.checkpoint) == ("vcp_clip", "tiny", "vcp_clip.safetensors")


def test_training_free_methods_need_no_checkpoint(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "learns", lambda name: False)
    setup = blemish.load("vcp_clip", backbone=small_backbone).setup
    assert (setup.checkpoint, setup.checkpoint_sha256, setup.threshold) == ("", "", None)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_stays_near(name: str, small_checkpoint: Make, draw: Make) -> None:
    path, checkpoint = draw("a.png"), small_checkpoint(name)
    exact = blemish.load(checkpoint=checkpoint, precision="fp32").predict(path)
    rough = blemish.load(checkpoint=checkpoint, precision="bf16")
    assert rough.precision == "bf16"
    assert rough.predict(path).score == pytest.approx(exact.score, abs=0.1)


def test_class_names_reach_the_method(small_checkpoint: Make, draw: Make) -> None:
    path = small_checkpoint(options={"object_aware": True})
    scores = {
        blemish.load(checkpoint=path, class_name=name).predict(draw("a.png")).score
        for name in ("metal nut", "carpet")
    }
    assert len(scores) == 2


def test_precision_follows_the_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, large in (({"amx_bf16", "avx2"}, "bf16"), ({"avx512_bf16"}, "bf16"), ({"avx2"}, "fp32")):
        monkeypatch.setattr("blemish.machine.cpu_flags", lambda flags=flags: frozenset(flags))
        assert precision_name(resolve_precision("auto", cpu)) == large
        assert precision_name(resolve_precision("auto", cpu, embedded=True)) == "fp32"
    assert resolve_precision("fp16", cpu) == torch.float16
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nflags\t\t: other\n")
    assert cpu_flags(info) == {"fpu", "avx2", "amx_bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:1"):
            with pytest.raises(BadOption, match="no CUDA device"):
                resolve_device(name)
    with pytest.raises(BadOption, match="choose from auto"):
        resolve_device("cuda:x")


@pytest.mark.parametrize("eager", [False, True])
def test_ordered_map_keeps_order_and_bounds(eager: bool) -> None:
    lock, active, most = threading.Lock(), 0, 0

    def work(item: int) -> int:
        nonlocal active, most
        with lock:
            active += item
            most = max(most, active)
        with lock:
            active -= item
        if item == 7:
            raise ValueError("seven")
        return item * item

    results = list(ordered_map(work, range(20), workers=4, ahead=6, eager=eager, cost=lambda i: i, budget=15))
    assert [item for item, _ in results] == list(range(20))
    assert [f.result() for i, f in results if i != 7] == [i * i for i in range(20) if i != 7]
    assert isinstance(results[7][1].exception(), ValueError)
    assert most <= 19
