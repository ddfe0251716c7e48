"""Batches of generated pictures for the backbone `tiny`, drawn by background processes."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from blemish import synth

PAIRS, WRONG = 0.35, 1
"""Share of defective pictures whose undamaged twin is in the batch too; false captions drawn for each picture."""
SQUEEZED, LEAST_SIDE = 0.35, 0.45
"""Share of batches whose pictures are squeezed along one side, and to what share of it at most."""
FAMILIES = {"all": synth.Families(), "training": synth.TRAINING, "held_out": synth.HELD_OUT}


@dataclass(frozen=True)
class Batch:
    """B pictures of one size. images: uint8 (B, H, W, 3). masks: bool (B, H, W). captions: 2 true ones each.

    wrong: false ones, `WRONG` a picture. shapes, defects: names; None where there is no defect.
    """

    images: np.ndarray
    masks: np.ndarray
    captions: list[list[str]]
    wrong: list[str]
    shapes: list[str]
    defects: list[str | None]

    def __len__(self) -> int:
        return len(self.images)


def twin_of(picture: synth.Picture, clean: np.ndarray) -> synth.Picture:
    """The same shot without its defect, as a picture of its own."""
    from blemish.synth.captions import NORMAL_STATES, title

    caption = title(np.random.default_rng(0), picture.material, picture.shape, picture.colour, None)
    empty = np.zeros_like(picture.mask)
    return replace(picture, image=clean, mask=empty, caption=caption, states=NORMAL_STATES, defect_type=None)


def draw_batch(rng: np.random.Generator, size: int, count: int, families: synth.Families) -> Batch:
    """`count` pictures; twins stand right behind their defective pictures."""
    pictures: list[synth.Picture] = []
    while len(pictures) < count:
        if rng.random() < PAIRS and len(pictures) < count - 1:
            picture, clean = synth.draw_pair(rng, size, defect=True, families=families)
            pictures += [picture, twin_of(picture, clean)]
        else:
            pictures.append(synth.draw(rng, size, defect=bool(rng.random() < 0.5), families=families))
    return Batch(
        np.stack([p.image for p in pictures]),
        np.stack([p.mask for p in pictures]),
        [synth.captions(p, rng, 2) for p in pictures],
        [c for p in pictures for c in synth.wrong_captions(p, rng, WRONG)],
        [p.shape for p in pictures],
        [p.defect_type for p in pictures],
    )


def squeeze(batch: Batch, rng: np.random.Generator) -> Batch:
    """The batch with one side of its pictures made shorter: what people's photos are when made square, and oblong ones.

    A pixel stays defective when a quarter of what falls on it was, so thin defects are not lost.
    """
    height, width = batch.masks.shape[1:]
    shorter = 16 * max(4, round(rng.uniform(LEAST_SIDE, 1.0) * width / 16))
    size = (shorter, height) if rng.random() < 0.5 else (width, shorter)
    images = [Image.fromarray(i).resize(size, Image.Resampling.BICUBIC) for i in batch.images]
    masks = [
        np.asarray(Image.fromarray(m.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 63
        for m in batch.masks
    ]
    return replace(batch, images=np.stack([np.asarray(i) for i in images]), masks=np.stack(masks))


def _worker(queue: Any, seed: int, wanted: Any) -> None:
    rng = np.random.default_rng(seed)
    choices = list(FAMILIES.values())
    while True:
        order = tuple(int(value) for value in wanted)
        low, high, tokens, families = order
        size = 16 * round(
            low * (high / low) ** (rng.random() ** 2) / 16
        )  # large ones are costly: fewer of them
        count = max(8, round(tokens / (size // 16) ** 2))
        batch = draw_batch(rng, size, count, choices[families])
        queue.put((order, squeeze(batch, rng) if rng.random() < SQUEEZED else batch))


def batches(seed: int, wanted: Any, workers: int) -> Iterator[Batch]:
    """Endless batches as `wanted` asks for: a shared array of least size, largest size, patches a batch, and which
    of FAMILIES. Batches drawn for an earlier wish are dropped."""
    context = mp.get_context("spawn")
    queue = context.Queue(6)
    for i in range(workers):
        context.Process(target=_worker, args=(queue, seed + i, wanted), daemon=True).start()
    while True:
        order, batch = queue.get()
        if order == tuple(wanted):
            yield batch
