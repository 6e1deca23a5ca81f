from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
import torch
from conftest import small_config

from halfmeg.training.plan import Plan, batch_bounds, derive_seed, on_hard_images, work_left


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (450, 128, [128, 128, 128, 66]),
        (45_000, 128, [128] * 351 + [72]),  # the published study's epochs
        (50_000, 256, [256] * 195 + [80]),
        (130, 128, [65, 65]),
        (270, 128, [90, 90, 90]),
        (5, 4, [2, 3]),
        (5, 2, [2, 2]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_no_batch_is_too_small_for_its_statistics(count, batch_size, sizes) -> None:
    bounds = batch_bounds(count, batch_size)
    assert [b.stop - b.start for b in bounds] == sizes
    assert all(first.stop == second.start for first, second in pairwise(bounds))


def test_derived_seeds_differ() -> None:
    numbers = ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    seeds = {derive_seed(*parts) for parts in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_plan_counts_steps_and_images() -> None:
    config = small_config(epochs=3, batch_size=40, hard_share=0.5)
    plan = Plan.of(config, 180, 32)
    assert [epoch.number for epoch in plan.epochs] == [0, 1, 2]
    assert [epoch.num_images for epoch in plan.epochs] == [180, 90, 90]
    assert [on_hard_images(config, epoch) for epoch in range(3)] == [False, True, True]
    assert [len(epoch.batches) for epoch in plan.epochs] == [5, 3, 3]
    assert [epoch.first_step for epoch in plan.epochs] == [0, 5, 8]
    assert [plan.steps_before(epoch) for epoch in (0, 2, 3, 100)] == [0, 8, 11, 11]
    assert (plan.num_steps, plan.num_images) == (11, 360)
    assert plan.images_left(1) == 180
    with pytest.raises(FrozenInstanceError):
        plan.epochs[0].size = 16  # type: ignore[misc]


def test_small_images_come_first_and_count_by_their_pixels() -> None:
    config = small_config(epochs=3, small_size=16, small_share=0.67, first_size=12)

    def sizes(**changes: object) -> list[int]:
        return [epoch.size for epoch in Plan.of(replace(config, **changes), 100, 32).epochs]

    assert sizes() == [12, 16, 32]
    assert sizes(first_size=0) == [16, 16, 32]
    assert sizes(small_size=0, first_size=0) == sizes(small_share=0.0) == [32, 32, 32]
    left = Plan.of(config, 100, 32).images_left(0)
    assert left == pytest.approx(100 * (12**2 + 16**2 + 32**2) / 12**2)


def test_the_work_of_a_run_is_in_epochs_of_full_size() -> None:
    config = small_config(epochs=4, small_size=16, small_share=0.5)
    assert work_left(config, 32) == pytest.approx(2 / 4 + 2)
    assert [work_left(config, 32, epoch) for epoch in (1, 2, 3, 4)] == [2.25, 2, 1, 0]
    assert work_left(config, (32, 64)) == pytest.approx(2 / 4 + 2)
    assert work_left(replace(config, small_size=0, hard_share=0.5, batch_size=100), 32) == 2.5


def test_the_order_of_an_epoch_comes_from_seed_and_epoch_alone() -> None:
    indices = torch.arange(10, 60)
    plans = [Plan.of(small_config(seed=seed, epochs=epochs), 50, 32)
             for seed, epochs in ((3, 2), (3, 9), (4, 2))]  # fmt: skip
    orders = [plan.epochs[1].order(indices) for plan in plans]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], plans[0].epochs[0].order(indices))
    assert torch.equal(orders[0].sort().values, indices)
    seeds = {epoch.step_seed(step) for plan in plans[1:] for epoch in plan.epochs
             for step in range(3)}  # fmt: skip
    assert len(seeds) == 3 * (9 + 2)


def test_alternating_flip_shows_both_forms_in_two_epochs() -> None:
    config = small_config(epochs=3, seed=3, hflip=True, alternate=True)
    first, second, third = (e.mirrored(1000) for e in Plan.of(config, 1000, 32).epochs)
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 400 < first.sum() < 600
    other = Plan.of(replace(config, seed=4), 1000, 32).epochs[0]
    assert not torch.equal(first, other.mirrored(1000))
    drawn = Plan.of(replace(config, alternate=False), 1000, 32).epochs[0]
    assert drawn.mirrored(1000) is None
