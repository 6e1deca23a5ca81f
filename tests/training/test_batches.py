from __future__ import annotations

from itertools import islice

import torch
from conftest import small_config

from halfmeg.data.dataset import DataSplits
from halfmeg.training.batches import Batch, Batches
from halfmeg.training.distributed import Ranks
from halfmeg.training.plan import Plan, augmentation_of
from halfmeg.training.selection import AllImages

CONFIG = small_config(
    epochs=2, batch_size=16, seed=3, crop=3, hflip=True, alternate=True, cutout=4, small_size=16,
)  # fmt: skip
INDICES = torch.arange(20, 90)


class SecondOfTwo(Ranks):
    """The second of two processes, as far as it needs no first."""

    rank, size = 1, 2

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[1::2]


def draw(data: DataSplits, epoch: int, first: int = 0, ranks: Ranks | None = None) -> list[Batch]:
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    batches = Batches(
        INDICES, augmentation_of(CONFIG), mean, std, torch.float32, AllImages(), ranks or Ranks()
    )
    plan = Plan.of(CONFIG, len(INDICES), data.image_size)
    return list(batches.draw(data.train, plan.epochs[epoch], first))


def test_an_epoch_shows_each_image_once_with_its_label(few_digits) -> None:
    for epoch, size in ((0, 16), (1, 32)):
        drawn = draw(few_digits, epoch)
        assert [batch.num_images for batch in drawn] == [16, 16, 16, 16, 6]
        assert all(batch.images.shape == (batch.num_images, 3, size, size) for batch in drawn)
        seen = torch.cat([batch.indices for batch in drawn])
        assert torch.equal(seen.sort().values, INDICES)
        labels = torch.cat([batch.labels for batch in drawn])
        assert torch.equal(labels, few_digits.train.labels[seen])


def test_an_epoch_goes_on_where_it_stopped_with_the_same_draws(few_digits) -> None:
    whole, rest = draw(few_digits, 1), draw(few_digits, 1, first=2)
    assert len(rest) == 3
    for batch, again in zip(islice(whole, 2, None), rest, strict=True):
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.indices, again.indices)


def test_each_process_has_its_part_of_the_same_augmented_batch(few_digits) -> None:
    for whole, part in zip(
        draw(few_digits, 1), draw(few_digits, 1, ranks=SecondOfTwo()), strict=True
    ):
        assert torch.equal(part.images, whole.images[1::2])
        assert torch.equal(part.labels, whole.labels[1::2])
        assert torch.equal(part.indices, whole.indices)


def test_a_step_seeds_dropout_too(few_digits) -> None:
    draw(few_digits, 1)
    first = torch.rand(3)
    torch.manual_seed(0)
    draw(few_digits, 1, first=4)
    assert torch.equal(torch.rand(3), first)
