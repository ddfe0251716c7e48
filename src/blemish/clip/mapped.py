"""Memory of mapped files that is given back as soon as their tensors have been copied."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

from torch import Tensor


class MappedFiles:
    """The private mappings of files in this process as they are now; none on systems other than Linux.

    A mapped tensor that has been read counts as memory of the process as long as any tensor of its file lives. On
    `release` its whole pages are dropped; who touches them again reads the file again.
    """

    def __init__(self, maps: Path = Path("/proc/self/maps")) -> None:
        """maps: the list of mappings as Linux writes it."""
        self._ranges: list[tuple[int, int]] = []
        if sys.platform != "linux":
            return
        self._advise = ctypes.CDLL(None).madvise
        try:
            lines = os.fsdecode(maps.read_bytes()).splitlines()
        except OSError:
            return
        for line in lines:
            # address range, permissions, offset, device, inode, path; files have an inode, other memory has 0
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and parts[4] != "0" and parts[1].endswith("p") and "x" not in parts[1]:
                start, end = (int(address, 16) for address in parts[0].split("-"))
                self._ranges.append((start, end))

    def holds(self, tensor: Tensor) -> bool:
        """Whether all of a tensor lies in one mapped file."""
        first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        return any(start <= first and first + size <= end for start, end in self._ranges)

    def release(self, tensor: Tensor) -> None:
        """Drop the pages of a contiguous tensor on the CPU, if it is mapped and nobody has changed it in memory."""
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or not self.holds(tensor):
            return
        first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        # Whole pages only: the first and the last may hold a neighbour's bytes.
        start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (first + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._advise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(mmap.MADV_DONTNEED)
            )
