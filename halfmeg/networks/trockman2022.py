"""ConvMixer, in the width that a budget allows.

Source: Trockman and Kolter 2022, "Patches Are All You Need?" (arXiv 2201.09792). Its CIFAR-10
network has 256 channels and 594,186 parameters, more than the budget.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import largest_within


@final
class MixerLayer(nn.Module):
    """A depthwise convolution with a shortcut, then a pointwise one, each with GELU, BatchNorm."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding="same", groups=width)
        self.bn1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to the same shape."""
        x = x + self.bn1(F.gelu(self.depthwise(x)))
        return self.bn2(F.gelu(self.pointwise(x)))  # type: ignore[no-any-return]


@final
class ConvMixer(nn.Module):
    """Patches, then layers that mix positions and channels in turn, all on one resolution.

    Args:
        width: channels.
        depth: number of layers.
        kernel: side of the depthwise filters.
        patch: side of the patches in pixels.
        num_classes: length of the logits.
        in_channels: of the images.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        kernel: int,
        patch: int,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, patch, patch)
        self.stem_bn = nn.BatchNorm2d(width)
        self.layers = nn.Sequential(*(MixerLayer(width, kernel) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.layers(self.stem_bn(F.gelu(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def convmixer(num_classes: int, budget: int, in_channels: int = 3) -> ConvMixer:
    """Build the widest ConvMixer of 8 layers, 5×5 filters and 2×2 patches below a budget."""

    def build(scale: float) -> ConvMixer:
        return ConvMixer(max(8, 8 * round(32 * scale)), 8, 5, 2, num_classes, in_channels)

    return largest_within(build, budget)
