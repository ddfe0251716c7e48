"""Stems: what turns pixels into the patch tokens of the image tower.

CLIP uses one strided convolution. The embedded backbone uses a small frozen convolutional network instead:
the stem and blocks 0-10 of EfficientNet-Lite0 with batch normalisation folded into the convolutions, whose
features at strides 4, 8 and 16 are joined on the patch grid and projected to the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, input channels, output channels of EfficientNet-Lite0's blocks 0-10
LITE_BLOCKS = (
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80),
    (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
)
# after block 2: 24 channels at stride 4 (mean and maximum); after block 4: 40 channels at stride 8
LITE_FEATURES = 2 * 24 + 4 * 40 + 112


class SameConv(nn.Conv2d):
    """Convolution padded as EfficientNet was trained: output = ceil(input / stride), more at the end."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H/stride), ceil(W/stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        pads: list[int] = []
        for side in (input.shape[-1], input.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, stride=stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; added to the input where the shapes allow it."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = SameConv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.project = SameConv(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(y)))
        return x + out if self.residual else out


class LiteStem(nn.Module):
    """EfficientNet-Lite0 up to block 10, features of three strides on a grid of 16-pixel patches.

    Its weights stay in the type they were made in, float32, when the tower around it is moved to half precision: the
    errors of a dozen convolutions in bf16, one after the other, spoil maps (correlation with fp32 0.94, else 0.9996).
    """

    patch_size = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = SameConv(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList(InvertedResidual(*row) for row in LITE_BLOCKS)
        self.proj = nn.Linear(LITE_FEATURES, width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LiteStem:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of 16 -> (B, LITE_FEATURES, H/16, W/16)."""
        # Channels last: depthwise convolutions of batches run twice as fast on CPUs so, with the same sums.
        x = F.relu6(self.conv(images.contiguous(memory_format=torch.channels_last)))
        found = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 2:
                found += [F.avg_pool2d(x, 4), F.max_pool2d(x, 4)]
            elif i == 4:
                found.append(F.pixel_unshuffle(x, 2))
        return torch.cat([*found, x], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H/16, W/16), in the type of the weights."""
        tokens: Tensor = self.proj(self.features(images.to(self.proj.weight.dtype)).permute(0, 2, 3, 1))
        return tokens.permute(0, 3, 1, 2)
