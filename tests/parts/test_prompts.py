from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.parts.prompts import TextCache, fill, template, tokenizer_of

CONFIG = CLIPConfig(
    embed_dim=8,
    vision=VisionConfig(width=8, layers=1, heads=1, patch_size=8, image_size=8, mlp_width=8),
    text=TextConfig(width=6, layers=1, heads=1, mlp_width=8, context_length=16),
)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(CONFIG).reset_parameters().freeze()


def test_template_has_room_for_vectors(clip: CLIP) -> None:
    prompt = template(clip, "a photo of a good", 3, "bottle.")
    words = Tokenizer.clip()
    head = [words.sot, *words.encode("a photo of a good")]
    assert prompt.ids == (*head, 0, 0, 0, *words.encode("bottle."), words.eot)
    assert (prompt.start, prompt.count, prompt.eot) == (6, 3, len(prompt.ids) - 1)


def test_long_text_is_cut_before_the_end(clip: CLIP) -> None:
    prompt = template(clip, "", 4, "one two three four five six seven eight nine ten eleven twelve")
    assert len(prompt.ids) == 16 and prompt.ids[-1] == Tokenizer.clip().eot and prompt.eot == 15
    with pytest.raises(ValueError, match="longer than the context of 16"):
        template(clip, "", 15, "")


def test_fill_puts_vectors_between_words(clip: CLIP) -> None:
    prompt = template(clip, "good", 2, "object")
    vectors = torch.randn(3, 2, 6, requires_grad=True)
    rows = fill(clip, prompt, vectors, 9)
    assert rows.shape == (3, 9, 6)
    assert torch.equal(rows[:, 2:4], vectors)
    words = clip.embed(torch.tensor([*prompt.ids, 0, 0, 0]))
    for i in (0, 1, 4, 5, 6, 7, 8):
        assert torch.equal(rows[1, i], words[i])
    rows.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))


def test_own_tokenizer_must_be_attached() -> None:
    other = CLIP(replace(CONFIG, text=replace(CONFIG.text, tokenizer="own")))
    with pytest.raises(ValueError, match="none is attached"):
        tokenizer_of(other)
    other.tokenizer = Tokenizer.clip()
    assert tokenizer_of(other) is other.tokenizer


def test_cache_keeps_until_a_parameter_changes() -> None:
    owner, cache, calls = torch.nn.Linear(2, 2).eval(), TextCache(), []

    def value() -> torch.Tensor:
        return cache.get(owner, "key", lambda: calls.append(1) or owner.weight.detach().clone())

    with torch.no_grad():
        assert value() is value() and len(calls) == 1
        cache.get(owner, "another", lambda: torch.zeros(1))
        assert value() is value() and len(calls) == 1
        owner.weight.add_(1)
        assert torch.equal(value(), owner.weight) and len(calls) == 2
        owner.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
        assert torch.equal(value(), torch.ones(2, 2)) and len(calls) == 3
        owner.weight = torch.nn.Parameter(torch.zeros(2, 2))
        assert torch.equal(value(), torch.zeros(2, 2)) and len(calls) == 4
        owner.double()
        assert value().dtype == torch.double and len(calls) == 5
        cache.clear()
        value()
        assert len(calls) == 6
    value()
    assert len(calls) == 7, "not kept with gradients"
    owner.train()
    with torch.no_grad():
        value(), value()
    assert len(calls) == 9, "not kept in training"


def test_cache_works_under_inference_mode() -> None:
    with torch.inference_mode():
        owner, cache, calls = torch.nn.Linear(2, 2).eval(), TextCache(), []
        for _ in range(2):
            cache.get(owner, "key", lambda: calls.append(1) or torch.zeros(1))
        assert len(calls) == 1
