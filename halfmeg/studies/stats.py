"""Statistics of paired runs: pure functions of arrays of right and wrong answers.

Two runs of one seed saw the same split, order and augmentation, and all runs answered the same
test images. So a comparison is a table `right[seed, image]` for each model, and the difference of
two models the table `a - b`, with two sources of chance, crossed: another seed, another image.
docs/statistics.md says how the methods were chosen, and what simulation found of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

from halfmeg.studies.pooled import Array, all_pairs, pool_seeds

LEVEL = 0.05
"""Share of studies without any difference that may find one; 1 - LEVEL is every interval's."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, 95% where nothing else is said.

    lo and hi are None for a single value.
    """

    mean: float
    lo: float | None
    hi: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON types."""
        return asdict(self)

    def in_percent(self, digits: int) -> str | None:
        """Write the ends as "71.0 to 72.5", or None where there are none.

        With more digits where they would look the same: no interval is of no width.
        """
        if self.lo is None or self.hi is None:
            return None
        for places in range(digits, digits + 6):
            lo, hi = (f"{100 * end:.{places}f}" for end in (self.lo, self.hi))
            if lo != hi:
                break
        return f"{lo} to {hi}"


def wilson_interval(num_right: float, n: int) -> Interval:
    """Return the share of right answers with its 95% interval over images (Wilson 1927).

    It stands for other images of the same kind, not for another training of the network.

    Args:
        num_right: right answers, 0 to n; between whole numbers for the mean of several trainings.
        n: answers, 1 or more.
    """
    share, z = num_right / n, NormalDist().inv_cdf(1 - LEVEL / 2)
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    # At either end one bound is the share itself, but for rounding.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


@dataclass(frozen=True)
class CrossedVariance:
    """How much of a mean over seeds and images is chance, by source: variances of single answers.

    The two-way random-effects analysis of seeds × images without replication, as used where
    several readers judge the same cases (Dorfman, Berbaum and Metz 1992, "Receiver operating
    characteristic rating analysis").

    Attributes:
        mean: of the table.
        seeds: variance between seeds of their means on all images there could be. As estimated: by
            chance it can be below 0, which no variance is.
        images: variance between images of their means over all seeds there could be, 0 or more.
        rest: variance of what only a seed and an image together explain.
    """

    num_seeds: int
    num_images: int
    mean: float
    seeds: float
    images: float
    rest: float

    @classmethod
    def of(cls, table: Array, lowest: float, highest: float) -> CrossedVariance:
        """Estimate from an S×N table, S at least 2, and two images more.

        Every seed answers one of the two with `lowest` and the other with `highest`, the least and
        the largest value there can be. Without them no chance at all would be left where no answer
        differs, and too little where few do (Agresti and Coull 1998, "Approximate is better than
        exact"; for differences of paired shares Bonett and Price 2012, "Adjusted Wald confidence
        interval for a difference of binomial proportions based on paired data").
        """
        S = len(table)
        image_sums = np.append(table.sum(0), [S * lowest, S * highest])
        return cls.of_sums(
            num_images=len(image_sums),
            seed_sums=table.sum(1) + lowest + highest,
            image_sums_squared=float(np.square(image_sums).sum()),
            squared=float(np.square(table).sum()) + S * (lowest**2 + highest**2),
        )

    @classmethod
    def of_sums(
        cls, num_images: int, seed_sums: Array, image_sums_squared: float, squared: float
    ) -> CrossedVariance:
        """Estimate from sums over an S×N table.

        Args:
            num_images: N.
            seed_sums: over the images, of each seed.
            image_sums_squared: the sum over the images of the squared sums over the seeds.
            squared: the sum of all values squared.
        """
        S, N = len(seed_sums), num_images
        mean = float(seed_sums.sum()) / (S * N)
        of_mean = S * N * mean**2
        of_seeds = float(np.square(seed_sums).sum()) / N - of_mean
        of_images = image_sums_squared / S - of_mean
        of_rest = max(0.0, squared - of_mean - of_seeds - of_images)
        square_seeds, square_images = of_seeds / (S - 1), of_images / (N - 1)
        square_rest = of_rest / ((S - 1) * (N - 1))
        return cls(
            num_seeds=S,
            num_images=N,
            mean=mean,
            seeds=(square_seeds - square_rest) / N,
            images=max(0.0, (square_images - square_rest) / S),
            rest=square_rest,
        )

    def error(self, seeds: float, seeds_dof: float) -> tuple[float, float]:
        """Return the standard error of the mean and its degrees of freedom.

        The degrees of freedom are Satterthwaite's (1946): images are many, so all doubt is in the
        variance between seeds.

        Args:
            seeds: the variance between seeds to use. Below 0 counts as 0: the seeds' mean square
                cannot be expected below the rest's, and where it is so by luck, it would make the
                error small and the degrees of freedom many at once.
            seeds_dof: how well that variance is known, in degrees of freedom.
        """
        over_seeds = (max(0.0, seeds) + self.rest / self.num_images) / self.num_seeds
        total = over_seeds + self.images / self.num_images
        dof = seeds_dof * (total / over_seeds) ** 2 if over_seeds > 0 else math.inf
        return math.sqrt(total), min(dof, MANY)


MANY = 1e6
"""Degrees of freedom from which Student's distribution is the normal one."""


def crossed_interval(right: Array, level: float = LEVEL) -> Interval:
    """Return the accuracy of S×N right (1) and wrong (0) answers, with its interval.

    The interval is crossed: it stands for other seeds of the network on other images of the same
    kind. A single seed has none.
    """
    mean = float(right.mean())
    if len(right) == 1:
        return Interval(mean, None, None)
    from scipy import stats

    variance = CrossedVariance.of(right, 0.0, 1.0)
    error, dof = variance.error(variance.seeds, len(right) - 1)
    half = error * float(stats.t.isf(level / 2, dof))
    return Interval(mean, max(0.0, variance.mean - half), min(1.0, variance.mean + half))


@dataclass(frozen=True)
class PairedTest:
    """The difference of two networks over paired seeds, against chance.

    Attributes:
        difference: mean with its interval over seeds and images, at all pairs of the study at
            once; without ends for a single seed.
        p_value: two-sided, of this pair alone; None for a single seed.
        p_adjusted: the same over all pairs at once. Below the level exactly where the interval
            leaves out 0.
        discordant: images, in the mean over seeds, that one of the two alone answers rightly.
        chance: of this pair; None for a single seed.
        seeds: the variance between seeds that was used, and its degrees of freedom.
        seeds_dof: see there.
        num_networks: of the study.
        level: of the interval.
    """

    difference: Interval
    p_value: float | None
    p_adjusted: float | None
    discordant: float
    chance: CrossedVariance | None
    seeds: float
    seeds_dof: float
    num_networks: int
    level: float

    def p_beyond(self, margin: float) -> float | None:
        """Return the p-value, over all pairs at once, of a difference of `margin` or more.

        Two one-sided tests (Schuirmann 1987): it is below the level exactly where the interval
        lies within ±`margin`. They are made at half the level each, so that the interval that is
        printed decides; the usual 5% each would need a second, narrower one.
        """
        if self.chance is None:
            return None
        if self.discordant == 0:
            return float(min(1.0, _pairs(self.num_networks) * (1 - margin) ** self._num_images))
        error, dof = self.chance.error(self.seeds, self.seeds_dof)
        distance = margin - abs(self.chance.mean)
        return tail(distance / error, self.num_networks, dof) if distance > 0 else 1.0

    @property
    def _num_images(self) -> int:
        assert self.chance is not None
        return self.chance.num_images - 2


def paired_tests(
    tables: Sequence[Array],
    num_networks: int,
    level: float = LEVEL,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> list[PairedTest]:
    """Test the differences of all pairs of networks of a study at once.

    The interval is Student's: with the standard error and degrees of freedom of `CrossedVariance`,
    and at all pairs at once by the distribution of the studentized range (Tukey 1953, Kramer
    1956), which for two networks is Student's t. Where the answers of no seed differ, it is the
    exact bound of a share that did not occur once, 1 - level^(1/N), about 3/N.

    A few seeds say little of the variance between them. The pairs of a study say more:
    `pool_seeds` says what is used of them.

    Args:
        tables: S×N differences of each pair, of -1, 0 and 1; S may differ.
        num_networks: of the study.
        level: share of studies without a difference in which an interval may leave out 0.
        pairs: the two networks of each table; None: all pairs, in the order of `all_pairs`.
    """
    pairs = all_pairs(num_networks) if pairs is None else pairs
    drafts = [CrossedVariance.of(t, -1.0, 1.0) if len(t) > 1 else None for t in tables]
    tested = [(v, pair) for v, pair in zip(drafts, pairs, strict=True) if v is not None]
    used = iter(seeds_variances([v for v, _ in tested], [p for _, p in tested], num_networks))
    return [
        _untested(table, num_networks, level)
        if chance is None
        else _test(table, chance, *next(used), num_networks, level)
        for table, chance in zip(tables, drafts, strict=True)
    ]


def seeds_variances(
    chances: Sequence[CrossedVariance], pairs: Sequence[tuple[int, int]], num_networks: int
) -> list[tuple[float, float]]:
    """Return for each pair of a study the variance between seeds to use, and how well it is known.

    Args:
        chances: of each pair.
        pairs: its two networks, from 0.
        num_networks: of the study.
    """
    if not chances:
        return []
    own = np.array([chance.seeds for chance in chances])
    of_rest = np.array([chance.rest / chance.num_images for chance in chances])
    freedoms = np.array([chance.num_seeds - 1.0 for chance in chances])
    variances, dofs = pool_seeds(own, of_rest, freedoms, pairs, num_networks)
    return [(float(variance), float(dof)) for variance, dof in zip(variances, dofs, strict=True)]


def _untested(table: Array, num_networks: int, level: float) -> PairedTest:
    """Return what a single seed says: a difference without a test."""
    return PairedTest(
        difference=Interval(float(table.mean()), None, None),
        p_value=None,
        p_adjusted=None,
        discordant=float((table != 0).sum()),
        chance=None,
        seeds=0.0,
        seeds_dof=0.0,
        num_networks=num_networks,
        level=level,
    )


def _test(
    table: Array,
    chance: CrossedVariance,
    seeds: float,
    seeds_dof: float,
    num_networks: int,
    level: float,
) -> PairedTest:
    mean, discordant = float(table.mean()), float((table != 0).sum(1).mean())
    if discordant == 0:
        bound = 1 - (level / _pairs(num_networks)) ** (1 / table.shape[1])
        found, p_value, p_adjusted = Interval(0.0, -bound, bound), 1.0, 1.0
    else:
        error, dof = chance.error(seeds, seeds_dof)
        half = error * critical_value(level, num_networks, dof)
        found = Interval(mean, max(-1.0, chance.mean - half), min(1.0, chance.mean + half))
        distance = abs(chance.mean) / error
        p_value, p_adjusted = tail(distance, 2, dof), tail(distance, num_networks, dof)
    return PairedTest(
        found, p_value, p_adjusted, discordant, chance, seeds, seeds_dof, num_networks, level
    )


def _pairs(num_networks: int) -> int:
    return num_networks * (num_networks - 1) // 2


@functools.cache
def critical_value(level: float, num_networks: int, dof: float) -> float:
    """Return the standard errors that a pair is apart by chance with probability `level`.

    That is, the largest distance of any pair of `num_networks` equal ones.
    """
    from scipy import optimize, stats

    least = float(stats.t.isf(level / 2, dof))
    if num_networks == 2:
        return least
    most = float(stats.t.isf(level / 2 / _pairs(num_networks), dof))  # Bonferroni
    return float(optimize.brentq(lambda x: tail(x, num_networks, dof) - level, least, most))


def tail(distance: float, num_networks: int, dof: float) -> float:
    """Return how often the most distant pair of equal networks is `distance` apart or more.

    Args:
        distance: in standard errors of a difference.
        num_networks: 2 or more.
        dof: of the standard error.
    """
    from scipy import stats

    if num_networks == 2:
        return float(2 * stats.t.sf(distance, dof))
    found = float(stats.studentized_range.sf(distance * math.sqrt(2), num_networks, dof))
    # Quadrature leaves an error of 1e-12 or so; a pair alone is never more surprising.
    return min(1.0, max(found, float(2 * stats.t.sf(distance, dof))))


def mcnemar_p(differences: Array) -> float:
    """Return the exact p-value of McNemar 1947 for one seed's N differences of -1, 0 and 1."""
    from scipy import stats

    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    if first + second == 0:
        return 1.0
    return float(stats.binomtest(first, first + second, 0.5).pvalue)


def combined_mcnemar_p(differences: Array) -> float:
    """Combine McNemar's exact test of each seed of S×N differences to one two-sided p-value.

    It asks whether these trained networks differ on other images, not whether others would; so it
    decides no verdict. Stouffer's sum of the signed normal scores of the seeds: they saw the same
    images, so their sum has the variance S + S(S-1)r, r being the mean correlation of the
    differences between two seeds over the images (Strube 1985, "Combining and comparing
    significance levels from nonindependent hypothesis tests").
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
