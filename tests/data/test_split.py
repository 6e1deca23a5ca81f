"""What is held out where images stay in groups or classes are small: some, never all of a class."""

from __future__ import annotations

import pytest
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.split import hold_out, stratified_split


def grouped(labels: list[int], groups: list[int]) -> DataSplits:
    """Return different images of the classes a, b, ... in groups; all are training images."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    names = tuple("abcdef"[: max(labels) + 1])
    train = Dataset(images, torch.tensor(labels), names, torch.tensor(groups))
    return build_splits("made", train, train.subset(slice(1)))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_class_of_one_group_is_trained_on(fraction: float, seed: int) -> None:
    """Class a has ten groups of three images, b and c one group each."""
    data = grouped(
        [0] * 30 + [1] * 10 + [2] * 5, [i // 3 for i in range(30)] + [10] * 10 + [11] * 5
    )
    indices, held_out = hold_out(data, fraction, seed)
    assert data.train.labels[indices].unique().tolist() == [0, 1, 2]
    assert held_out.labels.unique().tolist() == [0]
    assert len(indices) + len(held_out) == 45
    assert data.train.groups is not None and held_out.groups is not None
    assert not set(data.train.groups[indices].tolist()) & set(held_out.groups.tolist())


def test_one_group_that_is_drawn_is_no_whole_class() -> None:
    """With fewer images in each class than folds, one group is held out."""
    data = grouped([0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 4])
    for seed in range(6):
        indices, held_out = hold_out(data, 0.1, seed)
        assert data.train.labels[indices].unique().tolist() == [0, 1, 2]
        assert len(held_out) == 1


def test_classes_of_one_group_each_leave_nothing_to_hold_out() -> None:
    told = (
        r"val_fraction=0\.1 cannot .* all training images of a class, as one has those of 'a'; set"
    )
    with pytest.raises(ValueError, match=told):
        hold_out(grouped([0] * 10 + [1] * 10, [0] * 10 + [1] * 10), 0.1, 0)


@pytest.mark.parametrize(
    ("sizes", "given"), [((1000, 1000, 3), [100, 100, 1]), ((1000, 1000, 3, 1), [100, 100, 1, 0])]
)
def test_a_small_class_beside_large_ones_is_held_out_too(sizes: tuple, given: list[int]) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    for seed in range(3):
        first, second = stratified_split(labels, 0.1, seed)
        assert labels[second].bincount(minlength=len(sizes)).tolist() == given
        assert len(first) + len(second) == len(labels)


def test_the_draw_of_a_seed_on_balanced_classes_stays_as_it_was() -> None:
    """Published figures and stored runs rest on it."""
    _, second = stratified_split(torch.arange(10).repeat(100), 0.1, 0)
    assert second[:8].tolist() == [1, 9, 31, 32, 44, 58, 86, 90]
