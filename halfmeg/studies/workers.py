"""How the runs of a study are trained: one after another, stacked, in processes, on a cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from halfmeg.config import RunConfig
from halfmeg.data.cache import open_splits, save_splits
from halfmeg.data.dataset import DataSplits
from halfmeg.files import scratch_folder
from halfmeg.places.load import blame
from halfmeg.studies.cluster import train_on_cluster
from halfmeg.training.fit import RUN_FAILURES, one_line, train_run
from halfmeg.training.listen import Listener
from halfmeg.training.stack import train_stack
from halfmeg.training.stopping import TrainingInterruptedError


class StudyListener:
    """Is told how a study goes; this one tells nobody."""

    def of_run(self, config: RunConfig) -> Listener | None:
        """Return who is told how a run in this process goes."""
        return None

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        """A run has ended; `error` is None where it was trained."""


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
        yield (config, folder), train_run(config, data, folder, listener.of_run(config))


def by_all_but_seed(tasks: Iterable[Task]) -> list[list[Task]]:
    """Return the tasks of one network and recipe together."""
    groups: dict[RunConfig, list[Task]] = {}
    for config, folder in tasks:
        groups.setdefault(replace(config, seed=0), []).append((config, folder))
    return list(groups.values())


def _train_stacks(tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
    """Train the seeds of each network and recipe at once."""
    for seeds in by_all_but_seed(tasks):
        try:
            errors = train_stack(seeds, data, listener.of_run(seeds[0][0]))
        except TrainingInterruptedError:
            raise
        except Exception as error:
            if not (isinstance(error, RUN_FAILURES) or blame(error)):
                raise
            errors = [one_line(error)] * len(seeds)
        yield from zip(seeds, errors, strict=True)


def _train_in_processes(tasks: Sequence[Task], data: DataSplits, workers: int) -> Outcomes:
    """Train several runs at once; the processes map the same file of images into memory."""
    if not tasks:
        return
    with scratch_folder() as shared:
        save_splits(data, shared / "data")
        executor = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(shared, max(config.threads for config, _ in tasks)),
        )
        try:
            futures = {executor.submit(_train_in_worker, *task): task for task in tasks}
            with _terminate_as_interrupt():
                for future in as_completed(futures):
                    try:
                        yield futures[future], future.result()
                    except BrokenProcessPool:
                        yield futures[future], "its process was killed (out of memory?)"
        except (KeyboardInterrupt, TrainingInterruptedError) as stopped:
            (shared / "stop").touch()
            for process in multiprocessing.active_children():
                process.terminate()  # each writes a checkpoint
            number = getattr(stopped, "signal_number", signal.SIGINT)
            told = "the same command continues the study"
            raise TrainingInterruptedError(told, number) from None
        finally:
            executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM stop the study as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


_worker_data: DataSplits | None = None
_worker_stop = Path()


def _start_worker(shared: Path, threads: int) -> None:
    global _worker_data, _worker_stop
    if os.name == "posix":
        os.setpgid(0, 0)  # Ctrl-C reaches the study, which stops its workers
    torch.set_num_threads(threads)
    _worker_data, _worker_stop = open_splits(shared / "data"), shared / "stop"

    def stop_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # the run under way writes a checkpoint

    threading.Thread(target=stop_with_parent, daemon=True).start()


def _train_in_worker(config: RunConfig, folder: Path) -> str | None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert _worker_data is not None
    # A run that was ending when the signal came does not show it.
    if _worker_stop.exists() or not parent.is_alive():
        os._exit(1)
    try:
        error = train_run(config, _worker_data, folder)
    except TrainingInterruptedError:
        os._exit(1)  # without a look at the next run in the queue
    if not parent.is_alive():
        os._exit(1)
    return error
