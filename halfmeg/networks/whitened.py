"""`sprint` and `record`, the project's own networks, behind a first layer that whitens.

`sprint` is after Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498):
few and wide layers that pool early, behind a first layer that is computed from the training images.
`record` takes that layer, and residual stages that begin at the images' size.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import Conv2d, SqueezeExcite, UnitBatchNorm2d, largest_within

WHITENING_KERNEL = 2

WHITENING_EPSILON = 5e-4

RELATIVE_NOISE = 1e-9
"""Of the largest variance: what varies less is rounding."""

HEAD_SCALE = 1 / 9  # of Jordan 2024: the first logits are small


@final
class PoolStage(nn.Module):
    """A convolution to new channels, max-pooling by 2, then `depth - 1` convolutions.

    Each convolution is followed by BatchNorm and SiLU. With `residual`, the input of the
    later ones is added to their result, which first passes a squeeze-and-excite gate.

    Pooling leaves out the last row and column of a map of odd size, so the first convolution does
    not compute them: that is a quarter of its work on the 7×7 maps of the last stage.
    """

    def __init__(
        self, in_channels: int, channels: int, depth: int, *, residual: bool, bn_momentum: float
    ) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.bn1 = UnitBatchNorm2d(channels, bn_momentum)
        layers: list[nn.Module] = []
        for index in range(1, depth):
            layers += [
                Conv2d(channels, channels, 3, padding=1, bias=False),
                UnitBatchNorm2d(channels, bn_momentum),
            ]
            if index < depth - 1:
                layers.append(nn.SiLU())
        self.rest = nn.Sequential(*layers)
        self.gate = SqueezeExcite(channels) if residual else None
        _pass_on(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×channels×(H/2)×(W/2)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (1, 1 - width % 2, 1, 1 - height % 2))  # no zeros behind an odd last row
        x = F.silu(self.bn1(self.pool(self.conv1(x))))
        y = self.rest(x)
        return F.silu(y if self.gate is None else x + self.gate(y))


@final
class Whitening(nn.Conv2d):
    """A first layer that is computed from the training images and stays as it is.

    With nothing to train in front of it, the largest map needs no gradient: a tenth of a step.

    Args:
        in_channels: of the images.
        filters: those of the largest variance, of the 4 that there are for each channel of the
            images; all where there are fewer.
    """

    def __init__(self, in_channels: int, filters: int) -> None:
        kept = min(filters, in_channels * WHITENING_KERNEL**2)
        super().__init__(in_channels, 2 * kept, WHITENING_KERNEL)
        self.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set it to the whitening filters of images N×C×H×W.

        The filters are the eigenvectors of the covariance of the patches that the layer sees,
        divided by the root of their eigenvalues; each stands there with both signs, since an
        activation follows (Jordan 2024, section 3.1).
        """
        kernel = WHITENING_KERNEL
        patches = images.unfold(2, kernel, 1).unfold(3, kernel, 1)  # N×C×h×w×k×k
        length = images.shape[1] * kernel**2
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, length).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))  # the smallest first
        kept = self.out_channels // 2
        values, vectors = values[-kept:], vectors[:, -kept:]
        # Gray images vary in a third of the directions; filters of the others would see rounding
        # alone, which BatchNorm makes as loud as the rest. Those that vary are repeated instead.
        varying = (values > values[-1] * RELATIVE_NOISE).nonzero().flatten()
        index = varying[torch.arange(kept) % len(varying)] if len(varying) else torch.arange(kept)
        filters = (vectors[:, index] / (values[index] + WHITENING_EPSILON).sqrt()).T
        both = torch.cat([filters, -filters])
        self.weight.copy_(both.reshape(self.weight.shape))
        self.bias.zero_()  # type: ignore[union-attr]


class WhitenedBase(nn.Module):
    """What whitened networks begin with: images made smaller, then their whitening.

    Args:
        in_channels: of the images.
        filters: as of `Whitening`.
        shrink: side of the squares of pixels that are averaged first.
    """

    def __init__(self, in_channels: int, filters: int, shrink: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        self.whitening = Whitening(in_channels, filters)

    def prepare(self, images: Tensor) -> None:
        """Set the first layer to the whitening filters of normalized images N×C×H×W."""
        self.whitening.fit(self.shrink(images))


@final
class WhitenedNet(WhitenedBase):
    """Stages behind a first layer that is computed from the training images and stays as it is.

    Args:
        filters: whitening filters, of the 4 that there are for each channel of the images: those of
            the largest variance; all where there are fewer.
        widths: channels of the stages.
        depth: convolutions in a stage.
        residual: whether stages have a shortcut and a gate.
        bn_momentum: share of the newest batch in BatchNorm's running statistics.
        num_classes: length of the logits.
        in_channels: of the images.
        shrink: side of the squares of pixels that are averaged first.
    """

    def __init__(
        self,
        filters: int,
        widths: tuple[int, ...],
        depth: int,
        num_classes: int,
        *,
        residual: bool,
        bn_momentum: float,
        in_channels: int = 3,
        shrink: int = 1,
    ) -> None:
        super().__init__(in_channels, filters, shrink)
        channels = self.whitening.out_channels
        stages = []
        for width in widths:
            stages.append(
                PoolStage(channels, width, depth, residual=residual, bn_momentum=bn_momentum)
            )
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.stages(F.silu(self.whitening(self.shrink(x))))
        return self.head(x.amax((2, 3))) * HEAD_SCALE  # type: ignore[no-any-return]

    def last_map(self) -> nn.Module:
        """Return the last stage but one: the last one's map has a few positions at 32 pixels."""
        return self.stages[-2]


@final
class GatedBasicBlock(nn.Module):
    """Two convolutions and a squeeze-and-excite gate beside a shortcut without parameters.

    As the block of He et al. 2015 with option A, but that the shortcut averages where theirs takes
    every second pixel, and the activation is SiLU. The convolutions pass their input on at first.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.gate = SqueezeExcite(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×out_channels×(H/stride)×(W/stride), rounded up."""
        y = F.silu(self.bn1(self.conv1(x)))
        y = self.gate(self.bn2(self.conv2(y)))
        if self.stride > 1:
            height, width = x.shape[-2:]
            x = F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2)), self.stride)
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return F.silu(y + x)


@final
class GatedInvertedResidual(nn.Module):
    """Widen by a 1×1 convolution, filter each channel by 3×3, narrow, and gate, beside a shortcut.

    As the block of Sandler et al. 2018, but with a squeeze-and-excite gate, SiLU, and an activation
    behind the sum, as `GatedBasicBlock` has them.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.gate = SqueezeExcite(channels)
        for layer in (self.conv1, self.conv3):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×channels×H×W to the same shape."""
        y = F.silu(self.bn1(self.conv1(x)))
        y = F.silu(self.bn2(self.conv2(y)))
        return F.silu(self.gate(self.bn3(self.conv3(y))) + x)


@final
class WhitenedResNet(WhitenedBase):
    """Residual stages at the images' size, half of it, and so on, behind a whitening layer.

    Args:
        filters: whitening filters, as of `Whitening`.
        widths: channels of the stages, none fewer than before.
        depths: blocks in each; 0 in the first for the convolution in front of it alone.
        num_classes: length of the logits.
        inverted: inverted residuals behind the last stage.
        expansion: of those.
        in_channels: of the images.
        shrink: side of the squares of pixels that are averaged first.
    """

    def __init__(
        self,
        filters: int,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int,
        *,
        inverted: int = 0,
        expansion: int = 1,
        in_channels: int = 3,
        shrink: int = 1,
    ) -> None:
        super().__init__(in_channels, filters, shrink)
        channels = widths[0]
        self.stem = Conv2d(self.whitening.out_channels, channels, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(channels)
        blocks: list[nn.Module] = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(GatedBasicBlock(channels, width, stride))
                channels = width
        blocks += [GatedInvertedResidual(channels, expansion) for _ in range(inverted)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes, bias=False)
        _pass_on(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = F.pad(self.shrink(x), (0, 1, 0, 1))  # so that the map keeps the images' size
        x = F.silu(self.stem_bn(self.stem(F.silu(self.whitening(x)))))
        return self.head(self.blocks(x).amax((2, 3))) * HEAD_SCALE  # type: ignore[no-any-return]


def _pass_on(module: nn.Module) -> None:
    """Let the convolutions of a network pass their input on at first, as far as they can."""
    for layer in module.modules():
        if isinstance(layer, Conv2d):
            nn.init.dirac_(layer.weight[: layer.in_channels])


def sprint(num_classes: int, budget: int, in_channels: int = 3) -> WhitenedNet:
    """Build the network of the speed run: three stages of two convolutions.

    It leaves out the four whitening filters of least variance, which tell how colour changes from
    one pixel to the next. In photographs that is little, and JPEG averages it away.
    """

    def build(scale: float) -> WhitenedNet:
        widths = _scaled((32, 128, 128), scale)
        return WhitenedNet(
            8, widths, 2, num_classes, residual=False, bn_momentum=0.4, in_channels=in_channels
        )

    return largest_within(build, budget)


def record(num_classes: int, budget: int, in_channels: int = 3) -> WhitenedResNet:
    """Build the most accurate network: residual stages of one, two and two blocks."""

    def build(scale: float) -> WhitenedResNet:
        widths = _scaled((32, 64, 96), scale)
        return WhitenedResNet(12, widths, (1, 2, 2), num_classes, in_channels=in_channels)

    return largest_within(build, budget)


def _scaled(widths: tuple[int, ...], scale: float) -> tuple[int, ...]:
    return tuple(max(8, 8 * round(width * scale / 8)) for width in widths)  # whole vectors of 8
