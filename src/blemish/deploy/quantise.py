"""Eight-bit models: weights alone, or activations too where there are pictures to measure their ranges on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blemish.deploy.engines import INPUT, require

# Smaller products gain nothing, and their rounding shows in the map.
LEAST_WEIGHTS = 1024


def quantise_onnx(
    source: Path,
    target: Path,
    inputs: Sequence[np.ndarray] | None,
    image_size: int,
    properties: dict[str, str],
) -> None:
    """An ONNX model whose large products have 8-bit weights.

    inputs: network inputs that the ranges of activations are measured on; None leaves their ranges to be found
    for each image at run time. image_size: tells the smoothing of maps, which stays exact, from layers.
    properties: the target's metadata.
    """
    onnx: Any = require("onnx")
    require("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    logging.getLogger().addFilter(_no_remarks)
    try:
        # Folds what is computed from weights alone, such as their transposition.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True, skip_onnx_shape=True)
        names = _layers(onnx.load(str(prepared)), image_size)
        kinds = {"nodes_to_quantize": names, "per_channel": True, "weight_type": quantization.QuantType.QInt8}
        if inputs is None:
            quantization.quantize_dynamic(str(prepared), str(target), **kinds)
        else:
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Reader(inputs),
                activation_type=quantization.QuantType.QUInt8,
                **kinds,
            )
        _set_properties(onnx, target, properties)
    finally:
        logging.getLogger().removeFilter(_no_remarks)
        prepared.unlink(missing_ok=True)


def quantise_openvino(model: Any, inputs: Sequence[np.ndarray] | None) -> Any:
    """An OpenVINO model with 8-bit weights; with `inputs`, 8-bit activations too."""
    nncf: Any = require("nncf")
    nncf.set_log_level(logging.ERROR)
    if inputs is None:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    dataset = nncf.Dataset([pixels[None] for pixels in inputs])
    return nncf.quantize(
        model,
        dataset,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        fast_bias_correction=True,
    )


class _Reader:
    """Calibration inputs in the form that onnxruntime asks for them."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._left: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels = next(self._left, None)
        return None if pixels is None else {INPUT: pixels[None]}


def _layers(model: Any, image_size: int) -> list[str]:
    """Names of the nodes that are layers: products with large constant weights, the smoothing of maps excepted."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    smoothing = (image_size, image_size)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and any(
            math.prod(shapes[name]) >= LEAST_WEIGHTS and shapes[name] != smoothing
            for name in node.input
            if len(shapes.get(name, ())) >= 2
        )
    ]


def _set_properties(onnx: Any, path: Path, properties: dict[str, str]) -> None:
    """Write a model's metadata: the quantiser drops it."""
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def _no_remarks(record: logging.LogRecord) -> bool:
    """Leaves out what the quantiser says to the root logger about its own parameters."""
    return record.levelno >= logging.ERROR
