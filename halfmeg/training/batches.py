"""Images and labels, one step's after the other's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from halfmeg.data.augment import Augmentation, augment
from halfmeg.data.dataset import Dataset
from halfmeg.data.mix import Mixture, mix
from halfmeg.places.draws import seed_draws
from halfmeg.training.distributed import Ranks
from halfmeg.training.own import Transform, same_images
from halfmeg.training.plan import Epoch
from halfmeg.training.selection import Selection


@final
@dataclass(frozen=True)
class Batch:
    """What this process trains on in a step; of S stacked networks with a dimension S in front.

    Attributes:
        images: augmented and normalized B×C×H×W.
        labels: int64 B.
        indices: int64 N, of the whole batch, over all processes, among all training images.
        mixture: what was mixed into the images; None for nothing.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    mixture: Mixture | None = None

    @property
    def num_images(self) -> int:
        """The images of the whole batch."""
        return self.indices.shape[-1]


@final
@dataclass(frozen=True)
class Batches:
    """Draws the batches of an epoch.

    Attributes:
        indices: of the images to train on, among all training images.
        augmentation: what is done to them.
        mean, std: float32 of length C, on the device, of pixels scaled to [0, 1].
        dtype: of the batches.
        selection: chooses the images of an epoch.
        ranks: the processes of the run.
        transform: what is done to the images last, but for mixing.
        mixup, cutmix: as in `RunConfig`.
        weights: to draw each of the images by; None for each image once in an epoch.
        draws_apart: whether the global generators, which Python of the user's own draws from, have
            a seed of their own. Of the same seed a uniform draw of the user's would be the coin
            that mirrors the image; the networks of the table draw for dropout alone, which on a
            CPU is another draw.
    """

    indices: Tensor
    augmentation: Augmentation
    mean: Tensor
    std: Tensor
    dtype: torch.dtype
    selection: Selection
    ranks: Ranks
    transform: Transform = same_images
    weights: Tensor | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    draws_apart: bool = False

    def draw(self, train: Dataset, epoch: Epoch, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on.

        Each is augmented whole in every process, so that the draws do not depend on their number,
        and seeds torch's global generator, which dropout draws from.

        Args:
            train: all training images, on the device.
            epoch: which epoch.
            first: its steps that are done.
        """
        if first == 0:
            self.selection.start_epoch()
        order = self.selection.choose(epoch.order(self.indices, self.weights), epoch.num_images)
        mirrored = epoch.mirrored(len(train))
        for step in range(first, len(epoch.batches)):
            chosen = order[epoch.batches[step]]
            indices = chosen.to(train.images.device)
            seed = epoch.step_seed(step)
            if self.draws_apart:
                seed_draws(epoch.own_seed(step))
            else:
                torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)
            images = augment(
                train.images[indices], self.augmentation, self.mean, self.std, generator=generator,
                mirrored=None if mirrored is None else mirrored[chosen],
                size=epoch.size, dtype=self.dtype,
            )  # fmt: skip
            images = self.transform(images, generator)
            labels, mixture = train.labels[indices], None
            if self.mixup or self.cutmix:
                images, whole = mix(
                    images, labels, mixup=self.mixup, cutmix=self.cutmix, generator=generator
                )
                mixture = Mixture(self.ranks.share(whole.labels), whole.share)
            yield Batch(self.ranks.share(images), self.ranks.share(labels), indices, mixture)
