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
    # Their file also holds a projection that nothing uses; the whole model has a slot for the class word.
    assert 7_687_946 + 768 * 768 == 8_277_770 and 428_756_993 + 8_277_770 == 437_034_763
    large = sum(p.numel() for p in method.clip.parameters())
    positions = method.clip.config.vision.width * (37 * 37 - 24 * 24)
    assert large + positions + method.clip.config.text.width == 428_756_993
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


def test_start_of_the_authors() -> None:
    method = make(meta_clip(CLIPConfig()), (NAME, {})).to_empty(device="cpu")
    method.reset(torch.Generator().manual_seed(0))
    parts = dict(method.named_parameters())
    assert parts["category"].abs().max() <= 2 and parts["category"].std().item() == pytest.approx(
        0.88, rel=0.1
    )
    assert 0.99 < parts["deep_prompts"].abs().max() <= 1
    assert parts["deep_projection.weight"].std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.01)
    for name, fan_in in (("post.query", 768), ("post.key", 1024), ("linear.3", 1024), ("mini_net", 3)):
        for kind in ("weight", "bias"):
            assert parts[f"{name}.{kind}"].abs().max() <= fan_in**-0.5
    assert torch.equal(parts["prompt_norm.weight"], torch.ones(768)) and not parts["prompt_norm.bias"].any()
    assert method.prompt_norm.eps == 1e-6
    expected = {"temperature": 0.07, "post_temperature": 0.07}
    assert method.learned_scalars() == pytest.approx(expected)
    assert make(meta_clip(CLIPConfig()), (NAME, {"preset": "baseline"})).scales()


def test_learned_temperatures_are_reported(clip: CLIP) -> None:
    method = make(clip, (NAME, {"preset": "baseline", "temperature": 0.1}))
    assert method.learned_scalars() == {"temperature": pytest.approx(0.1)}
    both = make(clip, (NAME, {}))
    with torch.no_grad():
        both.post_log_scale.fill_(0.0)
    assert both.learned_scalars() == pytest.approx({"temperature": 0.07, "post_temperature": 1.0})


def test_sixteen_terms(clip: CLIP) -> None:
    """Two branches, four layers, focal and Dice; the baseline has half of them and learns by itself."""
    features = encode(clip, make(clip, (NAME, {})), 2)
    assert len(make(clip, (NAME, {})).loss(features, target(2))) == 16
    baseline = make(clip, (NAME, {"preset": "baseline"}))
    assert len(baseline.loss(features, target(2))) == 8
    assert [len(g["params"]) for g in baseline.parameter_groups()][1:] == [1]


def test_temperatures_have_their_own_rate_or_none(clip: CLIP) -> None:
    groups = make(clip, (NAME, {})).parameter_groups()
    assert [g["lr"] for g in groups] == [4e-5, 0.01] and len(groups[1]["params"]) == 2
    frozen = make(clip, (NAME, {"freeze_temperature": True}))
    assert len(frozen.parameter_groups()) == 1
    assert float(frozen.log_scale) == pytest.approx(torch.tensor(1 / 0.07).log().item())
