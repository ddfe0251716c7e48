"""The auxiliary dataset as training sees it: samples that can be used, and their views with masks and labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np

from blemish.data.augment import Augmentation, draw_view
from blemish.data.samples import load_mask, load_pixels
from blemish.data.transforms import preprocess, resize_mask
from blemish.types import Sample


@dataclass(frozen=True)
class View:
    """One training picture ready for the network.

    pixels: float32 (3, S, S) network input, or None where only the truth was asked for. mask: bool (M, M), or
    None for an anomalous picture that nobody has outlined. label: 1 anomalous.
    """

    pixels: np.ndarray | None
    mask: np.ndarray | None
    label: int


@dataclass(frozen=True)
class Auxiliary:
    """Samples to learn from. Every view follows from (seed, index, copy) alone.

    size: side of the network input, map_size: of the masks, both in
    pixels. mean, std: of the backbone's inputs. augmentation: drawn anew for every `copy`.
    """

    samples: tuple[Sample, ...]
    size: int
    map_size: int
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation
    seed: int = 0
    _masks: dict[tuple[int, int], View] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def augmented(self) -> bool:
        """Whether views differ from copy to copy."""
        return self.augmentation.active

    @cached_property
    def outlined(self) -> bool:
        """Whether any anomalous picture has a mask; from normal ones alone maps would only learn to be blank."""
        return any(sample.label == 1 and sample.mask is not None for sample in self.samples)

    def view(self, index: int, copy: int) -> View:
        """Picture `index` in its `copy`-th drawing. Raises BadImage when a file cannot be read."""
        image, mask = self._draw(index, copy)
        truth = self._truth(index, mask)
        return View(preprocess(image, self.size, self.mean, self.std), truth.mask, truth.label)

    def truth(self, index: int, copy: int) -> View:
        """`view` without pixels; kept packed once it has been asked for, so that later epochs open no file."""
        known = self._masks.get((index, copy))
        if known is None and not self.augmented and self.samples[index].label == 0:
            return self._truth(index, np.zeros((1, 1), dtype=np.uint8))
        if known is None:
            known = self._truth(index, self._draw(index, copy)[1])
            packed = None if known.mask is None else np.packbits(known.mask)
            self._masks[index, copy] = View(None, packed, known.label)
            return known
        if known.mask is None:
            return known
        count = self.map_size * self.map_size
        bits = np.unpackbits(known.mask, count=count).astype(bool)
        return View(None, bits.reshape(self.map_size, self.map_size), known.label)

    def key(self, index: int, copy: int, image_key: Callable[..., str]) -> str:
        """What identifies a view in the feature cache: the file's content, and all that was done to it."""
        sample = self.samples[index]
        extra = [] if sample.box is None else [f"box={sample.box}"]
        if self.augmented:
            drawn = json.dumps(asdict(self.augmentation), sort_keys=True)
            extra += [drawn, f"seed={self.seed} index={index} copy={copy}", self._digest]
        return image_key(sample.image, *extra)

    @cached_property
    def _digest(self) -> str:
        """Hash of the list of samples; a mosaic holds pictures besides its own."""
        rows = [[str(s.image), s.label, s.class_name, s.box, s.image.stat().st_size] for s in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    @cached_property
    def _pools(self) -> dict[str, list[int]]:
        """Per class, the pictures that a mosaic may use: the anomalous ones, or all."""
        pools: dict[str, list[int]] = {}
        for index, sample in enumerate(self.samples):
            normal = sample.label == 0 and self.augmentation.mosaic_of_all
            if normal or (sample.label == 1 and sample.mask is not None):
                pools.setdefault(sample.class_name, []).append(index)
        return pools

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        image = load_pixels(self.samples[index])
        return image, load_mask(self.samples[index], (image.shape[0], image.shape[1]))

    def _draw(self, index: int, copy: int) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.augmented:
            return self._load(index)
        rng = np.random.default_rng([self.seed, index, copy])
        pool = self._pools.get(self.samples[index].class_name, [])
        return draw_view(self.augmentation, index, self._load, pool, rng)

    def _truth(self, index: int, mask: np.ndarray | None) -> View:
        if mask is None or not self.outlined:
            return View(None, None, int(self.samples[index].label or 0))
        small = resize_mask(mask, self.map_size)
        if self.augmentation.mosaic_of_all:  # in the place of an anomalous picture may be four normal ones
            return View(None, small, int(bool(mask.any())))
        return View(None, small, int(self.samples[index].label == 1 or bool(small.any())))
