"""Planning: what a study can see, how many seeds it takes, and when a growing one may be read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from halfmeg.studies.pooled import Array, all_pairs, pool_seeds
from halfmeg.studies.resampled import FoldedTest, PairTest
from halfmeg.studies.stats import LEVEL, MANY, critical_value

POWER = 0.8
"""Share of studies in which a planned difference shall be seen (Cohen 1988, chapter 2)."""

MOST_SEEDS = 1_000
FEWEST_DISCORDANT = 10
"""Images with different answers below which more seeds are not what is missing."""


@dataclass(frozen=True)
class Chance:
    """The variances of a difference of two networks in single answers, as `CrossedVariance` has.

    Attributes:
        seeds: of the difference between seeds, on all images there could be.
        images: between images, over all seeds there could be.
        rest: of what only a seed and an image together explain.
    """

    seeds: float
    images: float
    rest: float

    def error(self, num_seeds: int, num_images: int) -> float:
        """Return the standard deviation of a mean difference over seeds and images."""
        return math.sqrt(self._over_seeds(num_seeds, num_images) + self.images / num_images)

    def _over_seeds(self, num_seeds: int, num_images: int) -> float:
        return (self.seeds + self.rest / num_images) / num_seeds

    def half_widths(
        self, num_seeds: int, num_images: int, num_networks: int, level: float
    ) -> Array:
        """Return half the width of the interval of a pair in each of STUDIES drawn studies.

        What a study finds of the variance between seeds is drawn, and pooled as in a study;
        images are many, so their variance is taken as known.

        Args:
            num_seeds: 2 or more.
            num_images: in the test set.
            num_networks: of the study; all vary alike.
            level: of the interval.
        """
        of_rest = self.rest / num_images
        found = (self.seeds + of_rest) * _drawn_variances(num_networks, num_seeds - 1)
        pairs = all_pairs(num_networks)
        freedoms = np.full(len(pairs), num_seeds - 1.0)
        seeds, dofs = pool_seeds(found - of_rest, of_rest, freedoms, pairs, num_networks)
        over_seeds = (np.maximum(0, seeds[:, 0]) + of_rest) / num_seeds
        total = over_seeds + self.images / num_images
        of_images = np.divide(total, over_seeds, out=np.full(STUDIES, MANY), where=over_seeds > 0)
        dof = np.minimum(dofs[:, 0] * np.square(of_images), MANY)
        half: Array = np.sqrt(total) * _critical_values(level, num_networks, dof)
        return half


STUDIES = 4_000
"""Studies that are drawn to see how wide intervals come out; the power is sure to 0.6 points."""


@functools.lru_cache(maxsize=64)
def _drawn_variances(num_networks: int, dof: int) -> Array:
    """Draw what studies find of each pair's variance where it is 1, STUDIES × pairs.

    The sample covariance of networks that vary alike is Wishart's, drawn by the decomposition of
    Bartlett 1933, "On the theory of statistical regression".
    """
    rng = np.random.default_rng((num_networks, dof))
    M = num_networks
    root = np.tril(rng.normal(size=(STUDIES, M, M)), -1)
    # Where there are fewer seeds than networks the later columns are 0.
    root *= np.arange(M) < dof
    diagonal = np.arange(min(M, dof))
    root[:, diagonal, diagonal] = np.sqrt(rng.chisquare(dof - diagonal, (STUDIES, len(diagonal))))
    first, second = np.array(all_pairs(M)).T
    drawn: Array = np.square(root[:, first] - root[:, second]).sum(-1) / (2 * dof)
    return drawn


def _critical_values(level: float, num_networks: int, dofs: Array) -> Array:
    """Return `critical_value` at many degrees of freedom, 1 or more."""
    from scipy import stats

    if num_networks == 2:
        return np.asarray(stats.t.isf(level / 2, dofs))
    return np.asarray(np.exp(_critical_curve(level, num_networks)(1 / dofs)))


@functools.cache
def _critical_curve(level: float, num_networks: int) -> Callable[[Array], Array]:
    """Return the logarithm of the critical value by 1 / dof, smooth; scipy takes 0.1 s for one."""
    from scipy.interpolate import PchipInterpolator

    inverse = np.array([1 / MANY, 0.01, 0.03, 0.06, 0.1, 0.18, 0.3, 0.45, 0.6, 0.8, 1.0])
    values = [math.log(critical_value(level, num_networks, 1 / float(i))) for i in inverse]
    curve: Callable[[Array], Array] = PchipInterpolator(inverse, values)
    return curve


TYPICAL = Chance(seeds=0.0032**2, images=0.018, rest=0.077)
"""Of two networks of 82 to 90% on CIFAR-10: the middle of the ten pairs of `results/common`.

Of the seeds the largest is taken: in the middle pair they cannot be told from 0.
"""


def power(
    difference: float,
    chance: Chance,
    num_seeds: int,
    num_images: int,
    *,
    num_networks: int = 2,
    level: float = LEVEL,
) -> float:
    """Return the share of studies that tell a true `difference` from chance.

    In drawn studies of networks that vary alike, which find the variance between seeds as luck
    has it and pool it as studies do; the mean of each is taken as normal.

    Args:
        difference: of accuracy, 0 to 1.
        chance: of the two networks.
        num_seeds: 2 or more.
        num_images: in the test set.
        num_networks: of the study; each pair is tested with all others.
        level: share of false verdicts.
    """
    half = chance.half_widths(num_seeds, num_images, num_networks, level)
    return _share_apart(difference, half, chance.error(num_seeds, num_images))


def _share_apart(difference: float, half: Array, error: float) -> float:
    """Return how often a mean with this deviation lies farther from 0 than half an interval."""
    from scipy import special

    apart = special.ndtr((difference - half) / error) + special.ndtr((-difference - half) / error)
    return float(apart.mean())


def smallest_difference(
    chance: Chance, num_seeds: int, num_images: int, *, num_networks: int = 2, level: float = LEVEL
) -> float:
    """Return the difference that four of five studies tell from chance; at most 1."""
    from scipy import optimize

    half = chance.half_widths(num_seeds, num_images, num_networks, level)
    error = chance.error(num_seeds, num_images)

    def missing(difference: float) -> float:
        return POWER - _share_apart(difference, half, error)

    return float(optimize.brentq(missing, 0.0, 1.0, xtol=1e-5)) if missing(1.0) < 0 else 1.0


def _least(enough: Callable[[int], bool], first: int) -> int | None:
    """Return the least number from `first` to MOST_SEEDS that is enough, by bisection."""
    if not enough(MOST_SEEDS):
        return None
    few, many = first - 1, MOST_SEEDS
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


@dataclass(frozen=True)
class SeedsNeeded:
    """How many seeds a new study of the same networks needs to see a difference.

    Attributes:
        least, most: by the ends of an 80% interval of the variance between seeds; None: more than
            a thousand, or any number is too few, since the images alone leave more chance.
        seen: where `least` is None, the difference that a thousand seeds would see, 0 to 1.
    """

    least: int | None
    most: int | None
    seen: float | None = None


def seeds_needed(test: PairTest, difference: float) -> SeedsNeeded | None:
    """Return how many seeds would show a true difference in four of five studies.

    Few seeds hardly tell how much seeds differ, so the answer is a range. It is never below the
    number that has run already: that study has been read.

    Args:
        test: of a pair that has run.
        difference: that shall be seen.

    Returns:
        None where fewer than ten images have different answers, so that nothing can be said, and
        for folds, of which more tell little.
    """
    from scipy import stats

    if isinstance(test, FoldedTest):
        return None
    chance = test.chance
    if chance is None or test.discordant < FEWEST_DISCORDANT:
        return None
    # What is estimated, a variance with `seeds_dof` degrees of freedom, has the rest's part in it.
    of_rest = chance.rest / chance.num_images
    found = max(0.0, test.seeds) + of_rest

    images, networks = chance.num_images, test.num_networks

    def needed(share: float) -> int | None:
        spread = test.seeds_dof / float(stats.chi2.ppf(share, test.seeds_dof))
        assumed = Chance(max(0.0, found * spread - of_rest), chance.images, chance.rest)
        return _least(
            lambda seeds: (
                power(difference, assumed, seeds, images, num_networks=networks, level=test.level)
                >= POWER
            ),
            chance.num_seeds + 1,
        )

    least = needed(0.9)
    if least is not None:
        return SeedsNeeded(least, needed(0.1))
    as_found = Chance(max(0.0, test.seeds), chance.images, chance.rest)
    seen = smallest_difference(
        as_found, MOST_SEEDS, images, num_networks=networks, level=test.level
    )
    return SeedsNeeded(None, None, seen)


LOOKS = (5, 8, 12, 20)
"""Numbers of seeds at which a study that runs until it is decided is read."""

LOOK_LEVEL = LEVEL / len(LOOKS)
"""The level of each look: together they make no more false verdicts than all their levels.

Looks at the same seeds and images agree, so the four make fewer; where all chance is between seeds
4.0% of studies. A level of 1.6% (Pocock 1977) would use that up, but then has nothing to spare for
the approximations of the test itself: in simulation it came to 6.6%.
"""

FUTILE = 0.1
"""A study stops where every open pair is decided at the last look with less than this chance."""


def is_futile(test: PairTest, margin: float, last: int) -> bool:
    """Whether a pair that is open will hardly be decided when the last look has been taken.

    The mean then is this one, changed by what new seeds add; the error is as now known.
    Stopping for it makes no verdict, so it cannot make a false one.

    Args:
        test: the pair as it is now.
        margin: within which two networks are called the same.
        last: seeds of the last look.
    """
    from scipy import stats

    if isinstance(test, FoldedTest) or test.chance is None:
        return False
    chance = test.chance
    assumed = Chance(max(0.0, test.seeds), chance.images, chance.rest)
    now = assumed.error(chance.num_seeds, chance.num_images)
    then = assumed.error(last, chance.num_images)
    widths = assumed.half_widths(last, chance.num_images, test.num_networks, test.level)
    half = float(np.median(widths))
    to_come = stats.norm(chance.mean, math.sqrt(max(1e-12, now**2 - then**2)))
    apart = to_come.sf(half) + to_come.cdf(-half)
    same = max(0.0, to_come.cdf(margin - half) - to_come.cdf(half - margin))
    return bool(apart + same < FUTILE)
