"""The networks that go by a name: the `MODELS` table and `build_model`.

The four networks of the published study are built exactly as published. The others follow the
papers that their files name. `sprint` and `record` are this project's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfmeg.config import BUDGET
from halfmeg.data.shape import ImageShape, ImageSize, image_shape
from halfmeg.errors import did_you_mean, one_line
from halfmeg.networks.banbury2021 import resnet8
from halfmeg.networks.families import (
    depthwise_gated,
    mobile,
    residual,
    whitened,
    whitened_mobile,
    whitened_residual,
)
from halfmeg.networks.floors import logistic, mlp
from halfmeg.networks.gated import gated
from halfmeg.networks.hassani2021 import cct2
from halfmeg.networks.he2015 import resnet20, resnet32, resnet56
from halfmeg.networks.huang2017 import densenet_bc_40
from halfmeg.networks.own import build_own, check_num_classes
from halfmeg.networks.sandler2018 import mobilenetv2
from halfmeg.networks.study import cnn, resnet, resnet_linear, resnet_shared
from halfmeg.networks.trial import accepts
from halfmeg.networks.trockman2022 import convmixer
from halfmeg.networks.whitened import record, sprint
from halfmeg.places.place import hand_over, is_place
from halfmeg.places.settings import Value, declared_values, split_settings

STUDY = "the study"
"""Heading of the networks of the study that all began with."""

MAX_SETTING = 1_024
"""The largest setting of a family that is built."""

MAX_PARAMS = 2**26
"""In float32 they take 256 MiB."""


@dataclass(frozen=True)
class ModelEntry:
    """A row of `MODELS`: how to build a network, what it is, and the sizes it takes.

    Attributes:
        build: takes `num_classes`, `in_channels` or `image_size`, and `budget` where its signature
            has it.
        description: one line.
        smallest: the smallest side of the images that it takes; any larger one does too.
        group: the heading that it stands under.
        ram_bytes, flash_bytes: in C, for images of 32×32 pixels and 10 classes, as
            `networks.memory` measures them; that takes a second a network, so they stand here.
        tflite_micro_bytes: of the arena in TFLite Micro, as `networks.micro` estimates it; None
            where there is no form of it.
    """

    build: Callable[..., nn.Module]
    description: str
    smallest: int = 8
    group: str = ""
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    tflite_micro_bytes: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What may be set behind its name, and the values of each; empty for none."""
        return declared_values(self.build)

    @property
    def scalable(self) -> bool:
        """Whether a budget chooses its widths."""
        return "budget" in inspect.signature(self.build).parameters

    @property
    def fixed(self) -> bool:
        """Whether a network, once built, takes images of one size only."""
        return "image_size" in inspect.signature(self.build).parameters

    @property
    def sizes(self) -> str:
        """The sides that it takes, in words."""
        return f"{self.smallest} or more"

    def takes(self, size: ImageSize) -> bool:
        """Whether it is built for images of this size in pixels."""
        return image_shape(size).shortest >= self.smallest


MODELS: dict[str, ModelEntry] = {
    "cnn": ModelEntry(
        cnn, "the study's plain CNN",
        smallest=16, group=STUDY,
        ram_bytes=36_224, flash_bytes=83_536, tflite_micro_bytes=58_056,
    ),
    "resnet": ModelEntry(
        resnet, "the study's ResNet with its hidden head (over the budget)",
        smallest=9, group=STUDY,
        ram_bytes=17_536, flash_bytes=1_030_036, tflite_micro_bytes=46_852,
    ),
    "resnet-linear": ModelEntry(
        resnet_linear, "the same body with a linear head",
        smallest=9, group=STUDY,
        ram_bytes=17_536, flash_bytes=497_044, tflite_micro_bytes=36_796,
    ),
    "resnet-shared": ModelEntry(
        resnet_shared, "each block applied twice, shared weights",
        smallest=9, group=STUDY,
        ram_bytes=17_536, flash_bytes=500_664, tflite_micro_bytes=50_384,
    ),
    "resnet8": ModelEntry(
        resnet8, "ResNet-8 of MLPerf Tiny (Banbury et al. 2021)",
        group="residual networks",
        ram_bytes=33_920, flash_bytes=81_268, tflite_micro_bytes=58_300,
    ),
    "resnet20": ModelEntry(
        resnet20, "ResNet-20 of He et al. 2015, option A shortcuts",
        group="residual networks",
        ram_bytes=33_920, flash_bytes=275_420, tflite_micro_bytes=81_940,
    ),
    "resnet32": ModelEntry(
        resnet32, "ResNet-32 of He et al. 2015, option A shortcuts",
        group="residual networks",
        ram_bytes=33_920, flash_bytes=472_612, tflite_micro_bytes=89_436,
    ),
    "resnet56": ModelEntry(
        resnet56, "ResNet-56 of He et al. 2015 (over the budget)",
        group="residual networks",
        ram_bytes=33_920, flash_bytes=866_996, tflite_micro_bytes=104_428,
    ),
    "densenet-bc-40": ModelEntry(
        densenet_bc_40, "DenseNet-BC-40 (Huang et al. 2017), growth 12",
        group="residual networks",
        ram_bytes=233_472, flash_bytes=204_824, tflite_micro_bytes=370_136,
    ),
    "mobilenetv2": ModelEntry(
        mobilenetv2, "MobileNetV2 (Sandler et al. 2018) at CIFAR strides; takes budget=",
        group="depthwise networks",
        ram_bytes=212_992, flash_bytes=537_784, tflite_micro_bytes=292_416,
    ),
    "convmixer": ModelEntry(
        convmixer, "ConvMixer (Trockman and Kolter 2022) of 8 layers; takes budget=",
        group="depthwise networks",
        ram_bytes=178_176, flash_bytes=728_608,
    ),
    "gated": ModelEntry(
        gated, "depthwise filters on quarters, a gated pair; takes budget=",
        group="depthwise networks",
        ram_bytes=573_440, flash_bytes=533_250, tflite_micro_bytes=757_760,
    ),
    "cct2": ModelEntry(
        cct2, "CCT-2/3×2, a small vision transformer (Hassani et al. 2021)",
        group="transformers",
        ram_bytes=81_920, flash_bytes=395_596,
    ),
    "mlp": ModelEntry(
        mlp, "two hidden layers on the pixels; takes budget=",
        group="floors",
        ram_bytes=12_440, flash_bytes=494_592, tflite_micro_bytes=10_408,
    ),
    "logistic": ModelEntry(
        logistic, "logistic regression on the pixels",
        group="floors",
        ram_bytes=12_288, flash_bytes=31_312, tflite_micro_bytes=7_480,
    ),
    "sprint": ModelEntry(
        sprint, "soonest at 85%; takes budget=",
        smallest=9, group="halfmeg's own",
        ram_bytes=23_152, flash_bytes=501_648, tflite_micro_bytes=56_504,
    ),
    "record": ModelEntry(
        record, "the most accurate; takes budget=",
        group="halfmeg's own",
        ram_bytes=99_456, flash_bytes=481_964, tflite_micro_bytes=158_564,
    ),
}  # fmt: skip

FAMILIES: dict[str, ModelEntry] = {
    "whitened": ModelEntry(
        whitened, "pooling early behind a whitening layer, as sprint", smallest=9
    ),
    "whitened-mobile": ModelEntry(whitened_mobile, "blocks of record, then inverted residuals"),
    "whitened-residual": ModelEntry(whitened_residual, "of the kind of record"),
    "residual": ModelEntry(residual, "He et al. 2015"),
    "mobile": ModelEntry(mobile, "inverted residuals of Sandler et al. 2018"),
    "depthwise-gated": ModelEntry(depthwise_gated, "of the kind of gated, with BatchNorm"),
}
"""Networks that take settings, as in `residual(width=16,depth=2)`."""


def find_entry(name: str) -> tuple[ModelEntry, dict[str, Value]]:
    """Return the row of a network of `MODELS` or `FAMILIES`, and the settings behind its name.

    Raises:
        ValueError: a name in neither, or settings that it does not take.
    """
    head, settings = split_settings(name)
    known = {**MODELS, **FAMILIES}
    if head not in known:
        hint = did_you_mean(head, known)
        raise ValueError(
            f"model {head!r} is not known; {hint}allowed: {', '.join(MODELS)}, or FILE.py:NAME; "
            f"with settings: {', '.join(FAMILIES)}"
        )
    entry = known[head]
    own = list(entry.settings)
    for key in settings:
        if key not in own:
            hint = did_you_mean(key, own)
            raise ValueError(
                f"{key!r} is no setting of {head}; {hint}allowed: {', '.join(own) or 'none'}"
            )
        value = settings[key]
        if not (isinstance(value, bool) or (isinstance(value, int) and 0 < value <= MAX_SETTING)):
            raise ValueError(f"{key}={value!r} is out of range; allowed: 1 to {MAX_SETTING:,}")
    return entry, settings


def build_model(
    name: Any, num_classes: int = 10, image_size: ImageSize = 32, budget: int = BUDGET
) -> nn.Module:
    """Build a network by its name, randomly initialized from torch's current random state.

    Args:
        name: a key of `MODELS`; one of `FAMILIES` with settings, as in `residual(width=16)`; or a
            network of one's own: its place, such as `FILE.py:NAME`, or the class, function or
            instance itself.
        num_classes: length of the logits, 2 or more.
        image_size: side of square RGB images in pixels, (height, width), or (channels, height,
            width).
        budget: a network that scales becomes the widest with fewer parameters than this.

    Raises:
        ValueError: unknown name, too few classes, a size that the network does not take, or a
            budget of its own for a network that comes in one size; or what is wrong at a place.

    Example:
        >>> from halfmeg import build_model
        >>> sum(weight.numel() for weight in build_model("resnet-shared").parameters())
        491082
    """
    name = hand_over(name)
    check_num_classes(num_classes)
    if is_place(name):
        return build_own(name, num_classes, image_size, budget)
    entry, own = find_entry(name)
    shape = image_shape(image_size)
    if not entry.takes(shape):
        raise ValueError(
            f"image_size={shape.written} does not fit {name}; allowed: sides of {entry.sizes}"
        )
    if budget != BUDGET and not entry.scalable:
        scalable = ", ".join(key for key, other in MODELS.items() if other.scalable)
        raise ValueError(f"budget={budget} is not for {name}, of one size; allowed: {scalable}")
    settings: dict[str, Any] = {
        "num_classes": num_classes, "in_channels": shape.channels, "image_size": shape,
        "budget": budget,
    }  # fmt: skip
    taken = inspect.signature(entry.build).parameters
    given = {key: value for key, value in settings.items() if key in taken} | own
    try:
        if not entry.scalable:
            _try_without_memory(entry, given, shape if entry.settings else None)
        return entry.build(**given)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:
        if not own and isinstance(error, ValueError):
            raise
        raise ValueError(f"{name} cannot be built: {one_line(error)}") from None


def _try_without_memory(entry: ModelEntry, given: dict[str, Any], shape: ImageShape | None) -> None:
    """Build a network whose weights take no memory, and show it an image of a shape, if given.

    Raises:
        MemoryError: it has more parameters than a weights file may hold.
        RuntimeError: its layers do not fit each other.
    """
    with torch.device("meta"), torch.no_grad():
        network = entry.build(**given)
        count = sum(parameter.numel() for parameter in network.parameters())
        if count > MAX_PARAMS:
            raise MemoryError(f"it would have {count:,} parameters; allowed: {MAX_PARAMS:,}")
        if shape is not None:
            network.eval()(torch.zeros(1, *shape))


def other_sizes(
    name: str, model: nn.Module, num_classes: int, shape: ImageShape, sizes: Iterable[int]
) -> list[int]:
    """Return those of some shorter sides that a network, built for images of a shape, takes too."""
    entry = None if is_place(name) else find_entry(name)[0]
    if entry is None or entry.settings:
        return [size for size in sizes if accepts(model, num_classes, shape.scaled_to(size))]
    return [size for size in sizes if entry.takes(size) and not entry.fixed]
