"""The plan of a search, from a few steps of some networks that are timed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from halfmeg.places.settings import Value
from halfmeg.search.finish import SHORTEST_SECONDS, Baseline, Timed
from halfmeg.search.record import write_stored
from halfmeg.search.schedule import FEWEST_EPOCHS, make_plan, time_share
from halfmeg.search.state import Search

MOST_TIMED = 4
"""Networks that are timed before the first trial."""

SHORT_SECONDS = 600
"""In less time only one is."""

GROWTH = 1.5
"""With more time the epochs of a run change where they become so many times as many."""


def time_baselines(search: Search, baselines: Sequence[Baseline]) -> Timed:
    """Time an epoch of each baseline, on the recipe that a search begins with."""
    drawn = next(search.starts(), None)
    if drawn is None or not baselines:
        return Timed()
    terms = search.space.config(drawn, most_epochs=1, side=search.side)
    return Timed.of(baselines, terms, search.data, search.threads_of_a_trial)


def plan_time(search: Search, timed: Timed) -> None:
    """Plan the time, and store the plan.

    What is too large for the time is left out, unless that is too short to plan: a few epochs of a
    large network are worth less than more of a smaller one.

    Raises:
        ValueError: no network of the space can be trained.
    """
    search.most_macs = None
    typical, macs = _time_candidates(search)
    share = time_share(_seconds_left(search), typical)
    if share < 1 and search.space.epochs_are_shares and search.stored.seconds >= SHORTEST_SECONDS:
        models = [search.space.model(drawn) for drawn in _smallest(search) if search.size(drawn)]
        least = min((search.costs(model, whole=True).macs for model in models), default=None)
        if least is not None:
            search.most_macs = max(int(share * macs), least)
            search.listener.on_note(
                f"networks of more than {search.most_macs:,} MACs are left out; the time allows "
                f"them fewer than {FEWEST_EPOCHS} epochs"
            )
            typical, _ = _time_candidates(search)
    baselines = [seconds / search.sharing for seconds in timed.seconds.values()]
    plan = make_plan(_seconds_left(search), typical, baselines, folds=search.stored.folds)
    plan = replace(
        plan,
        search_seconds=plan.search_seconds + search.clock.spent(),
        total_seconds=search.stored.seconds,
        most_macs=search.most_macs,
    )
    before = search.stored.plan
    if before is not None and plan.epochs < GROWTH * before.epochs:
        plan = replace(plan, epochs=before.epochs, run_seconds=before.run_seconds)
    search.stored = replace(search.stored, plan=plan)
    write_stored(search.folder, search.stored)


def _seconds_left(search: Search) -> float:
    return max(1.0, search.stored.seconds - search.clock.spent())


def _smallest(search: Search) -> Iterator[dict[str, Value]]:
    return (search.space.scaled(name, 0) for name in search.space.networks)


def _time_candidates(search: Search) -> tuple[float, float]:
    """Return the seconds that an epoch takes and the MACs, of the fastest of a few networks.

    Raises:
        ValueError: no network of the space can be trained.
    """
    seconds: list[float] = []
    macs: list[int] = []
    failures: list[str] = []
    for drawn in chain(search.starts(), _smallest(search)):
        config = search.space.config(drawn, most_epochs=1, side=search.side)
        try:
            seconds.append(search.seconds_of_epoch(config))
        except ValueError as error:  # another one may have room
            failures.append(str(error))
            continue
        macs.append(search.costs(config.model, whole=True).macs)
        if len(seconds) >= (1 if search.stored.seconds < SHORT_SECONDS else MOST_TIMED):
            break
    if not seconds:
        raise ValueError(f"no network of the space can be trained; {failures[-1]}")
    fastest = seconds.index(min(seconds))
    return seconds[fastest], macs[fastest]
