from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_clip import CONFIG, encode, make, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.types import Target

NAME = "vcp_clip"


def meta_clip(config: CLIPConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


def test_parameter_count_of_the_authors() -> None:
    method = make(meta_clip(CLIPConfig()), (NAME, {}))
    assert sum(p.numel() for p in method.parameters()) == 7_687_946
    assert method.class_adapter is None and method.post.heads == 8 and method.blocks == (6, 12, 18, 24)


def test_exact_gelu_belongs_to_openai_weights() -> None:
    for source, wanted in (("openai", "gelu"), ("laion400m", "native"), ("tiny", "native")):
        method = make(meta_clip(replace(CONFIG, source=source)), (NAME, {}))
        assert method.needs.activation == wanted == method.activation
    asked = make(meta_clip(replace(CONFIG, source="openai")), (NAME, {"activation": "native"}))
    assert asked.needs.activation == "native"


@torch.no_grad()
def test_fusion_and_scores(clip: CLIP) -> None:
    method = make(clip, (NAME, {"top_k": 7, "sigma": 0.0}))
    features = encode(clip, method, 2)
    prediction = method(features)
    base, post = prediction.details["base_map"], prediction.details["post_map"]
    torch.testing.assert_close(prediction.map, 0.2 * base + 0.8 * post)
    top = sum(m.flatten(1).sort(descending=True).values[:, :7].mean(1) for m in (base, post))
    torch.testing.assert_close(prediction.score, top)
    paper = make(clip, (NAME, {"preset": "paper"}))(features)
    torch.testing.assert_close(paper.map, 0.25 * base + 0.75 * post)
    torch.testing.assert_close(paper.score, paper.map.amax(dim=(1, 2)))
    summed = make(clip, (NAME, {"layer_reduction": "sum"}))(features)
    torch.testing.assert_close(summed.details["base_map"], 4 * base)


@torch.no_grad()
def test_baseline_has_one_branch_and_one_text(clip: CLIP) -> None:
    method = make(clip, (NAME, {"preset": "baseline"}))
    assert not any(name.startswith(("post", "mini_net")) for name in method.state_dict())
    prediction = method(encode(clip, method, 3))
    assert prediction.details["text_features"].shape == (1, 2, 28)
    assert "post_map" not in prediction.details and torch.equal(
        prediction.details["map"], prediction.details["base_map"]
    )
    assert method.score_range == (0.0, 1.0)


@torch.no_grad()
def test_text_follows_the_image(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    text = method(encode(clip, method, 2)).details["text_features"]
    assert text.shape == (2, 2, 28) and (text[0] - text[1]).abs().max() > 1e-4
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2, 2))


@torch.no_grad()
def test_cropping_the_text_changes_nothing(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(clip, (NAME, {"deep_tokens": 2}))
    category = method.category_tokens(torch.randn(3, 28))
    short = method.text_features(category)
    encode_embeddings = CLIP.encode_embeddings

    def whole(self: CLIP, embeddings: torch.Tensor, eot: torch.Tensor, **options: object) -> torch.Tensor:
        padded = F.pad(embeddings, (0, 0, 0, 77 - embeddings.shape[1]))
        return encode_embeddings(self, padded, eot, **{**options, "crop": False})

    monkeypatch.setattr(CLIP, "encode_embeddings", whole)
    torch.testing.assert_close(method.text_features(category), short, atol=1e-5, rtol=0)


def test_dropout_is_drawn_per_image_and_only_in_training(clip: CLIP) -> None:
    method = make(clip, (NAME, {"dropout": 0.5, "mini_net": False}))
    category = method.category[None].expand(2, -1, -1)
    still = method.text_features(category)
    assert torch.equal(still[0], still[1])
    drawn = method.train().text_features(category)
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(
        drawn, method.text_features(category)
    )


def test_loss_needs_masks_and_names_its_terms(clip: CLIP) -> None:
    method = make(clip, (NAME, {"layers": (2, 1.0)}))
    features = encode(clip, method, 2)
    with pytest.raises(ValueError, match="masks"):
        method.loss(features, Target(target(2).label))
    assert sorted(method.loss(features, target(2))) == sorted(
        f"{kind}.{branch}.{block}"
        for kind in ("focal", "dice")
        for branch in ("base", "post")
        for block in (2, 4)
    )


def test_temperatures_have_their_own_rate_or_none(clip: CLIP) -> None:
    groups = make(clip, (NAME, {})).parameter_groups()
    assert [g["lr"] for g in groups] == [4e-5, 0.01] and len(groups[1]["params"]) == 2
    frozen = make(clip, (NAME, {"freeze_temperature": True}))
    assert len(frozen.parameter_groups()) == 1
    assert float(frozen.log_scale) == pytest.approx(torch.tensor(1 / 0.07).log().item())
