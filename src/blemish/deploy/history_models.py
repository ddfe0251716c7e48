"""Which model an inspection is of: a fingerprint of all that its scores depend on, but not of thresholds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.files import public_backbone

if TYPE_CHECKING:
    from blemish.predictor import Predictor, Setup

LENGTH = 16
# Thresholds are what verdicts are to improve; names of files and of training data do not change scores.
LEFT_OUT = ("threshold", "pixel_threshold", "checkpoint", "checkpoint_sha256", "auxiliary", "runtime")
# An exported file of one of these gives the scores of what it was made from; others were quantised each in its way.
EXACT = ("fp32", "bf16", "fp16")
HEADER_LENGTH = 8
LARGEST_HEADER = 100_000_000


def checkpoint_file(given: str | None, setup: Setup) -> Path | None:
    """The file of a predictor's learned parts: the one given, or the embedded one; None where there is none at hand."""
    from blemish.loading import EMBEDDED

    if setup.runtime != "torch":
        return None
    if given is not None:
        return Path(given).expanduser()
    return EMBEDDED / setup.checkpoint if setup.checkpoint else None


def describe_model(predictor: Predictor, checkpoint: Path | None) -> dict[str, Any]:
    """What a predictor's scores depend on, as plain JSON values.

    checkpoint: the file it was made from, where that is at hand; else its `setup` tells.
    """
    setup = asdict(predictor.setup)
    about = {key: value for key, value in setup.items() if key not in LEFT_OUT}
    about["backbone"] = public_backbone(setup["backbone"])
    if predictor.precision in EXACT:
        about["runtime_sha256"] = ""
    weights = setup["checkpoint_sha256"] if checkpoint is None else weights_hash(checkpoint)
    about |= {"weights": weights, "precision": predictor.precision}
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def fingerprint(about: dict[str, Any]) -> str:
    """Method and backbone, then the first digits of the SHA-256 of what `describe_model` said."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:LENGTH]
    return f"{about['method']}/{about['backbone']}/{digest}"


def weights_hash(path: Path) -> str:
    """SHA-256 of a checkpoint's tensors: the same before and after `blemish calibrate`, which changes its header.

    Of a file that is no safetensors file, all of it is hashed.
    """
    with path.open("rb") as file:
        digest = hashlib.sha256()
        length = int.from_bytes(file.read(HEADER_LENGTH), "little")
        try:
            if length > LARGEST_HEADER:
                raise ValueError
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
        except (ValueError, TypeError, AttributeError, RecursionError):
            file.seek(0)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
