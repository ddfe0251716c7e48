"""Packed weights: the same products, and the plain weight whenever something else needs it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blemish
from blemish.clip import packed
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.layers import Attention
from blemish.clip.mapped import MappedFiles
from blemish.clip.model import CLIP
from blemish.clip.packed import Linear, Packable, can_pack, pack, unpack
from blemish.clip.weights import load_clip

here = pytest.mark.skipif(
    not can_pack(torch.zeros(16, 16)), reason="this processor or this PyTorch packs no weights"
)
TYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            not can_pack(torch.zeros(16, 16, dtype=dtype)), reason="weights of this type are not packed here"
        ),
    )
    for dtype in (torch.float32, torch.bfloat16)
]


def layer(dtype: torch.dtype = torch.float32) -> Linear:
    """A frozen layer with random weights."""
    torch.manual_seed(0)
    return Linear(48, 80).to(dtype).requires_grad_(False)


def is_packed(part: nn.Module) -> bool:
    """Whether all of its layers are packed."""
    found = [one.packed is not None for one in part.modules() if isinstance(one, Packable)]
    assert found
    return all(found)


@here
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 48), (37, 48), (2, 5, 48), (0, 48)])
@torch.no_grad()
def test_products_are_the_same(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    one = layer(dtype)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    plain, weight = one(x), one.weight.clone()
    pack(one)
    assert is_packed(one) and one.weight.is_meta and one.weight.shape == weight.shape
    found = one(x)
    assert is_packed(one) and found.shape == plain.shape and found.dtype == dtype
    torch.testing.assert_close(found, plain)
    unpack(one)
    assert torch.equal(one.weight, weight)
    assert torch.equal(one(x), plain)


@here
@torch.no_grad()
def test_attention_keeps_its_names() -> None:
    torch.manual_seed(0)
    one = Attention(32, 4).requires_grad_(False)
    nn.init.normal_(one.in_proj_weight)
    x = torch.randn(2, 9, 32)
    plain = one.attend(*one.qkv(x))
    before = {name: value.clone() for name, value in one.state_dict().items()}
    pack(one)
    assert is_packed(one)
    torch.testing.assert_close(one.attend(*one.qkv(x)), plain)
    after = one.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def by_gradient(one: Linear) -> None:
    x = torch.ones(1, 48, requires_grad=True)
    one(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], one.weight.sum(0))


def by_autocast(one: Linear) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert one(torch.ones(1, 48)).dtype == torch.bfloat16


def by_dtype(one: Linear) -> None:
    assert one.to(torch.float64).weight.dtype == torch.float64
    one.float()


NEEDS: dict[str, Callable[[Linear], object]] = {
    "gradients": by_gradient,
    "autocast": by_autocast,
    "to": by_dtype,
    "state_dict": lambda one: one.state_dict(),
    "load_state_dict": lambda one: one.load_state_dict(layer().state_dict()),
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
}


@here
@pytest.mark.parametrize("need", NEEDS)
def test_the_plain_weight_comes_back(need: str) -> None:
    one = layer()
    weight = one.weight.clone()
    pack(one)
    assert is_packed(one)
    NEEDS[need](one)
    assert not is_packed(one)
    assert torch.equal(one.weight, weight) and not one.weight.requires_grad


@here
def test_copies_have_the_weight() -> None:
    one = layer()
    pack(one)
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other.weight, one.weight)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 4, requires_grad=True),
        torch.zeros(4, 4, dtype=torch.float16),
        torch.zeros(4, 4, device="meta"),
        torch.zeros(4, 8).t(),
    ],
    ids=["learned", "fp16", "meta", "turned"],
)
def test_what_is_not_packed(weight: Tensor) -> None:
    one = Linear(4, 4).requires_grad_(False)
    one.weight = nn.Parameter(weight, requires_grad=weight.requires_grad)
    pack(one)
    assert one.packed is None


@here
@pytest.mark.parametrize(("flags", "dtypes"), [({"asimd"}, ()), ({"avx2"}, (torch.float32,))])
def test_only_processors_that_gain_pack(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], dtypes: tuple[torch.dtype, ...]
) -> None:
    monkeypatch.setattr(packed, "cpu_flags", lambda: frozenset(flags))
    for dtype in (torch.float32, torch.bfloat16):
        one = layer(dtype)
        pack(one)
        assert (one.packed is not None) is (dtype in dtypes)


@here
def test_without_the_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "OPERATORS", ("_no_such_operator",))
    one = layer()
    pack(one)
    assert one.packed is None


@here
def test_detectors_are_packed() -> None:
    detector = blemish.load("anomaly_clip", device="cpu", precision="fp32")
    assert is_packed(detector.clip.visual)
    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    found = detector.predict(image)
    assert is_packed(detector.clip.visual)
    count = sum(weight.numel() for weight in detector.clip.parameters())
    unpack(detector.clip)
    assert sum(weight.numel() for weight in detector.clip.parameters()) == count
    plain = detector.predict(image)
    assert found.score == pytest.approx(plain.score, abs=1e-5)
    np.testing.assert_allclose(found.map, plain.map, atol=1e-5)


def small_clip() -> CLIP:
    """Random weights."""
    torch.manual_seed(0)
    clip = CLIP(
        CLIPConfig(
            embed_dim=24,
            vision=VisionConfig(width=128, layers=3, heads=2, patch_size=8, image_size=32, mlp_width=80),
            text=TextConfig(width=64, layers=2, heads=1, mlp_width=48, context_length=12, vocab_size=40),
        )
    )
    for weight in clip.parameters():
        nn.init.normal_(weight, std=0.1)
    return clip


@here
@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", TYPES)
def test_weights_packed_while_read_are_those_read(
    stored: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    file = tmp_path / "clip.safetensors"
    save_file({name: one.to(stored) for name, one in small_clip().state_dict().items()}, file)
    plain = load_clip(file, dtype=dtype)
    quick = load_clip(file, dtype=dtype, packed=True)
    assert is_packed(quick.visual) and not is_packed(plain.visual)
    assert not any(one.packed is not None for one in quick.transformer.modules() if isinstance(one, Packable))
    assert quick.fingerprint == plain.fingerprint and not quick.training
    wanted, found = plain.state_dict(), quick.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not any(one.requires_grad for one in quick.parameters())


@here
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_pages_of_the_file_are_given_back(
    stored: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released: list[tuple[int, ...]] = []
    monkeypatch.setattr(MappedFiles, "release", lambda self, tensor: released.append(tuple(tensor.shape)))
    clip, file = small_clip(), tmp_path / "clip.safetensors"
    save_file({name: one.to(stored) for name, one in clip.state_dict().items()}, file)
    load_clip(file, packed=True)
    packables = [one for one in clip.visual.modules() if isinstance(one, Packable)]
    weights = [tuple(getattr(one, one.names[0]).shape) for one in packables]
    if stored == torch.float32:  # what is used as it lies in the file stays mapped
        assert sorted(released) == sorted(weights)
    else:
        assert len(released) == len(clip.state_dict())


def test_weights_for_another_device_are_not_packed(tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    save_file(small_clip().state_dict(), file)
    assert not is_packed(load_clip(file, device="meta", packed=True).visual)
