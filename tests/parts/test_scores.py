import math

import pytest
import torch

from blemish.parts.scores import confidence_weighted, cosine_logits, maximum, scaled_count, top_k_mean


def test_top_k_mean_takes_the_largest() -> None:
    maps = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[0.0, 0.0], [0.0, 8.0]]])
    assert torch.equal(top_k_mean(maps, 2), torch.tensor([4.0, 4.0]))
    assert torch.equal(top_k_mean(maps, 1), maximum(maps))


def test_top_k_mean_of_a_small_map_is_its_mean() -> None:
    maps = torch.rand(3, 4, 4)
    assert torch.allclose(top_k_mean(maps, 2000), maps.mean(dim=(1, 2)))


def test_top_k_mean_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        top_k_mean(torch.rand(1, 2, 2), 0)


def test_cosine_logits_ignore_length() -> None:
    features, texts = torch.randn(2, 5, 7), torch.randn(3, 7)
    logits = cosine_logits(features, texts)
    assert logits.shape == (2, 5, 3) and logits.abs().max() <= 1 + 1e-6
    assert torch.allclose(cosine_logits(3 * features, 0.2 * texts), logits, atol=1e-6)
    assert torch.allclose(cosine_logits(texts, texts).diagonal(), torch.ones(3), atol=1e-6)


def test_cosine_logits_with_texts_per_image() -> None:
    features, texts = torch.randn(2, 5, 7), torch.randn(2, 3, 7)
    both = cosine_logits(features, texts)
    assert torch.allclose(both[1], cosine_logits(features[1], texts[1]), atol=1e-6)


def test_confidence_by_hand() -> None:
    maps = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]])
    e = [math.exp(v) for v in (3, 2, 1)]
    weight = (sum(e[:2]) / 2) / (sum(e) / 3)
    assert confidence_weighted(maps, 2, 3).item() == pytest.approx(weight * 2.5)


def test_confidence_of_constant_and_large_maps() -> None:
    flat = torch.full((2, 6, 6), 0.7)
    torch.testing.assert_close(confidence_weighted(flat, 5, 25), torch.tensor([0.7, 0.7]))
    maps = 4 * torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    shifted = confidence_weighted(maps + 100, 10, 50)
    weight = confidence_weighted(maps, 10, 50) / top_k_mean(maps, 10)
    assert torch.isfinite(shifted).all() and (weight >= 1).all() and (weight <= 5).all()
    torch.testing.assert_close(shifted / top_k_mean(maps + 100, 10), weight, rtol=1e-4, atol=0)


def test_numbers_of_pixels_follow_the_area() -> None:
    assert scaled_count(2000, torch.empty(2, 518, 518)) == 2000
    assert scaled_count(2000, torch.empty(259, 259)) == 500
    assert scaled_count(1, torch.empty(8, 8)) == 1
    assert scaled_count(10**6, torch.empty(1, 8, 8)) == 64
