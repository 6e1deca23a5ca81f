from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from halfmeg.studies.pooled import all_pairs
from halfmeg.studies.stats import (
    CrossedVariance,
    combined_mcnemar_p,
    critical_value,
    crossed_interval,
    mcnemar_p,
    paired_tests,
    seeds_variances,
    tail,
    wilson_interval,
)


def answers(
    seeds: int, images: int, share: float = 0.9, *, networks: int = 1, seed: int = 0
) -> np.ndarray:
    """Draw right answers, networks × seeds × images, that depend on image and network."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=images) + 0.5 * rng.normal(size=(networks, 1, images))
    latent = latent + 0.1 * rng.normal(size=(networks, seeds, 1))
    latent = latent + rng.normal(size=(networks, seeds, images))
    return (latent < stats.norm.ppf(share) * 1.5).astype(float)


@pytest.mark.parametrize("right", [0, 57, 57.4, 107])
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


def test_variances_are_those_of_the_analysis_of_variance() -> None:
    """Against statsmodels' two-way table, the two pseudo-images included."""
    import pandas as pd
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    table = answers(3, 20)[0]
    whole = np.hstack([table, np.zeros((3, 1)), np.ones((3, 1))])
    S, N = whole.shape
    frame = pd.DataFrame(
        {
            "value": whole.ravel(),
            "seed": np.repeat(np.arange(S), N),
            "image": np.tile(np.arange(N), S),
        }
    )
    squares = anova_lm(ols("value ~ C(seed) + C(image)", frame).fit())["mean_sq"]
    found = CrossedVariance.of(table, 0.0, 1.0)
    assert found.mean == pytest.approx(whole.mean())
    assert found.rest == pytest.approx(squares["Residual"])
    assert found.seeds == pytest.approx((squares["C(seed)"] - squares["Residual"]) / N)
    assert found.images == pytest.approx((squares["C(image)"] - squares["Residual"]) / S)


def test_variances_are_recovered() -> None:
    rng = np.random.default_rng(0)
    S, N = 60, 800
    table = rng.normal(size=(S, 1)) * 0.3 + rng.normal(size=N) * 0.5 + rng.normal(size=(S, N)) * 0.8
    found = CrossedVariance.of(table, -1.0, 1.0)
    assert found.seeds == pytest.approx(0.09, rel=0.4)
    assert found.images == pytest.approx(0.25, rel=0.2)
    assert found.rest == pytest.approx(0.64, rel=0.05)
    error, _ = found.error(found.seeds, S - 1)
    assert error == pytest.approx(np.sqrt(0.09 / S + 0.25 / N + 0.64 / S / N), rel=0.25)


def test_a_lucky_agreement_of_seeds_makes_nothing_sure() -> None:
    """Seeds that agree better than chance allows count as though they differed by chance."""
    rng = np.random.default_rng(0)
    table = rng.choice([-1.0, 0.0, 1.0], (3, 1_000), p=[0.02, 0.93, 0.05])
    for row in table[1:]:  # the same mean in every seed
        row[:] = rng.permutation(table[0])
    found = CrossedVariance.of(table, -1.0, 1.0)
    assert found.seeds < 0
    lucky, dof = found.error(found.seeds, 2)
    assert lucky == found.error(0.0, 2)[0]
    assert lucky >= math.sqrt(found.rest / 3 / found.num_images)
    assert dof < 20


@pytest.mark.parametrize(
    ("seeds", "networks"),
    [
        pytest.param(*pair, marks=() if pair in ((2, 2), (5, 2), (3, 3)) else pytest.mark.slow)
        for pair in product((2, 3, 5), (2, 3, 5))
    ],
)
def test_interval_and_p_values_say_the_same(networks: int, seeds: int) -> None:
    """Whatever the level and margin: they are one test."""
    for images, draw in ((100, 1), (1_000, 2)):
        right = answers(seeds, images, networks=networks, seed=draw)
        right[0] = np.minimum(right[0] + answers(seeds, images, 0.05, seed=9)[0], 1)
        tables = [right[i] - right[j] for j in range(networks) for i in range(j)]
        for level in (0.05, 0.016, 0.3):
            for test in paired_tests(tables, networks, level):
                d = test.difference
                assert d.lo is not None and d.hi is not None
                assert d.lo < d.mean < d.hi
                assert test.p_value is not None and test.p_adjusted is not None
                assert test.p_value <= test.p_adjusted
                assert (d.lo > 0 or d.hi < 0) == (test.p_adjusted < level)
                for margin in (0.005, 0.02, 0.1):
                    p = test.p_beyond(margin)
                    assert p is not None
                    assert (-margin < d.lo and d.hi < margin) == (p < level)


@pytest.mark.parametrize("images", [100, 10_000])
@pytest.mark.parametrize("networks", [2, 5])
def test_networks_that_never_differ_have_the_exact_bound(images: int, networks: int) -> None:
    """A share of which there was none in N images is below 1 - level^(1/N), about 3/N."""
    nothing = np.zeros((3, images))
    pairs = networks * (networks - 1) // 2
    for test in paired_tests([nothing] * pairs, networks):
        d = test.difference
        assert d.hi is not None
        assert d.lo == -d.hi
        assert (1 - d.hi) ** images == pytest.approx(0.05 / pairs)
        assert test.p_value == test.p_adjusted == 1.0
        if networks == 2:
            assert d.hi == pytest.approx(3 / images, rel=0.02)


def test_no_interval_has_no_width() -> None:
    """6 of 100 images in each of 2 seeds, the same ones or others: it was 6.0 to 6.0."""
    same = np.zeros((2, 100))
    same[:, :6] = 1
    other = np.zeros((2, 100))
    other[0, :6] = other[1, 6:12] = 1
    for table in (same, other):
        (test,) = paired_tests([table], 2)
        d = test.difference
        assert d.lo is not None and d.hi is not None
        assert d.mean == pytest.approx(0.06)
        assert d.hi - d.lo > 0.05
    perfect = crossed_interval(np.ones((3, 360)))
    assert perfect.lo is not None
    assert perfect.hi == 1.0
    assert 0.98 < perfect.lo < 0.996


def test_one_pair_is_students_test() -> None:
    """Many seeds on images that say nothing of their own."""
    rng = np.random.default_rng(0)
    of_seeds = rng.normal(0.1, 0.05, size=(20, 1))
    table = np.repeat(of_seeds, 5_000, axis=1)
    (test,) = paired_tests([table], 2)
    expected = stats.ttest_1samp(of_seeds[:, 0], 0.0)
    assert test.p_value == pytest.approx(expected.pvalue, rel=0.05)
    lo, hi = expected.confidence_interval()
    assert (test.difference.lo, test.difference.hi) == pytest.approx((lo, hi), abs=1e-3)


def test_all_pairs_are_tukeys_test() -> None:
    """Equal numbers of seeds and no chance among images: scipy's Tukey test of paired seeds."""
    rng = np.random.default_rng(0)
    means = rng.normal(0.5, 0.02, size=(4, 10))  # networks × seeds
    means += np.array([0.0, 0.01, 0.03, 0.06])[:, None]
    pairs = all_pairs(4)
    tables = [np.repeat((means[i] - means[j])[:, None], 5_000, axis=1) for i, j in pairs]
    interaction = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    pooled = 2 * np.square(interaction).sum() / (3 * 9)
    for test, (i, j) in zip(paired_tests(tables, 4), pairs, strict=True):
        assert test.seeds >= pooled * 0.99
        assert 20 < test.seeds_dof <= 27  # 27 where all networks vary alike
        q = abs(means[i].mean() - means[j].mean()) / math.sqrt(test.seeds / 2 / 10)
        expected = stats.studentized_range.sf(q, 4, test.seeds_dof)
        assert test.p_adjusted == pytest.approx(expected, rel=0.05, abs=1e-4)


def constant_in_images(means: np.ndarray) -> list[np.ndarray]:
    """Return the differences of all pairs, 1,000 images, of networks × seeds accuracies."""
    pairs = all_pairs(len(means))
    return [np.repeat((means[i] - means[j])[:, None], 1_000, axis=1) for i, j in pairs]


def test_the_variance_of_seeds_is_the_largest_of_three() -> None:
    """Of the pair's own, the mean over all pairs, and what its two networks have in all pairs."""
    rng = np.random.default_rng(0)
    means = rng.normal(0, 0.004, size=(5, 3))
    means[0] = [-0.1, 0.0, 0.1]  # one network varies far more
    means[1] = [-0.01, 0.0, 0.01]  # this one goes along with it
    tests = paired_tests(constant_in_images(means), 5)
    own = [test.chance.seeds for test in tests if test.chance is not None]
    of_first = [own[all_pairs(5).index((0, j))] for j in range(1, 5)]
    of_others = [v for v, pair in zip(own, all_pairs(5), strict=True) if 0 not in pair]
    # v0 + vj in the pairs of network 0; least squares over all pairs
    first = (sum(of_first) - sum(of_others) / 3) / 4
    for test, pair in zip(tests, all_pairs(5), strict=True):
        assert test.chance is not None
        assert test.seeds >= max(test.chance.seeds, np.mean(own)) * 0.999
        if pair == (0, 1):
            assert test.chance.seeds < test.seeds  # the two agree by luck
            assert test.seeds == pytest.approx(first, rel=0.05)
        assert 2 <= test.seeds_dof < 2.5  # hardly more than of one network: seeds - 1


def test_networks_that_vary_alike_know_their_variance_together() -> None:
    rng = np.random.default_rng(0)
    tests = paired_tests(constant_in_images(rng.normal(0.9, 0.004, size=(5, 200))), 5)
    assert tests[0].seeds_dof == pytest.approx(4 * 199, rel=0.01)
    assert tests[0].seeds == pytest.approx(2 * 0.004**2, rel=0.2)


def test_pairs_that_share_no_seed_are_left_out_of_the_variance() -> None:
    """Networks 0 and 2 were not compared: only the pairs with network 1 are there."""
    rng = np.random.default_rng(0)
    tables = constant_in_images(rng.normal(0.9, 0.004, size=(3, 4)))
    tests = paired_tests([tables[0], tables[2]], 3, pairs=[(0, 1), (1, 2)])
    assert all(test.seeds > 0 and 3 <= test.seeds_dof <= 6 for test in tests)
    assert seeds_variances([], [], 3) == []


@pytest.mark.parametrize(("networks", "dof"), [(3, 2.0), (5, 8.0), (5, 1e6), (10, 30.0)])
def test_critical_values_equal_those_of_scipy(networks: int, dof: float) -> None:
    expected = stats.studentized_range.isf(0.05, networks, dof) / math.sqrt(2)
    assert critical_value(0.05, networks, dof) == pytest.approx(expected, rel=1e-4)
    assert tail(expected, networks, dof) == pytest.approx(0.05, rel=1e-3)
    assert critical_value(0.05, 2, dof) == pytest.approx(stats.t.isf(0.025, dof))


def test_one_seed_has_no_interval() -> None:
    (test,) = paired_tests([np.ones((1, 10))], 2)
    assert (test.difference.mean, test.difference.lo, test.p_value) == (1.0, None, None)
    assert test.p_beyond(0.01) is None
    mixed = paired_tests([np.ones((1, 10)), answers(2, 10)[0] - 0.5, answers(3, 10)[0]], 3)
    assert [test.p_value is None for test in mixed] == [True, False, False]
    assert crossed_interval(np.ones((1, 10))).lo is None


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
