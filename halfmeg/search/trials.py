"""The engine of a search: draws candidates, trains them part by part, stops what falls behind.

Everything that was found stands in the journal and in run folders before the next step begins, so
a search that was killed goes on where it was: a run under way from its last epoch.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from halfmeg.places.settings import Value
from halfmeg.search.front import finished
from halfmeg.search.journal import seeks_front, suggest
from halfmeg.search.lanes import Lanes
from halfmeg.search.record import UNBUILT, Trial, all_failed, with_repeats
from halfmeg.search.schedule import FULL_RUNS, goes_on, rung_epochs
from halfmeg.search.segment import Reached
from halfmeg.search.space import NETWORK
from halfmeg.search.state import Search
from halfmeg.search.vary import fitted, mutated, parents
from halfmeg.studies.pool import KILLED, MOST_KILLS
from halfmeg.training.plan import work_left

if TYPE_CHECKING:
    import optuna

MOST_DRAWS = 300
"""So many candidates in a row over the limits, or drawn before, end a search."""

SLOWEST = 2.0
"""A trial fails that would take so many times as long as the plan has for a run."""

DRAWN_SHARE = 1 / 3
"""Of the trials that seek accuracy alone, those that are drawn; the others are mutations."""

PARENTS = 3
"""A mutation is of one of so many trials, each half as often as the one before."""

REPEATED = 3
"""So many of the best trials are trained again at the end, with another seed and split."""

REPEAT_SHARE = 0.25
"""Of the time to look for networks, beyond which none is kept for that."""

FIRST_SHARE = 0.5
"""Of that time: if the first trials of all networks take no more, all of them come to their end."""

MOST_FAILURES = 20
"""So many failed trials end a search of which none has come to its end."""


def run_trials(search: Search) -> None:
    """Train trials until the time for it is over.

    The first trial is trained to its end whatever it takes, so that there is a network.

    Raises:
        ValueError: nothing could be drawn within the limits.
        OSError: the disk is full or cannot be written.
        TrainingInterruptedError: Ctrl-C or SIGTERM.
    """
    with Lanes(
        search.data, search.workers, search.cluster, search.run_folders, search.clock,
        search.listener, search.count_try,
    ) as lanes:  # fmt: skip
        engine = _Engine(search, lanes)
        engine.go_on()
        while lanes.are_busy or engine.begin():
            while lanes.have_room and engine.begin():
                pass
            for number, outcome in lanes.wait():
                engine.look(number, outcome)
                search.clock.save()


class _Engine:
    """Decides what is trained next, and what becomes of what was trained."""

    def __init__(self, search: Search, lanes: Lanes) -> None:
        self.search, self.lanes = search, lanes
        self.journal = search.journal
        self.trials = {trial.number: trial for trial in self.journal.trials()}
        self.live: dict[int, optuna.Trial] = {}
        self.exhausted = False
        self.starts = self._untried_starts()
        self.resized: dict[str, Value] | None = None
        self.random = np.random.default_rng([search.stored.seed, self.journal.count])

    def go_on(self) -> None:
        """Take up the trials that a killed process, or the end of the time, left unfinished."""
        free = [0.0] * self.search.workers  # seconds until each worker has done what it took up
        for trial in [t for t in self.trials.values() if t.outcome == "running"]:
            live = self.live[trial.number] = self.journal.open(trial.number)
            if not self.search.clock.was_killed:
                self.journal.keep(live, tries=(0, 0))
            if trial.config is None:
                told = "it was interrupted before it began"
                self._end(trial, "over", error=told, told=False)  # which says nothing of it
            elif self.search.clock.was_killed and self.journal.tries(live) > MOST_KILLS:
                self._end(trial, "failed", error=KILLED)
            elif self._has_time_for(trial, free[0]):
                heapq.heapreplace(free, free[0] + self._seconds_left_of(trial))
                self._train(trial)
        # The order of the journal is that of the trials, so the lanes take the oldest first.

    def begin(self) -> bool:
        """Begin a new trial; return whether there was time for one.

        Raises:
            ValueError: nothing is within the limits, or whatever was trained has failed.
        """
        failed = [trial for trial in self.trials.values() if trial.outcome == "failed"]
        if not self.trials_done and (
            len(failed) >= MOST_FAILURES or (failed and self.exhausted and not self.live)
        ):
            if self.lanes.are_busy:  # with one that may come to its end
                return False
            raise all_failed(failed)
        if self.live and not (self.trials_done or self.lanes.are_busy):  # one has to end
            self._train(self.trials[min(self.live)])
            return True
        if self.exhausted or not self._has_time():
            return self._repeat()
        for _ in range(MOST_DRAWS):
            given = self._given()
            live = self.journal.ask(given and self._to_ask(given))
            if (trial := self._draw(live, is_given=given is not None)) is not None:
                self._train(trial)
                return True
            if self.search.seconds_left <= 0 and self.trials_done:
                return self._repeat()
        self.exhausted = True
        any_trained = any(trial.was_trained for trial in self.trials.values())
        if not (any_trained or self.lanes.are_busy):
            if failed:
                raise all_failed(failed)
            raise ValueError(
                f"none of {MOST_DRAWS} candidates drawn is within all limits together; "
                "raise one of them, or narrow the space with --space"
            )
        self.search.listener.on_note("nothing new is drawn any more: the space is exhausted")
        return self._repeat()

    @property
    def trials_done(self) -> bool:
        """Whether a network is trained to its end."""
        return any(trial.outcome == "done" for trial in self.trials.values())

    def look(self, number: int, outcome: Reached) -> None:
        """Take in how far a trial has come, and stop it, end it or train it on."""
        trial, live = self.trials[number], self.live[number]
        config = trial.config
        assert config is not None
        trial = replace(trial, seconds=max(trial.seconds + outcome.seconds, outcome.in_all))
        if outcome.accuracy is not None:
            trial = replace(trial, reached={**trial.reached, outcome.epochs: outcome.accuracy})
        facts = {str(epochs): accuracy for epochs, accuracy in trial.reached.items()}
        self.journal.keep(live, reached=facts, seconds=trial.seconds)
        self.trials[number] = trial
        if outcome.error is not None:
            self._end(trial, "failed", error=outcome.error)
        elif trial.epochs >= config.epochs:
            self._end(trial, "done")
        elif not self._goes_on(trial):
            self._end(trial, "stopped")
        elif self._has_time_for(trial):
            self.search.listener.on_trial(trial)
            self._train(trial)
        else:  # it stays as it is, for more time
            self.search.listener.on_trial(trial)

    def _given(self) -> dict[str, Value] | None:
        """Return the next candidate, or None where it is to be drawn."""
        start = next(self.starts, None)
        if start is not None or self._is_free(self.journal.count):
            return start
        if self.resized is not None:
            resized, self.resized = self.resized, None
            return resized
        best = parents([trial.drawn for trial in self._best()], PARENTS)
        if not best or self.random.random() < DRAWN_SHARE:
            return None
        parent = best[min(int(self.random.geometric(0.5)), len(best)) - 1]
        space = self.search.space
        varied = mutated(space, parent, self.random)
        forms = [d for d in space.dimensions if not d.of_recipe and isinstance(d.values, list)]
        other_form = any(varied.get(d.name) != parent.get(d.name) for d in forms)
        return fitted(space, varied, self.search.size, grow=other_form)

    def _repeat(self) -> bool:
        """Train one of the best trials again; return whether one was left, and time for it.

        The best of many is so partly by chance, and of its second run chance takes no side.
        """
        if not self._repeats_fit():
            return False
        again = {trial.repeats for trial in self.trials.values()}
        trial = next((one for one in self._best()[:REPEATED] if one.number not in again), None)
        if trial is None or self._seconds_to_end(trial) > self.search.seconds_left:
            return False
        live = self.journal.ask(self._to_ask(trial.drawn))
        self.search.space.draw(lambda name, values: suggest(live, name, values))
        repeat = replace(
            trial, number=live.number, outcome="running", reached={}, seconds=0.0, ended=None,
            repeats=trial.number, repeated=(),
        )  # fmt: skip
        assert trial.config is not None
        self.journal.keep(
            live, drawn=repeat.drawn, costs=repeat.costs, config=trial.config.to_dict(),
            repeats=trial.number,
        )  # fmt: skip
        self.live[live.number], self.trials[live.number] = live, repeat
        self._train(repeat)
        return True

    def _best(self) -> list[Trial]:
        """Return the candidates that were trained to their end, the most accurate first."""
        done = finished(list(self.trials.values()))
        return sorted(done, key=lambda trial: -(trial.accuracy or 0.0))

    def _is_free(self, number: int) -> bool:
        """Return whether a trial is just what is drawn, of any size."""
        return self.search.stored.strategy == "random" or seeks_front(number)

    def _to_ask(self, drawn: dict[str, Value]) -> dict[str, Value]:
        """Return the settings of a candidate that Optuna knows."""
        names = {d.name for d in self.search.space.dimensions if d.is_drawn}
        return {name: value for name, value in drawn.items() if name in names}

    def _draw(self, live: optuna.Trial, *, is_given: bool) -> Trial | None:
        """Draw a candidate; None where it is over a limit, cannot be built, or was there before.

        None also where it is of another size than the limits allow: one that is comes next.
        """
        search = self.search

        def ask(name: str, values: Any) -> Value:
            return suggest(live, name, values)

        drawn = search.space.draw(ask)
        trial = Trial(live.number, drawn, "running")
        self.live[live.number] = live
        self.journal.keep(live, drawn=drawn)
        if not is_given and not self._is_free(live.number):
            resized = fitted(search.space, drawn, search.size, grow=True)
            if resized not in (None, drawn):
                self.resized = resized
                self._end(trial, "over", error="it comes again in the limits' size", told=False)
                return None
        try:
            config = search.config(drawn)
            costs = search.costs(config.model)
        except ValueError as error:
            self._constrain(live, dict.fromkeys(search.limits.given, 1.0))
            self._end(trial, "over", error=f"{UNBUILT}{error}")
            return None
        over = search.limits.excess(costs)
        self._constrain(live, over)
        trial = replace(trial, costs=costs)
        if any(value > 0 for value in over.values()):
            self.journal.keep(live, costs=costs)
            self._end(trial, "over")
            return None
        for other in self.trials.values():
            if other.config is None or other.outcome == "over":
                continue
            alike = self.search.epochs_of(drawn) == self.search.epochs_of(other.drawn)
            if alike and config == replace(other.config, epochs=config.epochs):
                self._end(trial, "over", error=f"the same as trial {other.number}", told=False)
                return None
        costs = search.costs(config.model, whole=True)
        config = search.paced(drawn, config)
        trial = replace(trial, config=config, costs=costs)
        self.journal.keep(live, costs=costs, config=config.to_dict())
        self.trials[trial.number] = trial
        return trial

    def _constrain(self, live: optuna.Trial, over: dict[str, float]) -> None:
        for name, value in over.items():
            live.set_constraint(name, value)

    def _train(self, trial: Trial) -> None:
        plan = self.search.stored.plan
        assert trial.config is not None
        assert plan is not None
        rungs = rung_epochs(trial.config.epochs)
        if self.search.stored.strategy == "random" or trial.repeats is not None:
            rungs = rungs[-1:]
        until = next((rung for rung in rungs if rung > trial.epochs), rungs[-1])
        most_seconds = SLOWEST * plan.run_seconds * self.search.sharing
        self.lanes.submit(trial, until, math.inf if self._has_to_end(trial) else most_seconds)

    def _has_to_end(self, trial: Trial) -> bool:
        """Return whether it is trained to its end whatever it takes, so that there is a network."""
        return not self.trials_done and trial.number == min(self.live)

    def _end(self, trial: Trial, outcome: Any, error: str = "", *, told: bool = True) -> None:
        costs = trial.costs
        cost = 1e3 if costs is None else self.search.limits.share(costs)
        accuracy = (trial.accuracy or 0.0) if outcome in ("done", "stopped") else 0.0
        live = self.live.pop(trial.number)
        self.journal.keep(live, ended=self.search.clock.spent())
        self.journal.tell(live, outcome, (accuracy, cost) if told else None, error)
        trial = replace(trial, outcome=outcome, error=error)
        self.trials[trial.number] = trial
        self.trials = {one.number: one for one in with_repeats(list(self.trials.values()))}
        if outcome != "over":
            self.search.listener.on_trial(trial)

    def _goes_on(self, trial: Trial) -> bool:
        assert trial.config is not None
        if self._is_first(trial) and self._first_come_to_their_end():
            return True
        rung = sum(epochs <= trial.epochs for epochs in rung_epochs(trial.config.epochs)) - 1
        share = self.search.limits.share if seeks_front(trial.number) else lambda _: 0.0
        rivals = [
            other for number, other in self.trials.items()
            if number != trial.number and other.repeats is None
        ]  # fmt: skip
        own, *others = [
            (accuracy, share(one.costs))
            for one in (trial, *rivals)
            if one.costs is not None and (accuracy := one.at_look(rung)) is not None
        ]
        return goes_on(own, others, self.search.num_validation)

    def _is_first(self, trial: Trial) -> bool:
        """Return whether a trial is the first of its network."""
        network = trial.drawn.get(NETWORK)
        return trial.number == min(
            other.number for other in self.trials.values()
            if other.config is not None and other.drawn.get(NETWORK) == network
        )  # fmt: skip

    def _first_come_to_their_end(self) -> bool:
        """Return whether there is time to see each network once at its end.

        Networks that learn slowly are behind at the look, whatever they reach.
        """
        needed = len(self.search.space.networks) * self._seconds_of_run() / self.search.workers
        return needed <= FIRST_SHARE * self._seconds_to_look()

    def _seconds_to_look(self) -> float:
        """Return the seconds to look for networks, those that are spent too."""
        assert self.search.stored.plan is not None
        return FULL_RUNS * self.search.stored.plan.run_seconds

    def _repeats_fit(self) -> bool:
        """Return whether the time is long enough for the best to be trained again."""
        if self.search.stored.strategy == "random":
            return False
        return self._seconds_for_repeats() <= REPEAT_SHARE * self._seconds_to_look()

    def _seconds_for_repeats(self) -> float:
        return math.ceil(REPEATED / self.search.workers) * self._seconds_of_run()

    def _has_time(self) -> bool:
        """Return whether a new trial would end in time; the first one always begins."""
        if not self.trials_done and not self.live:
            return True
        needed = self._seconds_of_run()
        if self._repeats_fit():
            needed += self._seconds_for_repeats()
        return needed <= self.search.seconds_left

    def _has_time_for(self, trial: Trial, after: float = 0.0) -> bool:
        """Return whether a trial would come to its end in time, begun after so many seconds."""
        if self._has_to_end(trial):
            return True
        return after + self._seconds_left_of(trial) <= self.search.seconds_left

    def _seconds_left_of(self, trial: Trial) -> float:
        if not trial.epochs:
            return self._seconds_of_run()
        return self._seconds_to_end(trial) - trial.seconds

    def _seconds_of_run(self) -> float:
        """Return the median of what the trials take to their ends, in all their folds."""
        known = [self._seconds_to_end(trial) for trial in self.trials.values() if trial.epochs]
        return float(np.median(known)) if known else 0.0

    def _seconds_to_end(self, trial: Trial) -> float:
        """Return what a trial takes from its beginning to its end, by what it took so far."""
        assert trial.config is not None
        whole = work_left(trial.config, self.search.data.image_size)
        left = work_left(trial.config, self.search.data.image_size, trial.epochs)
        return trial.seconds * whole / (whole - left)

    def _untried_starts(self) -> Iterator[dict[str, Value]]:
        """Yield what to begin with, of networks that no trial had yet; at random nothing."""
        if self.search.stored.strategy == "random":
            return
        tried = {trial.drawn.get(NETWORK) for trial in self.trials.values() if trial.config}
        yield from (one for one in self.search.starts() if one[NETWORK] not in tried)
