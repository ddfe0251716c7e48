"""Exact pixel state: 4 bytes per normal pixel, 8 per anomalous pixel (twice that for float64 scores)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from blemish.metrics.buffer import Buffer
from blemish.metrics.ranking import Groups
from blemish.metrics.ranks import Counted, Sorted, rank
from blemish.metrics.regions import Regions

BLOCK = 32768  # anomalous pixels a step of the final pass takes: its work arrays stay in the cache


class SinglePixels:
    """float32 scores as integers of the same order, which sort and compare faster than floats.

    An anomalous pixel is one integer that sorts by score, then area of its region: the key above 32 bits of area.
    """

    key = np.dtype(np.int32)
    packed = np.dtype(np.int64)
    LOW = 0xFFFFFFFF
    ALL_BUT_SIGN = np.int32(0x7FFFFFFF)

    @classmethod
    def keys(cls, scores: np.ndarray, positive: bool = False) -> np.ndarray:
        """int32 of float32 scores; equal for both zeros. positive: all scores are above 0, which saves work."""
        if positive:
            return scores.view(np.int32)
        bits = (scores + np.float32(0)).view(np.int32)  # -0.0 loses its sign
        keys: np.ndarray = bits ^ ((bits >> 31) & cls.ALL_BUT_SIGN)
        return keys

    @classmethod
    def scores(cls, keys: np.ndarray) -> np.ndarray:
        """float32 scores of keys."""
        scores: np.ndarray = (keys ^ ((keys >> 31) & cls.ALL_BUT_SIGN)).view(np.float32)
        return scores

    @classmethod
    def pack(cls, keys: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """int64 of each key with its area, below 2**32."""
        packed: np.ndarray = (keys.astype(np.int64) << 32) | areas
        return packed

    @classmethod
    def unpack(cls, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and areas."""
        return (packed >> 32).astype(np.int32), packed & cls.LOW

    @classmethod
    def first_of_tie(cls, packed: np.generic) -> np.generic:
        """A packed pixel not above any other of the same score."""
        return np.int64(packed) & ~np.int64(cls.LOW)


class DoublePixels:
    """float64 scores as they are; an anomalous pixel is a complex number, which sorts by score, then area."""

    key = np.dtype(np.float64)
    packed = np.dtype(np.complex128)

    @staticmethod
    def keys(scores: np.ndarray, positive: bool = False) -> np.ndarray:
        """The scores, where -0.0 loses its sign."""
        return scores if positive else scores + 0.0

    @staticmethod
    def scores(keys: np.ndarray) -> np.ndarray:
        """float64 scores of keys."""
        return keys

    @staticmethod
    def pack(keys: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """complex128 of each key with its area."""
        packed = np.empty(len(keys), dtype=np.complex128)
        packed.real, packed.imag = keys, areas
        return packed

    @staticmethod
    def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and areas."""
        return packed.real, packed.imag

    @staticmethod
    def first_of_tie(packed: np.generic) -> np.generic:
        """A packed pixel not above any other of the same score."""
        return np.complex128(complex(float(packed.real), 0.0))


class ExactStore:
    """All normal scores and all anomalous (score, area) pairs of one class."""

    def __init__(self) -> None:
        self.dtype: np.dtype = np.dtype(np.float32)
        self._normal = Buffer(SinglePixels.key)
        self._anomalous = Buffer(SinglePixels.packed)
        self._ranks: Sorted | Counted | None = None  # of the normal scores, once all are sorted

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ranks": None}

    @property
    def _form(self) -> type[SinglePixels] | type[DoublePixels]:
        return SinglePixels if self.dtype == np.float32 else DoublePixels

    @property
    def positives(self) -> int:
        return len(self._anomalous)

    @property
    def negatives(self) -> int:
        return len(self._normal)

    def add(self, scores: np.ndarray, least: float, mask: np.ndarray, regions: Regions) -> None:
        """scores: (H, W) float32 or float64. least: their minimum. mask: bool (H, W) with its regions."""
        self._ranks = None
        if scores.dtype == np.float64:
            self._widen()
        keys = self._form.keys(scores.astype(self.dtype, copy=False), positive=least > 0)
        rows, held = regions.rows, mask[regions.rows]
        self._normal.extend(keys[: rows.start].reshape(-1))
        self._normal.extend(keys[rows][~held])
        self._normal.extend(keys[rows.stop :].reshape(-1))
        self._anomalous.extend(self._form.pack(keys[rows][held], regions.areas))

    def merge(self, other: ExactStore) -> None:
        """Append the pixels of another state."""
        self._ranks = None
        if other.dtype == np.float64:
            self._widen()
        normal, anomalous = other._normal.view(), other._anomalous.view()
        if other.dtype != self.dtype:
            normal, anomalous = doubled(normal, anomalous)
        self._normal.extend(normal)
        self._anomalous.extend(anomalous)

    def _widen(self) -> None:
        """Go over to float64, which holds every float32 exactly."""
        if self.dtype == np.float64:
            return
        normal, anomalous = doubled(self._normal.view(), self._anomalous.view())
        self.dtype = np.dtype(np.float64)
        self._normal, self._anomalous = Buffer(DoublePixels.key), Buffer(DoublePixels.packed)
        self._normal.extend(normal)
        self._anomalous.extend(anomalous)

    def _sort(self) -> Sorted | Counted:
        if self._ranks is None:
            self._anomalous.sort()
            self._ranks = rank(self._normal.view())
        return self._ranks

    def false_above(self, thresholds: np.ndarray) -> np.ndarray:
        """Normal pixels with score > threshold; thresholds: (K,) of the scores' type, falling."""
        at_or_below, _ = self._sort().count(self._form.keys(thresholds))
        return self.negatives - at_or_below

    def groups(self) -> Iterator[Groups]:
        """One group per distinct anomalous score, highest first, in blocks."""
        ranks, anomalous, normal = self._sort(), self._anomalous.view(), self.negatives
        true, overlap = 0, 0.0
        stop = len(anomalous)
        while stop:
            start = max(0, stop - BLOCK)
            start = int(np.searchsorted(anomalous[: start + 1], self._form.first_of_tie(anomalous[start])))
            keys, areas = self._form.unpack(anomalous[start:stop][::-1])
            first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            distinct = keys[first]
            positives = np.diff(first, append=len(keys))
            weights = np.add.reduceat(1.0 / areas, first)
            at_or_below, below = ranks.count(distinct)
            groups = Groups(
                self._form.scores(distinct),
                positives,
                weights,
                true + np.cumsum(positives),
                overlap + np.cumsum(weights),
                normal - at_or_below,
                normal - below,
            )
            yield groups
            true, overlap = int(groups.true[-1]), float(groups.overlap[-1])
            stop = start


def doubled(normal: np.ndarray, anomalous: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal and anomalous pixels of float32 scores in the form of float64 scores."""
    keys, areas = SinglePixels.unpack(anomalous)
    packed = DoublePixels.pack(SinglePixels.scores(keys).astype(np.float64), areas)
    return SinglePixels.scores(normal).astype(np.float64), packed
