"""Comparisons: what the seeds of each model say together, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from halfmeg.config import BUDGET, RunConfig
from halfmeg.data import DataSplits
from halfmeg.runs import Run
from halfmeg.study import run_study
from halfmeg.train import Listener

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval; lo and hi are None for a single value."""

    mean: float
    lo: float | None
    hi: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON types."""
        return {"mean": self.mean, "lo": self.lo, "hi": self.hi}


@dataclass(frozen=True)
class ModelResult:
    """What the runs of one model say together.

    Attributes:
        test_accuracy: mean over seeds with Student's interval, shares from 0 to 1.
        per_seed: test accuracy by seed.
        runs: the runs, in the order of the seeds.
    """

    name: str
    params: int
    macs: int
    test_accuracy: Interval
    per_seed: dict[int, float]
    seconds: float
    runs: tuple[Run, ...]

    @property
    def within_budget(self) -> bool:
        """Whether the network has fewer than 500,000 parameters."""
        return self.params < BUDGET

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "name": self.name,
            "params": self.params,
            "macs": self.macs,
            "within_budget": self.within_budget,
            "test_accuracy": self.test_accuracy.to_dict(),
            "per_seed": {str(seed): accuracy for seed, accuracy in self.per_seed.items()},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class PairResult:
    """The difference in test accuracy between two models, a minus b, over paired seeds."""

    a: str
    b: str
    difference: Interval
    num_seeds: int

    @property
    def verdict(self) -> str:
        """What the interval allows to say, in words."""
        d = self.difference
        if d.lo is None or d.hi is None:
            return f"{self.a} and {self.b}: one seed cannot tell chance from a difference"
        span = f"95% interval {100 * d.lo:+.1f} to {100 * d.hi:+.1f}; {self.num_seeds} seeds"
        if d.lo > 0 or d.hi < 0:
            better, worse = (self.a, self.b) if d.mean > 0 else (self.b, self.a)
            return f"{better} is better than {worse} by {abs(100 * d.mean):.1f} points ({span})"
        return f"{self.a} and {self.b} cannot be told apart: {100 * d.mean:+.1f} points ({span})"


@dataclass(frozen=True)
class Comparison:
    """Models compared on the same data: results in the order of test accuracy."""

    data: str
    fingerprint: str
    num_test: int
    models: tuple[ModelResult, ...]
    pairs: tuple[PairResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "num_test": self.num_test,
            "models": [model.to_dict() for model in self.models],
            "verdicts": [pair.verdict for pair in self.pairs],
        }


def student_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95% interval (Student 1908).

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None, None)
    from scipy import stats  # takes most of a second to import

    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Interval(mean, mean - half, mean + half)


def compare(
    models: Sequence[str],
    data: DataSplits,
    *,
    seeds: int,
    out: str | Path,
    config: RunConfig,
    listener: Callable[[RunConfig], Listener | None] = lambda config: None,
) -> Comparison:
    """Train models × seeds on equal terms and compare them; what is trained already is kept.

    Args:
        models: names from `MODELS`.
        data: what all are trained and tested on.
        seeds: seeds 0 to seeds - 1 for every model; a seed pairs the runs of all models.
        out: the study's folder.
        config: the terms; its model and seed are replaced.
        listener: returns who is told how a run goes.

    Raises:
        ValueError: no model, a model twice, or fewer than one seed.
    """
    if len(set(models)) < max(1, len(models)):
        raise ValueError(f"models={', '.join(models)} is not allowed; name each model once")
    if seeds < 1:
        raise ValueError(f"seeds={seeds} is out of range; allowed: 1 or more")
    configs = [replace(config, model=model, seed=seed) for seed in range(seeds) for model in models]
    return compare_runs(run_study(configs, data, out, listener=listener))


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Compare finished runs; the models' results come sorted by mean test accuracy.

    Raises:
        ValueError: no runs, an unfinished one, or runs of different data.
    """
    if not runs:
        raise ValueError("there are no runs to compare")
    results: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        result = run.result()
        if result is None:
            raise ValueError(
                f"{run.folder} has not finished; continue it with `halfmeg resume {run.folder}`"
            )
        if run.data.fingerprint != runs[0].data.fingerprint:
            raise ValueError(f"{run.folder} was trained on other data than {runs[0].folder}")
        results.setdefault(run.config.model, []).append((run, result))
    models = sorted(
        (_model_result(name, items) for name, items in results.items()),
        key=lambda model: -model.test_accuracy.mean,
    )
    pairs = [_pair(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]
    first = runs[0].data
    return Comparison(first.name, first.fingerprint, first.num_test, tuple(models), tuple(pairs))


def _model_result(name: str, items: list[tuple[Run, dict[str, Any]]]) -> ModelResult:
    items = sorted(items, key=lambda item: item[0].config.seed)
    per_seed = {run.config.seed: float(result["test_accuracy"]) for run, result in items}
    return ModelResult(
        name=name,
        params=items[0][1]["params"],
        macs=items[0][1]["macs"],
        test_accuracy=_within_0_and_1(student_interval(list(per_seed.values()))),
        per_seed=per_seed,
        seconds=float(np.mean([result["seconds"] for _, result in items])),
        runs=tuple(run for run, _ in items),
    )


def _within_0_and_1(interval: Interval) -> Interval:
    """Cut what no accuracy can be; Student's interval of two or three seeds can reach there."""
    if interval.lo is None or interval.hi is None:
        return interval
    return Interval(interval.mean, max(0.0, interval.lo), min(1.0, interval.hi))


def _pair(a: ModelResult, b: ModelResult) -> PairResult:
    shared = sorted(a.per_seed.keys() & b.per_seed.keys())
    if not shared:
        raise ValueError(f"{a.name} and {b.name} share no seed")
    differences = [a.per_seed[seed] - b.per_seed[seed] for seed in shared]
    return PairResult(a.name, b.name, student_interval(differences), len(shared))
