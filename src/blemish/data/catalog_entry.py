"""What the catalogue says of a dataset, and how names are compared with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Counts = tuple[int, int]


@dataclass(frozen=True)
class CatalogEntry:
    """One dataset of the papers.

    name: ours. title: the authors'. classes: in the order of the papers' tables. total: (normal, anomalous) test
    images the papers count. per_class: the same by class, where known. train: normal images for training.
    mask_rule: which stored mask values are anomalous (`Sample.mask_rule`). masks: False when only whole images are
    labelled. licence, source: of the data; the official page. prompts: class -> words for a prompt, where the
    class name is not fit for one. folders: names under which the data lie on disks. class_aliases: other names of
    a one-class set's class. odd: what to know about it. medical: not for diagnosis.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    total: Counts
    licence: str
    source: str
    per_class: Mapping[str, Counts] = field(default_factory=dict)
    train: int | None = None
    mask_rule: str = ">0"
    masks: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, Counts] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    class_aliases: tuple[str, ...] = ()
    odd: str = ""
    medical: bool = False

    def prompt_name(self, class_name: str) -> str:
        """Words for a class in a prompt: those of `prompts`, else the name with spaces for underscores."""
        return self.prompts.get(class_name, class_name.replace("_", " "))

    def expected(self, class_name: str) -> Counts | None:
        """(normal, anomalous) test images of a class; None when only the total is known."""
        if class_name in self.per_class:
            return self.per_class[class_name]
        one = len(self.classes) == 1 and class_name in (*self.classes, *self.class_aliases)
        return self.total if one else None

    def knows_folder(self, name: str) -> bool:
        """Whether data of this set usually lie in a folder of this name."""
        return plain(name) in {plain(known) for known in (self.name, self.title, *self.folders)}

    def knows_classes(self, names: Iterable[str]) -> bool:
        """Whether all of these class names belong to this set; False for none."""
        known = {plain(n) for n in (*self.classes, *self.class_aliases)}
        given = {plain(n) for n in names}
        return bool(given) and given <= known


def plain(name: str) -> str:
    """A name for comparing: letters and digits only, lower case."""
    return re.sub(r"[^0-9a-z]", "", name.casefold())
