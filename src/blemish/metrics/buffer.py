"""A growing array for many millions of scores."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

SLACK = 32  # a full buffer grows by 1/32, so spare room costs at most 3 %
LEAST_ROOM = 1 << 16
HUGE_PAGE = 1 << 21
# Linux lets memory grow where it lies and hands it out in pages of 2 MB on request; small pages would cost
# as much time as everything else that happens to a map.
MAPPED = hasattr(mmap, "MADV_HUGEPAGE")


class Buffer:
    """A growing one-dimensional array. It grows in place where the system can, so joining needs no copy."""

    def __init__(self, dtype: np.dtype) -> None:
        self._array = np.empty(0, dtype=dtype)
        self._size = 0
        self._memory: mmap.mmap | None = None

    def __len__(self) -> int:
        return self._size

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"items": self.view()}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        Buffer.__init__(self, state["items"].dtype)
        self.extend(state["items"])  # an unpickled array does not own its memory and cannot grow

    def view(self) -> np.ndarray:
        """The items so far; valid until the next `extend`."""
        return self._array[: self._size]

    def extend(self, items: np.ndarray) -> None:
        """Append items (N,) of the buffer's type."""
        end = self._size + len(items)
        if end > len(self._array):
            self._grow(max(end, self._size + max(self._size // SLACK, LEAST_ROOM)))
        self._array[self._size : end] = items
        self._size = end

    def sort(self) -> None:
        """Sort in place, keys only."""
        self.view().sort()

    def _grow(self, room: int) -> None:
        size = room * self._array.itemsize
        if not MAPPED or size < HUGE_PAGE:
            self._array.resize(room, refcheck=False)
            return
        size += -size % HUGE_PAGE
        if self._memory is None or not self._stretch(self._memory, size):
            self._move(size)

    def _stretch(self, memory: mmap.mmap, size: int) -> bool:
        """Make the memory larger where it is; False when something else still looks at it."""
        dtype = self._array.dtype
        self._array = np.empty(0, dtype=dtype)  # this array must not look at it meanwhile
        try:
            memory.resize(size)
        except BufferError:
            return False
        finally:
            self._array = np.frombuffer(memory, dtype=dtype)
        return True

    def _move(self, size: int) -> None:
        items = self.view()
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._array = np.frombuffer(self._memory, dtype=items.dtype)
        self._array[: len(items)] = items
