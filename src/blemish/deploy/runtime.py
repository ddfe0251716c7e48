"""Predictions from an exported model, without torch: the same pictures in, the same `Result` out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.transforms import preprocess
from blemish.deploy.engines import Engine, model_hash, open_engine
from blemish.errors import BadOption
from blemish.machine import REPORTED_FLAGS, cpu_flags, cpu_name, system_name
from blemish.predictor import Outputs, Predictor, Setup

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class RuntimeDetector(Predictor):
    """A predictor whose network is a file of `blemish export`; `blemish.load(runtime=...)` makes it."""

    def __init__(self, engine: Engine, setup: Setup, threads: int | None = None) -> None:
        super().__init__(setup, engine.meta.mean, engine.meta.std)
        self.engine, self.meta, self.threads = engine, engine.meta, threads

    @property
    def map_range(self) -> tuple[float, float]:
        """The range that map values can take: the fixed colour scale."""
        low, high = self.meta.map_range
        return float(low), float(high)

    @property
    def precision(self) -> str:
        """ "fp32", "bf16", "fp16", or "int8" and "int8 weights" for quantised models."""
        return self.engine.precision

    @property
    def device_name(self) -> str:
        """Where the engine runs, such as "cpu"."""
        return self.engine.device

    @property
    def needs_class_name(self) -> bool:
        """Whether the texts inside the file name what the pictures show, and nobody said so at export."""
        return self.meta.uses_class_names and self.setup.class_name is None

    def machine(self) -> dict[str, Any]:
        """The processor; threads: None where the engine chooses."""
        return {
            "system": system_name(),
            "cpu": cpu_name(),
            "flags": sorted(cpu_flags().intersection(REPORTED_FLAGS)),
            "threads": self.threads,
            "gpu": "",
        }

    def _network_input(self, pixels: np.ndarray) -> np.ndarray:
        if self.meta.preprocess:
            return pixels
        return preprocess(pixels, self.setup.image_size, self._mean, self._std)

    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        self.warn_about_class_name()
        if attention:
            raise BadOption("an exported model gives no attention maps; load the method itself")
        maps, scores = self.engine.run(inputs)
        return maps, scores, [None] * len(inputs)


def load_runtime(
    path: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    tile: int | str | None = None,
    overlap: float | None = None,
    score_rule: str | None = None,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
) -> RuntimeDetector:
    """The predictor of an exported model; see `blemish.load`.

    precision: of OpenVINO's products; "auto" is bf16 only on processors with instructions for it, and fp32 for the
    small embedded backbone. tile, overlap, score_rule, threshold, pixel_threshold: in place of those in the file;
    its threshold does not hold for another score_rule. Raises
    BadModel for a file that is no such model, BadOption, and MissingPackage for an engine that is not installed.
    """
    if threads is not None and threads < 1:
        raise BadOption(f"threads is {threads}; expected at least 1")
    if precision not in PRECISIONS:
        raise BadOption(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
    engine = open_engine(path, device, precision, threads)
    setup = replace(engine.meta.setup, runtime=engine.name, runtime_sha256=model_hash(path))
    setup = setup.with_asked(
        tile=tile,
        overlap=overlap,
        score_rule=score_rule,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
    )
    return RuntimeDetector(engine, setup, threads)
