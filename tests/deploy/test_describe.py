"""`blemish info` on exported models: read from the files alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blemish.cli import main
from blemish.deploy.describe import describe_model
from blemish.deploy.metadata import ModelMeta
from blemish.errors import BadModel
from blemish.predictor import Setup

SETUP = Setup("anomaly_clip", "ViT-L-14-336", 518, options={"sigma": 4.0}, threshold=0.75, class_name="nut é")
META = ModelMeta(
    SETUP,
    (0.5, 0.4, 0.3),
    (0.2, 0.2, 0.2),
    (0.0, 1.0),
    (0.0, 2.0),
    versions={"torch": "9.9"},
    created="today",
)


def write_onnx(path: Path, properties: dict[str, str], external: bool = False) -> Path:
    """A model of one product, its weights beside it if asked for."""
    weights = numpy_helper.from_array(np.arange(300, dtype=np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [300]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    helper.set_model_props(model, properties)
    location = f"{path.name}.data"
    onnx.save(model, str(path), save_as_external_data=external, location=location, size_threshold=0)
    return path


def write_openvino(path: Path, properties: dict[str, str]) -> Path:
    from xml.sax.saxutils import quoteattr

    rows = "".join(f"<{k.removeprefix('blemish.')} value={quoteattr(v)}/>" for k, v in properties.items())
    # Layers have information of their own, which is none of the model's.
    layer = '<layer><rt_info><blemish><method value="&quot;clip&quot;"/></blemish></rt_info></layer>'
    path.write_text(f"<net><layers>{layer}</layers><rt_info><blemish>{rows}</blemish></rt_info></net>")
    path.with_suffix(".bin").write_bytes(b"weights")
    return path


@pytest.mark.parametrize("name", ["m.onnx", "big.onnx", "m.xml"])
def test_what_a_model_holds(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, properties = tmp_path / name, META.to_properties() | {"other": "1"}
    if path.suffix == ".xml":
        write_openvino(path, META.to_properties())
    else:
        write_onnx(path, properties, external=name == "big.onnx")
    found = describe_model(path)
    assert (found["kind"], found["method"], found["backbone"]) == (
        "exported model",
        "anomaly_clip",
        SETUP.backbone,
    )
    assert found["input"].startswith("images: float32 (B, 3, 518, 518)") and found["precision"] == "fp32"
    assert (found["threshold"], found["class_name"], found["options"]) == (0.75, "nut é", {"sigma": 4.0})
    assert found["versions"] == {"torch": "9.9"} and found["opset"] == (20 if "onnx" in name else None)
    files = {"m.onnx": ["m.onnx"], "big.onnx": ["big.onnx", "big.onnx.data"], "m.xml": ["m.xml", "m.bin"]}[
        name
    ]
    assert found["files"] == files and "missing" not in found
    assert found["bytes"] == sum((tmp_path / file).stat().st_size for file in files)
    assert main(["info", str(path)]) == 0
    assert "options.sigma" in capsys.readouterr().out
    if len(files) > 1:
        (tmp_path / files[1]).unlink()
        assert main(["info", str(path), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["missing"] == files[1:]


def test_pixels_in(tmp_path: Path) -> None:
    meta = replace(META, preprocess=True, precision="int8")
    found = describe_model(write_onnx(tmp_path / "m.onnx", meta.to_properties()))
    assert "uint8 (B, H, W, 3)" in found["input"] and found["precision"] == "int8"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.onnx", b"no model at all", "not an ONNX model"),
        ("a.onnx", b"", "was not written by `blemish export`"),
        ("a.onnx", b"\x3a\xff\xff\x7f", "ends too early"),
        ("a.onnx", b"\x72\x80", "ends too early"),
        ("a.onnx", b"\x70\x01", "not an ONNX model"),
        ("a.onnx", b"\x08" + b"\xff" * 12, "not an ONNX model"),
        ("a.xml", b"<net><layers>", "not an OpenVINO model"),
        ("a.xml", b"<note/>", "was not written by `blemish export`"),
    ],
)
def test_other_files(
    name: str, content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["info", str(tmp_path / name)]) == 2
    assert reason in capsys.readouterr().out


def test_cut_models_are_refused(tmp_path: Path) -> None:
    whole = write_onnx(tmp_path / "m.onnx", META.to_properties()).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        found = describe_model(tmp_path / "cut.onnx")
        assert found["kind"] == "unknown" or length > len(whole) * 0.9
    with pytest.raises(BadModel, match="does not exist"):
        describe_model(tmp_path / "none.onnx")
