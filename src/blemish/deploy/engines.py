"""The programs that run exported models, ONNX Runtime and OpenVINO, behind one small interface."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from blemish.deploy.contents import missing_weights, read_contents
from blemish.deploy.metadata import PREFIX, ModelMeta
from blemish.errors import BadModel, BadOption, MissingPackage
from blemish.files import file_hash
from blemish.machine import has_fast_bf16

EXTRAS = {
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "nncf": "openvino",
}
OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
INPUT, OUTPUTS = "images", ("map", "score")
# A protocol buffer ends at 2 GiB; beyond this an ONNX file's weights are written to a file beside it.
SINGLE_FILE_BYTES = 1_900_000_000


class Engine(Protocol):
    """A model loaded for inference. name: "onnx" or "openvino". device: where it runs. precision: what it computes
    in. meta: see there.
    """

    name: str
    device: str
    precision: str
    meta: ModelMeta

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs as the model wants them -> maps (B, S, S) and scores (B,), float32. Safe from several threads."""
        ...


def require(module: str) -> ModuleType:
    """Import an optional package. Raises MissingPackage that names its extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[module]
        raise MissingPackage(f'{module} is not installed; pip install "blemish[{extra}]"') from error


def check_model_path(path: Path) -> str:
    """ "onnx" or "openvino", by the ending of an existing model file. Raises BadModel."""
    kinds = {".onnx": "onnx", ".xml": "openvino"}
    if path.suffix.lower() not in kinds:
        raise BadModel(f"{path}: expected a model that ends in .onnx or .xml (of `blemish export`)")
    if not path.is_file():
        raise BadModel(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; make it with `blemish export`"
        )
    return kinds[path.suffix.lower()]


def model_files(path: Path) -> list[Path]:
    """The model and the files beside it that hold its weights: what has to be moved together."""
    beside = (
        path.with_suffix(".bin") if path.suffix.lower() == ".xml" else path.with_name(f"{path.name}.data")
    )
    return [path, *([beside] if beside.is_file() else [])]


def model_hash(path: Path) -> str:
    """SHA-256 of a model; of its text where the weights are in a file of their own, then of those."""
    return "-".join(file_hash(file) for file in model_files(path))


class OnnxEngine:
    """ONNX Runtime, on the CPU, or on a GPU where its CUDA build is installed and `device` asks for it."""

    name = "onnx"

    def __init__(self, path: Path, device: str = "auto", threads: int | None = None) -> None:
        ort = require("onnxruntime")
        self.path = path
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        providers, self.device = _providers(ort, device)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        # Its exceptions have no common base but Exception.
        except Exception as error:
            raise _unreadable(path, error) from error
        self.meta = ModelMeta.from_properties(self._session.get_modelmeta().custom_metadata_map, path)
        self.precision = self.meta.precision

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.run`. Raises RuntimeError, whose text speaks of memory where that is short."""
        try:
            maps, scores = self._session.run(list(OUTPUTS), {INPUT: inputs})
        except Exception as error:
            raise _failed(error) from error
        return maps, scores


class OpenVinoEngine:
    """OpenVINO on the CPU. precision: of the products, "fp32", "bf16", "fp16", or "auto": bf16 on processors with
    instructions for it, but not for the small embedded backbone nor for quantised models.
    """

    name, device = "openvino", "cpu"

    def __init__(
        self, path: Path, device: str = "auto", threads: int | None = None, precision: str = "auto"
    ) -> None:
        if device not in ("auto", "cpu"):
            raise BadOption(f"device is {device}; OpenVINO models run on the CPU here, leave --device out")
        openvino = require("openvino")
        self.path = path
        core = openvino.Core()
        try:
            model = core.read_model(str(path))
        except Exception as error:
            raise _unreadable(path, error) from error
        self.meta = meta = ModelMeta.from_properties(_rt_info(model), path)
        if precision == "auto":
            small = meta.setup.backbone == "tiny" or meta.precision != "fp32"
            precision = "bf16" if has_fast_bf16() and not small else "fp32"
        self.precision = precision if meta.precision == "fp32" else meta.precision
        hints: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": OPENVINO_HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(model, "CPU", hints)
        except Exception as error:
            raise BadModel(f"{path}: OpenVINO cannot prepare it ({_first_line(error)})") from error

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine.run`. Raises RuntimeError, whose text speaks of memory where that is short."""
        try:
            # A request of its own for each call: one that is shared cannot be used from two threads.
            found = self._compiled.create_infer_request().infer([inputs])
        except Exception as error:
            raise _failed(error) from error
        return found[0], found[1]


def open_engine(
    path: Path, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine for a model file, by its ending. Raises BadModel, BadOption, MissingPackage."""
    if check_model_path(path) == "openvino":
        return OpenVinoEngine(path, device, threads, precision)
    if precision not in ("auto", "fp32"):
        raise BadOption(
            f"precision is {precision}; ONNX Runtime computes as the file was exported. Take an OpenVINO model "
            f"for bf16, or export with --int8"
        )
    return OnnxEngine(path, device, threads)


def _rt_info(model: Any) -> dict[str, str]:
    """The text pairs below "blemish" in an OpenVINO model's rt_info."""
    section = PREFIX.rstrip(".")
    places = ((f"{PREFIX}{name}", [section, name]) for name in ModelMeta.names())
    return {key: model.get_rt_info(place).astype(str) for key, place in places if model.has_rt_info(place)}


def _providers(ort: ModuleType, device: str) -> tuple[list[Any], str]:
    has_cuda = "CUDAExecutionProvider" in ort.get_available_providers()
    kind, _, number = device.partition(":")
    if device == "cpu" or (device == "auto" and not has_cuda):
        return ["CPUExecutionProvider"], "cpu"
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise BadOption(f"device is {device}; ONNX Runtime takes auto, cpu, cuda or cuda:N")
    if not has_cuda:
        raise BadOption(f"device is {device}, and this ONNX Runtime has no CUDA; pip install onnxruntime-gpu")
    cuda = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
    return [cuda, "CPUExecutionProvider"], f"cuda:{number or 0}"


def _unreadable(path: Path, error: Exception) -> BadModel:
    try:
        missing = missing_weights(path, read_contents(path))
    except BadModel:  # damaged: the engine's own words say more
        missing = []
    if missing:
        return BadModel(
            f"{path}: {missing[0]}, which holds its weights, is not beside it; copy both, under the names they had"
        )
    return BadModel(f"{path} cannot be read as a model ({_first_line(error)}); export it anew")


def _failed(error: Exception) -> RuntimeError:
    text = _first_line(error)
    if "alloc" in text.lower():
        return RuntimeError(f"out of memory: {text}")
    return RuntimeError(f"the exported model failed: {text}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
