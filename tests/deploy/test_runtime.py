"""Exported models are used as detectors are, in a Python whose import system refuses torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import blemish
from blemish.deploy.engines import model_files
from blemish.deploy.export import export
from blemish.deploy.runtime import load_runtime
from blemish.errors import BadModel, BadOption

Make = Callable[..., Path]
NAMES = ("anomaly.onnx", "anomaly.xml")
# Refuses torch wherever it is imported, by whatever module.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors", "nncf", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def models(small_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, blemish.Detector]:
    folder = tmp_path_factory.mktemp("models")
    detector = blemish.load(checkpoint=small_checkpoint(), precision="fp32", device="cpu")
    for name in NAMES:
        export(detector, folder / name)
    return folder, detector


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_same_results_as_the_detector(models, name: str, draw: Make) -> None:
    folder, detector = models
    runtime = load_runtime(folder / name, precision="fp32", threads=1)
    paths = [draw(f"{i}.png", (40 + i, 30)) for i in range(5)]
    for path, found, expected in zip(
        paths, runtime.predict_many(paths, batch_size=3), detector.predict_many(paths), strict=True
    ):
        assert found.path == str(path) and found.map.shape == expected.map.shape
        assert abs(found.score - expected.score) < 1e-4
        np.testing.assert_allclose(found.map, expected.map, atol=1e-4)
        assert (found.threshold, found.pixel_threshold) == (0.5, 0.5)
        assert found.map_range == expected.map_range
    assert runtime.setup.method == "anomaly_clip" and runtime.setup.runtime == name.replace(
        "anomaly.", ""
    ).replace("xml", "openvino")
    tiled, whole = (
        made.predict(np.zeros((50, 90, 3), dtype=np.uint8))
        for made in (
            load_runtime(folder / name, precision="fp32", tile=40),
            blemish.load(checkpoint=detector_file(detector), precision="fp32", device="cpu", tile=40),
        )
    )
    np.testing.assert_allclose(tiled.map, whole.map, atol=1e-4)


def detector_file(detector: blemish.Detector) -> Path:
    path = Path(detector.setup.backbone).parent / "again.safetensors"
    detector.save(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_predict_without_torch(models, name: str, draw: Make, tmp_path: Path) -> None:
    folder, detector = models
    picture = draw("a.png")
    out = tmp_path / "out"
    code = f"""{WITHOUT_TORCH}
import blemish
from blemish.cli import main
model, picture = {str(folder / name)!r}, {str(picture)!r}
result = blemish.load(runtime=model, precision="fp32").predict(picture)
status = main(["predict", "--runtime", model, picture, "--precision", "fp32", "-o", {str(out)!r}])
assert main(["info", model]) == 0
assert not any(m == "torch" or m.startswith("torch.") for m in sys.modules)
print(result.score, status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *told, last = done.stdout.splitlines()
    score, status = last.split()
    assert "exported model" in told[0] and any(line.split() == ["method", "anomaly_clip"] for line in told)
    expected = detector.predict(picture)
    assert status == "0" and float(score) == pytest.approx(expected.score, abs=1e-4)
    (line,) = (out / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["score"] == pytest.approx(expected.score, abs=1e-4)
    run = json.loads((out / "run.json").read_text())
    assert run["runtime"] == ("onnx" if name.endswith("onnx") else "openvino") and run["runtime_sha256"]


@pytest.mark.slow
def test_what_an_exported_model_cannot_do(models, tmp_path: Path) -> None:
    folder, _ = models
    path = folder / NAMES[0]
    for key, value in {
        "method": "clip",
        "image_size": 48,
        "normal": "x",
        "layers": [1],
        "compile": True,
    }.items():
        with pytest.raises(BadOption, match=key):
            blemish.load(runtime=path, **{key: value})
    with pytest.raises(BadOption, match="bf16"):
        load_runtime(path, precision="bf16")
    with pytest.raises(BadOption, match="threads"):
        load_runtime(path, threads=0)
    lonely = tmp_path / "lonely.xml"
    lonely.write_bytes((folder / NAMES[1]).read_bytes())
    with pytest.raises(BadModel, match=r"lonely\.bin"):
        load_runtime(lonely)
    assert [file.suffix for file in model_files(folder / NAMES[1])] == [".xml", ".bin"]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, content, words in (
        ("a.onnx", b"not a model", "cannot be read"),
        ("b.txt", b"", "ends in .onnx or .xml"),
        ("c.onnx", None, "does not exist"),
        ("d.onnx", b"", "cannot be read|was not written"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BadModel, match=words):
            load_runtime(tmp_path / name)
