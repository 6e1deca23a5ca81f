"""A depthwise convolution as matrix products, one for each channel.

The pixels that a tile of the output sees, times one matrix that holds the filter at each of its
places (a banded or Toeplitz matrix), are the tile. That is several times the arithmetic, at the
rate of matrix products, which is higher than that of depthwise kernels by more than that where
filters are large (docs/performance.md).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

Pair = tuple[int, int]

ROWS, COLUMNS = 4, 32
"""Most of a tile: wider ones multiply by more zeros, lower ones copy more of the input."""
SMALL_MAP = 144
"""Positions of a map that is one tile."""


def depthwise(x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
    """Return what `F.conv2d(x, weight, padding=padding, groups=C)` does, in channels_last.

    Args:
        x: B×C×H×W; its type is that of the products.
        weight: C×1×height×width.
        padding: zeros above and below, and left and right.
    """
    return _Depthwise.apply(x, weight, padding)  # type: ignore[no-any-return, no-untyped-call]


@final
class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Pair) -> Tensor:
        kernel = weight.shape[2], weight.shape[3]
        size = tuple(
            n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], padding, kernel, strict=True)
        )
        tile = _tile_of(size)
        seen = _patches(x, padding, tile, kernel, size)
        ctx.save_for_backward(seen, weight)
        ctx.terms = x.shape[2:], padding, size
        return _joined(torch.bmm(seen, _matrices(weight, tile, x.dtype)), tile, size, len(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        seen, weight = ctx.saved_tensors
        input_size, padding, size = ctx.terms
        kernel = weight.shape[2], weight.shape[3]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # the same with the filter turned
            around = tuple(k - 1 - p for k, p in zip(kernel, padding, strict=True))
            tile = _tile_of(input_size)
            patches = _patches(grad, around, tile, kernel, input_size)
            turned = _matrices(weight.flip(2, 3), tile, grad.dtype)
            grad_x = _joined(torch.bmm(patches, turned), tile, input_size, len(grad))
        if ctx.needs_input_grad[1]:
            tile = _tile_of(size)
            own = _patches(grad, (0, 0), tile, (1, 1), size)
            products = torch.bmm(seen.transpose(1, 2), own).flatten(1)
            at_places = products[:, _places(kernel, tile).flatten()]
            sums = at_places.view(*weight.shape, -1).sum(-1, dtype=torch.float32)
            grad_weight = sums.to(weight.dtype)
        return grad_x, grad_weight, None


def _tile_of(size: tuple[int, ...]) -> Pair:
    height, width = size
    if height * width <= SMALL_MAP:
        return height, width
    return min(ROWS, height), -(-width // -(-width // COLUMNS))


def _patches(
    x: Tensor, padding: tuple[int, ...], tile: Pair, kernel: Pair, size: tuple[int, ...]
) -> Tensor:
    """Return C×(B·tiles)×positions: what each tile of an output of `size` sees of the input."""
    B, C = x.shape[:2]
    rows, columns = (-(-n // t) for n, t in zip(size, tile, strict=True))
    height, width = (t + k - 1 for t, k in zip(tile, kernel, strict=True))
    # A negative padding leaves pixels out that no output sees.
    (top, cut_top), (left, cut_left) = ((max(p, 0), max(-p, 0)) for p in padding)
    padded = x.new_zeros(C, B, (rows - 1) * tile[0] + height, (columns - 1) * tile[1] + width)
    inner = padded[:, :, top:, left:]
    own = x.permute(1, 0, 2, 3)[:, :, cut_top:, cut_left:]
    h, w = (min(a, b) for a, b in zip(inner.shape[2:], own.shape[2:], strict=True))
    inner[:, :, :h, :w] = own[:, :, :h, :w]
    step_c, step_b, step_h, step_w = padded.stride()
    return padded.as_strided(
        (C, B, rows, columns, height, width),
        (step_c, step_b, step_h * tile[0], step_w * tile[1], step_h, step_w),
    ).reshape(C, B * rows * columns, height * width)


def _matrices(weight: Tensor, tile: Pair, dtype: torch.dtype) -> Tensor:
    """Return C×seen×positions: the filter of each channel at each of its places in a tile."""
    channels, _, *kernel = weight.shape
    height, width = (t + k - 1 for t, k in zip(tile, kernel, strict=True))
    count = tile[0] * tile[1]
    matrices = torch.zeros(channels, height * width * count, dtype=dtype)
    at_places = weight.reshape(channels, -1, 1).expand(-1, -1, count).reshape(channels, -1)
    matrices[:, _places((kernel[0], kernel[1]), tile).flatten()] = at_places.to(dtype)
    return matrices.view(channels, height * width, count)


def _places(kernel: Pair, tile: Pair) -> Tensor:
    """Return taps×positions: where in a flat matrix each tap of the filter stands."""
    width, count = tile[1] + kernel[1] - 1, tile[0] * tile[1]
    taps = torch.arange(kernel[0])[:, None] * width + torch.arange(kernel[1])
    positions = torch.arange(tile[0])[:, None] * width + torch.arange(tile[1])
    seen = taps.reshape(-1, 1) + positions.reshape(1, -1)
    return seen * count + torch.arange(count)


def _joined(tiles: Tensor, tile: Pair, size: tuple[int, ...], B: int) -> Tensor:
    """Return B×C×H×W of C×(B·tiles)×positions."""
    rows, columns = (-(-n // t) for n, t in zip(size, tile, strict=True))
    C = len(tiles)
    apart = tiles.view(C, B, rows, columns, *tile).permute(1, 2, 4, 3, 5, 0)
    whole = apart.contiguous().view(B, rows * tile[0], columns * tile[1], C)
    return whole[:, : size[0], : size[1]].permute(0, 3, 1, 2)
