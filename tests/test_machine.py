"""Freed memory that the C library keeps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of four blocks of 40 MB that are filled and freed one after the other, after a first one.
PROGRAM = """
import resource
from blemish.machine import keep_freed_memory
kept = {keep} and keep_freed_memory()
def fill():
    return len(b"x" * 40_000_000)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[str, int]:
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    kept, count = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such switch")
def test_kept_memory_is_not_asked_for_again() -> None:
    without = faults(keep=False)
    kept = faults(keep=True)
    assert (without[0], kept[0]) == ("False", "True")
    # 4 KB pages, or far fewer huge ones
    assert without[1] >= 4 * 10
    assert kept[1] < without[1] / 4
