"""Statistics of paired runs: pure functions of arrays of right and wrong answers.

Two runs of one seed saw the same split, order and augmentation, and all runs answered the same
test images. So a comparison is a table `right[seed, image]` for each model, and the difference of
two models the table `a - b`, with two sources of chance, crossed: another seed, another image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
DRAWS = 10_000
POWER = 0.8

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval; lo and hi are None for a single value."""

    mean: float
    lo: float | None
    hi: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON types."""
        return {"mean": self.mean, "lo": self.lo, "hi": self.hi}


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95% interval (Student 1908).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None, None)
    from scipy import stats  # takes most of a second to import

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Interval(mean, mean - half, mean + half)


def wilson_interval(num_right: int, n: int) -> Interval:
    """Return the share of right answers with its 95% interval over images (Wilson 1927).

    It stands for other images of the same kind, not for another training of the network.

    Args:
        num_right: right answers, 0 to n.
        n: answers, 1 or more.
    """
    from scipy import stats  # takes most of a second to import

    found = stats.binomtest(num_right, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(num_right / n, float(found.low), float(found.high))


@dataclass(frozen=True)
class CrossedVariance:
    """How much of a mean difference is chance, by source: variances of single answers.

    The two-way random-effects analysis of seeds × images without replication, as used where
    several readers judge the same cases (Dorfman, Berbaum and Metz 1992, "Receiver operating
    characteristic rating analysis", with the degrees of freedom of Hillis 2007, "A comparison of
    denominator degrees of freedom methods for multiple observer ROC analysis").

    Attributes:
        seeds: variance between seeds of the difference on all images there could be.
        images: variance between images of the difference of all seeds there could be.
        rest: variance of what only a seed and an image together explain.
        error: standard error of the mean difference.
        dof: degrees of freedom of `error`.
    """

    seeds: float
    images: float
    rest: float
    error: float
    dof: float

    @classmethod
    def of(cls, differences: Array) -> CrossedVariance:
        """Estimate from S×N differences, S at least 2."""
        S, N = differences.shape
        mean = differences.mean()
        of_seeds, of_images = differences.mean(1), differences.mean(0)
        square_seeds = N * float(np.square(of_seeds - mean).sum()) / (S - 1)
        square_images = S * float(np.square(of_images - mean).sum()) / (N - 1)
        residual = differences - of_seeds[:, None] - of_images[None, :] + mean
        square_rest = float(np.square(residual).sum()) / ((S - 1) * (N - 1))
        total = square_seeds + max(0.0, square_images - square_rest)
        # Without any spread between the seeds only the images are left, of which there are many.
        dof = total**2 / (square_seeds**2 / (S - 1)) if square_seeds > 0 else float(N - 1)
        return cls(
            seeds=max(0.0, (square_seeds - square_rest) / N),
            images=max(0.0, (square_images - square_rest) / S),
            rest=square_rest,
            error=math.sqrt(total / (S * N)),
            dof=dof,
        )

    def seeds_needed(self, difference: float, num_images: int) -> int | None:
        """Return how many seeds show a difference in four of five studies.

        A two-sided test at 5% with a power of 80% needs a standard error of
        difference / (z(0.975) + z(0.8)) (Cohen 1988, chapter 2). None: the images alone leave more
        chance than that, whatever the number of seeds.
        """
        from scipy import stats

        needed = difference / float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
        left = needed**2 - self.images / num_images
        if left <= 0:
            return None
        return max(2, math.ceil((self.seeds + self.rest / num_images) / left))


@functools.lru_cache(maxsize=1)
def _image_counts(num_images: int, draws: int, seed: int) -> NDArray[np.float32]:
    """Return how often each draw takes each image, draws×N; kept for the next pair."""
    generator = np.random.default_rng(seed)
    counts = np.empty((draws, num_images), np.float32)
    for row in counts:
        taken = generator.integers(0, num_images, num_images, dtype=np.int32)
        row[:] = np.bincount(taken, minlength=num_images)
    return counts


def hierarchical_bootstrap(differences: Array, *, draws: int = DRAWS, seed: int = 0) -> Array:
    """Return `draws` means of S×N differences with both seeds and images drawn again.

    Seeds and images are drawn with replacement, independently of each other (Owen 2007, "The
    pigeonhole bootstrap"). The images drawn depend on N, `draws` and `seed` alone, so that all
    pairs of a comparison meet the same draws.
    """
    S, N = differences.shape
    of_images = _image_counts(N, draws, seed) @ differences.T.astype(np.float32) / N  # draws×S
    generator = np.random.default_rng((seed, S))
    of_seeds = generator.multinomial(S, np.full(S, 1 / S), draws) / S  # draws×S
    means: Array = (of_images * of_seeds).sum(1, dtype=np.float64)
    return means


def difference_interval(differences: Array, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the mean of S×N differences with its 95% interval over seeds and images.

    The bootstrap gives the interval's shape. Its width is set to what few seeds require: on S
    seeds a bootstrap's own percentiles are too narrow by sqrt((S - 1) / S) and by the step from the
    normal to Student's distribution, and the crossed draws count the rest's variance more than once
    (Hesterberg 2015, "What teachers should know about the bootstrap", on expanded percentiles;
    Owen 2007). So deviations are scaled by the ratio of Student's half-width, with the standard
    error and degrees of freedom of `CrossedVariance`, to the normal half-width of the draws.
    """
    mean = float(differences.mean())
    if len(differences) == 1:
        return Interval(mean, None, None)
    from scipy import stats

    variance = CrossedVariance.of(differences)
    drawn = hierarchical_bootstrap(differences, draws=draws, seed=seed) - mean
    spread = float(drawn.std())
    if spread == 0:
        return Interval(mean, mean, mean)
    tail = (1 + CONFIDENCE) / 2
    student = variance.error * float(stats.t.ppf(tail, variance.dof))
    scale = student / (spread * float(stats.norm.ppf(tail)))
    lo, hi = np.quantile(drawn, [1 - tail, tail])
    return Interval(mean, mean + scale * float(lo), mean + scale * float(hi))


def mcnemar_p(differences: Array) -> float:
    """Return the exact p-value of McNemar 1947 for one seed's N differences of -1, 0 and 1."""
    from scipy import stats

    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    if first + second == 0:
        return 1.0
    return float(stats.binomtest(first, first + second, 0.5).pvalue)


def combined_mcnemar_p(differences: Array) -> float:
    """Combine McNemar's exact test of each seed of S×N differences to one two-sided p-value.

    Stouffer's sum of the signed normal scores of the seeds. They saw the same images, so their
    sum has the variance S + S(S-1)r, r being the mean correlation of the differences between two
    seeds over the images (Strube 1985, "Combining and comparing significance levels from
    nonindependent hypothesis tests").
    """
    from scipy import stats

    S = len(differences)
    scores = [
        math.copysign(float(stats.norm.isf(mcnemar_p(row) / 2)), row.sum()) if row.any() else 0.0
        for row in differences
    ]
    centred = differences - differences.mean(1, keepdims=True)
    norms = np.sqrt(np.square(centred).sum(1))
    scaled = centred[norms > 0] / norms[norms > 0, None]
    n = len(scaled)
    correlation = 0.0
    if n > 1:
        correlation = (float(np.square(scaled.sum(0)).sum()) - n) / (n * (n - 1))
    score = sum(scores) / math.sqrt(S + S * (S - 1) * max(0.0, correlation))
    return float(2 * stats.norm.sf(abs(score)))


def seeds_p(differences: Array) -> float:
    """Return the two-sided p-value of a mean difference over both sources of chance.

    Student's test with the standard error and degrees of freedom of `CrossedVariance`.
    """
    from scipy import stats

    variance, mean = CrossedVariance.of(differences), float(differences.mean())
    if variance.error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / variance.error, variance.dof))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), as statsmodels does it."""
    if len(p_values) < 2:
        return list(p_values)
    from statsmodels.stats.multitest import multipletests

    adjusted: Any = multipletests(p_values, method="holm")[1]
    return [float(p) for p in adjusted]
