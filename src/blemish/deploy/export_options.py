"""The options of `blemish export`, on the command line and in a --config file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blemish.config import check_seed
from blemish.errors import BadOption

LOADING = (
    "method",
    "backbone",
    "checkpoint",
    "image_size",
    "class_name",
    "normal",
    "shots",
    "tile",
    "overlap",
    "threshold",
    "pixel_threshold",
    "threads",
)


@dataclass(frozen=True)
class ExportOptions:
    """out, int8, data, preprocess and opset are those of `blemish.deploy.export.export`, seed draws the shots of
    `normal`, the others are those of `blemish.load`; None: not given.
    """

    method: str | None = None
    backbone: str | None = None
    checkpoint: str | None = None
    image_size: int | None = None
    class_name: str | None = None
    normal: str | None = None
    shots: int | None = None
    tile: int | str | None = None
    overlap: float | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    threads: int | None = None
    out: str | None = None
    int8: bool = False
    data: str | None = None
    preprocess: bool = False
    opset: int = 18
    seed: int = 0

    def __post_init__(self) -> None:
        if self.out is None:
            raise BadOption("no file named for the model; pass -o model.onnx, or -o model.xml for OpenVINO")
        check_seed(self.seed)

    @property
    def loading(self) -> dict[str, Any]:
        """What `blemish.load` is given: in fp32 on the CPU, which the file is compared with."""
        given = {name: getattr(self, name) for name in LOADING}
        return given | {"normal_seed": self.seed, "device": "cpu", "precision": "fp32"}
