"""A frozen CLIP and a method as one predictor: pictures of any size in, results at that size out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from blemish import few_shot
from blemish.checkpoint import CheckpointMeta, save_checkpoint
from blemish.clip.packed import unpack
from blemish.clip.shared import encode_for
from blemish.data.transforms import SQUARES
from blemish.device import machine, precision_name
from blemish.errors import BadOption
from blemish.machine import keep_freed_memory
from blemish.predictor import Outputs, Predictor, Prepared, Raw, Setup, Source
from blemish.types import Attends, Method, Remembers

if TYPE_CHECKING:
    from blemish.clip.model import CLIP

log = logging.getLogger(__name__)

__all__ = [
    "Detector",
    "Prepared",
    "Raw",
    "Setup",
    "Source",
    "check_image_size",
    "check_windows",
    "uses_class_names",
]


class Detector(Predictor):
    """Scores pictures with one method on one backbone; `blemish.load` makes it.

    With the embedded backbone on a CPU, the process keeps the memory it frees from then on (`keep_freed_memory`).
    """

    method: Method

    def __init__(self, clip: CLIP, method: Method, setup: Setup) -> None:
        """Raises BadOption when the image size or the tiling of `setup` is impossible for backbone or method."""
        check_image_size(setup.image_size, clip.config.vision.patch_size)
        check_windows(method.needs.windows, setup.image_size, clip.config.vision.patch_size)
        if setup.tile is None and getattr(method, "square_tiles", False):
            setup = replace(setup, tile=SQUARES)
        super().__init__(setup, clip.config.mean, clip.config.std)
        self.clip, self.method = clip, method
        # Small layers spend their time on memory given back and asked for again; large ones do not notice.
        if clip.config.vision.stem == "lite" and clip.device.type == "cpu":
            keep_freed_memory()

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
    def device_name(self) -> str:
        """Where the network runs, such as "cpu" or "cuda:0"."""
        return str(self.device)

    @property
    def precision(self) -> str:
        """ "fp32", "bf16" or "fp16"."""
        return precision_name(self.clip.dtype)

    @property
    def needs_class_name(self) -> bool:
        """Whether the texts name what the pictures show, and nobody has said what that is."""
        return self.setup.class_name is None and uses_class_names(self.method)

    @property
    def ignores_class_name(self) -> bool:
        """Whether somebody has said what the pictures show, and the texts have no place for it."""
        return self.setup.class_name is not None and not uses_class_names(self.method)

    def machine(self) -> dict[str, Any]:
        """The processor, and the GPU where it is used."""
        return machine(self.device)

    def compile(self) -> None:
        """Let torch.compile make the image encoder faster, now: it takes minutes. Warns where it cannot."""
        own: Any = self.clip.__dict__
        unpack(self.clip)
        size = self.setup.image_size
        own["encode_image"] = torch.compile(self.clip.encode_image)
        try:
            self._forward(np.zeros((1, 3, size, size), dtype=np.float32))
        # Compilers fail in many ways: without a C++ compiler, on other processors, in their own code.
        except Exception as error:
            del own["encode_image"]
            first = (str(error) or type(error).__name__).strip().splitlines()[0]
            log.warning("torch.compile does not work here (%s); going on without", first)

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
            tile=setup.tile,
            overlap=setup.overlap,
            score_rule=setup.score_rule,
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

    @torch.inference_mode()
    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        """float32 (B, 3, S, S) -> float32 maps (B, S, S), scores (B,), and B attention maps where asked for."""
        self.warn_about_class_name()
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
