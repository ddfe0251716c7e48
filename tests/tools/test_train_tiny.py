"""The recipe of the embedded backbone: stem folding, targets and losses on cases that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lite_stem
import train_tiny
from blemish.clip.stem import LITE_FEATURES, LiteStem, SameConv


def test_folded_convolution_equals_convolution_and_batch_norm() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(5, eps=lite_stem.BATCH_NORM_EPS).eval()
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.normal_()
    norm.running_var.uniform_(0.5, 2)
    kernel = torch.randn(5, 3, 3, 3)
    conv = SameConv(3, 5, 3, stride=2)
    weights = {"kernel": kernel} | {f"bn.{name}": value for name, value in norm.state_dict().items()}
    lite_stem.fold(conv, weights, "kernel", "bn")
    images = torch.randn(2, 3, 8, 8)
    # an even side at stride 2 is padded by one at its end only
    expected = norm(F.conv2d(F.pad(images, (0, 1, 0, 1)), kernel, stride=2))
    assert torch.allclose(conv(images), expected, atol=1e-5)


def test_stem_features_come_from_three_strides() -> None:
    torch.manual_seed(0)
    features = LiteStem(8).eval().features(torch.randn(1, 3, 64, 32))
    assert features.shape == (1, LITE_FEATURES, 4, 2)


def test_patch_targets_count_covered_pixels() -> None:
    mask = np.zeros((1, 32, 32), dtype=bool)
    mask[0, :16, :16] = True
    mask[0, 16:18, 16:32] = True
    target = train_tiny.patch_targets(mask, (2, 2))
    assert target.tolist() == [[1.0, 0.0, 0.0, pytest.approx(0.375)]]


def test_caption_loss_is_least_for_the_right_pairs() -> None:
    vectors = F.normalize(torch.eye(4, 6) + 0.1, dim=-1)
    texts = ["a", "b", "c", "d", "a", "b", "c", "d"]
    scale = torch.tensor(3.0)
    right = train_tiny.caption_loss(vectors, torch.cat([vectors, vectors]), texts, scale)
    wrong = train_tiny.caption_loss(vectors.flip(0), torch.cat([vectors, vectors]), texts, scale)
    assert right < wrong


def test_state_prompts_name_opposite_states() -> None:
    normal, abnormal = train_tiny.state_prompts(np.random.default_rng(0), 50)
    assert len(normal) == len(abnormal) == 50
    assert not set(normal) & set(abnormal)


def test_rate_warms_up_and_ends_low() -> None:
    assert train_tiny.rate(0)[1] < train_tiny.rate(3000)[1]
    last = train_tiny.RECIPE[-1]
    assert train_tiny.rate(last.pictures - 1)[1] < 0.01 * last.lr
