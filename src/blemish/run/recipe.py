"""The options of `blemish train`, and what they come to with a method's own recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from blemish.config import check_counts, check_seed
from blemish.data.augment import AUGMENTATIONS
from blemish.detector import check_image_size
from blemish.device import PRECISIONS
from blemish.errors import BadOption, UnknownName
from blemish.loading import default_image_size
from blemish.methods import method_class

if TYPE_CHECKING:
    from blemish.clip.model import CLIP

SCHEDULES = ("auto", "constant", "linear", "cosine")


@dataclass(frozen=True)
class TrainOptions:
    """The keys of `blemish train`, on the command line and in a --config file; None: the method's own recipe.

    method: what to train. data, dataset: folders of auxiliary data and, where their layout is not told by
    itself, one dataset name for each; split: "test" (as all papers do), "train" or "all". out: the folder that
    receives the run. backbone, device, image_size, threads: as in `blemish.load`. precision: of the products;
    "auto" and "fp32" are exact, "bf16" and "fp16" are autocast with losses and learned parts in fp32.
    epochs, batch_size (over all processes), learning_rate, seed, augmentation ("none", "mosaic", "vcp",
    "vcp_mosaic", or "auto" for the recipe's): the recipe. schedule: of the learning rate, "constant", or falling
    to 0 as "linear" or "cosine"; "auto" is the method's own, constant for most. betas, weight_decay: of the optimiser,
    Adam for most; None: the method's own. map_size: side at which maps and masks are compared; None is the
    image size.
    cache: "off" encodes every picture in every epoch, a number keeps so many drawings of each (1 without
    augmentation); "auto" is 1 without augmentation, else off, as for methods that learn inside the image tower.
    cache_dir, cache_storage: where, and "fp16", "bf16" or "int8". validate_classes: classes to hold out and
    report on after each epoch. strict: refuse data with anything odd. class_name: in place of the dataset's.
    class_names: a file of words for the dataset's classes, see `config.read_class_names`. limit: only so many images,
    evenly from the data. threshold_images: thresholds (and the scale of methods that have one) from so many images,
    evenly from those learned from; None: all. init: a checkpoint of the same method, whose learned parts are the start.
    """

    method: str = ""
    data: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    split: str = "test"
    out: str = "blemish-train"
    backbone: str = "tiny"
    device: str = "auto"
    precision: str = "auto"
    image_size: int | None = None
    threads: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    augmentation: str = "auto"
    schedule: str = "auto"
    betas: tuple[float, ...] | None = None
    weight_decay: float | None = None
    map_size: int | None = None
    cache: str | int = "auto"
    cache_dir: str | None = None
    cache_storage: str = "fp16"
    validate_classes: tuple[str, ...] = ()
    strict: bool = False
    class_name: str | None = None
    class_names: str | None = None
    limit: int | None = None
    threshold_images: int | None = None
    init: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "epochs", "batch_size", "threads", "limit", "map_size", "threshold_images")
        check_seed(self.seed)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise BadOption(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise BadOption(f"weight_decay is {self.weight_decay}; expected a number of at least 0")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas)):
            raise BadOption(f"betas is {list(self.betas)}; expected two numbers from 0 to below 1")
        for name, choices in (("schedule", SCHEDULES), ("precision", ("auto", *PRECISIONS))):
            if getattr(self, name) not in choices:
                raise UnknownName(name, getattr(self, name), choices)
        if self.augmentation not in ("auto", *AUGMENTATIONS):
            raise UnknownName("augmentation", self.augmentation, ("auto", *AUGMENTATIONS))
        if not (self.cache in ("auto", "off", "on") or (type(self.cache) is int and self.cache >= 0)):
            raise BadOption(f"cache is {self.cache!r}; expected off, on, or a number of copies per image")


@dataclass(frozen=True)
class Recipe(TrainOptions):
    """Options with nothing left open. copies: drawings of each image that the cache holds, 0 without cache."""

    image_size: int = 0
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    augmentation: str = "none"
    map_size: int = 0
    copies: int = 0


def complete(options: TrainOptions, clip: CLIP) -> Recipe:
    """The options with the method's own recipe where they leave something open.

    Raises UnknownName for the method,
    BadOption for an image size that does not fit the backbone.
    """
    if not options.method:
        raise BadOption(
            "no method named; blemish train METHOD --data ROOT, and `blemish list methods` lists them"
        )
    kind = method_class(options.method)
    given = {key: value for key, value in asdict(options).items() if value is not None}
    if options.augmentation == "auto":
        del given["augmentation"]
    if options.schedule == "auto" and not hasattr(kind, "rate_factor"):
        given["schedule"] = "constant"
    values = {**kind.recipe, **given}
    size = values.setdefault("image_size", default_image_size(clip.config))
    check_image_size(size, clip.config.vision.patch_size)
    values.setdefault("map_size", size)
    augmented = AUGMENTATIONS[values["augmentation"]].active
    named = {"auto": 0 if augmented or hasattr(kind, "encode") else 1, "on": 1, "off": 0}
    copies = named[options.cache] if isinstance(options.cache, str) else options.cache
    return Recipe(**values, copies=copies if augmented else min(copies, 1))


def autocast_type(precision: str) -> torch.dtype | None:
    """Number format of autocast; None for exact fp32, which "auto" is in training."""
    return None if precision in ("auto", "fp32") else PRECISIONS[precision]
