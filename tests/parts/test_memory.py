from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blemish.parts import memory as module
from blemish.parts.memory import FeatureMemory


def direct(query: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """One comparison at a time."""
    found = torch.empty(query.shape[:-1])
    for image in range(query.shape[0]):
        for patch in range(query.shape[1]):
            cosines = [F.cosine_similarity(query[image, patch], row, dim=0) for row in bank]
            found[image, patch] = 1 - max(cosines)
    return found


@pytest.mark.parametrize("block", [1, 40, 16_000_000])
def test_distance_is_to_the_nearest(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    torch.manual_seed(0)
    normal, query = torch.randn(2, 7, 12), 3 * torch.randn(3, 5, 12)
    memory = FeatureMemory()
    memory.add("6", normal[:1])
    memory.add("6", normal[1:])
    torch.testing.assert_close(
        memory.distance("6", query), direct(query, normal.flatten(0, 1)), atol=1e-3, rtol=0
    )


def test_remembered_vectors_are_at_no_distance_and_opposite_ones_at_two() -> None:
    memory, normal = FeatureMemory(), torch.randn(1, 4, 12)
    memory.add("a", normal[:, :1])
    assert memory.distance("a", 5 * normal[:, :1]).item() == pytest.approx(0, abs=1e-4)
    assert memory.distance("a", -normal[:, :1]).item() == pytest.approx(2, abs=1e-4)


def test_written_and_read_memories_agree_to_the_bit() -> None:
    memory, other = FeatureMemory(), FeatureMemory()
    assert not memory and memory.tensors() == {}
    memory.add("a", torch.randn(2, 4, 12))
    other.load(memory.tensors(), {"a": 12}, torch.device("cpu"))
    query = torch.randn(2, 4, 12)
    assert memory and other and torch.equal(memory.distance("a", query), other.distance("a", query))
    other.load({}, {"a": 12}, torch.device("cpu"))
    assert not other


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"b": torch.ones(2, 12)}, "has b; needed are a"),
        ({"a": torch.ones(2, 11)}, r"\(2, 11\); expected vectors \(M, 12\)"),
        ({"a": torch.ones(0, 12)}, "expected vectors"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, torch.Tensor], words: str) -> None:
    memory = FeatureMemory()
    with pytest.raises(ValueError, match=words):
        memory.load(tensors, {"a": 12}, torch.device("cpu"))
