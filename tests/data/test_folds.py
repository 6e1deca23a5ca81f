"""Folds of a source: every image once, classes and groups as they should be, by content alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from halfmeg import load_dataset
from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.folds import Folds, parse_fold
from halfmeg.data.options import DataOptions


def source(
    counts: tuple[int, ...] = (30, 21, 9), *, groups: list[int] | None = None, seed: int = 0
) -> DataSplits:
    """Return random images of classes of so many; the last fifth is the test part."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(counts)), counts)))
    images = torch.from_numpy(rng.integers(0, 256, (len(labels), 3, 8, 8), dtype=np.uint8))
    named = torch.tensor(groups) if groups is not None else None
    everything = Dataset(images, labels, tuple(f"class {i}" for i in range(len(counts))), named)
    cut = len(labels) - len(labels) // 5
    return build_splits("made", everything.subset(slice(cut)), everything.subset(slice(cut, None)))


def test_every_image_is_tested_once_and_never_trained_on_there() -> None:
    data = source()
    folds = Folds.of(data, 5)
    parts = [folds.splits(fold) for fold in range(5)]
    tested = np.concatenate([part.test.ids for part in parts])
    everything = np.concatenate([data.train.ids, data.test.ids])
    assert sorted(tested) == sorted(everything)
    assert folds.whole.test.ids.tolist() == tested.tolist()
    for part in parts:
        assert len(part.train) + len(part.test) == 60
        assert not set(part.train.ids) & set(part.test.ids)
    assert len({part.fingerprint for part in parts} | {data.fingerprint}) == 6


def test_classes_have_the_same_share_in_every_fold() -> None:
    folds = Folds.of(source(), 3)
    for fold in range(3):
        assert folds.splits(fold).test.labels.bincount().tolist() == [10, 7, 3]
    uneven = Folds.of(source((31, 20, 9)), 4)
    counts = np.stack(
        [uneven.splits(f).test.labels.bincount(minlength=3).numpy() for f in range(4)]
    )
    assert (counts.max(0) - counts.min(0)).max() <= 1


def test_the_fold_of_an_image_depends_on_content_alone() -> None:
    data = source()
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    images = Folds.of(data, 5).images.subset(shuffled)
    moved = build_splits("other", images.subset(slice(20)), images.subset(slice(20, None)))
    for fold in range(5):
        first, second = (Folds.of(one, 5).splits(fold).test.ids for one in (data, moved))
        assert sorted(first) == sorted(second)
    again = Folds.of(data, 5)
    assert [again.fingerprint(f) for f in range(5)] == [
        Folds.of(data, 5).fingerprint(f) for f in range(5)
    ]


def test_groups_and_copies_stay_together() -> None:
    groups = [i // 4 for i in range(60)]
    data = source(groups=groups)
    train = data.train
    images = train.images.clone()
    images[0] = images[40]  # of another group, which so stays with this one
    data = replace(data, train=replace(train, images=images))
    folds = Folds.of(data, 4)
    members = folds.members.numpy()
    for group in range(15):
        assert len(set(members[np.array(groups) == group])) == 1
    assert members[0] == members[40]
    assert sorted(np.bincount(members)) != [0, 0, 0, 60]
    assert np.bincount(members).min() >= 8
    for fold in range(4):
        own = folds.splits(fold)
        assert own.train.groups is not None and own.test.groups is not None
        assert not set(own.train.groups.tolist()) & set(own.test.groups.tolist())


def test_copies_without_groups_stay_together_too() -> None:
    data = source()
    images = data.train.images.clone()
    images[1:4] = images[0]
    folds = Folds.of(replace(data, train=replace(data.train, images=images)), 6)
    assert len(set(folds.members[:4].tolist())) == 1


@pytest.mark.parametrize(
    ("counts", "groups", "folds", "told"),
    [
        ((30, 30), None, 1, "folds=1 is out of range; allowed: 2 to 60"),
        ((30, 30), None, 61, "folds=61 is out of range; allowed: 2 to 60"),
        (
            (30, 30),
            None,
            40,
            "folds=40 is out of range; allowed: 2 to 30, the images of the largest",
        ),
        ((59, 1), None, 5, "no training image of the class 'class 1'"),
        (
            (30, 30),
            [i % 3 for i in range(60)],
            4,
            "folds=4 is out of range; allowed: 2 to 3, the groups",
        ),
    ],
)
def test_too_many_folds_are_told(
    counts: tuple[int, ...], groups: list[int] | None, folds: int, told: str
) -> None:
    with pytest.raises(ValueError, match="fold") as error:
        Folds.of(source(counts, groups=groups), folds)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "2", "0/5", "6/5", "1/1", "a/b", "2/5/6", "-1/5", "1.5/3"])
def test_what_is_no_fold_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="write fold=2/5"):
        parse_fold(text)


def test_a_fold_is_read_again_by_its_option() -> None:
    """As `evaluate` and `resume` do, from what the run folder says of its data."""
    whole = load_dataset("digits")
    folds = Folds.of(whole, 5)
    second = load_dataset("digits", options=DataOptions(fold="2/5"))
    assert second.fingerprint == folds.splits(1).fingerprint
    assert second.options == {"fold": "2/5"}
    assert second.test.ids.tolist() == folds.splits(1).test.ids.tolist()
    assert second.notes[-1] == (
        "fold 2 of 5 folds of all 1,797 images: the test part that digits has of its own is "
        "trained on too"
    )
    with pytest.raises(ValueError, match="one fold already"):
        Folds.of(second, 3)


def test_each_fold_is_prepared_by_its_own_training_images() -> None:
    folds = Folds.of(source(), 5)
    one = folds.splits(0)
    pixels = one.train.images.double() / 255
    assert one.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert folds.splits(1).mean != one.mean
