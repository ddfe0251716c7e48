"""Where and in which number format the model runs: one choice, made once."""

from __future__ import annotations

import functools
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from blemish.errors import BadOption

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FAST_BF16_FLAGS = ("amx_bf16", "avx512_bf16")
REPORTED_FLAGS = ("avx2", "avx512f", *FAST_BF16_FLAGS)
_CUDA_NAME = re.compile(r"cuda(?::(\d+))?")


def resolve_device(name: str = "auto") -> torch.device:
    """The device called "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" takes CUDA, then Apple's MPS, then the CPU. Raises BadOption for another name and for a device that
    this machine or this build of torch does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise BadOption("device 'mps' is not available here; use --device auto or --device cpu")
        return torch.device("mps")
    cuda = _CUDA_NAME.fullmatch(name)
    if cuda is None:
        raise BadOption(f"unknown device {name!r}: choose from auto, cpu, cuda, cuda:N, mps")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        raise BadOption(f"device {name!r}: torch {torch.__version__} finds no CUDA device; use --device cpu")
    if cuda[1] is not None and int(cuda[1]) >= count:
        raise BadOption(f"device {name!r}: there are {count} CUDA devices, numbered from 0; use cuda:0")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device, embedded: bool = False) -> torch.dtype:
    """The floating-point type called "auto", "fp32", "bf16" or "fp16" for `device`.

    embedded: the backbone is the small embedded one, where a CPU gains nothing from bf16.
    "auto" on a CPU is bf16 only with hardware for it (without, bf16 runs many times slower than fp32); on
    CUDA bf16 where supported and fp16 elsewhere; on MPS fp32. Raises BadOption for another name.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise BadOption(f"unknown precision {name!r}: choose from auto, {', '.join(PRECISIONS)}")
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and not embedded and has_fast_bf16():
        return torch.bfloat16
    return torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """The option value ("fp32", "bf16", "fp16") that names `dtype`."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512)."""
    return not cpu_flags().isdisjoint(FAST_BF16_FLAGS)


def is_out_of_memory(error: Exception) -> bool:
    """Torch says so with its own class on a GPU and with a plain RuntimeError on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def machine(device: torch.device) -> dict[str, Any]:
    """What a run is measured on: system, processor, threads, and the GPU where `device` is one."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "flags": sorted(cpu_flags().intersection(REPORTED_FLAGS)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
    }


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: by tensors on a GPU, else by the whole process; 0 where it cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    # Linux counts in KiB, macOS in bytes
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


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
