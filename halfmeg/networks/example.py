"""A network to start from: any torch.nn.Module from images to logits will do.

Train it:             halfmeg train common model=FILE.py:Net
Compare it:           halfmeg compare FILE.py:Net resnet20 --seeds 3
Look at its layers:   halfmeg summary FILE.py:Net
"""

import torch
from torch import nn


class Net(nn.Module):
    """Three convolutions, the mean of each channel, a linear head."""

    # num_classes is always given. in_channels, image_size and budget are given too where the
    # signature has them; any other argument needs a default.
    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * width)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map normalized images B×3×H×W to logits B×num_classes, without softmax."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))
