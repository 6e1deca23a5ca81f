from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from halfmeg.studies.stats import (
    CrossedVariance,
    combined_mcnemar_p,
    difference_interval,
    hierarchical_bootstrap,
    holm,
    mcnemar_p,
    seeds_p,
    student_interval,
    wilson_interval,
)

NUM_SEEDS, NUM_IMAGES = 5, 1_000


def simulated_study(
    rng: np.random.Generator, shift: float, *, images: float = 0.5, seeds: float = 0.05
) -> tuple[np.ndarray, float]:
    """Draw the differences of two networks, and return them with the true difference.

    An answer is right where a normal variable is above 0: the image's difficulty, shared by both
    networks, plus what each network makes of each image, of each seed, and of both together.
    """
    rest = 0.5
    difficulty = rng.normal(size=NUM_IMAGES)
    right = [
        1.5 + mean + difficulty
        + images * rng.normal(size=NUM_IMAGES)
        + seeds * rng.normal(size=(NUM_SEEDS, 1))
        + rest * rng.normal(size=(NUM_SEEDS, NUM_IMAGES))
        > 0
        for mean in (shift, 0.0)
    ]  # fmt: skip
    spread = np.sqrt(1 + images**2 + seeds**2 + rest**2)
    truth = stats.norm.cdf((1.5 + shift) / spread) - stats.norm.cdf(1.5 / spread)
    return right[0].astype(float) - right[1], float(truth)


@pytest.mark.parametrize("right", [0, 57, 107])
def test_wilson_interval_equals_the_formula_of_1927(right: int) -> None:
    """Its ends p solve |share - p| = z sqrt(p (1 - p) / n)."""
    interval = wilson_interval(right, 107)
    assert interval.mean == right / 107
    assert interval.lo is not None
    assert interval.hi is not None
    assert 0 <= interval.lo <= interval.mean <= interval.hi <= 1
    for end in {interval.lo, interval.hi} - {0.0, 1.0}:
        distance = 1.959964 * math.sqrt(end * (1 - end) / 107)
        assert math.isclose(abs(interval.mean - end), distance, rel_tol=1e-5)


def test_student_interval_equals_scipy() -> None:
    values = [0.71, 0.74, 0.73, 0.72]
    interval = student_interval(values)
    lo, hi = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (interval.lo, interval.hi) == (pytest.approx(lo), pytest.approx(hi))
    assert student_interval([0.5]).to_dict() == {"mean": 0.5, "lo": None, "hi": None}
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])


@pytest.mark.parametrize(
    "seeds",
    [pytest.param(0.0, marks=pytest.mark.slow), 0.05, pytest.param(0.15, marks=pytest.mark.slow)],
)
def test_without_a_difference_few_verdicts_are_false(seeds: float) -> None:
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(1_000):
        differences, _ = simulated_study(rng, 0.0, seeds=seeds)
        false += max(combined_mcnemar_p(differences), seeds_p(differences)) < 0.05
    assert false / 1_000 <= 0.06


@pytest.mark.parametrize(
    ("shift", "images", "seeds"),
    [pytest.param(0.0, 0.5, 0.05, marks=pytest.mark.slow), (0.1, 0.5, 0.05), (0.2, 0.3, 0.0)],
)
def test_the_interval_covers_the_true_difference(shift: float, images: float, seeds: float) -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1_000):
        differences, truth = simulated_study(rng, shift, images=images, seeds=seeds)
        interval = difference_interval(differences, draws=500)
        assert interval.lo is not None and interval.hi is not None
        covered += interval.lo <= truth <= interval.hi
    assert 0.93 <= covered / 1_000 <= 0.97


def test_the_bootstrap_draws_seeds_and_images() -> None:
    """Its variance is that of the pigeonhole bootstrap: S=2 seeds apart leave half their spread."""
    apart = np.repeat([[0.0], [1.0]], 50, axis=1)  # all chance is between the seeds
    means = hierarchical_bootstrap(apart, draws=4_000)
    assert sorted(set(means.round(6))) == [0.0, 0.5, 1.0]
    assert np.mean(means == 0.5) == pytest.approx(0.5, abs=0.03)
    images = np.tile(np.arange(50) % 2, (3, 1)).astype(float)  # all chance is between the images
    means = hierarchical_bootstrap(images, draws=4_000)
    assert means.std() == pytest.approx(0.5 / np.sqrt(50), rel=0.05)


def test_the_interval_repeats_and_depends_on_its_seed() -> None:
    differences, _ = simulated_study(np.random.default_rng(0), 0.1)
    first = difference_interval(differences, draws=500)
    assert difference_interval(differences, draws=500) == first
    assert difference_interval(differences, draws=500, seed=1) != first


def test_variances_are_recovered() -> None:
    rng = np.random.default_rng(0)
    S, N = 60, 800
    table = rng.normal(size=(S, 1)) * 0.3 + rng.normal(size=N) * 0.5 + rng.normal(size=(S, N)) * 0.8
    variance = CrossedVariance.of(table)
    assert variance.seeds == pytest.approx(0.09, rel=0.4)
    assert variance.images == pytest.approx(0.25, rel=0.2)
    assert variance.rest == pytest.approx(0.64, rel=0.05)
    expected = np.sqrt(0.09 / S + 0.25 / N + 0.64 / S / N)
    assert variance.error == pytest.approx(expected, rel=0.25)


def test_seeds_needed_reach_the_power_they_promise() -> None:
    variance = CrossedVariance(seeds=1e-5, images=0.02, rest=0.1, error=0.0, dof=1.0)
    needed = variance.seeds_needed(0.005, 10_000)
    assert needed is not None
    error = np.sqrt((1e-5 + 0.1 / 10_000) / needed + 0.02 / 10_000)
    power = stats.norm.sf(stats.norm.ppf(0.975) - 0.005 / error)
    assert 0.8 <= power < 0.9
    assert variance.seeds_needed(0.005, 500) is None  # too few images for any number of seeds


def test_mcnemar_equals_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    differences = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 81)
    expected = mcnemar([[40, 14], [5, 41]], exact=True).pvalue
    assert mcnemar_p(differences) == pytest.approx(float(expected))
    assert mcnemar_p(np.zeros(10)) == 1.0


def test_seeds_that_answer_alike_count_once() -> None:
    """The same differences again are no new evidence; independent ones are."""
    rng = np.random.default_rng(0)
    row = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.05, 0.85, 0.1])
    single = mcnemar_p(row)
    assert combined_mcnemar_p(np.stack([row] * 5)) == pytest.approx(single)
    fresh = rng.choice([-1.0, 0.0, 1.0], (5, 400), p=[0.05, 0.85, 0.1])
    assert combined_mcnemar_p(fresh) < single
    assert combined_mcnemar_p(np.zeros((3, 50))) == 1.0


def test_identical_networks() -> None:
    nothing = np.zeros((3, 50))
    assert seeds_p(nothing) == 1.0
    interval = difference_interval(nothing, draws=100)
    assert (interval.mean, interval.lo, interval.hi) == (0.0, 0.0, 0.0)


def test_one_seed_has_no_interval() -> None:
    interval = difference_interval(np.ones((1, 10)))
    assert (interval.mean, interval.lo, interval.hi) == (1.0, None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []
