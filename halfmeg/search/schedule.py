"""How a search spends its time: the epochs of a run, successive halving, the last comparison.

All here is arithmetic on seconds that were measured. All runs may take the same time, so a network
that trains fast has more epochs. Halving is the stopping form of ASHA (Li et
al. 2020, "A System for Massively Parallel Hyperparameter Tuning"): at a third of its epochs a run
goes on only if it is among the best third of those that have come as far. There is no earlier look:
at a ninth, where a one-cycle schedule is near its highest rate, accuracy says nothing of the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

REDUCTION = 3
RUNGS = (1 / 3, 1.0)
"""Shares of a run's epochs after which it is looked at."""

FULL_RUNS = 5
"""So many whole runs a search has time for at least, which halving makes about 20 trials."""

MOST_EPOCHS = 200
FINAL_SHARE = 0.45
"""Of the time, for the last comparison."""

FEWEST_SHARE = 0.5
ENOUGH_EPOCHS = 20
"""Baselines and seeds are given up where runs would have fewer epochs than this, and also fewer
than that share of what a search alone would give them."""

FEWEST_EPOCHS = 8
"""A network that the time allows fewer of is too large for it."""

SEEDS = 5
FINAL_SIZES = ((5, 3), (5, 2), (5, 1), (3, 1), (2, 1), (1, 1))
"""Seeds and baselines of the last comparison, in the order in which they are given up."""


@dataclass(frozen=True)
class Plan:
    """What a search does in its time.

    Attributes:
        epochs: of a run of the network by which it was planned.
        seeds: of the last comparison; 0 where there is no time for one.
        num_baselines: in it.
        run_seconds: that a run may take.
        final_seconds: of the last comparison, for one seed.
        baseline_seconds: that an epoch of all baselines takes in it.
        search_seconds: when it ends to look for networks.
        total_seconds: when all is to be done.
        most_macs: of a candidate, so that the time allows it enough epochs; None for any.
        folds: of a candidate's trial; in the last comparison it is trained without them.
    """

    epochs: int
    seeds: int
    num_baselines: int
    run_seconds: float
    final_seconds: float
    baseline_seconds: float
    search_seconds: float
    total_seconds: float
    most_macs: int | None = None
    folds: int = 1

    def epochs_of(self, seconds: float) -> int:
        """Return how many epochs a network has in the time of a run, and of the last comparison.

        Args:
            seconds: that an epoch of it takes, of all folds.
        """
        most = self.run_seconds / seconds
        if self.seeds:
            most = min(most, self.final_seconds / (seconds / self.folds + self.baseline_seconds))
        return max(1, min(MOST_EPOCHS, int(most)))

    def epochs_alone(self, epochs: int) -> int:
        """Return how many epochs a network that has so many would have with no baselines beside it.

        Without them no test image is read, but with fewer of them runs come near to it.
        """
        if not self.seeds:
            return epochs
        seconds = (self.final_seconds / epochs - self.baseline_seconds) * self.folds
        return max(epochs, replace(self, baseline_seconds=0.0).epochs_of(max(seconds, 1e-9)))


def time_share(total_seconds: float, candidate: float) -> float:
    """Return the share of its arithmetic at which a candidate has 8 epochs; 1 for all of it.

    Args:
        total_seconds: all the time there is.
        candidate: seconds that an epoch of it takes.
    """
    return min(1.0, (1 - FINAL_SHARE) * total_seconds / FULL_RUNS / FEWEST_EPOCHS / candidate)


def make_plan(
    total_seconds: float,
    candidate: float,
    baselines: Sequence[float],
    folds: int = 1,
) -> Plan:
    """Plan a search.

    Args:
        total_seconds: all the time there is.
        candidate: seconds that an epoch of a candidate takes which trains fast, of all folds.
        baselines: the same of each baseline, which has no folds; none for no comparison.
        folds: of a candidate's trial.
    """
    final_seconds = FINAL_SHARE * total_seconds if baselines else 0.0
    search_seconds = total_seconds - final_seconds
    run_seconds = search_seconds / FULL_RUNS
    alone = max(1.0, run_seconds / candidate)
    for seeds, count in final_sizes(len(baselines)):
        plan = Plan(
            0, seeds, count, run_seconds, final_seconds / seeds, sum(baselines[:count]),
            search_seconds, total_seconds, folds=folds,
        )  # fmt: skip
        affordable = int(plan.final_seconds / (candidate / folds + plan.baseline_seconds))
        if affordable >= min(ENOUGH_EPOCHS, max(min(alone, FEWEST_EPOCHS), FEWEST_SHARE * alone)):
            return replace(plan, epochs=plan.epochs_of(candidate))
    # What is left of the time is for one more look at the last run.
    run_seconds = total_seconds / FULL_RUNS
    plan = Plan(0, 0, 0, run_seconds, 0.0, 0.0, 0.95 * total_seconds, total_seconds)
    return replace(plan, epochs=plan.epochs_of(candidate))


def final_sizes(num_baselines: int) -> list[tuple[int, int]]:
    """Return seeds and numbers of baselines that a last comparison may have, the largest first."""
    largest = (SEEDS, num_baselines)  # more where the user has named more
    sizes = [(seeds, min(n, num_baselines)) for seeds, n in (largest, *FINAL_SIZES)]
    return list(dict.fromkeys(size for size in sizes if size[1]))


def fit_final(
    seconds_left: float,
    winner: float,
    baselines: Sequence[float],
    workers: int = 1,
) -> tuple[int, int]:
    """Return seeds and number of baselines that a time allows; (0, 0) where it allows none.

    Args:
        seconds_left: the time.
        winner: seconds that one run of it takes.
        baselines: the same of each baseline.
        workers: runs at once; each takes what it takes.
    """
    for num_seeds, count in final_sizes(len(baselines)):
        runs = [winner, *baselines[:count]]
        if max(num_seeds * sum(runs) / workers, *runs) <= seconds_left:
            return num_seeds, count
    return 0, 0


def rung_epochs(epochs: int) -> list[int]:
    """Return after which epochs a run is looked at; the last is its end."""
    return sorted({max(1, math.ceil(share * epochs)) for share in RUNGS})


def goes_on(
    own: tuple[float, float], others: Sequence[tuple[float, float]], num_images: int | None = None
) -> bool:
    """Return whether a run goes on beyond a rung.

    Args:
        own: its accuracy there, and what its network costs.
        others: the same of all others that have come as far.
        num_images: that the accuracy was measured on. It counts by a standard error more, so that
            runs which are all still near chance are not stopped by it; None: as it is.
    """
    accuracy, cost = own
    if num_images is not None:
        accuracy += math.sqrt(accuracy * (1 - accuracy) / num_images)
    points = [(accuracy, cost), *others]
    ranks = domination_ranks(points)
    order = sorted(range(len(points)), key=lambda i: (ranks[i], -points[i][0], i))
    return order.index(0) < max(1, round(len(points) / REDUCTION))


def domination_ranks(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return for each (accuracy, cost) its front: 0 where nothing beats it in both.

    The most accurate point is always on front 0 (Deb et al. 2002, section III-A).
    """
    ranks = [-1] * len(points)
    rank, left = 0, list(range(len(points)))
    while left:
        best_accuracy = -math.inf
        front: list[int] = []
        # from the cheapest on, only what is more accurate than all that cost less is not beaten
        for i in sorted(left, key=lambda i: (points[i][1], -points[i][0])):
            if points[i][0] > best_accuracy or (front and points[i] == points[front[-1]]):
                best_accuracy = points[i][0]
                front.append(i)
        for i in front:
            ranks[i] = rank
        left = [i for i in left if ranks[i] < 0]
        rank += 1
    return ranks
