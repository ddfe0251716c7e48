import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.parts.losses import dice, focal, layer_names


def both(abnormal: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - abnormal, abnormal], dim=1)


@settings(max_examples=40, deadline=None)
@given(p=st.floats(0, 1), y=st.integers(0, 1))
def test_focal_of_one_pixel_is_the_formula(p: float, y: int) -> None:
    right = p if y else 1 - p
    q = (1 - 1e-5) * right + 1e-5 * (1 - right) + 1e-5
    loss = focal(both(torch.full((1, 1, 1), p, dtype=torch.float64)), torch.full((1, 1, 1), y))
    assert float(loss) == pytest.approx(-((1 - q) ** 2) * math.log(q), rel=1e-6, abs=1e-12)


def test_focal_is_finite_with_gradient_at_the_ends() -> None:
    p = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    focal(both(p), torch.tensor([[[1.0, 0.0]]])).backward()
    assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad[0, 0, 0] < 0 < p.grad[0, 0, 1]


def test_dice_of_known_maps() -> None:
    mask = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert float(dice(mask, mask)) == pytest.approx(0.0)
    assert float(dice(1 - mask, mask)) == pytest.approx(1 - 1 / 5)
    assert float(dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))) == pytest.approx(0.0)


def test_dice_averages_images_not_rows() -> None:
    p, y = torch.rand(3, 8, 6), (torch.rand(3, 8, 6) > 0.5).float()
    apart = torch.stack([dice(p[i : i + 1], y[i : i + 1]) for i in range(3)])
    assert torch.allclose(dice(p, y), apart.mean())
    assert torch.allclose(dice(p, y.bool()), apart.mean())


def test_layers_of_one_block_have_names_of_their_own() -> None:
    assert layer_names((6, 12, 18, 24)) == ("6", "12", "18", "24")
    assert layer_names((1, 1, 2, 1)) == ("1", "1_2", "2", "1_3")
