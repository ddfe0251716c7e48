"""Before training starts: open the auxiliary data, look at every file, say what is off, keep what can be used."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.config import read_class_names
from blemish.data.check import check_dataset
from blemish.data.layouts import Dataset, open_dataset
from blemish.data.samples import spread
from blemish.errors import BadDataset, BadOption, UnknownName
from blemish.types import Sample

if TYPE_CHECKING:
    from blemish.run.recipe import TrainOptions

# A sample with one of these cannot be trained on.
USELESS = ("unreadable", "missing", "mask_size", "empty_mask", "empty_after_resize", "escaping_path")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gathered:
    """What training will use.

    name: one line for the checkpoint. samples: to learn from; held_out: of the classes kept for validation.
    warnings: what was odd, and what became of it. digest: identifies the list of samples.
    """

    name: str
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash over the samples' files (by the last two folders and name), classes and labels."""
        rows = [["/".join(s.image.parts[-3:]), s.class_name, s.label, s.box] for s in self.samples]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def gather(options: TrainOptions, without_masks: bool) -> Gathered:
    """The samples of `options.data`, checked; `options.image_size` must be known.

    without_masks: the method can learn from images that nobody has outlined. Raises BadDataset when there is
    nothing to learn from, or with `options.strict` when anything is odd; UnknownName for an unknown class.
    """
    if not options.data:
        raise BadOption("no data to learn from; name a dataset's folder with --data")
    if options.dataset and len(options.dataset) != len(options.data):
        raise BadOption(
            f"{len(options.data)} folders of data and {len(options.dataset)} dataset names; give one for each"
        )
    names = options.dataset or (None,) * len(options.data)
    opened = [
        open_dataset(Path(root).expanduser(), name, options.split)
        for root, name in zip(options.data, names, strict=True)
    ]
    warnings: list[str] = []
    words = _class_words(opened, options)
    samples = list(spread([s for d in opened for s in _usable(d, options, warnings)], options.limit))
    held = _held_out(samples, options.validate_classes)
    kept = [s for s in samples if s not in held]
    held, kept = ([replace(s, class_name=words[s.class_name]) for s in part] for part in (held, kept))
    kept = _learnable(kept, options, without_masks, warnings)
    if options.strict and warnings:
        raise BadDataset(f"refused because of --strict: {'; '.join(warnings)}")
    for text in warnings:
        log.warning("%s", text)
    return Gathered(_describe(opened, kept), tuple(kept), tuple(held), tuple(warnings))


def _class_words(opened: Sequence[Dataset], options: TrainOptions) -> dict[str, str]:
    """class -> what methods are told, as in evaluation. Raises BadOption, UnknownName for the file of words."""
    given = {} if options.class_names is None else read_class_names(Path(options.class_names))
    known = {name: dataset for dataset in opened for name in dataset.classes}
    if given and not known.keys() & given.keys():
        raise UnknownName(f"class of {options.class_names}", next(iter(given)), known)
    return {n: given.get(n) or options.class_name or d.prompt_name(n) for n, d in known.items()}


def _usable(dataset: Dataset, options: TrainOptions, warnings: list[str]) -> list[Sample]:
    """Samples whose files can be used; the others are named and counted."""
    if dataset.samples and all(s.label is None for s in dataset.samples):
        raise BadDataset(
            f"{dataset.root}: nothing says which of its {len(dataset.samples)} images are anomalous; training "
            f"needs labelled folders such as test/good and test/crack with masks in ground_truth/crack"
        )
    report = check_dataset(dataset, options.image_size)
    useless = [p for p in report.problems if p.kind in USELESS]
    counts = Counter(p.kind for p in useless)
    for kind, count in counts.items():
        first = next(p for p in useless if p.kind == kind)
        warnings.append(f"{count} skipped: {kind.replace('_', ' ')}, such as {first.path} ({first.text})")
    bad = {Path(p.path) for p in useless if p.path is not None}
    return [
        s
        for s in dataset.samples
        if s.label is not None and s.image not in bad and (s.mask is None or s.mask not in bad)
    ]


def _held_out(samples: Sequence[Sample], classes: Sequence[str]) -> list[Sample]:
    known = {s.class_name for s in samples}
    for name in classes:
        if name not in known:
            raise UnknownName("class to hold out", name, known)
    if classes and known <= set(classes):
        raise BadOption("every class is held out for validation; leave at least one to learn from")
    return [s for s in samples if s.class_name in classes]


def _learnable(
    samples: list[Sample], options: TrainOptions, without_masks: bool, warnings: list[str]
) -> list[Sample]:
    """Samples that the method can learn from. Raises BadDataset when there is nothing to be learned."""
    where = ", ".join(options.data)
    if not samples:
        raise BadDataset(
            f"{where}: no usable images in split {options.split!r}; training takes the test split, which has "
            f"normal and anomalous images (`blemish info` shows what is there)"
        )
    normal = sum(s.label == 0 for s in samples)
    if normal == len(samples):
        raise BadDataset(
            f"{where}: all {normal} images are normal, so there is nothing to tell apart; training needs "
            f"anomalous images with masks (`blemish calibrate` sets thresholds from normal images)"
        )
    bare = [s for s in samples if s.label == 1 and s.mask is None]
    if bare and not without_masks:
        if len(bare) == len(samples) - normal:
            raise BadDataset(
                f"{where}: none of the {len(bare)} anomalous images has a mask and {options.method} learns from "
                f"masks only; add masks, or train a method with an image-level loss, such as anomaly_clip"
            )
        warnings.append(f"{len(bare)} skipped: anomalous without a mask, such as {bare[0].image}")
        samples = [s for s in samples if s not in set(bare)]
    elif bare:
        warnings.append(
            f"{len(bare)} without a mask train the image-level loss only, such as {bare[0].image}"
        )
    if not normal:
        warnings.append(f"all {len(samples)} images are anomalous; no image threshold can be set from them")
    return samples


def _describe(opened: Sequence[Dataset], samples: Sequence[Sample]) -> str:
    normal = sum(s.label == 0 for s in samples)
    names = "+".join(dict.fromkeys(dataset.name for dataset in opened))
    return f"{names}: {normal} normal, {len(samples) - normal} anomalous images"
