from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from halfmeg.studies.power import (
    LOOK_LEVEL,
    LOOKS,
    TYPICAL,
    Chance,
    is_futile,
    power,
    seeds_needed,
    smallest_difference,
)
from halfmeg.studies.stats import PairedTest, paired_tests


def simulated(
    spread: float, *, seeds: int = 5, mean: float = 0.0, images: int = 10_000, share: float = 0.05
) -> PairedTest:
    """Test a pair whose seeds differ by so much, and answers on that share of images."""
    rng = np.random.default_rng(0)
    rows = []
    for shift in mean + spread * np.linspace(-1, 1, seeds):
        p = [share / 2 - shift / 2, 1 - share, share / 2 + shift / 2]
        rows.append(rng.choice([-1.0, 0.0, 1.0], images, p=p))
    return paired_tests([np.stack(rows)], 2)[0]


def test_power_is_what_studies_find() -> None:
    """Normal seeds, no chance among images: the share of t-tests below 5%."""
    rng = np.random.default_rng(0)
    chance = Chance(seeds=0.004**2, images=0.0, rest=0.0)
    found = rng.normal(0.005, 0.004, size=(4_000, 5))
    t = found.mean(1) / (found.std(1, ddof=1) / np.sqrt(5))
    assert power(0.005, chance, 5, 10_000) == pytest.approx((t > 2.7764).mean(), abs=0.02)


def test_power_rises_with_seeds_images_and_difference() -> None:
    assert power(0.005, TYPICAL, 3, 10_000) < power(0.005, TYPICAL, 8, 10_000)
    assert power(0.005, TYPICAL, 5, 1_000) < power(0.005, TYPICAL, 5, 10_000)
    assert power(0.005, TYPICAL, 5, 10_000) < power(0.01, TYPICAL, 5, 10_000)
    assert power(0.005, TYPICAL, 5, 10_000, level=0.01) < power(0.005, TYPICAL, 5, 10_000)
    seen = smallest_difference(TYPICAL, 5, 10_000)
    assert power(seen, TYPICAL, 5, 10_000) == pytest.approx(0.8, abs=0.01)
    assert smallest_difference(TYPICAL, 2, 1) == 1.0


def test_the_seeds_needed_are_a_range_that_reaches_the_power() -> None:
    test = simulated(0.005)
    found = seeds_needed(test, 0.005)
    assert found is not None and found.least is not None and found.most is not None
    assert 5 < found.least < found.most
    assert test.chance is not None
    assumed = Chance(test.seeds, test.chance.images, test.chance.rest)
    assert power(0.005, assumed, found.most, 10_000) > 0.8
    assert power(0.005, assumed, 5, 10_000) < 0.8


def test_the_seeds_needed_are_never_as_few_as_have_run() -> None:
    found = seeds_needed(simulated(0.0, share=0.02), 0.05)
    assert found is not None
    assert (found.least, found.most) == (6, 6)


def test_too_few_images_are_said_to_be_that() -> None:
    assert seeds_needed(simulated(0.0, images=100, share=0.05), 0.005) is None
    always = np.tile(np.repeat([1.0, -1.0, 0.0], [40, 40, 920]), (5, 1))  # the same in all seeds
    found = seeds_needed(paired_tests([always], 2)[0], 0.005)
    assert found is not None
    assert (found.least, found.most) == (None, None)
    assert found.seen is not None
    error = np.sqrt(0.08 / 1_002)  # of the images alone: the mean is that of 80 of 1,000
    assert found.seen == pytest.approx((1.96 + 0.84) * error, rel=0.05)


def test_the_looks_together_are_at_five_percent() -> None:
    """All chance between seeds, where looks agree least; 20,000 studies."""
    from scipy import stats

    rng = np.random.default_rng(1)
    seeds = rng.normal(size=(20_000, LOOKS[-1]))
    least = np.ones(len(seeds))
    for look in LOOKS:
        part = seeds[:, :look]
        t = part.mean(1) / (part.std(1, ddof=1) / np.sqrt(look))
        least = np.minimum(least, 2 * stats.t.sf(np.abs(t), look - 1))
    assert (least < LOOK_LEVEL).mean() < 0.045
    assert (least < 0.05).mean() > 0.09  # what reading it four times at 5% each would do


def test_a_hopeless_study_ends_and_a_hopeful_one_goes_on() -> None:
    margin = 0.01
    # 500 images leave more chance than any number of seeds removes.
    row = np.repeat([1.0, -1.0, 0.0], [50, 50, 400])
    small = replace(paired_tests([np.tile(row, (5, 1))], 2)[0], level=LOOK_LEVEL)
    assert is_futile(small, margin, LOOKS[-1])
    hopeful = replace(simulated(0.004, mean=0.006), level=LOOK_LEVEL)
    assert not is_futile(hopeful, margin, LOOKS[-1])
    nearly_same = replace(simulated(0.006), level=LOOK_LEVEL)
    assert not is_futile(nearly_same, margin, LOOKS[-1])
    assert not is_futile(paired_tests([np.ones((1, 10))], 2)[0], margin, LOOKS[-1])
