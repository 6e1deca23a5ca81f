"""Which images are trained on and which are held out.

What has to stay together does: the images of a group, and those of the same pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from halfmeg.data.dataset import Dataset, DataSplits


def hold_out(data: DataSplits, fraction: float, seed: int) -> tuple[Tensor, Dataset]:
    """Choose what to train on and what to validate on.

    Args:
        data: a source; its own validation part is taken where it has one.
        fraction: share of the training part, 0 to below 1; with 0 nothing is held out. Of groups,
            which stay whole, the nearest of a half, a third, a quarter and so on.
        seed: of the draw.

    Returns:
        int64 indices of the training images to train on, and the validation images.

    Raises:
        ValueError: there are too few images or groups.
    """
    train = data.train
    if fraction == 0:
        return torch.arange(len(train)), train.subset(slice(0))
    if data.validation is not None:
        return torch.arange(len(train)), data.validation
    first, second = _drawn(train, fraction, seed)
    return first, train.subset(second)


def _drawn(images: Dataset, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    units = units_of(images)
    distinct, firsts, places = np.unique(units, return_index=True, return_inverse=True)
    if images.groups is not None:
        apart = len(np.unique(images.groups.numpy())) == len(distinct)  # none share an image
        groups = images.groups if apart else torch.from_numpy(units)
        return _grouped_split(images, groups, fraction, seed)
    if len(distinct) == len(images):
        return stratified_split(images.labels, fraction, seed)
    # The first of each set of copies is drawn, and the others go with it.
    order = np.sort(firsts)
    _, second = stratified_split(images.labels[order], fraction, seed)
    return _both_sides(np.isin(firsts[places], order[second.numpy()]))


def units_of(images: Dataset) -> np.ndarray:
    """Return int64 B, equal where images stay together, in the order of what they show."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys, ids = np.unique(images.ids, return_inverse=True)
    if images.groups is None:
        return ids.astype(np.int64)
    names, groups = np.unique(images.groups.numpy(), return_inverse=True)
    # Images of the same pixels may be of several groups, which then stay together too.
    nodes = len(keys) + len(names)
    edges = (np.ones(len(ids)), (ids, len(keys) + groups))
    _, unit = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
    first = np.full(unit.max() + 1, len(keys))
    np.minimum.at(first, unit[ids], ids)  # the least hash in each
    return np.asarray(first[unit[ids]], dtype=np.int64)


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
    except ValueError:  # fewer images to hold out than classes, or a class of one image
        return _split_small_classes(labels, fraction, seed)
    sizes = labels.bincount()
    given = labels[torch.from_numpy(second)].bincount(minlength=len(sizes))
    if ((sizes > 1) & (given == 0)).any():
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
    return _both_sides(held_out.numpy())


def _grouped_split(
    images: Dataset, groups: Tensor, fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Split with each group on one side, the classes' shares as equal as that allows.

    Every class keeps a group to be trained on, so one whose images are one group gives none to
    the second part.
    """
    labels, units = images.labels.numpy(), groups.numpy()
    second_choice = None
    for drawn in _draws_of_groups(labels, units, fraction, seed):
        held_out = _without_whole_classes(drawn, labels, units)
        if np.array_equal(held_out, drawn):
            return _both_sides(held_out)
        if second_choice is None and held_out.any():
            second_choice = held_out
    if second_choice is None:
        whole = next(c for c in np.unique(labels) if len(np.unique(units[labels == c])) == 1)
        raise ValueError(
            f"val_fraction={fraction:g} cannot hold out whole groups, since each has all training "
            f"images of a class, as one has those of {images.classes[whole]!r}; "
            "set val_fraction=0, or another group="
        )
    return _both_sides(second_choice)


def _draws_of_groups(
    labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> Iterator[np.ndarray]:
    """Yield what may be held out, bool B each, the draw of the seed first.

    Whole groups are divided into folds, of which one is held out: a half, a third, a quarter …,
    whichever is nearest.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    distinct = np.unique(groups)
    count = len(distinct)
    folds = min(max(2, round(1 / fraction)), count)
    if folds < 2:
        raise ValueError(
            f"val_fraction={fraction:g} cannot hold out whole groups, since the training images "
            "are one group; set val_fraction=0, or another group="
        )
    if np.bincount(labels).max() < folds:  # more folds than any class could be spread over
        yield from (groups == distinct[(seed + step) % count] for step in range(count))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for _, second in splitter.split(labels, labels, groups):
            held_out = np.zeros(len(labels), dtype=bool)
            held_out[second] = True
            yield held_out


def _without_whole_classes(
    held_out: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Return what is held out where a class takes a group back that would have none left."""
    lost = np.setdiff1d(labels, labels[~held_out])
    # Those of one group first: what they take back may serve the others.
    for label in sorted(lost, key=lambda label: len(np.unique(groups[labels == label]))):
        own = labels == label
        if held_out[own].all():
            held_out = held_out & (groups != groups[own][0])
    return held_out


def _both_sides(held_out: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the int64 indices of what stays and of what is held out."""
    chosen = torch.from_numpy(held_out)
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def require_full_folds(images: Dataset, members: np.ndarray, count: int, remedy: str) -> None:
    """Raise where a fold has no images, or leaves a class none to train on.

    Args:
        images: those of all folds.
        members: int64 B, the fold of each image, 0 to `count` - 1.
        count: of folds.
        remedy: how to get other folds, with which the message ends.

    Raises:
        ValueError: the message names the first such fold, and the class.
    """
    labels = images.labels.numpy()
    for fold in range(count):
        trained = np.bincount(labels[members != fold], minlength=len(images.classes))
        missing = [name for name, n in zip(images.classes, trained, strict=True) if not n]
        if missing or (members != fold).all():
            told = f"no training image of the class {missing[0]!r}" if missing else "no test image"
            raise ValueError(f"fold {fold + 1} of {count} would have {told}; {remedy}")


def split_by_content(
    labels: Tensor, keys: Sequence[bytes], fraction: float
) -> tuple[Tensor, Tensor]:
    """Split indices by a hash of each image's content alone, so that no other image moves it.

    A class that has none in the second part gives it the image of the smallest hash, if it has
    another; one that has none in the first part keeps that of the largest. So parts are only
    about as large as `fraction` says. Where classes share a group, each has images in the first
    part, and one may have none in the second.

    Args:
        labels: int64 B.
        keys: for each image a hash of its content, or of its group.
        fraction: about the share of the second part, between 0 and 1.

    Returns:
        Two sorted int64 tensors of indices.
    """
    place = np.array([int.from_bytes(key[:8], "big") for key in keys], dtype=np.uint64)
    held_out = place < np.uint64(fraction * 2**64)
    members = [labels.numpy() == label for label in np.unique(labels.numpy())]
    for own in members:
        if not held_out[own].any() and len(np.unique(place[own])) > 1:
            held_out |= place == place[own].min()
    for own in members:  # afterwards, since a class may have held out the last group of another
        if held_out[own].all():
            held_out &= place != place[own].max()
    return _both_sides(held_out)
