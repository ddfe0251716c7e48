"""Class names in prompts: how they are written, and whether they fit an image."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.model import CLIP
from .prompts import tokenizer_of

# What every method falls back to when nothing says what its images show.
GENERIC = "object"


def spaced(name: str) -> str:
    """A class name as it stands in prompts: "Pipe_fryum" -> "pipe fryum"."""
    return " ".join(re.sub(r"[_-]", " ", name).split()).lower()


def cleaned(name: str) -> str:
    """A class name without digits: "macaroni2" -> "macaroni", "01" -> ""."""
    return spaced(re.sub(r"[0-9]+", "", name))


def in_prompts(class_names: Sequence[str] | None, count: int) -> list[str]:
    """The word for each of `count` images: names with spaces for underscores, GENERIC without names.

    Raises ValueError unless there is one name per image.
    """
    if torch.compiler.is_exporting():  # a graph for any number of images has one name for all
        class_names, count = list(class_names or [GENERIC])[:1], 1
    if class_names is None:
        return [GENERIC] * count
    if len(class_names) != count:
        raise ValueError(f"{len(class_names)} class names for {count} images; expected one each")
    return [" ".join(name.replace("_", " ").split()) or GENERIC for name in class_names]


class ClassNameFilter:
    """GenCLIP's class name filtering (CNF): a name stays when the frozen CLIP sees it in the image.

    An image keeps its cleaned name unless "A photo of an object" is closer to its class feature than "A photo
    of a <name>". generic: the word in place of "object", and of names that are dropped or empty.
    """

    def __init__(self, clip: CLIP, generic: str) -> None:
        self.clip, self.generic = clip, generic
        self._texts: dict[tuple[object, ...], Tensor] = {}
        self._votes: dict[str, Counter[bool]] = {}

    def per_image(self, class_feature: Tensor, names: Sequence[str]) -> list[str]:
        """The term of each image. class_feature: (B, D), at CLIP's own or any other input size."""
        terms = self.terms(names)
        fits = self.fits(class_feature, terms)
        return [term if fit else self.generic for term, fit in zip(terms, fits, strict=True)]

    def per_class(self, class_feature: Tensor, names: Sequence[str]) -> list[str]:
        """The term of each image, the same for all images of a name: most of those that voted decide.

        Names without votes are decided by these images alone. Classes whose names differ in digits alone
        vote apart.
        """
        terms = self.terms(names)
        here: dict[str, Counter[bool]] = {}
        if not all(name in self._votes for name in names):
            _count(here, names, self.fits(class_feature, terms))
        votes = here | self._votes
        kept = {name: count[True] >= count[False] for name, count in votes.items()}
        return [term if kept[name] else self.generic for name, term in zip(names, terms, strict=True)]

    def vote(self, class_feature: Tensor, names: Sequence[str]) -> None:
        """Let images of a test set vote on their names before `per_class` is asked."""
        _count(self._votes, names, self.fits(class_feature, self.terms(names)))

    def clear(self) -> None:
        """Forget all votes."""
        self._votes.clear()

    def terms(self, names: Sequence[str]) -> list[str]:
        """Cleaned names, the generic word where nothing is left."""
        return [cleaned(name) or self.generic for name in names]

    @torch.no_grad()
    def fits(self, class_feature: Tensor, terms: Sequence[str]) -> list[bool]:
        """Whether each image (B, D) is at least as close to its term as to the generic word."""
        image = F.normalize(class_feature.float(), dim=-1)
        article = "an" if self.generic[0].lower() in "aeiou" else "a"
        other = image @ self._text(f"A photo of {article} {self.generic}")
        own = torch.stack([self._text(f"A photo of a {term}") for term in terms])
        close = (image * own).sum(dim=-1) >= other
        return [term == self.generic or fit for term, fit in zip(terms, close.tolist(), strict=True)]

    def _text(self, text: str) -> Tensor:
        """Unit text feature (D,) of the frozen CLIP; kept."""
        clip = self.clip
        key = (text, clip.device, clip.dtype)
        if key not in self._texts:
            tokenizer = tokenizer_of(clip)
            ids = tokenizer.encode(text)[: clip.config.text.context_length - 2]
            row = torch.tensor([[tokenizer.sot, *ids, tokenizer.eot]], device=clip.device)
            feature = clip.encode_embeddings(clip.embed(row), row.shape[1] - 1)
            self._texts[key] = F.normalize(feature[0].float(), dim=-1)
        return self._texts[key]


def _count(votes: dict[str, Counter[bool]], names: Sequence[str], fits: Sequence[bool]) -> None:
    for name, fit in zip(names, fits, strict=True):
        votes.setdefault(name, Counter())[fit] += 1
