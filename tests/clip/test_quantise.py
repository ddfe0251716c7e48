"""Half precision and 8 bits with a scale per token: how far off, and what happens at the edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from blemish.clip.quantise import STORAGES, Layout, dequantise_into, quantise
from blemish.types import ImageFeatures


def there_and_back(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty_like(values)
    stored, scale = quantise(values, dtype)
    assert stored.dtype == dtype
    assert scale.shape == values.shape[:-1]
    dequantise_into(out, stored, scale)
    return out


@pytest.mark.parametrize(("storage", "relative"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_half_precision_rounds_and_no_more(storage: str, relative: float) -> None:
    values = torch.randn(3, 50, 17, generator=torch.Generator().manual_seed(0)) * 30
    back = there_and_back(values, STORAGES[storage])
    assert torch.equal(back, values.to(STORAGES[storage]).float())
    assert ((back - values).abs() <= relative * values.abs() + 2**-25).all()


def test_int8_is_off_by_half_a_step_of_its_own_row() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 40, 33, generator=generator) * torch.logspace(-6, 6, 40)[:, None]
    back = there_and_back(values, torch.int8)
    step = values.abs().amax(-1, keepdim=True) / 127
    assert ((back - values).abs() <= step * 0.5001).all()
    assert (back - values).abs().max() > 0
    # the largest of a row is kept
    largest = values.abs().argmax(-1, keepdim=True)
    assert torch.allclose(back.gather(-1, largest), values.gather(-1, largest), rtol=1e-6)


def test_values_beyond_fp16_are_scaled_not_infinite() -> None:
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    values[0, 3] = 65504.0
    values[1, 3] = 65520.0  # the smallest that rounds to infinity
    values[2, 3] = -1e9
    values[3, 3] = 3.3e38
    stored, scale = quantise(values, torch.float16)
    assert stored.isfinite().all()
    assert scale[:2].tolist() == [1.0, 2.0]
    back = torch.empty_like(values)
    dequantise_into(back, stored, scale)
    assert torch.allclose(back[:, 3], values[:, 3], rtol=2**-11, atol=0)
    # rows in range are untouched by those beyond it
    assert torch.equal(back[0], values[0].half().float())


def test_the_largest_values_survive_bf16() -> None:
    values = torch.tensor([[torch.finfo(torch.bfloat16).max, 1.0], [1e-38, -1e-38]])
    back = there_and_back(values, torch.bfloat16)
    assert back.isfinite().all()
    assert torch.allclose(back, values, rtol=2**-7, atol=0.01)


@pytest.mark.parametrize("storage", STORAGES)
def test_zero_and_minute_rows_give_no_nan(storage: str) -> None:
    values = torch.zeros(3, 5)
    values[1] = 1e-45
    back = there_and_back(values, STORAGES[storage])
    assert back.isfinite().all()
    assert back.abs().max() <= 1e-44


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(storage: str, bad: float) -> None:
    values = torch.zeros(3, 5)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantise(values, STORAGES[storage])


def features(batch: int, width: int = 6, device: str = "cpu") -> ImageFeatures:
    tokens = {"qk": (torch.ones(batch, 5, width, device=device), torch.ones(batch, 5, width, device=device))}
    return ImageFeatures(torch.ones(batch, 3, device=device), tokens, (2, 2), (16, 16))


def test_a_record_holds_every_tensor_apart_and_fills_its_pages() -> None:
    layout = Layout(features(1, device="meta"), "fp16", 512)
    spans = []
    for array in layout.arrays.values():
        spans.append((array.offset, array.offset + array.count * array.dtype.itemsize))
        if array.scales is not None:
            spans.append((array.scales, array.scales + 4 * array.rows))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= layout.record
    assert layout.record % 512 == 0
    assert layout.arrays["class_feature"].dtype == torch.float32
    assert [record.shape for record in layout.pack(features(3))] == [(layout.record,)] * 3


def test_other_shapes_are_refused() -> None:
    layout = Layout(features(1), "fp16", 512)
    with pytest.raises(ValueError, match="other shapes"):
        next(layout.pack(features(1, width=7)))
