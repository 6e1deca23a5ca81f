"""Augmentation of whole batches: pure functions, a different draw for every image.

All geometry is one gather: flips, crop and rotation are composed as a map of pixel positions, and
the images are read through it once. All colour is one 3×3 matrix and one offset for each image.
Both give what the steps one after another would give (colour: up to the clipping between the
steps), at a fraction of the memory traffic, which is what a small network's step waits for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.config import PadMode
from halfmeg.data.shape import ImageShape
from halfmeg.data.trivial import trivial_augment

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma of ITU-R BT.601, as Pillow's mode L uses them."""


def gray_weights(channels: int) -> Tensor:
    """Return float32 C: how much each channel counts in an image's gray."""
    return torch.tensor(GRAY if channels == len(GRAY) else (1.0,))


@dataclass(frozen=True)
class Augmentation:
    """What to draw for each image; 0 or False leaves a part out. Fields as in `RunConfig`."""

    rotation: float = 0.0
    crop: int = 0
    crop_mode: PadMode = "zero"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    hflip: bool = False
    vflip: bool = False
    cutout: int = 0
    trivial_augment: bool = False


def augment(
    images: Tensor,
    spec: Augmentation,
    mean: Tensor,
    std: Tensor,
    *,
    generator: torch.Generator,
    mirrored: Tensor | None = None,
    size: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Augment and normalize a batch.

    Args:
        images: uint8 B×C×H×W.
        spec: the augmentations.
        mirrored: bool of length B: which images `hflip` mirrors; drawn if None.
        size: the shorter side to shrink the result to, in pixels; 0 leaves it as it is.
        mean, std: float32 of length C, of pixels scaled to [0, 1].
        generator: on the CPU, so that every device sees the same draws.
        dtype: of the result.

    Returns:
        B×C×H×W in channels_last memory format.
    """
    images = warp(
        images,
        rotation=spec.rotation,
        crop=spec.crop,
        crop_mode=spec.crop_mode,
        hflip=spec.hflip,
        vflip=spec.vflip,
        mirrored=mirrored,
        generator=generator,
    )
    if spec.trivial_augment:
        images = trivial_augment(images, generator=generator)
    if spec.brightness or spec.contrast or spec.saturation:
        pixels = jitter_colour(
            images,
            brightness=spec.brightness,
            contrast=spec.contrast,
            saturation=spec.saturation,
            generator=generator,
        )
        scale = 1.0
    else:
        pixels, scale = images.float(), 1 / 255
    if spec.sharpness:
        pixels = sharpen(pixels, spec.sharpness, scale=scale, generator=generator)
    result = _standardize(pixels, mean, std, scale=scale, dtype=dtype)
    result = cutout(result, spec.cutout, generator=generator)
    return shrink(result, size) if size else result


def shrink(images: Tensor, size: int) -> Tensor:
    """Shrink float images B×C×H×W to a shorter side, each pixel a mean of those it covers."""
    sides = ImageShape(*images.shape[1:]).scaled_to(size)[1:]
    if tuple(images.shape[2:]) == sides:
        return images
    small = F.interpolate(
        images.float(), size=sides, mode="bilinear", align_corners=False, antialias=True
    )
    return small.to(images.dtype).contiguous(memory_format=torch.channels_last)


def normalize(
    images: Tensor, mean: Tensor, std: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Scale uint8 B×C×H×W to [0, 1], subtract `mean`, divide by `std`; channels_last `dtype`."""
    return _standardize(images.float(), mean, std, scale=1 / 255, dtype=dtype)


def _standardize(
    pixels: Tensor, mean: Tensor, std: Tensor, *, scale: float, dtype: torch.dtype
) -> Tensor:
    factor = (scale / std).view(1, -1, 1, 1)
    offset = (-mean / std).view(1, -1, 1, 1)
    result = torch.addcmul(offset, pixels, factor)  # one pass: pixels · factor + offset
    return result.to(dtype).contiguous(memory_format=torch.channels_last)


def warp(
    images: Tensor,
    *,
    rotation: float = 0.0,
    crop: int = 0,
    crop_mode: PadMode = "zero",
    hflip: bool = False,
    vflip: bool = False,
    mirrored: Tensor | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Rotate, then crop from the padded image, then flip; nearest pixel, one gather.

    Args:
        images: B×C×H×W of any type.
        rotation: degrees; an angle is drawn for each image from [-rotation, rotation].
        crop: pixels of padding on each side; a shift is drawn from [-crop, crop] for each axis.
        crop_mode: what the padding shows, zeros or the image mirrored at its edge.
        hflip, vflip: mirror left to right, or top to bottom, with a chance of one half.
        mirrored: bool of length B that takes the place of hflip's draw.
        generator: on the CPU.

    Returns:
        The same shape and type; a position from outside a rotated image is 0.

    Raises:
        ValueError: a mirrored crop wider than the image.
    """
    B, C, H, W = images.shape
    if crop_mode == "reflect" and crop >= min(H, W):
        raise ValueError(
            f"crop={crop} is too wide to mirror a {H}×{W} image; allowed: below its side"
        )
    if not (rotation or crop or hflip or vflip):
        return images
    device = images.device
    y = torch.arange(H).expand(B, H)  # the row read for each row written
    x = torch.arange(W).expand(B, W)
    if hflip:
        coin = _coin(B, generator) if mirrored is None else mirrored[:, None]
        x = torch.where(coin, W - 1 - x, x)
    if vflip:
        y = torch.where(_coin(B, generator), H - 1 - y, y)
    if crop:
        y = y + torch.randint(-crop, crop + 1, (B, 1), generator=generator)
        x = x + torch.randint(-crop, crop + 1, (B, 1), generator=generator)
        if crop_mode == "reflect":
            y, x = _mirror(y, H), _mirror(x, W)
    y, x = y.to(device), x.to(device)
    if rotation:
        angle = (torch.rand(B, 1, generator=generator) * 2 - 1).mul(math.radians(rotation))
        cos, sin = angle.cos().to(device), angle.sin().to(device)
        dy, dx = y - (H - 1) / 2, x - (W - 1) / 2  # from the centre, B×H and B×W
        on_canvas = _inside(y, H)[:, :, None] & _inside(x, W)[:, None, :]
        # Inverse rotation of the position written gives the position read. (B, H, W)
        y_read = ((cos * dy + (H - 1) / 2)[:, :, None] + (sin * dx)[:, None, :]).round_()
        x_read = ((cos * dx + (W - 1) / 2)[:, None, :] - (sin * dy)[:, :, None]).round_()
        inside = on_canvas & _inside(y_read, H) & _inside(x_read, W)
        position = (y_read * W).add_(x_read).clamp_(0, H * W - 1).long()
    else:
        inside = _inside(y, H)[:, :, None] & _inside(x, W)[:, None, :]
        position = (y.clamp(0, H - 1) * W)[:, :, None] + x.clamp(0, W - 1)[:, None, :]
    flat = position.view(B, 1, H * W).expand(B, C, H * W)
    warped = images.reshape(B, C, H * W).gather(2, flat).view(B, C, H, W)
    if rotation or (crop and crop_mode == "zero"):
        warped = warped * inside[:, None]
    return warped


def _coin(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 1, generator=generator) < 0.5


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def _mirror(position: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - position.abs()).abs()


def jitter_colour(
    images: Tensor,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    generator: torch.Generator,
) -> Tensor:
    """Change brightness, then contrast, then saturation, by a factor drawn for each image.

    Each factor comes from [1 - x, 1 + x]. Brightness scales the pixels; contrast blends with the
    image's mean gray; saturation blends each pixel with its own gray. All three are linear, so
    their product is one matrix and one offset for each image, clipped once at the end.

    Args:
        images: uint8 B×C×H×W.
        brightness, contrast, saturation: x above, 0 to 1.
        generator: on the CPU.

    Returns:
        float32 B×C×H×W within [0, 1].
    """
    B, C, H, W = images.shape
    device = images.device
    spread = torch.tensor([brightness, contrast, saturation])
    draws = (torch.rand(B, 3, generator=generator) * 2 - 1) * spread + 1
    bright, contr, satur = draws.to(device).unbind(1)  # B each
    gray = gray_weights(C).to(device)
    pixels = images.reshape(B, C, H * W).float()
    mean_gray = pixels.mean(2) @ gray / 255  # B
    # saturation · x + (1 - saturation) · gray(x), as a matrix. (B, C, C)
    identity = torch.eye(C, device=device)
    matrix = satur[:, None, None] * identity + (1 - satur)[:, None, None] * gray.expand(C, C)
    matrix = matrix * (bright * contr / 255)[:, None, None]
    offset = ((1 - contr) * bright * mean_gray)[:, None, None]  # gray keeps its value: (B, 1, 1)
    return torch.baddbmm(offset, matrix, pixels).clamp_(0, 1).view(B, C, H, W)


def sharpen(
    pixels: Tensor, sharpness: float, *, scale: float, generator: torch.Generator
) -> Tensor:
    """Smooth or sharpen, by a factor drawn for each image from [1 - sharpness, 1 + sharpness].

    As Pillow's `ImageEnhance.Sharpness` does, but for its rounding: a blend of the image with its
    mean over 3×3 pixels in which the middle one counts five times; the edge stays as it is.

    Args:
        pixels: float32 B×C×H×W.
        sharpness: 0 to 1.
        scale: what brings the pixels to [0, 1].
        generator: on the CPU.

    Returns:
        float32 B×C×H×W, clipped to what a pixel can be.
    """
    draws = (torch.rand(len(pixels), 1, 1, 1, generator=generator) * 2 - 1) * sharpness + 1
    inner = pixels[..., 1:-1, 1:-1]
    smooth = (9 * F.avg_pool2d(pixels, 3, stride=1) + 4 * inner) / 13
    result = pixels.clone()
    result[..., 1:-1, 1:-1] = torch.lerp(smooth, inner, draws.to(pixels.device))
    return result.clamp_(0, 1 / scale)


def cutout(images: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    """Set a square of `size` pixels to 0, the mean colour of normalized images, in each image.

    Its centre is drawn over the whole image, so a part of the square may fall outside (DeVries
    and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout").
    """
    if size == 0:
        return images
    B, _, H, W = images.shape
    masks = []
    for length in (H, W):
        first = torch.randint(0, length, (B, 1), generator=generator) - size // 2
        position = torch.arange(length)
        masks.append((position >= first) & (position < first + size))  # B×length
    rows, columns = (mask.to(images.device) for mask in masks)
    hole = (rows[:, :, None] & columns[:, None, :])[:, None]  # B×1×H×W
    return images.clone().masked_fill_(hole, 0)  # the clone keeps the memory format
