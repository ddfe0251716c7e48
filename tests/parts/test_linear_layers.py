from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from blemish.parts.layers import reset_layer, resolve_activation


@pytest.mark.parametrize("make", [lambda: nn.Linear(7, 5), lambda: nn.Conv1d(2, 5, 3)])
def test_first_values_are_those_of_pytorch(make: Any) -> None:
    torch.manual_seed(3)
    expected, layer = make(), make()
    reset_layer(layer, torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer.weight, expected.weight)
    torch.testing.assert_close(layer.bias, expected.bias)


def test_a_layer_without_bias() -> None:
    layer = nn.Linear(16, 100, bias=False)
    reset_layer(layer)
    assert 0.24 < float(layer.weight.detach().abs().max()) <= 0.25


def test_activation_of_the_towers() -> None:
    openai, other = (SimpleNamespace(config=SimpleNamespace(source=name)) for name in ("openai", "laion"))
    choices: Any = ("auto", "native", "gelu", "quick_gelu")
    assert [resolve_activation(c, openai) for c in choices] == ["gelu", "native", "gelu", "quick_gelu"]
    assert [resolve_activation(c, other) for c in choices] == ["native", "native", "gelu", "quick_gelu"]
