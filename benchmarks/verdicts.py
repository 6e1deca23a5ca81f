"""How often verdicts are false, and what they see, by simulation of whole studies.

    python benchmarks/verdicts.py [--studies 1000] [--out FILE.json]

A latent model, independent of what the verdicts assume: an answer is right with the probability
logistic(level + difficulty of the image, shared by all networks + what a network makes of the image +
what a seed of the network makes of all images). Image effects are normal with deviations of 1.5 and
0.7, seeds' such that accuracy differs by so many points between seeds. Networks have 90% at first.

A study without a difference that prints one "is better than" or more has a false verdict. Coverage is
the share of studies whose intervals hold all true differences at once. Power is the share of pairs
one point apart that are told apart. "Before" is what the program did until version 0.1.0: no floor
below the variance between seeds, each pair for itself, the larger p-value of that and of McNemar's
combined test, Holm's correction.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
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
    crossed_interval,
    seeds_variances,
)

DIFFICULTY, TASTE = 1.5, 0.7
"""Deviations of the image's effect on all networks, and on one, in logits."""

SEEDS = (2, 3, 5, 10)
NETWORKS = (2, 3, 5)  # 1, 3 and 10 pairs
DEVIATIONS = (0.2, 0.4, 0.6)  # of accuracy between seeds, points
ONE_POINT = 0.01

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
        return lambda dof: critical_value(level, 2, dof)
    inverse = np.concatenate([[1 / MANY], np.geomspace(1e-4, 1.5, 40)])
    logs = np.log([critical_value(level, num_networks, 1 / i) for i in inverse])
    return lambda dof: float(np.exp(np.interp(1 / dof, inverse, logs)))


Verdicts = NDArray[np.float64]  # pairs × (lo, hi)


def intervals(answers: Answers, level: float = LEVEL) -> Verdicts:
    """Return the intervals of all pairs (i, j), i < j, as the program has them."""
    M = len(answers)
    right = answers.astype(np.float64)
    chances = [
        CrossedVariance.of(right[i] - right[j], -1.0, 1.0)
        for i in range(M)
        for j in range(i + 1, M)
    ]
    critical = interpolated_critical(level, M)
    bounds = []
    for chance, (seeds, dof) in zip(chances, seeds_variances(chances, M), strict=True):
        error, error_dof = chance.error(seeds, dof)
        half = error * critical(error_dof)
        bounds.append((chance.mean - half, chance.mean + half))
    return np.array(bounds)


def told_apart_before(answers: Answers) -> NDArray[np.bool_]:
    """Return for all pairs (i, j), i < j, whether version 0.1.0 told them apart."""
    M, S, N = answers.shape
    p_values = []
    for i in range(M):
        for j in range(i + 1, M):
            d = answers[i].astype(np.float64) - answers[j]
            of_seeds, of_images, mean = d.mean(1), d.mean(0), d.mean()
            square_seeds = N * float(np.square(of_seeds - mean).sum()) / (S - 1)
            square_images = S * float(np.square(of_images - mean).sum()) / (N - 1)
            whole = float(np.square(d - mean).sum())
            rest = whole - square_seeds * (S - 1) - square_images * (N - 1)
            square_rest = rest / ((S - 1) * (N - 1))
            total = square_seeds + max(0.0, square_images - square_rest)
            dof = total**2 / (square_seeds**2 / (S - 1)) if square_seeds > 0 else N - 1
            error = np.sqrt(total / (S * N))
            p_seeds = 2 * stats.t.sf(abs(mean) / error, dof) if error > 0 else float(mean == 0)
            p_values.append(max(float(p_seeds), _mcnemar_combined(d)))
    order = np.argsort(p_values)
    steps = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(np.array(p_values)[order] * steps)
    return adjusted < LEVEL


def _mcnemar_combined(d: NDArray[np.float64]) -> float:
    S, N = d.shape
    first, second = (d > 0).sum(1), (d < 0).sum(1)
    p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5))
    score = (np.sign(first - second) * stats.norm.isf(p / 2)).sum()
    centred = d - d.mean(1, keepdims=True)
    norms = np.sqrt(np.square(centred).sum(1))
    scaled = centred[norms > 0] / norms[norms > 0, None]
    n = len(scaled)
    r = (float(np.square(scaled.sum(0)).sum()) - n) / (n * (n - 1)) if n > 1 else 0.0
    return float(2 * stats.norm.sf(abs(score) / np.sqrt(S + S * (S - 1) * max(0.0, r))))


def simulate(
    world: World, num_seeds: int, count: int, *, seed: int = 0, before: bool = True
) -> dict[str, float]:
    """Return what verdicts do in studies of `world`: shares from 0 to 1.

    Returns:
        `false`: studies in which an interval leaves out 0 though the two are equal, or leaves out
        0 on the wrong side; `covered`: studies in which all intervals hold the truth;
        `accuracy_covered`: networks whose own interval does; `power`: pairs one point apart that
        are told apart; `width`: half the width of an interval, in points; `false_before` and
        `power_before` as version 0.1.0.
    """
    accuracies = np.array(world.accuracies)
    M = len(accuracies)
    pairs = [(i, j) for i in range(M) for j in range(i + 1, M)]
    truth = np.array([accuracies[i] - accuracies[j] for i, j in pairs])
    apart = np.isclose(truth, ONE_POINT)
    keys = ["false", "covered", "accuracy_covered", "width"]
    if apart.any():
        keys.append("power")
    totals = dict.fromkeys(keys, 0.0)
    if before:
        totals |= {f"{key}_before": 0.0 for key in ("false", "power") if key in totals}
    for answers in world.studies(count, num_seeds, seed):
        lo, hi = intervals(answers).T
        told = (lo > 0) | (hi < 0)
        wrong = ((lo > 0) & (truth <= 0)) | ((hi < 0) & (truth >= 0))
        totals["false"] += bool(wrong.any())
        totals["covered"] += bool(((lo <= truth) & (truth <= hi)).all())
        totals["width"] += 50 * float((hi - lo).mean())
        own = [crossed_interval(right.astype(np.float64)) for right in answers]
        totals["accuracy_covered"] += float(
            np.mean(
                [
                    i.lo is not None and i.hi is not None and i.lo <= a <= i.hi
                    for i, a in zip(own, accuracies, strict=True)
                ]
            )
        )
        if apart.any():
            totals["power"] += float(told[apart].mean())
        if before:
            told_before = told_apart_before(answers)
            totals["false_before"] += bool((told_before & (truth == 0)).any())
            if apart.any():
                totals["power_before"] += float(told_before[apart].mean())
    return {key: total / count for key, total in totals.items()}


def simulate_looks(world: World, count: int, *, seed: int = 0) -> dict[str, float]:
    """Return the share of studies with a false verdict at any look, and the mean of the seeds."""
    false, seeds = 0, 0
    for answers in world.studies(count, LOOKS[-1], seed):
        for look in LOOKS:
            lo, hi = intervals(answers[:, :look], LOOK_LEVEL).T
            if ((lo > 0) | (hi < 0)).any():
                false += 1
                break
        seeds += look
    return {"false": false / count, "seeds": seeds / count}


def cells(deviations: Sequence[float] = DEVIATIONS) -> Iterator[tuple[dict[str, Any], World, int]]:
    """Return the settings of the table: what they are called, the world, and the seeds."""
    for num_seeds in SEEDS:
        for M in NETWORKS:
            for points in deviations:
                for step in (0.0, ONE_POINT):
                    accuracies = tuple(round(0.9 - step * i, 4) for i in range(M))
                    name = {"seeds": num_seeds, "networks": M, "points": points, "step": step}
                    yield name, World(accuracies, (points,) * M), num_seeds


def special_cells() -> Iterator[tuple[dict[str, Any], World, int]]:
    """Return the settings beside the table: few images, unequal and skewed seeds."""
    for num_seeds in (2, 3, 5):
        for label, world in (
            ("100 images at 90%", World((0.9,) * 5, (0.4,) * 5, 100)),
            ("100 images at 99%", World((0.99,) * 5, (0.1,) * 5, 100)),
            ("1,000 images at 99%", World((0.99,) * 5, (0.1,) * 5, 1_000)),
            ("one of five networks varies 3 times as much", World((0.9,) * 5, (0.6,) + (0.2,) * 4)),
            ("one of five networks varies 10 times as much", World((0.9,) * 5, (1.0,) + (0.1,) * 4)),
            ("skewed seeds", World((0.9,) * 5, (0.6,) * 5, skewed=True)),
        ):  # fmt: skip
            yield {"setting": label, "seeds": num_seeds}, world, num_seeds


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

    for name, world, num_seeds in cells():
        keep("table", name | simulate(world, num_seeds, args.studies))
    for name, world, num_seeds in special_cells():
        keep("beside", name | simulate(world, num_seeds, args.studies))
    for M in NETWORKS:
        for points in DEVIATIONS:
            looks = simulate_looks(World((0.9,) * M, (points,) * M), args.studies)
            keep("looks", {"networks": M, "points": points} | looks)


if __name__ == "__main__":
    main()
