"""TrivialAugment: one operation for each image, drawn anew with its strength.

The wide space of Müller and Hutter (2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data
Augmentation", table 1), as Pillow computes it: the nearest pixel is read, black stands outside, and
fractions of a pixel's value are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 31
FACTOR = 0.99
SHEAR = 0.99
SHIFT = 32  # pixels
DEGREES = 135.0
MOST_BITS = 6  # that `posterize` clears


def trivial_augment(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Change each image by one of 14 operations, at one of 31 strengths.

    Args:
        images: uint8 B×C×H×W.
        generator: on the CPU, so that every device sees the same draws.

    Returns:
        The same shape and type.
    """
    B = len(images)
    chosen = torch.randint(len(OPERATIONS), (B,), generator=generator)
    level = torch.randint(LEVELS, (B,), generator=generator) / (LEVELS - 1)
    sign = 1 - 2 * torch.randint(2, (B,), generator=generator)
    strength = (level * sign).to(images.device)
    result = images.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        which = (chosen == number).nonzero()[:, 0].to(images.device)
        if len(which):
            result[which] = operation(images[which], strength[which])
    return result


def _identity(images: Tensor, strength: Tensor) -> Tensor:
    return images


def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, b=SHEAR * strength.double())


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, d=SHEAR * strength.double())


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, c=(SHIFT * strength).trunc())


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, f=(SHIFT * strength).trunc())


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    H, W = images.shape[2:]
    angle = strength.double() * math.radians(DEGREES)
    cos, sin = angle.cos(), angle.sin()
    return _affine(
        images, a=cos, b=-sin, c=W / 2 - cos * W / 2 + sin * H / 2,
        d=sin, e=cos, f=H / 2 - sin * W / 2 - cos * H / 2,
    )  # fmt: skip


def _affine(
    images: Tensor,
    *,
    a: Tensor | float = 1.0,
    b: Tensor | float = 0.0,
    c: Tensor | float = 0.0,
    d: Tensor | float = 0.0,
    e: Tensor | float = 1.0,
    f: Tensor | float = 0.0,
) -> Tensor:
    """Read pixel (a·x + b·y + c, d·x + e·y + f) for (x, y); a pixel's middle lies at a half.

    In Pillow's fixed point of 16 bits, since many positions of a turned image lie on an edge.
    """
    B, C, H, W = images.shape
    x = torch.arange(W, device=images.device)
    y = torch.arange(H, device=images.device)[:, None]
    a, b, c, d, e, f = (
        torch.as_tensor(each, dtype=torch.float64, device=images.device).expand(B)[:, None, None]
        for each in (a, b, c, d, e, f)
    )
    column = _fixed(a) * x + _fixed(b) * y + _fixed(c + a / 2 + b / 2) >> 16
    row = _fixed(d) * x + _fixed(e) * y + _fixed(f + d / 2 + e / 2) >> 16
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    position = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
    flat = position.view(B, 1, H * W).expand(B, C, H * W)
    read = images.reshape(B, C, H * W).gather(2, flat).view(B, C, H, W)
    return read * inside[:, None]


def _fixed(value: Tensor) -> Tensor:
    return (value * 65536 + 0.5).floor().long()


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(torch.zeros((), device=images.device), images, strength)


def _colour(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(to_gray(images), images, strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    mean = to_gray(images).float().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor(), images, strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    pixels = images.float()
    inner = pixels[..., 1:-1, 1:-1]
    total = F.avg_pool2d(pixels, 3, stride=1, divisor_override=1) + 4 * inner
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = (total / 13 + 0.5).floor()
    return _blend(smooth, images, strength)


def _blend(base: Tensor, images: Tensor, strength: Tensor) -> Tensor:
    """Go from the base over the image to what is as far on its other side."""
    factor = (1 + FACTOR * strength.double()).float().view(-1, 1, 1, 1)
    return (base + factor * (images - base)).clamp(0, 255).to(torch.uint8)


def to_gray(images: Tensor) -> Tensor:
    """Return int32 B×1×H×W: the luma of ITU-R BT.601, in Pillow's fixed point."""
    if images.shape[1] != 3:
        return images[:, :1].int()
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device)
    return ((images.int() * weights.view(-1, 1, 1)).sum(1, keepdim=True) + 0x8000 >> 16).int()


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    cleared = (MOST_BITS * strength.abs()).round().view(-1, 1, 1, 1).int()
    return (images.int() >> cleared << cleared).to(torch.uint8)


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    threshold = 255 * (1 - strength.abs()).view(-1, 1, 1, 1)
    return torch.where(images < threshold, images, 255 - images)


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    pixels = images.flatten(2)
    low, high = pixels.amin(2, keepdim=True).double(), pixels.amax(2, keepdim=True).double()
    value = torch.arange(256, device=images.device, dtype=torch.float64)
    scale = torch.full_like(low, 255) / (high - low).clamp_min(1)  # 255 / x is 255 · (1 / x)
    table = torch.where(high > low, (value * scale - low * scale).trunc(), value)
    return _look_up(images, table)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    pixels = images.flatten(2).long()
    count = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=images.device)
    count.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = count.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255
    before = count.cumsum(2) - count
    table = (step // 2 + before) // step.clamp_min(1)
    return _look_up(images, torch.where(step > 0, table, torch.arange(256, device=images.device)))


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each value v of a channel by table[v]; the table is B×C×256."""
    table = table.clamp(0, 255).to(torch.uint8)
    return table.gather(2, images.flatten(2).long()).view(images.shape)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""By name: images uint8 B×C×H×W and strengths in [-1, 1] of length B to images; where a sign
means nothing, its absolute value counts, and the last two have no strength."""
