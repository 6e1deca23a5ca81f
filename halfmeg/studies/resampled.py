"""Statistics of folds: the corrected resampled t, of networks trained on overlapping images.

Each fold's networks were trained on most of the images that the others' were trained on, so the
accuracies of the folds are no independent measurements, and Student's test of them finds
differences that are none. Nadeau and Bengio 2003, "Inference for the generalization error", widen
the variance of the mean over J folds from 1/J to 1/J + (test images / training images).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from halfmeg.studies.pooled import Array
from halfmeg.studies.stats import LEVEL, Interval, PairedTest


@dataclass(frozen=True)
class FoldedTest:
    """The difference of two networks over folds, against chance.

    Attributes:
        difference: mean over all images with its interval, at all pairs of the study at once;
            without ends for a single fold.
        p_value: two-sided, of this pair alone; None for a single fold.
        p_adjusted: the same over all pairs at once. Below the level exactly where the interval
            leaves out 0.
        discordant: images that one of the two alone answers rightly.
        error: standard error of the difference; None for a single fold.
        dof: its degrees of freedom, folds - 1.
        num_images: tested in all folds.
        num_pairs: of the study.
        level: of the interval.
    """

    difference: Interval
    p_value: float | None
    p_adjusted: float | None
    discordant: float
    error: float | None
    dof: int
    num_images: int
    num_pairs: int
    level: float

    def p_beyond(self, margin: float) -> float | None:
        """Return the p-value, over all pairs at once, of a difference of `margin` or more.

        As `PairedTest.p_beyond`: below the level exactly where the interval lies within ±`margin`.
        """
        if self.error is None:
            return None
        if self.discordant == 0:
            return min(1.0, self.num_pairs * (1 - margin) ** self.num_images)
        distance = margin - abs(self.difference.mean)
        return _tail(distance / self.error, self.num_pairs, self.dof) if distance > 0 else 1.0


PairTest = PairedTest | FoldedTest
"""Of a pair of networks: over seeds on the same test images, or over folds."""


def folded_tests(
    tables: Sequence[Sequence[Array]], ratio: float, level: float = LEVEL
) -> list[FoldedTest]:
    """Test the differences of all pairs of networks at once, by Bonferroni's correction.

    Args:
        tables: for each pair and fold the differences of its test images, of -1, 0 and 1.
        ratio: test images of a fold to its training images.
        level: share of studies without a difference in which an interval may leave out 0.
    """
    return [_test(table, ratio, len(tables), level) for table in tables]


def _test(folds: Sequence[Array], ratio: float, num_pairs: int, level: float) -> FoldedTest:
    answers = np.concatenate(folds)
    mean, discordant = float(answers.mean()), float((answers != 0).sum())
    error = None if len(folds) < 2 else _error(folds, ratio, -1.0, 1.0)
    if error is None:
        found, p_value, p_adjusted = Interval(mean, None, None), None, None
    elif discordant == 0:
        bound = 1 - (level / num_pairs) ** (1 / len(answers))
        found, p_value, p_adjusted = Interval(0.0, -bound, bound), 1.0, 1.0
    else:
        half = _half_width(error, len(folds) - 1, level / num_pairs)
        found = Interval(mean, max(-1.0, mean - half), min(1.0, mean + half))
        p_value, p_adjusted = (
            _tail(abs(mean) / error, pairs, len(folds) - 1) for pairs in (1, num_pairs)
        )
    return FoldedTest(
        found, p_value, p_adjusted, discordant, error, len(folds) - 1, len(answers), num_pairs,
        level,
    )  # fmt: skip


def folded_interval(right: Sequence[Array], ratio: float, level: float = LEVEL) -> Interval:
    """Return the accuracy over all folds with its interval, of right (1) and wrong (0) answers.

    Args:
        right: for each fold the answers to its test images. A single fold has no interval.
        ratio: test images of a fold to its training images.
        level: share of intervals that may miss.
    """
    mean = float(np.concatenate(right).mean())
    if len(right) == 1:
        return Interval(mean, None, None)
    half = _half_width(_error(right, ratio, 0.0, 1.0), len(right) - 1, level)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def _error(folds: Sequence[Array], ratio: float, lowest: float, highest: float) -> float:
    """Return the corrected standard error of the mean over all images.

    By luck folds agree better than their images allow, so it is never below what the images alone
    explain, two of them added that answer with the least and the largest value there can be
    (`CrossedVariance.of`).
    """
    answers = np.concatenate(folds)
    weights = np.array([len(fold) for fold in folds]) / len(answers)
    means = np.array([fold.mean() for fold in folds])
    J = len(folds)
    between = float((weights * np.square(means - answers.mean())).sum()) * J / (J - 1)
    of_images = float(np.append(answers, [lowest, highest]).var(ddof=1)) / (len(answers) + 2)
    return math.sqrt(max((1 / J + ratio) * between, of_images))


def _half_width(error: float, dof: int, level: float) -> float:
    from scipy import stats

    return error * float(stats.t.isf(level / 2, dof))


def _tail(distance: float, num_pairs: int, dof: int) -> float:
    from scipy import stats

    return min(1.0, num_pairs * float(2 * stats.t.sf(distance, dof)))
