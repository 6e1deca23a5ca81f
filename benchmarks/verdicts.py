"""How often verdicts are false, and what they see, by simulation of whole studies.

    python benchmarks/verdicts.py [--studies 1000] [--out FILE.json]

A latent model, independent of what the verdicts assume: an answer is right with the probability
logistic(level + difficulty of the image, shared by all networks + what a network makes of the image
+ what a seed of the network makes of all images, or of each class). Image effects are normal with
deviations of 1.5 and 0.7, seeds' such that accuracy differs by so many points between seeds. 10,000
images, and networks of 90% where nothing else is said.

A study without a difference that prints one "is better than" or more has a false verdict. Coverage
is the share of studies whose intervals hold all true differences at once. Power is the share of
pairs one point apart that are told apart. "Before" is what the program did until version 0.1.0: no
floor below the variance between seeds, each pair for itself, the larger p-value of that and of
McNemar's combined test, Holm's correction. "Pooled" is the test before networks were allowed to
vary differently: the mean variance of all pairs with all their degrees of freedom, or the pair's
own where that is larger.

All studies of a setting are tested at once, by formulas of their own;
tests/studies/test_verdicts.py holds them against what the program finds of the same answers.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
from arguments import parse_simulation
from numpy.typing import NDArray
from scipy import interpolate, optimize, special, stats

from halfmeg.studies.pooled import all_pairs
from halfmeg.studies.power import LOOK_LEVEL, LOOKS
from halfmeg.studies.reading import MARGIN
from halfmeg.studies.stats import LEVEL, MANY

DIFFICULTY, TASTE = 1.5, 0.7
"""Deviations of the image's effect on all networks, and on one, in logits."""

MEASURED_DIFFICULTY = 2.5
"""At which images and the rest vary as they did on CIFAR-10 (JPEG): 0.10 and 0.11 at 71%."""

NUM_CLASSES = 10

SEEDS = (2, 3, 5, 10)
NETWORKS = (2, 3, 5)  # 1, 3 and 10 pairs
DEVIATIONS = (0.2, 0.4, 0.6)  # of accuracy between seeds, points
ONE_POINT = 0.01

Array = NDArray[np.float64]
Answers = NDArray[np.bool_]  # of a study: networks × seeds × images


@cache
def _grid(difficulty: float) -> NDArray[np.float64]:
    """Return the image effects of a network at the quantiles of their distribution."""
    ranks = (np.arange(20_000) + 0.5) / 20_000
    effects: NDArray[np.float64] = stats.norm.ppf(ranks) * np.hypot(difficulty, TASTE)
    return effects


def expected_accuracy(logit: float, seed_deviation: float, difficulty: float) -> float:
    """Return the accuracy over all images and seeds (normal ones), of a network's logit."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    effects = _grid(difficulty)
    means = [special.expit(logit + seed_deviation * node + effects).mean() for node in nodes]
    return float(np.dot(means, weights) / weights.sum())


@cache
def seed_deviation(accuracy: float, points: float, difficulty: float) -> float:
    """Return the deviation of a seed's logit that makes accuracy differ by so many points."""
    logit = logit_of(accuracy, 0.0, difficulty)
    probabilities = special.expit(logit + _grid(difficulty))
    return points / 100 / float((probabilities * (1 - probabilities)).mean())


@cache
def logit_of(accuracy: float, deviation: float, difficulty: float) -> float:
    """Return the logit at which a network has that accuracy over all images and seeds."""

    def missing(logit: float) -> float:
        return expected_accuracy(logit, deviation, difficulty) - accuracy

    return float(optimize.brentq(missing, -10, 20))


@dataclass(frozen=True)
class World:
    """What studies are drawn from.

    Attributes:
        accuracies: of each network, over all images and seeds.
        points: deviation of accuracy between seeds of each network, in points.
        num_images: in the test set.
        skewed: whether seeds fail now and then (exponential) rather than vary evenly (normal).
        difficulty: deviation of the image's effect on all networks, in logits.
        class_points: deviation of the accuracy of each of ten classes between seeds, in points,
            beside that of all images; 0: a seed makes the same of all classes.
        groups: of as many images each, of which a network makes something alike; 0 for none.
        group_effect: deviation of that, in logits.
    """

    accuracies: tuple[float, ...]
    points: tuple[float, ...]
    num_images: int = 10_000
    skewed: bool = False
    difficulty: float = DIFFICULTY
    class_points: float = 0.0
    groups: int = 0
    group_effect: float = 0.0

    def studies(self, count: int, num_seeds: int, seed: int = 0) -> Iterator[Answers]:
        """Draw studies: right answers of each network, seed and image."""
        rng = np.random.default_rng((seed, num_seeds, self.num_images))
        M, S, N = len(self.accuracies), num_seeds, self.num_images
        hard = float(np.hypot(self.difficulty, self.group_effect))
        spreads = np.array(
            [seed_deviation(a, p, hard) for a, p in zip(self.accuracies, self.points, strict=True)]
        )
        of_classes = np.array([seed_deviation(a, self.class_points, hard) for a in self.accuracies])
        all_spreads = np.hypot(spreads, of_classes)
        logits = np.array(
            [logit_of(a, s, hard) for a, s in zip(self.accuracies, all_spreads, strict=True)],
            np.float32,
        )
        classes = np.arange(N) % NUM_CLASSES
        for _ in range(count):
            images = rng.normal(size=N).astype(np.float32) * self.difficulty
            tastes = rng.normal(size=(M, N)).astype(np.float32) * TASTE
            if self.groups:
                of_groups = rng.normal(size=(M, self.groups)).astype(np.float32) * self.group_effect
                tastes += of_groups[:, np.arange(N) % self.groups]
            odds = np.exp(logits[:, None] + images + tastes)  # M×N
            effects = 1 - rng.exponential(size=(M, S)) if self.skewed else rng.normal(size=(M, S))
            against = np.exp(-spreads[:, None] * effects).astype(np.float32)[:, :, None]  # M×S×1
            if self.class_points:
                by_class = of_classes[:, None, None] * rng.normal(size=(M, S, NUM_CLASSES))
                against = against * np.exp(-by_class).astype(np.float32)[:, :, classes]  # M×S×N
            drawn = rng.random((M, S, N), np.float32)
            # u < odds / (odds + against), that is, right with the logistic probability
            yield drawn * (odds[:, None] + against) < odds[:, None]


@cache
def interpolated_critical(level: float, num_networks: int) -> Callable[[Array], Array]:
    """Return `critical_value` by degrees of freedom, which scipy takes 100 ms for.

    The range of `num_networks` normal variables, on a grid, is integrated over the distribution of
    the standard error, and the result solved for the level at 60 degrees of freedom.
    """
    if num_networks == 2:
        return lambda dof: np.asarray(special.stdtrit(dof, 1 - level / 2))
    widths, z = np.linspace(0, 14, 701), np.linspace(-9, 9, 1_801)
    inner = special.ndtr(z) - special.ndtr(z - widths[:, None])
    shares = num_networks * (stats.norm.pdf(z) * inner ** (num_networks - 1)).sum(1) * (z[1] - z[0])
    within = interpolate.make_interp_spline(widths, shares)
    nodes, weights = np.polynomial.legendre.leggauss(400)

    def solve(dof: float) -> float:
        lo, hi = np.log(stats.chi2.ppf([1e-9, 1 - 1e-13], dof))
        logs = lo + (nodes + 1) / 2 * (hi - lo)
        errors = np.sqrt(np.exp(logs) / dof)
        density = stats.chi2.pdf(np.exp(logs), dof) * np.exp(logs) * weights * (hi - lo) / 2

        def missing(distance: float) -> float:
            reached = within(np.minimum(distance * np.sqrt(2) * errors, widths[-1]))
            return float(1 - level - (density * reached).sum())

        return float(optimize.brentq(missing, 0.5, 1e4))

    inverse = np.concatenate([[1e-4], np.geomspace(1e-3, 1.0, 59)])
    spline = interpolate.PchipInterpolator(inverse, np.log([solve(1 / i) for i in inverse]))
    return lambda dof: np.asarray(np.exp(spline(np.clip(1 / dof, inverse[0], 1.0))))


@dataclass(frozen=True)
class Variances:
    """What `CrossedVariance` is of one table, of many at once: arrays, the last axis of pairs."""

    num_seeds: int
    num_images: int
    mean: Array
    seeds: Array
    images: Array
    rest: Array

    @classmethod
    def of_sums(
        cls, num_images: int, seed_sums: Array, image_sums_squared: Array, squared: Array
    ) -> Variances:
        """Estimate from sums, as `CrossedVariance.of_sums`; seeds are the last axis."""
        S, N = seed_sums.shape[-1], num_images
        mean = seed_sums.sum(-1) / (S * N)
        of_mean = S * N * mean**2
        of_seeds = np.square(seed_sums).sum(-1) / N - of_mean
        of_images = image_sums_squared / S - of_mean
        square_seeds, square_images = of_seeds / (S - 1), of_images / (N - 1)
        of_rest = np.maximum(0, squared - of_mean - of_seeds - of_images)
        rest = of_rest / ((S - 1) * (N - 1))
        images = np.maximum(0, (square_images - rest) / S)
        return cls(S, N, mean, (square_seeds - rest) / N, images, rest)

    def first(self, count: int) -> Variances:
        """Return those of the first pairs."""
        parts = (self.mean, self.seeds, self.images, self.rest)
        return Variances(self.num_seeds, self.num_images, *(part[..., :count] for part in parts))

    def error(self, seeds: Array, seeds_dof: Array | int) -> tuple[Array, Array]:
        """Return the standard error and its degrees of freedom, as `CrossedVariance.error`."""
        over_seeds = (np.maximum(0, seeds) + self.rest / self.num_images) / self.num_seeds
        total = over_seeds + self.images / self.num_images
        with np.errstate(divide="ignore"):  # without chance between seeds they are many
            dof = np.minimum(seeds_dof * (total / over_seeds) ** 2, MANY)
        return np.sqrt(total), dof


@dataclass(frozen=True)
class Products:
    """The products of all rows of right answers, from which all statistics of studies follow.

    Attributes:
        gram: right answers that two networks with a seed each share, studies × M×S×M×S.
        num_images: of the test set.
    """

    gram: Array
    num_images: int

    @classmethod
    def of(cls, studies: Iterator[Answers]) -> Products:
        """Multiply the answers of studies; counts below 2^24 are exact in float32."""
        grams = []
        for answers in studies:
            M, S, N = answers.shape
            rows = answers.reshape(M * S, N).astype(np.float32)
            grams.append((rows @ rows.T).astype(np.float64).reshape(M, S, M, S))
        return cls(np.stack(grams), N)

    def first_seeds(self, count: int) -> Products:
        """Return those of the studies' first seeds."""
        return Products(self.gram[:, :, :count, :, :count], self.num_images)

    @property
    def num_right(self) -> Array:
        """Right answers, studies × networks × seeds."""
        right: Array = np.einsum("bmsms->bms", self.gram)
        return right

    def differences(self) -> tuple[Array, Array]:
        """Return products and sums of the seeds' rows of differences, studies × pairs × S (×S)."""
        first, second = np.array(all_pairs(self.gram.shape[1])).T
        g = self.gram.transpose(1, 3, 0, 2, 4)
        products = g[first, first] - g[first, second] - g[second, first] + g[second, second]
        return products.swapaxes(0, 1), self.num_right[:, first] - self.num_right[:, second]

    def pairs(self) -> Variances:
        """Return what `CrossedVariance.of` finds of the differences of all pairs."""
        (products, seed_sums), S = self.differences(), self.gram.shape[2]
        return Variances.of_sums(
            num_images=self.num_images + 2,
            seed_sums=seed_sums,
            image_sums_squared=products.sum((-2, -1)) + 2 * S**2,
            squared=np.einsum("bpss->bp", products) + 2 * S,
        )

    def accuracies(self) -> Variances:
        """Return what `CrossedVariance.of` finds of the right answers of each network."""
        products, S = np.einsum("bmsmt->bmst", self.gram), self.gram.shape[2]
        return Variances.of_sums(
            num_images=self.num_images + 2,
            seed_sums=self.num_right + 1,
            image_sums_squared=products.sum((-2, -1)) + S**2,
            squared=np.einsum("bmss->bm", products) + S,
        )


def seeds_variances(chances: Variances, num_networks: int) -> tuple[Array, Array]:
    """Return what the program's function of this name does, studies × pairs."""
    freedom, own = chances.num_seeds - 1, chances.seeds
    of_rest = chances.rest / chances.num_images
    members = np.zeros((own.shape[-1], num_networks))
    for row, pair in enumerate(all_pairs(num_networks)):
        members[row, list(pair)] = 1
    networks = np.maximum(0, (own + of_rest) @ np.linalg.pinv(members).T)
    pooled = own.mean(-1, keepdims=True)
    variances = np.maximum(np.maximum(own, pooled), networks @ members.T - of_rest)
    squared = np.square(networks).sum(-1)
    alike = np.full(squared.shape, float(num_networks))
    np.divide(networks.sum(-1) ** 2, squared, out=alike, where=squared > 0)
    dofs = np.clip(freedom * alike, freedom, freedom * (num_networks - 1))
    return variances, np.broadcast_to(dofs[..., None], own.shape)


def pooled_variances(chances: Variances, num_networks: int) -> tuple[Array, Array]:
    """Return the same as though all networks varied alike."""
    pooled = chances.seeds.mean(-1, keepdims=True)
    dof = np.full(chances.seeds.shape, float((num_networks - 1) * (chances.num_seeds - 1)))
    return np.maximum(chances.seeds, pooled), dof


def intervals(
    chances: Variances,
    num_networks: int,
    level: float = LEVEL,
    variances: Callable[[Variances, int], tuple[Array, Array]] = seeds_variances,
) -> tuple[Array, Array]:
    """Return the ends of the intervals of all pairs of studies, as the program has them."""
    error, dof = chances.error(*variances(chances, num_networks))
    half = error * interpolated_critical(level, num_networks)(dof)
    return chances.mean - half, chances.mean + half


def howe(chances: Variances) -> Array:
    """Return half of the interval of Howe 1974, "Approximate confidence limits on the mean of X+Y".

    Each source of chance has its own degrees of freedom, seeds - 1 and many, in place of common
    ones by Satterthwaite. It was tried for the accuracy of a network (docs/statistics.md).
    """
    S, N = chances.num_seeds, chances.num_images
    over_seeds = (np.maximum(0, chances.seeds) + chances.rest / N) / S
    of_seeds, of_images = (stats.t.isf(LEVEL / 2, dof) ** 2 for dof in (S - 1, MANY))
    half: Array = np.sqrt(of_seeds * over_seeds + of_images * chances.images / N)
    return half


def p_values_before(products: Array, seed_sums: Array, num_images: int) -> Array:
    """Return the p-values of pairs in version 0.1.0, before Holm's correction.

    Args:
        products: of the seeds' rows of differences, … × S×S.
        seed_sums: of the differences, … × S.
        num_images: of the test set.
    """
    S, N = seed_sums.shape[-1], num_images
    discordant = np.einsum("...ss->...s", products)
    chance = Variances.of_sums(N, seed_sums, products.sum((-2, -1)), discordant.sum(-1))
    square_seeds = N * chance.seeds + chance.rest
    total = square_seeds + S * chance.images
    with np.errstate(divide="ignore", invalid="ignore"):
        dof = np.where(square_seeds > 0, total**2 / (square_seeds**2 / (S - 1)), N - 1)
        distance = np.abs(chance.mean) / np.sqrt(total / (S * N))
    p_seeds = np.where(total > 0, 2 * special.stdtr(dof, -distance), chance.mean == 0)
    first, second = (discordant + seed_sums) / 2, (discordant - seed_sums) / 2
    p = np.minimum(1, 2 * special.bdtr(np.minimum(first, second), discordant.astype(int), 0.5))
    score = -(np.sign(first - second) * special.ndtri(p / 2)).sum(-1)
    centred = products - seed_sums[..., :, None] * seed_sums[..., None, :] / N
    norms = np.sqrt(np.einsum("...ss->...s", centred))
    n = (norms > 0).sum(-1)
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    scaled = np.einsum("...st,...s,...t->...", centred, inverse, inverse)
    correlation = np.where(n > 1, (scaled - n) / np.maximum(1, n * (n - 1)), 0)
    spread = np.sqrt(S + S * (S - 1) * np.maximum(0, correlation))
    p_images: Array = 2 * special.ndtr(-np.abs(score) / spread)
    p_value: Array = np.maximum(p_seeds, p_images)
    return p_value


def holm(p_values: Array) -> Array:
    """Return p-values, studies × pairs, after Holm's correction."""
    order = np.argsort(p_values, axis=-1)
    steps = p_values.shape[-1] - np.arange(p_values.shape[-1])
    rising = np.maximum.accumulate(np.take_along_axis(p_values, order, -1) * steps, axis=-1)
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, rising, -1)
    return adjusted


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
        an interval, in points; `accuracy_covered`, networks whose own interval holds the truth, and
        `accuracy_width`, half of that interval; both also by Howe's interval. `power`, pairs one
        point apart that are told apart; `same`, equal pairs that are called the same within a
        point, and `same_false`, pairs a whole point apart that are. `false_before` and
        `power_before` as in version 0.1.0, `false_pooled` and `power_pooled` as though all networks
        varied alike.
    """
    accuracies = np.array(world.accuracies)
    truth = np.array([accuracies[i] - accuracies[j] for i, j in all_pairs(len(accuracies))])
    apart = np.isclose(truth, ONE_POINT)
    drawn = Products.of(world.studies(count, num_seeds, seed))
    every = drawn.pairs()
    all_before = p_values_before(*drawn.differences(), world.num_images)
    alone = drawn.accuracies()
    distance = np.abs(alone.mean - accuracies)
    error, dof = alone.error(alone.seeds, num_seeds - 1)
    half, half_howe = error * special.stdtrit(dof, 1 - LEVEL / 2), howe(alone)
    found: dict[int, dict[str, float]] = {}
    for size in sizes:
        part = slice(len(all_pairs(size)))
        true, one_apart, chances = truth[part], apart[part], every.first(part.stop)
        lo, hi = intervals(chances, size)
        same = (lo > -MARGIN) & (hi < MARGIN)
        lo_pooled, hi_pooled = intervals(chances, size, variances=pooled_variances)
        before = holm(all_before[:, part]) < LEVEL

        def false(lo: Array, hi: Array, true: Array = true) -> float:
            wrong = ((lo > 0) & (true <= 0)) | ((hi < 0) & (true >= 0))
            return float(wrong.any(1).mean())

        found[size] = {
            "false": false(lo, hi),
            "covered": float(((lo <= true) & (true <= hi)).all(1).mean()),
            "width": 50 * float((hi - lo).mean()),
            "accuracy_covered": float((distance <= half)[:, :size].mean()),
            "accuracy_covered_howe": float((distance <= half_howe)[:, :size].mean()),
            "accuracy_width": 100 * float(half[:, :size].mean()),
            "accuracy_width_howe": 100 * float(half_howe[:, :size].mean()),
            "false_pooled": false(lo_pooled, hi_pooled),
            "false_before": float((before & (true == 0)).any(1).mean()),
        }
        if (true == 0).any():
            found[size]["same"] = float(same[:, true == 0].mean())
        if one_apart.any():
            found[size] |= {
                "same_false": float(same[:, one_apart].mean()),
                "power": float((lo[:, one_apart] > 0).mean()),
                "power_pooled": float((lo_pooled[:, one_apart] > 0).mean()),
                "power_before": float(before[:, one_apart].mean()),
            }
    return found


def simulate_looks(
    world: World, count: int, *, sizes: Sequence[int], seed: int = 0
) -> dict[int, float]:
    """Return by number of networks the share of studies with a false verdict at any look.

    The networks of `world` are equal. No study stops before the last look, so that none is spared
    a false verdict by stopping for another reason.
    """
    drawn = Products.of(world.studies(count, LOOKS[-1], seed))
    looks = [drawn.first_seeds(look).pairs() for look in LOOKS]
    shares = {}
    for size in sizes:
        ends = [intervals(c.first(len(all_pairs(size))), size, LOOK_LEVEL) for c in looks]
        false = [((lo > 0) | (hi < 0)).any(1) for lo, hi in ends]
        shares[size] = float(np.any(false, axis=0).mean())
    return shares


BESIDE = {
    "100 images at 90%": World((0.9,) * 5, (0.4,) * 5, 100),
    "100 images at 99%": World((0.99,) * 5, (0.1,) * 5, 100),
    "1,000 images at 99%": World((0.99,) * 5, (0.1,) * 5, 1_000),
    "seeds of one network vary 3 times as much": World((0.9,) * 5, (0.6, *(0.2,) * 4)),
    "seeds of one network vary 10 times as much": World((0.9,) * 5, (1.0, *(0.1,) * 4)),
    "seeds that fail now and then": World((0.9,) * 5, (0.6,) * 5, skewed=True),
    "seeds that vary by class": World((0.9,) * 5, (0.2,) * 5, class_points=2.0),
}
"""Settings beside the table: few images, unequal and skewed seeds, seeds × classes."""


def main() -> None:
    """Simulate all settings and print them, one line each."""
    args = parse_simulation(__doc__)
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
        for num_seeds in SEEDS:
            shares = simulate(world, num_seeds, args.studies, sizes=NETWORKS[1:])
            for size, numbers in shares.items():
                keep("beside", {"setting": setting, "seeds": num_seeds, "networks": size} | numbers)


if __name__ == "__main__":
    main()
