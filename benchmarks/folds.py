"""How often verdicts over folds are false, and what they see, by simulation of whole studies.

    python benchmarks/folds.py [--studies 1000] [--out FILE.json]

Real learners on drawn data, so that folds share training images as they do in use: two classes,
and nearest-mean classifiers, two of which see 10 features each, independent and equally telling; so
neither is better. For power the second sees fewer of its own. "Uncorrected" is Student's t on the
folds, "images alone" McNemar's test on all images.
"""

from __future__ import annotations

import json
import platform
import sys
from typing import Any

import numpy as np
from arguments import parse_simulation
from numpy.typing import NDArray
from scipy import stats

from halfmeg.studies.resampled import folded_interval, folded_tests
from halfmeg.studies.stats import LEVEL, mcnemar_p

FEATURES = 10
DISTANCE = 0.5
"""Between the means of the two classes in each feature, in standard deviations."""
FEWER = 3
"""Features that the worse classifier sees."""

Array = NDArray[np.float64]


def study(
    rng: np.random.Generator, num_images: int, folds: int, networks: int, seen: int = FEATURES
) -> list[list[Array]]:
    """Return right answers of each network to the test images of each fold.

    Args:
        rng: of the draws.
        num_images: in all folds together.
        folds: how many.
        networks: each with 10 features of its own.
        seen: features that all but the first see.
    """
    labels = np.arange(num_images) % 2
    images = rng.normal(size=(num_images, networks, FEATURES)) + DISTANCE * labels[:, None, None]
    members = rng.permutation(num_images // 2).repeat(2)[:num_images] % folds
    right: list[list[Array]] = [[] for _ in range(networks)]
    for fold in range(folds):
        train, test = members != fold, members == fold
        means = [images[train & (labels == label)].mean(0) for label in (0, 1)]
        distances = [np.square(images[test] - mean) for mean in means]
        for network in range(networks):
            used = slice(seen if network else FEATURES)
            far = [d[:, network, used].sum(-1) for d in distances]
            right[network].append(((far[1] < far[0]) == labels[test]).astype(np.float64))
    return right


def uncorrected_p(table: list[Array]) -> float:
    """Return Student's p-value of the folds' mean differences."""
    means = [fold.mean() for fold in table]
    return float(stats.ttest_1samp(means, 0).pvalue) if np.ptp(means) > 0 else 1.0


def simulate(
    num_images: int, folds: int, networks: int, count: int, seed: int = 0
) -> dict[str, float]:
    """Return shares of studies: false verdicts, by three tests, coverage and power.

    Coverage is of the first network's accuracy when trained on images like these, found on new
    ones: the mean over all studies.
    """
    names = ("false", "false_uncorrected", "false_images_alone", "power", "power_uncorrected")
    totals = dict.fromkeys(names, 0.0)
    ratio = 1 / (folds - 1)
    pairs = [(i, j) for i in range(networks) for j in range(i)]
    intervals = []
    rng = np.random.default_rng((seed, num_images, folds, networks))
    for _ in range(count):
        right = study(rng, num_images, folds, networks)
        tables = [[a - b for a, b in zip(right[i], right[j], strict=True)] for i, j in pairs]
        totals["false"] += any((t.p_adjusted or 0) < LEVEL for t in folded_tests(tables, ratio))
        totals["false_uncorrected"] += any(
            uncorrected_p(table) * len(pairs) < LEVEL for table in tables
        )
        totals["false_images_alone"] += any(
            mcnemar_p(np.concatenate(table)) * len(pairs) < LEVEL for table in tables
        )
        intervals.append(folded_interval(right[0], ratio))
        worse = study(rng, num_images, folds, 2, FEWER)
        table = [a - b for a, b in zip(*worse, strict=True)]
        (test,) = folded_tests([table], ratio)
        totals["power"] += (test.difference.lo or 0) > 0
        totals["power_uncorrected"] += test.difference.mean > 0 and uncorrected_p(table) < LEVEL
    truth = np.mean([interval.mean for interval in intervals])
    covered = [(i.lo or 0) <= truth <= (i.hi or 0) for i in intervals]
    return {name: total / count for name, total in totals.items()} | {
        "covered": float(np.mean(covered)), "accuracy": float(truth)
    }  # fmt: skip


def main() -> None:
    """Simulate all settings and print them, one line each."""
    args = parse_simulation(__doc__)
    found: dict[str, Any] = {
        "studies": args.studies,
        "command": "python benchmarks/folds.py " + " ".join(sys.argv[1:]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "settings": [],
    }
    for num_images in (100, 400):
        for folds in (3, 5, 10):
            for networks in (2, 3):
                numbers = simulate(num_images, folds, networks, args.studies)
                setting = {"images": num_images, "folds": folds, "networks": networks}
                found["settings"].append(setting | numbers)
                print(json.dumps(found["settings"][-1]), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
