"""Sentences that describe a class as normal or abnormal, and the text features they average to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .class_names import in_prompts
from .prompts import tokenizer_of

if TYPE_CHECKING:
    from ..clip.model import CLIP

ARTICLES = ("a", "the")
CHUNK, KEPT = 128, 1000


@dataclass(frozen=True)
class PromptBank:
    """Every state in every template, for the normal and for the abnormal prompt.

    normal, abnormal: states with {} for the class. templates: sentences with {} for the state.
    normalise_each: every sentence's feature is made a unit vector before the mean is taken, or not.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]
    normalise_each: bool = True

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """(normal, abnormal) sentences; state by state, each in all templates."""
        both = [
            [t.format(s.format(class_name)) for s in states for t in self.templates]
            for states in (self.normal, self.abnormal)
        ]
        return both[0], both[1]

    def text_features(self, clip: CLIP, class_name: str, activation: str = "native") -> Tensor:
        """Unit prototypes (2, D) of a class, normal first: the mean over the sentences, made a unit vector."""
        return torch.stack([self._mean(clip, s, activation) for s in self.sentences(class_name)])

    def _mean(self, clip: CLIP, sentences: Sequence[str], activation: str) -> Tensor:
        found = encode_sentences(clip, sentences, activation)
        if self.normalise_each:
            found = F.normalize(found, dim=-1)
        return F.normalize(found.mean(dim=0), dim=-1)


class BankTexts:
    """Text features of a prompt bank by class, each computed once: nothing that is learned goes into them.

    The latest KEPT classes are kept, so that a service told ever new names stays bounded.
    """

    def __init__(self, clip: CLIP, bank: PromptBank, activation: str = "native") -> None:
        self.clip, self.bank, self.activation = clip, bank, activation
        self._known: dict[tuple[object, ...], Tensor] = {}

    def of(self, class_name: str) -> Tensor:
        """Unit prototypes (2, D) of a class, normal first, float32."""
        key = (class_name, self.clip.device, self.clip.dtype)
        if key not in self._known:
            # Tensors made in inference mode could not be used in training later.
            with torch.inference_mode(False), torch.no_grad():
                self._known[key] = self.bank.text_features(self.clip, class_name, self.activation)
            if len(self._known) > KEPT:
                del self._known[next(iter(self._known))]
        return self._known[key]

    def per_image(self, class_names: Sequence[str] | None, count: int) -> Tensor:
        """Prototypes of `count` images: (1, 2, D) when all show the same, else (count, 2, D).

        class_names: one per image, underscores count as spaces; None: "object". Raises ValueError for another
        number of names.
        """
        names = in_prompts(class_names, count)
        if len(set(names)) == 1:
            return self.of(names[0])[None]
        return torch.stack([self.of(name) for name in names])


def encode_sentences(clip: CLIP, sentences: Sequence[str], activation: str = "native") -> Tensor:
    """Text features (S, D) of sentences, float32, not normalised; long ones are cut at the context's end."""
    ids = tokenizer_of(clip)(sentences, clip.config.text.context_length, truncate=True)
    parts = ids.to(clip.device).split(CHUNK)
    return torch.cat([clip.encode_text(part, activation) for part in parts]).float()


def _pairs(*forms: str) -> tuple[str, ...]:
    """Each form with both articles in the place of `@`."""
    return tuple(form.replace("@", article) for form in forms for article in ARTICLES)


WITHOUT = ("{} without flaw", "{} without defect", "{} without damage")
WITH = ("{} with flaw", "{} with defect", "{} with damage")
WINCLIP_NORMAL = ("{}", "flawless {}", "perfect {}", "unblemished {}", *WITHOUT)
WINCLIP_ABNORMAL = ("damaged {}", *WITH)
APRIL_ABNORMAL = ("damaged {}", "broken {}", *WITH)
ANOVL_NORMAL = ("normal {}", "flawless {}", "perfect {}", "unblemished {}", *WITHOUT)
ANOVL_ABNORMAL = ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}", *WITH)

WINCLIP_TEMPLATES = _pairs(
    "a cropped photo of @ {}",
    "a close-up photo of @ {}",
    "a bright photo of @ {}",
    "a dark photo of @ {}",
    "a jpeg corrupted photo of @ {}",
    "a blurry photo of @ {}",
    "a photo of @ {}",
    "a photo of @ small {}",
    "a photo of @ large {}",
    "a photo of @ {} for visual inspection",
    "a photo of @ {} for anomaly detection",
)
# The re-implementations: full stops, no "a cropped photo of a"; "a jpeg corrupted photo of the" stands twice
# there, once in place of "a jpeg corrupted photo of a".
WINCLIP_LEGACY21 = tuple(
    f"{t.replace('jpeg corrupted photo of a ', 'jpeg corrupted photo of the ')}."
    for t in WINCLIP_TEMPLATES
    if t != "a cropped photo of a {}"
)
APRIL_TEMPLATES = (
    *_pairs(
        "a bad photo of @ {}.",
        "a low resolution photo of @ {}.",
        "a cropped photo of @ {}.",
        "a bright photo of @ {}.",
        "a dark photo of @ {}.",
        "a close-up photo of @ {}.",
        "a black and white photo of @ {}.",
        "a jpeg corrupted photo of @ {}.",
        "a blurry photo of @ {}.",
        "a photo of @ {}.",
        "a good photo of @ {}.",
        "a photo of @ cool {}.",
        "a photo of @ large {}.",
        "a photo of @ small {}.",
    ),
    "a photo of my {}.",
    "a photo of one {}.",
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
ADACLIP_TEMPLATES = (
    "a bad photo of a {}.",
    "a low resolution photo of the {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
)

# The ensemble of CLIP's authors for ImageNet, 80 templates, and the seven that they name the best of them.
OPENAI_TEMPLATES = (
    *_pairs(
        "a bad photo of @ {}.",
        "a good photo of @ {}.",
        "a photo of @ {}.",
        "a photo of @ hard to see {}.",
        "a photo of @ clean {}.",
        "a photo of @ dirty {}.",
        "a photo of @ cool {}.",
        "a photo of @ nice {}.",
        "a photo of @ weird {}.",
        "a photo of @ large {}.",
        "a photo of @ small {}.",
        "a low resolution photo of @ {}.",
        "a pixelated photo of @ {}.",
        "a jpeg corrupted photo of @ {}.",
        "a blurry photo of @ {}.",
        "a cropped photo of @ {}.",
        "a close-up photo of @ {}.",
        "a bright photo of @ {}.",
        "a dark photo of @ {}.",
        "a black and white photo of @ {}.",
        "a painting of @ {}.",
        "a drawing of @ {}.",
        "a sketch of @ {}.",
        "a doodle of @ {}.",
        "a rendering of @ {}.",
        "a rendition of @ {}.",
        "a sculpture of @ {}.",
        "a tattoo of @ {}.",
        "graffiti of @ {}.",
        "art of @ {}.",
        "itap of @ {}.",
        "@ embroidered {}.",
        "@ plastic {}.",
        "@ origami {}.",
        "@ toy {}.",
        "@ cartoon {}.",
        "@ plushie {}.",
        "@ {} in a video game.",
    ),
    "a photo of many {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "itap of my {}.",
)
OPENAI_BEST = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def _in_domains(*domains: str) -> tuple[str, ...]:
    """WinCLIP's templates with each of these nouns in the place of "photo", articles as they are."""
    return tuple(t.replace("photo", domain) for domain in domains for t in WINCLIP_TEMPLATES)


TEXTURES = ("carpet", "leather", "grid", "tile", "wood")  # the classes that get "anovl_texture"
ANOVL_OBJECT = _in_domains("industrial photo", "industrial image", "manufacturing image")
ANOVL_TEXTURE = _in_domains("industrial photo", "textural photo", "surface picture")

# name -> bank; the numbers of sentences are those of the papers' codes.
BANKS = {
    "winclip": PromptBank(WINCLIP_NORMAL, WINCLIP_ABNORMAL, WINCLIP_TEMPLATES, normalise_each=False),
    "winclip_legacy21": PromptBank(WINCLIP_NORMAL, WINCLIP_ABNORMAL, WINCLIP_LEGACY21, normalise_each=False),
    "april35": PromptBank(WINCLIP_NORMAL, APRIL_ABNORMAL, APRIL_TEMPLATES),
    "ada4": PromptBank(WINCLIP_NORMAL, APRIL_ABNORMAL, ADACLIP_TEMPLATES),
    "aaclip": PromptBank(
        ("{}", "a {}", "the {}"),
        ("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage"),
        ("{}.", "a photo of {}."),
    ),
    "anovl": PromptBank(ANOVL_NORMAL, ANOVL_ABNORMAL, ANOVL_OBJECT),
    "anovl_texture": PromptBank(ANOVL_NORMAL, ANOVL_ABNORMAL, ANOVL_TEXTURE),
    "openai80": PromptBank(("normal {}",), ("anomalous {}",), OPENAI_TEMPLATES),
    "openai7": PromptBank(("normal {}",), ("anomalous {}",), OPENAI_BEST),
}
