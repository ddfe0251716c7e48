"""AnoVL against plain loops, and what its adaptation must not do."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, pick

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.detector import Detector, Setup
from blemish.errors import BadOption
from blemish.methods import build, make_config
from blemish.parts.prompt_bank import BANKS
from blemish.types import ImageFeatures


def unit(clip: CLIP, sentences: list[str]) -> torch.Tensor:
    return F.normalize(clip.encode_text(clip.tokenizer(sentences, 77)), dim=-1)  # type: ignore[misc]


def pair(clip: CLIP, name: str, bank: str = "anovl") -> list[torch.Tensor]:
    return [F.normalize(unit(clip, part).mean(dim=0), dim=0) for part in BANKS[bank].sentences(name)]


def abnormal(feature: torch.Tensor, texts: list[torch.Tensor]) -> float:
    n, a = (float(F.cosine_similarity(feature, text, dim=0)) for text in texts)
    return 1 / (1 + math.exp(n - a))


@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP) -> None:
    method = make(clip, ("ano_vl", {}))
    features = encode(clip, method, 2)
    got = method(features, ["metal_nut", "macaroni2"])
    rows, columns = features.grid
    for i, name in enumerate(("metal nut", "macaroni")):
        texts = pair(clip, name)
        torch.testing.assert_close(got.details["text_features"][i], torch.stack(texts))
        patches = features.tokens["vv"][0][i, 1:]
        values = [abnormal(p, texts) for p in patches]
        torch.testing.assert_close(got.details["patch_scores"][i], torch.tensor(values))
        smooth = torch.zeros(1, 1, rows, columns)
        for r in range(rows):
            for c in range(columns):
                around = [
                    values[min(max(r + dr, 0), rows - 1) * columns + min(max(c + dc, 0), columns - 1)]
                    for dr in (-1, 0, 1)
                    for dc in (-1, 0, 1)
                ]
                smooth[0, 0, r, c] = sum(around) / 9
        expected = F.interpolate(smooth, size=SIZE, mode="bilinear")[0, 0]
        torch.testing.assert_close(got.map[i], expected, atol=1e-5, rtol=0)
        views = features.view_class_features
        assert views is not None and views.shape[1] == 21
        scores = [abnormal(view, texts) for view in (features.class_feature[i], *views[i])]
        assert len(scores) == 22
        assert float(got.score[i]) == pytest.approx(sum(scores) / 22, abs=1e-5)


@torch.no_grad()
def test_local_features_only_add_value_value_attention_from_the_first_block_on(clip: CLIP) -> None:
    method = make(clip, ("ano_vl", {"views": 1}))
    images = torch.randn(1, 3, *SIZE)
    visual = clip.visual
    x, _ = visual.embed(images, "bicubic")
    local = x
    for block in visual.transformer.blocks:
        width, heads = x.shape[-1], block.attn.heads
        normed = block.ln_1(x)[0]
        weight, bias = block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :]
        value = (normed @ weight.T + bias).view(-1, heads, width // heads).transpose(0, 1)
        attention = (value @ value.transpose(1, 2) / math.sqrt(width // heads)).softmax(dim=-1)
        mixed = (attention @ value).transpose(0, 1).reshape(1, -1, width)
        local = local + block.attn.out_proj(mixed)
        x = block(x, torch.nn.functional.gelu if clip.config.activation == "gelu" else quick)
    expected = visual.ln_post(local) @ visual.proj
    got = clip.encode_image(images, method.needs)
    torch.testing.assert_close(got.tokens["vv"][0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.class_feature, (visual.ln_post(x) @ visual.proj)[:, 0])


def quick(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


@torch.no_grad()
def test_one_view_is_the_image_alone(clip: CLIP) -> None:
    method = make(clip, ("ano_vl", {"preset": "fast"}))
    features = encode(clip, method, 2)
    assert not method.needs.views and features.view_class_features is None
    got = method(features, ["nut", "nut"])
    assert float(got.score[1]) == pytest.approx(
        abnormal(features.class_feature[1], pair(clip, "nut")), abs=1e-5
    )


def test_textures_have_words_of_their_own(clip: CLIP) -> None:
    method = make(clip, ("ano_vl", {}))
    assert [method.bank_of(n) for n in ("carpet", "Wood", "screw")] == ["anovl_texture"] * 2 + ["anovl"]
    assert make(clip, ("ano_vl", {"domain": "texture"})).bank_of("screw") == "anovl_texture"
    assert make(clip, ("ano_vl", {"domain": "object"})).bank_of("wood") == "anovl"
    with torch.no_grad():
        torch.testing.assert_close(
            method.prototypes("wood"), torch.stack(pair(clip, "wood", "anovl_texture"))
        )
        assert method.sentences("wood").shape == (924, 28)


def tta(clip: CLIP, **options: Any) -> Any:
    return make(clip, ("ano_vl", {"tta_steps": 5, "views": 1} | options))


@pytest.mark.parametrize("adapter", ["text", "linear"])
def test_adaptation_by_hand(clip: CLIP, adapter: str) -> None:
    """Two steps of AdamW, written out."""
    method = tta(clip, tta_steps=2, adapter=adapter, tta_learning_rate=0.01, tta_seed=3)
    features = encode(clip, method, 1)
    patches = F.normalize(features.tokens["vv"][0][0, 1:], dim=-1)
    texts, sentences = method.prototypes("nut"), method.sentences("nut")
    outputs = 924 if adapter == "text" else 28
    generator = torch.Generator().manual_seed(3)
    bound = 28**-0.5
    learned = [
        torch.empty(shape).uniform_(-bound, bound, generator=generator).requires_grad_()
        for shape in ((outputs, 28), (outputs,))
    ]

    def mixed(x: torch.Tensor) -> torch.Tensor:
        out = F.normalize(x, dim=-1) @ learned[0].T + learned[1]
        return 0.5 * x + 0.5 * (out.tanh() @ sentences if adapter == "text" else out)

    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in learned]
    for step in (1, 2):
        noisy = patches + 0.055 * torch.randn(patches.shape, generator=generator)
        clean, dirty = ((F.normalize(mixed(x), dim=-1) @ texts.T).softmax(dim=-1) for x in (patches, noisy))
        entropy = -(clean * clean.log()).sum(dim=1).mean()
        labels = -(clean[:, 0].log().sum() + dirty[:, 1].log().sum()) / (2 * len(patches))
        gradients = torch.autograd.grad(entropy + 0.5 * labels, learned)
        with torch.no_grad():
            for p, g, (m, v) in zip(learned, gradients, moments, strict=True):
                p.mul_(1 - 0.01 * 0.01)
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.sub_(0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    expected = mixed(patches).detach()
    torch.testing.assert_close(method.adapted(patches, texts, sentences), expected, atol=1e-4, rtol=1e-3)
    got = method(features, ["nut"]).details["patch_scores"][0]
    torch.testing.assert_close(
        got, torch.tensor([abnormal(p, list(texts)) for p in expected]), atol=1e-5, rtol=0
    )


def test_adaptation_is_the_same_for_an_image_wherever_it_is(clip: CLIP) -> None:
    method = tta(clip, tta_learning_rate=0.05)
    features = encode(clip, method, 4)
    names = ["nut", "wood", "nut", "screw"]
    torch.manual_seed(1)
    together = method(features, names)
    torch.manual_seed(2)  # nothing depends on the global generator, nor moves it
    before = torch.get_rng_state()
    assert torch.equal(method(features, names).map, together.map)
    assert torch.equal(torch.get_rng_state(), before)
    for i in (3, 0, 2, 1):
        alone = method(pick(features, [i]), [names[i]])
        torch.testing.assert_close(alone.map[0], together.map[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.score[0], together.score[i])
    plain = make(clip, ("ano_vl", {"views": 1}))
    assert (plain(features, names).map - together.map).abs().max() > 1e-5
    torch.testing.assert_close(plain(features, names).score, together.score)
    other = tta(clip, tta_learning_rate=0.05, tta_seed=1)
    assert (other(features, names).map - together.map).abs().max() > 1e-6


def test_adaptation_changes_no_weight_and_leaves_no_gradient(clip: CLIP) -> None:
    method = tta(clip)
    features = encode(clip, method, 2)
    weights = {name: t.clone() for name, t in clip.state_dict().items()}
    tokens = features.tokens["vv"][0].clone()
    method.prototypes("object")
    text = method.sentences("object").clone()
    prediction = method(features)
    assert not prediction.map.requires_grad and not prediction.score.requires_grad
    assert all(torch.equal(t, weights[name]) for name, t in clip.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in clip.parameters())
    assert torch.equal(method.sentences("object"), text) and torch.equal(features.tokens["vv"][0], tokens)
    assert method.state_dict() == {} and list(method.parameters()) == []


def test_adaptation_under_inference_mode(clip: CLIP) -> None:
    """The detector's own way: features made in inference mode, texts first asked for there."""
    method = tta(clip)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        inside = method(clip.encode_image(images, method.needs), ["nut", "nut"])
        again = method(clip.encode_image(images, method.needs), ["nut", "nut"])
    outside = method(encode(clip, method, 2), ["nut", "nut"])
    assert torch.equal(inside.map, again.map)
    torch.testing.assert_close(inside.map, outside.map)
    detector = Detector(clip, method, Setup("ano_vl", "random", 24, class_name="nut"))
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    first, second = detector.predict(picture), detector.predict(picture)
    assert first.score == second.score and np.array_equal(first.map, second.map)


def test_pictures_are_seen_as_squares_on_request(clip: CLIP) -> None:
    plain, squares = make(clip, ("ano_vl", {})), make(clip, ("ano_vl", {"square_tiles": True}))
    setup = Setup("ano_vl", "random", 24, class_name="nut")
    assert Detector(clip, plain, setup).setup.tile is None
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    left, right = (
        Detector(clip, plain, setup).predict(picture[:, part]) for part in (slice(30), slice(20, 50))
    )
    found = Detector(clip, squares, setup).predict(picture)
    assert found.score == pytest.approx(max(left.score, right.score), abs=1e-6)
    np.testing.assert_allclose(found.map[:, :20], left.map[:, :20], atol=1e-5)
    np.testing.assert_allclose(found.map[:, 30:], right.map[:, 10:], atol=1e-5)
    assert (
        make_config("ano_vl", "paper_visa").square_tiles and not make_config("ano_vl", "paper").square_tiles
    )


def test_adaptation_lowers_its_own_loss(clip: CLIP) -> None:
    patches = F.normalize(torch.randn(15, 28, generator=torch.Generator().manual_seed(1)), dim=-1)
    entropies = []
    for steps in (1, 60):
        method = tta(clip, tta_steps=steps, tta_learning_rate=0.02, noise_weight=0.0)
        texts = method.prototypes("nut")
        logits = F.normalize(method.adapted(patches, texts, method.sentences("nut")), dim=-1) @ texts.T
        chance = logits.softmax(dim=-1)
        entropies.append(float(-(chance * chance.log()).sum(dim=1).mean()))
    assert entropies[1] < entropies[0]


def test_only_without_adaptation_can_it_be_exported(clip: CLIP) -> None:
    assert make(clip, ("ano_vl", {})).exportable == ""
    reason = make(clip, ("ano_vl", {"preset": "paper"})).exportable
    assert "tta_steps=5" in reason and "tta_steps=0" in reason


def test_features_and_adapter_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("ano_vl", large)
    assert method.needs.streams == ("vv",) and method.needs.stream_start == 1 and method.needs.class_ln_post
    assert method.needs.cacheable and make_config("ano_vl").tta_steps == 0


@torch.no_grad()
def test_wide_and_no_smoothing(clip: CLIP) -> None:
    plain = make(clip, ("ano_vl", {"smoothing": 1, "views": 1}))
    features = encode(clip, plain, 1)
    got = plain(features)
    values = got.details["patch_scores"].view(1, 1, *features.grid)
    torch.testing.assert_close(got.map[None], F.interpolate(values, size=SIZE, mode="bilinear"))
    wide = make(clip, ("ano_vl", {"smoothing": 9, "views": 1}))(features)
    assert wide.map.std() < got.map.std()
    single = ImageFeatures(features.class_feature, {"vv": (features.tokens["vv"][0][:, :2],)}, (1, 1), (8, 8))
    flat = make(clip, ("ano_vl", {}))(single).map
    assert flat.shape == (1, 8, 8) and flat.max() - flat.min() < 1e-6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tta_steps": -1}, "tta_steps"),
        ({"views": 5}, "views is 5; choose from 1, 22"),
        ({"smoothing": 2}, "smoothing is 2; expected an odd"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"adapter_weight": 1.5}, "adapter_weight is 1.5"),
        ({"adapter": "mlp"}, "adapter is 'mlp'"),
        ({"domain": "food"}, "domain is 'food'"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("ano_vl", **options)
