"""Resizing and normalising as a part of an exported model: uint8 pixels (B, H, W, 3) of any size in.

Both ways follow Pillow's bicubic resize of 8-bit pixels, which `blemish.data.transforms.preprocess` uses; single
pixels differ by one level of 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blemish.deploy.engines import INPUT, require

_INNER = "network_input"


def add_to_onnx(
    path: Path, size: int, mean: Sequence[float], std: Sequence[float], properties: dict[str, str]
) -> None:
    """Change the ONNX file so that it takes pixels, and its metadata. Weights beside it stay where they are."""
    onnx: Any = require("onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper.from_array
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    for node in graph.node:
        node.input[:] = [_INNER if name == INPUT else name for name in node.input]
    scale = 1 / (255 * np.asarray(std, dtype=np.float32))
    shift = -np.asarray(mean, dtype=np.float32) / np.asarray(std, dtype=np.float32)
    graph.initializer.extend(
        [
            numbers(np.array([size, size], dtype=np.int64), "input_size"),
            numbers(np.array([1], dtype=np.int64), "input_one"),
            *(numbers(np.array(c, dtype=np.int64), f"input_c{c}") for c in range(3)),
            numbers(scale.astype(np.float32).reshape(1, 3, 1, 1), "input_scale"),
            numbers(shift.astype(np.float32).reshape(1, 3, 1, 1), "input_shift"),
        ]
    )
    # Channels are taken apart and put in front: ONNX Runtime would move a Transpose past Resize, and fails at it.
    planes = [f"input_plane{c}" for c in range(3)]
    steps = [
        *(helper.make_node("Gather", [INPUT, f"input_c{c}"], [f"input_flat{c}"], axis=3) for c in range(3)),
        *(helper.make_node("Unsqueeze", [f"input_flat{c}", "input_one"], [planes[c]]) for c in range(3)),
        helper.make_node("Concat", planes, ["input_planes"], axis=1),
        helper.make_node(
            "Resize",
            ["input_planes", "", "", "input_size"],
            ["input_resized"],
            axes=[2, 3],
            mode="cubic",
            antialias=1,
            cubic_coeff_a=-0.5,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        ),
        helper.make_node("Cast", ["input_resized"], ["input_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["input_float", "input_scale"], ["input_scaled"]),
        helper.make_node("Add", ["input_scaled", "input_shift"], [_INNER]),
    ]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:]
    graph.input.append(
        helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["batch", "height", "width", 3])
    )
    helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def add_to_openvino(model: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """An OpenVINO model that takes pixels."""
    openvino: Any = require("openvino")
    kinds = openvino.preprocess
    steps = kinds.PrePostProcessor(model)
    pixels = steps.input(INPUT)
    pixels.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    pixels.tensor().set_spatial_dynamic_shape()
    pixels.model().set_layout(openvino.Layout("NCHW"))
    inside = pixels.preprocess().resize(kinds.ResizeAlgorithm.RESIZE_BICUBIC_PILLOW)
    inside.convert_element_type(openvino.Type.f32)
    inside.mean([255 * value for value in mean]).scale([255 * value for value in std])
    return steps.build()
