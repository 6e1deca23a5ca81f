"""ResNet-20, ResNet-32 and ResNet-56 for small images, and public checkpoints of them.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import final

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.networks.layers import Conv2d


@final
class BasicBlock(nn.Module):
    """The block of He et al. 2015 with the parameter-free shortcut, option A.

    Where the shape changes, the shortcut takes every second pixel and fills the new channels
    with zeros, half of them on each side.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×out_channels×(H/stride)×(W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.new_channels:
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


@final
class CifarResNet(nn.Module):
    """The 6n+2-layer CIFAR network of He et al. 2015: stages of 16, 32 and 64 channels.

    Args:
        depth: 6n+2, as in 20 or 32.
        num_classes: length of the logits.
        in_channels: of the images.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            stride = width // channels  # 1, then 2 where the width doubles
            rest = (BasicBlock(width, width, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(BasicBlock(channels, width, stride), *rest))
            channels = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # the initialization of the paper

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = F.relu(self.stem_bn(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def resnet20(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-20 of He et al. 2015."""
    return CifarResNet(20, num_classes, in_channels)


def resnet32(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-32 of He et al. 2015."""
    return CifarResNet(32, num_classes, in_channels)


def resnet56(num_classes: int, in_channels: int = 3) -> CifarResNet:
    """Build ResNet-56 of He et al. 2015, which has more parameters than the budget."""
    return CifarResNet(56, num_classes, in_channels)


def convert_public_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a public CIFAR ResNet-20/32/56 to the names of `CifarResNet`.

    Several public projects store He et al.'s networks under the names `conv1`, `bn1`,
    `layer1.0.conv1` …, `linear` (some with `module.` in front, left by DataParallel):

    | theirs | ours |
    |---|---|
    | `conv1`, `bn1` | `stem`, `stem_bn` |
    | `layer1`, `layer2`, `layer3` | `stages.0`, `stages.1`, `stages.2` |
    | `linear`, `fc` | `head` |

    Raises:
        ValueError: a name outside that table.
    """
    stems = {"conv1": "stem", "bn1": "stem_bn", "linear": "head", "fc": "head"}
    stems |= {f"layer{i}": f"stages.{i - 1}" for i in (1, 2, 3)}
    converted = {}
    for key, value in state.items():
        first, _, rest = key.removeprefix("module.").partition(".")
        if first not in stems:
            raise ValueError(
                f"weight {key!r} is none of a CIFAR ResNet; expected: {', '.join(stems)}"
            )
        converted[f"{stems[first]}.{rest}"] = value
    return converted


def load_public_resnet(path: str | Path, name: str, num_classes: int = 10) -> CifarResNet:
    """Load a checkpoint of ResNet-20/32/56 that another project has stored.

    The file is safetensors, or torch's format read without unpickling code; the weights may stand
    under the key `state_dict`. Names are mapped as `convert_public_resnet` documents.

    Args:
        path: the file.
        name: `resnet20`, `resnet32` or `resnet56`.
        num_classes: of its head.

    Raises:
        ValueError: no CIFAR ResNet, unreadable, or names and shapes that do not fit.
    """
    builders = {"resnet20": resnet20, "resnet32": resnet32, "resnet56": resnet56}
    if name not in builders:
        raise ValueError(f"model {name!r} is no CIFAR ResNet; allowed: {', '.join(builders)}")
    model = builders[name](num_classes)
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
        model.load_state_dict(convert_public_resnet(state))
    except Exception as error:  # what an unfit file raises depends on how it is unfit
        raise ValueError(f"{path} does not load as {name}: {error}") from None
    return model
