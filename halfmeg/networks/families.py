"""Families: networks whose widths, depths and resolution are settings, as in `residual(width=16)`.

A family's parameters say by their annotations which values a search may give them
(`halfmeg.places.settings`). `shrink` averages squares of pixels first, so that one set of images
serves networks of several resolutions.
"""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.gated import GatedNet
from halfmeg.networks.he2015 import BasicBlock
from halfmeg.networks.layers import Conv2d
from halfmeg.networks.sandler2018 import InvertedResidual
from halfmeg.networks.whitened import WhitenedNet, WhitenedResNet


def whitened(
    num_classes: int,
    filters: Literal[6, 8, 12] = 12,
    width1: Annotated[int, range(8, 65, 8)] = 32,
    width2: Annotated[int, range(8, 129, 8)] = 88,
    width3: Annotated[int, range(8, 129, 8)] = 104,
    depth: Literal[1, 2, 3, 4] = 3,
    shortcut: bool = True,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> WhitenedNet:
    """Build stages that pool early behind a whitening layer, as those of `sprint`."""
    return WhitenedNet(
        filters, (width1, width2, width3), depth, num_classes,
        residual=shortcut, bn_momentum=0.1, in_channels=in_channels, shrink=shrink,
    )  # fmt: skip


def whitened_residual(
    num_classes: int,
    filters: Literal[6, 8, 12] = 12,
    width: Annotated[int, range(8, 41, 8)] = 32,
    growth: Annotated[int, range(8, 49, 8)] = 32,
    depth1: Literal[1, 2, 3] = 1,
    depth2: Literal[1, 2, 3] = 2,
    depth3: Literal[1, 2, 3] = 2,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> WhitenedResNet:
    """Build a network of the kind of `record`; each stage has `growth` channels more."""
    return WhitenedResNet(
        filters, (width, width + growth, width + 2 * growth), (depth1, depth2, depth3),
        num_classes, in_channels=in_channels, shrink=shrink,
    )  # fmt: skip


def whitened_mobile(
    num_classes: int,
    filters: Literal[6, 8, 12] = 12,
    stem: Literal[16, 12, 8] = 16,
    width1: Annotated[int, range(8, 65, 8)] = 32,
    width2: Annotated[int, range(8, 129, 8)] = 48,
    depth1: Literal[1, 2, 3] = 1,
    depth2: Literal[2, 1, 3, 4] = 2,
    expansion: Literal[2, 3, 4, 6] = 2,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> WhitenedResNet:
    """Build residual blocks on maps of half the images' size, and inverted residuals on a quarter.

    On the images' size there is only a convolution to `stem` channels. `depth1` blocks are followed
    by one that halves the maps again, and that by `depth2` inverted residuals. No stage has fewer
    channels than the one before.
    """
    width1 = max(stem, width1)
    return WhitenedResNet(
        filters, (stem, width1, max(width1, width2)), (0, depth1, 1), num_classes,
        inverted=depth2, expansion=expansion, in_channels=in_channels, shrink=shrink,
    )  # fmt: skip


@final
class StagedNet(nn.Module):
    """A convolution, stages of blocks, the mean of each channel, and a linear head.

    Args:
        stem: channels of the first convolution, 3×3.
        stages: what follows it, each a network of maps.
        channels: that come out of the last stage.
        num_classes: length of the logits.
        shrink: side of the squares of pixels that are averaged first.
        in_channels: of the images.
    """

    def __init__(
        self,
        stem: int,
        stages: list[nn.Module],
        channels: int,
        num_classes: int,
        shrink: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        self.stem = Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(stem)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = F.relu(self.stem_bn(self.stem(self.shrink(x))))
        return self.head(self.stages(x).mean((2, 3)))  # type: ignore[no-any-return]


def residual(
    num_classes: int,
    width: Annotated[int, range(4, 41, 4)] = 16,
    stages: Literal[2, 3, 4] = 3,
    depth: Literal[1, 2, 3, 4] = 1,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> StagedNet:
    """Build a residual network of He et al. 2015: `depth` blocks a stage, widths that double."""
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(stages):
        out = width * 2**stage
        for index in range(depth):
            blocks.append(BasicBlock(channels, out, 2 if stage and not index else 1))
            channels = out
    return StagedNet(width, blocks, channels, num_classes, shrink, in_channels)


def mobile(
    num_classes: int,
    width: Annotated[int, range(4, 41, 4)] = 16,
    expansion: Literal[2, 3, 4, 6] = 4,
    stages: Literal[2, 3, 4] = 3,
    depth: Literal[1, 2, 3, 4] = 2,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> StagedNet:
    """Build inverted residuals of Sandler et al. 2018 in a few stages, without their last layer.

    The first block widens nothing, as theirs; then `depth` blocks a stage, whose widths double.
    """
    blocks: list[nn.Module] = [InvertedResidual(width, width, 1, 1)]
    channels = width
    for stage in range(stages):
        out = width * 2**stage
        for index in range(depth):
            blocks.append(InvertedResidual(channels, out, 1 if index else 2, expansion))
            channels = out
    return StagedNet(width, blocks, channels, num_classes, shrink, in_channels)


def depthwise_gated(
    num_classes: int,
    width1: Annotated[int, range(8, 65, 8)] = 48,
    width2: Annotated[int, range(8, 129, 8)] = 80,
    depth: Literal[1, 2, 3] = 3,
    shrink: Literal[1, 2] = 1,
    in_channels: int = 3,
) -> nn.Module:
    """Build a network of the kind of `gated`, with BatchNorm, which has a form in integers."""
    net = GatedNet((width1, width2), depth, num_classes, in_channels, norm=nn.BatchNorm2d)
    return nn.Sequential(nn.AvgPool2d(shrink), net) if shrink > 1 else net
