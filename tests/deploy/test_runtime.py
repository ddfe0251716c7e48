"""Exported models are used as detectors are, in an environment without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
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
# What `blemish predict` and `blemish serve` need with --runtime; with all that these need themselves.
NEEDED = ("numpy", "scipy", "pillow", "tifffile", "typer", "rich", "onnxruntime", "openvino")
NEEDED += ("fastapi", "uvicorn", "python-multipart")


def with_requirements(names: Iterable[str]) -> set[str]:
    """Distributions and what they require, extras aside."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for other systems
            continue
        if name not in found:
            found.add(name)
            plain = [text for text in required if "extra ==" not in text]
            todo += [match[0] for text in plain if (match := re.match(r"[\w.-]+", text))]
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what is needed and nothing else: no torch, safetensors, onnx or nncf."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "blemish").symlink_to(Path(blemish.__file__).parent)
    for name in with_requirements(NEEDED):
        found = metadata.distribution(name)
        tops = {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run_elsewhere(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code by a Python that finds packages in `folder` alone."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_torch_is_not_there(elsewhere: Path) -> None:
    """What would import it fails, so the test below does where something does."""
    done = run_elsewhere(elsewhere, "import blemish, blemish.deploy.serve; import blemish.detector")
    assert done.returncode != 0 and "No module named 'torch'" in done.stderr
    assert "detector" in done.stderr


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
def test_predict_without_torch(models, elsewhere: Path, name: str, draw: Make, tmp_path: Path) -> None:
    folder, detector = models
    picture = draw("a.png")
    out = tmp_path / "out"
    code = f"""
import importlib.util
import blemish
import blemish.deploy.serve_run
from blemish.cli import main
assert not any(map(importlib.util.find_spec, ("torch", "safetensors", "onnx", "onnxscript", "nncf")))
model, picture = {str(folder / name)!r}, {str(picture)!r}
result = blemish.load(runtime=model, precision="fp32").predict(picture)
status = main(["predict", "--runtime", model, picture, "--precision", "fp32", "-o", {str(out)!r}])
assert main(["info", model]) == 0
print(result.score, status)
"""
    done = run_elsewhere(elsewhere, code)
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
