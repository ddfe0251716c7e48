"""Prompts with places for learned vectors, and text features kept between images."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..clip.model import CLIP

if TYPE_CHECKING:
    from ..clip.tokenizer import Tokenizer


def tokenizer_of(clip: CLIP) -> Tokenizer:
    """The backbone's tokenizer; CLIP's own when none was attached and the text tower was trained with it."""
    if clip.tokenizer is not None:
        return clip.tokenizer
    if clip.config.text.tokenizer != "clip":
        raise ValueError("this backbone has its own tokenizer, and none is attached as clip.tokenizer")
    from ..clip.tokenizer import Tokenizer

    return Tokenizer.clip()


@dataclass(frozen=True)
class Template:
    """A tokenised prompt with one place for vectors.

    ids: start-of-text ... end-of-text, without padding; 0 at the places of the vectors.
    start, count: where the vectors go.
    """

    ids: tuple[int, ...]
    start: int
    count: int

    @property
    def eot(self) -> int:
        """Index of the end-of-text token."""
        return len(self.ids) - 1


def template(clip: CLIP, before: str, count: int, after: str) -> Template:
    """The prompt "<before> <count vectors> <after>" in the backbone's tokens.

    `after` is cut when the whole would be longer than the context. Raises ValueError when not even `before`
    and the vectors fit.
    """
    tokenizer, context = tokenizer_of(clip), clip.config.text.context_length
    head = [tokenizer.sot, *tokenizer.encode(before)]
    room = context - len(head) - count - 1
    if room < 0:
        raise ValueError(
            f"a prompt of {context - room} tokens and vectors is longer than the context of {context}"
        )
    ids = (*head, *[0] * count, *tokenizer.encode(after)[:room], tokenizer.eot)
    return Template(ids, len(head), count)


def fill(clip: CLIP, prompt: Template, vectors: Tensor, length: int) -> Tensor:
    """Word embeddings of a prompt with its vectors in place, padded with token 0.

    vectors: (B, count, W). Returns (B, length, W) in the vectors' type, without positions.
    """
    padded = [*prompt.ids, *[0] * (length - len(prompt.ids))]
    words = clip.embed(torch.tensor(padded, device=vectors.device)).to(vectors.dtype)
    words = words.expand(vectors.shape[0], -1, -1)
    end = prompt.start + prompt.count
    return torch.cat([words[:, : prompt.start], vectors, words[:, end:]], dim=1)


class TextCache:
    """Text features that do not depend on the image, kept while the learned parts stay as they are.

    Used in evaluation without gradients only; a change of any parameter (by an optimiser, by loading, by
    moving to another device) makes the kept value void, and so does `clear`.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[list[tuple[Tensor, int]], Any]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def get(self, owner: nn.Module, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The kept value for `key`, or `compute()`. owner: the module whose parameters it depends on."""
        if torch.compiler.is_exporting() and key in self._kept:  # becomes a constant of the graph
            constant: Tensor = self._kept[key][1]
            return constant
        if owner.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        state = [(p.detach(), _version(p)) for p in owner.parameters()]
        if key in self._kept:
            before, value = self._kept[key]
            if len(before) == len(state) and all(
                a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and v == w
                for (a, v), (b, w) in zip(before, state, strict=True)
            ):
                kept: Tensor = value
                return kept
        value = compute()
        # The kept tensors hold their memory, so an address cannot come to mean another parameter.
        self._kept[key] = (state, value)
        return value


def _version(parameter: Tensor) -> int:
    """Counts in-place changes; tensors made under inference mode have no such counter."""
    return -1 if parameter.is_inference() else parameter._version
