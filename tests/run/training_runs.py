"""What the tests of training share: methods that learn, and what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import blemish
from blemish.methods import METHODS
from blemish.run.train import TrainSummary

METHOD_NAMES = [name for name in METHODS if hasattr(blemish.methods.method_class(name), "loss")]
INSIDE = [name for name in METHOD_NAMES if hasattr(blemish.methods.method_class(name), "encode")]


def weights(summary: TrainSummary) -> dict[str, torch.Tensor]:
    """What the checkpoint of a run holds."""
    return load_file(summary.checkpoint)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def lines(out: Path) -> list[dict[str, Any]]:
    """The log's lines of steps."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]
