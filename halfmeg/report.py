"""Figures and pages from run folders; nothing here trains or evaluates."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from halfmeg.compare import Comparison, ModelResult
from halfmeg.config import BUDGET
from halfmeg.runs import Run, write_atomically

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito 2008: told apart with every kind of colour vision."""

INK = "#3b3b3b"
_STYLE: Any = {
    "font.size": 10.0,
    "font.family": "sans-serif",
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
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        part = _draw_curves(left, comparison.models)
        left.set_ylabel(f"{PART_NAMES[part]} accuracy, %")
        _draw_seeds(right, comparison)
    return figure


def curve_figure(curves: Sequence[tuple[str, np.ndarray]], part: str, title: str) -> Figure:
    """Draw labelled accuracy curves over epochs, as the published study does.

    Args:
        curves: a label and the accuracies, 0 to 1, of the epochs from 1; NaN where there is none.
        part: what they are measured on, "test", "val" or "train".
        title: of the figure.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (label, values), colour in zip(curves, _cycle(len(curves)), strict=True):
            axes.plot(np.arange(1, len(values) + 1), 100 * values, color=colour, label=label)
        axes.set(title=title, xlabel="epoch", ylabel=f"{PART_NAMES[part]} accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="lower right")
    return figure


PART_NAMES = {"test": "test", "val": "validation", "train": "training"}


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _draw_curves(axes: Axes, models: Sequence[ModelResult]) -> str:
    part = "val"
    for model, colour in zip(models, _cycle(len(models)), strict=True):
        drawn = [accuracy_curve(run) for run in model.runs]
        part = drawn[0][0]
        length = min(len(values) for _, values in drawn)
        curves = 100 * np.stack([values[:length] for _, values in drawn])
        epochs = np.arange(1, length + 1)
        marker = "o" if length == 1 else None
        axes.plot(epochs, curves.mean(0), color=colour, label=model.name, marker=marker)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.2, lw=0)
    seeds = len(models[0].runs)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", title=f"Mean and range over {seeds} seed{'s' if seeds > 1 else ''}")
    axes.legend(frameon=False, loc="lower right")
    return part


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
    axes.set_yticks(range(len(models)), [model.name for model in models])
    axes.set_ylim(len(models) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.set(xlabel="test accuracy, %", title="Last epoch: seeds, mean, 95% interval")


def figure_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def figure_svg(figure: Figure) -> str:
    """Return a figure as an SVG element that takes the colour of the text around it."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, figure_png(figure))
    return path


def write_comparison(comparison: Comparison, out: str | Path) -> tuple[Path, Path]:
    """Write the page and the figure of a comparison and return their paths."""
    out = Path(out)
    figure = comparison_figure(comparison)
    picture = write_figure(figure, out / "comparison.png")
    page = out / "comparison.html"
    write_atomically(page, render_page(comparison, figure).encode())
    return page, picture


def render_page(comparison: Comparison, figure: Figure) -> str:
    """Return a self-contained HTML page: verdicts, figure, table, terms."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    run = comparison.models[0].runs[0]
    return environment.get_template("comparison.html").render(
        comparison=comparison,
        budget=BUDGET,
        figure=figure_svg(figure),
        figure_text=_describe(comparison),
        notes=_notes(comparison),
        settings=_settings(comparison),
        environment=_environment(run),
    )


def _describe(comparison: Comparison) -> str:
    parts = (f"{m.name} {100 * m.test_accuracy.mean:.1f}%" for m in comparison.models)
    return f"Learning curves, and mean test accuracy: {', '.join(parts)}."


def _notes(comparison: Comparison) -> list[str]:
    """Return what a reader has to know beside the verdicts."""
    notes = [
        f"{model.name} has {model.params:,} parameters: over the budget of {BUDGET:,}."
        for model in comparison.models
        if not model.within_budget
    ]
    sizes = [model.params for model in comparison.models]
    if max(sizes) > 2 * min(sizes):
        notes.append(
            f"The networks differ in size by a factor of {max(sizes) / min(sizes):.0f}: "
            "a difference between them is one of size as well as of kind."
        )
    if any(run.config.monitor == "test" for model in comparison.models for run in model.runs):
        notes.append(
            "The test set was read after every epoch, for the curves only; "
            "each figure is of the last epoch, never the best."
        )
    return notes


def _settings(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all runs share."""
    configs = [run.config.to_dict() for model in comparison.models for run in model.runs]
    return {
        key: value
        for key, value in configs[0].items()
        if all(config[key] == value for config in configs)
    }


def _environment(run: Run) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((run.folder / "environment.json").read_text())
    return stored
