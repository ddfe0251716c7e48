"""CLIP without any training as anomaly detector: one prompt a state (`clip`), or an ensemble (`clip_ac`).

The image and its patches are compared with a text on the normal and one on the anomalous class, as AnomalyCLIP
(Zhou et al., ICLR 2024) sets these baselines up. The last layer's patches are not made for this: on MVTec AD
they are worse than chance, also in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.maps import softmax_then_upsample
from ..parts.prompt_bank import APRIL_TEMPLATES, BANKS, OPENAI_BEST, OPENAI_TEMPLATES, BankTexts, PromptBank
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction
from . import check_options, option

ENSEMBLES = {"openai80": OPENAI_TEMPLATES, "openai7": OPENAI_BEST, "april35": APRIL_TEMPLATES}


def _state_words() -> Any:
    return option(("normal", "anomalous"), "words before the class name, normal first")


def _noun() -> Any:
    return option("", "word in place of every class name, such as object; empty: the class's own name")


def _temperature() -> Any:
    return option(0.01, "divides the cosines; 0.01 is CLIP's own; scores rank alike with any")


def _position_resize() -> Any:
    return option("bilinear", "resizing of the position table", POSITION_RESIZES)


@dataclass(frozen=True)
class ClipConfig:
    """Options of `clip`."""

    template: str = option("a photo of a {}.", "the prompt, {} for state and class; a before {} becomes an")
    state_words: tuple[str, ...] = _state_words()
    noun: str = _noun()
    temperature: float = _temperature()
    position_resize: str = _position_resize()

    def __post_init__(self) -> None:
        _check(self)
        if self.template.count("{}") != 1 or set("{}") & set(self.template.replace("{}", "")):
            raise BadOption(f"option template is {self.template!r}; expected a sentence with one {{}} in it")


@dataclass(frozen=True)
class ClipACConfig:
    """Options of `clip_ac`."""

    templates: str = option(
        "openai80",
        "CLIP's 80 templates for ImageNet, the seven that its authors prefer, or APRIL-GAN's 35",
        tuple(ENSEMBLES),
    )
    state_words: tuple[str, ...] = _state_words()
    noun: str = _noun()
    temperature: float = _temperature()
    position_resize: str = _position_resize()

    def __post_init__(self) -> None:
        _check(self)


def _check(config: ClipConfig | ClipACConfig) -> None:
    check_options(config)
    words = config.state_words
    if len(words) != 2 or not all(word.strip() for word in words) or set("{}") & set("".join(words)):
        raise BadOption(f"option state_words is {words!r}; expected two words, normal first")
    if set("{}") & set(config.noun):
        raise BadOption(f"option noun is {config.noun!r}; expected a word without braces")
    if not config.temperature > 0:
        raise BadOption(f"option temperature is {config.temperature}; expected a number above 0")


def single_prompt(template: str, state_words: Sequence[str]) -> PromptBank:
    """The bank of one sentence a state: single_prompt("a photo of a {}.", ("normal", "anomalous")).

    An article "a" right before the state becomes "an" where the state begins with a vowel.
    """
    states = [f"{word} {{}}" for word in state_words]
    if template.startswith("a {}") or " a {}" in template:
        template = template.replace("a {}", "{}")
        states = [f"{'an' if state[0].lower() in 'aeiou' else 'a'} {state}" for state in states]
    return PromptBank((states[0],), (states[1],), (template,))


class CLIPZero(nn.Module):
    """`clip`: one prompt a state. Nothing is learned."""

    about: ClassVar[str] = "CLIP as it is, one prompt on the normal and one on the anomalous class"
    config_class: ClassVar[type] = ClipConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"template": "A photo of a {}"}}
    uses_class_names: bool = True  # not where one noun stands for every class
    map_range = score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: ClipConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClipConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is moved or saved here
        self.uses_class_names = not config.noun
        self.needs = FeatureSpec(position_resize=config.position_resize)
        self.texts = BankTexts(clip, single_prompt(config.template, config.state_words))

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1]; see `compare` for details. class_names: one per image."""
        names = named(self.config.noun, class_names, features.count)
        return compare(features, self.texts.per_image(names, features.count), self.config.temperature)


class CLIPAC(nn.Module):
    """`clip_ac`: the mean over an ensemble of templates. Nothing is learned.

    The paper says neither which of CLIP's two ensembles it takes nor which state words; templates are filled in
    as they are, so that "a anomalous" occurs.
    """

    about: ClassVar[str] = "CLIP as it is, with texts that average over an ensemble of templates"
    config_class: ClassVar[type] = ClipACConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "openai7": {"templates": "openai7"},
        "april35": {"templates": "april35"},
    }
    uses_class_names: bool = True  # not where one noun stands for every class
    map_range = score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: ClipACConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClipACConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is moved or saved here
        self.uses_class_names = not config.noun
        self.needs = FeatureSpec(position_resize=config.position_resize)
        normal, abnormal = (f"{word} {{}}" for word in config.state_words)
        bank = replace(
            BANKS["openai80"],
            normal=(normal,),
            abnormal=(abnormal,),
            templates=ENSEMBLES[config.templates],
        )
        self.texts = BankTexts(clip, bank)

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1]; see `compare` for details. class_names: one per image."""
        names = named(self.config.noun, class_names, features.count)
        return compare(features, self.texts.per_image(names, features.count), self.config.temperature)


def named(noun: str, class_names: Sequence[str] | None, count: int) -> Sequence[str] | None:
    """Class names for `count` images: `noun` for each where there is one, else those given."""
    if noun and torch.compiler.is_exporting():  # a graph for any number of images has one name for all
        return [noun]
    return [noun] * count if noun else class_names


def compare(features: ImageFeatures, text: Tensor, temperature: float) -> Prediction:
    """The image and its patches against the texts: abnormal probabilities, patches enlarged bilinearly.

    text: unit rows (1 or B, 2, D), normal first. details: "text_features", the texts; "patch_logits" (B, N, 2).
    """
    image = cosine_logits(features.class_feature[:, None], text)[:, 0] / temperature
    patches = cosine_logits(features.tokens["qk"][-1][:, 1:], text) / temperature
    return Prediction(
        map=softmax_then_upsample(patches, features.grid, features.image_size)[:, 1],
        score=image.softmax(dim=-1)[:, 1],
        details={"text_features": text, "patch_logits": patches},
    )
