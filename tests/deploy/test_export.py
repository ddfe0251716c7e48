"""Every method is exported and compared, or refused with a reason; what fails leaves no file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish.cli import main
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.deploy import parity
from blemish.deploy.export import export
from blemish.deploy.export_graph import trace
from blemish.deploy.parity import Difference
from blemish.deploy.runtime import load_runtime
from blemish.detector import Detector, Setup
from blemish.errors import BadOption, ExportError, OutputError
from blemish.methods import build

CONFIG = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=64, layers=2, heads=2, patch_size=8, image_size=24, mlp_width=128),
    text=TextConfig(width=20, layers=2, heads=2, mlp_width=40),
    source="random",
)
# The vocabulary is the text tower's largest part; a file without the tower is smaller than it.
VOCABULARY_BYTES = CONFIG.text.vocab_size * CONFIG.text.width * 4
TEXT_INSIDE = ("vcp_clip", "vcp_clip_plus", "vip2_clip", "gen_clip", "cocoop", "ada_clip", "fa_prompt")


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(3)
    made = CLIP(CONFIG).reset_parameters().freeze()
    made.tokenizer = Tokenizer.clip()
    return made


def detector_of(clip: CLIP, method: str, class_name: str | None = None, **options: object) -> Detector:
    torch.manual_seed(4)
    built = build(method, clip, **options).eval().requires_grad_(False)
    return Detector(clip, built, Setup(method, "random", 32, class_name=class_name, threshold=0.25))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for kind in ("good", "broken"):
        for i in range(3):
            path = root / "part" / "test" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)).save(path)
    return root


# Tracing takes ten to thirty seconds a method, so the usual run looks at one of each kind.
ALWAYS = ("clip", "anomaly_clip", "vip2_clip")
every = pytest.mark.skipif(
    "BLEMISH_ALL_EXPORTS" not in os.environ, reason="set BLEMISH_ALL_EXPORTS=1 to run it"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in ALWAYS else every) for name in blemish.methods()]
)
def test_every_method_agrees_or_is_refused(clip: CLIP, method: str, tmp_path: Path) -> None:
    # Graphs as small as may be: tracing them is what takes the time.
    few: dict[str, dict[str, object]] = {"ano_vl": {"views": 1}, "ada_clip": {"clusters": 3}}
    options = few.get(method, {})
    report = export(detector_of(clip, method, **options), tmp_path / "m.onnx")
    assert max(report.map_difference, report.score_difference) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    if method not in TEXT_INSIDE:
        assert report.bytes < VOCABULARY_BYTES
    found = load_runtime(tmp_path / "m.onnx")
    assert found.setup.method == method and found.setup.threshold == 0.25
    assert found.meta.versions["torch"] and found.meta.setup.options == {}


def test_reasons_for_refusal(clip: CLIP, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="gradient steps"):
        export(detector_of(clip, "ano_vl", tta_steps=1), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="use_cnf"):
        export(detector_of(clip, "gen_clip", "pipe fryum"), tmp_path / "m.onnx")
    for name, words in (("m.txt", "ends in"), ("m.onnx", "opset")):
        with pytest.raises(BadOption, match=words):
            export(detector_of(clip, "clip"), tmp_path / name, opset=9)
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists"):
        export(detector_of(clip, "clip"), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("method", ["clip", "clip_ac"])
def test_one_noun_for_any_number_of_images(clip: CLIP, method: str) -> None:
    """As the embedded default calls all images."""
    detector = detector_of(clip, method, noun="part")
    graph = trace(detector).module()
    for count in (1, 3):
        pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        expected = detector._forward(pixels.numpy())
        for found, other in zip(graph(pixels), expected, strict=False):
            np.testing.assert_allclose(found.detach().numpy(), other, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_left_when_results_differ(
    clip: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "difference", lambda *answers: Difference(3e-4, 0.0))
    with pytest.raises(ExportError, match="differs"):
        export(detector_of(clip, "clip"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.onnx", "m.xml"])
def test_pixels_in_and_eight_bits(clip: CLIP, name: str, pictures: Path, tmp_path: Path) -> None:
    detector = detector_of(clip, "clip", "metal part")
    out = tmp_path / name
    report = export(detector, out, int8=True, data=pictures, preprocess=True)
    quantised = report.quantised
    assert report.precision == "int8" and quantised is not None
    assert report.bytes < quantised.bytes_fp32 and quantised.images == 6
    assert quantised.map_correlation > 0.6 and quantised.auroc is not None
    assert report.preprocess_difference is not None and report.preprocess_difference <= 0.2
    runtime = load_runtime(out)
    paths = sorted(pictures.rglob("*.png"))
    for found, expected in zip(runtime.predict_many(paths), detector.predict_many(paths), strict=True):
        assert found.map.shape == expected.map.shape
        assert abs(found.score - expected.score) < 0.05
    assert runtime.precision == "int8" and runtime.setup.class_name == "metal part"


@pytest.mark.parametrize(("arguments", "words"), [([], "-o model.onnx"), (["-o", "m.txt"], "ends in")])
def test_wrong_use(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "m.onnx"
    assert main(["export", "-o", str(out), "--method", "clip", "--image-size", "64", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"] == [str(out)] and report["map_difference"] <= 1e-4


def test_auroc_and_correlation() -> None:
    assert parity.auroc(np.array([0.1, 0.9, 0.5, 0.5]), [0, 1, 1, 0]) == pytest.approx(0.875)
    assert parity.auroc(np.array([0.1, 0.9]), [1, None]) is None
    maps = np.random.default_rng(0).random((2, 4, 4))
    same = parity.Answers(maps, np.zeros(2), 0.0)
    assert parity.map_correlation(parity.Answers(2 * maps + 1, np.zeros(2), 0.0), same) == pytest.approx(1)
