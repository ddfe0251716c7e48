"""The towers against an independent CLIP, and the invariants of their options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.layers import resolve_layers
from blemish.clip.model import CLIP, DeepPrompts, resize_images
from blemish.clip.vision import resize_positions
from blemish.clip.weights import load_clip, save_clip
from blemish.data.transforms import preprocess
from blemish.types import FeatureSpec

SMALL = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=32, layers=4, heads=2, patch_size=8, image_size=32, mlp_width=64),
    text=TextConfig(width=24, layers=3, heads=2, mlp_width=48, context_length=20, vocab_size=50),
)


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(1)
    return CLIP(SMALL).reset_parameters().freeze()


def images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("patch", [4, 8])
def test_features_equal_transformers(tmp_path: Path, activation: str, patch: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.CLIPConfig(
        projection_dim=24,
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": 32, "patch_size": patch, "hidden_act": activation, "projection_dim": 24,
        },
        text_config={
            "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 60, "max_position_embeddings": 16, "hidden_act": activation, "projection_dim": 24,
            "eos_token_id": 59, "bos_token_id": 58,
        },
    )  # fmt: skip
    reference = transformers.CLIPModel(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    reference.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    pixels = images()
    ids = torch.tensor([[58, 4, 5, 6, 59, 0, 0, 0], [58, 7, 59, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        vision = reference.vision_model(pixels, output_hidden_states=True)
        expected_image = reference.visual_projection(vision.pooler_output)
        text = reference.text_model(input_ids=ids, attention_mask=None)
        expected_text = reference.text_projection(text.pooler_output)
        found = clip.encode_image(pixels, FeatureSpec(layers=(1, 2, 3), projected=False))
        close(found.class_feature, expected_image)
        for layer in (1, 2, 3):
            close(found.tokens["qk"][layer - 1], vision.hidden_states[layer])
        close(clip.encode_text(ids), expected_text)


def test_projected_tokens_and_class_feature(clip: CLIP) -> None:
    raw = clip.encode_image(images(), FeatureSpec(layers=(4,), projected=False, class_ln_post=False))
    done = clip.encode_image(images(), FeatureSpec(layers=(4,), projected=True, class_ln_post=True))
    visual = clip.visual
    close(done.tokens["qk"][0], visual.ln_post(raw.tokens["qk"][0]) @ visual.proj)
    close(done.class_feature, done.tokens["qk"][0][:, 0])
    close(raw.class_feature, raw.tokens["qk"][0][:, 0] @ visual.proj)


def test_class_feature_does_not_depend_on_what_is_tapped(clip: CLIP) -> None:
    whole = clip.encode_image(images(), FeatureSpec(layers=(4,))).class_feature
    close(clip.encode_image(images(), FeatureSpec(layers=(1,))).class_feature, whole)
    streams = FeatureSpec(layers=(4,), streams=("vv", "qq", "kk"), stream_start=1)
    close(clip.encode_image(images(), streams).class_feature, whole)


def test_parallel_streams_follow_the_formula(clip: CLIP) -> None:
    spec = FeatureSpec(layers=(2, 3, 4), streams=("qk", "vv", "qq", "kk"), stream_start=3, projected=False)
    found = clip.encode_image(images(), spec)
    ordinary = clip.encode_image(images(), FeatureSpec(layers=(1, 2, 3, 4), projected=False)).tokens["qk"]
    for stream, row in {"qq": 0, "kk": 1, "vv": 2}.items():
        close(found.tokens[stream][0], ordinary[1])
        expected = ordinary[1]
        for tap, layer in enumerate((3, 4), start=1):
            block = clip.visual.transformer.blocks[layer - 1]
            x = block.ln_1(ordinary[layer - 2])
            parts = block.attn.split(x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias)
            same, value = parts[row], parts[2]
            weights = (same @ same.transpose(-1, -2) / same.shape[-1] ** 0.5).softmax(-1)
            expected = expected + block.attn.out_proj((weights @ value).transpose(1, 2).flatten(2))
            close(found.tokens[stream][tap], expected)


def test_stream_mlp_starts_at_the_second_block(clip: CLIP) -> None:
    spec = FeatureSpec(layers=(2, 3), streams=("vv",), stream_start=2, projected=False, stream_ffn=True)
    plain = FeatureSpec(layers=(2, 3), streams=("vv",), stream_start=2, projected=False)
    with_mlp, without = (clip.encode_image(images(), s).tokens["vv"] for s in (spec, plain))
    close(with_mlp[0], without[0])
    assert (with_mlp[1] - without[1]).abs().max() > 1e-3


def test_fractions_and_numbers_name_the_same_layers(clip: CLIP) -> None:
    numbers = clip.encode_image(images(), FeatureSpec(layers=(1, 2, 3, 4))).tokens["qk"]
    fractions = clip.encode_image(images(), FeatureSpec(layers=(0.25, 0.5, 0.75, 1.0))).tokens["qk"]
    assert all(torch.equal(a, b) for a, b in zip(numbers, fractions, strict=True))
    assert resolve_layers((0.25, 0.5, 0.75, 1.0), 24) == (6, 12, 18, 24)
    assert resolve_layers((0.25, 0.5, 0.75, 1.0), 12) == (3, 6, 9, 12)
    with pytest.raises(ValueError, match="5 does not exist in a tower of 4"):
        clip.encode_image(images(), FeatureSpec(layers=(5,)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "bicubic_antialias"])
def test_positions_resize_from_the_original_table(clip: CLIP, mode: str) -> None:
    table = clip.visual.positional_embedding
    assert torch.equal(resize_positions(table, (4, 4), mode), table)
    wide = clip.visual.positions((3, 7), mode)
    assert wide.shape == (22, 32)
    assert torch.equal(wide[0], table[0])
    clip.visual.positions((9, 2), mode)
    assert torch.equal(clip.visual.positions((3, 7), mode), wide)
    features = clip.encode_image(images(2, 24, 56), FeatureSpec(position_resize=mode))
    assert features.grid == (3, 7)
    assert features.tokens["qk"][0].shape == (2, 22, 24)


def test_cached_positions_follow_changed_weights(clip: CLIP) -> None:
    before = clip.visual.positions((5, 5), "bilinear").clone()
    with torch.no_grad():
        clip.visual.positional_embedding.add_(1.0)
    close(clip.visual.positions((5, 5), "bilinear"), before + 1, 1e-6)


def test_wrong_image_sizes_are_refused(clip: CLIP) -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        clip.encode_image(images(1, 30, 32))


def test_cropping_the_text_is_exact(clip: CLIP) -> None:
    embeddings = torch.randn(3, 20, 24, generator=torch.Generator().manual_seed(4))
    eot = torch.tensor([5, 9, 2])
    whole = clip.encode_embeddings(embeddings, eot, crop=False)
    close(clip.encode_embeddings(embeddings, eot), whole, 2e-6)
    for row in range(3):
        close(clip.encode_embeddings(embeddings[row : row + 1], int(eot[row])), whole[row : row + 1], 2e-6)


@pytest.mark.parametrize("insert", [False, True])
def test_deep_prompts_equal_a_plain_loop(clip: CLIP, insert: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    embeddings = torch.randn(2, 20, 24, generator=generator)
    tokens = [torch.randn(2, 24, generator=generator) for _ in range(3)]
    given = tokens if insert else [None, *tokens[1:]]
    found = clip.encode_embeddings(embeddings, 6, deep=DeepPrompts(given, insert=insert))
    x = embeddings + clip.positional_embedding
    if insert:
        x = torch.cat([x[:, :1], tokens[0].expand(2, -1, -1), x[:, 1:-2]], dim=1)
    for i, block in enumerate(clip.transformer.blocks):
        if i:
            x = x.clone()
            x[:, 1:3] = tokens[i]
        x = block(x, lambda t: t * torch.sigmoid(1.702 * t), causal=True)
    eot = 8 if insert else 6
    close(found, clip.ln_final(x[:, eot]) @ clip.text_projection, 2e-6)


def test_deep_prompts_are_checked(clip: CLIP) -> None:
    with pytest.raises(ValueError, match="block 1"):
        DeepPrompts([None], insert=True)
    with pytest.raises(ValueError, match="3 blocks"):
        clip.encode_embeddings(torch.zeros(1, 20, 24), 3, deep=DeepPrompts([None] * 4))


def test_activation_is_an_argument(clip: CLIP) -> None:
    native = clip.encode_image(images()).class_feature
    quick = clip.encode_image(images(), FeatureSpec(activation="quick_gelu")).class_feature
    exact = clip.encode_image(images(), FeatureSpec(activation="gelu")).class_feature
    assert torch.equal(native, quick)
    assert (native - exact).abs().max() > 1e-4


def test_batch_of_one_equals_batch_of_eight(clip: CLIP) -> None:
    spec = FeatureSpec(layers=(2, 4), streams=("qk", "vv"))
    eight = clip.encode_image(images(8), spec)
    one = clip.encode_image(images(8)[3:4], spec)
    close(one.class_feature, eight.class_feature[3:4])
    close(one.tokens["vv"][1], eight.tokens["vv"][1][3:4])


def test_the_largest_published_shape_builds_on_meta() -> None:
    with torch.device("meta"):
        clip = CLIP(CLIPConfig())
        features = clip.encode_image(torch.empty(2, 3, 518, 518), FeatureSpec(streams=("qk", "vv")))
    assert features.grid == (37, 37)
    assert features.tokens["vv"][0].shape == (2, 1370, 768)
    assert sum(p.numel() for p in clip.parameters()) == 427_944_193


def lite_clip() -> CLIP:
    config = CLIPConfig(
        embed_dim=16,
        vision=VisionConfig(32, 2, 2, 16, 64, 64, stem="lite"),
        text=SMALL.text,
    )
    torch.manual_seed(6)
    return CLIP(config).reset_parameters().freeze()


def test_the_lite_stem_stays_exact_in_half_precision(tmp_path: Path) -> None:
    clip = lite_clip()
    stem = {name: tensor.clone() for name, tensor in clip.visual.stem.state_dict().items()}
    save_clip(clip, tmp_path)
    loaded, moved = load_clip(tmp_path, dtype=torch.bfloat16), clip.to(torch.bfloat16)
    for half in (loaded, moved):
        found = half.visual.stem.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in stem.items())
        assert {p.dtype for n, p in half.named_parameters() if "stem" not in n} == {torch.bfloat16}
    first, second = (half.encode_image(images(1, 80, 48)).class_feature for half in (loaded, moved))
    assert first.dtype == torch.bfloat16 and torch.equal(first, second)


def test_lite_stem_gives_a_grid_of_sixteen_pixel_patches() -> None:
    clip = lite_clip()
    features = clip.encode_image(images(2, 80, 48))
    assert features.grid == (5, 3)
    assert torch.isfinite(features.tokens["qk"][0]).all()


def test_second_class_feature_is_the_unmodified_clips(clip: CLIP) -> None:
    pixels = images(height=48, width=56)
    odd = FeatureSpec(layers=(2, 4), projected=False, class_ln_post=False, activation="gelu")
    first = clip.encode_image(pixels, odd)
    both = clip.encode_image(pixels, replace(odd, class_size=32))
    assert first.plain_class_feature is None and both.plain_class_feature is not None
    assert torch.equal(both.class_feature, first.class_feature)
    assert torch.equal(both.tokens["qk"][0], first.tokens["qk"][0])
    close(both.plain_class_feature, clip.encode_image(resize_images(pixels, (32, 32))).class_feature)
    # An input of that size is taken as it is.
    same = clip.encode_image(images(), FeatureSpec(class_size=32))
    assert same.plain_class_feature is not None
    assert torch.equal(same.plain_class_feature, same.class_feature)
    with pytest.raises(ValueError, match="divisible by 8"):
        clip.encode_image(images(), FeatureSpec(class_size=20))
    with pytest.raises(ValueError, match="class_size is 0"):
        FeatureSpec(class_size=0)


@pytest.mark.parametrize("size", [(24, 40), (96, 64)])
def test_resized_inputs_are_near_those_of_the_file(size: tuple[int, int]) -> None:
    """Prepared at one size and resized, against prepared from the picture at once."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(60, 196, (9, 11, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((150, 130), Image.Resampling.BICUBIC))
    mean, std = SMALL.mean, SMALL.std
    first = torch.from_numpy(preprocess(picture, (72, 72), mean, std))[None]
    got = resize_images(first, size)
    expected = torch.from_numpy(preprocess(picture, size, mean, std))[None]
    # One grey value of 255 is about 0.015 here; resizing twice blurs by no more than two.
    assert (got - expected).abs().max() < 0.04 and (got - expected).abs().mean() < 0.008
    # The kernel is PIL's: the same picture, resized once, differs by its rounding (after each direction) alone.
    direct = torch.from_numpy(preprocess(picture, picture.shape[:2], mean, std))[None]
    assert (resize_images(direct, size) - expected).abs().max() < 1.1 / 255 / min(std)
    assert resize_images(got, size) is got
