"""WinCLIP and WinCLIP+ against plain loops over sentences, windows, patches and normal images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_clip import SIZE, encode, make, pick
from torch import Tensor

from blemish.clip.model import CLIP
from blemish.errors import BadOption
from blemish.methods import make_config, presets
from blemish.types import ImageFeatures

GRID = (3, 5)


def plain_text(clip: CLIP, sentences: Sequence[str]) -> Tensor:
    """The mean over sentences as they are, then a unit vector."""
    rows = [clip.encode_text(clip.tokenizer([s], 77))[0] for s in sentences]  # type: ignore[misc]
    return F.normalize(torch.stack(rows).mean(dim=0), dim=0)


def probability(feature: Tensor, normal: Tensor, abnormal: Tensor, tau: float) -> float:
    n, a = (math.exp(float(F.cosine_similarity(feature, text, dim=0)) / tau) for text in (normal, abnormal))
    return a / (n + a)


def harmonic(values: Sequence[float]) -> float:
    return len(values) / sum(1 / v for v in values)


def spread(scores: Sequence[float], k: int, mean: Any = harmonic) -> list[list[float]]:
    """Each patch's mean over the windows that hold it."""
    rows, columns = GRID
    found = []
    for row in range(rows):
        found.append([])
        for column in range(columns):
            own, number = [], 0
            for top in range(rows - k + 1):
                for left in range(columns - k + 1):
                    if top <= row < top + k and left <= column < left + k:
                        own.append(scores[number])
                    number += 1
            found[-1].append(mean(own))
    return found


def windows_of(features: ImageFeatures, image: int, k: int) -> Tensor:
    """Windows of 2 x 2 come first, 8 of them, then the three of 3 x 3."""
    assert features.windows is not None and features.grid == GRID
    return features.windows[image][:8] if k == 2 else features.windows[image][8:]


def plain_map(features: ImageFeatures, image: int, texts: tuple[Tensor, Tensor], tau: float = 0.07) -> Tensor:
    """(rows, columns): the harmonic mean of the image's score and of both scales."""
    score = probability(features.class_feature[image], *texts, tau)
    scales = [
        spread([probability(w, *texts, tau) for w in windows_of(features, image, k)], k) for k in (2, 3)
    ]
    return torch.tensor(
        [
            [harmonic([score, scales[0][r][c], scales[1][r][c]]) for c in range(GRID[1])]
            for r in range(GRID[0])
        ]
    )


def enlarged(patches: Tensor) -> Tensor:
    return F.interpolate(patches[None, None].float(), size=SIZE, mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize(("preset", "counts"), [(None, (154, 88)), ("legacy21", (147, 84))])
@torch.no_grad()
def test_against_plain_loops(clip: CLIP, preset: str | None, counts: tuple[int, int]) -> None:
    method = make(clip, ("win_clip", {"preset": preset}))
    normal, abnormal = method.texts.bank.sentences("metal nut")
    assert (len(normal), len(abnormal)) == counts
    assert ("a photo of a damaged metal nut" in abnormal) == (preset is None)
    assert ("a photo of the metal nut without flaw." in normal) == (preset is not None)
    features = encode(clip, method, 2)
    found = method(features, ["metal_nut", "metal_nut"])
    texts = plain_text(clip, normal), plain_text(clip, abnormal)
    for i in range(2):
        expected = plain_map(features, i, texts)
        torch.testing.assert_close(found.details["text_map"][i], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.map[i], enlarged(expected), atol=1e-4, rtol=0)
        score = probability(features.class_feature[i], *texts, 0.07)
        assert float(found.score[i]) == pytest.approx(score, abs=1e-4)


@torch.no_grad()
def test_few_shot_against_plain_loops(clip: CLIP) -> None:
    """WinCLIP+: the nearest normal patch and windows; windows pass to patches harmonically, then the mean."""
    method = make(clip, ("win_clip", {}))
    features, normals = encode(clip, method, 2), encode(clip, method, 3, seed=1)
    zero_shot = method(features)
    assert method.map_range == (0.0, 1.0)
    method.remember(normals)
    assert method.map_range == (0.0, 2.0) and method.score_range == (0.0, 1.0)
    assert {name: tuple(t.shape) for name, t in method.memory().items()} == {
        "patches.4": (3 * 15, 36),
        "windows.2": (3 * 8, 28),
        "windows.3": (3 * 3, 28),
    }
    found = method(features)

    def nearest(row: Tensor, references: Tensor) -> float:
        return min(float(1 - F.cosine_similarity(row, other, dim=0)) / 2 for other in references)

    for i in range(2):
        references = normals.tokens["qk"][0][:, 1:].flatten(0, 1)
        patches = [nearest(t, references) for t in features.tokens["qk"][0][i, 1:]]
        total = torch.tensor(patches).reshape(GRID)
        for k in (2, 3):
            references = torch.cat([windows_of(normals, n, k) for n in range(3)])
            total += torch.tensor(spread([nearest(w, references) for w in windows_of(features, i, k)], k))
        expected = total / 3
        torch.testing.assert_close(found.details["memory_map"][i], expected, atol=1e-3, rtol=0)
        both = zero_shot.details["text_map"][i] + expected
        torch.testing.assert_close(found.map[i], enlarged(both), atol=1e-3, rtol=0)
        score = (float(zero_shot.score[i]) + float(expected.max())) / 2
        assert float(found.score[i]) == pytest.approx(score, abs=1e-3)


@torch.no_grad()
def test_a_remembered_image_is_no_distance_away(clip: CLIP) -> None:
    method = make(clip, ("win_clip", {}))
    features = encode(clip, method, 3)
    method.remember(pick(features, [0]))
    maps = method(features).details["memory_map"]
    assert torch.isfinite(maps).all() and maps[0].max() < 1e-3 < maps[1].max()


@torch.no_grad()
def test_memories_of_other_options_are_refused(clip: CLIP) -> None:
    method = make(clip, ("win_clip", {}))
    method.remember(encode(clip, method, 1))
    for options in ({"scales": (2,)}, {"scales": (1, 2)}, {"reference_layer": 2}):
        with pytest.raises(ValueError, match="memory"):
            make(clip, ("win_clip", options)).recall(method.memory())


def test_harmonic_means_by_hand(clip: CLIP) -> None:
    method = make(clip, ("win_clip", {}))
    # 1 x 3 windows of 2 x 2 over 2 x 4 patches: 1/2, 1/3, 1/6 -> middle patches 2 / (2 + 3) and 2 / (3 + 6).
    scores = torch.tensor([[1 / 2, 1 / 3, 1 / 6]])
    expected = torch.tensor([[1 / 2, 2 / 5, 2 / 9, 1 / 6]] * 2)
    torch.testing.assert_close(method._over_patches(scores, (2, 4), 2), expected[None])
    arithmetic = make(clip, ("win_clip", {"aggregation": "arithmetic"}))
    expected = torch.tensor([[1 / 2, 5 / 12, 1 / 4, 1 / 6]] * 2)
    torch.testing.assert_close(arithmetic._over_patches(scores, (2, 4), 2), expected[None])
    maps = torch.tensor([[1.0, 0.5], [0.5, 0.5], [0.25, 0.5]])
    torch.testing.assert_close(method._mean(maps), torch.tensor([3 / 7, 0.5]))
    torch.testing.assert_close(arithmetic._mean(maps), torch.tensor([1.75 / 3, 0.5]))


@pytest.mark.parametrize(("k", "count"), [(2, 196), (3, 169)])
def test_equal_scores_return_and_a_zero_stays_zero(clip: CLIP, k: int, count: int) -> None:
    method = make(clip, ("win_clip", {}))
    equal = torch.full((2, count), 0.3)
    torch.testing.assert_close(method._over_patches(equal, (15, 15), k), torch.full((2, 15, 15), 0.3))
    equal[1, 0] = 0
    found = method._over_patches(equal, (15, 15), k)
    assert torch.isfinite(found).all() and not found[1, :k, :k].any()
    torch.testing.assert_close(found[1, k:], found[0, k:])
    assert method._mean(torch.tensor([[0.3], [0.0], [0.3]])).tolist() == [0.0]


@torch.no_grad()
def test_zero_probabilities_give_no_nan(clip: CLIP) -> None:
    """At a low temperature float32 says 0; so does the map."""
    method = make(clip, ("win_clip", {"temperature": 1e-5}))
    found = method(encode(clip, method, 4))
    assert torch.isfinite(found.map).all() and (found.map == 0).any()


@torch.no_grad()
def test_scales_and_words_are_options(clip: CLIP) -> None:
    whole = make(clip, ("win_clip", {"scales": (1, 3, 2)}))
    assert whole.needs.windows == (1, 3, 2)
    reordered = make(clip, ("win_clip", {"scales": (3, 2, 1)}))
    first, second = (m(encode(clip, m, 2)).map for m in (whole, reordered))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    words = make(
        clip, ("win_clip", {"normal_states": ("intact {}",), "abnormal_states": ("odd {}", "bad {}")})
    )
    normal, abnormal = words.texts.bank.sentences("nut")
    assert (len(normal), len(abnormal)) == (22, 44)
    assert "a photo of the intact nut for visual inspection" in normal


def test_images_are_seen_by_plain_clip(clip: CLIP) -> None:
    needs = make(clip, ("win_clip", {})).needs
    assert needs.windows == (2, 3) and needs.class_ln_post and needs.activation == "native"
    assert needs.streams == ("qk",) and not needs.projected and needs.cacheable
    assert list(presets("win_clip")) == ["legacy21"]


@pytest.mark.parametrize(
    "options",
    [
        {"scales": (2, 2)},
        {"scales": (0,)},
        {"scales": ()},
        {"scales": (1.5,)},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"winclip_templates": "legacy22"},
        {"normal_states": ("fine",)},
        {"abnormal_states": ("bad {} {}",)},
        {"abnormal_states": ("bad {0}",)},
        {"aggregation": "geometric"},
    ],
    ids=str,
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        make_config("win_clip", **options)
