"""Eight bits in a small network made by hand: which products, how near to fp32, what stays in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blemish.deploy import engines
from blemish.deploy.describe import describe_model
from blemish.deploy.engines import OnnxEngine, model_files, open_engine
from blemish.deploy.export_input import add_to_onnx
from blemish.deploy.metadata import ModelMeta
from blemish.deploy.quantise import (
    _channel_axis,
    _eight_bits,
    _exact_layers,
    _is_layer,
    quantise_onnx,
    quantise_openvino,
)
from blemish.errors import BadModel
from blemish.predictor import Setup

SIDE = 40
META = ModelMeta(
    Setup("clip", "tiny", SIDE), (0.5,) * 3, (0.5,) * 3, (0.0, 1.0), (0.0, 1.0), precision="int8 weights"
)


def network(path: Path, *, external: bool = False) -> Path:
    """A convolution, two layers of rows of a map and its smoothing, a layer of one row, a comparison with two texts."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (48, 3, 3, 3), "layer": (48, 768), "texts": (768, 2), "smooth": (SIDE, SIDE)}
    shapes |= {"up": (SIDE, 48), "down": (48, SIDE)}
    values = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    values["layer"][:, 5] = 0
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "conv"], ["planes"], name="conv", pads=[1, 1, 1, 1]),
        node("ReduceMean", ["planes", "one"], ["plane"], keepdims=0),
        node("MatMul", ["plane", "up"], ["wide"], name="up"),
        node("MatMul", ["wide", "down"], ["rows"], name="down"),
        node("MatMul", ["rows", "smooth"], ["map"], name="smooth"),
        node("ReduceMax", ["planes", "sides"], ["pooled"], keepdims=0),
        node("MatMul", ["pooled", "layer"], ["features"], name="layer"),
        node("MatMul", ["features", "texts"], ["logits"], name="texts"),
        node("ReduceSum", ["logits", "one"], ["score"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    constants += [
        numpy_helper.from_array(np.array([1]), "one"),
        numpy_helper.from_array(np.array([2, 3]), "sides"),
    ]
    kinds = {"images": ["b", 3, SIDE, SIDE], "map": ["b", SIDE, SIDE], "score": ["b"]}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in kinds.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, META.to_properties())
    location = f"{path.name}.data"
    onnx.save(model, str(path), save_as_external_data=external, location=location, size_threshold=200)
    return path


def inputs(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(1 + i / 4, 1, (3, SIDE, SIDE)).astype(np.float32) for i in range(count)]


def kinds(path: Path) -> dict[str, str]:
    """Element types of the constants that the products end in."""
    model = onnx.load(str(path))
    types = {t.name: TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Conv"):
            name = node.input[1]
            name = makers[name].input[0] if name in makers else name
            found[node.name] = types[name]
    return found


def answers(engine: Any) -> tuple[np.ndarray, np.ndarray]:
    maps, scores = engine.run(np.stack(inputs()))
    return maps, scores


@pytest.mark.parametrize("given", [None, 4])
@pytest.mark.parametrize("external", [False, True])
def test_onnx(given: int | None, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if external:
        monkeypatch.setattr(engines, "SINGLE_FILE_BYTES", 1000)
    source, target = network(tmp_path / "exact.onnx", external=external), tmp_path / "small.onnx"
    quantise_onnx(source, target, None if given is None else inputs(given), SIDE, META.to_properties())
    names = ["exact.onnx", "exact.onnx.data", "small.onnx", "small.onnx.data"]
    assert sorted(p.name for p in tmp_path.iterdir()) == (names if external else names[::2])
    expected = dict.fromkeys(("up", "down", "layer"), "INT8")
    assert kinds(target) == expected | dict.fromkeys(("conv", "texts", "smooth"), "FLOAT")
    maps, scores = answers(OnnxEngine(source))
    found_maps, found_scores = answers(OnnxEngine(target))
    limit = 0.1
    assert 0 < np.abs(found_maps - maps).max() < limit * np.abs(maps).max()
    assert np.abs(found_scores - scores).max() < limit * np.abs(scores).max()
    assert describe_model(target)["precision"] == "int8 weights"


def test_what_counts_as_a_layer() -> None:
    layers = ((1024, 3072), (1, 768, 512), (768, 16), (64, 16))
    others = ((1, 768, 2), (1, 2, 768), (768, 2), (2, 768), (8, 8), (4096,), (518, 518), (1024, 3, 14, 14))
    assert all(_is_layer(shape, 518) for shape in layers)
    assert not any(_is_layer(shape, 518) for shape in others)


def test_pixels_in_with_weights_beside(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", external=True)
    image = np.random.default_rng(2).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    plain = OnnxEngine(path).run((image[None].transpose(0, 3, 1, 2) / 255 * 2 - 1).astype(np.float32))
    properties = META.to_properties() | {"blemish.preprocess": "true"}
    add_to_onnx(path, SIDE, META.mean, META.std, properties)
    assert [p.name for p in model_files(path)] == ["m.onnx", "m.onnx.data"]
    found = OnnxEngine(path)
    assert found.meta.preprocess
    for mine, other in zip(found.run(image[None]), plain, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    (tmp_path / "m.onnx.data").rename(tmp_path / "other.data")
    with pytest.raises(BadModel, match=r"m\.onnx\.data, which holds its weights, is not beside it"):
        open_engine(path)


def test_rounding() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    weights[2] = 0
    for axis in (0, 1):
        values, scales = _eight_bits(weights, axis)
        assert (
            values.dtype == np.int8 and np.abs(values).max() == 127 and scales.shape == (weights.shape[axis],)
        )
        back = values * np.expand_dims(scales, 1 - axis)
        assert (np.abs(back - weights) <= np.expand_dims(scales, 1 - axis) / 2 + 1e-7).all()
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    assert [_channel_axis(gemm, 2), _channel_axis(helper.make_node("Gemm", ["x", "w"], ["y"]), 2)] == [0, 1]


def test_products_that_stay_exact_in_openvino(tmp_path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(str(network(tmp_path / "m.onnx")))
    # OpenVINO calls a product by its output where that is the model's, and numbers equal names.
    assert sorted(name.partition("_")[0] for name in _exact_layers(model, SIDE)) == ["conv", "map", "texts"]


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, 4])
def test_openvino(given: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import openvino

    core = openvino.Core()
    source = str(network(tmp_path / "m.onnx"))
    exact = core.compile_model(source, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    small = quantise_openvino(core.read_model(source), None if given is None else inputs(given), SIDE)
    rows = {(SIDE, 48), (48, SIDE)}
    # With activations OpenVINO would lose the scores by the layer of a maximum.
    assert rounded_shapes(small) == rows | ({(48, 768)} if given is None else set())
    assert {kind for op in small.get_ops() for kind in readers_of_eight_bits(op)} <= {"MatMul", "ShapeOf"}
    found = core.compile_model(small, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(np.stack(inputs()))
    expected = exact(np.stack(inputs()))
    for place, limit in ((0, 0.1), (1, 0.15)):
        worst = np.abs(found[place] - expected[place]).max()
        assert 0 < worst < limit * np.abs(expected[place]).max()
        assert np.corrcoef(found[place].ravel(), expected[place].ravel())[0, 1] > 0.98
    # Standard output belongs to results.
    assert capsys.readouterr().out == ""


def readers_of_eight_bits(operation: Any) -> set[str]:
    """Kinds of what reads an 8-bit activation of an OpenVINO model; nothing for other operations."""
    if operation.get_type_name() != "FakeQuantize":
        return set()
    return {given.get_node().get_type_name() for given in operation.output(0).get_target_inputs()}


def rounded_shapes(model: Any) -> set[tuple[int, ...]]:
    """Shapes of the 8-bit weights of an OpenVINO model."""
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    small = [op for op in constants if op.get_element_type().to_string() in ("i8", "u8")]
    return {tuple(op.shape) for op in small if len(op.shape) > 1 and min(op.shape) > 1}
