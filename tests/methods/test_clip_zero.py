"""`clip` and `clip_ac` against a plain loop over sentences, images and patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make

from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import make_config
from blemish.methods.clip_zero import single_prompt


def plain_text(clip: CLIP, sentences: list[str]) -> torch.Tensor:
    """Each sentence alone: unit, mean, unit."""
    rows = [F.normalize(clip.encode_text(clip.tokenizer([s], 77))[0], dim=0) for s in sentences]  # type: ignore[misc]
    return F.normalize(torch.stack(rows).mean(dim=0), dim=0)


def probability(feature: torch.Tensor, normal: torch.Tensor, abnormal: torch.Tensor, tau: float) -> float:
    n, a = (float(F.cosine_similarity(feature, text, dim=0)) / tau for text in (normal, abnormal))
    return 1 / (1 + math.exp(n - a))


@pytest.mark.parametrize(
    ("name", "options", "normal", "abnormal"),
    [
        ("clip", {}, ["a photo of a normal metal nut."], ["a photo of an anomalous metal nut."]),
        (
            "clip",
            {"template": "the {}", "state_words": ("good", "odd"), "temperature": 0.07},
            ["the good metal nut"],
            ["the odd metal nut"],
        ),
        (
            "clip_ac",
            {"templates": "openai7"},
            [
                "itap of a normal metal nut.",
                "a bad photo of the normal metal nut.",
                "a origami normal metal nut.",
                "a photo of the large normal metal nut.",
                "a normal metal nut in a video game.",
                "art of the normal metal nut.",
                "a photo of the small normal metal nut.",
            ],
            [],
        ),
    ],
)
@torch.no_grad()
def test_against_a_plain_loop(
    clip: CLIP, name: str, options: dict[str, Any], normal: list[str], abnormal: list[str]
) -> None:
    abnormal = abnormal or [s.replace("normal", "anomalous") for s in normal]
    method = make(clip, (name, options))
    features = encode(clip, method, 2)
    found = method(features, ["metal_nut", "metal_nut"])
    texts = plain_text(clip, normal), plain_text(clip, abnormal)
    tau = options.get("temperature", 0.01)
    for i in range(2):
        expected = probability(features.class_feature[i], *texts, tau)
        assert float(found.score[i]) == pytest.approx(expected, abs=1e-4)
        rows, columns = features.grid
        small = torch.tensor(
            [[probability(t, *texts, tau) for t in features.tokens["qk"][0][i, 1:]]]
        ).reshape(1, 1, rows, columns)
        large = F.interpolate(small, size=SIZE, mode="bilinear", align_corners=False)
        torch.testing.assert_close(found.map[i], large[0, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("templates", "count"), [("openai80", 80), ("openai7", 7), ("april35", 35)])
def test_ensembles(clip: CLIP, templates: str, count: int) -> None:
    bank = make(clip, ("clip_ac", {"templates": templates})).texts.bank
    normal, abnormal = bank.sentences("screw")
    assert len(normal) == len(abnormal) == count and bank.normalise_each
    assert [s.replace(" normal ", " anomalous ") for s in normal] == abnormal


def test_images_are_seen_by_plain_clip(clip: CLIP) -> None:
    """No other streams, no other norms: the class feature is CLIP's own."""
    needs = make(clip, ("clip", {})).needs
    assert needs.streams == ("qk",) and needs.layers == (1.0,) and needs.projected and needs.class_ln_post
    assert needs.activation == "native" and needs.position_resize == "bilinear" and needs.cacheable


def test_temperature_changes_no_order(clip: CLIP) -> None:
    low, high = (make(clip, ("clip", {"temperature": t})) for t in (0.05, 1.0))
    with torch.no_grad():
        scores = [m(encode(clip, m, 8)).score for m in (low, high)]
    assert torch.equal(scores[0].argsort(), scores[1].argsort())


def test_articles() -> None:
    assert single_prompt("A photo of a {}", ("normal", "odd")).sentences("x") == (
        ["A photo of a normal x"],
        ["A photo of an odd x"],
    )
    assert single_prompt("a {}", ("good", "ill")).sentences("x") == (["a good x"], ["an ill x"])
    assert single_prompt("pizza {}", ("good", "ill")).sentences("x") == (["pizza good x"], ["pizza ill x"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", {"template": "a photo"}),
        ("clip", {"template": "{} {}"}),
        ("clip", {"template": "{0} {}"}),
        ("clip", {"state_words": ("normal",)}),
        ("clip", {"state_words": ("normal", " ")}),
        ("clip_ac", {"state_words": ("nor{mal", "odd")}),
        ("clip_ac", {"templates": "openai8"}),
        ("clip_ac", {"temperature": 0.0}),
    ],
)
def test_impossible_options(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        make_config(name, **options)


def test_nothing_is_learned(clip: CLIP) -> None:
    for name in ("clip", "clip_ac"):
        method = make(clip, (name, {}))
        assert not method.state_dict() and not hasattr(method, "loss")
