"""CoCoOp against a plain loop, and how it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import build, make_config
from blemish.methods.cocoop import JointOptimiser
from blemish.parts.maps import gaussian_blur


def plain_text(clip: CLIP, words: torch.Tensor, sentence: str) -> torch.Tensor:
    """Unit feature of "X .. X <sentence>" with `words` in the places of the X, the whole context encoded."""
    ids = clip.tokenizer(" ".join(["X"] * len(words)) + f" {sentence}", 77)  # type: ignore[misc]
    embeddings = clip.token_embedding(ids).clone()
    embeddings[0, 1 : 1 + len(words)] = words
    feature = clip.encode_embeddings(embeddings, int(ids[0].argmax()), crop=False)
    return F.normalize(feature[0], dim=0)


def probability(feature: torch.Tensor, texts: list[torch.Tensor], tau: float) -> float:
    n, a = (float(F.cosine_similarity(feature, text, dim=0)) / tau for text in texts)
    return 1 / (1 + math.exp(n - a))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, reduction: str) -> None:
    method = make(clip, ("cocoop", {"layer_reduction": reduction, "reduction": 2}))
    features = encode(clip, method, 2)
    got = method(features, ["metal_nut", "screw"])
    first, second = method.meta_net[0], method.meta_net[2]
    for i, name in enumerate(("metal nut", "screw")):
        x = features.class_feature[i] / features.class_feature[i].norm()
        bias = second.weight @ torch.clamp(first.weight @ x + first.bias, min=0) + second.bias
        words = torch.stack([word + bias for word in method.words])
        texts = [plain_text(clip, words, f"{state} {name}") for state in ("good", "damaged")]
        torch.testing.assert_close(got.details["text_features"][i], torch.stack(texts))
        assert float(got.score[i]) == pytest.approx(
            probability(features.class_feature[i], texts, 0.01), abs=1e-5
        )
        total = torch.zeros(1, 1, *SIZE)
        for head, tokens in zip(method.heads.fc, features.tokens["qk"], strict=True):
            patches = F.normalize(tokens[i, 1:] @ head.weight.T + head.bias, dim=-1)
            logits = (patches @ torch.stack(texts).T / 0.07).T.view(1, 2, *features.grid)
            large = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=True)
            total += large.softmax(dim=1)[:, 1:]
        total = total / (4 if reduction == "mean" else 1)
        torch.testing.assert_close(got.map[i], gaussian_blur(total, 8.0)[0, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_words_begin_as_the_initial_ones(clip: CLIP) -> None:
    method = make(clip, ("cocoop", {}))
    ids = clip.tokenizer.encode("a photo of a")  # type: ignore[union-attr]
    assert torch.equal(method.words, clip.token_embedding.weight[ids])
    for options in ({"n_ctx": 3}, {"init_words": ""}):
        other = make(clip, ("cocoop", options))
        assert 0.01 < float(other.words.std()) < 0.03


def test_text_follows_the_image(clip: CLIP) -> None:
    method = make(clip, ("cocoop", {"reduction": 2}))
    features = encode(clip, method, 2)
    with torch.no_grad():
        text = method(features).details["text_features"]
        assert (text[0] - text[1]).abs().max() > 1e-4
        method.meta_net[2].weight.zero_()
        text = method(features).details["text_features"]
        torch.testing.assert_close(text[0], text[1])


def test_sizes_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("cocoop", large)
    assert sum(p.numel() for p in method.meta_net.parameters()) == 74_544
    assert sum(p.numel() for p in method.heads.parameters()) == 3_148_800
    assert method.words.shape == (4, 768)


def test_prompts_learn_by_sgd_and_heads_by_adam(clip: CLIP) -> None:
    """One step of the joint optimiser does what one step of each does alone; momentum is kept between steps."""
    method, other = make(clip, ("cocoop", {})).train(), make(clip, ("cocoop", {})).train()
    joint = method.optimiser(2e-3)
    assert [group["lr"] for group in joint.param_groups] == [2e-3, 4e-5, 0.01]
    prompts, *rest = other.parameter_groups(2e-3)
    apart = [
        torch.optim.SGD([prompts], momentum=0.9, weight_decay=5e-4),
        torch.optim.Adam(rest),
    ]
    features, truth = encode(clip, method, 4), target(4)
    for _ in range(3):
        for optimisers, one in (([joint], method), (apart, other)):
            for optimiser in optimisers:
                optimiser.zero_grad()
            torch.stack(list(one.loss(features, truth).values())).sum().backward()
            for optimiser in optimisers:
                optimiser.step()
    for a, b in zip(method.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "momentum_buffer" in joint.state[method.words]
    assert "exp_avg" in joint.state[method.log_scale]
    assert all(p.grad is None for p in clip.parameters())


def test_a_joint_optimiser_goes_on_from_its_state() -> None:
    def run(steps: int, state: dict[str, Any] | None, start: list[torch.Tensor]) -> tuple[Any, Any]:
        parts = [torch.nn.Parameter(t.clone()) for t in start]
        joint = JointOptimiser(
            torch.optim.SGD([parts[0]], lr=0.1, momentum=0.9), torch.optim.Adam([parts[1]], lr=0.1)
        )
        if state is not None:
            joint.load_state_dict(state)
        for _ in range(steps):
            joint.zero_grad()
            sum((p**2).sum() for p in parts).backward()  # type: ignore[union-attr]
            joint.step()
        return joint.state_dict(), [p.detach() for p in parts]

    start = [torch.ones(3), torch.full((2,), 2.0)]
    _, whole = run(5, None, start)
    state, half = run(2, None, start)
    _, again = run(3, state, half)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_rates_follow_cocoop(clip: CLIP) -> None:
    method = make(clip, ("cocoop", {}))
    assert method.rate_factor(0.05, 0) * 2e-3 == pytest.approx(1e-5)
    assert method.rate_factor(0.5, 3) == pytest.approx(0.5)


def test_terms_and_masks(clip: CLIP) -> None:
    method = make(clip, ("cocoop", {"layers": (2, 4, 4)})).train()
    terms = method.loss(encode(clip, method, 2), target(2), ["a_b", "nut"])
    assert list(terms) == ["focal.2", "dice.2", "focal.4", "dice.4", "focal.4_2", "dice.4_2"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"image_temperature": 0.0}, "image_temperature"),
        ({"state_words": ("good",)}, "state_words"),
        ({"layer_reduction": "max"}, "layer_reduction"),
        ({"head_rate": -1.0}, "head_rate"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("cocoop", **options)
