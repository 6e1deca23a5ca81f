"""Studies: many runs in one folder, of which a second call trains only what is missing.

A study is a folder of runs, models × recipes × seeds, described by `study.json`. Each run is
complete in its own folder, so nothing but a run under way is lost when the study is stopped.
"""

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
from typing import Annotated, Any

import torch
from msgspec import Meta

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.cache import open_splits, save_splits
from halfmeg.data.dataset import DataSplits
from halfmeg.files import make_folder, read_json, scratch_folder, write_json
from halfmeg.places.load import blame
from halfmeg.places.place import check_in_file, file_name, hand_over
from halfmeg.studies.cluster import train_on_cluster
from halfmeg.studies.reading import Reading
from halfmeg.training.fit import RUN_FAILURES, one_line, train_run
from halfmeg.training.job import check_places
from halfmeg.training.listen import Listener
from halfmeg.training.stack import check_stack, train_stack
from halfmeg.training.stopping import TrainingInterruptedError


@dataclass(frozen=True)
class Study:
    """What a study has: its finished runs, for each run that failed the error, how it is read."""

    folder: Path
    runs: tuple[Run, ...]
    failures: dict[str, str]
    reading: Reading

    def record_look(self, seeds: int) -> None:
        """Note in `study.json` that the study was read with so many seeds.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / "study.json"
        read = Reading.of(self.folder).with_look(seeds)
        write_json(path, read_json(path, dict[str, Any]) | {"reading": read.to_dict()})


class StudyListener:
    """Is told how a study goes; this one tells nobody."""

    def of_run(self, config: RunConfig) -> Listener | None:
        """Return who is told how a run in this process goes."""
        return None

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        """A run has ended; `error` is None where it was trained."""


def make_configs(
    models: Sequence[Any], recipes: Sequence[RunConfig], seeds: int
) -> list[RunConfig]:
    """Return models × recipes × seeds 0 to `seeds` - 1, seed by seed.

    A model is a name of `MODELS`, a place, or a network handed over from Python.

    Raises:
        ValueError: a model or recipe twice, none of them, or fewer than one seed.
    """
    models = [hand_over(model) for model in models]
    if len(set(models)) < max(1, len(models)):
        raise ValueError(f"models={', '.join(models)} is not allowed; name each model once")
    names = [recipe.recipe for recipe in recipes]
    if len(set(names)) < max(1, len(names)):
        raise ValueError(f"recipes={', '.join(names)} is not allowed; name each recipe once")
    if seeds < 1:
        raise ValueError(f"seeds={seeds} is out of range; allowed: 1 or more")
    return [
        replace(recipe, model=model, seed=seed)
        for seed in range(seeds)
        for recipe in recipes
        for model in models
    ]


def run_study(
    configs: Sequence[RunConfig],
    data: DataSplits,
    out: str | Path,
    *,
    workers: int = 1,
    cluster: str | None = None,
    gpus_per_run: float = 0.0,
    stack: bool = False,
    reading: Reading | None = None,
    listener: StudyListener | None = None,
) -> Study:
    """Train every config into a folder of `out`; finished runs are kept, others continued.

    Runs of the same seed are paired: they share split, order and augmentation draws. A run that
    fails is reported with its error, and the others go on.

    Args:
        configs: the runs; no two may have the same model, recipe and seed.
        data: what all of them are trained on.
        out: the study's folder. It may hold an earlier part of the same study.
        workers: runs at once, each in a process of its own with its share of the cores.
        cluster: the address of a Ray cluster, or "auto"; its nodes train instead of this machine.
        gpus_per_run: share of a GPU that a run asks the cluster for.
        stack: whether runs that differ in their seed only are trained at once in this process, by
            `halfmeg.training.stack`, which fills a large GPU.
        reading: how it is read; None: once, as usual.
        listener: is told how it goes.

    Raises:
        ValueError: `out` holds something else than an earlier part of the same study, the cluster
            does not answer, or runs are to be stacked that take no stack.
        TrainingInterruptedError: Ctrl-C or SIGTERM; started again, the study goes on.
    """
    out, listener = Path(out), listener or StudyListener()
    if workers < 1:
        raise ValueError(f"workers={workers} is out of range; allowed: 1 or more")
    if not configs:
        raise ValueError("a study needs at least one run")
    if stack and (workers > 1 or cluster is not None):
        other = f"workers={workers}" if workers > 1 else f"cluster={cluster}"
        raise ValueError(f"{other} and a stack exclude each other; leave one of them out")
    if workers > 1 or cluster is not None:
        cores = os.cpu_count() or 1
        threads = 1 if cluster is not None else max(1, cores // workers)
        configs = [c if c.threads else replace(c, threads=threads) for c in configs]
    if workers > 1 or cluster is not None:
        for config in configs:
            check_in_file(config.places().values(), "other processes")
    for config in dict.fromkeys(replace(config, seed=0) for config in configs):
        check_places(config, data)  # before anything is trained
    folders = _folder_names(configs)
    if stack:
        for seeds in _by_all_but_seed((config, out) for config in configs):
            check_stack([config for config, _ in seeds])
    reading = _check_folder(out, configs, folders, data, reading or Reading())
    tasks = [
        (config, out / name)
        for config, name in zip(configs, folders, strict=True)
        if not (out / name / "result.json").exists()
    ]
    if cluster is not None:
        outcomes = train_on_cluster(cluster, tasks, data, gpus_per_run=gpus_per_run)
    elif stack:
        outcomes = _train_stacks(tasks, data, listener)
    elif workers > 1:
        outcomes = _train_in_processes(tasks, data, min(workers, len(tasks)))
    else:
        outcomes = _train_here(tasks, data, listener)
    failures: dict[str, str] = {}
    done = len(configs) - len(tasks)
    for (config, folder), error in outcomes:
        done += 1
        if error is not None:
            failures[folder.name] = error
        listener.on_run(config, error, done, len(configs))
    runs = tuple(Run.open(out / name) for name in folders if name not in failures)
    return Study(out, runs, failures, reading)


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Open run folders, and of study folders the runs that stand in `study.json`.

    Raises:
        ValueError: a folder is neither, or a study's run is missing or damaged.
    """
    runs: list[Run] = []
    for folder in map(Path, folders):
        stored = _read_study(folder)
        if stored is None:
            runs.append(Run.open(folder))
        else:
            runs += [Run.open(folder / run.folder) for run in stored.runs]
    return runs


@dataclass(frozen=True)
class StoredRun:
    """A run in study.json."""

    folder: Annotated[str, Meta(pattern=r"^[^/\\]+$")]
    model: str
    recipe: str
    seed: int


@dataclass(frozen=True)
class StoredStudy:
    """What the program reads of study.json; more stands there."""

    runs: list[StoredRun]


def _read_study(folder: Path) -> StoredStudy | None:
    try:
        return read_json(folder / "study.json", StoredStudy)
    except (FileNotFoundError, NotADirectoryError):
        return None


Task = tuple[RunConfig, Path]
Outcomes = Iterator[tuple[Task, str | None]]


def _folder_names(configs: Sequence[RunConfig]) -> list[str]:
    several = len({config.recipe for config in configs}) > 1
    names = [
        file_name(c.model) + (f"-{file_name(c.recipe)}" if several else "") + f"-seed-{c.seed}"
        for c in configs
    ]
    if len(set(names)) < len(names):
        raise ValueError("a study needs a different model, recipe or seed for each run")
    return names


def _train_here(tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
    for config, folder in tasks:
        yield (config, folder), train_run(config, data, folder, listener.of_run(config))


def _by_all_but_seed(tasks: Iterable[Task]) -> list[list[Task]]:
    groups: dict[RunConfig, list[Task]] = {}
    for config, folder in tasks:
        groups.setdefault(replace(config, seed=0), []).append((config, folder))
    return list(groups.values())


def _train_stacks(tasks: Sequence[Task], data: DataSplits, listener: StudyListener) -> Outcomes:
    """Train the seeds of each network and recipe at once."""
    for seeds in _by_all_but_seed(tasks):
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


def _check_folder(
    out: Path,
    configs: Sequence[RunConfig],
    folders: Sequence[str],
    data: DataSplits,
    wanted: Reading,
) -> Reading:
    """Raise before anything is trained if `out` cannot hold this study; write study.json."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"cannot write to {out}: it is a file")
    if out.exists() and any(out.iterdir()) and not (out / "study.json").exists():
        raise ValueError(f"{out} exists and is no study; choose another --out")
    others = [run for run in _others_in(out, folders) if (out / run.folder).exists()]
    if others:
        names = ", ".join(dict.fromkeys(f"{run.model} seed {run.seed}" for run in others[:3]))
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{out} holds runs that this study has not ({names}{more}); "
            "name them too, or choose another --out"
        )
    for config, name in zip(configs, folders, strict=True):
        if not (out / name / "config.json").exists():
            continue
        run = Run.open(out / name)
        same = replace(run.config, threads=0) == replace(config, threads=0)
        if not same or run.data.fingerprint != data.fingerprint:
            raise ValueError(
                f"{out / name} was trained with other settings or data; choose another --out"
            )
    reading = Reading.of(out).go_on(wanted, out)
    try:
        make_folder(out)
        described = _describe(configs, folders, data) | {"reading": reading.to_dict()}
        write_json(out / "study.json", described)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}") from None
    return reading


def _others_in(out: Path, folders: Sequence[str]) -> list[StoredRun]:
    """Return the runs in an earlier study.json that the new one would leave out."""
    stored = _read_study(out)
    return [run for run in stored.runs if run.folder not in folders] if stored else []


def _describe(
    configs: Sequence[RunConfig], folders: Sequence[str], data: DataSplits
) -> dict[str, Any]:
    def unique(values: Iterable[Any]) -> list[Any]:
        return list(dict.fromkeys(values))

    return {
        "models": unique(config.model for config in configs),
        "recipes": unique(config.recipe for config in configs),
        "seeds": unique(config.seed for config in configs),
        "data": {"name": data.name, "source": data.source, "fingerprint": data.fingerprint},
        "runs": [
            {"folder": name, "model": config.model, "recipe": config.recipe, "seed": config.seed}
            for config, name in zip(configs, folders, strict=True)
        ],
    }
