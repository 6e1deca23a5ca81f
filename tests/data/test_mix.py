"""Images mixed with others of their batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_config

from halfmeg import fit
from halfmeg.data.dataset import DataSplits
from halfmeg.data.mix import mix

IMAGES = torch.arange(8.0)[:, None, None, None].expand(8, 3, 16, 24).contiguous()
LABELS = torch.arange(8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(20))
def test_mixup_is_a_share_of_both(seed: int) -> None:
    mixed, mixture = mix(IMAGES, LABELS, mixup=0.5, cutmix=0, generator=generator(seed))
    share = mixture.share
    assert 0.5 <= share <= 1
    assert torch.equal(mixture.labels, LABELS.flip(0))
    torch.testing.assert_close(mixed, share * IMAGES + (1 - share) * IMAGES.flip(0))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_counts_the_pixels_that_it_pasted(seed: int) -> None:
    mixed, mixture = mix(IMAGES, LABELS, mixup=0, cutmix=1.0, generator=generator(seed))
    pasted = mixed != IMAGES
    assert torch.equal(pasted.all(0), pasted.any(0))  # the same rectangle in all
    assert torch.equal(mixed[pasted], IMAGES.flip(0)[pasted])
    assert mixture.share.item() == pytest.approx(1 - pasted[0, 0].float().mean().item())
    rows, columns = pasted[0, 0].any(1).sum(), pasted[0, 0].any(0).sum()
    assert rows * columns == pasted[0, 0].sum()


def test_rectangles_have_the_sizes_of_the_papers_code() -> None:
    """Of Yun et al.'s `rand_bbox` more than half of an image may be pasted, too."""
    rng, side, areas = np.random.default_rng(0), 32, []
    for share in rng.beta(1.0, 1.0, 4_000):
        half = int(side * (1 - share) ** 0.5) // 2
        centres = rng.integers(0, side, 2)
        edges = [np.clip((centre - half, centre + half), 0, side) for centre in centres]
        areas.append(np.prod([high - low for low, high in edges]) / side**2)
    images = torch.zeros(2, 1, side, side)
    drawn = [
        1 - mix(images, LABELS[:2], mixup=0, cutmix=1.0, generator=generator(seed))[1].share.item()
        for seed in range(2_000)
    ]
    assert np.mean(drawn) == pytest.approx(np.mean(areas), abs=0.02)
    for quantile in (0.25, 0.5, 0.75, 0.95):
        assert np.quantile(drawn, quantile) == pytest.approx(np.quantile(areas, quantile), abs=0.05)


def test_with_both_a_coin_chooses() -> None:
    kinds = {
        mix(IMAGES, LABELS, mixup=1, cutmix=1, generator=generator(seed))[0].frac().any().item()
        for seed in range(20)
    }
    assert kinds == {True, False}


def test_shares_follow_beta() -> None:
    """Of Beta(a, a), turned to its upper half: a mean of 0.5 + E|x - 0.5|."""
    draws = torch.distributions.Beta(0.4, 0.4).sample((20_000,))
    shares = [
        mix(IMAGES[:2], LABELS[:2], mixup=0.4, cutmix=0, generator=generator(seed))[1].share.item()
        for seed in range(1_000)
    ]
    expected = 0.5 + (draws - 0.5).abs().mean().item()
    assert sum(shares) / len(shares) == pytest.approx(expected, abs=0.02)


def test_a_tiny_parameter_leaves_images_nearly_whole() -> None:
    mixed, mixture = mix(IMAGES, LABELS, mixup=1e-9, cutmix=0, generator=generator())
    assert mixture.share == 1
    assert torch.equal(mixed, IMAGES)


@pytest.mark.slow
def test_training_with_mixed_images(tmp_path, few_digits: DataSplits) -> None:
    plain = small_config(batch_size=32, val_fraction=0.2)
    run = fit(
        small_config(batch_size=32, val_fraction=0.2, mixup=0.5, cutmix=1.0), few_digits,
        tmp_path / "mixed",
    )  # fmt: skip
    before = fit(plain, few_digits, tmp_path / "plain")
    assert run.read_metrics()[-1]["train_loss"] > before.read_metrics()[-1]["train_loss"]
    assert run.read_metrics()[-1]["val_loss"] < run.read_metrics()[0]["val_loss"]


def test_no_choosing_by_the_loss_of_mixed_images() -> None:
    with pytest.raises(ValueError, match="hard_share=1"):
        small_config(mixup=0.5, hard_share=0.5)
