"""[methods.train] of a plan: what is trained for a cell, put together from the plan and a recipe file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blemish.config import read_config, typed_options
from blemish.errors import BadOption
from blemish.run.recipe import TrainOptions

# Set by the plan for every cell: they have no place in [methods.train], and a recipe's are passed over.
SET_BY_PLAN = ("method", "seed", "out")
SET_BY_METHOD = ("backbone", "image_size")


def check_training(train: Mapping[str, Any], method: str, folder: Path, owner: str) -> dict[str, Any]:
    """[methods.train] with lists where `blemish train` has them, and its recipe files by training set.

    train: `recipe` (a file, or files by training set, relative to `folder`), `data` (names or folders of training
    data) and any other key of `blemish train`. owner: for error texts. Raises BadOption for wrong values and for
    a recipe that cannot be read or is another method's; UnknownName for a key that does not exist.
    """
    for key in (*SET_BY_PLAN, *SET_BY_METHOD):
        if key in train:
            raise BadOption(f"{owner}: {key} does not belong into train; the plan sets it elsewhere")
    found = {k: [v] if k in ("data", "dataset") and isinstance(v, str) else v for k, v in train.items()}
    recipes = found.pop("recipe", {})
    recipes = {"": recipes} if isinstance(recipes, str) else recipes
    if not isinstance(recipes, dict) or not all(isinstance(file, str) for file in recipes.values()):
        raise BadOption(f'{owner}: recipe is {recipes!r}; expected a file, or files as {{ visa = "a.toml" }}')
    TrainOptions(**typed_options(TrainOptions, found, f"{owner}, train"))
    for file in recipes.values():
        values = read_config(folder / file)
        if values.get("method", method) != method:
            raise BadOption(f"{owner}: recipe {file} is one of {values['method']}")
        TrainOptions(**typed_options(TrainOptions, values, str(folder / file)))
    return found | ({"recipe": recipes} if recipes else {})


def training_options(train: Mapping[str, Any], auxiliary: str, folder: Path) -> dict[str, Any]:
    """The keys of `blemish train` for a training set; those of [methods.train] go before the recipe's.

    Raises BadOption when there are recipes, but none for this training set.
    """
    own = {key: value for key, value in train.items() if key != "recipe"}
    recipes: Mapping[str, str] = train.get("recipe", {})
    if not recipes:
        return own
    file = recipes.get(auxiliary) or recipes.get("")
    if file is None:
        raise BadOption(
            f"no recipe to train on {auxiliary or 'an unnamed set'}; the plan has {', '.join(recipes)}"
        )
    values = read_config(folder / file)
    return {key: value for key, value in values.items() if key not in SET_BY_PLAN} | own
