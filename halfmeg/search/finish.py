"""The end of a search: the winner against simple networks, with several seeds on equal terms.

Only here is the test set read, once a run. The winner was chosen by validation images before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import check_outside
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.table import MODELS
from halfmeg.places.place import file_name, is_place, short_name
from halfmeg.search.budget import Limits, measure_costs
from halfmeg.search.front import best_of
from halfmeg.search.journal import read_trials
from halfmeg.search.record import (
    Final,
    Stored,
    Trial,
    decided,
    is_search,
    no_network,
    read_stored,
    write_stored,
)
from halfmeg.search.schedule import fit_final
from halfmeg.search.segment import time_epoch
from halfmeg.search.state import Search
from halfmeg.studies.compare import Comparison, compare_runs
from halfmeg.studies.reading import record_look
from halfmeg.studies.study import Study, run_study
from halfmeg.studies.workers import StudyListener
from halfmeg.training.fit import resume
from halfmeg.training.job import fits

BASELINES = ("cnn", "resnet20", "record", "resnet8", "sprint", "mobilenetv2", "mlp")
"""What a winner is compared with where the user names nothing: the first three that fit."""

NUM_BASELINES = 3
BUDGET_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Of the parameters that a limit allows, at which a network that scales is tried."""

END_SHARE = 0.9
"""Of the time that is left, for the last comparison; the rest is for its page."""

SHORTEST_SECONDS = 120
"""A search of less time compares nothing."""

SHORT = "the time that was left was too short"

Baseline = tuple[str, int]
"""A network and its budget."""


@dataclass(frozen=True)
class Outcome:
    """What a search has come to.

    Attributes:
        winner: the trial with the best validation accuracy.
        run: its finished run, the one to ship.
        comparison: with the baselines; None where there is none.
        entrant: the winner's name in it.
        failures: of the last comparison, by run folder, or by network where it never began.
        no_verdict: why there is none; empty where there is one.
        earlier: folders of last comparisons before this one, which read the test set too.
    """

    winner: Trial
    run: Run
    comparison: Comparison | None = None
    entrant: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    no_verdict: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def seen_before(self) -> str:
        """That the test set was read before the search went on; empty where it was not."""
        if self.comparison is None or not self.earlier:
            return ""
        return (
            f"the test images were read before, by {' and '.join(self.earlier)}: who gives a "
            "search more time having seen that has more chances to find a difference"
        )

    @property
    def verdicts(self) -> list[str]:
        """What the comparison says of the winner and each baseline."""
        pairs = self.comparison.pairs if self.comparison else ()
        return [pair.verdict for pair in pairs if self.entrant in (pair.a, pair.b)]


def choose_baselines(stored: Stored, data: DataSplits) -> list[Baseline]:
    """Return the networks to compare a winner with.

    Raises:
        ValueError: one that the user named cannot be built, or two that would have one run folder.
    """
    chosen: list[Baseline] = []
    if stored.baselines is not None:
        if stored.baselines and not stored.compare:
            given = f"--baseline {stored.baselines[0]}"
            raise ValueError(f"{given} is not for a search with --no-compare; leave one out")
        named = {_named(text, stored.limits, data): text for text in stored.baselines}
        first: dict[str, str] = {}
        for (model, _), text in named.items():
            if (other := first.setdefault(file_name(model), text)) != text:
                raise ValueError(
                    f"--baseline {other} and {text} are both called {file_name(model)}; "
                    "leave one out"
                )
        chosen = list(named)
        if stored.seconds < SHORTEST_SECONDS:
            return []
        if not any(is_search(text) or _is_run(text) for text in stored.baselines):
            return chosen
    if not stored.compare or stored.seconds < SHORTEST_SECONDS:
        return []
    for name in BASELINES:  # beside what was found before, too
        known = {file_name(model) for model, _ in chosen}
        if len(chosen) < NUM_BASELINES and name not in known:
            found = _within(name, stored.limits, data)
            chosen += [found] if found is not None else []
    return chosen


def fill_up(search: Search, baselines: Sequence[Baseline]) -> list[Baseline]:
    """Add to fewer than three, of which the user named none, what the search begins with.

    That is the largest network of each of the space that fits: what one takes without a search.
    """
    stored = search.stored
    if not stored.compare or stored.seconds < SHORTEST_SECONDS or stored.baselines is not None:
        return list(baselines)
    largest = ((search.space.model(drawn), BUDGET) for drawn in search.starts())
    return list(dict.fromkeys([*baselines, *islice(largest, NUM_BASELINES - len(baselines))]))


def _named(text: str, limits: Limits, data: DataSplits) -> Baseline:
    """Return a network that the user named, also one over a limit, or that of a run or search."""
    if is_search(text):
        before, trials = read_stored(Path(text)), read_trials(Path(text))
        best = decided(trials, before.final) if before.final else best_of(trials)
        if best is None or best.config is None:
            raise no_network(Path(text))
        return _model_of(text, best.config)
    if _is_run(text):
        return _model_of(text, Run.open(text).config)
    if not is_place(text) and text in MODELS and MODELS[text].scalable:
        weights = Limits(params=limits.params, flash=limits.flash)  # these a budget can always keep
        return _within(text, limits, data) or _within(text, weights, data) or (text, BUDGET)
    measure_costs(text, len(data.classes), data.image_shape, Limits())  # raises for an unknown one
    return text, BUDGET


def _model_of(folder: str, config: RunConfig) -> Baseline:
    if is_place(config.model):
        check_outside(Path(folder), config.model)
    return config.model, config.budget


def _is_run(text: str) -> bool:
    return (Path(text) / "config.json").is_file()


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


@dataclass(frozen=True)
class Timed:
    """Seconds that an epoch of each baseline takes, and why others cannot be trained at all."""

    seconds: Mapping[Baseline, float] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, baselines: Sequence[Baseline], terms: RunConfig, data: DataSplits, threads: int
    ) -> Timed:
        """Train a few steps of each; no test image is read."""
        seconds, failures = {}, {}
        for model, budget in baselines:
            try:
                config = replace(terms, model=model, budget=budget)
                seconds[model, budget] = time_epoch(config, data, threads)
            except ValueError as error:
                failures[model] = str(error).removeprefix(f"{short_name(model)}: ")
        return cls(seconds, failures)

    def at_pace_of(self, search: Search) -> Timed:
        """Scale seconds by what the best trial took in truth, against what it takes as timed.

        That has validation and checkpoints in it, and how busy the machine was.
        """
        best = best_of(search.journal.trials())
        if not self.seconds or best is None:
            return self
        assert best.config is not None
        try:
            as_timed = time_epoch(best.config, search.data, search.threads_of_a_trial)
        except ValueError:
            return self
        pace = _seconds_of_epoch(best, search.stored) / as_timed
        return replace(self, seconds={one: pace * took for one, took in self.seconds.items()})


def _seconds_of_epoch(trial: Trial, stored: Stored) -> float:
    """Return the seconds that an epoch of one run of a trial took."""
    return trial.seconds / stored.folds / max(1, trial.epochs)


def decide(search: Search, timed: Timed) -> Final | None:
    """Decide what is compared at the end; None where no trial has ended.

    It stands in `search.json` before it is trained, so that it stays the same when the search is
    killed there.
    """
    trials = search.journal.trials()
    winner = best_of(trials)
    if search.stored.final is not None or winner is None:
        return search.stored.final
    assert winner.config is not None
    left = search.stored.seconds - search.clock.spent()
    known, own = dict(timed.seconds), dict[tuple[str, int], float]()
    for number in search.stored.previous[-1:] if search.stored.compare else ():
        before = trials[number]
        assert before.config is not None
        own = {(before.config.model, BUDGET): _seconds_of_epoch(before, search.stored)}
        known = own | known
    epochs = winner.config.epochs
    named = {file_name(one[0]): one for one in reversed(known)}  # of two of one name the first
    named.pop(file_name(winner.config.model), None)
    others = [one for one in known if one in named.values()]
    size = fit_final(
        END_SHARE * left, epochs * _seconds_of_epoch(winner, search.stored),
        [epochs * known[baseline] for baseline in others], search.workers,
    )  # fmt: skip
    left_out = others[size[1] :] if size[0] else []
    compared = tuple(others[: size[1]])
    final = Final(
        trial=winner.number,
        folder=f"final-{search.stored.leg}",
        seeds=size[0],
        baselines=compared,
        former=tuple(one for one in compared if one in own),
        tuning_trials=sum(trial.was_trained and trial.repeats is None for trial in trials),
        no_verdict="" if size[0] else _why_alone(search.stored, winner.config, timed),
        failures={**timed.failures, **dict.fromkeys((m for m, _ in left_out), SHORT)},
    )
    search.stored = replace(search.stored, final=final)
    write_stored(search.folder, search.stored)
    return final


def finish(search: Search, final: Final, *, listener: StudyListener | None = None) -> Outcome:
    """Train the winner and its baselines, as it was decided.

    Args:
        search: whose trials are done.
        final: what is compared.
        listener: is told how it goes.
    """
    winner = decided(search.journal.trials(), final)
    assert winner.config is not None
    if not final.seeds:
        run = finish_trial(search.run_folders(winner.number)[0], search.data)
        return Outcome(winner, run, failures=final.failures, no_verdict=final.no_verdict or SHORT)
    study = run_study(
        list(_configs(winner.config, final, search.data)), search.data,
        search.folder / final.folder,
        # the workers of a cluster are its own
        workers=1 if search.cluster is not None else search.workers, cluster=search.cluster,
        listener=listener,
    )  # fmt: skip
    outcome = _outcome(search.folder, search.data, winner, study, final.failures)
    return replace(outcome, earlier=_earlier(search.folder, search.stored.leg))


def _why_alone(stored: Stored, winner: RunConfig, timed: Timed) -> str:
    if not stored.compare:
        return "--no-compare was given"
    if stored.seconds < SHORTEST_SECONDS:
        return f"that takes {SHORTEST_SECONDS} seconds or more"
    if not timed.seconds:
        which = "could be trained" if timed.failures else "is within the limits"
        return f"no network to compare with {which}"
    if all(model == winner.model for model, _ in timed.seconds):
        return "what it would be compared with is the winner itself"
    return SHORT


def _configs(winner: RunConfig, final: Final, data: DataSplits) -> Iterator[RunConfig]:
    """Yield the runs of the last comparison, seed by seed, all on the winner's terms.

    But for this: the trials were of the winner alone, and a network of one size only, as `cnn`,
    never sees smaller images.
    """
    for seed in range(final.seeds):
        yield replace(winner, tuning_trials=final.tuning_trials, seed=seed)
        for model, budget in final.baselines:
            trials = final.tuning_trials if (model, budget) in final.former else 0
            config = replace(winner, model=model, budget=budget, seed=seed, tuning_trials=trials)
            yield config if fits(config, data) else replace(config, small_size=0, first_size=0)


def _outcome(
    folder: Path, data: DataSplits, winner: Trial, study: Study, failures: Mapping[str, str]
) -> Outcome:
    assert winner.config is not None
    failures = {**failures, **study.failures}
    own = [run for run in study.runs if run.config.model == winner.config.model]
    if not own:
        run = finish_trial(folder / "trials" / f"{winner.number:04}", data)
        return Outcome(winner, run, failures=failures, no_verdict="the winner failed there")
    comparison = compare_runs(study.runs, failures=study.failures, reading=study.reading)
    seeds = max(len(model.runs) for model in comparison.models)
    record_look(study.folder, seeds, comparison.reading.margin)
    (entrant,) = [
        m.name for m in comparison.models if m.runs[0].config.model == own[0].config.model
    ]
    outcome = Outcome(winner, own[0], comparison, entrant, failures)
    if outcome.verdicts:
        return outcome
    alone = len(comparison.models) == 1
    why = "every other network failed" if alone else "no network shares a seed with the winner"
    return replace(outcome, no_verdict=why)


def _earlier(folder: Path, leg: int) -> tuple[str, ...]:
    names = [f"final-{before}" for before in range(1, leg)]
    return tuple(name for name in names if any((folder / name).glob("*/result.json")))


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
