import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from blemish.parts.maps import (
    gaussian_blur,
    softmax_then_upsample,
    to_grid,
    upsample_then_probability,
    upsample_then_softmax,
)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    sigma=st.floats(0.05, 12.0),
    seed=st.integers(0, 2**16),
)
def test_blur_equals_scipy(height: int, width: int, sigma: float, seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, height, width), dtype=np.float32)
    expected = np.stack([gaussian_filter(m, sigma=sigma) for m in maps])
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps), sigma).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [4.0, 8.0])
def test_blur_equals_scipy_at_the_papers_size(sigma: float) -> None:
    maps = np.random.default_rng(0).random((518, 518), dtype=np.float32)
    blurred = gaussian_blur(torch.from_numpy(maps), sigma)
    np.testing.assert_allclose(blurred.numpy(), gaussian_filter(maps, sigma=sigma), atol=1e-6)


def test_blur_truncates_where_asked() -> None:
    maps = np.random.default_rng(1).random((3, 19, 23), dtype=np.float32)
    expected = np.stack([gaussian_filter(m, sigma=2.5, truncate=1.5) for m in maps])
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps), 2.5, 1.5).numpy(), expected, atol=1e-6)


def test_blur_keeps_constants_and_the_range_and_has_a_gradient() -> None:
    assert torch.allclose(gaussian_blur(torch.full((1, 9, 13), 0.3), 4.0), torch.tensor(0.3), atol=1e-6)
    maps = torch.rand(2, 1, 17, 11, requires_grad=True)
    blurred = gaussian_blur(maps, 3.0)
    assert blurred.shape == maps.shape
    assert blurred.min() >= maps.min() and blurred.max() <= maps.max()
    blurred.sum().backward()
    # every weight of a pixel goes somewhere inside the mirrored map
    assert maps.grad is not None and math.isclose(float(maps.grad.sum()), maps.numel(), rel_tol=1e-5)


def test_blur_is_float32_under_autocast() -> None:
    maps = torch.rand(1, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = gaussian_blur(maps, 4.0)
    assert torch.equal(blurred, gaussian_blur(maps, 4.0))
    assert gaussian_blur(maps.bfloat16(), 4.0).dtype == torch.float32


def test_zero_sigma_is_no_blur_and_negative_is_refused() -> None:
    maps = torch.rand(1, 4, 5)
    assert torch.equal(gaussian_blur(maps, 0.0), maps)
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma"):
            gaussian_blur(maps, sigma)


def test_grid_is_row_major() -> None:
    values = torch.arange(6.0)[None, :, None]
    assert torch.equal(to_grid(values, (2, 3))[0, 0], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))


@pytest.mark.parametrize("enlarge", [softmax_then_upsample, upsample_then_softmax])
def test_maps_are_probabilities_of_the_asked_size(enlarge) -> None:
    maps = enlarge(torch.randn(3, 6, 2) * 20, (2, 3), (14, 21))
    assert maps.shape == (3, 2, 14, 21)
    assert maps.min() >= 0 and maps.max() <= 1
    assert torch.allclose(maps.sum(dim=1), torch.ones(3, 14, 21), atol=1e-6)


def test_corners_tell_the_two_orders_apart() -> None:
    logits = torch.tensor([[[0.0, 4.0], [0.0, 0.0], [0.0, 0.0], [0.0, -4.0]]])
    corner = logits[0, 0].softmax(dim=0)[1]
    # corner patches lie on the corner pixels; between corner and next patch the logit is linear
    aligned = upsample_then_softmax(logits, (2, 2), (5, 5))[0, 1]
    assert torch.isclose(aligned[0, 0], corner)
    assert torch.isclose(aligned[0, 2], torch.tensor(2.0).sigmoid())
    # patch centres lie inside: pixel 1 of 4 is a quarter of the way from patch 0 to patch 1
    centred = softmax_then_upsample(logits, (2, 2), (4, 4))[0, 1]
    assert torch.isclose(centred[0, 0], corner)
    assert torch.isclose(centred[0, 1], 0.75 * corner + 0.25 * 0.5)


def test_probability_is_the_abnormal_channel() -> None:
    logits = torch.randn(2, 6, 2) * 10
    expected = upsample_then_softmax(logits, (3, 2), (20, 13))[:, 1]
    assert torch.allclose(upsample_then_probability(logits, (3, 2), (20, 13)), expected, atol=1e-6)
