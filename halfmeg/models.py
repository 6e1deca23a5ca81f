"""The networks: blocks, the `MODELS` table and `build_model`.

The four networks of the published study are built exactly as published: every convolution has a
bias, and the modules are nested so that torch-summary prints the published tables. ResNet-20 and
ResNet-32 follow He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2.
`sprint` and `record` are this project's own, after Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on
a Single GPU" (arXiv 2404.00498): a whitening first layer, few and wide layers, early pooling.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from halfmeg.config import BUDGET

WHITENING_KERNEL = 2
WHITENING_EPSILON = 5e-4
HEAD_SCALE = 1 / 9  # of Jordan 2024: the first logits are small


class _StridedConvolution(torch.autograd.Function):
    """A convolution whose weight gradient is one matrix product over the unfolded input.

    oneDNN's own kernel for it is slow where the stride is 2, in bfloat16 and channels_last
    (docs/performance.md).
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor,
        bias: Tensor | None, stride: int, padding: int,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """Convolve for several networks at once, with torch's own gradient (`halfmeg.stack`)."""
        convolve = partial(F.conv2d, stride=stride, padding=padding)
        return torch.vmap(convolve, in_dims[:3])(x, weight, bias), 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(x.shape, weight, grad, stride, padding)  # type: ignore[no-untyped-call]
        B, C, _, _ = x.shape
        out_channels, _, kernel, _ = weight.shape
        height, width = grad.shape[2:]
        padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)  # (B, H, W, C)
        step_b, step_h, step_w, step_c = padded.stride()
        patches = padded.as_strided(
            (B, height, width, kernel, kernel, C),
            (step_b, step_h * stride, step_w * stride, step_h, step_w, step_c),
        ).reshape(B * height * width, kernel * kernel * C)
        flat = grad.permute(0, 2, 3, 1).reshape(B * height * width, out_channels)
        grad_weight = (flat.T @ patches).view(out_channels, kernel, kernel, C)
        grad_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight.permute(0, 3, 1, 2), grad_bias, None, None


@final
class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a faster weight gradient where it is strided and trains on a processor."""

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to B×out_channels×(H/stride)×(W/stride)."""
        (stride, _), in_training = self.stride, self.training and torch.is_grad_enabled()
        if not (in_training and x.device.type == "cpu" and stride > 1 and self.in_channels >= 16):
            return super().forward(x)
        # autocast does not reach into the function, so the weights take the input's type here
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        assert isinstance(self.padding[0], int)
        return _StridedConvolution.apply(x, weight, bias, stride, self.padding[0])  # type: ignore[no-any-return, no-untyped-call]


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
        """Map normalized images B×3×32×32 to logits B×num_classes."""
        for layer in self.layers:
            x = layer(x)
        return x

    def body_modules(self) -> list[nn.Module]:
        """Return all but the head: what the published parameter counts took in."""
        return list(self.layers)[:-1]

    def last_map(self) -> nn.Module:
        """Return the layer whose output is the last map before the pooling in front of the head."""
        return next(m for m in reversed(self.layers) if isinstance(m, ResBlock | nn.ReLU))


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
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = Conv2d(3, 16, 3, 1, 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        in_channels = 16
        for width in (16, 32, 64):
            stride = width // in_channels  # 1, then 2 where the width doubles
            rest = (BasicBlock(width, width, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(BasicBlock(in_channels, width, stride), *rest))
            in_channels = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)  # the initialization of the paper

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×3×H×W to logits B×num_classes."""
        x = F.relu(self.stem_bn(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def body_modules(self) -> list[nn.Module]:
        """Return all but the head."""
        return [self.stem, self.stem_bn, self.stages]

    def last_map(self) -> nn.Module:
        """Return the last stage."""
        return self.stages[-1]


@final
class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that looks at the means of all (Hu et al. 2018, section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 8)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×C×H×W to the same shape."""
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class UnitBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose scale stays 1, so it is never negative and commutes with max-pooling.

    The scale is still counted among the parameters. In short trainings it is not missed (Jordan
    2024, section 3).
    """

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, momentum=momentum)
        self.weight.requires_grad_(False)


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
        filters: whitening filters, of the 12 that there are: those of the largest variance.
        widths: channels of the stages.
        depth: convolutions in a stage.
        residual: whether stages have a shortcut and a gate.
        bn_momentum: share of the newest batch in BatchNorm's running statistics.
        num_classes: length of the logits.
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
    ) -> None:
        super().__init__()
        in_channels = 2 * filters
        self.whitening = nn.Conv2d(3, in_channels, WHITENING_KERNEL)
        # with nothing to train in front of it, the largest map needs no gradient: a tenth of a step
        self.whitening.requires_grad_(False)
        stages = []
        for width in widths:
            stages.append(
                PoolStage(in_channels, width, depth, residual=residual, bn_momentum=bn_momentum)
            )
            in_channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(in_channels, num_classes, bias=False)

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer to the whitening filters of normalized images N×3×H×W.

        The filters are the eigenvectors of the covariance of the patches that the layer sees,
        divided by the root of their eigenvalues; each stands there with both signs, since an
        activation follows (Jordan 2024, section 3.1).
        """
        kernel = WHITENING_KERNEL
        patches = images.unfold(2, kernel, 1).unfold(3, kernel, 1)  # N×3×h×w×k×k
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * kernel**2).double()
        values, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))  # the smallest first
        kept = self.whitening.out_channels // 2
        values, vectors = values[-kept:], vectors[:, -kept:]
        filters = (vectors / (values + WHITENING_EPSILON).sqrt()).T.reshape(-1, 3, kernel, kernel)
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.whitening.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×3×H×W to logits B×num_classes."""
        x = self.stages(F.silu(self.whitening(x)))
        return self.head(x.amax((2, 3))) * HEAD_SCALE  # type: ignore[no-any-return]

    def body_modules(self) -> list[nn.Module]:
        """Return all but the head."""
        return [self.whitening, self.stages]

    def last_map(self) -> nn.Module:
        """Return the last layer whose map is finer than a few positions."""
        return self.stages[-2]


Model = StudyNet | CifarResNet | WhitenedNet


def cnn(num_classes: int) -> StudyNet:
    """Build the study's plain CNN: four convolutions without padding, two max-pools."""
    return StudyNet(
        [
            Conv2d(3, 32, 3),
            Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            Conv2d(32, 64, 3),
            Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            MLP(64 * 5 * 5, (), num_classes),
        ]
    )


def _study_resnet(hidden: tuple[int, ...], num_classes: int, uses: int) -> StudyNet:
    layers: list[nn.Module] = []
    in_channels = 3
    for width in (32, 64, 128):
        kernel, padding = (7, 3) if in_channels == 3 else (3, 1)
        layers += [
            Conv2d(in_channels, width, kernel, 2, padding),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers += [ResBlock(width)] * uses  # the same module: its weights are shared
        in_channels = width
    return StudyNet([*layers, nn.AvgPool2d(2), MLP(128 * 2 * 2, hidden, num_classes)])


def resnet(num_classes: int) -> StudyNet:
    """Build the ResNet of the published comparison, head 512→512→512→num_classes included."""
    return _study_resnet((512, 512), num_classes, uses=1)


def resnet_linear(num_classes: int) -> StudyNet:
    """Build the same body as `resnet` with a linear head, which fits the budget."""
    return _study_resnet((), num_classes, uses=1)


def resnet_shared(num_classes: int) -> StudyNet:
    """Build `resnet_linear` with each block applied twice, with the same weights."""
    return _study_resnet((), num_classes, uses=2)


def resnet20(num_classes: int) -> CifarResNet:
    """Build ResNet-20 of He et al. 2015."""
    return CifarResNet(20, num_classes)


def resnet32(num_classes: int) -> CifarResNet:
    """Build ResNet-32 of He et al. 2015."""
    return CifarResNet(32, num_classes)


def sprint(num_classes: int, budget: int) -> WhitenedNet:
    """Build the network of the speed run: three stages of two convolutions.

    It leaves out the four whitening filters of least variance, which tell how colour changes from
    one pixel to the next. In photographs that is little, and JPEG averages it away.
    """

    def build(scale: float) -> WhitenedNet:
        widths = _scaled((32, 128, 128), scale)
        return WhitenedNet(8, widths, 2, num_classes, residual=False, bn_momentum=0.4)

    return _largest(build, budget)


def record(num_classes: int, budget: int) -> WhitenedNet:
    """Build the most accurate network: three stages of three convolutions, shortcuts, gates."""

    def build(scale: float) -> WhitenedNet:
        widths = _scaled((32, 88, 104), scale)
        return WhitenedNet(12, widths, 3, num_classes, residual=True, bn_momentum=0.1)

    return _largest(build, budget)


def _scaled(widths: tuple[int, ...], scale: float) -> tuple[int, ...]:
    return tuple(max(8, 8 * round(width * scale / 8)) for width in widths)  # whole vectors of 8


def _largest(build: Callable[[float], WhitenedNet], budget: int) -> WhitenedNet:
    """Return the widest network with fewer than `budget` parameters.

    Raises:
        ValueError: the narrowest has more.
    """

    def count(scale: float) -> int:
        with torch.device("meta"):  # shapes without memory, and without drawing random numbers
            return sum(p.numel() for p in build(scale).parameters())

    scales = [0.02 * step for step in range(1, 2 + int(0.1 * budget**0.5))]
    position = bisect.bisect_left(scales, budget, key=count)  # the first that does not fit
    if position == 0:
        raise ValueError(f"budget={budget} is too small; allowed: above {count(scales[0])}")
    return build(scales[position - 1])


@dataclass(frozen=True)
class ModelEntry:
    """A row of `MODELS`: how to build a network, what it is, and the sizes it takes.

    `build` takes the number of classes, and where the network is `scalable` a budget too.
    """

    build: Callable[..., Model]
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
) -> Model:
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


def convert_public_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a public CIFAR ResNet-20/32 to the names of `CifarResNet`.

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
