"""ResNet-8, the image classifier of the MLPerf Tiny benchmark.

Source: Banbury et al. 2021, "MLPerf Tiny Benchmark" (arXiv 2106.07597). Its reference model is
stated as 78,666 parameters, with the 480 running means and variances of BatchNorm
among them; those that are trained are 78,186.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import Conv2d


@final
class Stack(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes.

    The shortcut has no BatchNorm. Every convolution has a bias.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        same = in_channels == channels and stride == 1
        self.shortcut = nn.Identity() if same else Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×channels×(H/stride)×(W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


@final
class ResNet8(nn.Module):
    """A convolution and three stacks of 16, 32 and 64 channels, their mean, and a linear head.

    The reference pads strided convolutions on the right and below only, as TensorFlow does; here
    they are padded on all sides, which changes no count.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = Conv2d(in_channels, 16, 3, 1, 1)
        self.stem_bn = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(Stack(16, 16, 1), Stack(16, 32, 2), Stack(32, 64, 2))
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.stages(F.relu(self.stem_bn(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet8(num_classes: int, in_channels: int = 3) -> ResNet8:
    """Build ResNet-8 of MLPerf Tiny."""
    return ResNet8(num_classes, in_channels)
