"""What runs here: the processor, the packages and their versions. Nothing of it needs torch."""

from __future__ import annotations

import ctypes
import functools
import platform
from importlib import metadata
from pathlib import Path

VERSIONED_PACKAGES = (
    "blemish",
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "safetensors",
    "onnxruntime",
    "openvino",
)
FAST_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
# Parameters of glibc's mallopt
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
REPORTED_FLAGS = ("avx2", "avx512f", *FAST_BF16_FLAGS)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def system_name() -> str:
    """Operating system and architecture."""
    return f"{platform.system()} {platform.machine()}"


def is_out_of_memory(error: Exception) -> bool:
    """Torch says so with its own class on a GPU and with a plain RuntimeError on the CPU."""
    # By name, since the class itself is torch's.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next picture; returns whether this C library can.

    glibc gives large blocks back to the system at once and asks for them again, zeroed page by page, at the next
    layer: a third of the time of a small network. The memory held stays at the most that was in use at once.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    no_mmap = mallopt(_M_MMAP_MAX, 0)
    no_trim = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(no_mmap and no_trim)


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512)."""
    return not cpu_flags().isdisjoint(FAST_BF16_FLAGS)


@functools.cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature flags of the CPU as Linux names them; empty where they cannot be read."""
    return frozenset(_cpuinfo_value(("flags", "features"), cpuinfo).split())


@functools.cache
def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model name of the CPU, or an empty string where it cannot be read."""
    return _cpuinfo_value(("model name",), cpuinfo)


def _cpuinfo_value(keys: tuple[str, ...], cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in keys:
            return value.strip()
    return ""
