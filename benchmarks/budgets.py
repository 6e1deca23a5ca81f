"""Accuracy by number of parameters, from finished runs: a curve for each recipe.

    python benchmarks/budgets.py RUN [RUN ...] --out FILE.png

Runs of one recipe and number of epochs, with a teacher or without, make a curve; those of one
budget in it, which differ in the seed, a point. No weights are read, so the runs of results/ can be
drawn again. Intervals are 95%: of other test images; where there are several seeds, of other seeds
on other test images. Runs on CIFAR-10's own pixels stand beside what others published there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from arguments import plain_parser
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from halfmeg.artifacts.run import Run
from halfmeg.studies.figures import COLOURS, INK, STYLE, write_figure
from halfmeg.studies.loaded import load_run
from halfmeg.studies.stats import crossed_interval, wilson_interval

CIFAR10 = "976c321e2b2723f8"
"""The fingerprint of its own pixels."""

PUBLISHED = (
    ("ResNet-20", 272_474, 92.60),  # github.com/chenyaofo/pytorch-cifar-models
    ("ResNet-32", 466_906, 93.53),
    ("SE-ResNet-20", 274_847, 93.99),  # github.com/osmr/imgclsmob
    ("DenseNet-40-BC", 176_122, 93.57),
    ("CondenseNet-50", 220_000, 93.78),  # Huang et al. 2018, "CondenseNet"
    ("CondenseNet-74", 410_000, 94.72),
    ("CondenseNet-94", 330_000, 95.00),
    ("cifar10-tiniest", 97_530, 94.40),  # github.com/xvel/cifar10-tiniest, the mean of 5 runs
    ("ResNet-8 of MLPerf Tiny", 78_666, 87.01),  # as trained by STMicroelectronics
)
"""Networks of fewer than 500,000 parameters: name, parameters, test accuracy in % without averaging
over several views of an image."""

CROWDED = {
    "SE-ResNet-20": ((5, 0), "left", "center"),
    "CondenseNet-50": ((0, -5), "center", "top"),
    "CondenseNet-74": ((-5, -4), "right", "center"),
}
"""Where names stand that would touch another's on the left of their cross."""

TICKS = (25_000, 50_000, 100_000, 200_000, 500_000)


class Point(NamedTuple):
    """The runs of one recipe at one budget."""

    params: int
    mean: float
    lo: float
    hi: float
    num_seeds: int


def read_curves(folders: Sequence[Path]) -> tuple[dict[str, list[Point]], str]:
    """Return each recipe's points, fewest parameters first, and the fingerprint of their data.

    Raises:
        ValueError: a folder is no run, has not finished, or is of other data than the first; two
            runs differ in nothing.
    """
    runs: dict[str, dict[int, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    fingerprints = set()
    for folder in folders:
        run = Run.open(folder)
        result = run.result()
        if result is None:
            raise ValueError(f"{folder} has not finished")
        fingerprints.add(run.data.fingerprint)
        if len(fingerprints) > 1:
            raise ValueError(f"{folder} was trained on other data than {folders[0]}")
        config = run.config
        taught = ", with a teacher" if config.teacher else ""
        label = f"{config.recipe}, {config.epochs} epochs{taught}"
        seeds = runs[label][result["params"]]
        if config.seed in seeds:
            raise ValueError(
                f"{folder} repeats seed {config.seed} at {result['params']:,} parameters"
            )
        seeds[config.seed] = run
    curves = {
        label: [_point(params, list(seeds.values())) for params, seeds in sorted(points.items())]
        for label, points in runs.items()
    }
    return curves, fingerprints.pop()


def _point(params: int, runs: list[Run]) -> Point:
    if len(runs) > 1:
        interval = crossed_interval(np.stack([load_run(run, runs[0]).right for run in runs]))
    else:
        result = runs[0].result() or {}
        n = result["test_n"]
        interval = wilson_interval(round(result["test_accuracy"] * n), n)
    assert interval.lo is not None
    assert interval.hi is not None
    return Point(params, interval.mean, interval.lo, interval.hi, len(runs))


def draw(
    curves: dict[str, list[Point]], published: Sequence[tuple[str, int, float]] = ()
) -> Figure:
    """Draw accuracy over parameters, these on a logarithmic scale, and what others published."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (label, points), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            params, means, lows, highs, _ = zip(*points, strict=True)
            axes.plot(params, [100 * m for m in means], color=colour, marker="o", label=label)
            low, high = ([100 * bound for bound in bounds] for bounds in (lows, highs))
            axes.fill_between(params, low, high, color=colour, alpha=0.2, lw=0)
        if published:
            _, others, accuracies = zip(*published, strict=True)
            axes.plot(others, accuracies, color=INK, marker="x", ls="", label="published by others")
        for name, of_other, accuracy in published:
            shift, ha, va = CROWDED.get(name, ((-5, 0), "right", "center"))
            axes.annotate(
                name, (of_other, accuracy), shift, textcoords="offset points", ha=ha, va=va,
                fontsize="x-small", color=INK,
            )  # fmt: skip
        widest = max(curves.values(), key=len)
        ticks = TICKS if published else [point.params for point in widest]
        axes.set_xscale("log")
        if published:
            axes.set_xlim(TICKS[0] / 1.2, TICKS[-1] * 1.2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="parameters", ylabel="test accuracy, % (95% interval)")
        axes.legend(frameon=False, loc="lower right")
    return figure


def main() -> None:
    """Print the points and draw them."""
    parser = plain_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder of a run")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args()
    try:
        curves, fingerprint = read_curves(args.runs)
        write_figure(draw(curves, PUBLISHED if fingerprint == CIFAR10 else ()), args.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for label, points in curves.items():
        print(label)
        for params, mean, lo, hi, num_seeds in points:
            print(f"  {params:9,} parameters  {mean:.2%}  {lo:.1%} to {hi:.1%}  n = {num_seeds}")
    print(args.out)


if __name__ == "__main__":
    main()
