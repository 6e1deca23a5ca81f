"""Studies: many runs in one folder, of which a second call trains only what is missing.

A study is a folder of runs, models × recipes × seeds, described by `study.json`. Each run is
complete in its own folder, so nothing but a run under way is lost when the study is stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from halfmeg.artifacts.refusals import no_run
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import keep_objects
from halfmeg.config import RunConfig, tell_apart
from halfmeg.data.folds import Folds
from halfmeg.places.place import check_in_file, hand_over, numbered
from halfmeg.places.source import holding
from halfmeg.studies.folder import StudyData, check_runs, name_folders, write_study
from halfmeg.studies.pool import threads_each
from halfmeg.studies.reading import Reading, read_study
from halfmeg.studies.trials import with_trials
from halfmeg.studies.workers import Outcomes, StudyListener, Task, Workers
from halfmeg.training.job import check, check_places
from halfmeg.training.stack import check_stack

NOT_FINISHED = "it has not finished"
"""Why a run that did not fail is not among those of its study."""


class HowTrained(TypedDict, total=False):
    """Settings of `run_study` that say where runs are trained."""

    workers: int
    cluster: str | None
    gpus_per_run: float
    stack: bool


@dataclass(frozen=True)
class Study:
    """What a study has: its finished runs, and for each run that failed the error."""

    folder: Path
    runs: tuple[Run, ...]
    failures: dict[str, str]

    @property
    def reading(self) -> Reading:
        """How it is read, after all looks until now: those of `report` while it trained, too."""
        return Reading.of(self.folder)


def make_configs(
    models: Sequence[Any],
    recipes: Sequence[RunConfig],
    seeds: int,
    tuned_on: Sequence[str | Path] = (),
    own: Sequence[str | Path] = (),
) -> list[RunConfig]:
    """Return models × recipes × seeds 0 to `seeds` - 1, seed by seed.

    A model is a name of `MODELS`, a place, or a network handed over from Python. What was tried
    for it in the folders `tuned_on` is counted as its `tuning_trials`, but for the runs in `own`,
    which are the study's.

    Raises:
        ValueError: a model or recipe twice, none of them, fewer than one seed, or a folder without
            runs.
    """
    if isinstance(models, str):  # a sequence of letters
        raise ValueError(f"models={models!r} is one text; write it in a list: [{models!r}]")
    models = numbered([hand_over(model) for model in models])
    if len(set(models)) < max(1, len(models)):
        raise ValueError(f"models={', '.join(models)} is not allowed; name each model once")
    names = [recipe.recipe for recipe in recipes]
    if len(set(names)) < max(1, len(names)):
        raise ValueError(f"recipes={', '.join(names)} is not allowed; name each recipe once")
    if seeds < 1:
        raise ValueError(f"seeds={seeds} is out of range; allowed: 1 or more")
    terms = [
        with_trials(replace(recipe, model=model), tuned_on, own)
        for recipe in recipes
        for model in models
    ]
    return [replace(config, seed=seed) for seed in range(seeds) for config in terms]


@dataclass(frozen=True)
class PlannedStudy:
    """A study that can be trained, of which nothing is written yet.

    Attributes:
        configs, folders: its runs, and what each is called below `out`.
        data: what they are of.
        how: where they are trained.
        reading: how it is read.
    """

    configs: tuple[RunConfig, ...]
    folders: tuple[str, ...]
    data: StudyData
    out: Path
    how: Workers
    reading: Reading

    def run(self, listener: StudyListener | None = None) -> Study:
        """Train what is missing.

        Raises:
            ValueError: the folder cannot be written, or the cluster does not answer.
            TrainingInterruptedError: Ctrl-C or SIGTERM; started again, the study goes on.
        """
        with self.holding():
            return self._run(listener or StudyListener())

    def holding(self) -> AbstractContextManager[None]:
        """Let Python of the user's own stay what it is now, whatever is edited meanwhile."""
        return holding({place for config in self.configs for place in config.places().values()})

    def _run(self, listener: StudyListener) -> Study:
        out = self.out
        now = Reading.of(out)  # it may have been read since it was planned
        reading = replace(self.reading, looks=now.looks, margins=now.margins)
        write_study(out, self.configs, self.folders, self.data, reading)
        for config, name in zip(self.configs, self.folders, strict=True):
            keep_objects(out / name, config.places())
        tasks = [
            (config, out / name)
            for config, name in zip(self.configs, self.folders, strict=True)
            if not (out / name / "result.json").exists()
        ]
        if self.how.cluster is None:
            listener.on_begin([config for config, _ in tasks])
        outcomes = (
            _train_folds(tasks, self.data, self.how, listener)
            if isinstance(self.data, Folds)
            else self.how.train(tasks, self.data, listener)
        )
        failures: dict[str, str] = {}
        done = len(self.configs) - len(tasks)
        for (config, folder), error in outcomes:
            done += 1
            if error is not None:
                failures[folder.name] = error
            listener.on_run(config, error, done, len(self.configs))
        runs = tuple(Run.open(out / name) for name in self.folders if name not in failures)
        return Study(out, runs, failures)


def plan_study(
    configs: Sequence[RunConfig],
    data: StudyData,
    out: str | Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    reading: Reading | None = None,
) -> PlannedStudy:
    """Check a study and its folder, before anything of it, or of another, is trained.

    Args:
        configs, data, out, workers, cluster, gpus_per_run, stack, reading: as for `run_study`.

    Raises:
        ValueError: as for `run_study`.
    """
    out = Path(out)
    if workers < 1:
        raise ValueError(f"workers={workers} is out of range; allowed: 1 or more")
    if not configs:
        raise ValueError("a study needs at least one run")
    configs = tell_apart(configs)
    _check_way(workers, cluster, gpus_per_run, stack=stack)
    seeds = {config.seed for config in configs}
    if not isinstance(data, Folds) and len(seeds) > 1:
        require_no_fold(data.options.get("fold"))
    if workers > 1 or cluster is not None:
        at_once = len(configs) // len(seeds) if isinstance(data, Folds) else len(configs)
        threads = 1 if cluster is not None else threads_each(min(workers, at_once))
        configs = [c if c.threads else replace(c, threads=threads) for c in configs]
        for config in configs:
            check_in_file(config.places().values(), "other processes")
    folders = name_folders(configs, "fold" if isinstance(data, Folds) else "seed")
    _check_configs(configs, [(out / name / "result.json").exists() for name in folders], data,
                   here=cluster is None)  # fmt: skip
    if stack:
        _check_stacks(configs, data)
    check_runs(out, configs, folders, data)
    reading = Reading.of(out).go_on(reading or Reading(), out)
    how = Workers(workers, cluster, gpus_per_run, stack)
    return PlannedStudy(tuple(configs), tuple(folders), data, out, how, reading)


def run_study(
    configs: Sequence[RunConfig],
    data: StudyData,
    out: str | Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    reading: Reading | None = None,
    listener: StudyListener | None = None,
) -> Study:
    """Train every config into a folder of `out`; finished runs are kept, others continued.

    Runs of the same seed are paired: they share split, order and augmentation draws. A run that
    fails is reported with its error, and the others go on.

    Args:
        configs: the runs; no two may have the same model, recipe and seed.
        data: what all of them are trained on; of folds, seed 0 has the first one, and so on.
        out: the study's folder. It may hold an earlier part of the same study.
        workers: runs at once, each in a process of its own with its share of the cores.
        cluster: the address of a Ray cluster, or "auto"; its nodes train instead of this machine.
        gpus_per_run: share of a GPU that a run asks the cluster for.
        stack: whether runs that differ in their seed only are trained at once in this process, by
            `halfmeg.training.stack`, which fills a large GPU.
        reading: how it is read; None: once, as usual.
        listener: is told how it goes.

    Raises:
        ValueError: `out` holds something else than an earlier part of the same study, the cluster
            does not answer, or runs are to be stacked that take no stack, such as those of folds.
        TrainingInterruptedError: Ctrl-C or SIGTERM; started again, the study goes on.
    """
    planned = plan_study(
        configs, data, out, workers=workers, cluster=cluster, gpus_per_run=gpus_per_run,
        stack=stack, reading=reading,
    )  # fmt: skip
    return planned.run(listener)


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Open run folders, and of study folders the runs that stand in `study.json`.

    Raises:
        ValueError: a folder is neither, or a study's run is missing or damaged.
    """
    runs: list[Run] = []
    for folder in map(Path, folders):
        stored = read_study(folder)
        if stored is not None:
            runs += [Run.open(folder / run.folder) for run in stored.runs]
        elif (folder / "config.json").exists():
            runs.append(Run.open(folder))
        else:
            raise no_run(
                folder, "it has neither config.json nor study.json; name those of runs or a study"
            )
    return runs


def open_finished(folders: Sequence[str | Path]) -> tuple[list[Run], dict[str, str]]:
    """Open what `open_runs` opens, but of studies the finished runs alone.

    Returns:
        The runs; and by its folder's name, of several studies by its path, why a study's run is
        not among them.

    Raises:
        ValueError: as `open_runs`, or a study without a finished run.
    """
    runs: list[Run] = []
    failures: dict[str, str] = {}
    for folder in map(Path, folders):
        stored = read_study(folder)
        if stored is None:
            runs += open_runs([folder])
            continue
        own = [folder / run.folder for run in stored.runs]
        begun = [Run.open(path) for path in own if (path / "config.json").exists()]
        finished = [run for run in begun if run.result() is not None]
        if not finished:
            raise ValueError(
                f"{folder} has no finished run: it is a study, and goes on by the same "
                "`halfmeg compare` or `train --folds` as before"
            )
        runs += finished
        names = {run.folder.name for run in finished}
        failures |= {
            path.name if len(folders) == 1 else str(path): NOT_FINISHED
            for path in own
            if path.name not in names
        }
    return runs, failures


def _train_folds(
    tasks: Sequence[Task], data: Folds, how: Workers, listener: StudyListener
) -> Outcomes:
    """Train fold by fold, so that only one is in memory."""
    for fold in range(data.count):
        own = [(config, folder) for config, folder in tasks if config.seed == fold]
        if own:
            yield from how.train(own, data.splits(fold), listener)


def require_no_fold(fold: str | int | None) -> None:
    """Raise where several seeds are to be trained on one fold, by which runs would be paired."""
    if fold:
        raise ValueError(
            f"fold={fold} is one fold, of which several seeds are not compared; leave it out"
        )


def _check_way(workers: int, cluster: str | None, gpus_per_run: float, *, stack: bool) -> None:
    """Raise where two ways to train are named, or a share of GPUs that nobody is asked for."""
    ways = {
        f"workers={workers}": workers > 1, f"cluster={cluster}": cluster is not None,
        "a stack": stack,
    }  # fmt: skip
    named = [way for way, given in ways.items() if given]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} exclude each other; leave one of them out")
    if gpus_per_run and cluster is None:
        raise ValueError(
            f"gpus_per_run={gpus_per_run:g} is for a cluster; name one, or leave it out"
        )


def _check_configs(
    configs: Sequence[RunConfig], trained: Sequence[bool], data: StudyData, *, here: bool
) -> None:
    """Raise before anything is trained what would fail in each run; a cluster has other devices."""
    tried = data.data if isinstance(data, Folds) else data
    every = [replace(config, seed=0) for config in configs]
    missing = {config for config, is_there in zip(every, trained, strict=True) if not is_there}
    for config in dict.fromkeys(every):
        (check if here and config in missing else check_places)(config, tried)


def _check_stacks(configs: Sequence[RunConfig], data: StudyData) -> None:
    if isinstance(data, Folds):
        raise ValueError("folds and a stack exclude each other; leave one of them out")
    for terms in dict.fromkeys(replace(config, seed=0) for config in configs):
        check_stack([config for config in configs if replace(config, seed=0) == terms], data)
