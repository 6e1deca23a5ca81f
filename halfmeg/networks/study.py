"""The four networks of the published study, built exactly as published.

Every convolution has a bias, and the modules are nested so that torch-summary prints the published
tables. The study's images are 32×32; at other sizes the layers stay and the head takes what comes.
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.networks.layers import Conv2d


@final
class MLP(nn.Module):
    """The study's head: flattens B×C×H×W, then linear layers; returns B×num_classes.

    After each hidden linear layer come BatchNorm, LeakyReLU, BatchNorm again and dropout of 0.15,
    as published.
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [
                nn.Linear(in_features, width),
                nn.BatchNorm1d(width),
                nn.LeakyReLU(),
                nn.BatchNorm1d(width),
                nn.Dropout(0.15),
            ]
            in_features = width
        self.layers = nn.ModuleList([*layers, nn.Linear(in_features, num_classes)])

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W features to B×num_classes logits."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x


@final
class ResBlock(nn.Module):
    """The study's residual block: conv, BN, ReLU, conv, BN, add the input, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to the same shape."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + x)  # type: ignore[no-any-return]


@final
class StudyNet(nn.Module):
    """A network of the study: a flat list of layers, in which a block may stand twice."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        for layer in self.layers:
            x = layer(x)
        return x

    def body_modules(self) -> list[nn.Module]:
        """Return all but the head: what the published parameter counts took in."""
        return list(self.layers)[:-1]

    def last_map(self) -> nn.Module:
        """Return the layer whose output is the last map before the pooling in front of the head."""
        return next(m for m in reversed(self.layers) if isinstance(m, ResBlock | nn.ReLU))


def cnn(num_classes: int, image_size: ImageSize = 32) -> StudyNet:
    """Build the study's plain CNN: four convolutions without padding, two max-pools."""
    in_channels, height, width = image_shape(image_size)
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    return StudyNet(
        [
            Conv2d(in_channels, 32, 3),
            Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Conv2d(32, 64, 3),
            Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            MLP(64 * rows * columns, (), num_classes),
        ]
    )


def _study_resnet(
    hidden: tuple[int, ...], num_classes: int, image_size: ImageSize, uses: int
) -> StudyNet:
    in_channels, *sides = image_shape(image_size)
    rows, columns = (math.ceil(side / 8) // 2 for side in sides)  # three strides, the mean of 2×2
    layers: list[nn.Module] = []
    for width in (32, 64, 128):
        kernel, padding = (3, 1) if layers else (7, 3)
        layers += [
            Conv2d(in_channels, width, kernel, 2, padding),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers += [ResBlock(width)] * uses  # the same module: its weights are shared
        in_channels = width
    return StudyNet([*layers, nn.AvgPool2d(2), MLP(128 * rows * columns, hidden, num_classes)])


def resnet(num_classes: int, image_size: ImageSize = 32) -> StudyNet:
    """Build the ResNet of the published comparison, head 512→512→512→num_classes included."""
    return _study_resnet((512, 512), num_classes, image_size, uses=1)


def resnet_linear(num_classes: int, image_size: ImageSize = 32) -> StudyNet:
    """Build the same body as `resnet` with a linear head, which fits the budget."""
    return _study_resnet((), num_classes, image_size, uses=1)


def resnet_shared(num_classes: int, image_size: ImageSize = 32) -> StudyNet:
    """Build `resnet_linear` with each block applied twice, with the same weights."""
    return _study_resnet((), num_classes, image_size, uses=2)
