"""VCP-CLIP+: the acceptance checks of its specification, and every option."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from small_clip import CONFIG, SIZE, encode, make, make_clip, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import make_config, presets
from blemish.parts.losses import dice, focal
from blemish.parts.scores import top_k_mean
from blemish.types import Target

NAME = "vcp_clip_plus"
AS_VCP = {"idp": False, "uniop": False, "loreb": False, "temperature": "learnable", "fusion_weight": 0.8}


def meta_clip(config: CLIPConfig = CLIPConfig()) -> CLIP:
    with torch.device("meta"):
        return CLIP(config)


def count(method: Any, trainable: bool = True) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad or not trainable)


def test_parameter_counts() -> None:
    clip = meta_clip()
    full, baseline = make(clip, (NAME, {})), make(clip, (NAME, {"preset": "baseline"}))
    assert count(full) == 8_870_662
    assert count(full) == sum(p.numel() for g in full.parameter_groups() for p in g["params"])
    assert count(baseline) == count(make(clip, ("vcp_clip", {}))) == 7_687_946
    # The published totals count both temperatures and neither alpha nor beta.
    others = 428_756_993 + 589_824
    assert others + count(baseline) == 437_034_763
    assert others + count(full, trainable=False) - 2 == 438_217_479
    assert count(full.idp) == 1_184_260 and sum(p.numel() for p in full.idp.parameters()) == 1_184_260
    assert full.blocks == (6, 12, 18, 24) and full.post.heads == 8


def test_weights_at_the_start(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    scalars = method.learned_scalars()
    assert scalars["fusion_weight"] == pytest.approx(0.6225, abs=1e-4)
    assert scalars["focal_weight"] == pytest.approx(0.6225, abs=1e-4)
    assert scalars["temperature"] == scalars["post_temperature"] == pytest.approx(0.07)
    assert sum(w.item() for w in method.loss_weights()) == pytest.approx(1)
    assert make(clip, (NAME, {"uniop_init_logit": math.log(3)})).fusion_weight().item() == pytest.approx(0.75)
    assert make(clip, (NAME, {"uniop": False})).fusion_weight() == 0.75
    assert make(clip, (NAME, {"loreb": False})).loss_weights() == (1.0, 1.0)


def test_initial_values() -> None:
    method = make(make_clip(replace(CONFIG, embed_dim=512)), (NAME, {"idp_tokens": 10})).train()
    method.reset(torch.Generator().manual_seed(0))
    parts = dict(method.named_parameters())
    assert parts["idp.tokens"].std().item() == pytest.approx(1, abs=0.2)
    assert parts["idp.summary.weight"].abs().max() <= 1 / math.sqrt(10)
    assert torch.equal(parts["idp.norm.weight"], torch.ones(20)) and not parts["idp.norm.bias"].any()
    assert parts["deep_prompts"].abs().max() <= 1 and parts["deep_prompts"].abs().max() > 0.8
    assert parts["deep_projection.weight"].std().item() == pytest.approx(math.sqrt(2 / 20), rel=0.15)
    for name, fan_in in (("post.query", 512), ("post.key", 36), ("linear.0", 36), ("idp.fusion", 532)):
        assert parts[f"{name}.weight"].abs().max().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.05)


@torch.no_grad()
def test_equals_vcp_clip_with_everything_off(clip: CLIP) -> None:
    method, other = make(clip, (NAME, AS_VCP)), make(clip, ("vcp_clip", {}))
    assert method.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(method.state_dict())
    features, truth = encode(clip, method, 3), target(3)
    assert method.needs == other.needs
    ours, theirs = method(features), other(features)
    assert torch.equal(ours.map, theirs.map) and torch.equal(ours.score, theirs.score)
    assert method.score_range == other.score_range and method.map_range == other.map_range
    for made in (method, other):
        made.train()
    torch.manual_seed(0)
    ours_loss = method.loss(features, truth)
    torch.manual_seed(0)
    theirs_loss = other.loss(features, truth)
    assert ours_loss.keys() == theirs_loss.keys()
    assert all(torch.equal(ours_loss[key], theirs_loss[key]) for key in ours_loss)


def test_presets_are_the_ablation() -> None:
    found = {
        tuple(getattr(make_config(NAME, preset), key) for key in ("temperature", "uniop", "loreb", "idp"))
        for preset in presets(NAME)
    }
    subsets = {("fixed", *on) for on in product((False, True), repeat=3)}
    assert found == subsets | {("learnable", False, False, False)}
    assert make_config(NAME, "full") == make_config(NAME)


@torch.no_grad()
def test_text_follows_image_and_learned_tokens(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    image = torch.randn(2, 28)
    text = method.text_features(method.category_tokens(image))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2, 2))
    assert (text[0] - text[1]).abs().max() > 1e-4
    method.idp.tokens[0] += torch.randn(20)
    assert (method.text_features(method.category_tokens(image)) - text).abs().max() > 1e-5


def test_idp_by_hand(clip: CLIP) -> None:
    part = make(clip, (NAME, {"idp_tokens": 2})).idp
    image = torch.randn(3, 28)
    a, c = part.summary.weight[0], part.summary.bias
    summary = a[0] * part.tokens[0] + a[1] * part.tokens[1] + c
    normed = (summary - summary.mean()) / (summary.var(correction=0) + 1e-5).sqrt()
    weight = part.fusion.weight
    expected = image @ weight[:, :28].T + weight[:, 28:] @ normed + part.fusion.bias
    torch.testing.assert_close(part(image)[:, 0], expected)
    (gradient,) = torch.autograd.grad(part(image).square().sum(), part.summary.bias)
    assert abs(float(gradient)) < 1e-4, "a constant added to all channels leaves with the norm"


@torch.no_grad()
def test_fused_channels_add_up(clip: CLIP) -> None:
    method = make(clip, (NAME, {}))
    features = encode(clip, method, 2)
    (fused,) = method.training_maps(features).values()
    assert len(fused) == 4
    for maps in fused:
        torch.testing.assert_close(maps.sum(dim=1), torch.ones(2, *SIZE))
    # The same weight in training and inference: the inference map is the mean of the training maps.
    torch.testing.assert_close(torch.stack(fused)[:, :, 1].mean(0), method(features).details["map"])


@torch.no_grad()
def test_second_softmax_is_for_training_only(clip: CLIP) -> None:
    method, plain = make(clip, (NAME, {"uniop_resoftmax": True})), make(clip, (NAME, {}))
    plain.load_state_dict(method.state_dict())
    features = encode(clip, method, 2)
    assert torch.equal(method(features).map, plain(features).map)
    squashed, fused = (m.training_maps(features)["fused"][0] for m in (method, plain))
    torch.testing.assert_close(squashed, fused.softmax(dim=1))
    assert squashed.min() >= 0.2689 and squashed.max() <= 0.7311


@torch.no_grad()
@pytest.mark.parametrize("uniop", [True, False])
@pytest.mark.parametrize("least", [0.0, 0.05])
def test_loss_is_a_convex_mix(clip: CLIP, uniop: bool, least: float) -> None:
    method = make(clip, (NAME, {"uniop": uniop, "loreb_min_weight": least, "dropout": 0.0}))
    features, truth = encode(clip, method, 4), target(4)
    for logit in (-30.0, 0.4, 30.0):
        method.beta.fill_(logit)
        b = least + (1 - 2 * least) / (1 + math.exp(-logit))
        total = sum(float(t) for t in method.loss(features, truth).values())
        maps = [m for layers in method.training_maps(features).values() for m in layers]
        assert len(maps) == (4 if uniop else 8)
        f = sum(float(focal(m, truth.mask)) for m in maps)
        d = sum(float(dice(m[:, 1], truth.mask)) for m in maps)
        assert total == pytest.approx(b * f + (1 - b) * d, rel=1e-5)
        assert least <= float(method.loss_weights()[0]) <= 1 - least


def test_loss_terms_are_named_and_need_masks(clip: CLIP) -> None:
    method = make(clip, (NAME, {"layers": (2, 1.0)}))
    features = encode(clip, method, 2)
    with pytest.raises(ValueError, match="masks"):
        method.loss(features, Target(target(2).label))
    assert sorted(method.loss(features, target(2))) == [
        f"{kind}.fused.{block}" for kind in ("dice", "focal") for block in (2, 4)
    ]


@torch.no_grad()
def test_image_scores(clip: CLIP) -> None:
    method = make(clip, (NAME, {"top_k": 7}))
    features = encode(clip, method, 2)
    details = method(features).details
    expected = top_k_mean(details["base_map"], 7) + top_k_mean(details["post_map"], 7)
    torch.testing.assert_close(method(features).score, expected)

    def score(**options: Any) -> torch.Tensor:
        made = make(clip, (NAME, options))
        made.load_state_dict(method.state_dict())
        return made(features).score

    torch.testing.assert_close(score(top_k=7, image_score_source="fused"), top_k_mean(details["map"], 7))
    # 2000 of 518 x 518 pixels are 7 of 24 x 40, and never none.
    assert torch.equal(score(scale_top_k=True), expected)
    assert torch.equal(score(scale_top_k=True, top_k=1), score(top_k=1))
    assert make(clip, (NAME, {"image_score_source": "fused"})).score_range == (0.0, 1.0)


@torch.no_grad()
def test_temperature_divides_the_cosines(clip: CLIP) -> None:
    features = encode(clip, make(clip, (NAME, {})), 2)
    warm, cold = (make(clip, (NAME, {"tau": tau}))(features).details for tau in (0.1, 0.01))
    for key in ("base_logits", "post_logits"):
        torch.testing.assert_close(10 * warm[key][0], cold[key][0], rtol=1e-4, atol=1e-4)


def test_rates_of_the_authors(clip: CLIP) -> None:
    def rates(**options: Any) -> list[tuple[float, int]]:
        groups = make(clip, (NAME, options)).parameter_groups()
        assert all(g["betas"] == (0.5, 0.999) for g in groups)
        return [(g["lr"], len(g["params"])) for g in groups[1:]]

    assert rates() == [(4e-3, 2)]
    assert rates(loreb=False) == [(4e-3, 1)]
    assert rates(temperature="learnable") == [(4e-3, 2), (0.01, 2)]
    assert rates(uniop=False, loreb=False) == []
    assert make(clip, (NAME, {})).parameter_groups(2e-5)[0]["lr"] == 2e-5


def test_focal_weight_drifts_upwards_and_stays_bounded(clip: CLIP) -> None:
    """Focal is smaller than Dice, so beta grows; a least weight keeps Dice in the loss."""
    method = make(clip, (NAME, {"loreb_min_weight": 0.05, "dropout": 0.0})).train()
    features, truth = encode(clip, method, 4), target(4)
    optimizer = torch.optim.Adam([{"params": [method.beta], "lr": 2.0}])
    before = float(method.loss_weights()[0].detach())
    for _ in range(10):
        optimizer.zero_grad()
        torch.stack(list(method.loss(features, truth).values())).sum().backward()
        optimizer.step()
    after = float(method.loss_weights()[0].detach())
    assert before < after <= 0.95


def test_dropout_only_in_training(clip: CLIP) -> None:
    method = make(clip, (NAME, {"dropout": 0.5}))
    category = method.category_tokens(torch.randn(1, 28)).expand(2, -1, -1)
    still = method.text_features(category)
    assert torch.allclose(still[0], still[1], atol=1e-6)
    drawn = method.train().text_features(category)
    assert not torch.allclose(drawn[0], drawn[1])


def test_exact_gelu_belongs_to_openai_weights() -> None:
    for source, wanted in (("openai", "gelu"), ("laion400m", "native")):
        assert make(meta_clip(replace(CONFIG, source=source)), (NAME, {})).needs.activation == wanted


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tau": 0.0}, "tau is 0.0"),
        ({"temperature": "learned"}, "choose from 'fixed', 'learnable'"),
        ({"loreb_min_weight": 0.5}, "loreb_min_weight is 0.5; expected less than 0.5"),
        ({"loreb_min_weight": -0.1}, "loreb_min_weight is -0.1"),
        ({"fusion_weight": 1.5}, "fusion_weight is 1.5"),
        ({"idp_tokens": 0}, "idp_tokens is 0"),
        ({"uniop_init_logit": math.inf}, "uniop_init_logit is inf"),
        ({"image_score_source": "map"}, "choose from 'branches', 'fused'"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption) as caught:
        make_config(NAME, **options)
    assert text in str(caught.value)
