"""What every source becomes: images, labels and class names, in a training and a test part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import Self

import numpy as np
import torch
from torch import Tensor

from halfmeg.data.shape import ImageShape

MAX_CLASSES = 10_000

LARGER_SIDES = (48, 64, 96)
"""Pixels that are worth a try where images have them; beyond, small networks get slow."""


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Dataset:
    """Labelled images of one size.

    Attributes:
        images: uint8 B×C×H×W, in memory or memory-mapped.
        labels: int64 B, indices into `classes`.
        classes: the names.
        groups: int64 B, equal where images have to stay together in every split; None where none
            were named.
        sizes: int64 B×2, the images' own widths and heights; None where all have one size.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    groups: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        form = "×".join(map(str, self.images.shape[1:]))
        return f"Dataset({len(self):,} images of {form}, {len(self.classes):,} classes)"

    def subset(self, indices: Tensor | slice) -> Dataset:
        """Return the images at int64 `indices`, copied into memory, or a view of a slice."""
        groups, sizes = (None if x is None else x[indices] for x in (self.groups, self.sizes))
        return Dataset(self.images[indices], self.labels[indices], self.classes, groups, sizes)

    def renamed(self, classes: tuple[str, ...]) -> Dataset:
        """Return the same images with labels that are indices into other class names.

        Raises:
            ValueError: an image of a class that these names do not have.
        """
        if classes == self.classes:
            return self
        index = {name: label for label, name in enumerate(classes)}
        present = self.labels.bincount(minlength=len(self.classes)).tolist()
        for name, count in zip(self.classes, present, strict=True):
            if count and name not in index:
                raise ValueError(
                    f"{count:,} image(s) are of the class {name!r}; "
                    f"the network knows {list_some(classes)}"
                )
        mapped = torch.tensor([index.get(name, 0) for name in self.classes])
        return replace(self, labels=mapped[self.labels], classes=classes)

    @cached_property
    def ids(self) -> np.ndarray:
        """uint64 B: 8 bytes of a hash over each image's pixels, by which it is known again."""
        return np.array(
            [_image_id(image) for image in self.images.numpy()], dtype=np.uint64
        )  # reads every image once


def spread_over(count: int, most: int) -> Tensor:
    """Return int64 indices of at most `most` of `count` images, evenly spaced and in order.

    Folders are listed class by class, so the first of them are of the first classes alone.
    """
    chosen = min(count, most)
    return torch.arange(chosen) * (count - 1) // max(chosen - 1, 1)


def _image_id(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A source, loaded: the training and the test part and what identifies them.

    Attributes:
        name: as it is to be called in results, such as "digits".
        source: the text that `load_dataset` was given.
        mean, std: per channel over the training images, of pixels scaled to [0, 1].
        fingerprint: 16 hexadecimal digits of a SHA-256 over pixels, labels and class names.
        validation: the user's own validation part; None where it is drawn from the training part.
        divided: the source had no test part, so a fifth of it is held out, by content.
        notes: what a user should know about how the source was read, a line each.
        options: how the source was read, as `DataOptions.to_dict` gives it.
        folds_of: of one fold, the fingerprint of the whole source; else empty.
    """

    name: str
    train: Dataset
    test: Dataset
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    source: str = ""
    validation: Dataset | None = None
    divided: bool = False
    notes: tuple[str, ...] = ()
    options: dict[str, str | int] = field(default_factory=dict)
    folds_of: str = ""

    def __repr__(self) -> str:
        parts = ", ".join(f"{part}={own!r}" for part, own in self.parts.items())
        return f"DataSplits({self.name!r}, {parts})"

    @property
    def parts(self) -> dict[str, Dataset]:
        """The parts by name: "train", "validation" where the user has one, and "test"."""
        middle = {} if self.validation is None else {"validation": self.validation}
        return {"train": self.train} | middle | {"test": self.test}

    @property
    def whole(self) -> Self:
        """The same source with all its images as the test part, where it had none of its own."""
        if not self.divided:
            return self
        both = (self.train, self.test)
        test = Dataset(
            torch.cat([part.images for part in both]),
            torch.cat([part.labels for part in both]),
            self.classes,
        )
        return replace(self, train=self.train.subset(slice(0)), test=test)

    @property
    def undivided(self) -> str:
        """Why all images are in the test part of a source that had none, or ""."""
        if not self.divided or len(self.train):
            return ""
        return (
            "each class is one image, or all images one group, so none can be held out to test "
            "on; add images, or a test part"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return self.train.classes

    @property
    def image_shape(self) -> ImageShape:
        """Channels, height and width of the images."""
        return ImageShape(*self.train.images.shape[1:])

    @property
    def larger_sides(self) -> list[int]:
        """Sides above the images' own, in pixels, that half of their sources have at least."""
        if self.train.sizes is None or not len(self.train):
            return []
        sources = int(self.train.sizes.min(1).values.median())
        return [side for side in LARGER_SIDES if self.image_shape.shortest < side <= sources]

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of square images in pixels, or (height, width)."""
        return self.image_shape.size


def build_splits(
    name: str, train: Dataset, test: Dataset, validation: Dataset | None = None
) -> DataSplits:
    """Measure mean, standard deviation and fingerprint, and put the parts together.

    The training part may be empty, or all of one class, where the source is only evaluated on, and
    the test part where nothing of it could be read; `require_trainable` says so to those who train.
    """
    mean, std = channel_statistics(train.images if len(train) else test.images)
    splits = DataSplits(name, train, test, mean, std, "", validation=validation)
    return replace(splits, fingerprint=fingerprint(*splits.parts.values()))


def require_dataset(dataset: object) -> None:
    """Raise TypeError where a caller hands over something else than one part of a source."""
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise TypeError(f"dataset is of the type {kind}; give one part, as load_dataset(...).test")


def require_splits(data: object) -> None:
    """Raise TypeError where a caller hands over something else than a loaded source."""
    if not isinstance(data, DataSplits):
        given = repr(data) if isinstance(data, str | PathLike) else "..."
        raise TypeError(f"data is of the type {type(data).__name__}; give load_dataset({given})")


def require_trainable(data: DataSplits) -> None:
    """Raise where a network cannot be trained on a source.

    Raises:
        ValueError: no training images, an empty validation part, a class without training images,
            or fewer than two classes.
    """
    if len(data.classes) < 2:
        raise ValueError(one_class_message(data.name, data.classes))
    if data.undivided:
        raise ValueError(f"{data.name}: {data.undivided}")
    for part, dataset in data.parts.items():
        if len(dataset) == 0:
            called = "training" if part == "train" else part
            raise ValueError(f"{data.name} has no {called} images")


def missing_classes(data: DataSplits) -> tuple[str, ...]:
    """Say which classes have no training images, or none in a test part of the source's own."""
    lines = []
    for part, called in {"train": "training", "test": "test"}.items():
        if part == "test" and data.divided:
            continue  # a class of one image cannot be in both
        counts = data.parts[part].labels.bincount(minlength=len(data.classes)).tolist()
        names = [name for name, count in zip(data.classes, counts, strict=True) if not count]
        if names:
            lines.append(f"no {called} images: {list_some(names)}")
    return tuple(lines)


def copied_images(data: DataSplits) -> tuple[str, ...]:
    """Say how many images have the very pixels of one with another label, or of a training image.

    The latter is told of test and validation images.
    """
    lines = []
    ids = np.concatenate([own.ids for own in data.parts.values()])
    labels = torch.cat([own.labels for own in data.parts.values()]).numpy()
    pairs = np.unique(np.stack([ids, labels.astype(np.uint64)], 1), axis=0)
    if count := int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum()):
        lines.append(f"{count:,} image(s) stand under two labels; `halfmeg data check` names them")
    for part, own in reversed(data.parts.items()):
        count = int(np.isin(own.ids, data.train.ids).sum()) if part != "train" else 0
        if count:
            told = "image(s) have the pixels of a training image; `halfmeg data check` names them"
            lines.append(f"{count:,} {part} {told}")
    return tuple(lines)


def repeated_images(data: DataSplits, least: float = 0.0) -> tuple[str, ...]:
    """Say how many images of a part have the very pixels of another one of it.

    An accuracy over copies is that of fewer images than its interval takes it to be.

    Args:
        data: all parts.
        least: the share of a part that has to be copies to be told, 0 to 1.
    """
    lines = []
    for part, own in data.parts.items():
        different = len(np.unique(own.ids))
        if len(own) - different > least * len(own):
            called = "training" if part == "train" else part
            lines.append(
                f"of {len(own):,} {called} images {different:,} are different, the others copies"
            )
    return tuple(lines)


def alike_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Say which classes' names differ in capitals, spaces or underscores alone."""
    seen: dict[str, str] = {}
    pairs = []
    for name in classes:
        plain = "".join(name.casefold().replace("_", " ").split())
        if seen.setdefault(plain, name) != name:
            pairs.append(f"{seen[plain]!r} and {name!r}")
    return (f"classes of nearly one name: {list_some(pairs, 3)}",) if pairs else ()


def one_class_message(name: str, classes: Sequence[str]) -> str:
    """Return what to tell a user whose data has nothing to tell apart."""
    return f"{name} has one class, {classes[0]!r}; a classifier needs two or more"


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, pixels scaled to [0, 1].

    Exact: sums of integers, taken in chunks so that memory stays small.
    """
    total = np.zeros(images.shape[1], dtype=np.int64)
    total_square = np.zeros_like(total)
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


def list_some(names: Iterable[str], most: int = 10) -> str:
    """Return the first few of many names, as in a message of one line."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" * (len(listed) > most))


def class_names(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return `names`, or the numbers from 0 as texts where a source has no names."""
    return tuple(names) if names is not None else tuple(str(index) for index in range(count))
