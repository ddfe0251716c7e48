"""APRIL-GAN against plain loops, its counts, its memory of normal images, and its authors' files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import CONFIG, SIZE, encode, make, make_clip, pick, target

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import build
from blemish.methods.official import read_official, recognise, to_official, write_official
from blemish.parts.prompt_bank import BANKS

LAYERS = (1, 2, 3, 4)


@pytest.fixture
def method(clip: CLIP) -> Any:
    made = make(clip, ("april_gan", {}))
    made.reset(torch.Generator().manual_seed(2))
    return made


def texts(clip: CLIP, name: str) -> list[torch.Tensor]:
    found = []
    for sentences in BANKS["april35"].sentences(name):
        rows = F.normalize(clip.encode_text(clip.tokenizer(sentences, 77)), dim=-1)  # type: ignore[misc]
        found.append(F.normalize(rows.mean(dim=0), dim=0))
    return found


def softmax_pair(normal: float, abnormal: float) -> float:
    return 1 / (1 + math.exp(100 * (normal - abnormal)))


@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, method: Any) -> None:
    features = encode(clip, method, 2)
    found = method(features, ["metal_nut", "metal nut"])
    normal, abnormal = texts(clip, "metal nut")
    for image in range(2):
        feature = features.class_feature[image]
        cosines = [float(F.cosine_similarity(feature, t, dim=0)) for t in (normal, abnormal)]
        assert float(found.score[image]) == pytest.approx(softmax_pair(*cosines), abs=1e-4)
        total = torch.zeros(SIZE)
        for layer, tokens in enumerate(features.tokens["qk"]):
            head = method.heads.fc[layer]
            small = torch.zeros(1, 2, *features.grid)
            for n in range(tokens.shape[1] - 1):
                patch = head.weight @ tokens[image, 1 + n] + head.bias
                place = divmod(n, features.grid[1])
                for k, text in enumerate((normal, abnormal)):
                    small[0, k][place] = 100 * F.cosine_similarity(patch, text, dim=0)
            large = F.interpolate(small, size=SIZE, mode="bilinear", align_corners=True)
            total += large.softmax(dim=1)[0, 1]
        torch.testing.assert_close(found.map[image], total, atol=1e-3, rtol=0)


def test_parameters_on_the_papers_backbone() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig())
    method = build("april_gan", large)
    assert sum(p.numel() for p in method.parameters()) == 3_148_800
    assert method.blocks == (6, 12, 18, 24)


def test_image_score_is_untrained(clip: CLIP, method: Any) -> None:
    features = encode(clip, method, 2)
    with torch.no_grad():
        before = method(features)
        method.reset(torch.Generator().manual_seed(5))
        after = method(features)
    assert torch.equal(before.score, after.score) and not torch.equal(before.map, after.map)


def test_loss_is_focal_plus_dice_of_every_layer(clip: CLIP, method: Any) -> None:
    features, truth = encode(clip, method, 2), target(2)
    assert truth.mask is not None
    with torch.no_grad():
        terms = method.loss(features, truth)
    assert list(terms) == [f"{kind}.{layer}" for layer in LAYERS for kind in ("focal", "dice")]
    with torch.no_grad():
        text = method.texts.per_image(None, 2)
        logits = method.patch_logits(features, text)[1]
        small = logits.transpose(1, 2).reshape(2, 2, *features.grid)
        maps = F.interpolate(small, size=SIZE, mode="bilinear", align_corners=True).softmax(dim=1)
        p, y = maps[:, 1].double(), truth.mask.double()
        of_target = torch.where(y > 0.5, p, 1 - p)
        focal = -(((1 - of_target) ** 2) * of_target.clamp_min(1e-6).log()).mean()
        dice = (
            sum(1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, y, strict=True)) / 2
        )
    assert float(terms["focal.2"]) == pytest.approx(float(focal), abs=2e-3)
    assert float(terms["dice.2"]) == pytest.approx(float(dice), abs=1e-5)


def test_exact_gelu_on_openai_weights_only() -> None:
    for source, activation, wanted in (
        ("openai", "auto", "gelu"),
        ("random", "auto", "native"),
        ("openai", "native", "native"),
    ):
        clip = make_clip(replace(CONFIG, source=source))
        method = make(clip, ("april_gan", {"activation": activation}))
        assert method.needs.activation == wanted and method.texts.activation == wanted


@torch.no_grad()
def test_few_shot_map_against_a_plain_loop(clip: CLIP, method: Any) -> None:
    normals, features = encode(clip, method, 2, seed=1), encode(clip, method, 2)
    zero_shot = method(features)
    method.remember(normals)
    found = method(features)
    total = torch.zeros(2, *SIZE)
    for tokens, references in zip(features.tokens["qk"], normals.tokens["qk"], strict=True):
        bank = references[:, 1:].flatten(0, 1)
        small = torch.empty(2, 1, *features.grid)
        for image in range(2):
            for n, patch in enumerate(tokens[image, 1:]):
                nearest = max(float(F.cosine_similarity(patch, row, dim=0)) for row in bank)
                small[image, 0][divmod(n, features.grid[1])] = 1 - nearest
        total += F.interpolate(small, size=SIZE, mode="bilinear", align_corners=True)[:, 0]
    torch.testing.assert_close(found.map, zero_shot.map + total, atol=4e-3, rtol=0)
    expected = (zero_shot.score + found.map.flatten(1).amax(1) / 8) / 2
    torch.testing.assert_close(found.score, expected, atol=1e-5, rtol=0)
    assert zero_shot.details["text_score"].equal(found.details["text_score"])


@torch.no_grad()
def test_remembered_images_add_nothing_to_their_own_map(clip: CLIP, method: Any) -> None:
    features = encode(clip, method, 2)
    zero_shot = method(features).map
    method.remember(features)
    torch.testing.assert_close(method(features).map, zero_shot, atol=1e-3, rtol=0)


def test_map_range_grows_with_a_memory(clip: CLIP) -> None:
    for options, low, high in (({}, 4.0, 8.0), ({"layer_reduction": "mean"}, 1.0, 2.0)):
        method = make(clip, ("april_gan", options))
        assert method.map_range == (0.0, low)
        method.remember(encode(clip, method, 1))
        assert method.map_range == (0.0, high)
        method.recall({})
        assert method.map_range == (0.0, low)


@torch.no_grad()
def test_minmax_scales_by_the_images_surveyed(clip: CLIP) -> None:
    method = make(clip, ("april_gan", {"preset": "transductive"}))
    features = encode(clip, method, 5)
    assert not method.surveys
    method.remember(encode(clip, method, 2, seed=1))
    assert method.surveys
    method.survey(pick(features, [0, 1]), ["nut"] * 2)
    method.survey(pick(features, [2, 3, 4]), ["nut"] * 3)
    found = method(features, ["nut"] * 5)
    peaks = found.map.flatten(1).amax(1)
    scaled = (peaks - peaks.min()) / (peaks.max() - peaks.min())
    torch.testing.assert_close(found.score, (found.details["text_score"] + scaled) / 2, atol=1e-5, rtol=0)
    method.forget_survey()
    fixed = method(features, ["nut"] * 5)
    torch.testing.assert_close(fixed.score, (found.details["text_score"] + peaks / 8) / 2, atol=1e-5, rtol=0)


def test_authors_file_there_and_back(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = tmp_path / "epoch_15.pth"
    tensors = {
        f"fc.{i}.{k}": t
        for i in range(4)
        for k, t in (("weight", torch.randn(28, 36)), ("bias", torch.randn(28)))
    }
    torch.save({"trainable_linearlayer": tensors}, path)
    info = recognise(path)
    assert info is not None and (info.method, info.vision_width, info.values) == (
        "april_gan",
        36,
        4 * 28 * 37,
    )
    made = read_official(path, clip)
    assert not made.training
    for name, tensor in tensors.items():
        assert torch.equal(made.state_dict()[f"heads.{name}"], tensor)
    write_official(made, tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert (
        again.keys() == {"trainable_linearlayer"} and again["trainable_linearlayer"].keys() == tensors.keys()
    )
    assert all(torch.equal(again["trainable_linearlayer"][k], t) for k, t in tensors.items())


def test_released_sizes_name_the_papers_backbone() -> None:
    flat: dict[str, torch.Tensor] = {}
    for i in range(4):
        flat |= {f"fc.{i}.weight": torch.zeros(768, 1024), f"fc.{i}.bias": torch.zeros(768)}
    info = recognise({"trainable_linearlayer": flat})
    assert info is not None and info.backbone == "ViT-L-14-336" and info.values == 3_148_800


@pytest.mark.parametrize("change", ["surplus group", "surplus", "missing", "shape"])
def test_files_of_another_kind_are_not_taken(method: Any, change: str) -> None:
    content: dict[str, Any] = to_official(method)
    layers = content["trainable_linearlayer"]
    if change == "surplus group":
        content["optimizer"] = {"state": torch.ones(2)}
    elif change == "surplus":
        layers["fc.4.gain"] = torch.ones(2)
    elif change == "missing":
        del layers["fc.2.bias"]
    else:
        layers["fc.0.weight"] = torch.ones(28)
    assert recognise(content) is None


def test_files_that_do_not_fit_are_refused(clip: CLIP, method: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_official(method, path)
    with pytest.raises(BadCheckpoint, match="heads for 4 layers, the option layers names 2"):
        read_official(path, clip, layers=(2, 4))
    other = make_clip(replace(CONFIG, vision=replace(CONFIG.vision, width=40)))
    with pytest.raises(BadCheckpoint, match="image width 36"):
        read_official(path, other)
    joint = make_clip(replace(CONFIG, embed_dim=30))
    with pytest.raises(BadCheckpoint, match=r"\(28, 36\), expected \(30, 36\)"):
        read_official(path, joint)


@pytest.mark.parametrize(
    "options", [{"prompts": "april36"}, {"temperature": 0.0}, {"few_shot_score": "max"}, {"sigma": -1.0}]
)
def test_impossible_options(clip: CLIP, options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        build("april_gan", clip, **options)
