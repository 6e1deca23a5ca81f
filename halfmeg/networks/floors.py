"""Floors: what a network has to beat to have learned anything from the images' shape.

Logistic regression on the pixels, and a perceptron with two hidden layers of the same width.
"""

from __future__ import annotations

import math
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.networks.layers import largest_within


@final
class Perceptron(nn.Module):
    """Linear layers on the pixels, ReLU between them.

    Args:
        in_features: pixels times channels.
        hidden: widths of the hidden layers; none makes it logistic regression.
        num_classes: length of the logits.
    """

    def __init__(self, in_features: int, hidden: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers = []
        for width in hidden:
            layers.append(nn.Linear(in_features, width))
            in_features = width
        self.hidden = nn.ModuleList(layers)
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


def logistic(num_classes: int, image_size: ImageSize) -> Perceptron:
    """Build logistic regression."""
    return Perceptron(math.prod(image_shape(image_size)), (), num_classes)


def mlp(num_classes: int, image_size: ImageSize, budget: int) -> Perceptron:
    """Build the widest perceptron with two hidden layers below a budget."""

    def build(scale: float) -> Perceptron:
        width = max(8, 8 * round(16 * scale))
        return Perceptron(math.prod(image_shape(image_size)), (width, width), num_classes)

    return largest_within(build, budget)
