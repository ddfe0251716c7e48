"""Eight-bit models: weights alone, or activations too where there are pictures to measure their ranges on.

In both kinds of file only layers are quantised: products with large constant weights. Attention, the comparison with
the texts and the smoothing of maps stay in fp32, and so do convolutions: those that turn pixels into tokens hold few
weights and make most of the error (docs/export.md has figures).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blemish.deploy import engines
from blemish.deploy.engines import INPUT, model_files, require

# Smaller products gain nothing, and their rounding shows in the map.
LEAST_WEIGHTS = 1024
# A product with fewer columns is a comparison with texts, however wide they are.
LEAST_COLUMNS = 16
OPENVINO_CONVOLUTIONS = ("Convolution", "GroupConvolution")


def quantise_onnx(
    source: Path,
    target: Path,
    inputs: Sequence[np.ndarray] | None,
    image_size: int,
    properties: dict[str, str],
) -> None:
    """An ONNX model whose layers have 8-bit weights, by output channel.

    inputs: network inputs that the ranges of activations are measured on; None leaves activations as they are.
    image_size: tells the smoothing of maps from layers. properties: the target's metadata.
    """
    onnx: Any = require("onnx")
    require("onnxruntime")
    prepared = target.with_suffix(".prepared.onnx")
    external = len(model_files(source)) > 1
    logging.getLogger().addFilter(_no_remarks)
    try:
        _fold_constants(source, prepared, external)
        model = onnx.load(str(prepared))
        names = _layers(model, image_size)
        if inputs is None:
            _round_weights(onnx, model, set(names))
        else:
            del model
            _quantise_activations(prepared, target, inputs, names, external)
            model = onnx.load(str(target))
        _save(onnx, model, target, properties)
    finally:
        logging.getLogger().removeFilter(_no_remarks)
        for file in model_files(prepared):
            file.unlink(missing_ok=True)


def _fold_constants(source: Path, target: Path, external: bool) -> None:
    """Write an ONNX model without what is computed from weights alone, such as their transposition.

    external: the weights go into a file of their own.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(
        str(source),
        str(target),
        skip_symbolic_shape=True,
        skip_onnx_shape=True,
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        external_data_location=f"{target.name}.data",
    )


def _quantise_activations(
    source: Path, target: Path, inputs: Sequence[np.ndarray], names: list[str], external: bool
) -> None:
    """Write an ONNX model whose nodes `names` have 8-bit weights and activations, of the ranges that `inputs` show."""
    from onnxruntime import quantization

    quantization.quantize_static(
        str(source),
        str(target),
        _Reader(inputs),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_quantize=names,
        per_channel=True,
        use_external_data_format=external,
    )


def quantise_openvino(model: Any, inputs: Sequence[np.ndarray] | None, image_size: int) -> Any:
    """An OpenVINO model whose layers have 8-bit weights; with `inputs`, 8-bit activations too."""
    with _without_bars():
        nncf: Any = require("nncf")
        nncf.set_log_level(logging.ERROR)
        if inputs is None:
            exact = nncf.IgnoredScope(names=_exact_layers(model, image_size), validate=False)
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=exact)
        exact = nncf.IgnoredScope(names=_exact_operations(model, image_size), validate=False)
        dataset = nncf.Dataset([pixels[None] for pixels in inputs])
        # nncf's default, a mean of the pictures' extremes, cuts off what is unusual: the very thing looked for.
        estimator = importlib.import_module("nncf.quantization.range_estimator")
        extremes = estimator.RangeEstimatorParametersSet.MINMAX
        return nncf.quantize(
            model,
            dataset,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            fast_bias_correction=True,
            ignored_scope=exact,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=extremes
            ),
        )


class _Reader:
    """Calibration inputs in the form that onnxruntime asks for them."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._left: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels = next(self._left, None)
        return None if pixels is None else {INPUT: pixels[None]}


def _is_layer(shape: Sequence[int], image_size: int) -> bool:
    """Whether constants of this shape are a layer's weights: large, and no texts and not the smoothing of maps."""
    product = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    large = len(product) == 2 and min(product) >= LEAST_COLUMNS and math.prod(product) >= LEAST_WEIGHTS
    return large and tuple(product) != (image_size, image_size)


def _layers(model: Any, image_size: int) -> list[str]:
    """Names of the nodes of an ONNX model that are layers."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm")
        and any(_is_layer(shapes.get(name, ()), image_size) for name in node.input)
    ]


def _exact_layers(model: Any, image_size: int) -> list[str]:
    """Names of the convolutions of an OpenVINO model, and of the products that are no layers."""
    found = [
        node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in OPENVINO_CONVOLUTIONS
    ]
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            sources = [given.get_source_output() for given in node.inputs()]
            constants = [s for s in sources if s.get_node().get_type_name() == "Constant"]
            if not any(_is_layer(tuple(s.get_shape()), image_size) for s in constants):
                found.append(node.get_friendly_name())
    return found


def _exact_operations(model: Any, image_size: int) -> list[str]:
    """Names of all operations of an OpenVINO model that stay exact with 8-bit activations.

    nncf would quantise more than layers: the factors of attention, and maps before they are enlarged.
    """
    exact = {*_exact_layers(model, image_size), *_wrong_in_eight_bits(model)}
    nodes = [(node.get_friendly_name(), node.get_type_name()) for node in model.get_ops()]
    return [name for name, kind in nodes if name in exact or kind not in ("MatMul", "Constant")]


def _wrong_in_eight_bits(model: Any) -> list[str]:
    """Names of products of an OpenVINO model that its CPU program computes wrongly with 8-bit activations (2026.4.1).

    Those with one row an image: where a mean or maximum makes the row, scales of channels are mixed up, and there is
    little to gain on any of them.
    """
    found = []
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            rank = node.input_value(0).get_partial_shape().rank
            if rank.is_static and rank.get_length() == 2:
                found.append(node.get_friendly_name())
    return found


def _round_weights(onnx: Any, model: Any, names: set[str]) -> None:
    """Replace the weights of the named nodes by 8-bit ones with a scale for each output channel."""
    weights = {t.name: t for t in model.graph.initializer}
    rounded: dict[tuple[str, int], str] = {}
    nodes = []
    for node in model.graph.node:
        for place, name in enumerate(node.input) if node.name in names else ():
            if name not in weights or len(weights[name].dims) < 2:
                continue
            channels = _channel_axis(node, len(weights[name].dims))
            if (name, channels) not in rounded:
                label = f"{name}_{channels}"
                rounded[name, channels] = f"{label}_rounded"
                values, scales = _eight_bits(onnx.numpy_helper.to_array(weights[name]), channels)
                model.graph.initializer.extend(
                    [
                        onnx.numpy_helper.from_array(values, f"{label}_int8"),
                        onnx.numpy_helper.from_array(scales, f"{label}_scale"),
                    ]
                )
                inputs = [f"{label}_int8", f"{label}_scale"]
                outputs = [rounded[name, channels]]
                nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, outputs, axis=channels))
            node.input[place] = rounded[name, channels]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    for field, content in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in content]
        del field[:]
        field.extend(copies)


def _channel_axis(node: Any, rank: int) -> int:
    """The axis of a layer's weights that counts its outputs."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else rank - 1


def _eight_bits(weights: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 of the same shape, and the float32 scale of each channel."""
    others = tuple(axis for axis in range(weights.ndim) if axis != channels)
    scales = np.abs(weights).max(axis=others, keepdims=True) / 127
    scales[scales == 0] = 1
    return np.rint(weights / scales).astype(np.int8), scales.ravel().astype(np.float32)


def _save(onnx: Any, model: Any, path: Path, properties: dict[str, str]) -> None:
    """Write a model with its metadata, which quantisers drop; in one file where it fits."""
    onnx.helper.set_model_props(model, properties)
    for file in model_files(path):
        file.unlink(missing_ok=True)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    external = size > engines.SINGLE_FILE_BYTES
    onnx.save(model, str(path), save_as_external_data=external, location=f"{path.name}.data")


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps the progress bars of nncf out of standard output; they are shown where people look, or nowhere."""
    place = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(place):
        yield


def _no_remarks(record: logging.LogRecord) -> bool:
    """Leaves out what the quantiser says to the root logger about its own parameters."""
    return record.levelno >= logging.ERROR
