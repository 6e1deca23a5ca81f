"""What every source becomes: images, labels and class names, in a training and a test part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size.

    Attributes:
        images: uint8 B×3×H×W, in memory or memory-mapped.
        labels: int64 B, indices into `classes`.
        classes: the names.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | slice) -> Dataset:
        """Return the images at int64 `indices`, copied into memory, or a view of a slice."""
        return Dataset(self.images[indices], self.labels[indices], self.classes)


@dataclass(frozen=True)
class DataSplits:
    """A source, loaded: the training and the test part and what identifies them.

    Attributes:
        name: as it is to be called in results, such as "digits".
        source: the text that `load_dataset` was given.
        mean, std: per channel over the training images, of pixels scaled to [0, 1].
        fingerprint: 16 hexadecimal digits of a SHA-256 over pixels, labels and class names.
    """

    name: str
    train: Dataset
    test: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    source: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.train.classes

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        return self.train.images.shape[-1]


def build_splits(name: str, train: Dataset, test: Dataset) -> DataSplits:
    """Measure mean, standard deviation and fingerprint, and put the parts together.

    Raises:
        ValueError: a part is empty, or there are fewer than two classes.
    """
    for part, dataset in (("training", train), ("test", test)):
        if len(dataset) == 0:
            raise ValueError(f"{name} has no {part} images")
    if len(train.classes) < 2:
        raise ValueError(one_class_message(name, train.classes))
    mean, std = channel_statistics(train.images)
    return DataSplits(name, train, test, mean, std, fingerprint(train, test))


def one_class_message(name: str, classes: Sequence[str]) -> str:
    """Return what to tell a user whose data has nothing to tell apart."""
    return f"{name} has one class, {classes[0]!r}; a classifier needs two or more"


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, pixels scaled to [0, 1].

    Exact: sums of integers, taken in chunks so that memory stays small.
    """
    total = np.zeros(3, dtype=np.int64)
    total_square = np.zeros(3, dtype=np.int64)
    for chunk in images.split(4096):  # type: ignore[no-untyped-call]
        pixels = chunk.numpy().astype(np.int64)
        total += pixels.sum((0, 2, 3))
        total_square += np.square(pixels, out=pixels).sum((0, 2, 3))
    count = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total / count
    # A channel without any contrast would divide by zero; it is left unscaled instead.
    std = np.sqrt(np.maximum(total_square / count - mean**2, 0))
    std = np.where(std > 0, std, 255)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def fingerprint(*datasets: Dataset) -> str:
    """Return 16 hexadecimal digits that change with any pixel, label or class name."""
    digest = hashlib.sha256()
    for dataset in datasets:
        digest.update(repr((tuple(dataset.images.shape), dataset.classes)).encode())
        for chunk in dataset.images.split(4096):  # type: ignore[no-untyped-call]
            digest.update(chunk.contiguous().numpy().data)
        digest.update(dataset.labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same share to the second part.

    Args:
        labels: int64 B.
        fraction: share of the second part, 0 to below 1; 0 gives an empty one.
        seed: of the draw.

    Returns:
        Two sorted int64 tensors of indices that together hold each index once.

    Raises:
        ValueError: a class is too small to stand in both parts.
    """
    everything = torch.arange(len(labels))
    if fraction == 0:
        return everything, everything[:0]
    from sklearn.model_selection import train_test_split

    try:
        first, second = train_test_split(
            everything.numpy(),
            test_size=fraction,
            random_state=seed,
            stratify=labels.numpy(),
        )
    except ValueError as error:
        counts = torch.bincount(labels)
        least = len(counts) / len(labels)  # one image of each class
        remedy = f"; allowed: 0, or {least:.2g} or more" if fraction < least else ""
        raise ValueError(
            f"cannot hold out {fraction:g} of {len(labels)} images in {len(counts)} classes "
            f"(the smallest has {int(counts.min())}): {error}{remedy}"
        ) from None
    return torch.from_numpy(np.sort(first)), torch.from_numpy(np.sort(second))


def class_names(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return `names`, or the numbers from 0 as texts where a source has no names."""
    return tuple(names) if names is not None else tuple(str(index) for index in range(count))
