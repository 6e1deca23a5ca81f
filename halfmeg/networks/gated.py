"""The depthwise-gated family: depthwise filters on quarters of the channels, then a gated pair.

Its published member is `cifar10-tiniest` (github.com/xvel/cifar10-tiniest): 97,530 parameters, 43.9
million multiply-accumulates, 94.4% on CIFAR-10. Published are: two resolutions, of 32 and 16
pixels; channels split in four, as they are, behind depthwise 3×3 and 7×7 filters, and averaged and
then behind depthwise 7×7 filters of dilation 3; LayerNorm; a gated pointwise pair; a learned scale
on the shortcut. Widths of 48 and 80 with three blocks each are what the two counts determine
(`tests/networks/test_published.py`). Not published, and chosen here: SiLU as the gate's activation,
3×3 as the window of the averages, a LayerNorm behind the reduction and none in front of the head,
a scale of 1 at first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import largest_within


@final
class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to the same shape."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


@final
class GatedBlock(nn.Module):
    """Four ways to look around, LayerNorm, and a gated pointwise pair beside a scaled shortcut."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = ChannelNorm) -> None:
        super().__init__()
        quarter = channels // 4
        self.near = nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter)
        self.wide = nn.Conv2d(quarter, quarter, 7, padding=3, groups=quarter)
        self.far = nn.Conv2d(quarter, quarter, 7, padding=9, dilation=3, groups=quarter)
        self.norm = norm(channels)
        self.gate = nn.Conv2d(channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to the same shape."""
        same, near, wide, far = x.chunk(4, 1)
        far = self.far(F.avg_pool2d(far, 3, 1, 1))
        y = self.norm(torch.cat([same, self.near(near), self.wide(wide), far], 1))
        gate, value = self.gate(y).chunk(2, 1)
        return x * self.scale[:, None, None] + self.out(F.silu(gate) * value)  # type: ignore[no-any-return]


@final
class GatedNet(nn.Module):
    """Blocks at the images' size, then at half of it.

    Args:
        widths: channels at the two sizes, multiples of 4.
        depth: blocks at each.
        num_classes: length of the logits.
        in_channels: of the images.
        norm: builds a normalization of so many channels.
    """

    def __init__(
        self,
        widths: tuple[int, int],
        depth: int,
        num_classes: int,
        in_channels: int,
        norm: Callable[[int], nn.Module] = ChannelNorm,
    ) -> None:
        super().__init__()
        first, second = widths
        self.stem = nn.Sequential(nn.Conv2d(in_channels, first, 3, padding=1), norm(first))
        self.stage1 = nn.Sequential(*(GatedBlock(first, norm) for _ in range(depth)))
        self.reduce = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(first, second, 1), norm(second))
        self.stage2 = nn.Sequential(*(GatedBlock(second, norm) for _ in range(depth)))
        self.head = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.stage2(self.reduce(self.stage1(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def gated(num_classes: int, budget: int, in_channels: int = 3) -> GatedNet:
    """Build the widest network of the family below a budget; 97,531 gives the published one."""

    def build(scale: float) -> GatedNet:
        first, second = (max(8, 8 * round(width * scale / 8)) for width in (48, 80))
        return GatedNet((first, second), 3, num_classes, in_channels)

    return largest_within(build, budget)
