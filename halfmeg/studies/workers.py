"""How the runs of a study are trained: one after another, stacked, in processes, on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from halfmeg.artifacts.weights import checkpoints_in, read_checkpoint
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.studies.cluster import train_on_cluster
from halfmeg.studies.pool import KILLED, MOST_KILLS, Kills, Pool, stopping_workers
from halfmeg.training.fit import failure, train_run
from halfmeg.training.listen import Listener
from halfmeg.training.stack import train_stack
from halfmeg.training.stopping import TrainingInterruptedError

CONTINUED = "the same command continues the study"


class StudyListener:
    """Is told how a study goes; this one tells nobody."""

    def on_begin(self, configs: Sequence[RunConfig]) -> None:
        """Runs are about to be trained by this machine."""

    def of_run(self, config: RunConfig) -> Listener:
        """Return who is told how a run in this process goes."""
        return Listener()

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        """A run has ended; `error` is None where it was trained."""

    def on_measure(self) -> None:
        """No more runs follow; robustness and costs are about to be measured."""

    def on_look(self, seeds: int, undecided: Sequence[str], to_come: Sequence[int]) -> None:
        """A study that runs until it is decided was read, and goes on.

        Args:
            seeds: that it was read with.
            undecided: the pairs that are open.
            to_come: numbers of seeds of the looks that are left.
        """


Task = tuple[RunConfig, Path]
Outcomes = Iterator[tuple[Task, str | None]]


@dataclass(frozen=True)
class Workers:
    """Where runs are trained.

    Attributes:
        count: runs at once, each in a process of its own.
        cluster: the address of a Ray cluster, or "auto"; None for this machine.
        gpus_per_run: share of a GPU that a run asks the cluster for.
        stack: whether runs that differ in their seed only are trained at once in this process.
    """

    count: int = 1
    cluster: str | None = None
    gpus_per_run: float = 0.0
    stack: bool = False

    def train(self, tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
        """Train every task, and yield with each the error where it failed."""
        if self.cluster is not None:
            return train_on_cluster(self.cluster, tasks, data, gpus_per_run=self.gpus_per_run)
        if self.stack:
            return _train_stacks(tasks, data, listener)
        if self.count > 1:
            return _train_in_processes(tasks, data, min(self.count, len(tasks)))
        return _train_here(tasks, data, listener)


def _train_here(tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
    for config, folder in tasks:
        try:
            error = train_run(config, data, folder, listener.of_run(config))
        except TrainingInterruptedError as stopped:
            raise TrainingInterruptedError(CONTINUED, stopped.signal_number) from None
        yield (config, folder), error


def _stacks(tasks: Iterable[Task]) -> list[list[Task]]:
    """Return the tasks together that differ in their seed only and go on from the same step.

    A study that is killed while it writes its seeds' checkpoints leaves them an epoch apart.
    """
    stacks: dict[tuple[RunConfig, str], list[Task]] = {}
    for config, folder in tasks:
        alike = replace(config, seed=0), _begins_at(folder)
        stacks.setdefault(alike, []).append((config, folder))
    return list(stacks.values())


def _begins_at(folder: Path) -> str:
    """Return the name of the checkpoint that a run goes on from; of a new run, nothing."""
    newest_first = reversed(checkpoints_in(folder))
    return next((path.name for path in newest_first if read_checkpoint(path) is not None), "")


def _train_stacks(tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
    """Train the seeds of each network and recipe at once."""
    for seeds in _stacks(tasks):
        try:
            errors = train_stack(seeds, data, listener.of_run(seeds[0][0]))
        except TrainingInterruptedError:
            raise
        except Exception as error:
            if (told := failure(error)) is None:
                raise
            errors = [told] * len(seeds)
        yield from zip(seeds, errors, strict=True)


def _train_in_processes(tasks: Sequence[Task], data: DataSplits, workers: int) -> Outcomes:
    """Train several runs at once; where a process is killed, all that were under way go on."""
    if not tasks:
        return
    waiting = deque(tasks)
    under_way: dict[Future[str | None], Task] = {}
    kills = Kills()
    threads = max(config.threads for config, _ in tasks)
    with Pool(data, workers, threads) as pool, stopping_workers(pool, CONTINUED):
        while waiting or under_way:
            while waiting and len(under_way) < workers:
                task = waiting.popleft()
                under_way[pool.submit(_train_in_worker, *task)] = task
            lost = []
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                task = under_way.pop(future)
                try:
                    yield task, future.result()
                except BrokenProcessPool:
                    lost.append(task)
            if lost:  # with one process all of them end
                lost += under_way.values()
                under_way.clear()
                pool.restart()
            for task in lost:
                if kills.count([task[1]]) < MOST_KILLS:
                    waiting.append(task)
                else:
                    yield task, KILLED


def _train_in_worker(data: DataSplits, config: RunConfig, folder: Path) -> str | None:
    return train_run(config, data, folder)
