"""What happens when: order, sizes, batches and seeds of each epoch, from config and counts alone.

The order of epoch e comes from (seed, e), the draws of its step t from (seed, e, t). So a run that
was killed continues to the same bits as one that was not.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from halfmeg.config import RunConfig
from halfmeg.data.augment import Augmentation


def derive_seed(*parts: int) -> int:
    """Mix numbers, such as (seed, epoch, step), to one seed of 63 bits (numpy's SeedSequence).

    Their count is mixed in, since to SeedSequence (0,) and (0, 0) are the same.
    """
    sequence = np.random.SeedSequence((len(parts), *parts))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def augmentation_of(config: RunConfig) -> Augmentation:
    """Return the part of a config that `augment` takes."""
    return Augmentation(
        rotation=config.rotation, crop=config.crop, crop_mode=config.crop_mode,
        brightness=config.brightness, contrast=config.contrast, saturation=config.saturation,
        hflip=config.hflip, vflip=config.vflip, cutout=config.cutout,
    )  # fmt: skip


def batch_bounds(count: int, batch_size: int) -> list[slice]:
    """Cut an epoch into batches of `batch_size` and a last one of what is left.

    Where that would be less than a quarter of a batch, all are made of nearly the same size: the
    statistics of BatchNorm over a few images would spoil the running ones, which matters where an
    epoch is a few batches. A batch of one image, possible with a `batch_size` of 2, has no
    variance to divide by and is left out. Otherwise every image is used in every epoch.
    """
    number = math.ceil(count / batch_size)
    left = count - (number - 1) * batch_size
    if left < max(2, batch_size / 4):
        edges = [count * i // number for i in range(number + 1)]
    else:
        edges = [*range(0, count, batch_size), count]
    bounds = [slice(start, stop) for start, stop in pairwise(edges)]
    return [b for b in bounds if b.stop - b.start > 1 or batch_size == 1]


def epoch_order(indices: Tensor, seed: int, epoch: int) -> Tensor:
    """Return indices in the order in which an epoch, counted from 0, sees them."""
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return indices[torch.randperm(len(indices), generator=generator)]


def mirrored_images(count: int, seed: int, epoch: int) -> Tensor:
    """Return which images are mirrored: a random half, and in the next epoch the other half.

    So each image is seen in both forms within two epochs (Jordan 2024, section 3.6).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, 0, 0))
    return (torch.randint(0, 2, (count,), generator=generator) + epoch) % 2 == 1


def training_size(config: RunConfig, epoch: int) -> int:
    """Return the side of the images in an epoch counted from 0; 0 means the data's own."""
    if epoch >= round(config.small_share * config.epochs):
        return 0
    sides = config.small_sizes()
    return sides.get("first_size" if epoch == 0 else "small_size", config.small_size)


def on_hard_images(config: RunConfig, epoch: int) -> bool:
    """Return whether an epoch, counted from 0, passes over the images that are easiest.

    The first never does, since its losses are the first to rank by, nor do those of small images.
    """
    return config.hard_share < 1 and epoch > 0 and not training_size(config, epoch)


def images_in(config: RunConfig, epoch: int, count: int) -> int:
    """Return how many of `count` training images an epoch, counted from 0, trains on."""
    if on_hard_images(config, epoch):
        return max(2, round(config.hard_share * count))
    return count


def seed_step(seed: int, epoch: int, step: int) -> torch.Generator:
    """Return the generator of a step's augmentation; dropout draws from torch's global one."""
    derived = derive_seed(seed, epoch, step)
    torch.manual_seed(derived)
    return torch.Generator().manual_seed(derived)
