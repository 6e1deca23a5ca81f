"""The data check: what a source holds, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from torch import Tensor

from halfmeg.data.dataset import DataSplits, list_some, repeated_images
from halfmeg.data.decode import Progress
from halfmeg.data.duplicates import MAX_CANDIDATES, exact_duplicates, near_duplicates
from halfmeg.data.formats import image_endings
from halfmeg.data.scan import PassedOver
from halfmeg.data.shape import image_shape
from halfmeg.data.source import DecodedSource

LEAST_SIDE_OF_LIKENESS = 16
"""Smaller images, such as 8×8 digits, are alike without being the same."""

GIVEAWAY_FOLDS = 5
GIVEAWAY_MARGIN = 0.25
"""What tells this share of images more than a constant answer does is worth a line."""

TWICE = (("test", "train"), ("validation", "train"), ("test", "validation"))
"""Parts of which one image is in both, the one that is to judge the network first."""

MOST_SIZES = 8
CHUNK = 256

IMBALANCE = 10
"""A class with fewer than a tenth of the largest class's images is a problem."""


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show nearly the same: where they come from, and how alike they are."""

    first: str
    second: str
    likeness: float
    across_parts: bool
    across_classes: bool


@dataclass(frozen=True)
class WrongLabel:
    """An image whose label is likely wrong, by answers that did not know it.

    Attributes:
        name: where the image comes from.
        part: "train", "validation" or "test".
        label, label_probability: as given.
        likely, likely_probability: the class that the answers name.
    """

    name: str
    part: str
    label: str
    label_probability: float
    likely: str
    likely_probability: float


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found; `problems` is empty when all is well."""

    name: str
    train: int
    test: int
    classes: dict[str, dict[str, int]]  # name -> {"train": images, "test": images}
    image_size: int | tuple[int, int]  # a side, or height and width
    smallest: tuple[int, int]  # width and height before scaling, by area
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    problems: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...] = ()  # width, height, images: the commonest
    validation: int = 0
    files: int = 0  # all files below the root, or rows
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
    near_duplicates: tuple[NearDuplicate, ...] = ()
    giveaways: tuple[str, ...] = ()  # what tells the classes apart without looking
    wrong_labels: tuple[WrongLabel, ...] | None = None  # None: not looked for

    @property
    def image_text(self) -> str:
        """Height × width that the images were brought to."""
        return image_shape(self.image_size).text


def check_data(
    source: DecodedSource,
    sizes: np.ndarray,
    passed_over: Sequence[PassedOver] = (),
    problems: Sequence[str] = (),
    *,
    progress: Progress,
) -> DataReport:
    """Count and inspect loaded data.

    Args:
        source: what could be read.
        sizes: int B×2, widths and heights of the images before they were scaled.
        passed_over: the files that are not used.
        problems: what was found before.
        progress: told how far it is.
    """
    data = source.splits
    counts = _counts(data)
    largest = max(count["train"] for count in counts.values())
    problems = [*(f"unreadable: {line}" for line in source.unreadable), *problems]
    if data.undivided:
        problems.append(data.undivided)
    for name, count in counts.items() if not data.undivided else ():
        if count["train"] == 0 or count["test"] == 0:
            empty = "training" if count["train"] == 0 else "test"
            problems.append(f"class {name!r} has no {empty} images")
        elif count["train"] * IMBALANCE < largest:
            problems.append(
                f"class {name!r} has {count['train']} training images, the largest {largest}"
            )
    names = [name for part in data.parts for name in source.names[part]]
    labels, parts = _labels_and_parts(data)
    ids = np.concatenate([dataset.ids for dataset in data.parts.values()])
    problems += _exact_problems(ids, names, labels, parts)
    told_apart = sizes.min(1).max() >= LEAST_SIDE_OF_LIKENESS
    images = [dataset.images for dataset in data.parts.values()]
    pairs, complete = near_duplicates(images, progress) if told_apart else ([], True)
    notes = (*data.notes, *repeated_images(data))
    if not complete:
        notes += (f"more than {MAX_CANDIDATES:,} pairs look alike; not all were compared",)
    near = tuple(
        NearDuplicate(
            names[pair.first], names[pair.second], round(pair.likeness, 4),
            parts[pair.first] != parts[pair.second], labels[pair.first] != labels[pair.second],
        )
        for pair in pairs
        if ids[pair.first] != ids[pair.second]
    )  # fmt: skip
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
        sizes=_common_sizes(sizes),
        validation=len(data.validation) if data.validation is not None else 0,
        files=len(names) + len(source.unreadable) + sum(item.count for item in passed_over),
        passed_over=tuple(passed_over),
        notes=notes,
        near_duplicates=near,
        giveaways=_giveaways(data, source.names),
    )


def _counts(data: DataSplits) -> dict[str, dict[str, int]]:
    by_part = {part: _count(d.labels, len(data.classes)) for part, d in data.parts.items()}
    return {
        name: {part: counts[label] for part, counts in by_part.items()}
        for label, name in enumerate(data.classes)
    }


def _size(pair: np.ndarray) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])


def _common_sizes(sizes: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    distinct, counts = np.unique(sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_SIZES]
    return tuple((*_size(distinct[i]), int(counts[i])) for i in order)


def _count(labels: Tensor, num_classes: int) -> list[int]:
    counts: list[int] = labels.bincount(minlength=num_classes).tolist()
    return counts


def _labels_and_parts(data: DataSplits) -> tuple[list[int], list[str]]:
    labels = [label for dataset in data.parts.values() for label in dataset.labels.tolist()]
    parts = [part for part, dataset in data.parts.items() for _ in range(len(dataset))]
    return labels, parts


def _exact_problems(
    ids: np.ndarray, names: list[str], labels: list[int], parts: list[str]
) -> list[str]:
    """Name the images whose very pixels stand under two labels or in two parts."""
    leaks: dict[tuple[str, str], list[str]] = {pair: [] for pair in TWICE}
    contradictions = []
    for same in exact_duplicates(ids):
        shown = " = ".join(names[index] for index in same[:3])
        own_parts = [parts[index] for index in same]
        if len({labels[index] for index in same}) > 1:
            contradictions.append(shown)
        for pair in TWICE:
            if set(pair) <= set(own_parts):
                leaks[pair] += [shown] * own_parts.count(pair[0])
    problems = []
    if contradictions:
        shown = list_some(dict.fromkeys(contradictions), 3)
        problems.append(f"{len(contradictions)} image(s) stand under two labels: {shown}")
    for (part, other), found in leaks.items():
        if found:
            called = "training" if other == "train" else other
            shown = list_some(dict.fromkeys(found), 3)
            problems.append(f"{len(found)} {part} image(s) stand in the {called} part too: {shown}")
    return problems


def _giveaways(data: DataSplits, names: dict[str, list[str]]) -> tuple[str, ...]:
    """Say what tells the classes of the training part apart without a look at what they show.

    Looked at are size, file format, gray against colour, and brightness.

    A shallow tree that knows nothing else is cross-validated; a network may learn the same.
    """
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    # A tree would know a copy's label from the image itself, in another fold.
    different = np.sort(np.unique(data.train.ids, return_index=True)[1])
    labels = data.train.labels.numpy()[different]
    smallest = int(np.bincount(labels)[np.unique(labels)].min()) if len(labels) else 0
    if smallest < GIVEAWAY_FOLDS or len(np.unique(labels)) < 2:
        return ()
    constant = np.bincount(labels).max() / len(labels)
    endings = [PurePath(name).suffix.lower() for name in names["train"]]
    endings = [end if end in image_endings() else "" for end in endings]  # a row has none
    pixels = data.train.images
    # Filled in place: small results kept between large ones that are freed would scatter memory.
    means, is_gray = np.empty(len(pixels), np.float32), np.empty(len(pixels), bool)
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK]
        means[start : start + CHUNK] = chunk.float().mean((1, 2, 3))
        is_gray[start : start + CHUNK] = (chunk == chunk[:, :1]).all(1).flatten(1).all(1)
    features: dict[str, np.ndarray] = {
        "file endings": np.unique(endings, return_inverse=True)[1][:, None],
        "gray or colour": is_gray[:, None],
        "mean brightness": means[:, None],
    }
    if data.train.sizes is not None:
        features["sizes in pixels"] = data.train.sizes.numpy()
    lines = []
    for what, values in features.items():
        tree = DecisionTreeClassifier(max_depth=4, random_state=0)
        share = float(cross_val_score(tree, values[different], labels, cv=GIVEAWAY_FOLDS).mean())
        if share > constant + GIVEAWAY_MARGIN:
            lines.append(
                f"{what} alone: enough to tell the class of {share:.0%} of the training images "
                f"(a constant answer: {constant:.0%})"
            )
    return tuple(lines)
