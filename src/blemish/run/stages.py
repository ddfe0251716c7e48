"""Methods that learn in stages, and runs that begin with the learned parts of another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from blemish.checkpoint import load_checkpoint, load_parts
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import method_class
from blemish.run.recipe import TrainOptions

# What a stage's own recipe says, left open.
OPEN: dict[str, Any] = {
    "epochs": None,
    "batch_size": None,
    "learning_rate": None,
    "betas": None,
    "weight_decay": None,
    "augmentation": "auto",
    "schedule": "auto",
}


def earlier_stages(
    options: TrainOptions, own: Mapping[str, Any]
) -> Iterator[tuple[TrainOptions, dict[str, Any]]]:
    """The runs that go before the last stage: their options, and the method's own ones with their stage.

    A method says in `stages` which values its option `stage` takes in turn, the last being its default. --epochs and
    the like are the last stage's; the others keep to their recipes. Nothing goes before a stage that was named, or
    a run that begins with a checkpoint. Raises BadOption for a later stage by itself without a checkpoint.
    """
    stages: tuple[str, ...] = getattr(method_class(options.method), "stages", ()) if options.method else ()
    named = own.get("stage")
    if options.init is None and named in stages[1:]:
        raise BadOption(
            f"stage {named} of {options.method} goes on from stage {stages[0]}; name the checkpoint of that "
            f"with --init, or leave stage out to learn all"
        )
    if not stages or options.init is not None or named is not None:
        return
    if options.cache not in ("auto", "off", 0):
        raise BadOption(
            f"{options.method} learns inside the image tower in stage {stages[-1]}, so nothing can be cached "
            f"there; leave --cache out, and stage {stages[0]} keeps its features all the same"
        )
    for stage in stages[:-1]:
        out = str(Path(options.out) / stage)
        yield replace(options, out=out, **OPEN), {**own, "stage": stage}


def with_stage_recipe(options: TrainOptions, own: Mapping[str, Any]) -> TrainOptions:
    """The options with the recipe of the stage that `own` names, where they leave something open.

    Stages but the last have one in `stage_recipes`; the last stage's is the method's `recipe`.
    """
    recipes: Mapping[str, Mapping[str, Any]] = {}
    if options.method:
        recipes = getattr(method_class(options.method), "stage_recipes", {})
    recipe = recipes.get(own.get("stage", ""), {})
    return replace(options, **{k: v for k, v in recipe.items() if getattr(options, k) in (None, "auto")})


def begin_with(checkpoint: str | None, method: nn.Module, name: str) -> None:
    """Put the learned parts of a checkpoint of the same method into `method`; None leaves them as they are.

    Raises BadCheckpoint for a file of another kind, method or shape.
    """
    if checkpoint is None:
        return
    path = Path(checkpoint).expanduser()
    meta, tensors = load_checkpoint(path)
    if meta.method != name:
        raise BadCheckpoint(f"{path} is a checkpoint of {meta.method}; --init needs one of {name}")
    load_parts(method, name, tensors, path)


def start_digest(checkpoint: str | None) -> str | None:
    """Hash of the learned parts that a run began with: what it must have in common when it is resumed."""
    if checkpoint is None:
        return None
    _, tensors = load_checkpoint(Path(checkpoint).expanduser())
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
