"""A convolution computed in other ways: the same sums, within rounding, on other kernels.

| way | what it is | where |
|---|---|---|
| `conv` | torch's convolution as it is called | everywhere |
| `other order` | the same, in the other order of memory and back | grouped |
| `phases` | a dilated one as one that is not, on the grids that it looks at | dilated, stride 1 |

Each has a form in float32 too, for runs in bfloat16: `conv float32`. Grouped and dilated
convolutions are those for which oneDNN may have slow kernels only, and where they are both, one
that is wrong (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]

FLOAT32 = " float32"


@final
@dataclass(frozen=True)
class Convolution:
    """One convolution as a network calls it, but for the number of its images.

    Attributes:
        in_channels, out_channels, groups: of it.
        kernel, stride, padding, dilation, size: height and width; the size is of its input.
            Padding that differs by one between the two sides stays "same".
        bias: whether it has one.
        channels_last: whether its input is in that order of memory.
        bfloat16: whether it is computed in that type, by autocast or by its input's.
        gradient: whether its input needs one.
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair | Literal["same"]
    dilation: Pair
    size: Pair
    bias: bool
    channels_last: bool
    bfloat16: bool
    gradient: bool

    @classmethod
    def of(
        cls, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
        padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> Convolution | None:  # fmt: skip
        """Look at a call of `F.conv2d`; None for one image without a batch."""
        x = input
        if x.ndim != 4:
            return None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        size, kernel = _pair(x.shape[2:]), _pair(weight.shape[2:])
        return cls(
            in_channels=x.shape[1], out_channels=weight.shape[0], groups=groups, kernel=kernel,
            stride=_pair(stride), padding=_padding(padding, kernel, _pair(dilation)),
            dilation=_pair(dilation), size=size, bias=bias is not None,
            channels_last=_is_channels_last(x), bfloat16=dtype == torch.bfloat16,
            gradient=x.requires_grad,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Its shape as text, by which it is known in files."""
        parts = [f"{self.in_channels}→{self.out_channels} {_text(self.kernel)}"]
        parts += [f"groups {self.groups}"] if self.groups > 1 else []
        for key, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            pair = getattr(self, key)
            parts += [f"{key} {_text(pair)}"] if pair != (usual, usual) else []
        parts += [f"on {_text(self.size)}", "bfloat16" if self.bfloat16 else "float32"]
        parts += ["bias"] if self.bias else []
        parts += [] if self.channels_last else ["plain order"]
        parts += [] if self.gradient else ["no gradient for its input"]
        return ", ".join(parts)

    @property
    def has_wrong_gradient(self) -> bool:
        """Whether `conv` may get a gradient of its weights that is nothing like it, or NaN.

        oneDNN 3.12's kernel for bfloat16 (`jit_bf16:avx512_core_bf16`) reads what was never written
        where the rows of a grouped convolution are dilated and its input or its weights are in
        channels_last.
        """
        return self.bfloat16 and self.groups > 1 and self.dilation != (1, 1)

    def ways(self) -> list[str]:
        """Return the ways to compute it; the first is the one to take without measuring."""
        found = ["conv"]
        if self.groups > 1:
            found.append("other order")
        strided, dilated = self.stride != (1, 1), self.dilation != (1, 1)
        if dilated and not strided and self._whole_padding() is not None:
            found.append("phases")
        if self.bfloat16 and (self.groups > 1 or dilated):
            found += [way + FLOAT32 for way in found]
        if self.has_wrong_gradient:  # float32 is right in each way, and so is bfloat16 undilated
            found = [way for way in found if way.endswith(FLOAT32) or way == "phases"]
            found.sort(key=lambda way: way != "conv" + FLOAT32)
        return found

    def _whole_padding(self) -> Pair | None:
        """Return the padding counted in steps of the dilation, None where that is no number."""
        if self.padding == "same":
            return None
        (height, width), (dh, dw) = self.padding, self.dilation
        return None if height % dh or width % dw else (height // dh, width // dw)

    def compute(self, way: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve in one of its ways; the output is in the order of memory of the input.

        Args:
            way: one of `ways()`.
            x: B×in_channels×H×W.
            weight, bias: as `F.conv2d` takes them.
        """
        if way.endswith(FLOAT32):
            with torch.autocast(x.device.type, enabled=False):
                parameters = weight.float(), None if bias is None else bias.float()
                y = self.compute(way.removesuffix(FLOAT32), x.float(), *parameters)
            return y.to(torch.bfloat16)
        return _WAYS[way](self, x, weight, bias)


def _conv(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _other_order(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    orders = torch.contiguous_format, torch.channels_last
    own, other = reversed(orders) if layer.channels_last else orders
    weight = weight.contiguous(memory_format=other)
    return _conv(layer, x.contiguous(memory_format=other), weight, bias).contiguous(
        memory_format=own
    )


def _phases(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve each of the grids of every d-th row and column, which stand as images in a batch.

    They are the positions that a filter of dilation d looks at together (Yu and Koltun 2016,
    "Multi-scale context aggregation by dilated convolutions"; as "space to batch" in TensorFlow).
    """
    B, C, H, W = x.shape
    dh, dw = layer.dilation
    h, w = -(-H // dh), -(-W // dw)
    padding = layer._whole_padding()
    assert padding is not None
    if (h * dh, w * dw) != (H, W):
        x = F.pad(x, (0, w * dw - W, 0, h * dh - H))
    grids = x.permute(0, 2, 3, 1).reshape(B, h, dh, w, dw, C).permute(0, 2, 4, 1, 3, 5)
    images = grids.reshape(B * dh * dw, h, w, C).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight, bias, 1, padding, 1, layer.groups).permute(0, 2, 3, 1)
    _, h, w, C = y.shape
    y = y.reshape(B, dh, dw, h, w, C).permute(0, 3, 1, 4, 2, 5).reshape(B, h * dh, w * dw, C)
    height, width = (
        size + d * (2 * p - k + 1)
        for size, p, d, k in zip(layer.size, padding, layer.dilation, layer.kernel, strict=True)
    )
    y = y[:, :height, :width].permute(0, 3, 1, 2)
    return y if layer.channels_last else y.contiguous()


_WAYS: dict[str, Callable[[Convolution, Tensor, Tensor, Tensor | None], Tensor]] = {
    "conv": _conv,
    "other order": _other_order,
    "phases": _phases,
}


def _is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of a position stand side by side, as in a slice of channels."""
    return x.shape[1] > 1 and x.stride(1) == 1


def _padding(value: Any, kernel: Pair, dilation: Pair) -> Pair | Literal["same"]:
    """Return what torch takes for padding as height and width."""
    if value == "valid":
        return 0, 0
    if value != "same":
        return _pair(value)
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return "same" if height % 2 or width % 2 else (height // 2, width // 2)


def _pair(value: Any) -> Pair:
    """Return what torch takes for height and width: a number, or one or two of them."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    height, width = values * 2 if len(values) == 1 else values
    return int(height), int(width)


def _text(pair: Pair | Literal["same"]) -> str:
    return pair if pair == "same" else f"{pair[0]}×{pair[1]}"
