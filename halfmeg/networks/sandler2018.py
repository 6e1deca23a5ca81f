"""MobileNetV2, at the strides that suit small images, in the width that a budget allows.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv
1801.04381), table 2 and section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from halfmeg.networks.layers import largest_within

BOTTLENECKS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""Table 2: expansion, channels, blocks."""

IMAGENET_STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Of the first convolution, then of the first block of each row of `BOTTLENECKS`."""

CIFAR_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)
"""The same without the first two reductions, so that 32 pixels end in a map of 4."""

LAST_CHANNELS = 1280


def _conv(
    in_channels: int, channels: int, kernel: int, stride: int, groups: int
) -> list[nn.Module]:
    padding = kernel // 2
    convolution = nn.Conv2d(
        in_channels, channels, kernel, stride, padding, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(channels)]


@final
class InvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel by 3×3, narrow without an activation."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = []
        if expansion > 1:
            layers += [*_conv(in_channels, hidden, 1, 1, 1), nn.ReLU6()]
        layers += [*_conv(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
        layers += _conv(hidden, channels, 1, 1, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×channels×(H/stride)×(W/stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


@final
class MobileNetV2(nn.Module):
    """The network of table 2.

    Args:
        width: the width multiplier; it acts on all but the last convolution (section 4.1).
        num_classes: length of the logits.
        strides: `CIFAR_STRIDES` or `IMAGENET_STRIDES`.
        last_channels: of the last convolution, before the head.
        image_channels: of the images.
    """

    def __init__(
        self,
        width: float,
        num_classes: int,
        strides: Sequence[int] = CIFAR_STRIDES,
        last_channels: int = LAST_CHANNELS,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        in_channels = divisible(32 * width)
        stem = _conv(image_channels, in_channels, 3, strides[0], 1)
        layers: list[nn.Module] = [*stem, nn.ReLU6()]
        for (expansion, base, blocks), first in zip(BOTTLENECKS, strides[1:], strict=True):
            channels = divisible(base * width)
            for index in range(blocks):
                stride = first if index == 0 else 1
                layers.append(InvertedResidual(in_channels, channels, stride, expansion))
                in_channels = channels
        layers += [*_conv(in_channels, last_channels, 1, 1, 1), nn.ReLU6()]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(last_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        return self.head(self.dropout(self.layers(x).mean((2, 3))))  # type: ignore[no-any-return]


def divisible(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8, and never less than 90% of `channels`.

    That is the authors' rule for the channels of narrow and wide networks.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenetv2(num_classes: int, budget: int, in_channels: int = 3) -> MobileNetV2:
    """Build the widest MobileNetV2 below a budget.

    The last convolution keeps its 1,280 channels for width multipliers below 1 (section 4.1). A
    budget under 100,000 has no room for it; there it has 4 times the channels that come in.
    """
    small = budget <= 100_000

    def build(width: float) -> MobileNetV2:
        last = 4 * divisible(320 * width) if small else LAST_CHANNELS
        return MobileNetV2(width, num_classes, last_channels=last, image_channels=in_channels)

    return largest_within(build, budget)
