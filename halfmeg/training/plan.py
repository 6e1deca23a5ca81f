"""What happens when: order, sizes, batches and seeds of each epoch, from config and counts alone.

The order of epoch e comes from (seed, e), the draws of its step t from (seed, e, t). So a run that
was killed continues to the same bits as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

import numpy as np
import torch
from torch import Tensor

from halfmeg.config import RunConfig
from halfmeg.data.augment import Augmentation
from halfmeg.data.shape import ImageSize, image_shape


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
        sharpness=config.sharpness, hflip=config.hflip, vflip=config.vflip, cutout=config.cutout,
        trivial_augment=config.trivial_augment,
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


def training_size(config: RunConfig, epoch: int) -> int:
    """Return the shorter side of the images in an epoch, counted from 0; 0: the data's own."""
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


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return for each class a weight of one over its number of images.

    Their mean over the images is 1, and a class without images has 0.

    Args:
        labels: int64 N.
        num_classes: K.

    Returns:
        float32 K.
    """
    counts = labels.bincount(minlength=num_classes)
    present = int((counts > 0).sum())
    return torch.where(counts > 0, len(labels) / (present * counts.clamp_min(1)), 0.0).float()


@final
@dataclass(frozen=True)
class Epoch:
    """What one epoch does.

    Attributes:
        seed: of the run.
        number: counted from 0.
        num_images: how many it trains on.
        size: their shorter side in pixels.
        batches: the places of each step's images in the epoch's order.
        first_step: how many steps come before it.
        alternate: whether `mirrored` says which images are mirrored, and not chance.
    """

    seed: int
    number: int
    num_images: int
    size: int
    batches: tuple[slice, ...]
    first_step: int
    alternate: bool

    def order(self, indices: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return indices of images in the order in which the epoch sees them.

        Args:
            indices: int64 N.
            weights: N, to draw each image by, with replacement; None for each image once.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.number))
        if weights is not None:
            return indices[
                torch.multinomial(weights, len(indices), replacement=True, generator=generator)
            ]
        return indices[torch.randperm(len(indices), generator=generator)]

    def mirrored(self, count: int) -> Tensor | None:
        """Return which of `count` images are mirrored; None where chance decides.

        That is a random half, and in the next epoch the other half, so each image is seen in both
        forms within two epochs (Jordan 2024, section 3.6).
        """
        if not self.alternate:
            return None
        generator = torch.Generator().manual_seed(derive_seed(self.seed, 0, 0, 0))
        return (torch.randint(0, 2, (count,), generator=generator) + self.number) % 2 == 1

    def step_seed(self, step: int) -> int:
        """Return the seed of a step's augmentation, and of dropout unless code is the user's."""
        return derive_seed(self.seed, self.number, step)

    def own_seed(self, step: int) -> int:
        """Return the seed of what Python of the user's own draws in a step."""
        return derive_seed(self.seed, self.number, step, 1)


@final
@dataclass(frozen=True)
class Plan:
    """All epochs of a run."""

    epochs: tuple[Epoch, ...]

    @classmethod
    def of(cls, config: RunConfig, count: int, image_size: ImageSize) -> Plan:
        """Plan a run on `count` training images of a size."""
        own_size = image_shape(image_size).shortest
        numbers = range(config.epochs)
        counts = [images_in(config, epoch, count) for epoch in numbers]
        batches = [tuple(batch_bounds(n, config.batch_size)) for n in counts]
        first_steps = accumulate((len(bounds) for bounds in batches), initial=0)
        return cls(
            tuple(
                Epoch(
                    seed=config.seed,
                    number=epoch,
                    num_images=counts[epoch],
                    size=training_size(config, epoch) or own_size,
                    batches=batches[epoch],
                    first_step=first_step,
                    alternate=config.alternate,
                )
                for epoch, first_step in zip(numbers, first_steps, strict=False)
            )
        )

    @property
    def num_steps(self) -> int:
        """The steps of the whole run."""
        return self.epochs[-1].first_step + len(self.epochs[-1].batches)

    @property
    def num_images(self) -> int:
        """The images of the whole run, each as often as it is trained on."""
        return sum(epoch.num_images for epoch in self.epochs)

    def steps_before(self, epoch: int) -> int:
        """Return how many steps come before an epoch; before one after the last, all."""
        return self.epochs[epoch].first_step if epoch < len(self.epochs) else self.num_steps

    def images_left(self, epoch: int) -> float:
        """Return how many images are left from an epoch on, in images of that epoch's size.

        An image counts by its pixels, as does the time it takes.
        """
        return self.images_of(self.epochs[epoch].size, epoch)

    def images_of(self, size: int, epoch: int = 0) -> float:
        """Return the images from an epoch on, in images whose shorter side has `size` pixels."""
        return sum(e.num_images * (e.size / size) ** 2 for e in self.epochs[epoch:])


def work_left(config: RunConfig, image_size: ImageSize, epoch: int = 0) -> float:
    """Return the work of a run from an epoch on, in epochs on all images in full size."""
    plan = Plan.of(config, config.batch_size, image_size)  # the share is that of any number
    return plan.images_of(image_shape(image_size).shortest, epoch) / config.batch_size
