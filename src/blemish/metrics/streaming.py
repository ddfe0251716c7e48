"""Streaming pixel state: counts in fixed bins, bounded memory, and the error that the bins can cause.

The bins are logarithmic towards both ends of the score range, so a map that saturates at either end, as a
softmax does, keeps its order there. Bins never move: states of the same range merge exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from blemish.metrics.ranking import Groups
from blemish.metrics.regions import Regions

MANTISSA = 13  # bits: each halving of the distance to an end has 8192 bins
INNER = (-48, -1)  # powers of two, in units of the range, that distances inside the range resolve
OUTER = (-8, 16)  # the same outside it, up to 65536 ranges away
BLOCK = 1 << 15  # bins
PIXELS = 1 << 16  # pixels a step takes: its work arrays stay in the cache


def _key(distance: float) -> int:
    return int(np.float64(distance).view(np.int64)) >> (52 - MANTISSA)


INNER_FIRST, INNER_BINS = _key(2.0 ** INNER[0]), (INNER[1] - INNER[0]) << MANTISSA
OUTER_FIRST, OUTER_BINS = _key(2.0 ** OUTER[0]), (OUTER[1] - OUTER[0]) << MANTISSA
HALF = OUTER_BINS + INNER_BINS
BINS = 2 * HALF


@dataclass(frozen=True)
class Scale:
    """Order-preserving numbering of scores. low, high: the range in which scores normally lie."""

    low: float
    high: float

    def index(self, scores: np.ndarray) -> np.ndarray:
        """Bin of each score (N,), int32 in [0, BINS); never falls when the score rises."""
        index = np.empty(scores.shape, dtype=np.int32)
        for start in range(0, scores.size, PIXELS):
            part = slice(start, start + PIXELS)
            distance = np.subtract(scores[part], self.low, dtype=np.float64)
            if self.high - self.low != 1:
                distance *= 1.0 / (self.high - self.low)
            near = self._near(np.minimum(distance, 1.0 - distance))
            index[part] = np.where(distance < 0.5, near, BINS - 1 - near)
        return index

    @classmethod
    def _near(cls, distance: np.ndarray) -> np.ndarray:
        """Bins of distances up to one half from the end of the range where bin numbers start."""
        near = (distance.view(np.int64) >> (52 - MANTISSA)).astype(np.int32)
        near += OUTER_BINS - INNER_FIRST
        np.clip(near, OUTER_BINS, HALF - 1, out=near)
        if distance.min() <= 0:
            outside = distance <= 0
            near[outside] = OUTER_BINS - 1 - cls._outer_key(distance[outside])
        return near

    @staticmethod
    def _outer_key(distance: np.ndarray) -> np.ndarray:
        keys: np.ndarray = np.abs(distance).view(np.int64) >> (52 - MANTISSA)
        bins: np.ndarray = np.clip(keys - OUTER_FIRST, 0, OUTER_BINS - 1)
        return bins

    def edges(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge of bins in score units, float64; the end bins reach to infinity."""
        index = index.astype(np.int64)
        mirrored = index >= HALF
        near = np.where(mirrored, BINS - 1 - index, index)
        inner, outer = near - OUTER_BINS, OUTER_BINS - 1 - near
        inside = near >= OUTER_BINS
        key = np.where(inside, inner + INNER_FIRST, outer + OUTER_FIRST)
        first, after = ((k << (52 - MANTISSA)).view(np.float64) for k in (key, key + 1))
        first = np.where(np.where(inside, inner, outer) == 0, 0.0, first)
        after = np.where(outer == OUTER_BINS - 1, np.inf, after)
        low, high = np.where(inside, first, -after), np.where(inside, after, -first)
        low, high = np.where(mirrored, 1.0 - high, low), np.where(mirrored, 1.0 - low, high)
        width = self.high - self.low
        return self.low + low * width, self.low + high * width


@dataclass(frozen=True)
class Bins(Groups):
    """Groups that are bins.

    index: (G,) the bins' numbers, falling. tied: (G,) bool, the bin holds one score only, which is `score`.
    """

    index: np.ndarray
    tied: np.ndarray


class BinStore:
    """Pixels, anomalous pixels and region weights of one class in fixed bins.

    A bin also keeps its first score and whether another one followed: a bin of one score is a true tie and
    leaves nothing open.
    """

    def __init__(self, score_range: tuple[float, float]) -> None:
        self.scale = Scale(*score_range)
        self.positives = 0
        self.negatives = 0
        self._pixels = np.zeros(BINS, dtype=np.int64)
        self._anomalous = np.zeros(BINS, dtype=np.int64)
        self._weights = np.zeros(BINS)
        self._score = np.zeros(BINS)
        self._mixed = np.zeros(BINS, dtype=bool)

    def __reduce__(self) -> tuple[object, ...]:
        return BinStore.restore, ((self.scale.low, self.scale.high), *self._used())

    @classmethod
    def restore(cls, score_range: tuple[float, float], *used: np.ndarray) -> BinStore:
        """A state from its bins in use."""
        store = cls(score_range)
        store._add_bins(*used)
        return store

    def _used(self) -> tuple[np.ndarray, ...]:
        used = np.flatnonzero(self._pixels)
        arrays = self._pixels, self._anomalous, self._weights, self._score, self._mixed
        return used, *(array[used] for array in arrays)

    def _add_bins(
        self,
        used: np.ndarray,
        pixels: np.ndarray,
        anomalous: np.ndarray,
        weights: np.ndarray,
        score: np.ndarray,
        mixed: np.ndarray,
    ) -> None:
        self._note(used, score, mixed)
        self._pixels[used] += pixels
        self._anomalous[used] += anomalous
        self._weights[used] += weights
        self.positives += int(anomalous.sum())
        self.negatives += int((pixels - anomalous).sum())

    def _note(self, used: np.ndarray, score: np.ndarray, mixed: np.ndarray) -> None:
        """Keep the first score of each bin and mark bins with more than one; before they are counted."""
        fresh = self._pixels[used] == 0
        self._score[used[fresh]] = score[fresh]
        self._mixed[used] |= mixed | (self._score[used] != score)

    def add(self, scores: np.ndarray, least: float, mask: np.ndarray, regions: Regions) -> None:
        """scores: (H, W). least: their minimum. mask: bool (H, W) with its regions."""
        flat = scores.reshape(-1)
        index = self.scale.index(flat)
        for start in range(0, flat.size, PIXELS):
            part = slice(start, start + PIXELS)
            self._count(index[part], flat[part])
        self.negatives += scores.size - regions.areas.size
        self.positives += regions.areas.size
        index = index.reshape(scores.shape)[regions.rows][mask[regions.rows]]
        np.add.at(self._anomalous, index, 1)
        np.add.at(self._weights, index, 1.0 / regions.areas)

    def _count(self, index: np.ndarray, scores: np.ndarray) -> None:
        """Count pixels (N,) in their bins. A score other than the bin's first makes it a mixed one."""
        index = index.astype(np.intp)  # saves a conversion in each of the following steps
        pure = np.flatnonzero(~self._mixed.take(index))  # soon there are few: most bins in use are mixed
        at, score = index[pure], scores[pure]
        fresh = np.flatnonzero(self._pixels[at] == 0)
        self._score[at[fresh]] = score[fresh]
        self._mixed[at[self._score[at] != score]] = True
        np.add.at(self._pixels, index, 1)

    def merge(self, other: BinStore) -> None:
        """Add the counts of another state with the same range."""
        self._add_bins(*other._used())

    def groups(self) -> Iterator[Bins]:
        """One group per bin in use, highest first, in blocks; its items count as tied."""
        true, false, overlap = 0, 0, 0.0
        for stop in range(BINS, 0, -BLOCK):
            start = max(0, stop - BLOCK)
            used = np.flatnonzero(self._pixels[start:stop])[::-1] + start
            if not used.size:
                continue
            positives, weights, tied = self._anomalous[used], self._weights[used], ~self._mixed[used]
            normal = self._pixels[used] - positives
            falses = false + np.cumsum(normal)
            bins = Bins(
                np.where(tied, self._score[used], self.scale.edges(used)[0]),
                positives,
                weights,
                true + np.cumsum(positives),
                overlap + np.cumsum(weights),
                falses - normal,
                falses,
                used,
                tied,
            )
            yield bins
            true, false, overlap = int(bins.true[-1]), int(falses[-1]), float(bins.overlap[-1])

    def above(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normal pixels and region weight above falling thresholds, least and largest possible: (2, K) each."""
        false, overlap = np.zeros((2, len(thresholds))), np.zeros((2, len(thresholds)))
        normal, weight, last = 0, 0.0, BINS
        for k, index in enumerate(self.scale.index(thresholds)):
            higher = slice(int(index) + 1, last)
            normal += int(self._pixels[higher].sum() - self._anomalous[higher].sum())
            weight += float(self._weights[higher].sum())
            last = higher.start
            inside = int(self._pixels[index] - self._anomalous[index]), float(self._weights[index])
            passed = np.array([0, 1]) if self._mixed[index] else self._score[index] > thresholds[k]
            false[:, k], overlap[:, k] = normal + passed * inside[0], weight + passed * inside[1]
        return false, overlap
