"""Processes that train several runs at once, and map the same file of images into memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar, final

import torch

from halfmeg.artifacts.metrics import count_epochs
from halfmeg.data.cache import open_splits, save_splits
from halfmeg.data.dataset import DataSplits
from halfmeg.files import scratch_folder
from halfmeg.places.place import PlaceWarning
from halfmeg.places.source import Source, held_sources, hold
from halfmeg.training.stopping import TrainingInterruptedError

T = TypeVar("T")

KILLED = "its process was killed (out of memory?)"

MOST_KILLS = 2
"""Kills without an epoch in between: a study gives a run up at so many, a search at one more."""


def threads_each(workers: int) -> int:
    """Return how many threads each of some workers has, so that they share the cores."""
    allowed = getattr(os, "sched_getaffinity", None)  # fewer in a container, a job or `taskset`
    return max(1, (len(allowed(0)) if allowed else os.cpu_count() or 1) // workers)


@final
class Kills:
    """How often what was under way was killed without an epoch in between.

    One process that is killed ends all, so a run beside it that gets on is not to blame.
    """

    def __init__(self) -> None:
        self._last: dict[Path, tuple[int, int]] = {}

    def count(self, folders: Sequence[Path]) -> int:
        """Count a kill of what is trained in some run folders; return how many there were."""
        epochs = sum(map(count_epochs, folders))
        at, count = self._last.get(folders[0], (epochs, 0))
        self._last[folders[0]] = epochs, count + 1 if at == epochs else 1
        return self._last[folders[0]][1]


@final
class Pool:
    """A pool of processes, to be entered; each works with its share of the cores.

    Args:
        data: that they train on.
        count: of processes.
        threads: of each.
    """

    def __init__(self, data: DataSplits, count: int, threads: int) -> None:
        self.data, self.count, self.threads = data, count, threads

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self.shared = opening.enter_context(scratch_folder())
            save_splits(self.data, self.shared / "data")
            self.executor = self._start()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        self._open.close()

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call a function of a module, with the data in front of its arguments, in a process.

        The future raises `BrokenProcessPool` where a process was killed, be it before this call.
        """
        try:
            return self.executor.submit(_work, function, args)
        except BrokenProcessPool as broken:
            lost: Future[T] = Future()
            lost.set_exception(broken)
            return lost

    def restart(self) -> None:
        """Start new processes after one was killed, which ends all of them."""
        self.executor.shutdown(cancel_futures=True)
        self.executor = self._start()

    def stop(self) -> None:
        """Let each run that is under way write a checkpoint and end."""
        (self.shared / "stop").touch()
        for process in multiprocessing.active_children():
            process.terminate()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(self.shared, self.threads, held_sources()),
        )


@contextlib.contextmanager
def stopping_workers(pool: Pool, advice: str) -> Iterator[None]:
    """Stop the workers on Ctrl-C and SIGTERM.

    Raises:
        TrainingInterruptedError: one of the two came; `advice` says how to go on.
    """
    try:
        with terminate_as_interrupt():
            yield
    except (KeyboardInterrupt, TrainingInterruptedError) as stopped:
        pool.stop()
        number = getattr(stopped, "signal_number", signal.SIGINT)
        raise TrainingInterruptedError(advice, number) from None


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends the program as Ctrl-C does, but with its own exit code."""

    signal_number = signal.SIGTERM


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM stop a study or search as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


_worker_data: DataSplits | None = None
_worker_stop = Path()


def _start_worker(shared: Path, threads: int, sources: dict[str, Source]) -> None:
    global _worker_data, _worker_stop
    if os.name == "posix":
        os.setpgid(0, 0)  # Ctrl-C reaches the study, which stops its workers
    warnings.simplefilter("ignore", PlaceWarning)  # the study has told it
    torch.set_num_threads(threads)
    hold(sources)
    _worker_data, _worker_stop = open_splits(shared / "data"), shared / "stop"

    def stop_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # the run under way writes a checkpoint

    threading.Thread(target=stop_with_parent, daemon=True).start()


def _work(function: Callable[..., T], args: tuple[Any, ...]) -> T:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert _worker_data is not None
    # A run that was ending when the signal came does not show it.
    if _worker_stop.exists() or not parent.is_alive():
        os._exit(1)
    try:
        result = function(_worker_data, *args)
    except TrainingInterruptedError:
        os._exit(1)  # without a look at the next run in the queue
    if not parent.is_alive():
        os._exit(1)
    return result
