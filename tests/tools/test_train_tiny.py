"""The recipe of the embedded backbone: stem folding, targets and losses on cases that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lite_stem
import tiny_losses
import tiny_pictures
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
    target = tiny_losses.patch_targets(mask, (2, 2))
    assert target.tolist() == [[1.0, 0.0, 0.0, pytest.approx(0.375)]]


def test_caption_loss_is_least_for_the_right_pairs() -> None:
    vectors = F.normalize(torch.eye(4, 6) + 0.1, dim=-1)
    texts = ["a", "b", "c", "d", "a", "b", "c", "d"]
    scale, none = torch.tensor(3.0), torch.zeros(0, 6)
    right = tiny_losses.caption_loss(vectors, torch.cat([vectors, vectors]), texts, none, [], scale)
    wrong = tiny_losses.caption_loss(vectors.flip(0), torch.cat([vectors, vectors]), texts, none, [], scale)
    assert right < wrong
    # captions of no image here are negatives of every image
    more = tiny_losses.caption_loss(vectors, torch.cat([vectors, vectors]), texts, vectors[:1], ["e"], scale)
    assert right < more
    # unless their words are right for one: that image is then drawn to them
    far = vectors[1:2]
    known = tiny_losses.caption_loss(vectors, torch.cat([vectors, vectors]), texts, far, ["a"], scale)
    other = tiny_losses.caption_loss(vectors, torch.cat([vectors, vectors]), texts, far, ["e"], scale)
    assert known > other


def test_a_peak_is_what_three_patches_say() -> None:
    state = torch.tensor([[0.0, 1.0]])
    tokens = torch.tensor([[[1.0, 0], [0, 1], [0, 1], [0, 1]], [[1, 0], [1, 0], [1, 0], [1, 0]]])
    right = tiny_losses.peak_loss(tokens, state, torch.tensor([1.0, 0.0]))
    expected = (F.softplus(torch.tensor(-1 / tiny_losses.TEMPERATURE)) + F.softplus(torch.tensor(0.0))) / 2
    assert torch.allclose(right, expected)
    assert right < tiny_losses.peak_loss(tokens, state, torch.tensor([0.0, 1.0]))


def test_batches_hold_twins_and_false_captions() -> None:
    batch = tiny_pictures.draw_batch(np.random.default_rng(3), 64, 12, tiny_pictures.FAMILIES["training"])
    assert batch.images.shape == (12, 64, 64, 3) and batch.masks.shape == (12, 64, 64)
    assert [m.any() for m in batch.masks] == [d is not None for d in batch.defects]
    twins = [
        i
        for i in range(11)
        if batch.defects[i] and not batch.defects[i + 1] and batch.shapes[i] == batch.shapes[i + 1]
        and np.abs(batch.images[i].astype(int) - batch.images[i + 1])[~batch.masks[i]].mean() < 4
    ]  # fmt: skip
    assert twins
    assert len(batch.wrong) == 12 * tiny_pictures.WRONG
    assert all(not set(batch.wrong) & set(own) for own in batch.captions)


def test_squeezed_batches_keep_thin_defects() -> None:
    rng = np.random.default_rng(1)
    batch = tiny_pictures.draw_batch(rng, 128, 2, tiny_pictures.FAMILIES["training"])
    masks = np.zeros((2, 128, 128), dtype=bool)
    masks[0, :, 10] = masks[1, 20] = True  # one pixel thin, along either side
    batch = replace(batch, masks=masks)
    sizes = set()
    for _ in range(20):
        found = tiny_pictures.squeeze(batch, rng)
        height, width = found.masks.shape[1:]
        sizes.add((height, width))
        assert found.images.shape == (2, height, width, 3) and found.captions == batch.captions
        assert height % 16 == width % 16 == 0 and max(height, width) == 128
        assert found.masks[0].any() and found.masks[1].any()
        assert found.masks.mean() < 0.05
    assert len(sizes) > 1


@pytest.mark.slow
def test_two_steps_teach_what_is_thawed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw_stem(stem: LiteStem) -> None:
        for parameter in stem.parameters():
            torch.nn.init.normal_(parameter, std=0.1)

    # the ImageNet weights are an extra that the tests do without
    monkeypatch.setattr(train_tiny, "load_stem", draw_stem)
    clip = train_tiny.build_clip(tmp_path)
    optimiser = torch.optim.AdamW(train_tiny.parameter_groups(clip))
    wanted = [0, 0, 0, 0]
    last = train_tiny.RECIPE[-1]
    train_tiny.begin_phase(clip, last, wanted)
    assert wanted == [last.least, last.most, last.patches, 0] and last.families == "all"
    rng = np.random.default_rng(0)
    batch = tiny_pictures.draw_batch(rng, 64, 8, tiny_pictures.FAMILIES["all"])
    monkeypatch.setattr(tiny_losses, "VALUES_SHARE", 1.0)
    losses = tiny_losses.Losses(clip.train(), rng)
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    first = train_tiny.update(clip, optimiser, losses(batch), 1e-3)
    second = train_tiny.update(clip, optimiser, losses(batch), 1e-3)
    assert {"caption", "class", "qk3", "vv3", "qk_peak", "vv_peak"} <= set(first) == set(second)
    changed = {k for k, v in clip.state_dict().items() if not torch.equal(v, before[k])}
    assert "visual.stem.blocks.10.project.weight" in changed
    assert not any(k.startswith(("visual.stem.blocks.7", "visual.stem.conv")) for k in changed)
    assert "visual.stem.proj.weight" in changed and "token_embedding.weight" in changed


def test_state_prompts_name_opposite_states() -> None:
    normal, abnormal = tiny_losses.state_prompts(np.random.default_rng(0), 50)
    assert len(normal) == len(abnormal) == 50
    assert not set(normal) & set(abnormal)


def test_rate_warms_up_and_ends_low() -> None:
    assert train_tiny.rate(0)[1] < train_tiny.rate(3000)[1]
    last = train_tiny.RECIPE[-1]
    assert train_tiny.rate(last.pictures - 1)[1] < 0.01 * last.lr
