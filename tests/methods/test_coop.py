"""CoOp against a plain loop, and how it learns."""

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
from blemish.parts.maps import gaussian_blur
from blemish.types import Target


def plain_text(clip: CLIP, words: torch.Tensor, sentence: str) -> torch.Tensor:
    """Unit feature of "X .. X <sentence>" with `words` in the places of the X, the whole context encoded."""
    ids = clip.tokenizer(" ".join(["X"] * len(words)) + f" {sentence}", 77)  # type: ignore[misc]
    embeddings = clip.token_embedding(ids).clone()
    embeddings[0, 1 : 1 + len(words)] = words
    feature = clip.encode_embeddings(embeddings, int(ids[0].argmax()), crop=False)
    return F.normalize(feature[0], dim=0)


def probability(feature: torch.Tensor, normal: torch.Tensor, abnormal: torch.Tensor, tau: float) -> float:
    n, a = (float(F.cosine_similarity(feature, text, dim=0)) / tau for text in (normal, abnormal))
    return 1 / (1 + math.exp(n - a))


@pytest.mark.parametrize(
    ("options", "end", "taus"),
    [
        ({}, "", (0.01, 0.07)),
        (
            {"n_ctx": 4, "trailing_period": True, "temperature": 0.05, "map_temperature": 0.1},
            ".",
            (0.05, 0.1),
        ),
    ],
)
@torch.no_grad()
def test_against_a_plain_loop(
    clip: CLIP, options: dict[str, Any], end: str, taus: tuple[float, float]
) -> None:
    method = make(clip, ("coop", options))
    assert method.words.shape == (options.get("n_ctx", 16), 20)
    features = encode(clip, method, 2)
    names = ["metal_nut", "screw"]
    got = method(features, names)
    patches = features.tokens["qk"][0][:, 1:]
    for i, name in enumerate(("metal nut", "screw")):
        texts = [plain_text(clip, method.words, f"{state} {name}{end}") for state in ("normal", "anomalous")]
        torch.testing.assert_close(got.details["text_features"][i], torch.stack(texts))
        assert float(got.score[i]) == pytest.approx(
            probability(features.class_feature[i], texts[0], texts[1], taus[0]), abs=1e-5
        )
        values = torch.tensor([probability(p, texts[0], texts[1], taus[1]) for p in patches[i]])
        raw = F.interpolate(values.view(1, 1, *features.grid), size=SIZE, mode="bilinear")[0]
        torch.testing.assert_close(got.map[i], gaussian_blur(raw, 4.0)[0], atol=1e-5, rtol=0)


def test_loss_is_cross_entropy_of_the_labels(clip: CLIP) -> None:
    method = make(clip, ("coop", {})).train()
    features, truth = encode(clip, method, 4), target(4)
    terms = method.loss(features, truth, ["nut", "nut", "screw", "nut"])
    with torch.no_grad():
        scores = method(features, ["nut", "nut", "screw", "nut"]).score
    expected = -torch.where(truth.label == 1, scores, 1 - scores).log().mean()
    assert list(terms) == ["image"]
    torch.testing.assert_close(terms["image"].detach(), expected)
    torch.testing.assert_close(method.loss(features, Target(truth.label), ["nut"] * 4)["image"].shape, ())
    terms["image"].backward()
    assert method.words.grad is not None and method.words.grad.abs().amin(dim=1).gt(0).all()
    assert all(p.grad is None for p in clip.parameters())
    assert [name for name, _ in method.named_parameters()] == ["words"]


def test_optimiser_and_schedule_of_the_paper(clip: CLIP) -> None:
    method = make(clip, ("coop", {}))
    optimiser = method.optimiser(method.recipe["learning_rate"])
    assert isinstance(optimiser, torch.optim.SGD)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (2e-3, 0.9, 5e-4)
    assert method.rate_factor(0.05, 0) * 2e-3 == pytest.approx(1e-5)
    assert method.rate_factor(0.5, 3) == pytest.approx(0.5)
    assert method.rate_factor(1.0, 9) == pytest.approx(0.0)


def test_size_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("coop", large)
    assert sum(p.numel() for p in method.parameters()) == 16 * 768
    assert method.needs.position_resize == "bilinear" and method.needs.cacheable


def test_words_fill_the_context_at_most(clip: CLIP) -> None:
    assert make(clip, ("coop", {"n_ctx": 75})).words.shape == (75, 20)
    with pytest.raises(BadOption, match="longer than the context of 77"):
        build("coop", clip, n_ctx=76)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_ctx": 0}, "n_ctx"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"map_temperature": -1.0}, "map_temperature"),
        ({"state_words": ("good",)}, "state_words"),
        ({"state_words": ("good", " ")}, "state_words"),
        ({"warm_up": -1.0}, "warm_up"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("coop", **options)
