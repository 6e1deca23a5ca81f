"""How often verdicts are false, and what they see, by simulation of whole studies.

    python benchmarks/verdicts.py [--studies 1000] [--out FILE.json]

A latent model, independent of what the verdicts assume: an answer is right with the probability
logistic(level + difficulty of the image, shared by all networks + what a network makes of the image
+ what a seed of the network makes of all images). Image effects are normal with deviations of 1.5
and 0.7, seeds' such that accuracy differs by so many points between seeds. 10,000 images, and
networks of 90% where nothing else is said.

A study without a difference that prints one "is better than" or more has a false verdict. Coverage
is the share of studies whose intervals hold all true differences at once. Power is the share of
pairs one point apart that are told apart. "Before" is what the program did until version 0.1.0: no
floor below the variance between seeds, each pair for itself, the larger p-value of that and of
McNemar's combined test, Holm's correction.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import optimize, special, stats

from halfmeg.studies.power import LOOK_LEVEL, LOOKS
from halfmeg.studies.stats import (
    LEVEL,
    MANY,
    CrossedVariance,
    critical_value,
    seeds_variances,
)

DIFFICULTY, TASTE = 1.5, 0.7
"""Deviations of the image's effect on all networks, and on one, in logits."""

SEEDS = (2, 3, 5, 10)
NETWORKS = (2, 3, 5)  # 1, 3 and 10 pairs
DEVIATIONS = (0.2, 0.4, 0.6)  # of accuracy between seeds, points
ONE_POINT = 0.01

Array = NDArray[np.float64]
Answers = NDArray[np.bool_]  # networks × seeds × images


@cache
def _grid() -> NDArray[np.float64]:
    """Return the image effects of a network at the quantiles of their distribution."""
    ranks = (np.arange(20_000) + 0.5) / 20_000
    effects: NDArray[np.float64] = stats.norm.ppf(ranks) * np.hypot(DIFFICULTY, TASTE)
    return effects


def expected_accuracy(logit: float, seed_deviation: float) -> float:
    """Return the accuracy over all images and seeds (normal ones), of a network's logit."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    means = [special.expit(logit + seed_deviation * node + _grid()).mean() for node in nodes]
    return float(np.dot(means, weights) / weights.sum())


@cache
def seed_deviation(accuracy: float, points: float) -> float:
    """Return the deviation of a seed's logit that makes accuracy differ by so many points."""
    logit = logit_of(accuracy, 0.0)
    probabilities = special.expit(logit + _grid())
    return points / 100 / float((probabilities * (1 - probabilities)).mean())


@cache
def logit_of(accuracy: float, deviation: float) -> float:
    """Return the logit at which a network has that accuracy over all images and seeds."""
    return float(optimize.brentq(lambda x: expected_accuracy(x, deviation) - accuracy, -10, 20))


@dataclass(frozen=True)
class World:
    """What studies are drawn from.

    Attributes:
        accuracies: of each network, over all images and seeds.
        points: deviation of accuracy between seeds of each network, in points.
        num_images: in the test set.
        skewed: whether seeds fail now and then (exponential) rather than vary evenly (normal).
    """

    accuracies: tuple[float, ...]
    points: tuple[float, ...]
    num_images: int = 10_000
    skewed: bool = False

    def studies(self, count: int, num_seeds: int, seed: int = 0) -> Iterator[Answers]:
        """Draw studies: right answers of each network, seed and image."""
        rng = np.random.default_rng((seed, num_seeds, self.num_images))
        M, S, N = len(self.accuracies), num_seeds, self.num_images
        spreads = np.array(
            [seed_deviation(a, p) for a, p in zip(self.accuracies, self.points, strict=True)]
        )
        logits = np.array(
            [logit_of(a, s) for a, s in zip(self.accuracies, spreads, strict=True)], np.float32
        )
        for _ in range(count):
            images = rng.normal(size=N).astype(np.float32) * DIFFICULTY
            tastes = rng.normal(size=(M, N)).astype(np.float32) * TASTE
            odds = np.exp(logits[:, None] + images + tastes)  # M×N
            effects = 1 - rng.exponential(size=(M, S)) if self.skewed else rng.normal(size=(M, S))
            against = np.exp(-spreads[:, None] * effects).astype(np.float32)  # M×S
            drawn = rng.random((M, S, N), np.float32)
            # u < odds / (odds + against), that is, right with the logistic probability
            yield drawn * (odds[:, None] + against[:, :, None]) < odds[:, None]


@cache
def interpolated_critical(level: float, num_networks: int) -> Callable[[float], float]:
    """Return `critical_value` by degrees of freedom, from a table: a call takes 100 ms or so."""
    if num_networks == 2:
        return lambda dof: float(special.stdtrit(dof, 1 - level / 2))
    inverse = np.concatenate([[1 / MANY], np.geomspace(1e-4, 1.5, 40)])
    logs = np.log([critical_value(level, num_networks, 1 / i) for i in inverse])
    return lambda dof: float(np.exp(np.interp(1 / dof, inverse, logs)))


Verdicts = NDArray[np.float64]  # pairs × (lo, hi)


def pairs_of(num_networks: int) -> list[tuple[int, int]]:
    """Return the pairs of the first networks; those of fewer come first."""
    return [(i, j) for j in range(num_networks) for i in range(j)]


@dataclass(frozen=True)
class Products:
    """The products of all rows of right answers, from which all statistics of a study follow.

    Attributes:
        gram: right answers that two networks with a seed each share, M×S×M×S.
        num_images: of the test set.
    """

    gram: NDArray[np.float64]
    num_images: int

    @classmethod
    def of(cls, answers: Answers) -> Products:
        """Multiply the answers of a study; counts below 2^24 are exact in float32."""
        M, S, N = answers.shape
        rows = answers.reshape(M * S, N).astype(np.float32)
        return cls((rows @ rows.T).astype(np.float64).reshape(M, S, M, S), N)

    def first_seeds(self, count: int) -> Products:
        """Return those of the study's first seeds."""
        return Products(self.gram[:, :count, :, :count], self.num_images)

    @property
    def num_right(self) -> NDArray[np.float64]:
        """Right answers of each network and seed, M×S."""
        M, S = self.gram.shape[:2]
        return np.diag(self.gram.reshape(M * S, M * S)).reshape(M, S)

    def differences(self, i: int, j: int) -> NDArray[np.float64]:
        """Return the products of the seeds' rows of differences of two networks, S×S."""
        g = self.gram
        return g[i, :, i] - g[i, :, j] - g[j, :, i] + g[j, :, j]

    def pair(self, i: int, j: int) -> CrossedVariance:
        """Return what `CrossedVariance.of` finds of the differences of two networks."""
        products, S = self.differences(i, j), self.gram.shape[1]
        return CrossedVariance.of_sums(
            num_images=self.num_images + 2,
            seed_sums=self.num_right[i] - self.num_right[j],
            image_sums_squared=float(products.sum()) + 2 * S**2,
            squared=float(np.trace(products)) + 2 * S,
        )

    def accuracy(self, i: int) -> CrossedVariance:
        """Return what `CrossedVariance.of` finds of the right answers of a network."""
        products, S = self.gram[i, :, i], self.gram.shape[1]
        return CrossedVariance.of_sums(
            num_images=self.num_images + 2,
            seed_sums=self.num_right[i] + 1,
            image_sums_squared=float(products.sum()) + S**2,
            squared=float(np.trace(products)) + S,
        )

    def pairs(self) -> list[CrossedVariance]:
        """Return `pair` of all pairs."""
        return [self.pair(i, j) for i, j in pairs_of(len(self.gram))]


def intervals(chances: Sequence[CrossedVariance], level: float = LEVEL) -> Verdicts:
    """Return the intervals of all pairs of a study, as the program has them."""
    num_networks = round((1 + np.sqrt(1 + 8 * len(chances))) / 2)
    critical = interpolated_critical(level, num_networks)
    bounds = []
    for chance, (seeds, dof) in zip(chances, seeds_variances(chances, num_networks), strict=True):
        error, error_dof = chance.error(seeds, dof)
        half = error * critical(error_dof)
        bounds.append((chance.mean - half, chance.mean + half))
    return np.array(bounds)


def p_value_before(products: NDArray[np.float64], seed_sums: Array, num_images: int) -> float:
    """Return the p-value of a pair in version 0.1.0, before Holm's correction.

    Args:
        products: of the seeds' rows of differences, S×S.
        seed_sums: of the differences.
        num_images: of the test set.
    """
    S, N = len(seed_sums), num_images
    chance = CrossedVariance.of_sums(N, seed_sums, float(products.sum()), float(np.trace(products)))
    square_seeds = N * chance.seeds + chance.rest
    total = square_seeds + S * chance.images
    dof = total**2 / (square_seeds**2 / (S - 1)) if square_seeds > 0 else N - 1
    error = np.sqrt(total / (S * N))
    p_seeds = 2 * special.stdtr(dof, -abs(chance.mean) / error) if error else chance.mean == 0
    discordant = np.diag(products)
    first, second = (discordant + seed_sums) / 2, (discordant - seed_sums) / 2
    p = np.minimum(1, 2 * special.bdtr(np.minimum(first, second), discordant.astype(int), 0.5))
    score = -(np.sign(first - second) * special.ndtri(p / 2)).sum()
    centred = products - np.outer(seed_sums, seed_sums) / N
    norms = np.sqrt(np.diag(centred))
    some = norms > 0
    n = int(some.sum())
    correlation = 0.0
    if n > 1:
        scaled = centred[np.ix_(some, some)] / np.outer(norms[some], norms[some])
        correlation = (float(scaled.sum()) - n) / (n * (n - 1))
    spread = np.sqrt(S + S * (S - 1) * max(0.0, correlation))
    return max(float(p_seeds), float(2 * special.ndtr(-abs(score) / spread)))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values after Holm's correction."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    steps = len(p_values) - np.arange(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * steps)
    return adjusted


def _holds(chance: CrossedVariance, accuracy: float) -> bool:
    """Whether the interval of a network's accuracy holds the true one."""
    error, dof = chance.error(chance.seeds, chance.num_seeds - 1)
    return bool(abs(chance.mean - accuracy) <= error * special.stdtrit(dof, 1 - LEVEL / 2))


def simulate(
    world: World, num_seeds: int, count: int, *, sizes: Sequence[int], seed: int = 0
) -> dict[int, dict[str, float]]:
    """Return what verdicts do in studies of `world`: shares from 0 to 1.

    Args:
        world: what is drawn from.
        num_seeds: of each study.
        count: of studies.
        sizes: numbers of networks; each study is one of its first so many networks.
        seed: of the draws.

    Returns:
        By size: `false`, studies in which an interval leaves out 0 though the two are equal, or on
        the wrong side; `covered`, studies in which all intervals hold the truth; `width`, half of
        an interval, in points; `accuracy_covered`, networks whose own interval holds the truth;
        `power`, pairs one point apart that are told apart; `false_before` and `power_before` as in
        version 0.1.0.
    """
    accuracies = np.array(world.accuracies)
    truth = np.array([accuracies[i] - accuracies[j] for i, j in pairs_of(len(accuracies))])
    apart = np.isclose(truth, ONE_POINT)
    totals: dict[int, dict[str, float]] = {size: defaultdict(float) for size in sizes}
    for answers in world.studies(count, num_seeds, seed):
        products = Products.of(answers)
        all_chances = products.pairs()
        right = products.num_right
        all_before = np.array(
            [
                p_value_before(products.differences(i, j), right[i] - right[j], world.num_images)
                for i, j in pairs_of(len(accuracies))
            ]
        )
        held = [_holds(products.accuracy(i), accuracy) for i, accuracy in enumerate(accuracies)]
        for size, total in totals.items():
            part = slice(len(pairs_of(size)))
            lo, hi = intervals(all_chances[part]).T
            true, one_apart = truth[part], apart[part]
            wrong = ((lo > 0) & (true <= 0)) | ((hi < 0) & (true >= 0))
            before = holm(all_before[part]) < LEVEL
            total["false"] += bool(wrong.any())
            total["covered"] += bool(((lo <= true) & (true <= hi)).all())
            total["width"] += 50 * float((hi - lo).mean())
            total["accuracy_covered"] += float(np.mean(held[:size]))
            total["false_before"] += bool((before & (true == 0)).any())
            if one_apart.any():
                total["power"] += float((lo[one_apart] > 0).mean())
                total["power_before"] += float(before[one_apart].mean())
    return {
        size: {key: value / count for key, value in total.items()} for size, total in totals.items()
    }


def simulate_looks(
    world: World, count: int, *, sizes: Sequence[int], seed: int = 0
) -> dict[int, float]:
    """Return by number of networks the share of studies with a false verdict at any look.

    The networks of `world` are equal. No study stops before the last look, so that none is spared
    a false verdict by stopping for another reason.
    """
    false: Counter[int] = Counter()
    for answers in world.studies(count, LOOKS[-1], seed):
        products = Products.of(answers)
        looks = [products.first_seeds(look).pairs() for look in LOOKS]
        for size in sizes:
            part = slice(len(pairs_of(size)))
            bounds = np.stack([intervals(chances[part], LOOK_LEVEL) for chances in looks])
            false[size] += bool(((bounds[..., 0] > 0) | (bounds[..., 1] < 0)).any())
    return {size: false[size] / count for size in sizes}


BESIDE = {
    "100 images at 90%": World((0.9,) * 5, (0.4,) * 5, 100),
    "100 images at 99%": World((0.99,) * 5, (0.1,) * 5, 100),
    "1,000 images at 99%": World((0.99,) * 5, (0.1,) * 5, 1_000),
    "seeds of one network vary 3 times as much": World((0.9,) * 5, (0.6, *(0.2,) * 4)),
    "seeds of one network vary 10 times as much": World((0.9,) * 5, (1.0, *(0.1,) * 4)),
    "seeds that fail now and then": World((0.9,) * 5, (0.6,) * 5, skewed=True),
}
"""Settings beside the table: few images, unequal and skewed seeds."""


def main() -> None:
    """Simulate all settings and print them, one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=1_000, metavar="N", help="of each setting")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="what to keep them in")
    args = parser.parse_args()
    if args.studies < 1:
        parser.error(f"--studies {args.studies} is out of range; allowed: 1 or more")
    found: dict[str, Any] = {
        "studies": args.studies,
        "command": "python benchmarks/verdicts.py " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "table": [],
        "beside": [],
        "looks": [],
    }

    def keep(part: str, numbers: dict[str, Any]) -> None:
        print(json.dumps(numbers), flush=True)
        found[part].append(numbers)
        if args.out is not None:
            args.out.write_text(json.dumps(found, indent=1) + "\n")

    for num_seeds in SEEDS:
        for points in DEVIATIONS:
            for step in (0.0, ONE_POINT):
                accuracies = tuple(round(0.9 - step * i, 4) for i in range(NETWORKS[-1]))
                world = World(accuracies, (points,) * NETWORKS[-1])
                shares = simulate(world, num_seeds, args.studies, sizes=NETWORKS)
                for size, numbers in shares.items():
                    name = {"seeds": num_seeds, "networks": size, "points": points, "step": step}
                    keep("table", name | numbers)
    for points in DEVIATIONS:
        world = World((0.9,) * NETWORKS[-1], (points,) * NETWORKS[-1])
        for size, share in simulate_looks(world, args.studies, sizes=NETWORKS).items():
            keep("looks", {"networks": size, "points": points, "false": share})
    for setting, world in BESIDE.items():
        for num_seeds in (2, 3, 5):
            numbers = simulate(world, num_seeds, args.studies, sizes=NETWORKS[-1:])[NETWORKS[-1]]
            keep("beside", {"setting": setting, "seeds": num_seeds} | numbers)


if __name__ == "__main__":
    main()
