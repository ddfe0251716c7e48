"""A frozen CLIP and a method as one predictor: pictures of any size in, results at that size out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from blemish import few_shot
from blemish.checkpoint import CheckpointMeta, save_checkpoint
from blemish.clip.shared import encode_for
from blemish.data.images import pixel_count, read_image
from blemish.data.transforms import SQUARES, Box, TileBlender, cut_boxes, map_to_size, preprocess
from blemish.device import is_out_of_memory, precision_name
from blemish.errors import BadImage, BadOption
from blemish.pipeline import ordered_map
from blemish.types import Attends, Method, Remembers, Result

if TYPE_CHECKING:
    from blemish.clip.model import CLIP

Source = str | Path | Image.Image | np.ndarray
DECODERS = 4
PIXELS_IN_FLIGHT = 64_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """One decoded picture on its way to the network.

    image: uint8 (H, W, 3). size: its (H, W). pixels: float32 (3, S, S) network input, or None when the
    picture is cut into `boxes`. path: where it came from, when from a file.
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
    images, "square" for squares of an image's shorter side (a method's `square_tiles`); overlap: share of a tile
    that it has in common with the next. normal_images: how many a few-shot method remembers; memory_sha256
    identifies what it remembers of them.
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
    class_name: str | None = None
    normal_images: int = 0
    memory_sha256: str = ""


class Detector:
    """Scores pictures with one method on one backbone; `blemish.load` makes it.

    The score and map of a picture depend on that picture alone, whatever else is in its batch.
    """

    def __init__(self, clip: CLIP, method: Method, setup: Setup) -> None:
        """Raises BadOption when the image size or the tiling of `setup` is impossible for backbone or method."""
        check_image_size(setup.image_size, clip.config.vision.patch_size)
        check_windows(method.needs.windows, setup.image_size, clip.config.vision.patch_size)
        if setup.tile is None and getattr(method, "square_tiles", False):
            setup = replace(setup, tile=SQUARES)
        if setup.tile not in (None, SQUARES) and not (isinstance(setup.tile, int) and setup.tile >= 1):
            raise BadOption(f"tile is {setup.tile}; expected a number of pixels of at least 1")
        if not 0 <= setup.overlap <= 0.9:
            raise BadOption(f"overlap is {setup.overlap}; expected a share of the tile from 0 to 0.9")
        for name, value in (("threshold", setup.threshold), ("pixel_threshold", setup.pixel_threshold)):
            if value is not None and not math.isfinite(value):
                raise BadOption(f"{name} is {value}; expected a finite number")
        self.clip, self.method, self.setup = clip, method, setup
        self._warned = False

    @property
    def map_range(self) -> tuple[float, float]:
        """The range that map values can take: the fixed colour scale."""
        low, high = self.method.map_range
        return float(low), float(high)

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.clip.device

    @property
    def precision(self) -> str:
        """ "fp32", "bf16" or "fp16"."""
        return precision_name(self.clip.dtype)

    def warn_without_class_name(self) -> None:
        """Say once that a method whose texts name the class has been told none; called before the first image."""
        if not self._warned and self.setup.class_name is None and uses_class_names(self.method):
            log.warning(
                '%s puts class names into its texts and falls back to "object"; pass --class-name "what the '
                'images show" (class_name= in Python)',
                self.setup.method,
            )
        self._warned = True

    def save(self, path: str | Path, notes: str = "") -> None:
        """Write the learned parts, options, image size and thresholds as our own checkpoint file.

        Raises OutputError when the file cannot be written.
        """
        setup = self.setup
        meta = CheckpointMeta(
            method=setup.method,
            options=setup.options,
            backbone=setup.backbone,
            backbone_fingerprint=setup.backbone_fingerprint,
            backbone_config=self.clip.config.to_dict(),
            auxiliary=setup.auxiliary,
            image_size=setup.image_size,
            image_threshold=setup.threshold,
            pixel_threshold=setup.pixel_threshold,
            notes=notes,
        )
        save_checkpoint(Path(path), cast("torch.nn.Module", self.method), meta)

    def remember(self, images: Iterable[Source]) -> None:
        """Let a few-shot method remember normal pictures beside those that it knows, 64 at most in all.

        Thresholds made without them no longer hold and are dropped. Raises BadOption when the method cannot
        remember, for no pictures and for too many, BadImage for one that cannot be read; nothing is changed then.
        """
        method = few_shot.remembering(self)
        before, count = method.memory(), self.setup.normal_images
        try:
            for image in images:
                count += 1
                if count > few_shot.LIMIT:
                    raise BadOption(f"more than {few_shot.LIMIT} normal images given; a memory takes no more")
                self._remember(method, self.prepare(image))
            if not count:
                raise BadOption(f"no normal images given; expected 1 to {few_shot.LIMIT}")
        except Exception:
            method.recall(before)
            raise
        self.remembered(count)

    def remembered(self, count: int) -> None:
        """Note that the method now remembers `count` normal images; for those that fill its memory."""
        found = few_shot.digest(few_shot.remembering(self).memory())
        self.setup = replace(
            self.setup, normal_images=count, memory_sha256=found, threshold=None, pixel_threshold=None
        )

    def forget(self) -> None:
        """Forget all normal pictures."""
        few_shot.remembering(self).recall({})
        self.setup = replace(self.setup, normal_images=0, memory_sha256="")

    def save_memory(self, path: str | Path) -> None:
        """Write what a few-shot method remembers, for `blemish.load(normal=...)`.

        Raises BadOption when there is nothing, OutputError when the file cannot be written.
        """
        few_shot.write_memory(self, Path(path))

    @torch.no_grad()
    def _remember(self, method: Remembers, prepared: Prepared) -> None:
        inputs = [prepared.pixels] if prepared.pixels is not None else []
        for x0, y0, x1, y1 in prepared.boxes:
            inputs.append(self._network_input(prepared.image[y0:y1, x0:x1]))
        for pixels in inputs:
            images = torch.from_numpy(pixels)[None].to(self.device)
            method.remember(encode_for(self.clip, self.method, images))

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
        found = ordered_map(
            self.prepare,
            images,
            workers=DECODERS,
            ahead=2 * batch_size,
            cost=pixel_count,
            budget=PIXELS_IN_FLIGHT,
        )
        batch: list[Prepared] = []
        failure: Exception | None = None
        with closing(found):
            for _, future in found:
                if (error := future.exception()) is not None:
                    if not isinstance(error, Exception):
                        raise error
                    failure = error
                    break
                batch.append(future.result())
                if self.is_full(batch, batch_size):
                    yield from self._results(batch)
                    batch = []
            yield from self._results(batch)
        if failure is not None:
            raise failure

    @staticmethod
    def is_full(batch: Sequence[Prepared], batch_size: int) -> bool:
        """Whether a batch should go to the network: enough pictures, or enough pixels held in memory."""
        held = sum(p.image.shape[0] * p.image.shape[1] for p in batch)
        return len(batch) >= batch_size or held >= PIXELS_IN_FLIGHT

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
        whole = [i for i, prepared in enumerate(batch) if prepared.pixels is not None]
        if whole:
            started = time.perf_counter()
            inputs = np.stack([p for i in whole if (p := batch[i].pixels) is not None])
            maps, scores, looks = self._forward(inputs, attention)
            share = (time.perf_counter() - started) / len(whole)
            raw = {i: Raw(maps[n], float(scores[n]), share, looks[n]) for n, i in enumerate(whole)}
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
        config = self.clip.config
        return preprocess(pixels, self.setup.image_size, config.mean, config.std)

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
            best.extend(scores.tolist())
        return Raw(blender.result(), float(np.max(best)), time.perf_counter() - started)

    @torch.inference_mode()
    def _forward(
        self, inputs: np.ndarray, attention: bool = False
    ) -> tuple[np.ndarray, np.ndarray, Sequence[np.ndarray | None]]:
        """float32 (B, 3, S, S) -> float32 maps (B, S, S), scores (B,), and B attention maps where asked for."""
        self.warn_without_class_name()
        images = torch.from_numpy(inputs).to(self.device)
        features = encode_for(self.clip, self.method, images)
        name = self.setup.class_name
        prediction = self.method(features, None if name is None else [name] * len(inputs))
        looks: Sequence[np.ndarray | None] = [None] * len(inputs)
        if attention:
            looks = list(cast("Attends", self.method).attention_maps(features).float().cpu().numpy())
        return prediction.map.float().cpu().numpy(), prediction.score.float().cpu().numpy(), looks


def uses_class_names(method: Method) -> bool:
    """Whether a method's texts name the class, so that it should be told what images show."""
    return bool(getattr(method, "uses_class_names", False))


def check_image_size(size: int, patch_size: int) -> None:
    """Raise BadOption unless the patch size divides `size`; names the nearest sizes that would do."""
    if size >= patch_size and size % patch_size == 0:
        return
    below = size // patch_size * patch_size
    near = [str(s) for s in (below, max(below, 0) + patch_size) if s >= patch_size]
    raise BadOption(
        f"image size is {size}; expected a positive multiple of the backbone's patch size {patch_size}, "
        f"the nearest valid: {' or '.join(near)}"
    )


def check_windows(windows: Sequence[int], size: int, patch_size: int) -> None:
    """Raise BadOption when windows, by their sides in patches, are larger than an input of `size` pixels."""
    largest = max(windows, default=0)
    if largest * patch_size > size:
        raise BadOption(
            f"windows of {largest} x {largest} patches do not fit image size {size}, which has {size // patch_size} "
            f"patches a side; take a size of {largest * patch_size} or more, or smaller windows"
        )
