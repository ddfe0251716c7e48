"""How many of many millions of keys lie below a threshold: from all of them sorted, or counted part by part."""

from __future__ import annotations

import functools
import time
from typing import Literal

import numpy as np

SHORT_TIE = 8  # so many equal keys are passed one by one, which is faster than another search
CHUNK = 1 << 17  # keys that are brought in order of their parts at once, with the indices in the cache
PART_BITS = 18  # a part of the range that is counted in a table in the cache
AT_ONCE = 1 << 18  # keys of a part that are counted at once
FEW = 4  # thresholds in a part that all its keys are compared with
MANY = 1 << 20  # fewer keys are sorted in any case
SLOW = 5.0  # times the seconds of a radix sort of 16-bit integers


class Sorted:
    """Keys of any type, sorted where they are."""

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        keys.sort()

    def count(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (K,) twice: keys <= and < each threshold; thresholds: (K,) of the keys' type, K >= 1, falling."""
        low = int(np.searchsorted(self._keys, thresholds[-1], side="left"))
        high = int(np.searchsorted(self._keys, thresholds[0], side="right"))
        part = self._keys[low:high]
        at_or_below = low + np.searchsorted(part, thresholds, side="right")
        below = at_or_below.copy()
        tied = np.arange(len(thresholds))
        for _ in range(SHORT_TIE):
            tied = tied[below[tied] > low]
            tied = tied[self._keys[below[tied] - 1] == thresholds[tied]]
            if not tied.size:
                break
            below[tied] -= 1
        else:
            below[tied] = low + np.searchsorted(part, thresholds[tied], side="left")
        return at_or_below, below


class Counted:
    """int32 keys, at least one, brought chunk by chunk in order of 2**PART_BITS wide parts of their range.

    A part is counted when a threshold lies in it. That is less work than sorting where NumPy sorts slowly.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        self._low, self._high = int(keys.min()), int(keys.max())
        self._bits = min(PART_BITS, (self._high - self._low).bit_length())
        parts = ((self._high - self._low) >> self._bits) + 1
        small = np.uint8 if parts <= 256 else np.uint16
        bounds = []
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            part = (self._offsets(chunk) >> self._bits).astype(small)
            chunk[:] = chunk[np.argsort(part, kind="stable")]
            bounds.append(start + np.cumsum(np.bincount(part, minlength=parts)))
        starts = np.arange(0, len(keys), CHUNK)[:, None]
        self._bounds = np.concatenate([starts, np.array(bounds)], axis=1).T  # (parts + 1, chunks)
        sizes = np.diff(self._bounds, axis=0).sum(axis=1)
        self._before = np.concatenate([[0], np.cumsum(sizes)])  # keys in lower parts
        self._running: tuple[int, np.ndarray] | None = None

    def count(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (K,) twice: keys <= and < each threshold; thresholds: int32 (K,), K >= 1, falling."""
        inside = self._offsets(np.clip(thresholds, self._low, self._high))
        parts, cells = inside >> self._bits, inside & ((1 << self._bits) - 1)
        at_or_below = np.empty(len(thresholds), dtype=np.int64)
        below = np.empty(len(thresholds), dtype=np.int64)
        firsts = np.flatnonzero(np.diff(parts.astype(np.int64), prepend=-1))
        for first, last in zip(firsts, [*firsts[1:], len(parts)], strict=True):
            part = int(parts[first])
            if last - first <= FEW:
                within = self._compared(part, thresholds[first:last])
            else:
                running, cell = self._running_counts(part), cells[first:last]
                within = running[cell + 1], running[cell]
            at_or_below[first:last] = self._before[part] + within[0]
            below[first:last] = self._before[part] + within[1]
        for outside, counted in ((thresholds < self._low, 0), (thresholds > self._high, len(self._keys))):
            at_or_below[outside] = below[outside] = counted
        return at_or_below, below

    def _offsets(self, keys: np.ndarray) -> np.ndarray:
        """uint32 distances from the lowest key."""
        return keys.view(np.uint32) - np.uint32(self._low & 0xFFFFFFFF)

    def _compared(self, part: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the part <= and < each of a few thresholds."""
        at_or_below = np.zeros(len(thresholds), dtype=np.int64)
        below = np.zeros(len(thresholds), dtype=np.int64)
        for keys in self._pieces(part):
            at_or_below += [np.count_nonzero(keys <= one) for one in thresholds]
            below += [np.count_nonzero(keys < one) for one in thresholds]
        return at_or_below, below

    def _running_counts(self, part: int) -> np.ndarray:
        """int64 (cells + 1,): keys of the part in the cells before each; that of the last part asked for is kept."""
        if self._running is None or self._running[0] != part:
            self._running = None
            running = np.zeros((1 << self._bits) + 1, dtype=np.int64)
            for keys in self._pieces(part):
                cells = self._offsets(keys) & np.uint32((1 << self._bits) - 1)
                running[1:] += np.bincount(cells, minlength=1 << self._bits)
            self._running = part, np.cumsum(running, out=running)
        return self._running[1]

    def _pieces(self, part: int) -> list[np.ndarray]:
        """The keys of a part, joined to pieces of at most AT_ONCE and a chunk."""
        starts, stops = self._bounds[part].tolist(), self._bounds[part + 1].tolist()
        pieces, held, size = [], [], 0
        for start, stop in zip(starts, stops, strict=True):
            held.append(self._keys[start:stop])
            size += stop - start
            if size >= AT_ONCE:
                pieces.append(np.concatenate(held))
                held, size = [], 0
        return [*pieces, np.concatenate(held)] if size else pieces


@functools.cache
def sorts_slowly() -> bool:
    """Whether NumPy sorts int32 out of proportion slowly here: its AVX512 sort does on some AMD processors."""
    keys = np.random.default_rng(0).integers(0, 1 << 30, 1 << 16, dtype=np.int32)
    halves = keys.astype(np.uint16)

    def seconds(items: np.ndarray, kind: Literal["quicksort", "stable"]) -> float:
        taken = []
        for _ in range(3):
            copy, start = items.copy(), time.perf_counter()
            copy.sort(kind=kind)
            taken.append(time.perf_counter() - start)
        return min(taken)

    return seconds(keys, "quicksort") > SLOW * seconds(halves, "stable")


def rank(keys: np.ndarray) -> Sorted | Counted:
    """Bring keys into an order, where they are, in which they can be counted; not to be changed meanwhile."""
    if keys.dtype == np.int32 and len(keys) >= MANY and sorts_slowly():
        return Counted(keys)
    return Sorted(keys)
