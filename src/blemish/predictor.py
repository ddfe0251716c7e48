"""Pictures of any size in, results at that size out, whatever network is in between. Nothing here needs torch."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.data.images import pixel_count, read_image
from blemish.data.transforms import SQUARES, Box, TileBlender, cut_boxes, map_to_size, preprocess
from blemish.errors import BadImage, BadOption
from blemish.machine import is_out_of_memory
from blemish.pipeline import PIXELS_IN_FLIGHT, decoded_batches
from blemish.score_rule import NATIVE, image_score, top_k
from blemish.types import Result

Source = str | Path | Image.Image | np.ndarray
# What a network returns for B inputs: maps (B, S, S) and scores (B,), float32, and B attention maps or None.
Outputs = tuple[np.ndarray, np.ndarray, Sequence[np.ndarray | None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """One decoded picture on its way to the network.

    image: uint8 (H, W, 3). size: its (H, W). pixels: the network input, float32 (3, S, S) (uint8 (H, W, 3) for an
    exported file that resizes by itself), or None when the picture is cut into `boxes`. path: where it came from,
    when from a file.
    """

    image: np.ndarray
    size: tuple[int, int]
    pixels: np.ndarray | None
    boxes: tuple[Box, ...] = ()
    path: str | None = None


@dataclass(frozen=True)
class Raw:
    """What the network said about one picture. map: float32, network size (own size when tiled).

    attention: float32 (layers, heads, 2, rows, columns) where it was asked for; see `blemish.types.Attends`.
    """

    map: np.ndarray
    score: float
    seconds: float
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Setup:
    """Where a detector's parts came from and how it looks at pictures; written to `run.json`.

    method, backbone: names. checkpoint: file name, empty for methods that learn nothing; checkpoint_sha256
    and backbone_fingerprint identify the weights. tile: side of the tiles in image pixels, None for whole
    images, "square" for squares of an image's shorter side; overlap: share of a tile that it has in common with the
    next. score_rule: how the image score comes about, see `blemish.score_rule.image_score`. normal_images: how many
    a few-shot method remembers; memory_sha256 identifies what it remembers of them. runtime: what runs the network,
    "torch", "onnx" or "openvino"; runtime_sha256 identifies the exported file.
    """

    method: str
    backbone: str
    image_size: int
    options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    checkpoint_sha256: str = ""
    backbone_fingerprint: str = ""
    auxiliary: str = ""
    threshold: float | None = None
    pixel_threshold: float | None = None
    tile: int | str | None = None
    overlap: float = 0.25
    score_rule: str = NATIVE
    class_name: str | None = None
    normal_images: int = 0
    memory_sha256: str = ""
    runtime: str = "torch"
    runtime_sha256: str = ""

    def with_asked(
        self,
        *,
        tile: int | str | None = None,
        overlap: float | None = None,
        score_rule: str | None = None,
        threshold: float | None = None,
        pixel_threshold: float | None = None,
    ) -> Setup:
        """This with what a user asks for, None where nothing. A threshold holds for its own score_rule alone.

        Raises BadOption for a tile that `tile_side` does not know.
        """
        changes: dict[str, Any] = {
            "overlap": overlap,
            "pixel_threshold": pixel_threshold,
            "threshold": threshold,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        if tile is not None:
            changes["tile"] = tile_side(tile)
        if score_rule not in (None, self.score_rule):
            changes |= {"score_rule": score_rule, "threshold": threshold}
        return replace(self, **changes)


def tile_side(given: int | str) -> int | str | None:
    """How pictures are cut, from what a person wrote: a number of pixels, "square", or "none". Raises BadOption."""
    if isinstance(given, int) or given.isdecimal():
        return int(given)
    if given in (SQUARES, "none"):
        return SQUARES if given == SQUARES else None
    raise BadOption(f"tile is {given!r}; expected a number of pixels, square, or none")


class Predictor(ABC):
    """Everything around a network: decoding, tiles, batches, thresholds, maps at the pictures' own sizes.

    The score and map of a picture depend on that picture alone, whatever else is in its batch. `blemish.detector`
    has the one that runs torch, `blemish.deploy.runtime` the one that runs an exported file.
    """

    # The method itself where torch runs it: what goes beyond maps and scores needs it.
    method: Any = None

    def __init__(self, setup: Setup, mean: Sequence[float], std: Sequence[float]) -> None:
        """mean, std: of the network input, per channel, for 0..1. Raises BadOption for impossible values."""
        if setup.tile not in (None, SQUARES) and not (isinstance(setup.tile, int) and setup.tile >= 1):
            raise BadOption(f"tile is {setup.tile}; expected a number of pixels of at least 1")
        if not 0 <= setup.overlap <= 0.9:
            raise BadOption(f"overlap is {setup.overlap}; expected a share of the tile from 0 to 0.9")
        top_k(setup.score_rule)
        for name, value in (("threshold", setup.threshold), ("pixel_threshold", setup.pixel_threshold)):
            if value is not None and not math.isfinite(value):
                raise BadOption(f"{name} is {value}; expected a finite number")
        self.setup = setup
        self._mean, self._std = tuple(mean), tuple(std)
        self._warned = False

    @property
    @abstractmethod
    def map_range(self) -> tuple[float, float]:
        """The range that map values can take: the fixed colour scale."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """The number format that the network computes in, such as "fp32"."""

    @property
    @abstractmethod
    def device_name(self) -> str:
        """Where the network runs, such as "cpu"."""

    @property
    @abstractmethod
    def needs_class_name(self) -> bool:
        """Whether the texts name what the pictures show, and nobody has said what that is."""

    @abstractmethod
    def machine(self) -> dict[str, Any]:
        """What the network runs on, for `run.json`."""

    @abstractmethod
    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        """The network's answer to B inputs of one shape, as `_network_input` makes them."""

    @property
    def ignores_class_name(self) -> bool:
        """Whether somebody has said what the pictures show, and the texts have no place for it."""
        return False

    def warn_about_class_name(self) -> None:
        """Say once that the class is not named and should be, or is and need not; called before the first image."""
        if not self._warned and self.ignores_class_name:
            log.warning(
                "the texts of %s, as it is set here, name no class; --class-name %r changes nothing",
                self.setup.method,
                self.setup.class_name,
            )
        if not self._warned and self.needs_class_name:
            log.warning(
                '%s puts class names into its texts and falls back to "object"; pass --class-name "what the '
                'images show" (class_name= in Python)',
                self.setup.method,
            )
        self._warned = True

    def predict(self, image: Source) -> Result:
        """Score one picture: a path, PIL image, or uint8 array (H, W, 3) or (H, W).

        Raises BadImage when the picture cannot be read or the model returns NaN for it.
        """
        prepared = self.prepare(image)
        return self.finish(prepared, self.infer([prepared])[0])

    def predict_many(self, images: Iterable[Source], batch_size: int = 8) -> Iterator[Result]:
        """Score pictures lazily, in order, decoding a bounded number ahead in threads.

        Raises BadImage when the iteration reaches a picture that cannot be used; results before it have been
        given out. `blemish.run.predict.predict_folder` records such pictures and goes on. Raises BadOption for
        a single picture in place of several and for a batch size below 1.
        """
        if isinstance(images, (str, Path, Image.Image)):
            raise BadOption(
                f"predict_many takes several images, got one {type(images).__name__}; use predict"
            )
        if batch_size < 1:
            raise BadOption(f"batch_size is {batch_size}; expected at least 1")
        batches = decoded_batches(
            self.prepare,
            images,
            batch_size,
            cost=pixel_count,
            is_full=lambda batch: self.is_full(batch, batch_size),
        )
        with closing(batches):
            for batch in batches:
                yield from self._results(batch)
                del batch  # its pictures would live on while the next are decoded

    @staticmethod
    def is_full(batch: Sequence[Prepared | None], batch_size: int) -> bool:
        """Whether a batch should go to the network: enough pictures, or enough pixels held in memory.

        None stands for a picture that could not be read; those alone need not wait for others.
        """
        good = [p for p in batch if p is not None]
        held = sum(p.image.shape[0] * p.image.shape[1] for p in good)
        return not good or len(good) >= batch_size or held >= PIXELS_IN_FLIGHT

    def _results(self, batch: Sequence[Prepared]) -> Iterator[Result]:
        for prepared, raw in zip(batch, self.infer(batch), strict=True):
            yield self.finish(prepared, raw)

    def prepare(self, image: Source) -> Prepared:
        """Decode a picture and make the network input; safe to call from several threads."""
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        path = str(image) if isinstance(image, (str, Path)) else None
        if boxes := cut_boxes((height, width), self.setup.tile, self.setup.overlap):
            return Prepared(pixels, (height, width), None, boxes, path)
        return Prepared(pixels, (height, width), self._network_input(pixels), (), path)

    def infer(self, batch: Sequence[Prepared], tile_batch: int = 8, attention: bool = False) -> list[Raw]:
        """Run the network: whole pictures in one batch, tiled ones `tile_batch` tiles at a time.

        A tiled picture's map is blended from its tiles', its score is the largest of its tiles' scores.
        attention: whole pictures get their attention maps too; the method must have them.
        """
        raw: dict[int, Raw] = {}
        # One group, unless an exported file does the resizing and pictures come as they are.
        groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        for i, prepared in enumerate(batch):
            if (pixels := prepared.pixels) is not None:
                groups.setdefault(pixels.shape, []).append((i, pixels))
        for group in groups.values():
            started = time.perf_counter()
            maps, scores, looks = self._forward(np.stack([pixels for _, pixels in group]), attention)
            share = (time.perf_counter() - started) / len(group)
            ruled = self._scores(maps, scores)
            raw |= {i: Raw(maps[n], ruled[n], share, looks[n]) for n, (i, _) in enumerate(group)}
        for i, prepared in enumerate(batch):
            if prepared.pixels is None:
                raw[i] = self._infer_tiles(prepared, tile_batch)
        return [raw[i] for i in range(len(batch))]

    def infer_each(self, batch: Sequence[Prepared], attention: bool = False) -> Iterator[Raw | str]:
        """`infer`, one by one when memory is short for all together; the cause for what does not fit even so."""
        try:
            yield from self.infer(batch, attention=attention)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) <= 1:
                yield "not enough memory to score it; try --tile"
                return
            log.warning("not enough memory for %d images at once; going on one by one", len(batch))
            for prepared in batch:
                yield from self.infer_each([prepared], attention)

    def finish(self, prepared: Prepared, raw: Raw) -> Result:
        """The result at the picture's own size; safe to call from several threads.

        Raises BadImage when the network returned NaN or infinity.
        """
        if not math.isfinite(raw.score) or not np.isfinite(raw.map).all():
            where = f"{prepared.path}: " if prepared.path else ""
            hint = (
                "" if self.precision == "fp32" else f"; {self.precision} may overflow, try --precision fp32"
            )
            raise BadImage(f"{where}the model returned NaN or infinity for this image{hint}")
        return Result(
            score=raw.score,
            map=map_to_size(raw.map, prepared.size),
            threshold=self.setup.threshold,
            pixel_threshold=self.setup.pixel_threshold,
            map_range=self.map_range,
            path=prepared.path,
            seconds=raw.seconds,
        )

    def _network_input(self, pixels: np.ndarray) -> np.ndarray:
        return preprocess(pixels, self.setup.image_size, self._mean, self._std)

    def _scores(self, maps: np.ndarray, native: np.ndarray) -> list[float]:
        """Image scores of B maps (B, H, W) by the rule of `setup`; native: the method's own, (B,)."""
        rule = self.setup.score_rule
        return [image_score(rule, one, float(own)) for one, own in zip(maps, native, strict=True)]

    def _infer_tiles(self, prepared: Prepared, tile_batch: int) -> Raw:
        started = time.perf_counter()
        blender = TileBlender(*prepared.size, even=self.setup.tile == SQUARES)
        best: list[float] = []
        for first in range(0, len(prepared.boxes), tile_batch):
            boxes = prepared.boxes[first : first + tile_batch]
            cuts = [prepared.image[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
            maps, scores, _ = self._forward(np.stack([self._network_input(cut) for cut in cuts]))
            for box, cut, tile_map in zip(boxes, cuts, maps, strict=True):
                blender.add(box, map_to_size(tile_map, (cut.shape[0], cut.shape[1])))
            best.extend(self._scores(maps, scores))
        return Raw(blender.result(), float(np.max(best)), time.perf_counter() - started)
