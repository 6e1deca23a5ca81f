"""Planning: what a study can see, how many seeds it takes, and when a growing one may be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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

    def error(self, num_seeds: int, num_images: int, num_networks: int) -> tuple[float, float]:
        """Return the expected standard error of a mean difference, and its degrees of freedom."""
        over_seeds = (self.seeds + self.rest / num_images) / num_seeds
        total = over_seeds + self.images / num_images
        if over_seeds == 0:
            return math.sqrt(total), MANY
        # Of networks that vary alike; `seeds_variances` finds fewer, by what seeds differ by luck.
        alike = num_networks * (num_seeds - 1) / (num_seeds + 1)
        networks = min(num_networks - 1, max(1.0, alike))
        dof = networks * (num_seeds - 1) * (total / over_seeds) ** 2
        return math.sqrt(total), min(dof, MANY)


TYPICAL = Chance(seeds=0.0035**2, images=0.015, rest=0.09)
"""Of two networks of about 85% on CIFAR-10 (JPEG): the middle of the pairs of `results/`."""


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

    By the noncentral t distribution, as though the variance between seeds were found as it is.

    Args:
        difference: of accuracy, 0 to 1.
        chance: of the two networks.
        num_seeds: 2 or more.
        num_images: in the test set.
        num_networks: of the study; each pair is tested with all others.
        level: share of false verdicts.
    """
    from scipy import stats

    error, dof = chance.error(num_seeds, num_images, num_networks)
    critical = critical_value(level, num_networks, dof)
    return float(stats.nct.sf(critical, dof, abs(difference) / error))


def smallest_difference(
    chance: Chance, num_seeds: int, num_images: int, *, num_networks: int = 2, level: float = LEVEL
) -> float:
    """Return the difference that four of five studies tell from chance; at most 1."""
    from scipy import optimize

    def missing(difference: float) -> float:
        found = power(
            difference, chance, num_seeds, num_images, num_networks=num_networks, level=level
        )
        return POWER - found

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

    The mean then is this one, changed by what new seeds add; that the error is as now known.
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
    now, _ = assumed.error(chance.num_seeds, chance.num_images, test.num_networks)
    then, dof = assumed.error(last, chance.num_images, test.num_networks)
    half = then * critical_value(test.level, test.num_networks, dof)
    to_come = stats.norm(chance.mean, math.sqrt(max(1e-12, now**2 - then**2)))
    apart = to_come.sf(half) + to_come.cdf(-half)
    same = max(0.0, to_come.cdf(margin - half) - to_come.cdf(half - margin))
    return bool(apart + same < FUTILE)
