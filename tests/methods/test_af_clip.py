"""AF-CLIP against plain loops: neighbourhoods, adaptor, texts, losses, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import CONFIG, SIZE, encode, make, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import build, make_config
from blemish.methods.af_clip import over_neighbourhoods, patch_alignment
from blemish.parts.maps import gaussian_blur
from blemish.types import Target

GRID = (3, 5)


def plain_neighbourhoods(
    tokens: torch.Tensor, grid: tuple[int, int], side: int, sigma: float
) -> torch.Tensor:
    reach = range(-(side // 2), side // 2 + 1)
    whole = sum(math.exp(-(i * i + j * j) / (2 * sigma**2)) for i in reach for j in reach)
    out = tokens.clone()
    for row in range(grid[0]):
        for column in range(grid[1]):
            total = torch.zeros_like(tokens[:, 0])
            for i in reach:
                for j in reach:
                    if 0 <= row + i < grid[0] and 0 <= column + j < grid[1]:
                        weight = math.exp(-(i * i + j * j) / (2 * sigma**2)) / whole
                        total += weight * tokens[:, 1 + (row + i) * grid[1] + column + j]
            out[:, 1 + row * grid[1] + column] = total
    return out


@pytest.mark.parametrize(("side", "sigma"), [(3, 4.0), (5, 4.0), (5, 0.7), (9, 2.0)])
def test_neighbourhoods_are_gaussian_means(side: int, sigma: float) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 16, 6)
    got = over_neighbourhoods(tokens, GRID, side, sigma)
    torch.testing.assert_close(got, plain_neighbourhoods(tokens, GRID, side, sigma))
    assert torch.equal(got[:, 0], tokens[:, 0])


def test_a_neighbourhood_of_one_is_the_patch_itself(clip: CLIP) -> None:
    method = make(clip, ("af_clip", {}))
    features = encode(clip, method, 2)
    sets = method.token_sets(features)
    assert list(sets) == [f"{block}.{side}" for block in (1, 2, 3, 4) for side in (1, 3, 5)]
    for i, block in enumerate((1, 2, 3, 4)):
        assert torch.equal(sets[f"{block}.1"], features.tokens["qk"][i])
    flat = torch.ones(1, 26, 3)
    inner = over_neighbourhoods(flat, (5, 5), 5, 4.0)[0, 1:].reshape(5, 5, 3)
    torch.testing.assert_close(inner[2, 2], torch.ones(3))  # weights of a whole square sum to 1
    assert inner[0, 0, 0] < 0.5  # beyond the edge there are zeros


def plain_adaptor(method: Any, x: torch.Tensor) -> torch.Tensor:
    """(M, W) of one image, head by head."""
    parts = {name: p.detach() for name, p in method.adaptor.named_parameters()}
    x = F.layer_norm(x, x.shape[-1:], parts["norm.weight"], parts["norm.bias"])
    width, heads = method.config.head_width, []
    for h in range(method.config.heads):
        rows = slice(h * width, (h + 1) * width)
        q, k, v = (x @ parts[f"{name}.weight"][rows].T for name in ("query", "key", "value"))
        heads.append((q @ k.T / math.sqrt(width)).softmax(dim=-1) @ v)
    return torch.cat(heads, dim=-1) @ parts["out.weight"].T + parts["out.bias"]


def plain_text(clip: CLIP, words: torch.Tensor, sentence: str) -> torch.Tensor:
    """Unit feature of "<words> <start> sentence <end>", the whole context encoded."""
    ids = clip.tokenizer(sentence, 77)[0]  # type: ignore[misc]
    embeddings = torch.cat([words, clip.token_embedding(ids)])[:77]
    feature = clip.encode_embeddings(embeddings[None], len(words) + int(ids.argmax()), crop=False)
    return F.normalize(feature[0], dim=0)


@pytest.mark.parametrize(
    "options", [{}, {"n_ctx": 3, "heads": 2, "head_width": 5, "layers": (2, 1.0)}], ids=str
)
@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, options: dict[str, Any]) -> None:
    method = make(clip, ("af_clip", options))
    features = encode(clip, method, 2)
    got = method(features)
    texts = torch.stack([plain_text(clip, method.words, s) for s in ("without defect.", "with defect.")])
    torch.testing.assert_close(got.details["text_features"][0], texts)
    for i in range(2):
        logits = torch.zeros(16, 2)
        for tokens in features.tokens["qk"]:
            for side in (1, 3, 5):
                x = plain_neighbourhoods(tokens[i : i + 1], GRID, side, 4.0)[0]
                joint = clip.visual.ln_post(plain_adaptor(method, x)) @ clip.visual.proj
                logits += F.cosine_similarity(joint[:, None], texts[None], dim=-1) / 0.07
        probability = logits.softmax(dim=-1)[:, 1]
        torch.testing.assert_close(got.score[i], probability[0], atol=2e-5, rtol=0)
        raw = F.interpolate(probability[1:].view(1, 1, *GRID), size=SIZE, mode="bilinear")[0]
        torch.testing.assert_close(got.map[i], gaussian_blur(raw, 4.0)[0], atol=2e-5, rtol=0)


def test_size_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("af_clip", large)
    assert sum(p.numel() for p in method.parameters()) == 2_109_440
    assert method.adaptor.query.weight.shape == (512, 1024) and method.words.shape == (12, 768)
    assert method.blocks == (6, 12, 18, 24)
    assert method.needs.position_resize == "bilinear" and method.needs.activation == "native"


def test_vectors_stand_before_the_start_token(clip: CLIP) -> None:
    method = make(clip, ("af_clip", {}))
    tokenizer = clip.tokenizer
    assert tokenizer is not None
    for prompt, words in zip(method.templates, ("without defect.", "with defect."), strict=True):
        assert prompt.ids[12:] == (tokenizer.sot, *tokenizer.encode(words), tokenizer.eot)
        assert (prompt.start, prompt.count) == (0, 12)
    assert make(clip, ("af_clip", {"n_ctx": 72})).words.shape == (72, CONFIG.text.width)
    with pytest.raises(BadOption, match="longer than the context of 77"):
        build("af_clip", clip, n_ctx=73)


def test_alignment_is_a_difference_of_means_over_pairs() -> None:
    torch.manual_seed(1)
    patches = F.normalize(torch.randn(4, 6, 4) + 0.5, dim=-1)
    # one patch where the others' mean points to, so that it is nearer to them than they are to each other
    patches[2, 0] = F.normalize(patches[2, 1:].sum(dim=0), dim=0)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [0] * 6, [1, 0, 0, 0, 0, 0], [1] * 6]).bool()
    for kinds in (mask, ~mask):
        got = patch_alignment(patches, kinds)
        for image in range(4):
            unlike: list[float] = []
            alike: list[float] = []
            for i in range(6):
                for j in range(6):
                    cosine = float(patches[image, i] @ patches[image, j])
                    (alike if kinds[image, i] == kinds[image, j] else unlike).append(cosine)
            expected = max(0.0, sum(unlike) / len(unlike) - sum(alike) / len(alike)) if unlike else 0.0
            assert float(got[image]) == pytest.approx(expected, abs=1e-6)
        assert got[2] > 0.05 and got[1] == got[3] == 0


def test_loss_against_its_formula(clip: CLIP) -> None:
    method = make(clip, ("af_clip", {"alignment_weight": 3.0, "temperature": 1.0})).train()
    features, truth = encode(clip, method, 4), target(4)
    terms = method.loss(features, truth)
    assert list(terms) == ["image", "focal", "l1", "alignment"]
    with torch.no_grad():
        probability = method(features).details["similarity"][..., 1].double()
        sets = [method.adapted(tokens)[:, 1:] for tokens in method.token_sets(features).values()]
    assert truth.mask is not None
    small = F.interpolate(truth.mask[:, None], size=GRID, mode="bilinear")[:, 0].flatten(1) > 0.5
    assert small[1].any() and not small[1].all() and not small[0].any()

    def focal(p: torch.Tensor, y: torch.Tensor) -> float:
        of_truth = torch.where(y, p, 1 - p)
        return float((-((1 - of_truth) ** 4) * of_truth.log()).mean())

    expected = {
        "image": focal(probability[:, 0], truth.label > 0),
        "focal": focal(probability[:, 1:], small),
        "l1": float((probability[:, 1:] - small.double()).abs().mean()),
        "alignment": 3 * sum(float(patch_alignment(s, small).mean()) for s in sets) / 12,
    }
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert list(method.loss(features, Target(truth.label))) == ["image"]
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in clip.parameters())


@torch.no_grad()
def test_few_shot_against_a_plain_loop(clip: CLIP) -> None:
    method = make(clip, ("af_clip", {"few_shot_weight": 0.25}))
    normals, features = encode(clip, method, 3, seed=1), encode(clip, method, 2)
    zero_shot = method(features)
    method.remember(normals)
    assert method.map_range == method.score_range == (0.0, 1.25)
    got = method(features)
    near = torch.zeros(2, 15)
    for name, tokens in method.token_sets(features).items():
        bank = F.normalize(method.token_sets(normals)[name][:, 1:].flatten(0, 1), dim=-1)
        cosines = F.normalize(tokens[:, 1:], dim=-1) @ bank.T
        near += (1 - cosines.amax(dim=-1)) / 2 / 12
    enlarged = F.interpolate(near.view(2, 1, *GRID), size=SIZE, mode="bilinear")[:, 0]
    expected = gaussian_blur(enlarged + 0.25 * zero_shot.details["text_map"], 4.0)
    torch.testing.assert_close(got.map, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(got.score, near.amax(dim=1) + 0.25 * zero_shot.score, atol=1e-3, rtol=0)
    seen = method(pick(normals, [0]))
    assert seen.details["memory_map"].max() < 1e-3, "an image that is remembered is at no distance"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"neighbourhoods": (2,)}, "neighbourhoods"),
        ({"neighbourhoods": (-1, 3)}, "neighbourhoods"),
        ({"neighbourhood_sigma": 0.0}, "neighbourhood_sigma is 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"states": ("with defect.",)}, "states"),
        ({"heads": 0}, "heads"),
        ({"alignment_weight": -1.0}, "alignment_weight"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("af_clip", **options)
