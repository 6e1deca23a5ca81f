"""Entrants: what the runs of one network and recipe say together; its runs are its seeds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.evaluation.calibration import (
    FEWEST_ERRORS,
    Calibration,
    calibrate,
    fit_temperature,
    mean_calibration,
)
from halfmeg.evaluation.cost import Cost
from halfmeg.evaluation.evaluate import score
from halfmeg.places.place import short_name
from halfmeg.studies.loaded import LoadedRun, test_share
from halfmeg.studies.measure import Robustness, cost_of, mean_robustness
from halfmeg.studies.resampled import folded_interval
from halfmeg.studies.stats import Interval, crossed_interval

OWN_TO_A_RUN = ("seed", "device", "kernels", "compile", "threads", "keep_checkpoints")
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
        terms: its settings, with the precision that `auto` chose.
        test_accuracy: mean over seeds, with the crossed interval: of other seeds on other images;
            over folds, with that of the corrected resampled t.
        deviation: standard deviation over seeds; None for one seed.
        per_seed: test accuracy by seed, or by fold.
        per_class: mean accuracy over seeds of each class, its recall.
        precision: of the images called each class, over all seeds, the share that are.
        balanced_accuracy, macro_f1: as of `Evaluation`, mean over seeds.
        confusion: confusion[t][p], images of class t called p, summed over seeds.
        calibration: on the test images, mean over seeds.
        scaled: the same after each seed's temperature; None where one seed has none.
        temperature: mean over seeds of the temperature fitted on validation.
        no_temperature: why there is none; None where there is one.
        robustness: mean accuracy by kind of corruption, at strengths 1 to 3; None if not measured.
        cost: None if not measured.
        runs: the runs, in the order of the seeds or folds.
    """

    name: str
    terms: dict[str, Any]
    params: int
    macs: int
    test_accuracy: Interval
    deviation: float | None
    per_seed: dict[int, float]
    seconds: float
    per_class: tuple[float | None, ...]
    precision: tuple[float | None, ...]
    balanced_accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration
    scaled: Calibration | None
    temperature: float | None
    no_temperature: str | None
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
            "precision": list(self.precision),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "confusion": [list(row) for row in self.confusion],
            "calibration": self.calibration.to_dict(),
            "calibration_after_temperature": self.scaled.to_dict() if self.scaled else None,
            "temperature": self.temperature,
            "no_temperature": self.no_temperature,
            "robustness": self.robustness,
            "cost": self.cost.to_dict() if self.cost else None,
        }


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


def build_entrant(
    name: str, items: list[LoadedRun], costs: dict[str, Cost], level: float
) -> Entrant:
    """Say what the runs of one network and recipe, in the order of their seeds, say together.

    Raises:
        ValueError: two runs of one seed, or of networks of another size.
    """
    _require_one_network(name, items)
    per_seed = {i.unit: float(i.right.mean()) for i in items}
    tested = [(i.logits["test_logits"], i.logits["test_labels"]) for i in items]
    evaluations = [score(*one) for one in tested]
    # A fold may have no image of a class, so what counts classes alike is of all folds together.
    alike = [score(*map(torch.cat, zip(*tested, strict=True)))] if items[0].folded else evaluations
    confusion = np.sum([evaluation.confusion for evaluation in evaluations], axis=0)
    totals, called = confusion.sum(1), confusion.sum(0)
    temperatures, no_temperature = _temperatures(items)
    scaled = [
        calibrate(i.logits["test_logits"] / t, i.logits["test_labels"])
        for i, t in zip(items, temperatures, strict=False)
    ]
    values = list(per_seed.values())
    config = items[0].run.config
    return Entrant(
        name=name,
        terms=items[0].config.to_dict(),
        params=items[0].result["params"],
        macs=items[0].result["macs"],
        test_accuracy=_accuracy(items, level),
        deviation=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        per_seed=per_seed,
        seconds=float(np.mean([i.seconds for i in items])),
        per_class=tuple(
            float(confusion[c, c] / totals[c]) if totals[c] else None for c in range(len(totals))
        ),
        precision=tuple(
            float(confusion[c, c] / called[c]) if called[c] else None for c in range(len(called))
        ),
        balanced_accuracy=float(np.mean([e.balanced_accuracy for e in alike])),
        macro_f1=float(np.mean([e.macro_f1 for e in alike])),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        calibration=mean_calibration(
            [calibrate(i.logits["test_logits"], i.logits["test_labels"]) for i in items]
        ),
        scaled=mean_calibration(scaled) if scaled else None,
        temperature=float(np.mean(temperatures)) if temperatures else None,
        no_temperature=no_temperature,
        robustness=mean_robustness([i.run for i in items]),
        cost=cost_of(config, costs),
        runs=tuple(i.run for i in items),
    )


def _require_one_network(name: str, items: list[LoadedRun]) -> None:
    units = [item.unit for item in items]
    for unit in sorted({unit for unit in units if units.count(unit) > 1}):
        kind = "fold" if items[0].folded else "seed"
        raise ValueError(f"{name} has more than one run with {kind} {unit}; name each run once")
    first = items[0]
    for item in items:
        if item.result["params"] != first.result["params"]:
            raise ValueError(
                f"{item.run.folder} has {item.result['params']:,} parameters, and "
                f"{first.run.folder} {first.result['params']:,}, so {name} was not the same "
                "network in both; compare runs of one"
            )


def _accuracy(items: list[LoadedRun], level: float) -> Interval:
    right = [item.right for item in items]
    if items[0].folded:
        return folded_interval(right, test_share(items), level)
    return crossed_interval(np.stack(right), level)


def _temperatures(items: list[LoadedRun]) -> tuple[list[float], str | None]:
    """Return the temperature of each run; or none of them, and why."""
    if any("val_logits" not in i.logits for i in items):
        return [], "no images were held out to fit one"
    found = [fit_temperature(i.logits["val_logits"], i.logits["val_labels"]) for i in items]
    temperatures = [t for t in found if t is not None]
    if len(temperatures) < len(items):
        return [], f"a seed answers fewer than {FEWEST_ERRORS} validation images wrongly"
    return temperatures, None
