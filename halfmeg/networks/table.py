"""The networks: blocks, the `MODELS` table and `build_model`.

The four networks of the published study are built exactly as published: every convolution has a
bias, and the modules are nested so that torch-summary prints the published tables. ResNet-20 and
ResNet-32 follow He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.
`sprint` and `record` are this project's own, after Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on
a Single GPU" (arXiv 2404.00498): a whitening first layer, few and wide layers, early pooling.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from halfmeg.config import BUDGET
from halfmeg.networks.he2015 import resnet20, resnet32
from halfmeg.networks.study import cnn, resnet, resnet_linear, resnet_shared
from halfmeg.networks.whitened import record, sprint


@dataclass(frozen=True)
class ModelEntry:
    """A row of `MODELS`: how to build a network, what it is, and the sizes it takes.

    `build` takes the number of classes, and where the network is `scalable` a budget too.
    """

    build: Callable[..., nn.Module]
    description: str
    image_size: int | None = None  # None: any size from `smallest` up
    smallest: int = 8
    scalable: bool = False

    def takes(self, size: int) -> bool:
        """Whether the network takes square images of this side in pixels."""
        return size == self.image_size if self.image_size else size >= self.smallest


MODELS: dict[str, ModelEntry] = {
    "cnn": ModelEntry(cnn, "the study's plain CNN", 32),
    "resnet": ModelEntry(resnet, "the study's ResNet with its hidden head (over the budget)", 32),
    "resnet-linear": ModelEntry(resnet_linear, "the same body with a linear head", 32),
    "resnet-shared": ModelEntry(resnet_shared, "each block applied twice, shared weights", 32),
    "resnet20": ModelEntry(resnet20, "ResNet-20 of He et al. 2015, option A shortcuts"),
    "resnet32": ModelEntry(resnet32, "ResNet-32 of He et al. 2015, option A shortcuts"),
    "sprint": ModelEntry(sprint, "soonest at 85%; takes budget=", smallest=9, scalable=True),
    "record": ModelEntry(record, "the most accurate; takes budget=", smallest=9, scalable=True),
}


def build_model(
    name: str, num_classes: int = 10, image_size: int = 32, budget: int = BUDGET
) -> nn.Module:
    """Build a network by its name, randomly initialized from torch's current random state.

    Args:
        name: a key of `MODELS`.
        num_classes: length of the logits, 2 or more.
        image_size: side of the square images in pixels.
        budget: a network that scales becomes the widest with fewer parameters than this.

    Raises:
        ValueError: unknown name, too few classes, a size that the network does not take, or a
            budget of its own for a network that comes in one size.

    Example:
        >>> from halfmeg import build_model
        >>> sum(weight.numel() for weight in build_model("resnet-shared").parameters())
        491082
    """
    if name not in MODELS:
        close = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"model {name!r} is not known; {hint}allowed: {', '.join(MODELS)}")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes} is out of range; allowed: 2 or more")
    entry = MODELS[name]
    if not entry.takes(image_size):
        allowed = entry.image_size or f"{entry.smallest} or more"
        raise ValueError(f"image_size={image_size} does not fit {name}; allowed: {allowed}")
    if entry.scalable:
        return entry.build(num_classes, budget)
    if budget != BUDGET:
        scalable = ", ".join(key for key, other in MODELS.items() if other.scalable)
        raise ValueError(f"budget={budget} is not for {name}, of one size; allowed: {scalable}")
    return entry.build(num_classes)
