"""What this machine can do, and whether the installation is whole."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from blemish.errors import BlemishError

PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "scipy": "scipy",
    "pillow": "PIL",
    "tifffile": "tifffile",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "tokenizers": "tokenizers",
    "typer": "typer",
    "rich": "rich",
}


@dataclass(frozen=True)
class Check:
    """One line of the examination. ok: False when something is broken, not merely absent."""

    name: str
    value: str
    ok: bool = True


def examine() -> list[Check]:
    """Look at Python, packages, devices, disk, memory, embedded weights and the hub's cache; never raises."""
    found = [Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    found += [_package(name, module) for name, module in PACKAGES.items()]
    for name, look in (
        ("devices", _devices),
        ("memory and disk", _room),
        ("embedded weights", _embedded),
        ("hub", _hub),
    ):
        found += _guarded(name, look)
    return found


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(look())
    # Whatever breaks here is a finding, and the other checks should still be made.
    except Exception as error:
        return [Check(name, f"{type(error).__name__}: {error}".splitlines()[0], ok=False)]


def _package(name: str, module: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name, f"missing; install it with: pip install {name}", ok=False)
    try:
        return Check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "present, version unknown")


def _devices() -> Iterator[Check]:
    import torch

    from blemish.device import (
        REPORTED_FLAGS,
        cpu_flags,
        cpu_name,
        has_fast_bf16,
        precision_name,
        resolve_device,
        resolve_precision,
    )

    yield Check("cpu", f"{cpu_name() or 'unknown model'}, {available_cpus()} cores usable")
    yield Check("threads", str(torch.get_num_threads()))
    yield Check("cpu flags", ", ".join(sorted(cpu_flags().intersection(REPORTED_FLAGS))) or "none known")
    fast = "yes" if has_fast_bf16() else "no (bf16 on this CPU would be very slow)"
    yield Check("bf16 in hardware", fast)
    cuda = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    yield Check("cuda", ", ".join(cuda) or "none")
    yield Check("mps", "yes" if torch.backends.mps.is_available() else "none")
    device = resolve_device("auto")
    small, large = (precision_name(resolve_precision("auto", device, embedded=e)) for e in (True, False))
    yield Check("device auto", str(device))
    yield Check("precision auto", f"{large}; {small} for the embedded backbone")


def _room() -> Iterator[Check]:
    memory = Path("/proc/meminfo")
    if memory.is_file():
        lines = dict(line.split(":", 1) for line in memory.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        yield Check("free memory", f"{free / 1e9:.1f} GB")
    free = shutil.disk_usage(Path.cwd()).free
    low = free < 100e6
    yield Check("free disk here", f"{free / 1e9:.1f} GB" + (" (too little)" if low else ""), ok=not low)


def _embedded() -> Iterator[Check]:
    from blemish.clip.weights import load_clip
    from blemish.loading import EMBEDDED, learns, load
    from blemish.methods import METHODS

    try:
        clip = load_clip("tiny")
    except BlemishError as error:
        yield Check("embedded backbone", str(error), ok=False)
        return
    count = sum(p.numel() for p in clip.parameters())
    yield Check("embedded backbone", f"tiny, {count / 1e6:.1f} M parameters, {clip.fingerprint}")
    for name in METHODS:
        if learns(name) and not (EMBEDDED / f"{name}.safetensors").exists():
            yield Check(f"checkpoint {name}", "none embedded; it needs --checkpoint")
            continue
        try:
            setup = load(name, device="cpu").setup
            what = f"{setup.checkpoint}, {setup.checkpoint_sha256[:16]}" if setup.checkpoint else "needs none"
            yield Check(f"checkpoint {name}", what)
        except BlemishError as error:
            yield Check(f"checkpoint {name}", str(error), ok=False)


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    stored = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    yield Check("hub cache", f"{cache} ({stored} repositories)")
    yield Check("hub access", "off (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "on")


def available_cpus() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
