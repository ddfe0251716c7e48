"""A detector as a file for ONNX Runtime or OpenVINO, checked against the detector before it is left."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blemish.data.transforms import preprocess as network_input
from blemish.deploy import parity
from blemish.deploy.engines import Engine, model_files, open_engine, require
from blemish.deploy.export_graph import OPSETS, trace, write_onnx
from blemish.deploy.export_input import add_to_onnx, add_to_openvino
from blemish.deploy.metadata import PREFIX, ModelMeta
from blemish.deploy.parity import Answers, Difference, Samples
from blemish.deploy.quantise import quantise_onnx, quantise_openvino
from blemish.detector import Detector, uses_class_names
from blemish.errors import BadOption, OutputError
from blemish.files import cannot_write, make_folder, public_backbone
from blemish.machine import package_versions

CALIBRATION_IMAGES, COMPARED_IMAGES = 64, 200


@dataclass(frozen=True)
class Quantised:
    """What eight bits changed. bytes_fp32, seconds_fp32: of the exact model, seconds an image.

    images: compared pictures. score_change_mean, score_change_max: absolute. map_correlation: mean over pictures.
    auroc, auroc_fp32: image level, None where the pictures carry no labels of both kinds.
    """

    precision: str
    bytes_fp32: int
    seconds_fp32: float
    images: int
    score_change_mean: float
    score_change_max: float
    map_change_max: float
    map_correlation: float
    auroc: float | None
    auroc_fp32: float | None


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how near it is to the detector.

    files: the model, with its weights where they are a file of their own. map_difference, score_difference: the
    largest between the fp32 model and the detector, over `samples` pictures of `source`; preprocess_difference: of
    the whole with resizing inside. seconds: an image, by itself.
    """

    files: tuple[Path, ...]
    bytes: int
    method: str
    runtime: str
    precision: str
    samples: int
    source: str
    map_difference: float
    score_difference: float
    seconds: float
    preprocess_difference: float | None = None
    quantised: Quantised | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"files": [str(path) for path in self.files]}


def export(
    detector: Detector,
    out: Path,
    *,
    int8: bool = False,
    data: Path | None = None,
    preprocess: bool = False,
    opset: int = OPSETS[0],
    overwrite: bool = False,
) -> ExportReport:
    """Write a detector as OUT.onnx or OUT.xml (with OUT.bin), and say how near it is.

    int8: eight-bit weights; activations too with `data`, a folder of pictures, which they are measured on and
    compared on. data without int8: the pictures of the comparison, in place of generated ones. preprocess: the
    model takes uint8 pixels of any size and resizes them itself. opset: of ONNX. The fp32 model must agree with
    the detector to 1e-4 on maps and scores, one by one and as a batch; else ExportError, and nothing is left.
    Raises BadOption, OutputError, MissingPackage too.
    """
    kind = _check(out, opset, overwrite)
    count = COMPARED_IMAGES if int8 else parity.SAMPLES
    samples = parity.drawn_samples() if data is None else parity.dataset_samples(data, count)
    meta = _meta(detector)
    inputs = [network_input(image, meta.setup.image_size, meta.mean, meta.std) for image in samples.images]
    few = inputs[: parity.SAMPLES]
    expected = _expected(detector, few)
    program = trace(detector)
    with _workplace(out) as place:
        final = place / out.name
        exact = place / f"exact{out.suffix}" if int8 else final
        model = _write(program, exact, kind, meta, opset)
        del program
        engine = open_engine(exact, precision="fp32")
        found = parity.check(engine, few, expected, parity.TOLERANCE)
        answers = parity.answers(engine, inputs if int8 else few)
        del engine
        quantised = None
        if int8:
            before = answers
            meta = dataclasses.replace(meta, precision="int8 weights" if data is None else "int8")
            answers = _in_eight_bits(exact, final, kind, model, inputs, meta)
            quantised = _compared(exact, before, answers, samples, meta.precision)
        del model
        outer = _add_preprocessing(final, kind, meta, samples.images, answers) if preprocess else None
        files = _move(final, out)
    return ExportReport(
        files=tuple(files),
        bytes=sum(path.stat().st_size for path in files),
        method=meta.setup.method,
        runtime=kind,
        precision=meta.precision,
        samples=len(few),
        source=samples.source,
        map_difference=found.map,
        score_difference=found.score,
        seconds=answers.seconds,
        preprocess_difference=outer,
        quantised=quantised,
    )


def _check(out: Path, opset: int, overwrite: bool) -> str:
    """The kind of file asked for, before anything slow is done."""
    kinds = {".onnx": "onnx", ".xml": "openvino"}
    if out.suffix not in kinds:
        raise BadOption(f"--out is {out}; expected a name that ends in .onnx (ONNX) or .xml (OpenVINO)")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise BadOption(f"opset is {opset}; expected {OPSETS[0]} to {OPSETS[1]}")
    if out.is_dir():
        raise OutputError(f"{out} is a folder; name a file")
    if not overwrite and (there := [path for path in model_files(out) if path.exists()]):
        raise OutputError(
            f"{there[0]} exists; replace it with --overwrite, or choose another name with --out"
        )
    for module in ("onnx", "onnxscript", "onnxruntime" if kinds[out.suffix] == "onnx" else "openvino"):
        require(module)
    return kinds[out.suffix]


def _meta(detector: Detector) -> ModelMeta:
    config, method, setup = detector.clip.config, detector.method, detector.setup
    low, high = method.score_range
    return ModelMeta(
        setup=dataclasses.replace(setup, backbone=public_backbone(setup.backbone)),
        mean=tuple(config.mean),
        std=tuple(config.std),
        map_range=detector.map_range,
        score_range=(float(low), float(high)),
        uses_class_names=uses_class_names(method),
        versions=package_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@torch.inference_mode()
def _expected(detector: Detector, inputs: Sequence[np.ndarray]) -> Answers:
    """What the detector itself says, one picture at a time."""
    maps, scores = [], []
    started = time.perf_counter()
    for pixels in inputs:
        one_map, score, _ = detector._forward(pixels[None])
        maps.append(one_map[0])
        scores.append(score[0])
    return Answers(np.stack(maps), np.stack(scores), (time.perf_counter() - started) / len(inputs))


def _write(program: torch.export.ExportedProgram, path: Path, kind: str, meta: ModelMeta, opset: int) -> Any:
    """Write the fp32 model; for OpenVINO the model in memory is returned too."""
    properties = meta.to_properties()
    if kind == "onnx":
        write_onnx(program, path, properties, opset)
        return None
    openvino: Any = require("openvino")
    between = path.with_suffix(".onnx")
    write_onnx(program, between, {}, opset)
    model = openvino.convert_model(str(between))
    for file in model_files(between):
        file.unlink()
    _save_openvino(model, path, properties)
    return model


def _save_openvino(model: Any, path: Path, properties: dict[str, str]) -> None:
    openvino: Any = require("openvino")
    for key, value in properties.items():
        model.set_rt_info(value, [PREFIX.rstrip("."), key.removeprefix(PREFIX)])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _in_eight_bits(
    exact: Path, final: Path, kind: str, model: Any, inputs: Sequence[np.ndarray], meta: ModelMeta
) -> Answers:
    """Write the model anew as `meta.precision` says; what it answers to all inputs. "int8" measures on some of them."""
    measured = inputs[:: max(1, len(inputs) // CALIBRATION_IMAGES)] if meta.precision == "int8" else None
    if kind == "openvino":
        small = quantise_openvino(model, measured, meta.setup.image_size)
        _save_openvino(small, final, meta.to_properties())
    else:
        quantise_onnx(exact, final, measured, meta.setup.image_size, meta.to_properties())
    return parity.answers(open_engine(final, precision="fp32"), inputs)


def _compared(exact: Path, before: Answers, after: Answers, samples: Samples, precision: str) -> Quantised:
    changes = np.abs(after.scores - before.scores)
    return Quantised(
        precision=precision,
        bytes_fp32=sum(path.stat().st_size for path in model_files(exact)),
        seconds_fp32=before.seconds,
        images=len(samples.images),
        score_change_mean=float(changes.mean()),
        score_change_max=float(changes.max()),
        map_change_max=parity.difference(after, before).map,
        map_correlation=parity.map_correlation(after, before),
        auroc=parity.auroc(after.scores, samples.labels),
        auroc_fp32=parity.auroc(before.scores, samples.labels),
    )


def _add_preprocessing(
    path: Path, kind: str, meta: ModelMeta, images: Sequence[np.ndarray], plain: Answers
) -> float:
    """Put the resizing into the file; the largest difference from what it said to our own network inputs."""
    meta = dataclasses.replace(meta, preprocess=True)
    if kind == "onnx":
        add_to_onnx(path, meta.setup.image_size, meta.mean, meta.std, meta.to_properties())
    else:
        openvino: Any = require("openvino")
        model = openvino.Core().read_model(path)
        changed = path.with_name(f"with-input-{path.name}")
        _save_openvino(add_to_openvino(model, meta.mean, meta.std), changed, meta.to_properties())
        del model
        _move(changed, path)
    engine: Engine = open_engine(path, precision="fp32")
    count = min(len(images), parity.SAMPLES)
    expected = Answers(plain.maps[:count], plain.scores[:count], 0.0)
    exact = meta.precision == "fp32"
    limit = parity.PREPROCESS_TOLERANCE if exact else parity.PREPROCESS_TOLERANCE_INT8
    found: Difference = parity.check(engine, images[:count], expected, limit)
    return max(found.map, found.score)


@contextlib.contextmanager
def _workplace(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is gone afterwards, whatever happens."""
    make_folder(out.parent)
    place = out.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        place.mkdir()
        yield place
    except OSError as error:
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _move(source: Path, target: Path) -> list[Path]:
    """Give a finished model its name: the weights first, so that a model never lacks them."""
    ending = {".xml": lambda path: path.with_suffix(".bin")}.get(
        source.suffix, lambda path: path.with_name(f"{path.name}.data")
    )
    moved = [target]
    if ending(source).is_file():
        ending(source).replace(ending(target))
        moved.append(ending(target))
    else:  # of an earlier model that is replaced
        ending(target).unlink(missing_ok=True)
    source.replace(target)
    return moved
