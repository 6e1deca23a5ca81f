"""TrivialAugment against Pillow's own operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from halfmeg.data.augment import Augmentation, augment
from halfmeg.data.trivial import OPERATIONS, trivial_augment

STRENGTHS = (-1.0, -0.6, -0.1, 0.0, 0.3, 0.5, 1.0)


def sheared(image: Image.Image, *terms: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, terms, Image.Resampling.NEAREST)


def enhanced(enhancer: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: enhancer(image).enhance(1 + 0.99 * strength)


PILLOWS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "shear_x": lambda image, s: sheared(image, 1, 0.99 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: sheared(image, 1, 0, 0, 0.99 * s, 1, 0),
    "translate_x": lambda image, s: sheared(image, 1, 0, int(32 * s), 0, 1, 0),
    "translate_y": lambda image, s: sheared(image, 1, 0, 0, 0, 1, int(32 * s)),
    "rotate": lambda image, s: image.rotate(135 * s),
    "brightness": enhanced(ImageEnhance.Brightness),
    "colour": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(6 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 255 * (1 - abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def pictures(channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth gradients with noise, of different ranges; the last is of one colour."""
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.linspace(0, 120, height)[:, None], torch.linspace(0, 60, width)
    noise = 40 * torch.rand(6, channels, height, width, generator=generator)
    levels = torch.tensor([0.4, 0.7, 1.0, 1.0, 0.1, 0.0]).view(-1, 1, 1, 1)
    return ((rows + columns + noise) * levels + 30).clamp(0, 255).to(torch.uint8)


def by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    channels = images.shape[1]
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    if channels == 1:
        arrays = [array[:, :, 0] for array in arrays]
    changed = [np.asarray(change(Image.fromarray(array))) for array in arrays]
    return torch.stack(
        [torch.from_numpy(array.copy()).view(*array.shape[:2], channels) for array in changed]
    ).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_pillow(name: str, channels: int) -> None:
    images = pictures(channels)
    for strength in STRENGTHS:
        ours = OPERATIONS[name](images, torch.full((len(images),), strength))
        theirs = by_pillow(images, lambda image, s=strength: PILLOWS[name](image, s))
        assert torch.equal(ours, theirs), strength


def test_every_image_gets_its_own_draw_and_a_seed_repeats_it() -> None:
    images = pictures()[:1].expand(512, -1, -1, -1)
    first = trivial_augment(images, generator=torch.Generator().manual_seed(1))
    again = trivial_augment(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert first.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in first}) > 200
    assert torch.equal(images[0], pictures()[0])


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 24, 40), (3, 40, 24), (4, 16, 16)])
def test_any_form(channels: int, height: int, width: int) -> None:
    images = pictures(channels, height, width).repeat(20, 1, 1, 1)
    changed = trivial_augment(images, generator=torch.Generator().manual_seed(0))
    assert changed.shape == images.shape


def test_it_is_a_part_of_augment() -> None:
    images, mean, std = pictures(), torch.zeros(3), torch.ones(3)
    generator = torch.Generator().manual_seed(5)
    whole = augment(images, Augmentation(trivial_augment=True), mean, std, generator=generator)
    alone = trivial_augment(images, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(whole, alone / 255)
