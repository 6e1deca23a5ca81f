"""The data check: what a source holds, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from halfmeg.data.dataset import DataSplits

IMBALANCE = 10
"""A class with fewer than a tenth of the largest class's images is a problem."""


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found; `problems` is empty when all is well."""

    name: str
    train: int
    test: int
    classes: dict[str, dict[str, int]]  # name -> {"train": images, "test": images}
    image_size: int
    smallest: tuple[int, int]  # width and height before scaling, by area
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return vars(self) | {
            "smallest": list(self.smallest),
            "largest": list(self.largest),
            "mean": list(self.mean),
            "std": list(self.std),
            "problems": list(self.problems),
        }


def check_data(data: DataSplits, sizes: np.ndarray, unreadable: Sequence[str] = ()) -> DataReport:
    """Count and inspect loaded data.

    Args:
        data: what could be read.
        sizes: int B×2, widths and heights of the images before they were scaled.
        unreadable: a line for each image that could not be read.
    """
    counts = {
        name: {"train": train, "test": test}
        for name, train, test in zip(
            data.classes,
            _count(data.train.labels, len(data.classes)),
            _count(data.test.labels, len(data.classes)),
            strict=True,
        )
    }
    largest = max(count["train"] for count in counts.values())
    problems = [f"unreadable: {line}" for line in unreadable]
    for name, count in counts.items():
        if count["train"] == 0 or count["test"] == 0:
            empty = "training" if count["train"] == 0 else "test"
            problems.append(f"class {name!r} has no {empty} images")
        elif count["train"] * IMBALANCE < largest:
            problems.append(
                f"class {name!r} has {count['train']} training images, the largest {largest}"
            )
    problems += _leaks(data)
    return DataReport(
        name=data.name,
        train=len(data.train),
        test=len(data.test),
        classes=counts,
        image_size=data.image_size,
        smallest=_size(sizes[sizes.prod(1).argmin()]),
        largest=_size(sizes[sizes.prod(1).argmax()]),
        mean=data.mean,
        std=data.std,
        fingerprint=data.fingerprint,
        problems=tuple(problems),
    )


def _size(pair: np.ndarray) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])


def _count(labels: Tensor, num_classes: int) -> list[int]:
    counts: list[int] = labels.bincount(minlength=num_classes).tolist()
    return counts


def _leaks(data: DataSplits) -> list[str]:
    """Find test images whose pixels stand in the training part too."""
    seen: dict[bytes, int] = {}
    for index, image in enumerate(data.train.images.numpy()):
        seen.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    found = []
    for index, image in enumerate(data.test.images.numpy()):
        twin = seen.get(hashlib.sha256(image.tobytes()).digest())
        if twin is not None:
            found.append((index, twin))
    if not found:
        return []
    examples = ", ".join(f"test {test} = train {train}" for test, train in found[:3])
    return [f"{len(found)} test image(s) stand in the training part too: {examples}"]
