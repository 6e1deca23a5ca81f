"""Mixing the images of a batch with one another: mixup and cutmix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mixture(NamedTuple):
    """What else stands in the images of a batch than what their own labels say.

    Attributes:
        labels: int64 B, of the image that was mixed into each.
        share: float32 without dimensions: what is left of each image itself.
    """

    labels: Tensor
    share: Tensor

    def expect(self, of_own: Tensor, of_mixed_in: Tensor) -> Tensor:
        """Weigh a loss against the images' own labels with that against those mixed in."""
        return self.share * of_own + (1 - self.share) * of_mixed_in


def mix(
    images: Tensor, labels: Tensor, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Mixture]:
    """Mix each image of a batch with its opposite, the first with the last.

    Either all of it in a share (mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk
    Minimization") or a rectangle (cutmix: Yun et al. 2019, "CutMix: Regularization Strategy to
    Train Strong Classifiers"). As in both papers' code, the share is one draw a batch, from
    Beta(a, a). That of mixup is turned so that the image itself keeps the larger part, which is the
    same as the pair comes twice.

    Args:
        images: normalized B×C×H×W, in an order drawn at random.
        labels: int64 B.
        mixup, cutmix: a above, 0 for never; with both, a coin chooses for each batch.
        generator: on the CPU.

    Returns:
        The mixed images in channels_last memory format, and what was mixed in.
    """
    # A coin is drawn where there is something to choose only, so that either alone is as itself.
    cut = bool(cutmix) and (not mixup or torch.rand((), generator=generator).item() < 0.5)
    share = _beta(cutmix if cut else mixup, generator)
    if cut:
        images, share = _paste(images, share, generator)
    else:
        share = max(share, 1 - share)
        images = torch.lerp(images.flip(0), images, share)
    images = images.contiguous(memory_format=torch.channels_last)
    return images, Mixture(labels.flip(0), torch.tensor(share, device=images.device))


def _paste(images: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, float]:
    """Paste a rectangle of the opposite image, of 1 - share of the area and the image's form.

    Its centre is drawn over the whole image, and what falls outside is cut off; the share returned
    is the one that is left in fact.
    """
    side = (1 - share) ** 0.5
    box = []
    for length in images.shape[-2:]:
        centre = int(torch.randint(0, length, (), generator=generator))
        half = int(side * length) / 2
        box.append(slice(max(0, round(centre - half)), min(length, round(centre + half))))
    rows, columns = box
    mixed = images.clone()
    mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
    covered = len(range(*rows.indices(images.shape[-2]))) * len(
        range(*columns.indices(images.shape[-1]))
    )
    return mixed, 1 - covered / (images.shape[-2] * images.shape[-1])


def _beta(a: float, generator: torch.Generator) -> float:
    """Draw from Beta(a, a)."""
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.default_rng(seed).beta(a, a))
