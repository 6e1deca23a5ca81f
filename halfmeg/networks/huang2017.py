"""DenseNet-BC of 40 layers that each add 12 channels.

Source: Huang et al. 2017, "Densely Connected Convolutional Networks" (arXiv 1608.06993), section 3:
bottlenecks (B) and compression by half (C). The 40-layer one is stated as 0.18 M parameters
wherever it is compared with; its multiply-accumulates are not published.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROWTH = 12
BOTTLENECK = 4
"""The 1×1 convolution in front of each 3×3 one makes this many times `GROWTH` channels."""

COMPRESSION = 0.5


@final
class DenseLayer(nn.Module):
    """BatchNorm, ReLU and convolution, 1×1 and then 3×3; the result joins the input."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, BOTTLENECK * GROWTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(BOTTLENECK * GROWTH)
        self.conv2 = nn.Conv2d(BOTTLENECK * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×(C+12)×H×W."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat([x, y], 1)


@final
class Transition(nn.Module):
    """Half of the channels on half of the sides."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×channels×(H/2)×(W/2)."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


@final
class DenseNet(nn.Module):
    """DenseNet-BC for small images: three blocks of (depth - 4) / 6 layers, two transitions.

    Args:
        depth: number of layers, 6n+4.
        num_classes: length of the logits.
        in_channels: of the images.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        channels = 2 * GROWTH
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for block in range(3):
            for _ in range((depth - 4) // 6):
                stages.append(DenseLayer(channels))
                channels += GROWTH
            if block < 2:
                stages.append(Transition(channels, int(COMPRESSION * channels)))
                channels = int(COMPRESSION * channels)
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = F.relu(self.bn(self.stages(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def densenet_bc_40(num_classes: int, in_channels: int = 3) -> DenseNet:
    """Build DenseNet-BC of 40 layers with a growth rate of 12."""
    return DenseNet(40, num_classes, in_channels)
