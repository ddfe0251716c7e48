"""What a training run leaves on disk to go on from: learned parts and optimiser moments in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from blemish.errors import BadCheckpoint
from blemish.files import write_whole

STATE_FILE = "state.safetensors"
FORMAT = "blemish-training-state"


def save_state(
    out: Path, method: nn.Module, optimiser: torch.optim.Optimizer, steps: int, settings: Mapping[str, Any]
) -> None:
    """Write the state after `steps` optimiser steps, whole or not at all. Raises OutputError.

    settings: what a resumed run must have in common. Random numbers need no state: every step's follow from
    the seed and its number.
    """
    tensors = {f"learned.{name}": t.detach().cpu().clone() for name, t in method.state_dict().items()}
    names = {id(p): name for name, p in method.named_parameters()}
    for parameter, moments in optimiser.state.items():
        for key, value in moments.items():
            tensors[f"moment.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu().clone()
    header = {"format": FORMAT, "steps": str(steps), "settings": json.dumps(settings, sort_keys=True)}
    write_whole(out / STATE_FILE, save(tensors, metadata=header))


def restore_state(
    out: Path, method: nn.Module, optimiser: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> int:
    """Put method and optimiser back to the state in `out`; returns the steps done, 0 without a state.

    Raises BadCheckpoint when the state is damaged or of a run with other settings.
    """
    path = out / STATE_FILE
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{path} is damaged ({error}); start anew with --overwrite") from error
    if header.get("format") != FORMAT:
        raise BadCheckpoint(f"{path} is no training state; start anew with --overwrite")
    earlier, now = json.loads(header["settings"]), json.loads(json.dumps(settings))
    for key in sorted(earlier.keys() | now.keys()):
        if earlier.get(key) != now.get(key):
            raise BadCheckpoint(
                f"cannot resume {out}: {key} was {earlier.get(key)!r} and is now {now.get(key)!r}; "
                f"use the same settings, or start anew with --overwrite"
            )
    method.load_state_dict(
        {k.removeprefix("learned."): t for k, t in tensors.items() if k.startswith("learned.")}
    )
    parameters = dict(method.named_parameters())
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "moment":
            moment, _, name = rest.partition(".")
            parameter = parameters[name]
            # Adam counts its steps on the CPU whatever the device.
            place = tensor if moment == "step" else tensor.to(parameter.device)
            optimiser.state[parameter][moment] = place
    return int(header["steps"])
