"""k-fold cross-validation: every image of a source is tested once, by a network that had not it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from halfmeg.data.dataset import Dataset, DataSplits, channel_statistics
from halfmeg.data.split import require_full_folds, units_of


def parse_fold(text: str) -> tuple[int, int]:
    """Return which fold of how many a text such as "2/5" names: (2, 5).

    Raises:
        ValueError: it names none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    fold, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= fold <= count or count < 2:
        raise ValueError(f"fold={text!r} is no fold; write fold=2/5 for the second of five")
    return fold, count


@dataclass(frozen=True)
class Folds:
    """A source whose images, of all its parts, are divided into folds.

    Classes have the same share in every fold, as nearly as that can be. Images of one group, and
    those of the same pixels, are in one fold. Which one is decided by the images' content, not by
    their names or their order.

    Attributes:
        data: the source as it was loaded.
        count: of folds.
        members: int64 B, the fold of each image, 0 to `count` - 1.
    """

    data: DataSplits
    count: int
    members: Tensor

    @classmethod
    def of(cls, data: DataSplits, count: int) -> Self:
        """Divide a source.

        Raises:
            ValueError: fewer than two folds, or too few images or groups for so many.
        """
        if "fold" in data.options:
            raise ValueError(f"fold={data.options['fold']} is one fold already; leave it out")
        return cls(data, count, _members(_joined(data), count))

    @property
    def name(self) -> str:
        """The source's."""
        return self.data.name

    @cached_property
    def images(self) -> Dataset:
        """All images, with a group for each where any has one."""
        return _joined(self.data)

    def fingerprint(self, fold: int) -> str:
        """Return 16 hexadecimal digits that change with the source and with what is in the fold."""
        digest = hashlib.sha256(f"{self.data.fingerprint} {fold}/{self.count} ".encode())
        digest.update((self.members == fold).numpy().tobytes())
        return digest.hexdigest()[:16]

    def splits(self, fold: int) -> DataSplits:
        """Return a fold, from 0, as the test part and all others as the training part."""
        held_out = self.members == fold
        train = self.images.subset((~held_out).nonzero()[:, 0])
        mean, std = channel_statistics(train.images)
        return replace(
            self.data, train=train, test=self.images.subset(held_out.nonzero()[:, 0]),
            validation=None, mean=mean, std=std, fingerprint=self.fingerprint(fold), divided=False,
            options=self.data.options | {"fold": f"{fold + 1}/{self.count}"},
            folds_of=self.data.fingerprint,
        )  # fmt: skip

    def tested(self, folds: Iterable[int]) -> Dataset:
        """Return the images that some folds, from 0, test: those of the first one first."""
        order = self.members.argsort(stable=True)
        return self.images.subset(order[torch.isin(self.members[order], torch.tensor([*folds]))])

    @property
    def whole(self) -> DataSplits:
        """The source with all images as its test part, those of the first fold first."""
        test = self.tested(range(self.count))
        return replace(self.data, test=test, validation=None, divided=False)

    @property
    def note(self) -> str:
        """What a user should know of it."""
        text = f"{self.count} folds of all {len(self.members):,} images"
        if self.data.divided:
            return text
        return f"{text}: the test part that {self.data.name} has of its own is trained on too"


def _joined(data: DataSplits) -> Dataset:
    parts = [*data.parts.values()]
    groups = None
    if any(part.groups is not None for part in parts):
        groups = torch.cat(
            [
                torch.from_numpy(p.ids.view(np.int64)) if p.groups is None else p.groups
                for p in parts
            ]
        )
    sizes = [part.sizes for part in parts if part.sizes is not None]
    return Dataset(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        data.classes,
        groups,
        torch.cat(sizes) if len(sizes) == len(parts) else None,
    )


def _members(images: Dataset, count: int) -> Tensor:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = units_of(images)
    most = len(np.unique(units))
    if not 2 <= count <= most:
        what = "images" if images.groups is None else "groups"
        raise ValueError(
            f"folds={count} is out of range; allowed: 2 to {most}, the {what} there are"
        )
    order = np.argsort(units, kind="stable")
    labels, kept = images.labels.numpy()[order], units[order]
    kind = StratifiedKFold if most == len(units) else StratifiedGroupKFold
    members = np.zeros(len(units), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        try:
            for fold, (_, test) in enumerate(kind(count).split(labels, labels, kept)):
                members[order[test]] = fold
        except ValueError:
            largest = int(np.bincount(labels).max())
            raise ValueError(
                f"folds={count} is out of range; allowed: 2 to {largest}, the images of the "
                "largest class"
            ) from None
    remedy = "take fewer folds, or add images or groups"
    require_full_folds(images, members, count, remedy)
    return torch.from_numpy(members)
