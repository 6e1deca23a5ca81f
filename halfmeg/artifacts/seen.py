"""Which images a network has seen, so that it is never tested on them unawares.

An image is known by 8 bytes of a hash over its decoded pixels (`Dataset.ids`); a file holds these
numbers sorted, in little-endian order, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits
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


def unseen(
    data: DataSplits,
    classes: tuple[str, ...],
    fingerprint: str | None,
    read_trained_on: Callable[[], np.ndarray | None],
) -> tuple[Dataset, int]:
    """Return the test images of some data that a network has not seen, and how many it has.

    Args:
        data: what the network is to be tested on.
        classes: those of the network.
        fingerprint: of the network's own data, whose test images it has not seen.
        read_trained_on: gives the ids of what it was trained or validated on; None where they are
            not known, which leaves nothing out.

    Raises:
        ValueError: images of other classes, or all of them were trained on.
    """
    test = data.test.renamed(classes)
    trained_on = None if data.fingerprint == fingerprint else read_trained_on()
    if trained_on is None:
        return test, 0
    seen = np.isin(test.ids, trained_on)
    if not seen.any():
        return test, 0
    if seen.all():
        raise ValueError(
            f"all {len(seen):,} images of {data.name} were trained or validated on; "
            "an accuracy on them would say nothing about new ones"
        )
    return test.subset(torch.from_numpy(np.flatnonzero(~seen))), int(seen.sum())


def require_unseen(
    data: DataSplits,
    setting: str,
    fingerprint: str | None,
    read_trained_on: Callable[[], np.ndarray | None],
) -> None:
    """Raise where what a run learns from was trained on the run's test images.

    Args:
        data: the run's.
        setting: that names what it learns from.
        fingerprint, read_trained_on: of that, as in `unseen`.

    Raises:
        ValueError: it was.
    """
    if data.test is data.train or data.test is data.validation:
        return  # a run that is only timed, or a trial: neither has test images
    trained_on = None if data.fingerprint == fingerprint else read_trained_on()
    if trained_on is None:
        return
    count = int(np.isin(data.test.ids, trained_on).sum())
    if count:
        raise ValueError(
            f"{setting} was trained on {count:,} of the {len(data.test):,} test images, so an "
            "accuracy on them would say nothing about new ones; leave it out, or take other data"
        )


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
