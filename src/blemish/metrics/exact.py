"""Exact pixel state: 4 bytes per normal pixel, 8 per anomalous pixel (twice that for float64 scores)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from blemish.metrics.ranking import Groups

BLOCK = 16384  # anomalous pixels a step of the final pass takes: its work arrays stay in the cache
SLACK = 32  # a full buffer grows by 1/32, so spare room costs at most 3 %
LEAST_ROOM = 1 << 16


class Buffer:
    """A growing one-dimensional array. It grows in place where the system can, so joining needs no copy."""

    def __init__(self, dtype: np.dtype) -> None:
        self._array = np.empty(0, dtype=dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"items": self.view()}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        self._array = state["items"].copy()  # an unpickled array does not own its memory and cannot grow
        self._size = len(self._array)

    def view(self) -> np.ndarray:
        """The items so far; valid until the next `extend`."""
        return self._array[: self._size]

    def extend(self, items: np.ndarray) -> None:
        """Append items of the buffer's type."""
        end = self._size + len(items)
        if end > len(self._array):
            self._array.resize(max(end, self._size + max(self._size // SLACK, LEAST_ROOM)), refcheck=False)
        self._array[self._size : end] = items
        self._size = end

    def sort(self) -> None:
        """Sort in place, keys only."""
        self.view().sort()


class SinglePixels:
    """Anomalous float32 scores with their region areas as one integer, which sorts by score, then area.

    The upper half is the score's bits in an order-preserving form, the lower half the area.
    """

    dtype = np.dtype(np.uint64)
    LOW = np.uint64(0xFFFFFFFF)
    HALF = np.uint64(32)
    SIGN = np.uint32(0x80000000)

    @classmethod
    def pack(cls, scores: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """uint64 keys; zeros lose their sign, which makes them equal."""
        bits = (scores + np.float32(0)).view(np.uint32)
        ordered = np.where(bits & cls.SIGN, ~bits, bits | cls.SIGN)
        return (ordered.astype(np.uint64) << cls.HALF) | areas.astype(np.uint64)

    @classmethod
    def unpack(cls, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and areas of keys."""
        ordered = (keys >> cls.HALF).astype(np.uint32)
        bits = np.where(ordered & cls.SIGN, ordered ^ cls.SIGN, ~ordered)
        return bits.view(np.float32), keys & cls.LOW

    @classmethod
    def first_of_tie(cls, key: np.generic) -> np.generic:
        """A key not above any other of the same score."""
        return np.uint64(key) & ~cls.LOW


class DoublePixels:
    """Anomalous float64 scores with their region areas as complex numbers, which sort by score, then area."""

    dtype = np.dtype(np.complex128)

    @staticmethod
    def pack(scores: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """complex128 keys; zeros lose their sign, which makes them equal."""
        keys = np.empty(len(scores), dtype=np.complex128)
        keys.real, keys.imag = scores + 0.0, areas
        return keys

    @staticmethod
    def unpack(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores float64 and areas of keys."""
        return keys.real, keys.imag

    @staticmethod
    def first_of_tie(key: np.generic) -> np.generic:
        """A key not above any other of the same score."""
        return np.complex128(complex(float(key.real), 0.0))


class ExactStore:
    """All normal scores and all anomalous (score, area) pairs of one class."""

    def __init__(self) -> None:
        self.dtype: np.dtype = np.dtype(np.float32)
        self._normal = Buffer(self.dtype)
        self._anomalous = Buffer(SinglePixels.dtype)
        self._sorted = True

    @property
    def _form(self) -> type[SinglePixels] | type[DoublePixels]:
        return SinglePixels if self.dtype == np.float32 else DoublePixels

    @property
    def positives(self) -> int:
        return len(self._anomalous)

    @property
    def negatives(self) -> int:
        return len(self._normal)

    def add(self, scores: np.ndarray, mask: np.ndarray | None, areas: np.ndarray) -> None:
        """scores: (H, W) float32 or float64. mask: bool (H, W), None when all normal. areas: per mask pixel."""
        if scores.dtype == np.float64:
            self._widen()
        scores = scores.astype(self.dtype, copy=False)
        if mask is None:
            self._normal.extend(scores.reshape(-1))
        else:
            self._normal.extend(scores[~mask])
            self._anomalous.extend(self._form.pack(scores[mask], areas))
        self._sorted = False

    def merge(self, other: ExactStore) -> None:
        """Append the pixels of another state."""
        if other.dtype == np.float64:
            self._widen()
        self._normal.extend(other._normal.view().astype(self.dtype, copy=False))
        keys = other._anomalous.view()
        if other.dtype != self.dtype:
            keys = self._form.pack(*other._form.unpack(keys))
        self._anomalous.extend(keys)
        self._sorted = False

    def _widen(self) -> None:
        """Go over to float64, which holds every float32 exactly."""
        if self.dtype == np.float64:
            return
        single = self._form.unpack(self._anomalous.view())
        normal = self._normal.view().astype(np.float64)
        self.dtype = np.dtype(np.float64)
        self._normal, self._anomalous = Buffer(self.dtype), Buffer(DoublePixels.dtype)
        self._normal.extend(normal)
        self._anomalous.extend(DoublePixels.pack(*single))

    def _sort(self) -> None:
        if not self._sorted:
            self._normal.sort()
            self._anomalous.sort()
            self._sorted = True

    def false_above(self, thresholds: np.ndarray) -> np.ndarray:
        """Normal pixels with score > threshold; thresholds: (K,) of the scores' type."""
        self._sort()
        return self.negatives - np.searchsorted(self._normal.view(), thresholds, side="right")

    def groups(self) -> Iterator[Groups]:
        """One group per distinct anomalous score, highest first, in blocks."""
        self._sort()
        normal, keys = self._normal.view(), self._anomalous.view()
        true, overlap = 0, 0.0
        stop, high = len(keys), len(normal)
        while stop:
            start = max(0, stop - BLOCK)
            start = int(np.searchsorted(keys[: start + 1], self._form.first_of_tie(keys[start])))
            scores, areas = self._form.unpack(keys[start:stop][::-1])
            first = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))
            distinct = scores[first]
            positives = np.diff(first, append=len(scores))
            weights = np.add.reduceat(1.0 / areas, first)
            at_or_below, below, high = count_normal(normal, high, distinct)
            groups = Groups(
                distinct,
                positives,
                weights,
                true + np.cumsum(positives),
                overlap + np.cumsum(weights),
                len(normal) - at_or_below,
                len(normal) - below,
            )
            yield groups
            true, overlap = int(groups.true[-1]), float(groups.overlap[-1])
            stop = start


def count_normal(normal: np.ndarray, high: int, distinct: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """How many normal scores are <= and < each of `distinct`, and where the next lower block may stop looking.

    normal: sorted, rising. high: all from there on are above every one of `distinct`, which is falling.
    """
    low = int(np.searchsorted(normal[:high], distinct[-1], side="left"))
    part = normal[low:high]
    at_or_below = low + np.searchsorted(part, distinct, side="right")
    below = at_or_below.copy()
    tied = np.flatnonzero(at_or_below > low)
    tied = tied[normal[at_or_below[tied] - 1] == distinct[tied]]
    below[tied] = low + np.searchsorted(part, distinct[tied], side="left")
    return at_or_below, below, low
