from __future__ import annotations

import pytest
import torch

from halfmeg.data.corrupt import CORRUPTIONS, STRENGTHS, corrupt


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_stronger_is_farther_from_the_image(name: str, digits) -> None:
    images = digits.test.images[:64]
    before = images.clone()
    distances = []
    for strength in STRENGTHS:
        corrupted = corrupt(images, name, strength)
        assert corrupted.dtype == torch.uint8
        assert corrupted.shape == images.shape
        assert torch.equal(corrupted, corrupt(images, name, strength)), "a seed repeats it"
        distances.append((corrupted.float() - images.float()).square().mean().item())
    assert 0 < distances[0] < distances[1] < distances[2]
    assert torch.equal(images, before)


def test_another_seed_draws_anew(digits) -> None:
    images = digits.test.images[:8]
    assert not torch.equal(corrupt(images, "noise", 1), corrupt(images, "noise", 1, seed=1))


@pytest.mark.parametrize("size", [8, 48])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_other_sizes(name: str, size: int) -> None:
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert corrupt(images, name, 3).shape == images.shape


def test_mistakes(digits) -> None:
    with pytest.raises(ValueError, match=r"corruption 'fog' is not known; allowed: noise"):
        corrupt(digits.test.images[:1], "fog", 1)
    with pytest.raises(ValueError, match="strength=4"):
        corrupt(digits.test.images[:1], "noise", 4)
