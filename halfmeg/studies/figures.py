"""Figures of runs and comparisons, drawn from run folders."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET
from halfmeg.evaluation.calibration import NUM_BINS, Calibration
from halfmeg.files import make_folder, write_atomically
from halfmeg.studies.compare import Comparison

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito 2008: told apart with every kind of colour vision."""

INK = "#3b3b3b"

STYLE: Any = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # a class called `$a$` is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "halfmeg",
}


def accuracy_curve(run: Run) -> tuple[str, np.ndarray]:
    """Return which part a run's curve is measured on, "test", "val" or "train", and the curve.

    The curve holds accuracies from 0 to 1, one for each epoch done.
    """
    rows = run.read_metrics()
    for part in ("test", "val", "train"):
        values = [row[f"{part}_accuracy"] for row in rows]
        if values and all(value is not None for value in values):
            return part, np.array(values, dtype=float)
    raise ValueError(f"{run.folder} has no finished epoch to draw")


def comparison_figure(comparison: Comparison) -> Figure:
    """Draw the learning curves, and beside them the final test accuracy of each seed."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_curves(left, comparison)
        _draw_seeds(right, comparison)
    return figure


def run_figure(run: Run) -> Figure:
    """Draw a run's accuracy after each epoch: on training batches, and where it was watched."""
    rows = run.read_metrics()
    names = dict(PART_NAMES)
    if run.config.hard_share < 1:
        names["train"] += f", {HARD_IMAGES_NOTE}"
    curves = {
        name: np.array([row[f"{part}_accuracy"] for row in rows], dtype=float)
        for part, name in names.items()
    }
    watched = [(name, values) for name, values in curves.items() if np.isfinite(values).any()]
    title = f"{run.config.model} on {run.data.name}, seed {run.config.seed}"
    return curve_figure(watched, "accuracy, %", title)


def curve_figure(curves: Sequence[tuple[str, np.ndarray]], ylabel: str, title: str) -> Figure:
    """Draw labelled accuracy curves over epochs, as the published study does.

    Args:
        curves: a label and the accuracies, 0 to 1, of the epochs from 1; NaN where there is none.
        ylabel, title: of the figure.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (label, values), colour in zip(curves, _cycle(len(curves)), strict=True):
            _draw_curve(axes, label, values, colour)
        axes.set(title=title, ylabel=ylabel)
        _label_epochs(axes)
    return figure


def _draw_curve(axes: Axes, label: str, values: np.ndarray, colour: str) -> None:
    epochs = np.arange(1, len(values) + 1)
    # A line through one point shows nothing.
    marker = "o" if np.isfinite(values).sum() == 1 else None
    axes.plot(epochs, 100 * values, color=colour, label=in_legend(label), marker=marker)


def _label_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(frameon=False, loc="lower right")


PART_NAMES = {"test": "test", "val": "validation", "train": "training"}

HARD_IMAGES_NOTE = "later on hard images alone"


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _draw_curves(axes: Axes, comparison: Comparison) -> None:
    models = comparison.models
    drawn = [[accuracy_curve(run) for run in model.runs] for model in models]
    parts = [of_model[0][0] for of_model in drawn]
    differ = len(set(parts)) > 1
    for model, of_model, part, colour in zip(
        models, drawn, parts, _cycle(len(models)), strict=True
    ):
        length = min(len(values) for _, values in of_model)
        curves = np.stack([values[:length] for _, values in of_model])
        label = f"{model.name}, {PART_NAMES[part]}" if differ else model.name
        _draw_curve(axes, label, curves.mean(0), colour)
        low, high = 100 * curves.min(0), 100 * curves.max(0)
        axes.fill_between(np.arange(1, length + 1), low, high, color=colour, alpha=0.2, lw=0)
    counts = sorted({len(model.runs) for model in models})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    seeds = f"{span} {comparison.unit}{'s' if counts[-1] > 1 else ''}"
    axes.set_title(f"Mean and range over {seeds}")
    ylabel = "accuracy, %" if differ else f"{PART_NAMES[parts[0]]} accuracy, %"
    on_hard = [any(run.config.hard_share < 1 for run in model.runs) for model in models]
    if ("train", True) in zip(parts, on_hard, strict=True):
        ylabel += f"\n({HARD_IMAGES_NOTE})"
    axes.set_ylabel(ylabel)
    _label_epochs(axes)


def _draw_seeds(axes: Axes, comparison: Comparison) -> None:
    models = comparison.models
    for row, (model, colour) in enumerate(zip(models, _cycle(len(models)), strict=True)):
        values = [100 * value for value in model.per_seed.values()]
        axes.scatter(values, [row] * len(values), s=18, color=colour, alpha=0.6, zorder=3)
        interval = model.test_accuracy
        if interval.lo is not None and interval.hi is not None:
            axes.plot([100 * interval.lo, 100 * interval.hi], [row, row], color=colour, lw=2)
        axes.scatter([100 * interval.mean], [row], s=70, marker="|", color=colour, zorder=4)
        axes.annotate(
            f"{100 * interval.mean:.1f}%",
            (100 * interval.mean, row),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
        )
    axes.set_yticks(range(len(models)), [in_lines(model.name) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.set(xlabel="test accuracy, %", title=f"Last epoch, {comparison.interval_name}")


NAME_WIDTH, PAIR_WIDTH = 28, 52
"""Letters in a line, above which names would leave a figure no room."""


def in_lines(name: str) -> str:
    """Break an entrant's name before what tells it from others of its network, and where long."""
    parts = name.replace(" (", "\n(", 1).splitlines()
    return "\n".join(line for part in parts for line in textwrap.wrap(part, NAME_WIDTH))


def in_legend(label: str) -> str:
    """Return a label as a legend shows it: matplotlib leaves out what begins with an underscore."""
    return f"\u200b{label}" if label.startswith("_") else label  # a space of no width


def _lay_out(figure: Figure) -> None:
    """Place a figure's parts once: drawn as PNG and as SVG it is not measured again."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)


def figure_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white."""
    _lay_out(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def figure_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element that takes the colour of the text around it.

    Its ids begin with its name, as they have to differ from those of others on the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        _lay_out(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    named = re.sub(r' id="|href="#|url\(#', lambda found: f"{found[0]}{name}-", svg)
    return named[named.index("<svg") :].replace(INK, "currentColor")


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    make_folder(path.parent)
    write_atomically(path, figure_png(figure))
    return path


def differences_figure(comparison: Comparison) -> Figure:
    """Draw each pair's difference with its interval against the line of no difference."""
    pairs = comparison.pairs
    labels = [textwrap.wrap(f"{pair.a} − {pair.b}", PAIR_WIDTH) for pair in pairs]
    lines = max(map(len, labels))
    with mpl.rc_context(STYLE):
        height = 0.9 + (0.38 + 0.17 * (lines - 1)) * len(pairs)
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=INK, lw=1)
        for row, pair in enumerate(pairs):
            d = pair.difference
            colour = COLOURS[0] if pair.told_apart else INK
            if d.lo is not None and d.hi is not None:
                axes.plot([100 * d.lo, 100 * d.hi], [row, row], color=colour, lw=2)
            axes.scatter([100 * d.mean], [row], color=colour, s=28, zorder=3)
        axes.set_yticks(range(len(pairs)), ["\n".join(label) for label in labels])
        axes.set_ylim(len(pairs) - 0.5, -0.5)
        axes.set(xlabel=f"difference in test accuracy, points ({comparison.interval_name})")
        axes.grid(axis="y", visible=False)
    return figure


class _Axis(NamedTuple):
    label: str
    values: list[float]


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Return the indices of what nothing else beats in both, the cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i]))
    front: list[int] = []
    for index in order:
        if not front or accuracies[index] > accuracies[front[-1]]:
            front.append(index)
    return front


def cost_figure(comparison: Comparison) -> Figure:
    """Draw accuracy against parameters, MACs and latency, with the Pareto front of each."""
    models = comparison.models
    axes_of = [
        _Axis("parameters", [float(m.params) for m in models]),
        _Axis("multiply-accumulates, M", [m.macs / 1e6 for m in models]),
    ]
    latencies = [m.cost.latency_ms for m in models if m.cost]
    if len(latencies) == len(models):
        axes_of.append(_Axis("latency of one image, ms", latencies))
    accuracies = [100 * m.test_accuracy.mean for m in models]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(axes_of), 3.6), layout="constrained")
        row = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
        for axes, axis in zip(row, axes_of, strict=True):
            front = pareto_front(axis.values, accuracies)
            axes.step(
                [axis.values[i] for i in front], [accuracies[i] for i in front],
                where="post", color=INK, alpha=0.5, lw=1,
            )  # fmt: skip
            for model, x, y, colour in zip(
                models, axis.values, accuracies, _cycle(len(models)), strict=True
            ):
                axes.scatter([x], [y], color=colour, s=36, zorder=3, label=in_legend(model.name))
            axes.set_xlabel(axis.label)
            axes.margins(x=0.18, y=0.15)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        if max(axes_of[0].values) > BUDGET / 2:
            row[0].axvline(BUDGET, color="#b00020", lw=1, ls="--")
            row[0].annotate(
                "budget", (BUDGET, 0.02), xycoords=("data", "axes fraction"), color="#b00020",
                xytext=(3, 0), textcoords="offset points", rotation=90, ha="left", fontsize=8,
            )  # fmt: skip
        row[0].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
        row[0].set_ylabel("test accuracy, %")
        handles, labels = row[0].get_legend_handles_labels()
        longest = max(len(label) for label in labels)
        columns = max(1, int(12 * figure.get_figwidth() / (longest + 7)))  # 12 characters an inch
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)),
            frameon=False,
        )  # fmt: skip
    return figure


def confusion_figure(comparison: Comparison) -> Figure:
    """Draw each network's confusion matrix: rows are true classes, in percent of the row."""
    models = comparison.models
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    classes = comparison.classes
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.5 * columns, 3.6 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(models) :]:
            axes.axis("off")
        for index, (axes, model) in enumerate(zip(grid.flat, models, strict=False)):
            counts = np.array(model.confusion, float)
            shares = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
            mistakes = np.where(np.eye(len(shares), dtype=bool), np.nan, shares)
            darkest = max(5.0, float(np.nanmax(mistakes)))
            axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=darkest)
            if len(classes) <= 12:
                for (t, p), share in np.ndenumerate(shares):
                    if share >= 0.5:
                        on_dark = t != p and share > 0.6 * darkest
                        axes.text(
                            p, t, f"{share:.0f}", ha="center", va="center", fontsize=7,
                            fontweight="bold" if t == p else "normal",
                            color="#ffffff" if on_dark else INK if t == p else "#222222",
                        )  # fmt: skip
                axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
                first = index % columns == 0
                axes.set_yticks(range(len(classes)), classes if first else [], fontsize=8)
            axes.set_title(in_lines(model.name))
            axes.set_xlabel("answered")
        for row in grid:
            row[0].set_ylabel("true class")
    return figure


def calibration_figure(comparison: Comparison) -> Figure:
    """Draw reliability diagrams before and, where it was fitted, after a temperature.

    The area of a point is the share of the images in its bin.
    """
    models = comparison.models
    parts = [("as trained", [m.calibration for m in models])]
    scaled = [m.scaled for m in models if m.scaled]
    if len(scaled) == len(models):
        parts.append(("after a temperature fitted on validation", scaled))
    edges = (np.arange(NUM_BINS) + 0.5) / NUM_BINS

    def label(name: str, item: Calibration) -> str:
        errors = f"ECE {100 * item.ece:.1f}% ({100 * item.ece_by_chance:.1f}% by chance)"
        return "\n".join(textwrap.wrap(f"{name}, {errors}", PAIR_WIDTH))

    with mpl.rc_context(STYLE):
        lines = sum(1 + label(m.name, m.calibration).count("\n") for m in models)
        height = 3.9 + 0.18 * lines
        figure = Figure(figsize=(4.0 * len(parts), height), layout="constrained")
        row = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for axes, (title, calibrations) in zip(row, parts, strict=True):
            axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=":")
            for model, item, colour in zip(models, calibrations, _cycle(len(models)), strict=True):
                x = [
                    edge if c is None else c for c, edge in zip(item.confidence, edges, strict=True)
                ]
                y = [np.nan if value is None else value for value in item.accuracy]
                told = in_legend(label(model.name, item))
                axes.plot(x, y, lw=1, alpha=0.6, color=colour, label=told)
                sizes = [200 * share for share in item.share]
                axes.scatter(x, y, s=sizes, color=colour, clip_on=False, zorder=3)
            axes.set(title=title, xlabel="stated confidence", xlim=(0, 1), ylim=(0, 1))
            axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
        row[0].set_ylabel("share of right answers")
        figure.suptitle("Area of a point: share of the images", fontsize=9)
    return figure
