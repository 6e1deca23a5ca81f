"""Figures of a search: the front, parallel coordinates, importance, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from halfmeg.places.settings import Value
from halfmeg.search.front import FrontPoint, accuracy_interval, finished
from halfmeg.search.record import Trial
from halfmeg.search.space import Dimension
from halfmeg.studies.figures import COLOURS, INK, STYLE

COST_LABELS = {
    "params": "parameters", "macs": "multiply-accumulates", "flash": "flash, bytes",
    "ram": "RAM, bytes", "latency": "latency, ms",
}  # fmt: skip
WARNING = "#b00020"
MOST_LINES = 200
MOST_AXES = 8
MOST_BARS = 15


def front_figure(
    trials: Sequence[Trial],
    fronts: Mapping[str, Sequence[FrontPoint]],
    limits: Mapping[str, float],
    num_images: int,
) -> Figure:
    """Draw validation accuracy against each cost; a bar is a 95% interval over images.

    Args:
        trials: of the search.
        fronts: by name of the cost.
        limits: by name of the cost.
        num_images: that an accuracy was measured on.
    """
    with mpl.rc_context(STYLE):
        rows = math.ceil(len(fronts) / 2)
        figure = Figure(figsize=(7.0, 3.2 * rows), layout="constrained")
        grid = figure.subplots(rows, min(len(fronts), 2), sharey=True, squeeze=False)
        for axes in grid.flat[len(fronts) :]:
            axes.set_visible(False)
        for axes, (name, points) in zip(grid.flat, fronts.items(), strict=False):
            known = [t for t in finished(trials) if getattr(t.costs, name) is not None]
            axes.scatter(
                [getattr(t.costs, name) for t in known], [100 * (t.accuracy or 0) for t in known],
                color=INK, alpha=0.35, s=14,
            )  # fmt: skip
            costs = [point.cost for point in points]
            values = [100 * (point.trial.accuracy or 0) for point in points]
            axes.step(costs, values, where="post", color=COLOURS[0], lw=1)
            for point, value in zip(points, values, strict=True):
                interval = accuracy_interval(point.trial, num_images)
                if interval.lo is not None and interval.hi is not None:
                    ends = [100 * interval.lo, 100 * interval.hi]
                    axes.plot([point.cost] * 2, ends, color=COLOURS[0], lw=1, alpha=0.6)
                face = "white" if point.apart is False else COLOURS[0]
                axes.scatter(
                    [point.cost], [value], s=40, facecolor=face, edgecolor=COLOURS[0], zorder=3
                )
            if name in limits:
                axes.axvline(limits[name], color=WARNING, lw=1, ls="--")
            axes.set_xlabel(COST_LABELS[name])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(_short)
            axes.margins(x=0.1, y=0.15)
        for axes in grid[:, 0]:
            axes.set_ylabel("validation accuracy, %")
    return figure


def parallel_figure(
    trials: Sequence[Trial], dimensions: Sequence[Dimension], importance: Mapping[str, float]
) -> Figure:
    """Draw each trained trial as a line through its settings; the better, the stronger.

    Args:
        trials: of the search; the last 200 that were trained are drawn.
        dimensions: of the space. An axis is drawn for 8 of those that differ: the most important,
            or, where that is not known, those that most trials have.
        importance: of a dimension for accuracy, by its name.
    """
    shown = [t for t in trials if t.was_trained][-MOST_LINES:]

    def weight(dimension: Dimension) -> tuple[float, int]:
        return importance.get(dimension.name, 0.0), sum(dimension.name in t.drawn for t in shown)

    varied = [d for d in dimensions if len({t.drawn.get(d.name) for t in shown} - {None}) > 1]
    most = sorted(varied, key=weight, reverse=True)[:MOST_AXES]
    axis_of = [d for d in varied if d in most]
    best = np.array([t.accuracy or 0.0 for t in shown])
    low, high = (best.min(), best.max()) if len(best) else (0.0, 1.0)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(8.4, 4.6), layout="constrained")
        axes = figure.subplots()
        ticks = [
            (index, share, text)
            for index, dimension in enumerate(axis_of)
            for share, text in _ticks(dimension)
        ]
        for share in (0.0, 0.5, 1.0):
            ticks.append((len(axis_of), share, f"{100 * (low + share * (high - low)):.1f}%"))
        for index, share, text in ticks:
            axes.annotate(
                text, (index, share), xytext=(-4 if index == 0 else 4, 0), zorder=3, fontsize=9,
                textcoords="offset points", va="center", ha="right" if index == 0 else "left",
            )  # fmt: skip
        for index in range(len(axis_of) + 1):
            axes.axvline(index, color=INK, lw=0.8, alpha=0.4)
        for trial in sorted(shown, key=lambda t: t.accuracy or 0.0):
            height = ((trial.accuracy or 0.0) - low) / max(high - low, 1e-9)
            xs = [i for i, d in enumerate(axis_of) if d.name in trial.drawn]
            ys = [_height(axis_of[i], trial.drawn[axis_of[i].name]) for i in xs]
            axes.plot(
                [*xs, len(axis_of)], [*ys, height], color=mpl.colormaps["viridis"](0.9 * height),
                lw=0.8 + 1.2 * height, alpha=0.25 + 0.6 * height,
            )  # fmt: skip
        axes.set_xticks(
            range(len(axis_of) + 1),
            [*(d.name for d in axis_of), "accuracy"],
            rotation=35,
            ha="right",
        )
        axes.set_yticks([])
        axes.set_xlim(-0.3, len(axis_of) + 0.6)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def importance_figure(importance: Mapping[str, float]) -> Figure:
    """Draw the importance of each choice as a bar: of the first 15, and of the others together."""
    shown = dict(list(importance.items())[:MOST_BARS])
    if others := len(importance) - len(shown):
        shown[f"{others} others together"] = sum(importance.values()) - sum(shown.values())
    names = list(shown)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.8 + 0.26 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [100 * shown[name] for name in names], color=COLOURS[0])
        axes.set_xlabel("share of the importance for accuracy, %")
        axes.grid(axis="y", visible=False)
    return figure


def curves_figure(trials: Sequence[Trial], curves: Mapping[int, Mapping[int, float]]) -> Figure:
    """Draw learning curves: of what was stopped early thin, of what was not strong.

    Args:
        trials: of the search.
        curves: by trial, the accuracy on validation images after each epoch.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        axes = figure.subplots()
        for outcome, colour, width in (("stopped", INK, 0.8), ("done", COLOURS[0], 1.4)):
            label: str | None = {"stopped": "stopped early", "done": "trained to the end"}[outcome]
            for trial in trials:
                if trial.outcome == outcome and (curve := curves.get(trial.number)):
                    values = [100 * accuracy for accuracy in curve.values()]
                    axes.plot(list(curve), values, color=colour, lw=width, alpha=0.7, label=label)
                    axes.plot(list(curve)[-1:], values[-1:], color=colour, marker="o", ms=3)
                    label = None
        axes.set(xlabel="epochs", ylabel="validation accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(frameon=False, loc="lower right")
    return figure


def _height(dimension: Dimension, value: Value) -> float:
    if isinstance(dimension.values, tuple):
        low, high = dimension.values
        if low > 0:
            return float(np.log(float(value) / low) / np.log(high / low))
        return float((float(value) - low) / (high - low))
    values = list(dimension.values)
    return values.index(value) / max(1, len(values) - 1) if value in values else 0.5


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    if isinstance(dimension.values, list):
        count = max(1, len(dimension.values) - 1)
        return [(i / count, str(v).rpartition("/")[2]) for i, v in enumerate(dimension.values)]
    return [(0.0, f"{dimension.at(0):g}"), (1.0, f"{dimension.at(1):g}")]


def _short(value: float, _: object) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
