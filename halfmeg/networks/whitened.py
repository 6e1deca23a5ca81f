"""`sprint` and `record`, the project's own networks: a whitening first layer, early pooling.

After Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498): few and
wide layers behind a first layer that is computed from the training images.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import Conv2d, SqueezeExcite, UnitBatchNorm2d, largest_within

WHITENING_KERNEL = 2

WHITENING_EPSILON = 5e-4

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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # passes its input on at first
                nn.init.dirac_(module.weight[: module.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×channels×(H/2)×(W/2)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (1, 1 - width % 2, 1, 1 - height % 2))  # no zeros behind an odd last row
        x = F.silu(self.bn1(self.pool(self.conv1(x))))
        y = self.rest(x)
        return F.silu(y if self.gate is None else x + self.gate(y))


@final
class WhitenedNet(nn.Module):
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
        super().__init__()
        self.shrink = nn.AvgPool2d(shrink) if shrink > 1 else nn.Identity()
        channels = 2 * min(filters, in_channels * WHITENING_KERNEL**2)
        self.whitening = nn.Conv2d(in_channels, channels, WHITENING_KERNEL)
        # with nothing to train in front of it, the largest map needs no gradient: a tenth of a step
        self.whitening.requires_grad_(False)
        stages = []
        for width in widths:
            stages.append(
                PoolStage(channels, width, depth, residual=residual, bn_momentum=bn_momentum)
            )
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes, bias=False)

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the first layer to the whitening filters of normalized images N×C×H×W.

        The filters are the eigenvectors of the covariance of the patches that the layer sees,
        divided by the root of their eigenvalues; each stands there with both signs, since an
        activation follows (Jordan 2024, section 3.1).
        """
        kernel, images = WHITENING_KERNEL, self.shrink(images)
        patches = images.unfold(2, kernel, 1).unfold(3, kernel, 1)  # N×C×h×w×k×k
        length = images.shape[1] * kernel**2
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, length).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))  # the smallest first
        kept = self.whitening.out_channels // 2
        values, vectors = values[-kept:], vectors[:, -kept:]
        filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T
        both = torch.cat([filters, -filters])
        self.whitening.weight.copy_(both.reshape(self.whitening.weight.shape))
        self.whitening.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.stages(F.silu(self.whitening(self.shrink(x))))
        return self.head(x.amax((2, 3))) * HEAD_SCALE  # type: ignore[no-any-return]

    def last_map(self) -> nn.Module:
        """Return the last layer whose map is finer than a few positions."""
        return self.stages[-2]


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


def record(num_classes: int, budget: int, in_channels: int = 3) -> WhitenedNet:
    """Build the most accurate network: three stages of three convolutions, shortcuts, gates."""

    def build(scale: float) -> WhitenedNet:
        widths = _scaled((32, 88, 104), scale)
        return WhitenedNet(
            12, widths, 3, num_classes, residual=True, bn_momentum=0.1, in_channels=in_channels
        )

    return largest_within(build, budget)


def _scaled(widths: tuple[int, ...], scale: float) -> tuple[int, ...]:
    return tuple(max(8, 8 * round(width * scale / 8)) for width in widths)  # whole vectors of 8
