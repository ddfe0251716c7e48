"""A detector as one graph of tensors: images (B, 3, S, S) in, maps (B, S, S) and scores (B,) out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from blemish.clip.packed import unpack
from blemish.clip.shared import encode_for
from blemish.deploy import engines
from blemish.deploy.engines import INPUT, OUTPUTS, require
from blemish.detector import Detector
from blemish.errors import BlemishError, ExportError

if TYPE_CHECKING:
    from blemish.clip.model import CLIP
    from blemish.types import Method

OPSETS = (18, 23)


class Graph(nn.Module):
    """What is exported. class_name: what all images show; None for the method's generic word."""

    def __init__(self, clip: CLIP, method: Method, class_name: str | None) -> None:
        super().__init__()
        self.clip, self.method, self.class_name = clip, method, class_name

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) -> map (B, S, S) and score (B,), float32."""
        count = 1 if torch.compiler.is_exporting() else len(images)
        names = None if self.class_name is None else [self.class_name] * count
        prediction = self.method(encode_for(self.clip, self.method, images), names)
        return prediction.map.float(), prediction.score.float()


def trace(detector: Detector) -> torch.export.ExportedProgram:
    """The detector's graph for any number of images, at its image size.

    Texts that do not depend on the image, the resized position table and the memory of normal images are
    constants. Raises ExportError with the method's reason where it is no fixed graph.
    """
    name = detector.setup.method
    if reason := getattr(detector.method, "exportable", ""):
        raise ExportError(str(reason))
    if detector.clip.dtype != torch.float32 or detector.device.type != "cpu":
        raise ExportError(
            f"the detector is {detector.precision} on {detector.device}; load it with device=cpu, precision=fp32"
        )
    size = detector.setup.image_size
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    unpack(detector.clip)
    graph = Graph(detector.clip, detector.method, detector.setup.class_name).eval()
    # Text features kept from an inference pass cannot become constants; these are made anew without one.
    cast("nn.Module", detector.method).train(False)
    with torch.no_grad(), _fixed_positions(detector.clip), _quiet():
        try:
            graph(example)
            batch = torch.export.Dim("batch", min=1, max=65_536)
            return torch.export.export(graph, (example,), dynamic_shapes=({0: batch},), strict=False)
        except BlemishError as error:
            raise ExportError(f"{name} cannot be exported: {error}") from error
        except Exception as error:
            first = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise ExportError(f"{name} cannot be exported with these options: {first}") from error


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, properties: dict[str, str], opset: int
) -> None:
    """Write an ONNX file; weights beside it, in `NAME.data`, where they are more than one file may hold."""
    require("onnx")
    require("onnxscript")
    with _quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        assert made is not None
        made.model.metadata_props.update(properties)
        weights = sum(
            value.const_value.nbytes for value in made.model.graph.initializers.values() if value.const_value
        )
        made.save(path, external_data=weights > engines.SINGLE_FILE_BYTES)


@contextlib.contextmanager
def _fixed_positions(clip: CLIP) -> Iterator[None]:
    """Let each position table be resized once, so that it is a constant in what is traced."""
    tower, known = clip.visual, {}
    original = tower.positions

    def positions(grid: tuple[int, int], mode: str) -> Tensor:
        if (grid, mode) not in known:
            known[grid, mode] = original(grid, mode).clone()
        return known[grid, mode]

    own: Any = tower.__dict__
    own["positions"] = positions
    try:
        yield
    finally:
        del own["positions"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracer's remarks on its own ways."""
    chatty = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in chatty]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in chatty:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(chatty, before, strict=True):
                logger.setLevel(level)
