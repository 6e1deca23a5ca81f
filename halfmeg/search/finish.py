"""The end of a search: the winner against simple networks, with several seeds on equal terms.

Only here is the test set read, once a run. The winner was chosen by validation images before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.table import MODELS
from halfmeg.places.place import file_name, is_place
from halfmeg.search.budget import Limits, measure_costs
from halfmeg.search.front import best_of
from halfmeg.search.record import Final, Stored, Trial, decided, write_stored
from halfmeg.search.schedule import SEEDS, fit_final
from halfmeg.search.segment import time_epoch
from halfmeg.search.trials import Search
from halfmeg.studies.compare import Comparison, compare_runs
from halfmeg.studies.study import Study, run_study
from halfmeg.studies.workers import StudyListener
from halfmeg.training.fit import resume
from halfmeg.training.job import check

BASELINES = ("cnn", "resnet20", "record", "resnet8", "sprint", "mobilenetv2", "mlp")
"""What a winner is compared with where the user names nothing: the first three that fit."""

NUM_BASELINES = 3
BUDGET_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Of the parameters that a limit allows, at which a network that scales is tried."""

END_SHARE = 0.9
"""Of the time that is left, for the last comparison; the rest is for its page."""

SHORTEST_SECONDS = 120
"""A search of less time compares nothing."""

Baseline = tuple[str, int]
"""A network and its budget."""


@dataclass(frozen=True)
class Outcome:
    """What a search has come to.

    Attributes:
        winner: the trial with the best validation accuracy.
        run: its finished run, the one to ship.
        comparison: with the baselines; None where there was no time for it, or none was wanted.
        entrant: the winner's name in it.
    """

    winner: Trial
    run: Run
    comparison: Comparison | None = None
    entrant: str = ""

    @property
    def verdicts(self) -> list[str]:
        """What the comparison says of the winner and each baseline."""
        pairs = self.comparison.pairs if self.comparison else ()
        return [pair.verdict for pair in pairs if self.entrant in (pair.a, pair.b)]


def choose_baselines(stored: Stored, data: DataSplits) -> list[Baseline]:
    """Return the networks to compare a winner with.

    Raises:
        ValueError: one that the user named cannot be built.
    """
    if not stored.compare or stored.seconds < SHORTEST_SECONDS:
        return []
    if stored.baselines is not None:
        return [_named(text, stored.limits, data) for text in stored.baselines]
    found = (_within(name, stored.limits, data) for name in BASELINES)
    return [baseline for baseline in found if baseline is not None][:NUM_BASELINES]


def _named(text: str, limits: Limits, data: DataSplits) -> Baseline:
    """Return a network that the user named, also one that is over a limit, or a run's."""
    if (Path(text) / "config.json").is_file():
        config = Run.open(text).config
        return config.model, config.budget
    if not is_place(text) and text in MODELS and MODELS[text].scalable:
        return _within(text, limits, data) or (text, BUDGET)
    measure_costs(text, len(data.classes), data.image_shape, Limits())  # raises for an unknown one
    return text, BUDGET


def _within(name: str, limits: Limits, data: DataSplits) -> Baseline | None:
    """Return a network with the largest budget that is within the limits; None without any."""
    if not MODELS[name].takes(data.image_shape):
        return None
    most = min(BUDGET, (limits.params or BUDGET) + 1, limits.flash or BUDGET)
    budgets = (
        [round(share * most) for share in BUDGET_SHARES] if MODELS[name].scalable else [BUDGET]
    )
    for budget in budgets:
        try:
            costs = measure_costs(name, len(data.classes), data.image_shape, limits, budget=budget)
        except ValueError:
            return None
        if limits.fits(costs):
            return name, budget
    return None


def time_baselines(
    baselines: Sequence[Baseline], terms: RunConfig, data: DataSplits
) -> list[float]:
    """Return the seconds that an epoch of each takes here, from a few steps; no test is read."""
    configs = [replace(terms, model=model, budget=budget) for model, budget in baselines]
    return [_seconds_of_epoch(config, data) for config in configs]


def _seconds_of_epoch(config: RunConfig, data: DataSplits) -> float:
    try:
        return time_epoch(config, data)
    except ValueError:
        return math.inf  # it fails, so there is never time for it


def finish(
    search: Search,
    baselines: Sequence[Baseline],
    seconds: Sequence[float],
    *,
    listener: StudyListener | None = None,
) -> Outcome | None:
    """Train the winner and its baselines as the time allows; None where no trial has ended.

    What is compared stands in `search.json` before it is trained, so that it stays the same when
    the search is killed here.

    Args:
        search: whose trials are done.
        baselines, seconds: what it is compared with, and what an epoch of each takes.
        listener: is told how it goes.
    """
    trials = search.journal.trials()
    final = search.stored.final
    winner = best_of(trials) if final is None else decided(trials, final)
    if winner is None:
        return None
    assert winner.config is not None
    if final is None:
        final = _decide(search, winner, trials, baselines, seconds)
        search.stored = replace(search.stored, final=final)
        write_stored(search.folder, search.stored)
    if not final.seeds:
        run = finish_trial(search.run_folders(winner.number)[0], search.data)
        return Outcome(winner, run)
    study = run_study(
        list(_configs(winner.config, final, search.data)), search.data,
        search.folder / final.folder,
        workers=search.workers, cluster=search.cluster, listener=listener,
    )  # fmt: skip
    return _outcome(search.folder, search.data, winner, study)


def _decide(
    search: Search,
    winner: Trial,
    trials: Sequence[Trial],
    baselines: Sequence[Baseline],
    seconds: Sequence[float],
) -> Final:
    assert winner.config is not None
    left = search.stored.seconds - search.clock.spent()
    epochs = winner.config.epochs
    known = dict(zip(baselines, seconds, strict=True))
    for number in search.stored.previous[-1:] if search.stored.compare else ():
        before = trials[number]
        assert before.config is not None
        known = {(before.config.model, BUDGET): before.seconds / max(1, before.epochs), **known}
    others = [baseline for baseline in known if baseline[0] != winner.config.model]
    one = winner.seconds / search.stored.folds * epochs / max(1, winner.epochs)
    size = fit_final(
        END_SHARE * left * search.workers, one, [known[b] * epochs for b in others], SEEDS
    )  # fmt: skip
    return Final(
        trial=winner.number,
        folder=f"final-{search.stored.leg}",
        seeds=size[0],
        baselines=tuple(others[: size[1]]),
        tuning_trials=sum(trial.was_trained for trial in trials),
    )


def _configs(winner: RunConfig, final: Final, data: DataSplits) -> Iterator[RunConfig]:
    """Yield the runs of the last comparison, seed by seed, all on the winner's terms.

    But for this: a network of one size only, as `cnn`, never sees smaller images.
    """
    terms = replace(winner, tuning_trials=final.tuning_trials)
    for seed in range(final.seeds):
        yield replace(terms, seed=seed)
        for model, budget in final.baselines:
            config = replace(terms, model=model, budget=budget, seed=seed)
            yield config if _takes(config, data) else replace(config, small_size=0)


def _takes(config: RunConfig, data: DataSplits) -> bool:
    try:
        check(config, data)
    except ValueError:
        return False
    return True


def _outcome(folder: Path, data: DataSplits, winner: Trial, study: Study) -> Outcome:
    assert winner.config is not None
    own = [run for run in study.runs if run.config.model == winner.config.model]
    if not own:
        run = finish_trial(folder / "trials" / f"{winner.number:04}", data)
        return Outcome(winner, run)
    comparison = compare_runs(study.runs, failures=study.failures, reading=study.reading)
    study.record_look(max(len(model.runs) for model in comparison.models))
    (entrant,) = [
        m.name for m in comparison.models if m.runs[0].config.model == own[0].config.model
    ]
    return Outcome(winner, own[0], comparison, entrant)


def finish_trial(folder: Path, data: DataSplits) -> Run:
    """Give a trial that was trained to its end its weights and its result; reads test once."""
    return resume(folder, data)


def shipped_run(folder: Path, trial: Trial, stored: Stored, data: DataSplits) -> Run:
    """Return the finished run of a trial: of the last comparison where it was in it."""
    final = stored.final
    if final is not None and final.trial == trial.number and trial.config is not None:
        path = folder / final.folder / f"{file_name(trial.config.model)}-seed-0"
        if (path / "result.json").exists():
            return Run.open(path)
    return finish_trial(folder / "trials" / f"{trial.number:04}", data)
