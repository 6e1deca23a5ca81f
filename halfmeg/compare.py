"""Comparisons: what the runs of each network say together, and how sure that is.

Everything comes from run folders. An entrant is a network with a recipe; its runs are its seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.config import BUDGET, RunConfig
from halfmeg.corrupt import CORRUPTIONS, STRENGTHS, corrupt
from halfmeg.cost import Cost, measure_costs
from halfmeg.data import DataSplits
from halfmeg.evaluate import Calibration, calibrate, evaluate, fit_temperature, score
from halfmeg.models import build_model
from halfmeg.runs import Run, write_json
from halfmeg.stats import (
    CrossedVariance,
    Interval,
    combined_mcnemar_p,
    difference_interval,
    holm,
    mcnemar_p,
    seeds_p,
    student_interval,
)
from halfmeg.study import Study, StudyListener, make_configs, run_study

ALPHA = 0.05
SEEN_DIFFERENCE = 0.005
"""The difference for which the number of seeds is planned: half a point."""

ROBUSTNESS_IMAGES = 2_000
NUM_DISAGREEMENTS = 12

OWN_TO_A_RUN = ("seed", "device", "compile", "threads", "keep_checkpoints")
"""Settings in which the runs of one entrant may differ."""

TERMS = tuple(
    field.name
    for field in fields(RunConfig)
    if field.name not in ("model", "budget", *OWN_TO_A_RUN)
)
"""Settings in which two networks have to agree to be compared on equal terms."""

Robustness = dict[str, list[float]]


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
class PairResult:
    """The difference in test accuracy between two entrants, a minus b, over paired seeds.

    Attributes:
        difference: mean with its 95% interval over seeds and test images.
        mcnemar: McNemar's exact p-value of each seed.
        p_mcnemar: those combined: chance among the test images.
        p_value: the larger of `p_mcnemar` and the p-value over both sources of chance; a
            difference has to hold against both. None for one seed.
        p_adjusted: `p_value` after Holm's correction over all pairs of the comparison.
        num_pairs: of that correction.
        seeds_needed: to see half a point; None where the test images are too few for that.
        terms: how the two differ in their terms; empty where these are equal.
    """

    a: str
    b: str
    difference: Interval
    num_seeds: int
    num_images: int
    mcnemar: tuple[float, ...]
    p_mcnemar: float
    p_value: float | None
    p_adjusted: float | None
    num_pairs: int
    seeds_needed: int | None
    terms: tuple[str, ...]

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance at 5%, corrected for the number of pairs."""
        d = self.difference
        outside = d.lo is not None and d.hi is not None and (d.lo > 0 or d.hi < 0)
        return outside and self.p_adjusted is not None and self.p_adjusted < ALPHA

    @property
    def verdict(self) -> str:
        """What the numbers allow to say, in words."""
        d = self.difference
        if d.lo is None or d.hi is None:
            return (
                f"{self.a} and {self.b}: {100 * d.mean:+.1f} points in one seed, "
                "which cannot tell chance from a difference"
            )
        counts = f"{self.num_seeds} seeds, {self.num_images:,} images"
        if self.told_apart:
            first, second, sign = (self.a, self.b, 1) if d.mean > 0 else (self.b, self.a, -1)
            lo, hi = sorted((100 * sign * d.lo, 100 * sign * d.hi))
            return (
                f"{first} is better than {second} by {100 * sign * d.mean:.1f} points "
                f"(95% interval {lo:.1f} to {hi:.1f}; {counts})"
            )
        if self.seeds_needed is None:
            outlook = f"{self.num_images:,} images are too few to see a difference of 0.5 points"
        else:
            outlook = (
                f"about {self.seeds_needed} seeds would be needed to see a difference of 0.5 points"
            )
        reason = ""
        if (d.lo > 0 or d.hi < 0) and self.p_value is not None:
            reason = f", since p = {self.p_value:.2f}"
            if self.p_value < ALPHA:
                reason = f", after Holm's correction for {self.num_pairs} pairs"
        return (
            f"{self.a} and {self.b} cannot be told apart{reason}: {100 * d.mean:+.1f} points "
            f"(95% interval {100 * d.lo:+.1f} to {100 * d.hi:+.1f}; {counts}); {outlook}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "a": self.a,
            "b": self.b,
            "difference": self.difference.to_dict(),
            "num_seeds": self.num_seeds,
            "num_images": self.num_images,
            "mcnemar": list(self.mcnemar),
            "p_mcnemar": self.p_mcnemar,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "told_apart": self.told_apart,
            "seeds_needed": self.seeds_needed,
            "unequal_terms": list(self.terms),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Disagreement:
    """A test image on which the networks give different answers, each sure of its own.

    Attributes:
        index: of the test image.
        label: the true class.
        answers: for each entrant the class and its probability, the mean over seeds.
    """

    index: int
    label: str
    answers: dict[str, tuple[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "index": self.index,
            "label": self.label,
            "answers": {
                name: {"label": label, "probability": p}
                for name, (label, p) in self.answers.items()
            },
        }


@dataclass(frozen=True)
class Comparison:
    """Networks compared on the same data: entrants in the order of test accuracy."""

    data: str
    fingerprint: str
    num_test: int
    classes: tuple[str, ...]
    models: tuple[Entrant, ...]
    pairs: tuple[PairResult, ...]
    disagreements: tuple[Disagreement, ...]
    failures: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "num_test": self.num_test,
            "classes": list(self.classes),
            "models": [model.to_dict() for model in self.models],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "verdicts": [pair.verdict for pair in self.pairs],
            "disagreements": [item.to_dict() for item in self.disagreements],
            "failures": self.failures,
        }


def compare(
    models: Sequence[str],
    data: DataSplits,
    *,
    seeds: int,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    listener: StudyListener | None = None,
) -> Comparison:
    """Train models × recipes × seeds and compare them; what is trained already is kept.

    Args:
        models: names from `MODELS`.
        data: what all are trained and tested on.
        seeds: seeds 0 to seeds - 1 for every model; a seed pairs the runs of all models.
        out: the study's folder.
        config: the terms, one recipe or several; model and seed are replaced.
        workers, cluster, gpus_per_run, stack, listener: as for `run_study`.

    Raises:
        ValueError: no model, a model twice, fewer than one seed, or no run that finished.

    Example:
        >>> from halfmeg import build_recipe, compare, load_dataset
        >>> terms = build_recipe("common").override(["epochs=1"])
        >>> data = load_dataset("digits")
        >>> found = compare(["cnn", "resnet-linear"], data, seeds=2, out="runs/two", config=terms)
        >>> found.pairs[0].verdict
        '... (95% interval ...; 2 seeds, 360 images)...'
    """
    recipes = [config] if isinstance(config, RunConfig) else list(config)
    configs = make_configs(models, recipes, seeds)
    study = run_study(
        configs, data, out, workers=workers, cluster=cluster, gpus_per_run=gpus_per_run,
        stack=stack, listener=listener,
    )  # fmt: skip
    return compare_study(study, data)


def compare_study(study: Study, data: DataSplits) -> Comparison:
    """Compare the runs of a study, with robustness and costs measured where they are missing.

    Raises:
        ValueError: no run finished.
    """
    if not study.runs:
        name, error = next(iter(study.failures.items()))
        raise ValueError(f"no run finished; {name}: {error}")
    measure(study.runs, data, study.folder)
    return compare_runs(study.runs, costs_from=study.folder, failures=study.failures)


def measure(runs: Sequence[Run], data: DataSplits, out: Path) -> None:
    """Measure what needs the networks themselves, and store it.

    Writes `robustness.json` into each run folder that has weights and lacks it, and the costs of
    all networks, timed together, as `costs.json` into `out`.

    Raises:
        ValueError: data other than the runs'.
    """
    for run in runs:
        if run.data.fingerprint != data.fingerprint:
            raise ValueError(f"{run.folder} was trained on other data than {data.name}")
        has_weights = (run.folder / "weights.safetensors").exists()
        if has_weights and not (run.folder / "robustness.json").exists():
            run.log_test_reading("robustness: corrupted test images")
            write_json(run.folder / "robustness.json", measure_robustness(run, data))
    first = runs[0].data
    shapes = sorted({(run.config.model, run.config.budget) for run in runs})
    networks = {
        _shape_name(name, budget): build_model(name, len(first.classes), first.image_size, budget)
        for name, budget in shapes
    }
    costs = measure_costs(networks, first.image_size)
    write_json(out / "costs.json", {name: cost.to_dict() for name, cost in costs.items()})


def _shape_name(model: str, budget: int) -> str:
    return model if budget == BUDGET else f"{model} budget={budget}"


def measure_robustness(run: Run, data: DataSplits) -> dict[str, Any]:
    """Return accuracy by kind of corruption at strengths 1 to 3, on at most 2,000 test images."""
    count = len(data.test)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    part = data.test.subset(order[:ROBUSTNESS_IMAGES].sort().values)
    model = run.load_model()

    def accuracy(images: Tensor) -> float:
        corrupted = replace(part, images=images)
        mean, std = run.data.mean, run.data.std
        return evaluate(model, corrupted, mean, std, precision=run.config.precision).accuracy

    return {
        "n": len(part),
        "clean": accuracy(part.images),
        "accuracy": {
            name: [accuracy(corrupt(part.images, name, strength)) for strength in STRENGTHS]
            for name in CORRUPTIONS
        },
    }


@dataclass(frozen=True)
class _Loaded:
    """A finished run with its stored logits."""

    run: Run
    result: dict[str, Any]
    logits: dict[str, Tensor]

    @property
    def right(self) -> np.ndarray:
        answers = self.logits["test_logits"].argmax(1) == self.logits["test_labels"]
        return answers.numpy().astype(np.float64)


def compare_runs(
    runs: Sequence[Run],
    *,
    costs_from: Path | None = None,
    failures: dict[str, str] | None = None,
) -> Comparison:
    """Compare finished runs; the entrants come sorted by mean test accuracy.

    Args:
        runs: of the same data; those that differ in the seed alone are one entrant.
        costs_from: the folder with `costs.json`.
        failures: folder and error of runs that failed, for the record.

    Raises:
        ValueError: no runs, an unfinished one, a damaged one, or runs of different data.
    """
    if not runs:
        raise ValueError("there are no runs to compare")
    loaded = [_load(run, runs[0]) for run in runs]
    shared: dict[str, Any] = {
        f.name: f.default for f in fields(RunConfig) if f.name in OWN_TO_A_RUN
    }
    groups: dict[RunConfig, list[_Loaded]] = {}
    for item in loaded:
        groups.setdefault(replace(item.run.config, **shared), []).append(item)
    costs = _read_costs(costs_from)
    named = [
        (name, sorted(items, key=lambda item: item.run.config.seed))
        for name, items in zip(_names(list(groups)), groups.values(), strict=True)
    ]
    for name, items in named:
        seeds = [item.run.config.seed for item in items]
        for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"{name} has more than one run with seed {seed}; name each run once")
    entrants = [(_entrant(name, items, costs), items) for name, items in named]
    entrants.sort(key=lambda pair: -pair[0].test_accuracy.mean)
    first = runs[0].data
    return Comparison(
        data=first.name,
        fingerprint=first.fingerprint,
        num_test=first.num_test,
        classes=first.classes,
        models=tuple(entrant for entrant, _ in entrants),
        pairs=_pairs(entrants),
        disagreements=_disagreements(entrants, first.classes),
        failures=failures or {},
    )


def _load(run: Run, first: Run) -> _Loaded:
    result = run.result()
    if result is None:
        raise ValueError(
            f"{run.folder} has not finished; continue it with `halfmeg resume {run.folder}`"
        )
    if run.data.fingerprint != first.data.fingerprint:
        raise ValueError(f"{run.folder} was trained on other data than {first.folder}")
    return _Loaded(run, result, run.load_logits())


def _names(configs: list[RunConfig]) -> list[str]:
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
    return names


def _entrant(name: str, items: list[_Loaded], costs: dict[str, Cost]) -> Entrant:
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
        test_accuracy=_cut(student_interval(values), 0.0, 1.0),
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
        robustness=_mean_robustness([i.run for i in items]),
        cost=costs.get(_shape_name(config.model, config.budget)),
        runs=tuple(i.run for i in items),
    )


def _cut(interval: Interval, least: float, largest: float) -> Interval:
    """Cut off what cannot be; an interval from two or three seeds can reach there."""
    if interval.lo is None or interval.hi is None:
        return interval
    return Interval(interval.mean, max(least, interval.lo), min(largest, interval.hi))


def _mean_robustness(runs: Sequence[Run]) -> Robustness | None:
    measured = [_read_json(run.folder / "robustness.json") for run in runs]
    stored = [m for m in measured if m is not None]
    if len(stored) < len(runs):
        return None
    try:
        clean = float(np.mean([m["clean"] for m in stored]))
        rows = {
            name: np.mean([m["accuracy"][name] for m in stored], axis=0).tolist()
            for name in CORRUPTIONS
        }
    except (KeyError, TypeError, ValueError) as error:
        message = f"{runs[0].folder / 'robustness.json'} is damaged: {error}"
        raise ValueError(message) from None
    return {"clean": [clean]} | rows


def _read_costs(folder: Path | None) -> dict[str, Cost]:
    path = (folder or Path()) / "costs.json"
    stored = _read_json(path) if folder is not None else None
    try:
        return {name: Cost(**cost) for name, cost in (stored or {}).items()}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return value


def _pairs(entrants: list[tuple[Entrant, list[_Loaded]]]) -> tuple[PairResult, ...]:
    drafts = [
        _pair(a, b, a_items, b_items)
        for i, (a, a_items) in enumerate(entrants)
        for b, b_items in entrants[i + 1 :]
    ]
    tested = [pair for pair in drafts if pair.p_value is not None]
    adjusted = iter(holm([pair.p_value for pair in tested if pair.p_value is not None]))
    return tuple(
        replace(pair, p_adjusted=next(adjusted), num_pairs=len(tested))
        if pair.p_value is not None
        else pair
        for pair in drafts
    )


def _pair(a: Entrant, b: Entrant, a_items: list[_Loaded], b_items: list[_Loaded]) -> PairResult:
    by_seed = {item.run.config.seed: item for item in b_items}
    shared = [(item, by_seed[s]) for item in a_items if (s := item.run.config.seed) in by_seed]
    if not shared:
        raise ValueError(f"{a.name} and {b.name} share no seed")
    differences = np.stack([first.right - second.right for first, second in shared])
    several = len(shared) > 1
    p_mcnemar = combined_mcnemar_p(differences)
    num_images = differences.shape[1]
    return PairResult(
        a=a.name,
        b=b.name,
        difference=_cut(difference_interval(differences), -1.0, 1.0),
        num_seeds=len(shared),
        num_images=num_images,
        mcnemar=tuple(mcnemar_p(row) for row in differences),
        p_mcnemar=p_mcnemar,
        p_value=max(p_mcnemar, seeds_p(differences)) if several else None,
        p_adjusted=None,
        num_pairs=1,
        seeds_needed=CrossedVariance.of(differences).seeds_needed(SEEN_DIFFERENCE, num_images)
        if several
        else None,
        terms=_unequal_terms(a, b),
    )


def _unequal_terms(a: Entrant, b: Entrant) -> tuple[str, ...]:
    first, second = (entrant.runs[0].config.to_dict() for entrant in (a, b))
    notes = [
        f"{key}: {first[key]} against {second[key]}" for key in TERMS if first[key] != second[key]
    ]
    if len(a.runs) != len(b.runs):
        notes.append(f"seeds: {len(a.runs)} against {len(b.runs)}")
    notes += [
        f"{entrant.name} has {entrant.params:,} parameters, over the budget of {BUDGET:,}"
        for entrant in (a, b)
        if not entrant.within_budget
    ]
    small, large = sorted((a, b), key=lambda entrant: entrant.params)
    if large.params > 2 * small.params:
        times = large.params / small.params
        notes.append(f"{large.name} has {times:.1f} times the parameters of {small.name}")
    return tuple(notes)


def _disagreements(
    entrants: list[tuple[Entrant, list[_Loaded]]], classes: tuple[str, ...]
) -> tuple[Disagreement, ...]:
    """Choose the images on which answers differ, those first whose answers are surest."""
    if len(entrants) < 2:
        return ()
    probs = torch.stack(
        [
            torch.stack([i.logits["test_logits"].softmax(1) for i in items]).mean(0)
            for _, items in entrants
        ]
    )  # M×N×K
    confidence, predicted = probs.max(2)  # M×N
    differ = (predicted != predicted[0]).any(0)
    rank = torch.where(differ, confidence.amin(0), -1.0)
    chosen = rank.argsort(descending=True, stable=True)[: min(NUM_DISAGREEMENTS, int(differ.sum()))]
    labels = entrants[0][1][0].logits["test_labels"]
    return tuple(
        Disagreement(
            index=i,
            label=classes[int(labels[i])],
            answers={
                entrant.name: (classes[int(predicted[m, i])], float(confidence[m, i]))
                for m, (entrant, _) in enumerate(entrants)
            },
        )
        for i in chosen.tolist()
    )
