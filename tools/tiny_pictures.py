"""Batches of generated pictures for the backbone `tiny`, drawn by background processes."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from blemish import synth

PAIRS, WRONG = 0.35, 1
"""Share of defective pictures whose undamaged twin is in the batch too; false captions drawn for each picture."""
FAMILIES = {"all": synth.Families(), "training": synth.TRAINING, "held_out": synth.HELD_OUT}


@dataclass(frozen=True)
class Batch:
    """B pictures of one size. images: uint8 (B, S, S, 3). masks: bool (B, S, S). captions: 2 true ones each.

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
    from dataclasses import replace

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


def _worker(queue: Any, seed: int, wanted: Any, families: str) -> None:
    rng = np.random.default_rng(seed)
    while True:
        low, high, tokens = (int(value) for value in wanted)
        size = 16 * int(rng.integers(low // 16, high // 16 + 1))
        count = max(8, round(tokens / (size // 16) ** 2))
        queue.put(((low, high), draw_batch(rng, size, count, FAMILIES[families])))


def batches(seed: int, wanted: Any, workers: int, families: str) -> Iterator[Batch]:
    """Endless batches; wanted: a shared array (least size, largest size, patches a batch), stale ones are dropped."""
    context = mp.get_context("spawn")
    queue = context.Queue(6)
    for i in range(workers):
        context.Process(target=_worker, args=(queue, seed + i, wanted, families), daemon=True).start()
    while True:
        sizes, batch = queue.get()
        if sizes == (int(wanted[0]), int(wanted[1])):
            yield batch
