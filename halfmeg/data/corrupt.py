"""Corruptions of test images: how a network does when a photograph is not a good one.

Ten kinds at three strengths, drawn from a seed, in the manner of Hendrycks and Dietterich 2019,
"Benchmarking neural network robustness to common corruptions and perturbations". The strengths
are ours, for images of 32 pixels; lengths grow with the image.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from halfmeg.data.augment import cutout, gray_weights, warp
from halfmeg.data.decode import to_image

STRENGTHS = (1, 2, 3)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _side(images: Tensor) -> int:
    """Return the shorter side of images B×C×H×W, which lengths grow with."""
    return min(images.shape[2:])


def noise(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise."""
    sigma = (8, 16, 32)[strength - 1]  # of 255
    return _to_uint8(images + sigma * torch.randn(images.shape, generator=generator))


def blur(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Blur with a Gaussian."""
    sigma = (0.6, 1.0, 1.6)[strength - 1] * _side(images) / 32  # pixels
    channels = images.shape[1]
    radius = int(3 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(images.float(), (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, weights, groups=channels)
    return _to_uint8(F.conv2d(rows, weights.transpose(2, 3), groups=channels))


def contrast(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Pull the pixels towards the image's mean."""
    factor = (0.6, 0.4, 0.2)[strength - 1]
    mean = images.float().mean((1, 2, 3), keepdim=True)
    return _to_uint8(mean + factor * (images - mean))


def brightness(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Make each image lighter or darker, by a fair coin."""
    shift = (30, 60, 90)[strength - 1]  # of 255
    sign = torch.randint(0, 2, (len(images), 1, 1, 1), generator=generator) * 2 - 1
    return _to_uint8(images + sign * shift)


def pixelation(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Average over blocks and show each as one colour."""
    height, width = images.shape[2:]
    share = (0.75, 0.5, 0.375)[strength - 1]
    smaller = (max(1, round(height * share)), max(1, round(width * share)))
    small = F.interpolate(images.float(), size=smaller, mode="area")
    return _to_uint8(F.interpolate(small, size=(height, width), mode="nearest"))


def jpeg(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Compress and decompress, with Pillow."""
    quality = (40, 20, 8)[strength - 1]
    decoded = []
    for image in images.numpy():
        buffer = io.BytesIO()
        to_image(image).save(buffer, "JPEG", quality=quality)
        pixels = np.asarray(Image.open(buffer))
        decoded.append(np.atleast_3d(pixels).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(decoded))


def shift(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Move each image by up to a length along each axis; the rest is black."""
    pixels = round((2, 4, 8)[strength - 1] * _side(images) / 32)
    return warp(images, crop=pixels, generator=generator)


def rotation(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Turn each image by up to an angle; the corners are black."""
    return warp(images, rotation=(10, 20, 40)[strength - 1], generator=generator)


def occlusion(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Cover a square with black."""
    side = round((8, 12, 16)[strength - 1] * _side(images) / 32)
    return cutout(images, side, generator=generator)


def colour(images: Tensor, strength: int, generator: torch.Generator) -> Tensor:
    """Scale the channels apart, as light of another colour does; luma, so gray, keeps its mean."""
    spread = (0.2, 0.4, 0.7)[strength - 1]
    channels = images.shape[1]
    gain = 1 + spread * (torch.rand(len(images), channels, generator=generator) * 2 - 1)
    gain = gain / (gain @ gray_weights(channels))[:, None]
    return _to_uint8(images * gain[:, :, None, None])


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelation": pixelation,
    "jpeg": jpeg,
    "shift": shift,
    "rotation": rotation,
    "occlusion": occlusion,
    "colour": colour,
}
"""Each maps uint8 B×C×H×W to the same shape and type; `strength` is 1, 2 or 3."""


def corrupt(images: Tensor, name: str, strength: int, *, seed: int = 0) -> Tensor:
    """Return images with one kind of corruption; the draws depend on kind, strength and seed.

    Raises:
        ValueError: an unknown kind or strength.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r} is not known; allowed: {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength={strength} is out of range; allowed: 1, 2, 3")
    kind = list(CORRUPTIONS).index(name)
    drawn = np.random.SeedSequence((seed, kind, strength)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(drawn))
    return CORRUPTIONS[name](images, strength, generator)
