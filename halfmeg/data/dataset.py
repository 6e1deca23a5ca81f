"""What every source becomes: images, labels and class names, in a training and a test part."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from halfmeg.data.shape import ImageShape

MAX_CLASSES = 10_000


@dataclass(frozen=True)
class Dataset:
    """Labelled images of one size.

    Attributes:
        images: uint8 B×3×H×W, in memory or memory-mapped.
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


def _image_id(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
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
    def image_size(self) -> int | tuple[int, int]:
        """Side of square images in pixels, or (height, width)."""
        return self.image_shape.size


def build_splits(
    name: str, train: Dataset, test: Dataset, validation: Dataset | None = None
) -> DataSplits:
    """Measure mean, standard deviation and fingerprint, and put the parts together.

    The training part may be empty, or all of one class, where the source is only evaluated on;
    `require_trainable` says so to those who train.

    Raises:
        ValueError: the test part is empty.
    """
    if len(test) == 0:
        raise ValueError(f"{name} has no test images")
    mean, std = channel_statistics(train.images if len(train) else test.images)
    splits = DataSplits(name, train, test, mean, std, "", validation=validation)
    return replace(splits, fingerprint=fingerprint(*splits.parts.values()))


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
    """Say how many test and validation images have the very pixels of a training image."""
    lines = []
    for part, own in reversed(data.parts.items()):
        count = int(np.isin(own.ids, data.train.ids).sum()) if part != "train" else 0
        if count:
            told = "image(s) have the pixels of a training image; `halfmeg data check` names them"
            lines.append(f"{count:,} {part} {told}")
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


def hold_out(data: DataSplits, fraction: float, seed: int) -> tuple[Tensor, Dataset]:
    """Choose what to train on and what to validate on.

    Args:
        data: a source; its own validation part is taken where it has one.
        fraction: share of the training part, 0 to below 1; with 0 nothing is held out.
        seed: of the draw.

    Returns:
        int64 indices of the training images to train on, and the validation images.

    Raises:
        ValueError: there are too few images or groups.
    """
    train = data.train
    if data.validation is not None and fraction > 0:
        return torch.arange(len(train)), data.validation
    if train.groups is not None and fraction > 0:
        first, second = _grouped_split(train.labels, train.groups, fraction, seed)
    else:
        first, second = stratified_split(train.labels, fraction, seed)
    return first, train.subset(second)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices so that each class gives the same share to the second part.

    Where a class is too small for that, each class of two images or more gives at least one, and
    a class of one image gives none.

    Args:
        labels: int64 B.
        fraction: share of the second part, 0 to below 1; 0 gives an empty one.
        seed: of the draw.

    Returns:
        Two sorted int64 tensors of indices that together hold each index once.

    Raises:
        ValueError: no class has two images.
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
    except ValueError:
        return _split_small_classes(labels, fraction, seed)
    return torch.from_numpy(np.sort(first)), torch.from_numpy(np.sort(second))


def _split_small_classes(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in np.unique(labels.numpy()):
        own = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(fraction * len(own))), len(own) - 1)
        held_out[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    if not held_out.any():
        raise ValueError(
            f"val_fraction={fraction:g} cannot hold out any of {len(labels)} images, since no "
            "class has two; add images, or set val_fraction=0"
        )
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _grouped_split(
    labels: Tensor, groups: Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Split with each group on one side, the classes' shares as equal as that allows."""
    from sklearn.model_selection import StratifiedGroupKFold

    distinct = np.unique(groups.numpy())
    count = len(distinct)
    folds = min(max(2, round(1 / fraction)), count)
    if folds < 2:
        raise ValueError(
            f"val_fraction={fraction:g} cannot hold out whole groups, since the training images "
            "are one group; set val_fraction=0, or another group="
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        try:
            first, second = next(splitter.split(labels.numpy(), labels.numpy(), groups.numpy()))
        except ValueError:  # every class has fewer images than there are folds
            kept = groups != int(distinct[seed % count])
            return kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
    return torch.from_numpy(np.sort(first)), torch.from_numpy(np.sort(second))


def split_by_content(
    labels: Tensor, keys: Sequence[bytes], fraction: float
) -> tuple[Tensor, Tensor]:
    """Split indices by a hash of each image's content alone, so that no other image moves it.

    A class that has none in the second part gives it the image of the smallest hash, if it has
    another; one that has none in the first part keeps that of the largest. So parts are only
    about as large as `fraction` says.

    Args:
        labels: int64 B.
        keys: for each image a hash of its content, or of its group.
        fraction: about the share of the second part, between 0 and 1.

    Returns:
        Two sorted int64 tensors of indices.
    """
    place = np.array([int.from_bytes(key[:8], "big") for key in keys], dtype=np.uint64)
    held_out = place < np.uint64(fraction * 2**64)
    for label in np.unique(labels.numpy()):
        own = labels.numpy() == label
        if not held_out[own].any() and len(np.unique(place[own])) > 1:
            held_out |= place == place[own].min()
        if held_out[own].all():
            held_out &= place != place[own].max()
    indices = torch.arange(len(labels))
    chosen = torch.from_numpy(held_out)
    return indices[~chosen], indices[chosen]


def list_some(names: Iterable[str], most: int = 10) -> str:
    """Return the first few of many names, as in a message of one line."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most:,} more" * (len(listed) > most))


def class_names(count: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return `names`, or the numbers from 0 as texts where a source has no names."""
    return tuple(names) if names is not None else tuple(str(index) for index in range(count))
