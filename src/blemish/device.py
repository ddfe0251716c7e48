"""Where and in which number format the model runs: one choice, made once."""

from __future__ import annotations

import re
import sys
from typing import Any

import torch

from blemish.errors import BadOption
from blemish.machine import (
    REPORTED_FLAGS,
    cpu_flags,
    cpu_name,
    has_fast_bf16,
    is_out_of_memory,
    system_name,
)

__all__ = [
    "PRECISIONS",
    "REPORTED_FLAGS",
    "cpu_flags",
    "cpu_name",
    "has_fast_bf16",
    "is_out_of_memory",
    "machine",
    "peak_memory_mib",
    "precision_name",
    "resolve_device",
    "resolve_precision",
]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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


def machine(device: torch.device) -> dict[str, Any]:
    """What a run is measured on: system, processor, threads, and the GPU where `device` is one."""
    return {
        "system": system_name(),
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
