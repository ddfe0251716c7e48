"""AA-CLIP against plain loops: adapters, both stages, losses, the scale of maps and scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import CONFIG, SIZE, encode, make, make_clip, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.layers import quick_gelu
from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import build, make_config, presets
from blemish.methods.aa_clip import Adapter
from blemish.types import Encodes, Scaled, Surveys, Target

GRID = (3, 5)
TEXT: dict[str, Any] = {"stage": "text"}
NORMAL = ("{}", "a {}", "the {}")
ABNORMAL = ("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage")


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def plain_adapter(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    a = x @ weight.T
    a = torch.where(a > 0, a, 0.01 * a)
    return 0.9 * x + 0.1 * a / a.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


def plain_texts(clip: CLIP, method: Any, name: str) -> torch.Tensor:
    """(2, D), sentence by sentence in the whole context."""
    found = []
    for states in (NORMAL, ABNORMAL):
        features = []
        for state in states:
            for sentence in ("{}.", "a photo of {}."):
                ids = clip.tokenizer(sentence.format(state.format(name)), 77)  # type: ignore[misc]
                x = clip.token_embedding(ids) + clip.positional_embedding
                for block, adapter in zip(
                    clip.transformer.blocks, [*method.text.adapters, None, None], strict=True
                ):
                    x = block(x, quick_gelu, causal=True)
                    x = x if adapter is None else plain_adapter(adapter.linear.weight, x)
                joint = clip.ln_final(x[0, ids[0].argmax()]) @ method.text.projection.weight.T
                features.append(F.normalize(torch.where(joint > 0, joint, 0.01 * joint), dim=0))
        found.append(F.normalize(torch.stack(features).mean(dim=0), dim=0))
    assert len(features) == 10
    return torch.stack(found)


def plain_levels(clip: CLIP, method: Any, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Unit patches per level (B, N, D) and the image's feature (B, D) of stage image, block by block."""
    visual, levels = clip.visual, []
    x, _ = visual.embed(x, "bicubic_antialias")
    adapters = [a.linear.weight for a in method.image.adapters]
    for i, block in enumerate(visual.transformer.blocks):
        x = block(x, quick_gelu)
        x = plain_adapter(adapters[i], x) if i < len(adapters) else x
        if i + 1 in method.blocks:
            head = method.image.heads.fc[method.blocks.index(i + 1)].weight
            levels.append(F.normalize(visual.ln_post(x[:, 1:]) @ head.T, dim=-1))
    detection = F.normalize(visual.ln_post(x[:, 1:]) @ method.image.detection.weight.T, dim=-1).mean(dim=1)
    return levels, detection


def plain_blur(grid: torch.Tensor, sigma: float, radius: int) -> torch.Tensor:
    """(rows, columns), borders mirrored with the edge repeated."""
    weights = [math.exp(-(k * k) / (2 * sigma**2)) for k in range(-radius, radius + 1)]

    def mirrored(i: int, n: int) -> int:
        i %= 2 * n
        return i if i < n else 2 * n - 1 - i

    out = torch.zeros_like(grid)
    rows, columns = grid.shape
    for y in range(rows):
        for x in range(columns):
            for dy, a in zip(range(-radius, radius + 1), weights, strict=True):
                for dx, b in zip(range(-radius, radius + 1), weights, strict=True):
                    value = grid[mirrored(y + dy, rows), mirrored(x + dx, columns)]
                    out[y, x] += value * a * b / sum(weights) ** 2
    return out


def plain_map(
    levels: list[torch.Tensor], texts: torch.Tensor, sigma: float = 1.0, radius: int = 3
) -> torch.Tensor:
    """One image's raw map: levels (N, D), texts (2, D)."""
    total = torch.zeros(SIZE)
    for patches in levels:
        normal, abnormal = (patches @ texts.T).T
        grid = ((100 * abnormal + 1 - 100 * normal) / 2).view(GRID)
        smooth = plain_blur(grid, sigma, radius)
        total += F.interpolate(smooth[None, None], size=SIZE, mode="bilinear", align_corners=True)[0, 0]
    return total


def curve(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return (values - low) / (high - low)


@torch.no_grad()
def test_stage_image_against_a_plain_loop(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {"image_adapters": 2}))
    assert len(method.image.adapters) == 2 and len(method.text.adapters) == 1
    got = method(method.encode(images()), ["metal_nut", "screw"])
    levels, detection = plain_levels(clip, method, images())
    for i, name in enumerate(("metal nut", "screw")):
        texts = plain_texts(clip, method, name)
        torch.testing.assert_close(got.details["text_features"][i], texts)
        raw = plain_map([level[i] for level in levels], texts)
        torch.testing.assert_close(got.details["raw_map"][i], raw, atol=2e-3, rtol=1e-4)
        score = (detection[i] @ texts[1] + 1) / 2
        torch.testing.assert_close(got.details["raw_score"][i], score)
        scaled = curve(raw, -38.0, 42.0)
        torch.testing.assert_close(got.map[i], torch.sigmoid(4 * scaled - 2), atol=1e-4, rtol=0)
        both = (scaled.max() + score) / 2
        torch.testing.assert_close(got.score[i], torch.sigmoid(4 * both - 2), atol=1e-4, rtol=0)


@torch.no_grad()
def test_stage_text_against_a_plain_loop(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {**TEXT, "stage1_levels": (2, 1.0), "vv_start": 2, "sigma": 0.0}))
    features = method.encode(images())
    got = method(features, ["screw"] * 2)
    visual = clip.visual
    x, _ = visual.embed(images(), "bicubic_antialias")
    plain, path, levels = x, x, []
    for number, block in enumerate(visual.transformer.blocks, start=1):
        plain = block(plain, quick_gelu)
        if number < 2:
            path = plain
        else:
            value = block.attn.qkv(block.ln_1(path))[2]
            path = block.feed_forward(path + block.attn.attend(value, value, value), quick_gelu)
        if number in (2, 4):
            levels.append(F.normalize(visual.ln_post(path[:, 1:]) @ visual.proj, dim=-1))
    whole = F.normalize(visual.ln_post(plain[:, 0]) @ visual.proj, dim=-1)
    texts = plain_texts(clip, method, "screw")
    for i in range(2):
        summed = [(level[i] + whole[i]) @ texts.T for level in levels]
        grids = [((100 * s[:, 1] + 1 - 100 * s[:, 0]) / 2).view(1, 1, *GRID) for s in summed]
        raw = sum(F.interpolate(g, size=SIZE, mode="bilinear", align_corners=True)[0, 0] for g in grids)
        torch.testing.assert_close(got.details["raw_map"][i], raw, atol=2e-3, rtol=1e-4)
        torch.testing.assert_close(got.details["raw_score"][i], (whole[i] @ texts[1] + 1) / 2)
    assert method.needs.cacheable and not make(clip, ("aa_clip", {})).needs.cacheable


@torch.no_grad()
def test_adapters_of_weight_0_leave_the_frozen_features(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {"adapter_weight": 0.0, "image_adapters": 1.0, "text_adapters": 1.0}))
    got = method.encode(images())
    plain = clip.encode_image(images(), method.needs)
    assert torch.equal(got.class_feature, plain.class_feature)
    assert all(torch.equal(a, b) for a, b in zip(got.tokens["qk"], plain.tokens["qk"], strict=True))
    assert len(method.image.adapters) == 4 and len(method.text.adapters) == 3
    ids = clip.tokenizer(["a damaged screw."], 77)  # type: ignore[misc]
    adapters = dict(enumerate(method.text.adapters, start=1))
    same = clip.encode_embeddings(clip.embed(ids), ids.argmax(dim=-1), adapters=adapters)
    assert torch.equal(same, clip.encode_text(ids))
    other = make(clip, ("aa_clip", {}))
    assert not torch.equal(other.encode(images()).tokens["qk"][0], plain.tokens["qk"][0])


def test_an_adapter_keeps_lengths_and_survives_zeros() -> None:
    torch.manual_seed(0)
    adapter, x = Adapter(6, 1.0), torch.randn(3, 4, 6)
    torch.testing.assert_close(adapter(x).norm(dim=-1), x.norm(dim=-1))
    torch.nn.init.zeros_(adapter.linear.weight)
    assert torch.isfinite(adapter(torch.zeros(2, 6))).all() and torch.isfinite(adapter(x)).all()
    assert adapter(x.bfloat16()).dtype == torch.bfloat16


def test_size_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("aa_clip", large)
    assert sum(p.numel() for m in (method.text, method.image) for p in m.parameters()) == 12_582_912
    assert sum(p.numel() for p in method.text.parameters()) == 4 * 768**2
    assert len(method.text.adapters) == 3 and len(method.image.adapters) == 6
    assert method.blocks == (6, 12, 18, 24) and build("aa_clip", large, stage="text").blocks == (24,)
    assert method.needs.position_resize == "bicubic_antialias"
    openai = make_clip(replace(CONFIG, source="openai"))
    assert make(openai, ("aa_clip", {})).needs.activation == "gelu"
    assert presets("aa_clip")["medical"] == {"kernel": 9, "sigma": 1.5, "image_score": "map"}


def plain_f2d(maps: torch.Tensor, mask: torch.Tensor) -> float:
    """maps (B, 2, H, W) double."""
    truth = torch.stack([1 - mask, mask], dim=1).clamp(1e-5, 1 - 1e-5)
    p = (truth * maps).sum(dim=1) + 1e-5
    total = float((-((1 - p) ** 2) * p.log()).mean())
    for m, g in ((maps[:, 1], mask), (maps[:, 0], 1 - mask)):
        for i in range(len(m)):
            total += float(1 - (2 * (m[i] * g[i]).sum() + 1) / (m[i].sum() + g[i].sum() + 1)) / len(m)
    return total


@pytest.mark.parametrize("options", [{}, TEXT], ids=str)
def test_loss_against_its_formula(clip: CLIP, options: dict[str, Any]) -> None:
    method = make(clip, ("aa_clip", options)).train()
    truth, names = target(4), ["nut", "screw", "nut", "nut"]
    features = encode(clip, method, 4, learning=True)
    terms = method.loss(features, truth, names)
    assert truth.mask is not None
    with torch.no_grad():
        text = method.text_features(names, 4)
        levels, image = method.products(features, text)
        expected = 0.0
        for patches in levels:
            logits = 100 * patches.double().transpose(1, 2).unflatten(2, GRID)
            large = F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=True)
            expected += plain_f2d(large.softmax(dim=1), truth.mask.double())
        last = "apart" if options else "image"
        local = sum(float(v.detach()) for name, v in terms.items() if name != last)
        assert local == pytest.approx(expected, rel=5e-3)
        if options:
            cosines = [float(text[i, 0] @ text[i, 1]) for i in range(4)]
            assert float(terms["apart"]) == pytest.approx(0.1 * (sum(cosines) / 4) ** 2, rel=1e-4)
        else:
            chosen = image.log_softmax(dim=-1)[range(4), truth.label]
            assert float(terms["image"].detach()) == pytest.approx(-float(chosen.mean()), rel=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    learned, still = (method.text, method.image) if options else (method.image, method.text)
    assert all(p.grad is not None and p.grad.any() for p in learned.parameters())
    assert all(p.grad is None for p in (*still.parameters(), *clip.parameters(), method.ranges))
    groups = [p for group in method.parameter_groups() for p in group["params"]]
    assert {id(p) for p in groups} == {id(p) for p in learned.parameters()}
    with pytest.raises(ValueError, match="masks"):
        method.loss(features, Target(truth.label), names)


def test_texts_are_encoded_once_when_they_are_learned_no_more(
    clip: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(clip, ("aa_clip", {})).train()
    plain, calls = type(clip).encode_embeddings, []

    def counted(self: CLIP, *given: Any, **more: Any) -> torch.Tensor:
        calls.append(1)
        return plain(self, *given, **more)

    monkeypatch.setattr(type(clip), "encode_embeddings", counted)
    features = encode(clip, method, 2, learning=True)
    with torch.inference_mode():
        method.text_features(["screw", "nut"], 2)
    for _ in range(3):
        sum(method.loss(features, target(2), ["screw", "nut"]).values()).backward(retain_graph=True)
    assert len(calls) == 4  # two classes, two states
    method.text.adapters[0].linear.weight.data.mul_(2)
    before = len(calls)
    method.train()
    method.text_features(["nut"], 1)
    assert len(calls) == before + 2


@torch.no_grad()
def test_the_scale_of_the_training_images(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {}))
    assert all(isinstance(method, ability) for ability in (Encodes, Scaled)) and not method.surveys
    first, second = encode(clip, method, 3), encode(clip, method, 2, seed=1)
    before = [method(f, ["nut"] * len(f)) for f in (first, second)]
    method.fit_scale([(first, ["nut"] * 3), (second, ["nut"] * 2)])
    raw_maps = torch.cat([p.details["raw_map"] for p in before])
    raw_scores = torch.cat([p.details["raw_score"] for p in before])
    expected = [[raw_maps.min(), raw_maps.max()], [raw_scores.min(), raw_scores.max()]]
    torch.testing.assert_close(method.ranges.data, torch.tensor(expected))
    after = method(first, ["nut"] * 3)
    low, high = torch.sigmoid(torch.tensor([-2.0, 2.0]))
    assert after.map.min() >= low - 1e-6 and after.map.max() <= high + 1e-6
    order = before[0].map.flatten().argsort()
    assert (after.map.flatten()[order].diff() >= -1e-6).all(), "pixels keep their order"
    alone = {kind: make(clip, ("aa_clip", {"image_score": kind})) for kind in ("map", "image")}
    for kind, other in alone.items():
        other.load_state_dict(method.state_dict())
        values = raw_maps.flatten(1).amax(dim=1) if kind == "map" else raw_scores
        low, high = expected[kind == "image"]
        got = other(first, ["nut"] * 3).score
        torch.testing.assert_close(got, torch.sigmoid(4 * (values[:3] - low) / (high - low) - 2))


@torch.no_grad()
def test_a_survey_sets_the_scale_of_its_class(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {"transductive_minmax": True}))
    assert all(isinstance(method, ability) for ability in (Surveys,)) and method.surveys
    features = encode(clip, method, 4)
    names = ["metal_nut", "metal_nut", "screw", "screw"]
    plain = method(features, names)
    method.survey(pick(features, [0, 2]), [names[0], names[2]])
    method.survey(pick(features, [1, 3]), [names[1], names[3]])
    got = method(features, names)
    for rows in ([0, 1], [2, 3]):
        raw, score = plain.details["raw_map"][rows], plain.details["raw_score"][rows]
        scaled = curve(raw, float(raw.min()), float(raw.max()))
        torch.testing.assert_close(got.map[rows], torch.sigmoid(4 * scaled - 2), atol=1e-5, rtol=0)
        both = scaled.flatten(1).amax(dim=1) / 2 + curve(score, float(score.min()), float(score.max())) / 2
        torch.testing.assert_close(got.score[rows], torch.sigmoid(4 * both - 2), atol=1e-4, rtol=0)
    assert method(features).map.shape == (4, *SIZE)  # a class that was not surveyed
    method.forget_survey()
    assert torch.equal(method(features, names).map, plain.map)


@torch.no_grad()
def test_medical_smoothing_and_heads_with_relu(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {"preset": "medical", "layers": (3,), "head_relu": True}))
    features = method.encode(images(1))
    got = method(features, ["liver"])
    levels, _ = plain_levels(clip, method, images(1))
    (unit,) = levels
    bent = F.normalize(torch.where(unit > 0, unit, 0.01 * unit), dim=-1)
    raw = plain_map([bent[0]], plain_texts(clip, method, "liver"), 1.5, 4)
    torch.testing.assert_close(got.details["raw_map"][0], raw, atol=2e-3, rtol=1e-4)
    highest = curve(raw.max(), -9.5, 10.5)
    torch.testing.assert_close(got.score[0], torch.sigmoid(4 * highest - 2), atol=1e-4, rtol=0)


def test_rates_are_halved_by_steps(clip: CLIP) -> None:
    method = make(clip, ("aa_clip", {}))
    steps = (0, 15_999, 16_000, 31_999, 32_000, 90_000)
    assert [method.rate_factor(0.5, 3, step) for step in steps] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert make(clip, ("aa_clip", TEXT)).rate_factor(0.9, 4, 40_000) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stage": "both"}, "stage is 'both'"),
        ({"adapter_weight": 1.5}, "adapter_weight is 1.5"),
        ({"kernel": 4}, "kernel is 4"),
        ({"sigma": -1.0}, "sigma"),
        ({"image_score": "mean"}, "image_score"),
        ({"prompts": "mine"}, "prompts"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("aa_clip", **options)


def test_layers_that_the_backbone_lacks(clip: CLIP) -> None:
    for options in ({"layers": (9,)}, {"stage1_levels": (9,)}, {"image_adapters": 9}, {"text_adapters": 9}):
        with pytest.raises(BadOption, match="layer 9 does not exist"):
            build("aa_clip", clip, **options)
