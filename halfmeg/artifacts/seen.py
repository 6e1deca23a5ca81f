"""Which images a network has seen, so that it is never tested on them unawares.

An image is known by 8 bytes of a hash over its decoded pixels (`Dataset.ids`); a file holds these
numbers sorted, in little-endian order, and nothing else. Brought to another size or by another
`fit` an image has other pixels: whether it was seen can then not be checked, which is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.shape import ImageShape
from halfmeg.files import read_limited

TRAINED_ON = "trained_on.u64"
INHERITED = "inherited.u64"
"""What the weights that a run started from, and its teacher, were trained on."""

HELD_OUT = "held_out.u64"
MAX_BYTES = 256 * 2**20


def ids_to_bytes(*ids: np.ndarray) -> bytes:
    """Return a file's content for the ids, uint64 B, of one or several parts."""
    return np.unique(np.concatenate(ids)).astype("<u8").tobytes()


def read_ids(path: Path) -> np.ndarray | None:
    """Return what `ids_to_bytes` wrote; None where there is no file, as in old run folders.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = read_limited(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) % 8:
        raise ValueError(f"{path} is damaged: {len(content)} bytes are no whole number of ids")
    return np.frombuffer(content, "<u8").astype(np.uint64)


class UncheckedImagesWarning(UserWarning):
    """Whether a network has seen some test images could not be checked."""


@final
@dataclass(frozen=True)
class Known:
    """What a network says of the images that it has seen.

    Attributes:
        fingerprint: of its own data, whose test images it has not seen.
        image_shape, fit: the form that images were brought to, in which their ids are.
        read_ids: gives the ids of what it was trained or validated on; None where they are not
            known.
        whole: whether what it learned from says what it has seen, in the same form.
    """

    fingerprint: str | None
    image_shape: ImageShape
    fit: str
    read_ids: Callable[[], np.ndarray | None]
    whole: bool = True

    def comparable(self, data: DataSplits) -> bool:
        """Return whether an image that it has seen would have the same id among the test images."""
        if data.image_shape != self.image_shape:
            return False
        if data.options.get("fit", "crop") == self.fit:
            return True
        if data.test.sizes is None:
            return False
        widths, heights = data.test.sizes.T  # of the same proportions, each fit gives the same
        return bool((widths * data.image_shape.height == heights * data.image_shape.width).all())

    def warn_if_unchecked(self, data: DataSplits, what: str) -> None:
        """Say where equal ids are not all that it may have seen.

        Warns:
            UncheckedImagesWarning: so it is.
        """
        why = (
            "took over weights or answers from a network for images of another form, or from one "
            "that does not say which it was trained on"
        )
        if not self.comparable(data):
            theirs = _form(self.image_shape, self.fit)
            ours = _form(data.image_shape, data.options.get("fit", "crop"))
            why = f"was trained on images of {theirs}, and those of {data.name} are of {ours}"
        elif self.whole:
            return
        warnings.warn(UNCHECKED.format(f"{what} {why}"), UncheckedImagesWarning, stacklevel=4)


UNCHECKED = "{}, so whether it has seen some of the test images could not be checked"


def _form(shape: ImageShape, fit: object) -> str:
    return f"{'×'.join(map(str, shape))} (channels, height, width) by fit={fit}"


def unseen(
    data: DataSplits, classes: tuple[str, ...], known: Known, what: str
) -> tuple[Dataset, int]:
    """Return the test images of some data that a network has not seen, and how many it has.

    Args:
        data: what the network is to be tested on.
        classes: those of the network.
        known: what it says of the images that it has seen; where that is nothing, none is left out.
        what: names the network.

    Raises:
        ValueError: images of other classes, or all of them were trained on.

    Warns:
        UncheckedImagesWarning: it has seen images in another form, which no id can tell.
    """
    test = data.test.renamed(classes)
    trained_on = None if data.fingerprint == known.fingerprint else known.read_ids()
    if trained_on is None:
        return test, 0
    seen = np.isin(test.ids, trained_on)
    if seen.any() and seen.all():
        raise ValueError(
            f"all {len(seen):,} images of {data.name} were trained or validated on; "
            "an accuracy on them would say nothing about new ones"
        )
    known.warn_if_unchecked(data, what)
    if not seen.any():
        return test, 0
    return test.subset(torch.from_numpy(np.flatnonzero(~seen))), int(seen.sum())


def require_unseen(data: DataSplits, setting: str, known: Known) -> None:
    """Raise where what a run learns from was trained on the run's test images.

    Args:
        data: the run's.
        setting: that names what it learns from.
        known: what that says of the images that it has seen.

    Raises:
        ValueError: it was.

    Warns:
        UncheckedImagesWarning: it does not say, or has seen images in another form.
    """
    if data.test is data.train or data.test is data.validation:
        return  # a run that is only timed, or a trial: neither has test images
    if data.fingerprint == known.fingerprint:
        return
    trained_on = known.read_ids()
    if trained_on is None:
        told = f"{setting} does not say which images it was trained on"
        warnings.warn(UNCHECKED.format(told), UncheckedImagesWarning, stacklevel=3)
        return
    count = int(np.isin(data.test.ids, trained_on).sum())
    if count:
        raise ValueError(
            f"{setting} was trained on {count:,} of the {len(data.test):,} test images, so an "
            "accuracy on them would say nothing about new ones; leave it out, or take other data"
        )
    known.warn_if_unchecked(data, setting)


def only_known(
    data: DataSplits, classes: tuple[str, ...], trained_on: np.ndarray, held_out: np.ndarray
) -> DataSplits | None:
    """Return a source without the images that a run does not know, as before they came.

    Args:
        data: all there is now.
        classes: those of the run.
        trained_on: sorted ids, uint64 B, of its training and validation images.
        held_out: of its test images.

    Returns:
        The source with the run's class names; None where no part, or another class, is left.
    """
    parts: dict[str, Dataset] = {}
    for name, part in data.parts.items():
        known = np.isin(part.ids, held_out if name == "test" else trained_on)
        parts[name] = part.subset(torch.from_numpy(np.flatnonzero(known)))
        present = {data.classes[label] for label in set(parts[name].labels.tolist())}
        if not present or not present <= set(classes):
            return None
    parts = {name: part.renamed(classes) for name, part in parts.items()}
    splits = build_splits(data.name, parts["train"], parts["test"], parts.get("validation"))
    return replace(splits, source=data.source, divided=data.divided, options=data.options)
