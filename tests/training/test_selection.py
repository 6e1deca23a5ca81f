from __future__ import annotations

import torch

from halfmeg.training.distributed import Ranks
from halfmeg.training.selection import AllImages, HardImages, build_selection

LABELS = torch.tensor([0, 1, 0, 1])


def seen(hard: HardImages, indices: list[int], right: list[float]) -> None:
    """Record logits of two classes whose margin for the true one is given."""
    margins = torch.tensor(right)
    labels = LABELS[indices]
    logits = torch.zeros(len(indices), 2).scatter(1, labels[:, None], margins[:, None])
    hard.record(torch.tensor(indices), logits, labels)


def test_the_images_of_the_largest_loss_are_chosen_in_the_order_they_come_in() -> None:
    hard = HardImages(5, torch.device("cpu"), Ranks())
    seen(hard, [0, 1, 2, 3], [3.0, -1.0, 0.5, 2.0])  # image 4 is not trained on
    expected = torch.nn.functional.softplus(torch.tensor([-3.0, 1.0, -0.5, -2.0]))
    assert torch.allclose(hard.losses[:4], expected)
    order = torch.tensor([2, 0, 3, 1])
    assert hard.choose(order, 4) is order
    hard.start_epoch()
    assert hard.choose(order, 2).tolist() == [2, 1]
    assert hard.choose(order, 3).tolist() == [2, 3, 1]


def test_an_epoch_keeps_its_choice_and_the_next_one_takes_back_who_was_passed_over() -> None:
    hard = HardImages(4, torch.device("cpu"), Ranks())
    seen(hard, [0, 1, 2, 3], [3.0, -1.0, 0.5, 2.0])
    hard.start_epoch()
    order = torch.arange(4)
    seen(hard, [1, 2], [4.0, 5.0])
    assert hard.choose(order, 2).tolist() == [1, 2]
    restored = HardImages(4, torch.device("cpu"), Ranks())
    restored.load_state_dict(hard.state_dict())
    assert restored.choose(order, 2).tolist() == [1, 2]
    restored.start_epoch()
    assert restored.choose(order, 2).tolist() == [0, 3]


def test_a_share_of_all_images_chooses_and_keeps_nothing() -> None:
    everything = build_selection(1.0, 5, torch.device("cpu"), Ranks())
    assert type(everything) is AllImages
    everything.start_epoch()
    everything.record(torch.tensor([0]), torch.zeros(1, 2), LABELS[:1])
    order = torch.tensor([4, 2])
    assert everything.choose(order, 2) is order
    assert everything.state_dict() == {}
    everything.load_state_dict({})
    assert type(build_selection(0.5, 5, torch.device("cpu"), Ranks())) is HardImages
