"""What `blemish serve` serves besides checkpoints: exported models, and few-shot methods with their normal images."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

import blemish
from blemish.deploy.export import export
from blemish.deploy.history import Filter, History
from blemish.deploy.history_databases import open_database
from blemish.deploy.history_models import describe_model, fingerprint
from serving import form

Make = Callable[..., Path]
# Refuses torch wherever it is imported, by whatever module.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""
RUN = "import sys\nfrom blemish.cli import main\nsys.exit(main(['serve', '--port', '0', *sys.argv[1:]]))"


@contextlib.contextmanager
def serving(*arguments: str, before: str = "") -> Iterator[str]:
    """The address of `blemish serve` with these arguments; before: what its Python runs first."""
    command = [sys.executable, "-c", before + RUN, "--threads", "1", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline().strip()
            assert line, process.stderr.read()
            yield urlsplit(line).netloc
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 0


def ask(place: str, path: str, body: bytes | None = None, kind: str = "") -> dict:
    """The JSON of an answer, which must be a success."""
    with contextlib.closing(http.client.HTTPConnection(place, timeout=120)) as connection:
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read()
    assert response.status == 200, text
    return dict(json.loads(text))


def scores(place: str, *paths: Path) -> list[float]:
    body, kind = form(tuple((path.name, path.read_bytes()) for path in paths), {})
    return [entry["score"] for entry in ask(place, "/v1/predict", body, kind)["results"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_an_exported_model_is_served_without_torch(
    small_checkpoint: Make, draw: Make, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("openvino" if name.endswith("xml") else "onnxruntime")
    checkpoint = small_checkpoint()
    detector = blemish.load(checkpoint=checkpoint, precision="fp32", device="cpu")
    export(detector, tmp_path / name)
    paths = [draw(f"{number}.png", (40 + number, 30)) for number in range(3)]
    arguments = ("--runtime", str(tmp_path / name), "--precision", "fp32", "--db", str(tmp_path / "h.db"))
    with serving(*arguments, before=WITHOUT_TORCH) as place:
        loaded = ask(place, "/v1/methods")["loaded"]
        assert loaded["runtime"] == ("onnx" if name.endswith("onnx") else "openvino")
        assert (loaded["threshold"], loaded["pixel_threshold"]) == (0.5, 0.5)
        assert scores(place, *paths) == pytest.approx([detector.predict(p).score for p in paths], abs=1e-4)
    with contextlib.closing(History(open_database(tmp_path / "h.db"))) as history:
        # Verdicts on it count for the checkpoint that it was made from.
        assert {item["model"] for item in history.all(Filter())} == {
            fingerprint(describe_model(detector, None))
        }


@pytest.mark.slow
def test_normal_images_are_used_by_the_service(small_checkpoint: Make, draw: Make, tmp_path: Path) -> None:
    normals = tmp_path / "normals"
    for number in range(3):
        draw(f"normals/{number}.png", (60, 60))
    strange = tmp_path / "strange.png"
    Image.new("RGB", (60, 60), (250, 10, 10)).save(strange)
    options = {"checkpoint": str(small_checkpoint("april_gan")), "class_name": "nut", "precision": "fp32"}
    arguments = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)]
    with serving(*arguments, "--normal", str(normals), "--shots", "2") as place:
        found = scores(place, normals / "0.png", strange)
    detector = blemish.load(**options, device="cpu", normal=normals, shots=2)
    assert found == pytest.approx([detector.predict(p).score for p in (normals / "0.png", strange)], abs=1e-5)
    plain = blemish.load(**options, device="cpu")
    assert found[1] != pytest.approx(plain.predict(strange).score, abs=1e-5)
