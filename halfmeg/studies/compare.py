"""Comparisons: what the runs of each network say together, and how sure that is.

Everything comes from run folders. An entrant is a network with a recipe; its runs are its seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Unpack

import torch

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig, as_configs
from halfmeg.data.dataset import DataSplits, require_splits
from halfmeg.data.folds import Folds, parse_fold
from halfmeg.studies.entrant import OWN_TO_A_RUN, Entrant, build_entrant, name_entrants
from halfmeg.studies.folder import StudyData
from halfmeg.studies.letters import compact_letters
from halfmeg.studies.loaded import LoadedRun, load_runs
from halfmeg.studies.measure import measure, read_costs
from halfmeg.studies.reading import MARGIN, Reading, record_look
from halfmeg.studies.study import HowTrained, PlannedStudy, Study, make_configs, plan_study
from halfmeg.studies.verdict import PairResult, compare_pairs, interval_name
from halfmeg.studies.workers import StudyListener

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
        folds: of a study of folds, how many the images are divided into; None for another.
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
    folds: int | None = None

    @property
    def unit(self) -> str:
        """What a network has several runs of: `seed` or `fold`."""
        return "seed" if self.folds is None else "fold"

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

    @property
    def constant_accuracy(self) -> float:
        """What an answer would score that is always the most frequent class of the test images."""
        totals = [sum(row) for row in self.models[0].confusion]
        return max(totals) / sum(totals)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "data": self.data,
            "fingerprint": self.fingerprint,
            "num_test": self.num_test,
            "constant_accuracy": self.constant_accuracy,
            "classes": list(self.classes),
            "reading": self.reading.to_dict(),
            "stopped": self.stopped,
            "folds": self.folds,
            "ranking": self.ranking,
            "letters": dict(zip([m.name for m in self.models], self.letters, strict=True)),
            "models": [model.to_dict() for model in self.models],
            "pairs": [pair.to_dict() for pair in self.pairs],
            "verdicts": [pair.verdict for pair in self.pairs],
            "disagreements": [item.to_dict() for item in self.disagreements],
            "failures": self.failures,
        }


class NoRunFinishedError(ValueError):
    """Every run of a study failed; `failures` has the error of each."""

    def __init__(self, failures: dict[str, str]) -> None:
        name, error = next(iter(failures.items()))
        super().__init__(f"no run finished; {name}: {error}")
        self.failures = failures


def compare(
    models: Sequence[Any],
    data: DataSplits,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    margin: float = MARGIN,
    tuned_on: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    listener: StudyListener | None = None,
) -> Comparison:
    """Train models × recipes × seeds, or folds, and compare them; what is trained is kept.

    Args:
        models: names of `MODELS`; networks of one's own by their place, such as `FILE.py:NAME`, or
            as a class, function or instance.
        data: what all are trained and tested on.
        seeds: seeds 0 to seeds - 1 for every model; a seed pairs the runs of all models.
        folds: instead of seeds: all images are divided into so many folds, and each model is
            tested once on each, trained on the others (docs/folds.md).
        out: the study's folder.
        config: the terms, one recipe or several; model and seed are replaced.
        workers, cluster, gpus_per_run, stack, listener: as for `run_study`.
        margin: difference within which two networks are called the same, 0 to 1.
        tuned_on: folders of the studies, searches or runs by which the settings were chosen: what
            was tried there for each network is counted as its `tuning_trials`.
        beside: folders of studies on other data that belong to this one; their runs are not
            counted there, nor are its own.

    Raises:
        ValueError: no model, a model twice, fewer than one seed, seeds and folds or neither, or too
            many folds.
        NoRunFinishedError: every run failed.

    Example:
        >>> from halfmeg import build_recipe, compare, load_dataset
        >>> terms = build_recipe("common").override(["epochs=1"])
        >>> data = load_dataset("digits")
        >>> found = compare(["cnn", "resnet-linear"], data, seeds=2, out="runs/two", config=terms)
        >>> found.pairs[0].verdict
        '... (95% interval ...; 2 seeds, 360 images)...'
    """
    planned = plan_comparison(
        models, data, seeds=seeds, folds=folds, out=out, config=config, workers=workers,
        cluster=cluster, gpus_per_run=gpus_per_run, stack=stack, margin=margin, tuned_on=tuned_on,
        beside=beside,
    )  # fmt: skip
    with planned.holding():
        return compare_study(planned.run(listener), planned.data, listener)


def plan_comparison(
    models: Sequence[Any],
    data: DataSplits,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    out: str | Path,
    config: RunConfig | Sequence[RunConfig],
    margin: float = MARGIN,
    tuned_on: Sequence[str | Path] = (),
    beside: Sequence[str | Path] = (),
    **how: Unpack[HowTrained],
) -> PlannedStudy:
    """Check what `compare` would train, its folder too, before this or another is trained.

    Args:
        models, data, seeds, folds, out, config, margin, tuned_on, beside: as for `compare`.
        how: workers, cluster, gpus_per_run and stack, as for `run_study`.

    Raises:
        ValueError: as for `compare`.
    """
    require_splits(data)
    recipes = as_configs(config)
    if (seeds is None) == (folds is None):
        raise ValueError(f"seeds={seeds} and folds={folds}; give one of the two")
    divided = data if folds is None else Folds.of(data, folds)
    configs = make_configs(models, recipes, seeds or folds or 0, tuned_on, [out, *beside])
    return plan_study(configs, divided, out, reading=Reading(margin), **how)


def cross_validate(
    config: RunConfig,
    data: DataSplits,
    *,
    folds: int,
    out: str | Path,
    listener: StudyListener | None = None,
) -> Comparison:
    """Train and test one network on every fold of all images; what is trained already is kept.

    Args:
        config: what to train and how; fold i has the seed i - 1.
        data: a source; the images of all its parts are divided.
        folds: how many.
        out: the study's folder.
        listener: as for `run_study`.

    Raises:
        ValueError: as for `compare`.

    Example:
        >>> from halfmeg import build_recipe, cross_validate, load_dataset
        >>> config = build_recipe("common").override(["model=cnn", "epochs=1"])
        >>> found = cross_validate(config, load_dataset("digits"), folds=5, out="runs/folds")
        >>> found.models[0].test_accuracy
        Interval(mean=..., lo=..., hi=...)
    """
    as_configs([config])
    return compare([config.model], data, folds=folds, out=out, config=config, listener=listener)


def compare_study(
    study: Study, data: StudyData, listener: StudyListener | None = None
) -> Comparison:
    """Compare the runs of a study, with robustness and costs measured where they are missing.

    Raises:
        NoRunFinishedError: every run failed.
    """
    if not study.runs:
        raise NoRunFinishedError(study.failures)
    (listener or StudyListener()).on_measure()
    measure(study.runs, data, study.folder)
    out, failures, reading = study.folder, study.failures, study.reading
    found = compare_runs(study.runs, costs_from=out, failures=failures, reading=reading)
    record_look(out, max(len(model.runs) for model in found.models), reading.margin)
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
        failures: folder and error of runs that failed, for the record. Where they have left no
            two networks a seed in common, there are no pairs.
        reading: level, margin and earlier looks; None: the usual.

    Raises:
        ValueError: no runs, an unfinished one, a damaged one, runs of different data, or networks
            of which no two share a seed, though none has failed.
    """
    if not runs:
        raise ValueError("there are no runs to compare")
    reading = reading or Reading()
    loaded = load_runs(runs)
    shared: dict[str, Any] = {
        f.name: f.default for f in fields(RunConfig) if f.name in OWN_TO_A_RUN
    }
    groups: dict[RunConfig, list[LoadedRun]] = {}
    for item in loaded:
        groups.setdefault(replace(item.config, **shared), []).append(item)
    costs = read_costs(costs_from)
    named = [
        (name, sorted(items, key=lambda item: item.unit))
        for name, items in zip(name_entrants(list(groups)), groups.values(), strict=True)
    ]
    entrants = [(build_entrant(name, items, costs, reading.level), items) for name, items in named]
    entrants.sort(key=lambda pair: -pair[0].test_accuracy.mean)
    first, fold = runs[0].data, runs[0].options.fold
    tested = {item.unit: item.run.data.num_test for item in loaded}
    return Comparison(
        data=first.name,
        fingerprint=first.fingerprint,
        num_test=sum(tested.values()) if fold else first.num_test,
        classes=first.classes,
        models=tuple(entrant for entrant, _ in entrants),
        pairs=compare_pairs(
            entrants, level=reading.level, margin=reading.margin, required=not failures
        ),
        disagreements=_disagreements(entrants, first.classes),
        failures=failures or {},
        reading=reading,
        folds=parse_fold(fold)[1] if fold else None,
    )


def _disagreements(
    entrants: list[tuple[Entrant, list[LoadedRun]]], classes: tuple[str, ...]
) -> tuple[Disagreement, ...]:
    """Choose the images on which answers differ, those first whose answers are surest."""
    if len(entrants) < 2:
        return ()
    folded = entrants[0][1][0].folded
    if folded and len({tuple(item.unit for item in items) for _, items in entrants}) > 1:
        return ()  # a fold that failed leaves images without an answer
    # The folds' images are those of one source, one fold after another.
    join = torch.cat if folded else lambda seeds: torch.stack(seeds).mean(0)
    probs = torch.stack(
        [join([i.logits["test_logits"].softmax(1) for i in items]) for _, items in entrants]
    )  # M×N×K
    confidence, predicted = probs.max(2)  # M×N
    differ = (predicted != predicted[0]).any(0)
    rank = torch.where(differ, confidence.amin(0), -1.0)
    chosen = rank.argsort(descending=True, stable=True)[: min(NUM_DISAGREEMENTS, int(differ.sum()))]
    answered = entrants[0][1] if folded else entrants[0][1][:1]
    labels = torch.cat([item.logits["test_labels"] for item in answered])
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
