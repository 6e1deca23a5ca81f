"""Verdicts in simulated studies, by `benchmarks/verdicts.py`.

`make test` draws few studies, `make test-all` 500 of each setting of the grid (two minutes of one
core) and more of the others; docs/statistics.md has the table of 1,000. A share that is truly 5%
comes out above 5% + 3 standard errors once in 700 times.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from halfmeg.studies.pooled import all_pairs
from halfmeg.studies.stats import (
    CrossedVariance,
    combined_mcnemar_p,
    critical_value,
    crossed_interval,
    paired_tests,
)

sys.path.append(str(ROOT / "benchmarks"))
simulation = importlib.import_module("verdicts")
World = simulation.World


def most(count: int, share: float = 0.05) -> float:
    return share + 3 * math.sqrt(share * (1 - share) / count)


def test_the_simulation_has_the_programs_own_intervals() -> None:
    world = World((0.9, 0.9, 0.89, 0.88), (0.4, 0.4, 0.4, 1.5), 2_000)
    studies = list(world.studies(2, 3))
    products = simulation.Products.of(iter(studies))
    found, alone = products.pairs(), products.accuracies()
    lo, hi = simulation.intervals(found, 4)
    for study, answers in enumerate(studies):
        right = answers.astype(float)
        tables = [right[i] - right[j] for i, j in all_pairs(4)]
        tests = paired_tests(tables, 4)
        for pair, (table, test) in enumerate(zip(tables, tests, strict=True)):
            expected = CrossedVariance.of(table, -1.0, 1.0)
            for name in ("mean", "seeds", "images", "rest"):
                value = getattr(found, name)[study, pair]
                assert value == pytest.approx(getattr(expected, name), abs=1e-12), name
            ends = (lo[study, pair], hi[study, pair])
            assert (test.difference.lo, test.difference.hi) == pytest.approx(ends, abs=1e-4)
        own = CrossedVariance.of(right[1], 0.0, 1.0)
        for name in ("mean", "seeds", "images", "rest"):
            assert getattr(alone, name)[study, 1] == pytest.approx(getattr(own, name))


@pytest.mark.parametrize("networks", [3, 5])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_the_simulation_has_the_programs_critical_values(networks: int, level: float) -> None:
    dofs = np.array([1.0, 2.7, 300.0])
    expected = [critical_value(level, networks, dof) for dof in dofs]
    found = simulation.interpolated_critical(level, networks)(dofs)
    assert found.tolist() == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_the_test_of_before_was_holms_on_the_larger_of_two_p_values() -> None:
    from statsmodels.stats.multitest import multipletests

    p = np.array([[0.03, 0.01, 0.2, 0.04], [0.5, 0.5, 0.001, 0.02]])
    for found, row in zip(simulation.holm(p), p, strict=True):
        expected = multipletests(row, method="holm")[1]
        assert np.minimum(1, found).tolist() == pytest.approx(expected.tolist())
    (answers,) = World((0.9, 0.88), (0.4, 0.4), 500).studies(1, 3)
    table = answers[0].astype(float) - answers[1]
    products = simulation.Products.of(iter([answers]))
    (before,) = simulation.p_values_before(*products.differences(), 500)[0]
    assert before >= combined_mcnemar_p(table) * 0.999


def test_the_worlds_are_as_they_say() -> None:
    """Accuracy, and how much it differs between seeds on all images there could be."""
    world = World((0.9, 0.85), (0.6, 0.6), 10_000)
    shares = np.array([answers.mean(2) for answers in world.studies(150, 4)])  # studies × M × S
    assert shares.mean((0, 2)) == pytest.approx([0.9, 0.85], abs=0.002)
    within = shares[:, 0].var(axis=1, ddof=1).mean() - 0.058 / 10_000  # answers of a seed alone
    assert 100 * math.sqrt(within) == pytest.approx(0.6, rel=0.15)


def test_a_seed_that_varies_by_class_does_so_in_each_class_for_itself() -> None:
    world = World((0.9, 0.85), (0.2, 0.2), 10_000, class_points=2.0)
    right = np.array([answers for answers in world.studies(30, 4)])  # studies × M × S × N
    assert right.mean((0, 2, 3)) == pytest.approx([0.9, 0.85], abs=0.003)
    by_class = right[:, 0].reshape(30, 4, 1_000, 10).mean(2)  # studies × S × classes
    within = by_class.var(axis=1, ddof=1).mean() - 0.058 / 1_000  # answers of a seed alone
    assert 100 * math.sqrt(within) == pytest.approx(math.hypot(2.0, 0.2), rel=0.15)
    of_seeds = by_class - by_class.mean(1, keepdims=True)
    between = np.corrcoef(of_seeds.reshape(-1, 10).T)[np.triu_indices(10, 1)]
    assert abs(between.mean()) < 0.1


@pytest.mark.parametrize(("seeds", "points", "images"), [(2, 0.6, 2_000), (5, 0.6, 2_000)])
def test_few_verdicts_are_false(seeds: int, points: float, images: int) -> None:
    world = World((0.9,) * 5, (points,) * 5, images)
    count = 250
    for numbers in simulation.simulate(world, seeds, count, sizes=(2, 5)).values():
        assert numbers["false"] <= most(count)
        assert numbers["covered"] >= 1 - most(count, 0.07)
        assert numbers["accuracy_covered"] >= 0.93 - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("points", simulation.DEVIATIONS)
@pytest.mark.parametrize("seeds", simulation.SEEDS)
def test_false_verdicts_stay_at_five_percent(seeds: int, points: float) -> None:
    """1, 3 and 10 pairs; without a difference, and with networks one point apart."""
    count = 500
    for step in (0.0, simulation.ONE_POINT):
        world = World(tuple(0.9 - step * i for i in range(5)), (points,) * 5)
        found = simulation.simulate(world, seeds, count, sizes=simulation.NETWORKS)
        for numbers in found.values():
            assert numbers["false"] <= most(count)
            assert numbers["covered"] >= 1 - most(count)
            assert numbers["accuracy_covered"] >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / count)
            assert numbers.get("same_false", 0.0) <= most(count)  # a whole point apart


@pytest.mark.slow
@pytest.mark.parametrize("points", simulation.DEVIATIONS)
def test_reading_a_study_until_it_is_decided_keeps_five_percent(points: float) -> None:
    count = 500
    world = World((0.9,) * 5, (points,) * 5)
    for share in simulation.simulate_looks(world, count, sizes=simulation.NETWORKS).values():
        assert share <= most(count)


@pytest.mark.slow
@pytest.mark.parametrize(
    "points", [(1.0, *(0.1,) * 4), (1.0, 1.0, *(0.1,) * 3), (2.0, *(0.1,) * 4)]
)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_networks_that_vary_much_more_than_others_keep_five_percent(
    seeds: int, points: tuple[float, ...]
) -> None:
    """10 and 20 times as much, one network or two: pooled alone it was up to 12.6%."""
    count = 800
    found = simulation.simulate(World((0.9,) * 5, points), seeds, count, sizes=simulation.NETWORKS)
    for numbers in found.values():
        assert numbers["false"] <= most(count)
        assert numbers["covered"] >= 1 - most(count)
    assert seeds == 5 or found[5]["false_pooled"] > 0.05


# Skewed seeds miss the 93% of an accuracy at 5 seeds, as docs/statistics.md says; pairs do not.
OTHER_SEEDS = [("seeds that fail now and then", 0.92), ("seeds that vary by class", 0.93)]


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "least"), OTHER_SEEDS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_other_kinds_of_seeds_keep_five_percent(seeds: int, setting: str, least: float) -> None:
    count = 400
    world = simulation.BESIDE[setting]
    for numbers in simulation.simulate(world, seeds, count, sizes=(2, 3, 5)).values():
        assert numbers["false"] <= most(count)
        assert numbers["covered"] >= 0.93
        assert numbers["accuracy_covered"] >= least - 3 * math.sqrt(0.93 * 0.07 / count)


def test_images_in_groups_make_verdicts_false() -> None:
    """As a page of runs with `group=` says, and docs/statistics.md by how much."""
    count, alone = 100, World((0.9,) * 2, (0.2,) * 2, 1_000)
    false = {
        effect: simulation.simulate(
            replace(alone, groups=20, group_effect=effect), 5, count, sizes=(2,)
        )[2]["false"]
        for effect in (0.0, 1.0)
    }
    assert false[0.0] <= most(count)
    assert false[1.0] > 0.3


@pytest.mark.slow
def test_small_sets_are_covered() -> None:
    """100 images of 99%, 5 seeds: the bootstrap's shape covered 81.5%."""
    count = 800
    world = World((0.99,) * 5, (0.1,) * 5, 100)
    found = simulation.simulate(world, 5, count, sizes=(2, 5))
    for numbers in found.values():
        assert numbers["covered"] >= 0.93
        assert numbers["accuracy_covered"] >= 0.93
        assert numbers["false"] <= most(count)


# Student's interval over seeds alone: between 71 and 82% at 5 seeds where images differ as they do
# for real networks; at the grid's own images, which differ less, 89% with 5 seeds and 75% with 10.
ALONE = [
    (World((0.7,), (0.2,), 100, difficulty=simulation.MEASURED_DIFFICULTY), 5, (0.7, 0.82)),
    (World((0.7,), (0.6,), 1_000, difficulty=simulation.MEASURED_DIFFICULTY), 5, (0.7, 0.82)),
    (World((0.7,), (0.2,), 10_000, difficulty=simulation.MEASURED_DIFFICULTY), 5, (0.7, 0.82)),
    (World((0.9,), (0.1,), 2_000), 5, (0.8, 0.93)),
    (World((0.9,), (0.1,), 2_000), 10, (0.6, 0.85)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "seeds", "alone"), ALONE)
def test_a_networks_interval_holds_its_accuracy_on_new_images(
    world: Any, seeds: int, alone: tuple[float, float]
) -> None:
    count, held, student = 800, 0, 0
    (truth,), student_t = world.accuracies, float(stats.t.isf(0.025, seeds - 1))
    for answers in world.studies(count, seeds):
        interval = crossed_interval(answers[0].astype(float))
        assert interval.lo is not None and interval.hi is not None
        held += interval.lo <= truth <= interval.hi
        of_seeds = answers[0].mean(1)
        half = student_t * of_seeds.std(ddof=1) / math.sqrt(seeds)
        student += abs(of_seeds.mean() - truth) <= half
    assert held / count >= 0.93
    least, most_alone = alone
    assert least < student / count < most_alone
