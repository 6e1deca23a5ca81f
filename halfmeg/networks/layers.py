"""What several families of networks share: layers, and the widest that a budget allows."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

M = TypeVar("M", bound=nn.Module)

SCALE_STEP = 0.02


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
        """Convolve for several networks at once, with torch's gradient (`training.stack`)."""
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


def largest_within(build: Callable[[float], M], budget: int) -> M:
    """Return the widest network with fewer than `budget` parameters.

    Args:
        build: makes a network of a scale; a larger scale never has fewer parameters.
        budget: that it has to stay below.

    Raises:
        ValueError: the narrowest has more.
    """

    def count(step: int) -> int:
        with torch.device("meta"):  # shapes without memory, and without drawing random numbers
            return sum(p.numel() for p in build(SCALE_STEP * step).parameters())

    top = 1
    while count(top) < budget:
        top *= 2
    # the first that does not fit, counted from 0, is the last that fits, counted from 1
    step = bisect.bisect_left(range(1, top + 1), budget, key=count)
    if step == 0:
        raise ValueError(f"budget={budget} is too small; allowed: above {count(1)}")
    return build(SCALE_STEP * step)
