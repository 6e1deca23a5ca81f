"""Where trials are trained: one after another in this process, or several at once in others."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import final

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.search.record import Clock, Trial
from halfmeg.search.segment import Reached, train_folds
from halfmeg.studies.pool import KILLED, Pool
from halfmeg.training.listen import Listener, SilentListener

MOST_KILLS = 2
"""A trial that was under way when so many workers were killed is given up."""

SAVE_SECONDS = 5.0


class SearchListener:
    """Is told how a search goes; this one tells nobody."""

    def of_run(self, config: RunConfig) -> Listener | None:
        """Return who is told how a run in this process goes."""
        return None

    def on_note(self, text: str) -> None:
        """Something to know."""

    def on_trial(self, trial: Trial) -> None:
        """A trial has come to a look, or to its end."""


@final
class Lanes:
    """Where trials are trained, to be entered: in this process in turn, or in several processes.

    Args:
        data: that they train on.
        workers: trials at once.
        folders_of: the run folders of a trial by its number.
        clock: is saved while it waits.
        most_seconds: that a trial may take when its speed is known.
        listener: is told how a run in this process goes, and of killed workers.
    """

    def __init__(
        self,
        data: DataSplits,
        workers: int,
        folders_of: Callable[[int], list[Path]],
        clock: Clock,
        most_seconds: float,
        listener: SearchListener,
    ) -> None:
        self.data, self.workers, self.folders_of = data, workers, folders_of
        self.clock, self.most_seconds, self.listener = clock, most_seconds, listener
        self.waiting: dict[Future[Reached], tuple[Trial, int]] = {}
        self.kills: dict[int, int] = {}
        self.pool: Pool | None = None

    def __enter__(self) -> Lanes:
        if self.workers > 1:
            threads = max(1, (os.cpu_count() or 1) // self.workers)
            self.pool = Pool(self.data, self.workers, threads).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            if error[0] is not None:
                self.pool.stop()
            self.pool.__exit__(*error)

    @property
    def are_busy(self) -> bool:
        """Whether anything is being trained."""
        return bool(self.waiting)

    @property
    def have_room(self) -> bool:
        """Whether another trial can be trained at once."""
        return len(self.waiting) < self.workers

    def submit(self, trial: Trial, until: int) -> None:
        """Train a trial up to an epoch."""
        future: Future[Reached]
        if self.pool is None:
            future = Future()
        else:
            future = self.pool.submit(train_folds, *self._task(trial, until))
        self.waiting[future] = (trial, until)

    def wait(self) -> Iterator[tuple[int, Reached]]:
        """Yield each trial that has come as far as it should, once at least one has."""
        if self.pool is None:
            future, (trial, until) = next(iter(self.waiting.items()))
            del self.waiting[future]
            task = self._task(trial, until)
            yield trial.number, train_folds(self.data, *task, self._of_run)
            return
        done: set[Future[Reached]] = set()
        while not done:
            done, _ = wait(self.waiting, SAVE_SECONDS, FIRST_COMPLETED)
            self.clock.save()
        broken = []
        for future in sorted(done, key=lambda f: self.waiting[f][0].number):
            trial, until = self.waiting.pop(future)
            try:
                yield trial.number, future.result()
            except BrokenProcessPool:
                broken.append((trial, until))
        if broken:
            yield from self._after_a_kill([*broken, *self.waiting.values()])

    def _of_run(self, config: RunConfig) -> Listener:
        return _Clocked(self.listener.of_run(config) or SilentListener(), self.clock)

    def _after_a_kill(self, lost: Sequence[tuple[Trial, int]]) -> Iterator[tuple[int, Reached]]:
        """Start new processes; a trial that was under way at two kills is given up."""
        assert self.pool is not None
        self.waiting.clear()
        self.pool.restart()
        self.listener.on_note("a worker was killed; its trials go on from their last epoch")
        for trial, until in lost:
            self.kills[trial.number] = self.kills.get(trial.number, 0) + 1
            if self.kills[trial.number] < MOST_KILLS:
                self.submit(trial, until)
            else:
                yield trial.number, Reached(trial.epochs, None, 0.0, KILLED)

    def _task(self, trial: Trial, until: int) -> tuple[list[RunConfig], list[Path], int, float]:
        assert trial.config is not None
        folders = self.folders_of(trial.number)
        configs = [replace(trial.config, seed=seed) for seed in range(len(folders))]
        first = not trial.number  # which is to end whatever it takes
        return configs, folders, until, math.inf if first else self.most_seconds / len(folders)


class _Clocked(SilentListener):
    """Passes on what it is told, and stores the time that is spent after each epoch."""

    def __init__(self, inner: Listener, clock: Clock) -> None:
        self.on_start = inner.on_start  # type: ignore[method-assign]
        self.on_step = inner.on_step  # type: ignore[method-assign]
        self.inner, self.clock = inner, clock

    def on_epoch(self, row: MetricsRow) -> None:
        """Store the time, and pass it on."""
        self.clock.save()
        self.inner.on_epoch(row)
