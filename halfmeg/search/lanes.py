"""Where trials are trained: in this process in turn, in several, or on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.search.record import Clock, Trial
from halfmeg.search.segment import Reached, train_folds
from halfmeg.studies.cluster import Cluster, LostError, read_files, replace_files, unpack_run
from halfmeg.studies.pool import KILLED, MOST_KILLS, Kills, Pool, threads_each
from halfmeg.training.listen import Listener

SAVE_SECONDS = 5.0

Returned = tuple[Reached, dict[str, dict[str, bytes]]]


class SearchListener:
    """Is told how a search goes; this one tells nobody."""

    def on_begin(self, configs: Sequence[RunConfig]) -> None:
        """Runs are about to be trained by other processes of this machine."""

    def of_run(self, config: RunConfig) -> Listener:
        """Return who is told how a run in this process goes."""
        return Listener()

    def on_note(self, text: str) -> None:
        """Something to know."""

    def on_trial(self, trial: Trial) -> None:
        """A trial has come to a look, or to its end."""

    def on_time(self) -> None:
        """Some seconds, or an epoch, have passed while trials train."""


@final
class Lanes:
    """Where trials are trained, to be entered.

    Args:
        data: that they train on.
        workers: trials at once; 1 for this process. On a cluster one for each of its CPUs.
        address: of a Ray cluster; None for this machine.
        folders_of: the run folders of a trial by its number.
        clock: is saved while it waits.
        listener: is told how a run in this process goes, and of killed workers.
        on_begin: is called before a trial is trained.
    """

    def __init__(
        self,
        data: DataSplits,
        workers: int,
        address: str | None,
        folders_of: Callable[[int], list[Path]],
        clock: Clock,
        listener: SearchListener,
        on_begin: Callable[[Trial], None],
    ) -> None:
        self.data, self.workers, self.address = data, workers, address
        self.folders_of = folders_of
        self.clock, self.listener, self.on_begin = clock, listener, on_begin
        self.waiting: dict[Future[Any], tuple[Trial, int, float]] = {}
        self.kills = Kills()
        self.pool: Pool | None = None
        self.cluster: Cluster | None = None

    def __enter__(self) -> Lanes:
        if self.address is not None:
            self.cluster = Cluster(self.address, self.data).__enter__()
        elif self.workers > 1:
            threads = threads_each(self.workers)
            self.pool = Pool(self.data, self.workers, threads).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cluster is not None:
            self.cluster.__exit__(*error)
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
        room = self.workers if self.cluster is None else self.cluster.num_cpus
        return len(self.waiting) < room

    def submit(self, trial: Trial, until: int, most_seconds: float) -> None:
        """Train a trial up to an epoch; it fails where it would take longer to its end."""
        future: Future[Any] = Future()
        configs, folders, *limits = task = self._task(trial, until, most_seconds)
        if self.cluster is not None or self.pool is not None:
            self.on_begin(trial)  # in this process it may wait for others first
        if self.cluster is not None:
            files = {folder.name: read_files(folder) for folder in folders}
            future = self.cluster.submit(
                train_folds_on_node, configs, files, *limits, config=configs[0]
            )
        elif self.pool is not None:
            self.listener.on_begin(configs)
            future = self.pool.submit(train_folds, *task)
        self.waiting[future] = (trial, until, most_seconds)

    def wait(self) -> Iterator[tuple[int, Reached]]:
        """Yield each trial that has come as far as it should, once at least one has."""
        if self.pool is None and self.cluster is None:
            future, asked = next(iter(self.waiting.items()))
            del self.waiting[future]
            self.on_begin(asked[0])
            yield asked[0].number, train_folds(self.data, *self._task(*asked), self._of_run)
            return
        done: set[Future[Any]] = set()
        while not done:
            done, _ = wait(self.waiting, SAVE_SECONDS, FIRST_COMPLETED)
            self._on_time()
        broken = []
        for future in sorted(done, key=lambda f: self.waiting[f][0].number):
            asked = self.waiting.pop(future)
            trial = asked[0]
            if self.cluster is not None:
                yield trial.number, self._take_in(self.cluster, future, trial)
                continue
            try:
                yield trial.number, future.result()
            except BrokenProcessPool:
                broken.append(asked)
        if broken:
            yield from self._after_a_kill([*broken, *self.waiting.values()])

    def _take_in(self, cluster: Cluster, future: Future[Returned], trial: Trial) -> Reached:
        """Store what a node returned."""
        try:
            reached, files = cluster.result(future)
        except LostError as error:
            return Reached(trial.epochs, None, 0.0, f"{KILLED}: {error}")
        except ValueError as error:
            return Reached(trial.epochs, None, 0.0, str(error))
        for folder in self.folders_of(trial.number):
            if files[folder.name]:
                replace_files(folder, files[folder.name])
        return reached

    def _of_run(self, config: RunConfig) -> Listener:
        return _Timely(self.listener.of_run(config), self._on_time)

    def _on_time(self) -> None:
        self.clock.save()
        self.listener.on_time()

    def _after_a_kill(
        self, lost: Sequence[tuple[Trial, int, float]]
    ) -> Iterator[tuple[int, Reached]]:
        """Start new processes; a trial under way at three kills without an epoch is given up."""
        assert self.pool is not None
        self.waiting.clear()
        self.pool.restart()
        self.listener.on_note("a worker was killed; its trials go on from their last epoch")
        for asked in lost:
            trial = asked[0]
            if self.kills.count(self.folders_of(trial.number)) <= MOST_KILLS:
                self.submit(*asked)
            else:
                yield trial.number, Reached(trial.epochs, None, 0.0, KILLED)

    def _task(
        self, trial: Trial, until: int, most_seconds: float
    ) -> tuple[list[RunConfig], list[Path], int, float]:
        assert trial.config is not None
        folders = self.folders_of(trial.number)
        first = 0 if trial.repeats is None else len(folders)
        configs = [replace(trial.config, seed=first + i) for i in range(len(folders))]
        return configs, folders, until, most_seconds / len(folders)


class _Timely(Listener):
    """Passes on what it is told, and tells what the time is for after each epoch."""

    def __init__(self, inner: Listener, on_time: Callable[[], None]) -> None:
        self.on_start = inner.on_start  # type: ignore[method-assign]
        self.on_step = inner.on_step  # type: ignore[method-assign]
        self.inner, self.on_time = inner, on_time

    def on_epoch(self, row: MetricsRow) -> None:
        """Pass it on, and tell."""
        self.on_time()
        self.inner.on_epoch(row)


def train_folds_on_node(
    data: DataSplits,
    folder: Path,
    configs: Sequence[RunConfig],
    files: dict[str, dict[str, bytes]],
    until: int,
    most_seconds: float,
) -> Returned:
    """Train the runs of a trial up to an epoch, from their files, by name of the run folder.

    Returns:
        How far they have come, and their files now.
    """
    folders = [folder / name for name in files]
    for run in folders:
        unpack_run(run, files[run.name])
    reached = train_folds(data, configs, folders, until, most_seconds)
    return reached, {run.name: read_files(run) for run in folders}
