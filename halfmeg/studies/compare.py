"""Comparisons: what the runs of each network say together, and how sure that is.

Everything comes from run folders. An entrant is a network with a recipe; its runs are its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.studies.entrant import (
    OWN_TO_A_RUN,
    Entrant,
    LoadedRun,
    build_entrant,
    load_run,
    name_entrants,
)
from halfmeg.studies.letters import compact_letters
from halfmeg.studies.measure import measure, read_costs
from halfmeg.studies.power import LOOKS, is_futile
from halfmeg.studies.reading import MARGIN, Reading
from halfmeg.studies.study import Study, StudyListener, make_configs, run_study
from halfmeg.studies.verdict import PairResult, compare_pairs, interval_name

NUM_DISAGREEMENTS = 12


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
    """Networks compared on the same data: entrants in the order of test accuracy.

    Attributes:
        reading: the level of every interval and verdict, and earlier looks.
        stopped: why a study that runs until it is decided has ended; None for another.
    """

    data: str
    fingerprint: str
    num_test: int
    classes: tuple[str, ...]
    models: tuple[Entrant, ...]
    pairs: tuple[PairResult, ...]
    disagreements: tuple[Disagreement, ...]
    failures: dict[str, str]
    reading: Reading
    stopped: str | None = None

    @property
    def interval_name(self) -> str:
        """What its intervals are called, such as `95% interval`."""
        return interval_name(self.reading.level)

    @property
    def letters(self) -> tuple[str, ...]:
        """Letters of each entrant: two that share one are not told apart."""
        index = {model.name: i for i, model in enumerate(self.models)}
        apart = [(index[pair.a], index[pair.b]) for pair in self.pairs if pair.told_apart]
        return tuple(compact_letters(len(self.models), apart))

    @property
    def ranking(self) -> str:
        """The entrants in their order, in groups that are not told apart."""
        places = ", ".join(
            f"{model.name} {100 * model.test_accuracy.mean:.1f}% ({letters})"
            for model, letters in zip(self.models, self.letters, strict=True)
        )
        if len(set(self.letters)) == 1:
            return f"None is told apart from another: {places}"
        num_pairs = len(self.models) * (len(self.models) - 1) // 2
        if sum(pair.told_apart for pair in self.pairs) == num_pairs:
            return f"{places}: each is told apart from all others"
        return f"{places}; those that share a letter are not told apart"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "num_test": self.num_test,
            "classes": list(self.classes),
            "reading": self.reading.to_dict(),
            "stopped": self.stopped,
            "ranking": self.ranking,
            "letters": dict(zip([m.name for m in self.models], self.letters, strict=True)),
            "models": [model.to_dict() for model in self.models],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "verdicts": [pair.verdict for pair in self.pairs],
            "disagreements": [item.to_dict() for item in self.disagreements],
            "failures": self.failures,
        }


def compare(
    models: Sequence[Any],
    data: DataSplits,
    *,
    seeds: int,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    margin: float = MARGIN,
    listener: StudyListener | None = None,
) -> Comparison:
    """Train models × recipes × seeds and compare them; what is trained already is kept.

    Args:
        models: names of `MODELS`; networks of one's own by their place, such as `FILE.py:NAME`, or
            as a class, function or instance.
        data: what all are trained and tested on.
        seeds: seeds 0 to seeds - 1 for every model; a seed pairs the runs of all models.
        out: the study's folder.
        config: the terms, one recipe or several; model and seed are replaced.
        workers, cluster, gpus_per_run, stack, listener: as for `run_study`.
        margin: difference within which two networks are called the same, 0 to 1.

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
        stack=stack, reading=Reading(margin), listener=listener,
    )  # fmt: skip
    return compare_study(study, data)


def compare_until_decided(
    models: Sequence[str],
    data: DataSplits,
    *,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    margin: float = MARGIN,
    listener: StudyListener | None = None,
) -> Comparison:
    """Train and compare with 5, 8, 12, 20 seeds, until every pair is decided.

    The looks and their level are written into `study.json` before the first run, and every
    interval of the study is at that level, 98.75%: so reading it four times makes false verdicts in
    no more than 5% of studies. It also ends when what is open will hardly be decided by the last
    look.

    Args:
        models, data, out, config, margin: as for `compare`.
        workers, cluster, gpus_per_run, stack, listener: as for `run_study`.

    Raises:
        ValueError: as for `compare`, or a study that was planned or read otherwise before.
    """
    recipes = [config] if isinstance(config, RunConfig) else list(config)
    for seeds in LOOKS:
        study = run_study(
            make_configs(models, recipes, seeds), data, out, workers=workers, cluster=cluster,
            gpus_per_run=gpus_per_run, stack=stack, reading=Reading.until_decided(margin),
            listener=listener,
        )  # fmt: skip
        if study.failures or seeds == LOOKS[-1]:
            break
        pairs = compare_runs(study.runs, reading=study.reading).pairs
        unsettled = [pair for pair in pairs if pair.outcome == "open"]
        study.record_look(seeds)
        if not unsettled:
            return replace(compare_study(study, data), stopped=f"decided with {seeds} seeds")
        if all(is_futile(pair.test, margin, LOOKS[-1]) for pair in unsettled):
            reason = (
                f"ended with {seeds} seeds: what is open would hardly be decided with {LOOKS[-1]}"
            )
            return replace(compare_study(study, data), stopped=reason)
    return replace(compare_study(study, data), stopped=f"ended with {seeds} seeds, the last look")


def compare_study(study: Study, data: DataSplits) -> Comparison:
    """Compare the runs of a study, with robustness and costs measured where they are missing.

    Raises:
        ValueError: no run finished.
    """
    if not study.runs:
        name, error = next(iter(study.failures.items()))
        raise ValueError(f"no run finished; {name}: {error}")
    measure(study.runs, data, study.folder)
    found = compare_runs(
        study.runs, costs_from=study.folder, failures=study.failures,
        reading=study.reading,
    )  # fmt: skip
    study.record_look(max(len(model.runs) for model in found.models))
    return found


def compare_runs(
    runs: Sequence[Run],
    *,
    costs_from: Path | None = None,
    failures: dict[str, str] | None = None,
    reading: Reading | None = None,
) -> Comparison:
    """Compare finished runs; the entrants come sorted by mean test accuracy.

    Args:
        runs: of the same data; those that differ in the seed alone are one entrant.
        costs_from: the folder with `costs.json`.
        failures: folder and error of runs that failed, for the record.
        reading: level, margin and earlier looks; None: the usual.

    Raises:
        ValueError: no runs, an unfinished one, a damaged one, or runs of different data.
    """
    if not runs:
        raise ValueError("there are no runs to compare")
    reading = reading or Reading()
    loaded = [load_run(run, runs[0]) for run in runs]
    shared: dict[str, Any] = {
        f.name: f.default for f in fields(RunConfig) if f.name in OWN_TO_A_RUN
    }
    groups: dict[RunConfig, list[LoadedRun]] = {}
    for item in loaded:
        groups.setdefault(replace(item.config, **shared), []).append(item)
    costs = read_costs(costs_from)
    named = [
        (name, sorted(items, key=lambda item: item.run.config.seed))
        for name, items in zip(name_entrants(list(groups)), groups.values(), strict=True)
    ]
    for name, items in named:
        seeds = [item.run.config.seed for item in items]
        for seed in sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            raise ValueError(f"{name} has more than one run with seed {seed}; name each run once")
    entrants = [(build_entrant(name, items, costs, reading.level), items) for name, items in named]
    entrants.sort(key=lambda pair: -pair[0].test_accuracy.mean)
    first = runs[0].data
    return Comparison(
        data=first.name,
        fingerprint=first.fingerprint,
        num_test=first.num_test,
        classes=first.classes,
        models=tuple(entrant for entrant, _ in entrants),
        pairs=compare_pairs(entrants, level=reading.level, margin=reading.margin),
        disagreements=_disagreements(entrants, first.classes),
        failures=failures or {},
        reading=reading,
    )


def _disagreements(
    entrants: list[tuple[Entrant, list[LoadedRun]]], classes: tuple[str, ...]
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
