from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from halfmeg.data.augment import (
    Augmentation,
    augment,
    cutout,
    jitter_colour,
    normalize,
    sharpen,
    warp,
)

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 16, size: int = 32) -> Tensor:
    """Smooth coloured images, so that neighbouring pixels resemble each other as in photographs."""
    coarse = torch.rand(count, 3, 5, 5, generator=generator(1))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte()


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_normalize() -> None:
    images = photos()
    expected = (images.double() / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    result = normalize(images, MEAN, STD)
    assert torch.allclose(result.double(), expected, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert normalize(images, MEAN, STD, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_nothing_asked_changes_nothing() -> None:
    images = photos()
    result = augment(images, Augmentation(), MEAN, STD, generator=generator())
    assert torch.equal(result, normalize(images, MEAN, STD))


def test_flips_mirror_about_half_of_the_images() -> None:
    images = photos(1).expand(400, -1, -1, -1)
    for settings, dim in (({"hflip": True}, 3), ({"vflip": True}, 2)):
        warped = warp(images, **settings, generator=generator())  # type: ignore[arg-type]
        mirrored = images[0].flip(dim - 1)
        is_mirrored = (warped == mirrored).flatten(1).all(1)
        is_same = (warped == images).flatten(1).all(1)
        assert (is_mirrored ^ is_same).all()
        assert 150 < is_mirrored.sum() < 250


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_equals_padding_and_cutting(mode: str) -> None:
    images = photos(64)
    warped = warp(images, crop=4, crop_mode=mode, generator=generator())  # type: ignore[arg-type]
    numpy_mode = {"zero": "constant", "reflect": "reflect"}[mode]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), numpy_mode)  # type: ignore[call-overload]
    shifts = set()
    for index in range(len(images)):
        matches = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if (padded[index, :, y : y + 32, x : x + 32] == warped[index].numpy()).all()
        ]
        assert matches, f"image {index} is no crop of its padded original"
        shifts.add(matches[0])
    assert len(shifts) > 30  # 64 draws from 81 shifts
    assert {y for y, _ in shifts} == set(range(9)) == {x for _, x in shifts}


def test_a_mirrored_crop_must_be_narrower_than_the_image() -> None:
    with pytest.raises(ValueError, match="crop=32 is too wide"):
        warp(photos(), crop=32, crop_mode="reflect", generator=generator())


def test_rotation_equals_pillow_at_the_same_angle() -> None:
    images = photos(32)
    warped = warp(images, rotation=30, generator=generator(5))
    angles = (torch.rand(32, 1, generator=generator(5)) * 2 - 1) * 30
    for image, result, angle in zip(images, warped, angles, strict=True):
        for sign in (1, -1):
            rotated = np.asarray(
                to_pil(image).rotate(sign * float(angle), Image.Resampling.NEAREST)
            )
            same = (rotated.transpose(2, 0, 1) == result.numpy()).all(0).mean()
            if same > 0.98:  # the rest are ties between two nearest pixels
                break
        else:
            pytest.fail(f"no rotation by {float(angle):.1f} degrees")
    assert angles.min() < -20
    assert angles.max() > 20


def test_a_quarter_turn_is_exact() -> None:
    image = photos(1)
    half_turn = torch.Generator().manual_seed(0)
    warped = warp(image, rotation=1e-6, generator=half_turn)
    assert torch.equal(warped, image)


def test_composed_geometry_equals_its_steps() -> None:
    """Rotate, crop and flip in one gather is rotate, then crop, then flip."""
    images = photos(8)
    together = warp(images, rotation=20, crop=3, hflip=True, vflip=True, generator=generator(2))
    draws = generator(2)
    hflip = torch.rand(8, 1, generator=draws) < 0.5
    vflip = torch.rand(8, 1, generator=draws) < 0.5
    dy = torch.randint(-3, 4, (8, 1), generator=draws)
    dx = torch.randint(-3, 4, (8, 1), generator=draws)
    rotated = warp(images, rotation=20, generator=draws)
    padded = torch.nn.functional.pad(rotated, (3, 3, 3, 3))
    for i in range(8):
        y, x = 3 + int(dy[i]), 3 + int(dx[i])
        step = padded[i, :, y : y + 32, x : x + 32]
        step = step.flip(2) if hflip[i] else step
        step = step.flip(1) if vflip[i] else step
        assert torch.equal(step, together[i])


@pytest.mark.parametrize(
    ("setting", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_each_colour_change_equals_pillow(setting: str, enhancer: type) -> None:
    images = photos(40)
    result = jitter_colour(images, **{setting: 0.4}, generator=generator(9))  # type: ignore[arg-type]
    draws = torch.rand(40, 3, generator=generator(9)) * 2 - 1
    column = ["brightness", "contrast", "saturation"].index(setting)
    factors = 1 + 0.4 * draws[:, column]
    for image, ours, factor in zip(images, result, factors, strict=True):
        theirs = np.asarray(enhancer(to_pil(image)).enhance(float(factor))).transpose(2, 0, 1)
        assert np.abs(ours.numpy() * 255 - theirs).max() < 1.6  # Pillow rounds to whole levels
    assert factors.max() > 1.2
    assert factors.min() < 0.8


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_sharpness_equals_pillow(scale: float) -> None:
    images = photos(8)
    pixels = images.float() * (1 / 255 / scale)
    result = sharpen(pixels, 0.9, scale=scale, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(8, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 1.8 + 0.1
    for image, ours, factor in zip(images, result * scale, draws.flatten().tolist(), strict=True):
        theirs = ImageEnhance.Sharpness(to_pil(image))
        expected = np.asarray(theirs.enhance(factor)).transpose(2, 0, 1)
        assert np.abs(ours.numpy() * 255 - expected).max() < 2.1  # Pillow rounds, twice


def test_colour_changes_compose_where_nothing_is_clipped() -> None:
    images = photos(6) // 2 + 60
    settings = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1}
    result = jitter_colour(images, **settings, generator=generator(4))
    factors = 1 + 0.1 * (torch.rand(6, 3, generator=generator(4)) * 2 - 1)
    gray = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = images.float() / 255 * factors[:, 0].view(-1, 1, 1, 1)
    mean_gray = (x * gray).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = factors[:, 1].view(-1, 1, 1, 1) * (x - mean_gray) + mean_gray
    pixel_gray = (x * gray).sum(1, keepdim=True)
    x = factors[:, 2].view(-1, 1, 1, 1) * (x - pixel_gray) + pixel_gray
    assert torch.allclose(result, x, atol=1e-5)


def test_cutout_sets_a_square_in_each_image() -> None:
    images = torch.ones(200, 3, 32, 32)
    result = cutout(images, 8, generator=generator())
    holes = (result[:, 0] == 0).sum((1, 2))
    assert torch.equal(result[:, 0], result[:, 2])
    assert holes.max() == 64
    assert holes.min() >= 16  # a corner keeps a quarter
    assert len({tuple(hole) for hole in (result[:, 0] == 0).flatten(1).int().tolist()}) > 150
    assert torch.equal(cutout(images, 0, generator=generator()), images)


FULL = Augmentation(15, 4, "zero", 0.2, 0.2, 0.2, True, True, 8)


def test_every_image_gets_its_own_draw_and_a_seed_repeats_it() -> None:
    images = photos(1).expand(64, -1, -1, -1)
    first = augment(images, FULL, MEAN, STD, generator=generator(7))
    again = augment(images, FULL, MEAN, STD, generator=generator(7))
    other = augment(images, FULL, MEAN, STD, generator=generator(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(image.flatten().tolist()) for image in first}) == 64
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_images_are_not_changed_in_place() -> None:
    images = photos()
    before = images.clone()
    augment(images, FULL, MEAN, STD, generator=generator())
    assert torch.equal(images, before)


def test_given_mirrors_take_the_place_of_the_draw() -> None:
    images = photos(8)
    mirrored = torch.tensor([True, False] * 4)
    warped = warp(images, hflip=True, mirrored=mirrored, generator=generator())
    assert torch.equal(warped[::2], images[::2].flip(3))
    assert torch.equal(warped[1::2], images[1::2])


def test_shrinking_is_pillows_with_the_same_filter() -> None:
    images = photos(4)
    result = augment(
        images, Augmentation(), torch.zeros(3), torch.ones(3), generator=generator(), size=24
    )
    assert result.shape == (4, 3, 24, 24)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image, small in zip(images, result, strict=True):
        expected = np.asarray(to_pil(image).resize((24, 24), Image.Resampling.BILINEAR))
        assert np.abs(small.permute(1, 2, 0).numpy() * 255 - expected).max() < 1.01
