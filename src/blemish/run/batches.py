"""Batches of frozen features with their truth: encoded anew every epoch, or read from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blemish.clip.cache import FeatureCache, image_key
from blemish.data.augment import AUGMENTATIONS
from blemish.data.auxiliary import Auxiliary, View
from blemish.data.samples import spread
from blemish.pipeline import ordered_map
from blemish.run.processes import Processes
from blemish.types import FeatureSpec, ImageFeatures, Target

if TYPE_CHECKING:
    from blemish.clip.model import CLIP

WORKERS = 4


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch.

    class_names: one per image. count, outlined: images of the whole batch, and those of them that have a mask;
    `has_mask` says which of this part's do.
    """

    features: ImageFeatures
    target: Target
    class_names: list[str]
    has_mask: Tensor
    count: int
    outlined: int

    def part(self, rows: Tensor) -> tuple[ImageFeatures, Target, list[str]]:
        """The chosen images (bool tensor) with their truth; the mask goes with those that have one."""
        names = [name for name, keep in zip(self.class_names, rows.tolist(), strict=True) if keep]
        mask = self.target.mask
        target = Target(self.target.label[rows], None if mask is None else mask[rows])
        return select(self.features, rows), target, names


def select(features: ImageFeatures, rows: Tensor) -> ImageFeatures:
    """The chosen images of a batch; all of them cost nothing."""
    if bool(rows.all()):
        return features
    changed: dict[str, Any] = {
        field.name: value[rows]
        for field in dataclasses.fields(features)
        if isinstance(value := getattr(features, field.name), Tensor)
    }
    tokens = {stream: tuple(t[rows] for t in layers) for stream, layers in features.tokens.items()}
    return dataclasses.replace(features, tokens=tokens, **changed)


class Batches:
    """Every epoch's batches of `data` for one process.

    cache: None encodes each picture in each epoch. copies: how many drawings of each picture the cache holds;
    epoch e uses drawing e modulo copies. autocast: the number format of the encoder's products, or None. encoder:
    of a method that learns inside the image tower, in place of the frozen tower; its features carry gradients.
    """

    def __init__(
        self,
        data: Auxiliary,
        clip: CLIP,
        spec: FeatureSpec,
        batch_size: int,
        processes: Processes,
        *,
        cache: FeatureCache | None = None,
        copies: int = 1,
        autocast: torch.dtype | None = None,
        encoder: Callable[[Tensor], ImageFeatures] | None = None,
    ) -> None:
        self.data, self.clip, self.spec, self.batch_size = data, clip, spec, batch_size
        self.processes, self.cache, self.copies, self.autocast = processes, cache, copies, autocast
        self.encoder = encoder
        self._keys: dict[tuple[int, int], str] = {}

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; the last batch may be smaller."""
        return -(-len(self.data) // self.batch_size)

    def fill_cache(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Encode what the cache lacks. Raises OutputError when the disk has no room."""
        if self.cache is None:
            return
        views = [(i, copy) for copy in range(self.copies) for i in range(len(self.data))]
        keys = [self._key(*view) for view in views]
        missing = self.cache.missing(keys)
        if missing:
            self.cache.require_room(len(missing))
            self.cache.build(keys, lambda i: self._pixels(*views[i]), on_progress=on_progress)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch | None]:
        """Batches of epoch `epoch` from step `first` on; their order follows from the seed and the epoch.

        None stands for a batch so small that nothing of it is left for this process.
        """
        order = np.random.default_rng([self.data.seed, epoch]).permutation(len(self.data)).tolist()
        size = self.batch_size
        whole = [order[i : i + size] for i in range(first * size, len(order), size)]
        yield from self._cached(whole, epoch) if self.cache is not None else self._encoded(whole, epoch)

    def some(self, limit: int | None) -> Batches:
        """The same for at most `limit` pictures, evenly from all; None: for all."""
        if limit is None or len(self.data) <= limit:
            return self
        return Batches(
            dataclasses.replace(self.data, samples=tuple(spread(self.data.samples, limit)), _masks={}),
            self.clip,
            self.spec,
            self.batch_size,
            self.processes,
            cache=self.cache,
            copies=self.copies,
            autocast=self.autocast,
            encoder=self.encoder,
        )

    def in_order(self) -> Iterator[Batch]:
        """Every picture once as it is stored, whole in this process; for thresholds."""
        alone, count, size = self._plain, len(self.data), self._plain.batch_size
        whole = [list(range(i, min(i + size, count))) for i in range(0, count, size)]
        found = alone._cached(whole, 0) if alone.cache is not None else alone._encoded(whole, 0)
        yield from (batch for batch in found if batch is not None)

    @cached_property
    def _plain(self) -> Batches:
        """The same pictures unaugmented, at full size and in this process alone; it keeps keys and masks."""
        data, cache = self.data, self.cache
        if data.augmented:
            data, cache = dataclasses.replace(data, augmentation=AUGMENTATIONS["none"], _masks={}), None
        if data.map_size != data.size:
            data = dataclasses.replace(data, map_size=data.size, _masks={})
        alone = Batches(
            data,
            self.clip,
            self.spec,
            min(self.batch_size, 8),
            Processes(),
            cache=cache,
            autocast=self.autocast,
            encoder=self.encoder,
        )
        if cache is not None:
            alone._keys = self._keys
        return alone

    def encode(self, pixels: Sequence[np.ndarray]) -> ImageFeatures:
        """Features of network inputs; without gradient unless a method's own encoder makes them."""
        images = torch.from_numpy(np.stack(pixels)).to(self.clip.device)
        with torch.autocast(self.clip.device.type, self.autocast, enabled=self.autocast is not None):
            if self.encoder is not None:
                return self.encoder(images)
            with torch.no_grad():
                return self.clip.encode_image(images, self.spec)

    def _encoded(self, whole: list[list[int]], epoch: int) -> Iterator[Batch | None]:
        rows = [row for batch in whole for row in self.processes.share(batch)]
        ahead = 2 * self.batch_size
        views = ordered_map(lambda row: self.data.view(row, epoch), rows, workers=WORKERS, ahead=ahead)
        with closing(views):
            for batch in whole:
                mine = self.processes.share(batch)
                drawn = [next(views)[1].result() for _ in mine]
                if not mine:
                    yield None
                    continue
                features = self.encode([v.pixels for v in drawn if v.pixels is not None])
                yield self._batch(features, drawn, mine, batch)

    def _cached(self, whole: list[list[int]], epoch: int) -> Iterator[Batch | None]:
        cache, copy = self.cache, epoch % self.copies
        assert cache is not None

        def read(batch: list[int]) -> tuple[ImageFeatures, list[View]] | None:
            mine = self.processes.share(batch)
            if not mine:
                return None
            truth = [self.data.truth(row, copy) for row in mine]
            return cache.read([self._key(row, copy) for row in mine]), truth

        found = ordered_map(read, whole, workers=2, ahead=2)
        with closing(found):
            for batch, future in found:
                pair = future.result()
                yield None if pair is None else self._batch(*pair, self.processes.share(batch), batch)

    def _batch(
        self, features: ImageFeatures, views: Sequence[View], rows: list[int], batch: list[int]
    ) -> Batch:
        device, side = self.clip.device, self.data.map_size
        blank = np.zeros((side, side), dtype=bool)
        masks = np.stack([blank if view.mask is None else view.mask for view in views])
        has_mask = torch.tensor([view.mask is not None for view in views], device=device)
        target = Target(
            label=torch.tensor([view.label for view in views], device=device),
            mask=torch.from_numpy(masks).to(device).float() if bool(has_mask.any()) else None,
        )
        samples = self.data.samples
        with_mask = (samples[row].label == 0 or samples[row].mask is not None for row in batch)
        outlined = sum(with_mask) if self.data.outlined else 0
        # Maps are made, and compared with the masks, at this size.
        features = dataclasses.replace(features, image_size=(side, side))
        names = [samples[row].class_name for row in rows]
        return Batch(features, target, names, has_mask, len(batch), outlined)

    def _pixels(self, index: int, copy: int) -> np.ndarray:
        pixels = self.data.view(index, copy).pixels
        assert pixels is not None
        return pixels

    def _key(self, index: int, copy: int) -> str:
        known = self._keys.get((index, copy))
        if known is None:
            known = self._keys[index, copy] = self.data.key(index, copy, image_key)
        return known
