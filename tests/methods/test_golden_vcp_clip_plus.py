"""VCP-CLIP+ against everything the authors' program returned; see tests/golden/vcp_clip_plus/README.md."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from blemish.clip.model import DeepPrompts
from blemish.methods import build
from blemish.methods.official import from_official
from blemish.methods.official_vcp import learned
from blemish.methods.vcp_clip_plus import VCPCLIPPlus
from blemish.parts.losses import dice, focal
from blemish.parts.maps import to_grid, upsample_then_softmax
from blemish.parts.prompts import fill
from blemish.types import Target
from golden_data import Golden, Tensors, expected_names, load

SET = "vcp_clip_plus"
STATES = ("normal", "abnormal")
# Zero in exact arithmetic; what is stored is rounding noise, and so is the direction of the steps.
ZERO_GRADIENT = ("Zero_try.k_proj_pre_1.bias", "prompt_token_embedding.projector.bias")
VARIANTS = ("uniop_resoftmax", "no_idp", "learned_temperature", "fusion_075", "fusion_080")


def left_out(name: str) -> bool:
    """Region overlap (AUPRO) belongs to the metrics; everything else in the set is compared here."""
    return name.endswith("metric.pixel_aupro")


def make(golden: Golden, **options: Any) -> VCPCLIPPlus:
    config = golden.config
    known = {key: value for key, value in config["options"].items() if key != "image_score_top_k"}
    fixed = {
        "layers": config["vision"]["used_layers"],
        "deep_tokens": config["deep_prompt_len"],
        "heads": config["post_vcp_heads"],
        "top_k": config["options"]["image_score_top_k"],
        "dropout": config["train"]["deep_prompt_dropout"],
    }
    method = build(SET, golden.clip, **(known | fixed | options))
    from_official(method, golden.method)
    return method


def variant(golden: Golden, name: str) -> VCPCLIPPlus:
    """A method with the options that a variant has in `config.json`."""
    settings = dict(golden.config["variants"][name])
    if name == "no_idp":
        return make(golden, idp=False, category_tokens=settings["class_tokens"])
    if name != "learned_temperature":
        return make(golden, **{key: value for key, value in settings.items() if key != "code"})
    method = make(golden, temperature="learnable")
    with torch.no_grad():
        method.log_scale.fill_(settings["log_inverse_temperature_base"])
        method.post_log_scale.fill_(settings["log_inverse_temperature_post"])
    return method


def target(golden: Golden) -> Target:
    return Target(golden.inputs["label"], (golden.inputs["mask"][:, 0] > 0.5).float())


@lru_cache(maxsize=1)
def actual() -> Tensors:
    """Our value of every expected tensor, those of the variants under their prefix."""
    golden = load(SET)
    method = make(golden).eval()
    with torch.no_grad():
        features = golden.clip.encode_image(golden.inputs["image"], method.needs)
        found: Tensors = dict(vision(method, features)) | dict(inside(method, features))
        found |= dict(idp(method, features)) | dict(final(golden, method, features))
        for key, options in {
            "raw_k1": {"top_k": 1},
            "raw_k37": {"scale_top_k": True},
            "fused_max": {"image_score_source": "fused", "top_k": 1},
        }.items():
            found[f"final.image_score_{key}"] = make(golden, **options).eval()(features).score
    found |= dict(train(golden, make(golden, temperature="learnable"), features))
    found |= branch_losses(golden, features) | trajectory(golden, features)
    for name in VARIANTS:
        method = variant(golden, name).eval()
        with torch.no_grad():
            inner = dict(inside(method, features)) | dict(final(golden, method, features))
        if name == "no_idp":
            method = make(golden, idp=False, temperature="learnable")
            image = features.class_feature
            inner["pre_vcp.class_tokens"] = method.category_tokens(image).detach()
            inner["pre_vcp.mininet"] = method.mini_net(image[:, None]).detach()
        if name in ("no_idp", "uniop_resoftmax"):
            inner |= dict(train(golden, method, features))
        found |= {f"variant.{name}.{key}": value for key, value in inner.items()}
    return found


def vision(method: VCPCLIPPlus, features: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield "vision.pos_embed", method.clip.visual.positions(features.grid, method.needs.position_resize)
    yield "vision.cls_feature", features.class_feature
    for block, tokens in zip(method.blocks, features.tokens["qk"], strict=True):
        yield f"vision.tokens.{block}", tokens


def idp(method: VCPCLIPPlus, features: Any) -> Iterator[tuple[str, torch.Tensor]]:
    count, part = len(features), method.idp
    yield "idp.summary", part.summary(part.tokens.T)[:, 0].expand(count, -1)
    yield "idp.normed", part.offset().expand(count, -1)
    yield "idp.token", part(features.class_feature)[:, 0]


def inside(method: VCPCLIPPlus, features: Any) -> Iterator[tuple[str, torch.Tensor]]:
    clip, category = method.clip, method.category_tokens(features.class_feature)
    yield "text.embeddings", method.text_features(category)
    # The whole context, where the method itself stops at the end of the text.
    length = clip.config.text.context_length - method.config.deep_tokens
    prompts = torch.stack([fill(clip, t, category, length) for t in method.templates], dim=1)
    deep = DeepPrompts(list(method.deep_projection(method.deep_prompts)), insert=True)
    trace: Tensors = {}
    clip.encode_embeddings(
        prompts.flatten(0, 1),
        method.templates[0].eot,
        deep=deep,
        final_norm=method.prompt_norm,
        activation=method.activation,
        crop=False,
        trace=trace,
    )
    names = {
        "block1_input": "block1_input",
        "last_block": f"block{clip.config.text.layers}_output",
        "final_norm": "prompt_norm",
    }
    for ours, theirs in names.items():
        for i, state in enumerate(STATES):
            yield f"text.{theirs}.{state}", trace[ours].unflatten(0, (-1, 2))[:, i]


def final(golden: Golden, method: VCPCLIPPlus, features: Any) -> Iterator[tuple[str, torch.Tensor]]:
    prediction = method(features)
    details, weight = prediction.details, method.fusion_weight()
    for i, block in enumerate(method.blocks):
        maps = {}
        for branch in ("base", "post"):
            logits = details[f"{branch}_logits"][i]
            maps[branch] = upsample_then_softmax(logits, features.grid, features.image_size)[:, 1]
            yield f"{branch}.logits.{block}", to_grid(logits, features.grid)
            yield f"{branch}.map.{block}", maps[branch]
        yield f"fused.map.{block}", weight * maps["post"] + (1 - weight) * maps["base"]
        yield f"post.text.{block}", details["post_text"][i]
        yield f"base.proj.{block}", details["projected"][i]
    for branch in ("base", "post"):
        yield f"{branch}.map.mean", details[f"{branch}_map"]
    normalized, score = scaled(prediction.map), scaled(prediction.score)
    yield "final.fused", details["map"]
    yield "final.smoothed", prediction.map
    yield "final.normalized", normalized
    yield "final.image_score_raw", prediction.score
    yield "final.image_score", score
    yield from metrics(golden, normalized, score)


def scaled(values: torch.Tensor) -> torch.Tensor:
    return (values - values.min()) / (values.max() - values.min())


def metrics(golden: Golden, maps: torch.Tensor, scores: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    label, mask = golden.inputs["label"].numpy(), target(golden).mask.flatten().numpy().astype(int)
    values = maps.flatten().numpy()
    best, threshold = f1_max(mask, values)
    predicted = values > threshold
    found = {
        "pixel_auroc": roc_auc_score(mask, values),
        "pixel_ap": average_precision_score(mask, values),
        "pixel_f1max": best,
        "best_threshold": threshold,
        "pixel_iou": (predicted & (mask == 1)).sum() / (predicted | (mask == 1)).sum(),
        "image_auroc": roc_auc_score(label, scores.numpy()),
        "image_ap": average_precision_score(label, scores.numpy()),
        "image_f1max": f1_max(label, scores.numpy())[0],
    }
    for name, value in found.items():
        yield f"metric.{name}", torch.tensor(float(value))


def f1_max(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / (precision + recall + 1e-8)
    return float(f1.max()), float(thresholds[f1[:-1].argmax()])


def train(golden: Golden, method: VCPCLIPPlus, features: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Loss terms without LoReb's weights, their weighted sum, and every gradient."""
    method.train()
    terms = method.loss(features, target(golden))
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    yield "train.loss", total.detach()
    for kind, weight in zip(("focal", "dice"), method.loss_weights(), strict=True):
        values = torch.stack([terms[f"{kind}.fused.{block}"] for block in method.blocks])
        yield f"train.{kind}", (values / weight).detach()
    yield "train.fused", torch.stack(method.training_maps(features)["fused"]).detach()
    yield "train.grad.beta", method.beta.grad.clone()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.copy_(parameter.grad if parameter.grad is not None else 0 * parameter)
    yield from ((f"train.grad.{name}", value.detach()) for name, value in learned(method).items())


def branch_losses(golden: Golden, features: Any) -> Tensors:
    """The eight terms without UniOp and LoReb, from `loss` itself and from the parts."""
    method = make(golden, uniop=False, loreb=False).train()
    truth = target(golden)
    terms = method.loss(features, truth)
    maps = method.training_maps(features)
    found = {}
    for branch in ("base", "post"):
        for kind in ("focal", "dice"):
            found[f"train.branch.{kind}.{branch}"] = torch.stack(
                [terms[f"{kind}.{branch}.{block}"].detach() for block in method.blocks]
            )
        assert torch.equal(terms[f"focal.{branch}.6"], focal(maps[branch][0], truth.mask))
        assert torch.equal(terms[f"dice.{branch}.6"], dice(maps[branch][0][:, 1], truth.mask))
    return found


def trajectory(golden: Golden, features: Any) -> Tensors:
    """The parts after one step, loss and weights over three, with the authors' rates."""
    method = make(golden).train()
    groups = method.parameter_groups()
    settings = golden.config["train"]
    assert sorted({g["lr"] for g in groups}) == sorted({g["lr"] for g in settings["param_groups"]})
    assert all(list(g["betas"]) == settings["betas"] for g in groups)
    optimizer = torch.optim.Adam(groups)
    path: dict[str, list[torch.Tensor]] = {"loss": [], "alpha": [], "beta": []}
    found = {}
    for step in range(settings["steps"]):
        optimizer.zero_grad()
        total = torch.stack(list(method.loss(features, target(golden)).values())).sum()
        total.backward()
        optimizer.step()
        path["loss"].append(total.detach())
        path["alpha"].append(method.alpha.detach().clone())
        path["beta"].append(method.beta.detach().clone())
        if step == 0:
            updated = learned(method) | {"beta": method.beta}
            found = {f"train.updated.{k}": v.detach().clone() for k, v in updated.items()}
    return found | {f"train.{name}_per_step": torch.stack(values) for name, values in path.items()}


@pytest.mark.parametrize("name", [n for n in expected_names(SET) if not left_out(n)])
def test_golden(name: str) -> None:
    expected, got = load(SET).expected[name], actual()[name]
    assert got.shape == expected.shape
    relative = 1e-4
    absolute = 5e-3 if name.endswith(("metric.pixel_iou", "metric.best_threshold")) else 1e-4
    if name.endswith(tuple(f"train.grad.{zero}" for zero in ZERO_GRADIENT)):
        relative = 0.0
    torch.testing.assert_close(got, expected, atol=absolute, rtol=relative)


@pytest.mark.parametrize("name", [n for n in expected_names(SET) if n.startswith("train.updated.")])
def test_golden_step(name: str) -> None:
    """The step itself, at the elements whose gradient is more than noise."""
    golden = load(SET)
    short = name.removeprefix("train.updated.")
    known = golden.expected[f"train.grad.{short}"].abs() > 1e-5
    got, expected = (values[name] - golden.method[short] for values in (actual(), golden.expected))
    torch.testing.assert_close(got[known], expected[known], atol=2e-6, rtol=0)


def test_nothing_else_is_left_out() -> None:
    assert [n for n in expected_names(SET) if left_out(n)] == [
        "metric.pixel_aupro",
        "variant.fusion_075.metric.pixel_aupro",
        "variant.fusion_080.metric.pixel_aupro",
    ]
    assert set(VARIANTS) == load(SET).config["variants"].keys()


def test_prompts_have_the_ids_of_the_specification() -> None:
    golden = load(SET)
    place = golden.config["token_ids"]["class_placeholder"]
    for state, prompt in zip(STATES, make(golden).templates, strict=True):
        ids = list(golden.config["token_ids"][state])
        assert list(prompt.ids) == [0 if i == place else i for i in ids]
        assert (prompt.start, prompt.count) == (ids.index(place), 1)
