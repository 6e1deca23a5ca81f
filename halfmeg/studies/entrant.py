"""Entrants: what the runs of one network and recipe say together; its runs are its seeds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.evaluation.calibration import Calibration, calibrate, fit_temperature
from halfmeg.evaluation.cost import Cost
from halfmeg.evaluation.evaluate import score
from halfmeg.places.place import short_name
from halfmeg.studies.measure import Robustness, mean_robustness, shape_name
from halfmeg.studies.stats import (
    Interval,
    student_interval,
)

OWN_TO_A_RUN = ("seed", "device", "compile", "threads", "keep_checkpoints")
"""Settings in which the runs of one entrant may differ."""


TERMS = tuple(
    field.name
    for field in fields(RunConfig)
    if field.name not in ("model", "budget", *OWN_TO_A_RUN)
)
"""Settings in which two networks have to agree to be compared on equal terms."""


@dataclass(frozen=True)
class Entrant:
    """What the runs of one network and recipe say together.

    Attributes:
        name: the network's, with the recipe or setting behind it where that tells it apart.
        test_accuracy: mean over seeds with Student's interval, shares from 0 to 1.
        deviation: standard deviation over seeds; None for one seed.
        per_seed: test accuracy by seed.
        per_class: mean accuracy over seeds of each class.
        confusion: confusion[t][p], images of class t called p, summed over seeds.
        calibration: over the test logits of all seeds.
        scaled: the same after each seed's temperature; None without validation images.
        temperature: mean over seeds of the temperature fitted on validation.
        robustness: mean accuracy by kind of corruption, at strengths 1 to 3; None if not measured.
        cost: None if not measured.
        runs: the runs, in the order of the seeds.
    """

    name: str
    params: int
    macs: int
    test_accuracy: Interval
    deviation: float | None
    per_seed: dict[int, float]
    seconds: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration
    scaled: Calibration | None
    temperature: float | None
    robustness: Robustness | None
    cost: Cost | None
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
            "deviation": self.deviation,
            "per_seed": {str(seed): accuracy for seed, accuracy in self.per_seed.items()},
            "seconds": self.seconds,
            "per_class": list(self.per_class),
            "confusion": [list(row) for row in self.confusion],
            "calibration": self.calibration.to_dict(),
            "calibration_after_temperature": self.scaled.to_dict() if self.scaled else None,
            "temperature": self.temperature,
            "robustness": self.robustness,
            "cost": self.cost.to_dict() if self.cost else None,
        }


@dataclass(frozen=True)
class LoadedRun:
    """A finished run with its stored logits."""

    run: Run
    result: dict[str, Any]
    logits: dict[str, Tensor]

    @property
    def right(self) -> np.ndarray:
        """Right answers as 1.0 and wrong ones as 0.0, one for each test image."""
        answers = self.logits["test_logits"].argmax(1) == self.logits["test_labels"]
        return answers.numpy().astype(np.float64)


def load_run(run: Run, first: Run) -> LoadedRun:
    """Load a finished run that has the data of `first`.

    Raises:
        ValueError: unfinished, damaged, or of other data.
    """
    result = run.result()
    if result is None:
        raise ValueError(
            f"{run.folder} has not finished; continue it with `halfmeg resume {run.folder}`"
        )
    if run.data.fingerprint != first.data.fingerprint:
        raise ValueError(f"{run.folder} was trained on other data than {first.folder}")
    return LoadedRun(run, result, run.load_logits())


def name_entrants(configs: list[RunConfig]) -> list[str]:
    """Name each entrant by its network, and by what else it takes to tell it apart."""
    names = []
    for config in configs:
        rivals = [c for c in configs if c.model == config.model and c != config]
        if not rivals:
            names.append(config.model)
        elif all(c.recipe != config.recipe for c in rivals):
            names.append(f"{config.model} ({config.recipe})")
        else:
            mine, others = config.to_dict(), [rival.to_dict() for rival in rivals]
            differing = [key for key in mine if any(other[key] != mine[key] for other in others)]
            telling = [key for key in differing if key != "tuning_trials"]  # trains nothing
            if all(any(other[key] != mine[key] for key in telling) for other in others):
                differing = telling
            settings = ", ".join(f"{key}={mine[key]}" for key in differing)
            names.append(f"{config.model} ({settings})")
    short = [
        name.replace(config.model, short_name(config.model), 1)
        for name, config in zip(names, configs, strict=True)
    ]
    return short if len(set(short)) == len(set(names)) else names


def build_entrant(name: str, items: list[LoadedRun], costs: dict[str, Cost]) -> Entrant:
    """Say what the runs of one network and recipe, in the order of their seeds, say together."""
    per_seed = {i.run.config.seed: float(i.result["test_accuracy"]) for i in items}
    evaluations = [score(i.logits["test_logits"], i.logits["test_labels"]) for i in items]
    confusion = np.sum([evaluation.confusion for evaluation in evaluations], axis=0)
    totals = confusion.sum(1)
    temperatures = [
        fit_temperature(i.logits["val_logits"], i.logits["val_labels"])
        for i in items
        if "val_logits" in i.logits
    ]
    logits = [i.logits["test_logits"] for i in items]
    labels = torch.cat([i.logits["test_labels"] for i in items])
    scaled = None
    if len(temperatures) == len(items):
        pairs = zip(logits, temperatures, strict=True)
        scaled = calibrate(torch.cat([values / t for values, t in pairs]), labels)
    values = list(per_seed.values())
    config = items[0].run.config
    return Entrant(
        name=name,
        params=items[0].result["params"],
        macs=items[0].result["macs"],
        test_accuracy=cut(student_interval(values), 0.0, 1.0),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        per_seed=per_seed,
        seconds=float(np.mean([i.result["seconds"] for i in items])),
        per_class=tuple(
            float(confusion[c, c] / totals[c]) if totals[c] else None for c in range(len(totals))
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        calibration=calibrate(torch.cat(logits), labels),
        scaled=scaled,
        temperature=float(np.mean(temperatures)) if scaled else None,
        robustness=mean_robustness([i.run for i in items]),
        cost=costs.get(shape_name(config.model, config.budget)),
        runs=tuple(i.run for i in items),
    )


def cut(interval: Interval, least: float, largest: float) -> Interval:
    """Cut off what cannot be; an interval from two or three seeds can reach there."""
    if interval.lo is None or interval.hi is None:
        return interval
    return Interval(interval.mean, max(least, interval.lo), min(largest, interval.hi))
