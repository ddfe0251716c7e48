from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP, DeepPrompts
from blemish.clip.tokenizer import Tokenizer
from blemish.parts.deep_text import PromptNorm, deep_text_features
from blemish.parts.prompts import fill, template

VISION = VisionConfig(width=16, layers=1, heads=2, patch_size=8, image_size=16, mlp_width=16)
TEXT = TextConfig(width=16, layers=3, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    made = CLIP(CLIPConfig(embed_dim=12, vision=VISION, text=TEXT)).reset_parameters().freeze()
    made.tokenizer = Tokenizer.clip()
    return made


@torch.no_grad()
def test_every_template_with_every_row(clip: CLIP) -> None:
    """Templates of different length, against one sequence at a time, not cropped."""
    torch.manual_seed(1)
    templates = [template(clip, words, 2, "") for words in ("a good", "a photo of a damaged")]
    vectors, deep, norm = torch.randn(3, 2, 16), torch.randn(3, 1, 16), PromptNorm(16, eps=1e-6)
    norm.weight.copy_(torch.rand(16))
    got = deep_text_features(clip, templates, vectors, deep, norm)
    assert got.shape == (3, 2, 12)
    for i, row in enumerate(vectors):
        for k, prompt in enumerate(templates):
            alone = clip.encode_embeddings(
                fill(clip, prompt, row[None], 76),
                prompt.eot,
                deep=DeepPrompts(list(deep), insert=True),
                final_norm=norm,
                crop=False,
            )
            torch.testing.assert_close(got[i, k], F.normalize(alone[0], dim=-1), atol=1e-5, rtol=0)


def test_dropout_is_drawn_for_every_sequence(clip: CLIP) -> None:
    prompt = template(clip, "a photo of", 1, "")
    vectors, deep = torch.randn(1, 1, 16).expand(2, -1, -1), torch.randn(3, 1, 16)
    found = deep_text_features(clip, [prompt, prompt], vectors, deep, PromptNorm(16), dropout=0.5)
    rows = found.flatten(0, 1)
    assert all(not torch.allclose(rows[i], rows[j]) for i in range(4) for j in range(i))


def test_norm_computes_in_its_own_precision() -> None:
    norm, x = PromptNorm(16), torch.randn(2, 16)
    assert norm(x.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(norm(x), F.layer_norm(x, (16,)))
