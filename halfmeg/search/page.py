"""The page of a search, written at any time from its journal and run folders."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

import jinja2

from halfmeg.artifacts.run import Run
from halfmeg.files import write_atomically
from halfmeg.places.place import short_name
from halfmeg.search.budget import describe_latency, describe_limit, measure_costs
from halfmeg.search.figures import (
    COST_LABELS,
    curves_figure,
    front_figure,
    importance_figure,
    parallel_figure,
)
from halfmeg.search.front import (
    COST_NAMES,
    FrontPoint,
    accuracy_interval,
    best_of,
    by_image,
    finished,
    front,
    read_answers,
)
from halfmeg.search.journal import Journal
from halfmeg.search.record import UNBUILT, Trial
from halfmeg.search.schedule import MOST_EPOCHS, Plan
from halfmeg.search.state import Search
from halfmeg.studies.figures import figure_svg
from halfmeg.studies.page import build_templates, write_comparison
from halfmeg.studies.stats import Interval

if TYPE_CHECKING:
    from halfmeg.search.finish import Outcome

PAGE = "search.html"
FEWEST_FOR_IMPORTANCE = 8
MOST_ROWS = 100
MOST_REASONS = 5
LONGER = 1.5
"""So many times the epochs that a run has without baselines are worth a word."""


def best_so_far(search: Search) -> tuple[Trial, Interval] | None:
    """Return the best finished trial, with its interval over validation images."""
    best = best_of(search.journal.trials())
    return None if best is None else (best, accuracy_interval(best, search.num_validation))


def write_page(search: Search, outcome: Outcome | None = None) -> None:
    """Write `search.html`; with an outcome also the page of the last comparison.

    Args:
        search: at any time.
        outcome: what it has come to; None while it runs.
    """
    trials = search.journal.trials()
    compared = None
    if outcome is not None and outcome.comparison is not None and search.stored.final is not None:
        compared = search.stored.final.folder
        write_comparison(outcome.comparison, search.folder / compared, search.data)
    right = {}
    known = finished(trials)
    shown = [name for name in COST_NAMES if any(getattr(t.costs, name) is not None for t in known)]
    numbers = {point.trial.number for name in shown for point in front(trials, name)}
    for number in sorted(numbers):
        answers = read_answers(search.run_folders(number), search.data)
        right[number] = by_image(answers, search.held_out)
    fronts = {name: front(trials, name, right) for name in shown}
    context = _context(search, trials, fronts, outcome)
    page = _templates().get_template(PAGE).render(context, compared=compared)
    write_atomically(search.folder / PAGE, page.encode())


def learning_curve(search: Search, trial: Trial) -> dict[int, float]:
    """Return the accuracy on validation images after each epoch, the mean of the folds.

    Where a run is damaged or gone, it is that of the looks alone.
    """
    try:
        runs = [Run.open(folder).read_metrics() for folder in search.run_folders(trial.number)]
    except (ValueError, OSError):
        runs = []
    curve = {
        rows[0]["epoch"]: mean(row["val_accuracy"] or 0.0 for row in rows)
        for rows in zip(*runs, strict=False)
    }
    return curve if trial.epochs in curve else dict(sorted(trial.reached.items()))


def importance_of(journal: Journal) -> dict[str, float]:
    """Return how much each choice matters for accuracy, the most first; shares of 1.

    PED-ANOVA (Watanabe et al. 2023), by Optuna; empty for fewer than 8 trained trials. A trial that
    was stopped counts by the accuracy that it had then. What had one value in all of them is left
    out: the densities that PED-ANOVA compares differ there by the number of trials alone.
    """
    import optuna

    trained = {t.number for t in journal.trials() if t.was_trained and t.outcome != "running"}
    if len(trained) < FEWEST_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction="maximize")
        for frozen in journal.study.get_trials(deepcopy=False):
            if frozen.number in trained:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=frozen.params, distributions=frozen.distributions,
                        value=frozen.values[0],
                    )
                )  # fmt: skip
        try:
            found = optuna.importance.get_param_importances(study)
        except (ValueError, RuntimeError, ZeroDivisionError):  # all trials have one accuracy
            return {}
    values: dict[str, set[Any]] = {}
    for trial in study.trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(value)
    varied = {name: share for name, share in found.items() if len(values[name]) > 1}
    total = sum(varied.values())
    by_share = sorted(varied.items(), key=lambda item: -item[1])
    return {name: share / total for name, share in by_share} if total else {}


def advice(search: Search, trials: Sequence[Trial], *, ended: bool) -> list[str]:
    """Return what to try with double the time, from what was seen; `ended`: when it was over."""
    told = []
    best = best_of(trials)
    trained = [t for t in trials if t.was_trained]
    if best is None or best.config is None:
        return ["More time: no trial has come to its end."]
    done = finished(trials)
    if best in done[-max(1, len(done) // 3) :] and len(done) > 2:
        told.append(
            "The best trial is one of the last third, so the search has not settled: more trials."
        )
    took_all = search.space.epochs_are_shares and search.epochs_of(best.drawn) == 1.0
    if took_all and best.config.epochs < MOST_EPOCHS:
        told.append(
            f"The best trial took all {best.config.epochs} epochs that it had time for: with "
            "double the time, runs may be twice as long."
        )
        told += fewer_baselines(search.stored.plan, best.config.epochs)
    for dimension in search.space.dimensions:
        value = best.drawn.get(dimension.name)
        if isinstance(dimension.values, list) or not isinstance(value, int | float):
            continue
        if not float(dimension.at(0.05)) < value < float(dimension.at(0.95)):
            told.append(
                f"{dimension.name} of the best trial, {value:g}, is at an end of its range."
            )
    near = [
        t for t in trained
        if t.outcome == "stopped" and t.accuracy is not None
        and t.accuracy > best.reached[min(best.reached)]
    ]  # fmt: skip
    if near:
        names = ", ".join(str(t.number) for t in near[:5])
        told.append(f"Stopped early although ahead of the best trial at its first look: {names}.")
    waiting = [t.number for t in trials if t.outcome == "running" and t.config is not None]
    if waiting and ended:
        numbers = ", ".join(map(str, waiting))
        told.append(f"Trials without time to end, which go on first: {numbers}.")
    if len(trained) < 20:
        count = len(search.space.dimensions)
        told.append(f"Few trials, {len(trained)}, for a space of {count} settings.")
    if ended:
        told += larger_images(search, best)
    return told


def fewer_baselines(plan: Plan | None, epochs: int) -> list[str]:
    """Return the advice to name one baseline, if all of them shorten runs of these epochs much."""
    if plan is None or plan.num_baselines < 2:
        return []
    alone = plan.epochs_alone(epochs)
    if alone < LONGER * epochs:
        return []
    return [
        f"Beside {plan.num_baselines} baselines a run has {epochs} epochs, and without any there "
        f"would be time for {alone}. For longer runs name one alone, as --baseline cnn."
    ]


def larger_images(search: Search, best: Trial) -> list[str]:
    """Return the advice to search at the next size of images, if the best network fits there."""
    sides, limits = search.data.larger_sides, search.stored.limits
    if not sides or best.config is None:
        return []
    larger = search.data.image_shape.scaled_to(sides[0])
    try:
        costs = measure_costs(best.config.model, len(search.data.classes), larger, limits)
    except ValueError:  # a network of the user's own that takes no other size
        return []
    if not limits.fits(costs):
        return []
    return [
        f"Most images have {sides[0]} pixels and more on their shorter side, and were brought to "
        f"{search.side}. The best network is within the limits at {larger.text} too: "
        f"--image-size {larger.written} in a search of its own."
    ]


def _context(
    search: Search,
    trials: Sequence[Trial],
    fronts: dict[str, list[FrontPoint]],
    outcome: Outcome | None,
) -> dict[str, Any]:
    stored, count = search.stored, search.num_validation
    names = {t.number: short_name(t.config.model) for t in trials if t.config is not None}
    failures = [t for t in trials if t.outcome == "failed"]
    unbuilt = Counter(t.error.removeprefix(UNBUILT) for t in trials if t.error.startswith(UNBUILT))
    repeats = sum(t.repeats is not None and t.was_trained for t in trials)
    trials = [t for t in trials if t.repeats is None]
    trained = [t for t in trials if t.was_trained]
    importance = importance_of(search.journal)
    figures = {}
    if fronts:
        figures["front"] = front_figure(trials, fronts, stored.limits.given, count)
    if len(trained) > 1:
        figures["parallel"] = parallel_figure(trials, search.space.dimensions, importance)
    if trained:
        curves = {t.number: learning_curve(search, t) for t in trained}
        figures["curves"] = curves_figure(trials, curves)
    if importance:
        figures["importance"] = importance_figure(importance)
    best = best_of(trials)
    limits = stored.limits
    return {
        "stored": stored,
        "limits": [describe_limit(name, value) for name, value in limits.given.items()],
        "latency": describe_latency(limits),
        "outcome": outcome,
        "best": best,
        "interval": None if best is None else accuracy_interval(best, count),
        "count": count,
        "trials": sorted(trained, key=lambda t: (t is not best, -(t.accuracy or 0.0)))[:MOST_ROWS],
        "num": {
            "trained": len(trained),
            "done": len(finished(trials)),
            "stopped": sum(t.outcome == "stopped" for t in trials),
            "over": sum(t.outcome == "over" for t in trials),
            "repeats": repeats,
        },
        "failures": failures,
        "unbuilt": unbuilt.most_common(MOST_REASONS),
        "fronts": fronts,
        "figures": {name: figure_svg(figure, name) for name, figure in figures.items()},
        "importance": importance,
        "advice": advice(search, trials, ended=outcome is not None),
        "spent": search.clock.spent() / 60,
        "minutes": stored.seconds / 60,
        "cost": describe_limit,
        "cost_labels": COST_LABELS,
        "names": names,
        "short": short_name,
    }


def _templates() -> jinja2.Environment:
    templates = build_templates()
    templates.loader = jinja2.ChoiceLoader(
        [jinja2.PackageLoader("halfmeg.search"), jinja2.PackageLoader("halfmeg.studies")]
    )
    return templates
