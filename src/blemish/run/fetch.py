"""Weights ahead of use: what `blemish fetch` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blemish.clip.hub import BACKBONES, locate
from blemish.clip.weights import load_clip
from blemish.data.catalog import CATALOG
from blemish.errors import UnknownName, WeightsNotFound
from blemish.methods import METHODS


@dataclass(frozen=True)
class Fetched:
    """A backbone on this machine, read whole. repository: hub id, "" when nothing was fetched."""

    name: str
    path: Path
    repository: str
    fingerprint: str


def fetch(name: str) -> Fetched:
    """Get a backbone (name or hub repository id) into the hub's cache and read all of it.

    Raises BadWeights when what came is damaged or another model, WeightsNotFound when nothing serves it, also for
    datasets and authors' checkpoints, which have to be asked for by hand: the message says where. Raises
    UnknownName for anything else.
    """
    if name in CATALOG:
        entry = CATALOG[name]
        raise WeightsNotFound(
            f"{name} ({entry.licence}) is given out by its owners alone: {entry.source}\n"
            f"unpack it and check it with: blemish info FOLDER --dataset {name}"
        )
    if name in METHODS:
        raise WeightsNotFound(
            f"{name} is a method; the authors' checkpoints are given out by themselves (docs/methods/{name}.md), and "
            f"`blemish info FILE` checks one\n`blemish fetch ViT-L-14-336` gets the backbone that they are for"
        )
    try:
        located = locate(name)
    except UnknownName as error:
        raise UnknownName(
            "backbone or dataset", name, (*BACKBONES, "a hub repository id", *CATALOG)
        ) from error
    clip = load_clip(name)
    return Fetched(name, located.path, located.repository, clip.fingerprint)
