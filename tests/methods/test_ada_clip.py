"""AdaCLIP against plain loops, its clusters, its counts, and its authors' files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import CONFIG, SIZE, encode, make, make_clip, pick, target

from blemish.clip.config import CLIPConfig, TextConfig
from blemish.clip.model import CLIP, DeepPrompts
from blemish.errors import BadCheckpoint, BadOption
from blemish.methods import build, make_config
from blemish.methods.ada_clip import AdaCLIP, k_means
from blemish.methods.official import read_official, recognise, to_official, write_official
from blemish.parts.maps import gaussian_blur
from blemish.types import FeatureSpec, ImageFeatures, Target

FEW = {"abnormal_patches": 7, "clusters": 3}


@pytest.fixture
def method(clip: CLIP) -> Any:
    return make(clip, ("ada_clip", FEW))


def dynamic(linear: torch.nn.Linear, plain: torch.Tensor, count: int) -> list[torch.Tensor]:
    """`count` tokens of one image, each from rows of its own."""
    rows = linear.weight.shape[0] // count
    weights, biases = linear.weight.split(rows), linear.bias.split(rows)
    return [w @ plain + b for w, b in zip(weights, biases, strict=True)]


def plain_texts(clip: CLIP, method: AdaCLIP, plain: torch.Tensor, name: str) -> list[torch.Tensor]:
    """Both texts of one image, sentence by sentence."""
    found = []
    tokens = torch.stack(dynamic(method.dynamic_text, plain, 5))
    deep = DeepPrompts([None, *(static + tokens for static in method.static_text[1:])])
    for sentences in method.sentences(name):
        rows = []
        for sentence in sentences:
            ids = clip.tokenizer(sentence, 77)  # type: ignore[misc]
            row = clip.encode_embeddings(clip.embed(ids), int(ids[0].argmax()), deep=deep, crop=False)
            rows.append(row[0] / row[0].norm())
        mean = torch.stack(rows).mean(dim=0)
        found.append(mean / mean.norm())
    return found


def plain_fusion(
    method: AdaCLIP, patches: list[torch.Tensor], abnormal: list[float], clusters: list[int] | None
) -> torch.Tensor:
    """The clusters' vector of one image. patches: (N, D) per layer; clusters: of the chosen patches."""
    config = method.config
    chosen = sorted(range(len(abnormal)), key=lambda n: -abnormal[n])
    if config.fusion == "code":
        chosen = chosen[: config.abnormal_patches]
    points = torch.stack([torch.cat([layer[n] for layer in patches]) for n in chosen])
    labels = k_means(points[None], config.clusters)[0].tolist() if clusters is None else clusters
    centres, heights = [], []
    for k in sorted(set(labels)):
        members = [n for n, label in zip(chosen, labels, strict=True) if label == k]
        centres.append(torch.stack([layer[n] for layer in patches for n in members]).mean(dim=0))
        heights.append(sum(abnormal[n] for n in members) / len(members))
    if config.fusion == "paper":
        centres = [centres[max(range(len(centres)), key=lambda i: heights[i])]]
    mean = torch.stack(centres).mean(dim=0)
    return mean / mean.norm()


@pytest.mark.parametrize("fusion", ["code", "paper", "off"])
@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, fusion: str) -> None:
    method = make(clip, ("ada_clip", {**FEW, "fusion": fusion, "temperature": 0.05}))
    features = encode(clip, method, 2)
    got = method(features, ["metal_nut", "pill-box"])
    assert features.plain_class_feature is not None
    for i, name in enumerate(("metal nut", "pill box")):
        texts = torch.stack(plain_texts(clip, method, features.plain_class_feature[i], name))
        torch.testing.assert_close(got.details["text_features"][i], texts)
        patches, logits = [], []
        for head, tokens in zip(method.heads.fc, features.tokens["qk"], strict=True):
            patches.append(F.normalize(tokens[i, 1:] @ head.weight.T + head.bias, dim=-1))
            logits.append(patches[-1] @ texts.T / 0.05)
        mean = torch.stack(logits).mean(dim=0)
        large = F.interpolate(
            mean.T.reshape(1, 2, *features.grid), size=SIZE, mode="bilinear", align_corners=True
        )
        expected = gaussian_blur(large.softmax(dim=1)[:, 1], 4.0)[0]
        torch.testing.assert_close(got.map[i], expected, atol=1e-5, rtol=0)
        image = F.normalize(method.class_head(features.class_feature[i]), dim=0)
        if fusion != "off":
            image = 0.8 * image + 0.2 * plain_fusion(
                method, patches, mean.softmax(dim=1)[:, 1].tolist(), None
            )
        n, a = (float(image @ t / image.norm()) / 0.05 for t in texts)
        assert float(got.score[i]) == pytest.approx(1 / (1 + math.exp(n - a)), abs=1e-5)


def test_clusters_by_hand() -> None:
    line = torch.tensor([[0.0, 10.0, 1.0, 11.0, 30.0, 2.0]])[..., None]
    assert k_means(line, 3).tolist() == [[0, 2, 0, 2, 1, 0]]
    assert k_means(line, 1).tolist() == [[0] * 6]
    # The first centres are 0, 9 and 4; 4 takes 5 from 9 and moves to 4.5, then everything stays.
    assert k_means(torch.tensor([[[0.0], [9.0], [4.0], [5.0]]]), 3).tolist() == [[0, 1, 2, 2]]


def test_clusters_of_equal_points_stay_empty() -> None:
    points = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0], [1.0, 2.0]])
    assert k_means(points[None], 4).tolist() == [[0, 0, 1, 0]]
    assert k_means(points[None], 20).tolist() == [[0, 0, 1, 0]], "more clusters than points"


def test_clusters_are_the_same_in_any_batch_and_settled() -> None:
    points = torch.randn(4, 60, 8, generator=torch.Generator().manual_seed(0))
    together = k_means(points, 5)
    torch.manual_seed(99)
    for i in range(4):
        assert torch.equal(k_means(points[i : i + 1], 5)[0], together[i])
        centres = torch.stack([points[i][together[i] == k].mean(dim=0) for k in range(5)])
        own = (points[i] - centres[together[i]]).norm(dim=1)
        nearest = torch.cdist(points[i], centres).amin(dim=1)
        assert (own <= nearest + 0.3).all(), "no point is far nearer to another cluster"


@torch.no_grad()
def test_one_vector_for_equal_patches(clip: CLIP) -> None:
    """All patches alike: one cluster has points, the empty ones have no say."""
    method = make(clip, ("ada_clip", {}))
    unit = F.normalize(torch.randn(4, 1, 28, generator=torch.Generator().manual_seed(0)), dim=-1)
    patches = [layer.expand(15, -1)[None] for layer in unit]
    found = method._cluster_feature(patches, [torch.zeros(1, 15, 2)] * 4)
    torch.testing.assert_close(found[0], F.normalize(unit.mean(dim=0)[0], dim=0))


@torch.no_grad()
def test_encode_depends_on_the_image_alone(clip: CLIP, method: Any) -> None:
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    together = method.encode(images)
    for i in range(3):
        alone = method.encode(images[i : i + 1])
        for a, b in zip(alone.tokens["qk"], together.tokens["qk"], strict=True):
            assert a.shape == (1, 16, 36)
            torch.testing.assert_close(a[0], b[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(method(alone).score[0], method(together).score[i], atol=1e-5, rtol=0)
    plain = clip.encode_image(images, FeatureSpec(position_resize=method.config.position_resize))
    torch.testing.assert_close(together.plain_class_feature, plain.class_feature, atol=1e-5, rtol=1e-5)
    assert (together.class_feature - plain.class_feature).abs().max() > 1e-4


@torch.no_grad()
def test_prompts_of_the_image_tower_are_static_plus_dynamic(clip: CLIP, method: Any) -> None:
    plain = torch.randn(2, 28, generator=torch.Generator().manual_seed(6))
    prompts = method.visual_prompts(plain)
    assert len(prompts) == 4 and len(method.static_text) == 3, "as many as the towers have blocks"
    for static, found in zip(method.static_visual, prompts, strict=True):
        for i in range(2):
            expected = static + torch.stack(dynamic(method.dynamic_visual, plain[i], 5))
            torch.testing.assert_close(found[i], expected)


def test_features_made_without_the_prompts_are_refused(clip: CLIP, method: Any) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match=r"encode\(\)"):
        method(clip.encode_image(torch.zeros(1, 3, *SIZE), method.needs))
    assert not method.needs.cacheable


def gradients(clip: CLIP, options: dict[str, Any], truth: Target) -> set[str]:
    method = make(clip, ("ada_clip", {**FEW, **options})).train()
    terms = method.loss(encode(clip, method, 4, learning=True), truth)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is None for p in clip.parameters())
    unused = method.static_text.grad[0]
    assert not unused.any(), "the first text prompt is used by nobody, as in the authors' code"
    return {
        name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None and p.grad.any()
    }


def test_gradients_go_where_they_belong(clip: CLIP) -> None:
    prompts = {"static_visual", "static_text", "dynamic_visual", "dynamic_text"}
    label = Target(target(4).label)
    assert gradients(clip, {}, target(4)) == prompts | {"heads", "class_head"}
    assert gradients(clip, {}, label) == prompts | {"heads", "class_head"}, "through the clusters' centres"
    assert gradients(clip, {"fusion": "off"}, label) == prompts | {"class_head"}


@torch.no_grad()
def test_loss_terms(clip: CLIP, method: Any) -> None:
    features, truth = encode(clip, method, 4), target(4)
    terms = method.loss(features, truth)
    assert list(terms)[:4] == ["image", "focal.1", "dice_abnormal.1", "dice_normal.1"] and len(terms) == 13
    assert list(method.loss(features, Target(truth.label))) == ["image"]
    scores = method(features).score
    q = torch.where(truth.label == 1, scores, 1 - scores) * (1 - 2e-5) + 2e-5
    torch.testing.assert_close(terms["image"], -((1 - q) ** 2 * q.log()).mean(), atol=1e-5, rtol=1e-4)


def test_sizes_and_optimiser_of_the_paper() -> None:
    with torch.device("meta"):
        large = CLIP(CLIPConfig(source="openai"))
    method = build("ada_clip", large)
    assert sum(p.numel() for p in method.parameters()) == 10_665_472
    assert method.needs.activation == "gelu" and method.blocks == (6, 12, 18, 24)
    optimiser = method.optimiser(method.recipe["learning_rate"])
    assert isinstance(optimiser, torch.optim.AdamW)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.5, 0.999), 0.01)


def test_sentences(method: Any) -> None:
    normal, abnormal = method.sentences("hazelnut")
    assert (len(normal), len(abnormal)) == (28, 20)
    assert normal[0] == "a bad photo of a hazelnut."
    assert "a cropped photo of the broken hazelnut." in abnormal
    assert method.sentences("t-shirt_rack")[0][0] == "a bad photo of a t shirt rack."


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 1}, "depth"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"fusion_weight": 1.5}, "fusion_weight is 1.5"),
        ({"fusion": "on"}, "fusion"),
        ({"clusters": 0}, "clusters"),
    ],
)
def test_impossible_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadOption, match=text):
        make_config("ada_clip", **options)


DEEP = make_clip(
    CLIPConfig(
        embed_dim=CONFIG.embed_dim,
        vision=CONFIG.vision,
        text=TextConfig(width=20, layers=4, heads=2, mlp_width=40),
        source="random",
    )
)


def authors_content(length: int = 5) -> dict[str, torch.Tensor]:
    """The names and shapes of the authors' file for `DEEP`, with numbers of their own."""
    generator = torch.Generator().manual_seed(8)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):
        shapes[f"text_prompter.static_prompts.{i}"] = (length, 20)
        shapes[f"visual_prompter.static_prompts.{i}"] = (length, 36)
        shapes[f"patch_token_layer.head.{i}.weight"] = (28, 36)
        shapes[f"patch_token_layer.head.{i}.bias"] = (28,)
    shapes |= {"cls_token_layer.head.0.weight": (28, 28), "cls_token_layer.head.0.bias": (28,)}
    for kind, width in (("visual", 36), ("text", 20)):
        for i in range(length):
            shapes[f"dynamic_{kind}_prompt_generator.head.{i}.weight"] = (width, 28)
            shapes[f"dynamic_{kind}_prompt_generator.head.{i}.bias"] = (width,)
    return {f"clip_model.{name}": torch.randn(s, generator=generator) for name, s in shapes.items()}


@pytest.mark.parametrize("length", [5, 3])
def test_their_file_through_ours_and_back(length: int, tmp_path: Path) -> None:
    content, path = authors_content(length), tmp_path / "pretrained_mvtec_colondb.pth"
    torch.save(content, path)
    method = read_official(path, DEEP, "ada_clip")
    assert method.config.length == length and not method.training
    write_official(method, tmp_path / "written.pth")
    written = torch.load(tmp_path / "written.pth", weights_only=True)
    assert written.keys() == content.keys()
    assert all(torch.equal(written[name], value) for name, value in content.items())
    # Third token of the second image block: static row plus the third layer's output.
    plain = torch.randn(1, 28)
    with torch.no_grad():
        found = method.visual_prompts(plain)[1][0, 2]
    linear = "clip_model.dynamic_visual_prompt_generator.head.2"
    expected = content[f"{linear}.weight"] @ plain[0] + content[f"{linear}.bias"]
    expected = expected + content["clip_model.visual_prompter.static_prompts.1"][2]
    torch.testing.assert_close(found, expected)


def test_recognised_by_content(method: Any) -> None:
    info = recognise(authors_content())
    assert info is not None
    assert (info.method, info.text_width, info.vision_width) == ("ada_clip", 20, 36)
    assert info.options == {"depth": 4, "length": 5}
    with torch.device("meta"):
        large = build("ada_clip", CLIP(CLIPConfig(source="openai")))
    shapes = {name: torch.zeros((), device="meta").expand(t.shape) for name, t in _shapes(large).items()}
    named = recognise(shapes)
    assert named is not None and (named.backbone, named.values) == ("ViT-L-14-336", 10_665_472)


def _shapes(method: Any) -> dict[str, torch.Tensor]:
    from blemish.methods.official_ada import learned

    return learned(method)


def test_files_that_do_not_fit_are_refused(clip: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    content = authors_content()
    torch.save({k: v for k, v in content.items() if "cls_token" not in k}, path)
    with pytest.raises(BadCheckpoint, match="2 of 38 tensors are missing"):
        read_official(path, DEEP)
    torch.save(content | {"clip_model.patch_token_layer.head.4.bias": torch.zeros(28)}, path)
    with pytest.raises(BadCheckpoint, match="1 tensors have no place"):
        read_official(path, DEEP)
    torch.save(content, path)
    with pytest.raises(BadCheckpoint, match=r"no place in ada_clip.* 2 layers"):
        read_official(path, DEEP, layers=(1, 2))
    with pytest.raises(BadOption, match="depth is 2"):
        read_official(path, DEEP, depth=2)
    narrow = make_clip(
        CLIPConfig(embed_dim=28, vision=CONFIG.vision, text=TextConfig(width=16, layers=4, heads=2))
    )
    with pytest.raises(BadCheckpoint, match="text width 20"):
        read_official(path, narrow)


def test_ours_can_be_written_as_theirs() -> None:
    method = make(DEEP, ("ada_clip", {}))
    written = to_official(method)
    assert len(written) == 38 and all(isinstance(t, torch.Tensor) for t in written.values())
    assert sum(t.numel() for t in written.values()) == sum(p.numel() for p in method.parameters())


@torch.no_grad()
def test_part_of_a_batch(clip: CLIP, method: Any) -> None:
    features: ImageFeatures = encode(clip, method, 3)
    whole = method(features, ["nut", "screw", "nut"])
    part = method(pick(features, [2]), ["nut"])
    torch.testing.assert_close(part.score, whole.score[2:], atol=1e-5, rtol=0)
