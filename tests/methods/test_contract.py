"""What every registered method keeps to, on a small random CLIP whose sizes are all different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_clip import CONFIG, SIZE, encode, make, make_clip, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.methods import METHODS, build, method_class, presets
from blemish.types import Attends, Encodes, Method, Prediction, Remembers, Target

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS),
    *((name, {"preset": preset}) for name in METHODS for preset in presets(name)),
    ("anomaly_clip", {"streams": ("qk", "vv", "qq", "kk"), "layers": (1, 3), "shared_words": True}),
    ("anomaly_clip", {"object_aware": True, "rounding": "official", "class_ln_post": True, "depth": 1}),
    ("anomaly_clip", {"stream_ffn": True, "stream_start": 2, "layer_reduction": "mean", "rounding": "off"}),
    ("vcp_clip", {"category_tokens": 3, "deep_tokens": 2, "layer_reduction": "sum", "top_k": 50}),
    ("vcp_clip", {"mini_net": False, "freeze_temperature": True, "activation": "gelu", "heads": 5}),
    ("vcp_clip_plus", {"uniop_resoftmax": True, "temperature": "learnable", "image_score_source": "fused"}),
    ("vcp_clip_plus", {"idp_tokens": 2, "deep_tokens": 2, "layer_reduction": "sum", "scale_top_k": True}),
    ("vip2_clip", {"utpa_mode": "per_layer", "top_k": 3, "patch_smoothing": "avg3", "global_ln_post": True}),
    ("vip2_clip", {"use_vca": False, "use_fgp": False, "layers": (1, 3), "n_static": 2, "n_dynamic": 5}),
    ("gen_clip", {"mvp_pool": "patch", "mvp_norm": "layernorm", "deep_mode": "overwrite", "n_query": 3}),
    ("gen_clip", {"deep_proj": True, "dropout": 0.0, "deep_depth": 2, "image_score": "max"}),
    ("gen_clip", {"trailing_object": True, "trailing_period": True, "dice_both": True, "layers": (2, 1.0)}),
    ("gen_clip", {"cnf_image_size": 56}),
    ("ada_clip", {"fusion": "off", "depth": 2, "length": 2, "layers": (1, 1.0)}),
    ("ada_clip", {"abnormal_patches": 7, "clusters": 3}),
    ("aa_clip", {"stage": "text"}),
    ("aa_clip", {"stage": "text", "preset": "paper", "text_adapters": 2}),
    ("aa_clip", {"head_relu": True, "image_adapters": 1.0, "layers": (2, 2), "image_score": "image"}),
    ("vip2_clip", {"legacy_state_word": True, "fgp_heads": 5, "use_utpa": False, "sigma": 0.0}),
]


def assert_same(a: Prediction, b: Prediction) -> None:
    torch.testing.assert_close(a.map, b.map, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.score, b.score, atol=1e-5, rtol=0)


PAPERS = ("anomaly_clip", "vcp_clip", "vcp_clip_plus", "vip2_clip", "gen_clip")
LEARNING = [name for name in METHODS if hasattr(method_class(name), "loss")]
each = pytest.mark.parametrize("variant", VARIANTS, ids=str)
each_learning = pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0] in LEARNING], ids=str)


@each
@torch.no_grad()
def test_prediction_has_shape_and_range(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    assert isinstance(method, Method)
    prediction = method(encode(clip, method, 3))
    assert prediction.map.shape == (3, *SIZE) and prediction.score.shape == (3,)
    assert prediction.map.dtype == prediction.score.dtype == torch.float32
    for values, (low, high) in ((prediction.map, method.map_range), (prediction.score, method.score_range)):
        assert torch.isfinite(values).all()
        assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6


@each
@torch.no_grad()
def test_result_depends_on_the_image_alone(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    features = encode(clip, method, 8)
    together = method(features)
    for i in range(8):
        alone = method(pick(features, [i]))
        assert_same(alone, Prediction(together.map[i : i + 1], together.score[i : i + 1]))
    order = torch.randperm(8)
    assert_same(method(pick(features, order)), Prediction(together.map[order], together.score[order]))
    assert (together.map[0] - together.map[1]).abs().max() > 1e-4, "two images, one map"


@each_learning
@torch.no_grad()
def test_saved_parts_restore_the_method(clip: CLIP, variant, tmp_path: Path) -> None:
    method = make(clip, variant)
    method.reset(torch.Generator().manual_seed(11))
    features = encode(clip, method, 2)
    expected = method(features)
    save_file(method.state_dict(), tmp_path / "parts.safetensors")
    other = make(clip, variant)
    assert not torch.equal(other(features).map, expected.map)
    other.load_state_dict(load_file(tmp_path / "parts.safetensors"))
    assert torch.equal(other(features).map, expected.map)
    assert torch.equal(other(features).score, expected.score)


@each_learning
def test_only_learned_parts_are_registered(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    frozen = {p.data_ptr() for p in clip.parameters()}
    assert method.state_dict().keys() == dict(method.named_parameters()).keys()
    assert frozen.isdisjoint(p.data_ptr() for p in method.parameters())
    groups = [p for group in method.parameter_groups() for p in group["params"]]
    learned = [p for p in method.parameters() if p.requires_grad]
    assert {id(p) for p in groups} == {id(p) for p in learned} and len(groups) == len(learned)


@each_learning
def test_same_generator_same_start(clip: CLIP, variant) -> None:
    first, second = make(clip, variant), make(clip, variant)
    first.reset(torch.Generator().manual_seed(5))
    second.reset(torch.Generator().manual_seed(5))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()


@each_learning
def test_loss_falls_and_reaches_every_parameter(clip: CLIP, variant) -> None:
    method = make(clip, variant, **({"dropout": 0.0} if variant[0].startswith("vcp_clip") else {})).train()
    features, truth = encode(clip, method, 4), target(4)
    optimizer = torch.optim.Adam(method.parameter_groups(learning_rate=1e-3))
    totals = []
    for _ in range(20):
        optimizer.zero_grad()
        if isinstance(method, Encodes):
            features = encode(clip, method, 4, learning=True)
        terms = method.loss(features, truth)
        assert all(t.ndim == 0 and torch.isfinite(t) for t in terms.values())
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        totals.append(total.item())
        optimizer.step()
    assert totals[-1] < totals[0]
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert all(p.grad is None for p in clip.parameters())


@each
def test_half_precision_backbone(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    small = make_clip(CONFIG, torch.bfloat16)
    halved = make(small, variant)
    with torch.no_grad():
        expected = method(encode(clip, method, 2))
        got = halved(encode(small, halved, 2))
    assert got.map.dtype == torch.float32
    # Where a hundred times the cosine decides, bf16's rounding of a cosine (about 1/256) weighs more.
    allowed = 0.25 if variant[0] in ("clip", "clip_ac", "april_gan", "coop", "ada_clip") else 0.1
    torch.testing.assert_close(got.map, expected.map, atol=allowed * method.map_range[1], rtol=0)
    if variant[0] not in LEARNING:
        return
    halved.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = halved.loss(encode(small, halved, 2, learning=True), target(2))
    torch.stack([t.float() for t in terms.values()]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in halved.parameters() if p.requires_grad)


@each_learning
def test_prediction_follows_the_parameters(clip: CLIP, variant) -> None:
    """Text features kept between images must not outlive the parameters they were made from."""
    method = make(clip, variant)
    features = encode(clip, method, 1)
    with torch.inference_mode():
        before = method(features).map
        assert torch.equal(method(features).map, before)
    optimizer = torch.optim.Adam(method.parameter_groups(learning_rate=0.05))
    torch.stack(
        list(method.loss(features, Target(torch.ones(1), torch.ones(1, *SIZE))).values())
    ).sum().backward()
    optimizer.step()
    with torch.inference_mode():
        after = method(features).map
    assert (after - before).abs().max() > 1e-6
    method.reset(torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert (method(features).map - after).abs().max() > 1e-6


@each
def test_builds_without_memory(variant) -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build(variant[0], large, **variant[1])
    assert all(p.is_meta for p in method.parameters())


FOUR = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("name", PAPERS)
def test_layers_on_one_block_all_count(name: str) -> None:
    """Quarters of two blocks are 1, 1, 2, 2: every layer has its map and its terms in the loss."""
    shallow = make_clip(replace(CONFIG, vision=replace(CONFIG.vision, layers=2)))
    quarters, blocks = (make(shallow, (name, {"layers": layers})) for layers in (FOUR, (1, 1, 2, 2)))
    assert quarters.blocks == blocks.blocks == (1, 1, 2, 2)
    blocks.load_state_dict(quarters.state_dict())
    features, truth = encode(shallow, quarters, 2), target(2)
    terms, other = quarters.loss(features, truth), blocks.loss(features, truth)
    assert all(torch.equal(terms[key], other[key]) for key in terms.keys() | other.keys())
    per_layer = {"anomaly_clip": 3, "vip2_clip": 3, "vcp_clip": 4, "vcp_clip_plus": 2, "gen_clip": 2}[name]
    alone = make(shallow, (name, {"layers": (2,)}))
    single = alone.loss(encode(shallow, alone, 2), truth)
    shared = len(single) - per_layer
    assert len(terms) == shared + 4 * per_layer and len(single) == shared + per_layer


def test_repeated_layers_weigh_twice(clip: CLIP) -> None:
    once, twice = (make(clip, ("anomaly_clip", {"layers": layers})) for layers in ((4,), (4, 4)))
    features = encode(clip, once, 3)
    terms, doubled = once.loss(features, target(3)), twice.loss(encode(clip, twice, 3), target(3))
    image = terms.pop("image")
    assert torch.equal(doubled.pop("image"), image)
    torch.testing.assert_close(sum(doubled.values()), 2 * sum(terms.values()))


@each
def test_details_that_every_method_gives(clip: CLIP, variant) -> None:
    """What the log and the pictures of text embeddings rely on."""
    method = make(clip, variant)
    features = encode(clip, method, 3)
    with torch.no_grad():
        text = method(features, ["screw", "nut", "screw"]).details["text_features"]
        alone = method(pick(features, [1]), ["nut"]).details["text_features"]
    assert text.shape in ((1, 2, 28), (3, 2, 28), (3, len(getattr(method, "blocks", ())), 2, 28))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(text.shape[:-1]))
    torch.testing.assert_close(alone[0], text[min(1, len(text) - 1)], atol=1e-5, rtol=0)
    assert (text[..., 0, :] - text[..., 1, :]).abs().max() > 1e-5
    scalars = method.learned_scalars() if hasattr(method, "learned_scalars") else {}
    learned = [name for name, p in method.named_parameters() if p.ndim == 0 and p.requires_grad]
    assert all(isinstance(value, float) for value in scalars.values())
    assert bool(scalars) or not learned, "learned scalars belong in the log"


@each
@torch.no_grad()
def test_attention_maps_where_there_are_any(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    assert isinstance(method, Attends) == (variant[0] in ("vcp_clip", "vcp_clip_plus", "vip2_clip"))
    if not isinstance(method, Attends) or not method.attention_heads:
        return
    features = encode(clip, method, 3)
    maps = method.attention_maps(features)
    assert maps.shape == (3, len(method.blocks), method.attention_heads, 2, *features.grid)
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), torch.ones(maps.shape[:4]))
    torch.testing.assert_close(method.attention_maps(pick(features, [2])), maps[2:], atol=1e-6, rtol=0)
    assert (maps[0] - maps[1]).abs().max() > 1e-6


RECIPES = {
    "anomaly_clip": (15, 8, 111, "none", 1e-3),
    "vcp_clip": (10, 32, 333, "vcp", 4e-5),
    "vcp_clip_plus": (10, 16, 333, "vcp", 4e-5),
    "vip2_clip": (10, 8, 111, "none", 1e-3),
    "gen_clip": (15, 8, 111, "none", 4e-5),
}


@pytest.mark.parametrize("name", LEARNING)
def test_recipe_of_the_paper(clip: CLIP, name: str) -> None:
    recipe = method_class(name).recipe
    assert list(recipe) == ["epochs", "batch_size", "seed", "augmentation", "learning_rate"]
    groups = make(clip, (name, {})).parameter_groups()
    assert groups[0]["lr"] == recipe["learning_rate"]
    if name in PAPERS:
        assert tuple(recipe.values()) == RECIPES[name]
        betas = None if name == "vip2_clip" else (0.5, 0.999)
        assert all(group.get("betas") == betas for group in groups)


@pytest.mark.parametrize("name", LEARNING)
def test_images_without_masks_teach_everything_or_are_refused(clip: CLIP, name: str) -> None:
    method = make(clip, (name, {})).train()
    features, unmasked = encode(clip, method, 4, learning=True), Target(target(4).label)
    if not method.learns_without_masks:
        with pytest.raises(ValueError, match="masks"):
            method.loss(features, unmasked)
        return
    torch.stack(list(method.loss(features, unmasked).values())).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


@each
@torch.no_grad()
def test_class_names_where_they_count(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    if not getattr(method, "uses_class_names", False):
        return
    features = encode(clip, method, 3)
    assert_same(method(features), method(features, ["object"] * 3))
    assert_same(method(features, ["metal_nut"] * 3), method(features, ["metal nut"] * 3))
    mixed = method(features, ["screw", "metal_nut", "screw"])
    for i, name in enumerate(["screw", "metal_nut", "screw"]):
        alone = method(pick(features, [i]), [name])
        assert_same(alone, Prediction(mixed.map[i : i + 1], mixed.score[i : i + 1]))
    assert (mixed.map - method(features).map).abs().max() > 1e-5


@each
@torch.no_grad()
def test_normal_images_are_remembered_where_they_can_be(clip: CLIP, variant) -> None:
    method = make(clip, variant)
    if not isinstance(method, Remembers):
        return
    normals, features = encode(clip, method, 3, seed=1), encode(clip, method, 3)
    zero_shot = method(features)
    assert method.memory() == {} and not method.state_dict().keys() & {"memory"}
    method.remember(pick(normals, [0, 1]))
    method.remember(pick(normals, [2]))
    few_shot = method(features)
    assert (few_shot.map - zero_shot.map).abs().max() > 1e-4
    for values, (low, high) in ((few_shot.map, method.map_range), (few_shot.score, method.score_range)):
        assert torch.isfinite(values).all() and values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert_same(method(pick(features, [1])), Prediction(few_shot.map[1:2], few_shot.score[1:2]))
    other = make(clip, variant)
    other.load_state_dict(method.state_dict())
    other.recall({name: t.clone() for name, t in method.memory().items()})
    assert torch.equal(other(features).map, few_shot.map)
    assert torch.equal(other(features).score, few_shot.score)
    with pytest.raises(ValueError, match="memory"):
        other.recall({"something else": torch.ones(2, 3)})
    method.recall({})
    assert torch.equal(method(features).map, zero_shot.map) and method.memory() == {}
