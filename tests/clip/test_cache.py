"""Cached features are those of the encoder, to the rounding of their storage, whoever built them and however."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_features import CLASS_ONLY, RAW, SECOND, SIZE, STREAMS, Loader, check_equal, encoded

from blemish.clip.cache import FeatureCache, resolved_spec
from blemish.clip.model import CLIP
from blemish.clip.weights import load_clip
from blemish.errors import BadImage, BadOption, OutputError, UnknownName
from blemish.types import FeatureSpec


@pytest.fixture(scope="module")
def clip(small_backbone: Path) -> CLIP:
    return load_clip(small_backbone)


@pytest.mark.parametrize("storage", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("spec", [FeatureSpec(), RAW, STREAMS, SECOND, CLASS_ONLY])
def test_cached_features_are_those_of_the_encoder(
    tmp_path: Path, clip: CLIP, spec: FeatureSpec, storage: str
) -> None:
    keys = list("abcdefg")
    cache = FeatureCache(tmp_path, clip, spec, SIZE, storage=storage, shard_images=3)
    cache.build(keys, Loader(keys), batch_size=2)
    wanted = ["f", "a", "f", "c"]
    found = cache.read(wanted)
    check_equal(found, encoded(clip, wanted, spec), storage)
    assert (found.plain_class_feature is None) == (spec.class_size is None)
    size = sum(path.stat().st_size for path in cache.folder.glob("*.shard"))
    assert 7 * cache.bytes_per_image <= size <= 7 * cache.bytes_per_image + 3 * 8192


def test_half_precision_weights_are_kept_exactly(tmp_path: Path, small_backbone: Path) -> None:
    clip = load_clip(small_backbone, dtype=torch.bfloat16)
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, storage="bf16")
    cache.build(["a", "b"], Loader("ab"))
    found, expected = cache.read(["b", "a"]), encoded(clip, ["a", "b"], RAW)
    assert found.class_feature.dtype == torch.bfloat16
    for a, b in zip(found.tokens["qk"], expected.tokens["qk"], strict=True):
        assert torch.equal(a, b.flip(0))
    assert torch.equal(found.class_feature, expected.class_feature.flip(0))


def test_features_can_be_learned_from(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    cache.build(["a"], Loader("a"))
    weight = torch.ones(32, requires_grad=True)
    (cache.read(["a"]).tokens["qk"][0] @ weight).sum().backward()
    assert weight.grad is not None


def test_autocast_of_the_caller_does_not_change_the_values(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        cache.build(["a"], Loader("a"))
    check_equal(cache.read(["a"]), encoded(clip, ["a"], RAW), "fp16")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FeatureSpec(layers=(0.25, 0.5, 1.0)), FeatureSpec(layers=(1, 2, 4))),
        (FeatureSpec(layers=(1, 4)), FeatureSpec(layers=(4, 1, 1))),
        (FeatureSpec(streams=("qk", "vv")), FeatureSpec(streams=("vv", "qk"))),
        (FeatureSpec(), FeatureSpec(stream_start=0.5, stream_ffn=True)),
        (FeatureSpec(streams=("vv",), stream_start=0.5), FeatureSpec(streams=("vv",), stream_start=2)),
        (FeatureSpec(), FeatureSpec(activation="quick_gelu")),
        (FeatureSpec(streams=()), FeatureSpec(streams=(), layers=(1,), projected=False, stream_start=3)),
    ],
)
def test_specifications_that_mean_the_same_share_a_cache(
    tmp_path: Path, clip: CLIP, one: FeatureSpec, other: FeatureSpec
) -> None:
    first, second = (FeatureCache(tmp_path, clip, spec, SIZE) for spec in (one, other))
    assert first.folder == second.folder
    first.build(["a", "b"], Loader("ab"))
    loader = Loader("ab")
    second.build(["a", "b"], loader)
    assert not loader.calls
    check_equal(second.read(["b"]), encoded(clip, ["b"], other), "fp16")


def test_everything_that_decides_the_values_has_a_cache_of_its_own(
    tmp_path: Path, clip: CLIP, small_backbone: Path
) -> None:
    other = load_clip(small_backbone)
    other.visual.ln_post.weight.data += 1
    other.fingerprint = ""
    half = load_clip(small_backbone, dtype=torch.bfloat16)
    vv = FeatureSpec(streams=("vv",))
    specs: list[tuple[CLIP, FeatureSpec, int, str]] = [
        (clip, FeatureSpec(), SIZE, "fp16"),
        (other, FeatureSpec(), SIZE, "fp16"),
        (half, FeatureSpec(), SIZE, "fp16"),
        (clip, FeatureSpec(), 48, "fp16"),
        (clip, FeatureSpec(), SIZE, "int8"),
        (clip, FeatureSpec(layers=(1,)), SIZE, "fp16"),
        (clip, FeatureSpec(projected=False), SIZE, "fp16"),
        (clip, FeatureSpec(class_ln_post=False), SIZE, "fp16"),
        (clip, FeatureSpec(position_resize="bilinear"), SIZE, "fp16"),
        (clip, FeatureSpec(activation="gelu"), SIZE, "fp16"),
        (clip, FeatureSpec(class_size=32), SIZE, "fp16"),
        (clip, vv, SIZE, "fp16"),
        (clip, dataclasses.replace(vv, stream_start=3), SIZE, "fp16"),
        (clip, dataclasses.replace(vv, stream_ffn=True), SIZE, "fp16"),
    ]
    folders = [FeatureCache(tmp_path, c, spec, s, storage=st).folder for c, spec, s, st in specs]
    assert len(set(folders)) == len(specs)
    assert {folder.parent for folder in folders} == {tmp_path}


def test_every_field_of_a_specification_is_accounted_for(clip: CLIP) -> None:
    """A new field that is left out of the name of a cache would give one method another's features."""
    described = FeatureCache(Path("unused"), clip, FeatureSpec(), SIZE)._describe()["spec"]
    assert set(described) == {f.name for f in dataclasses.fields(FeatureSpec)} - {"cacheable"}
    assert resolved_spec(FeatureSpec(), clip) == resolved_spec(resolved_spec(FeatureSpec(), clip), clip)


def test_only_what_is_missing_is_computed(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE, shard_images=2)
    assert cache.missing(list("abcab")) == [0, 1, 2, 3, 4]
    loader = Loader("abcab")
    cache.build(list("abcab"), loader)
    assert loader.calls == Counter("abc")
    assert cache.missing(list("abcd")) == [3]
    seen: list[tuple[int, int]] = []
    loader = Loader("dacbe")
    cache.build(list("dacbe"), loader, batch_size=1, on_progress=lambda *done: seen.append(done))
    assert loader.calls == Counter("de")
    assert seen == [(1, 2), (2, 2), (2, 2)]
    again = FeatureCache(tmp_path, clip, RAW, SIZE)
    assert again.missing(list("abcde")) == []
    check_equal(again.read(list("edcba")), encoded(clip, list("edcba"), RAW), "fp16")


def test_features_that_are_not_finite_are_refused(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(BadImage, match="image a: NaN or infinity"):
        cache.build(["a"], lambda index: np.full((3, SIZE, SIZE), np.nan, np.float32))
    assert cache.missing(["a"]) == [0]


def test_inputs_of_another_size_are_refused(tmp_path: Path, clip: CLIP) -> None:
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(ValueError, match=r"\(3, 48, 48\).*expected \(3, 40, 40\)"):
        cache.build(["a"], lambda index: np.zeros((3, 48, 48), np.float32))


def test_impossible_wishes_are_refused(tmp_path: Path, clip: CLIP) -> None:
    with pytest.raises(BadOption, match="cannot be cached"):
        FeatureCache(tmp_path, clip, FeatureSpec(cacheable=False), SIZE)
    with pytest.raises(UnknownName, match="fp16"):
        FeatureCache(tmp_path, clip, RAW, SIZE, storage="fp8")
    for size in (0, -8, 41):
        with pytest.raises(BadOption, match="multiple of the patch size 8"):
            FeatureCache(tmp_path, clip, RAW, size)
    cache = FeatureCache(tmp_path, clip, RAW, SIZE)
    with pytest.raises(BadOption, match="batch_size"):
        cache.build(["a"], Loader("a"), batch_size=0)
    with pytest.raises(OutputError, match=r"does not hold image a .*run again"):
        cache.read(["a"])
    with pytest.raises(ValueError, match="no keys"):
        cache.read([])
    assert not list(tmp_path.iterdir())
