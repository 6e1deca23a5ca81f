"""Runs on a Ray cluster: each a task that returns its run folder to the driver.

The nodes need halfmeg and the same versions, but no common disk: a task trains in a temporary
folder of its node and returns the files, which the driver stores whole in the study's folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, final

import torch

from halfmeg.config import RunConfig
from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.errors import one_line
from halfmeg.files import new_folder, scratch_folder
from halfmeg.places.load import load
from halfmeg.places.place import TIMM
from halfmeg.places.source import Source, read_source, settle
from halfmeg.training.fit import train_run

T = TypeVar("T")

CONNECT_SECONDS = 5.0
RETRIES = 20
"""How often a run is repeated when its node is lost."""


class LostError(ValueError):
    """A call did not fail by itself: its process or its node was lost, again and again."""


@final
class Cluster:
    """A Ray cluster, to be entered; the images are put into its object store once.

    Args:
        address: such as "10.0.0.1:6379", or "auto" for the one of this machine.
        data: that its tasks work on.
    """

    def __init__(self, address: str, data: DataSplits) -> None:
        self.address, self.data = address, data

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            ValueError: Ray is not installed, or the cluster does not answer.
        """
        self._handler = signal.getsignal(signal.SIGTERM)
        self.ray = _connect(self.address)
        data = self.data
        arrays = {
            (part, kind): tensor.numpy()
            for part, dataset in data.parts.items()
            for kind in ("images", "labels", "groups", "sizes")
            if (tensor := getattr(dataset, kind)) is not None
        }
        empty = Dataset(torch.empty(0), torch.empty(0), data.classes)
        self._facts = replace(data, train=empty, test=empty, validation=None)
        self._shared = self.ray.put(arrays)
        self._task = self.ray.remote(_work_on_node)
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)  # Ray leaves its own behind

    @property
    def num_cpus(self) -> int:
        """Of all its nodes together."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def submit(
        self,
        function: Callable[..., T],
        *args: Any,
        config: RunConfig,
        num_gpus: float = 0.0,
    ) -> Future[T]:
        """Call a function of a module on a node, again on another one where a node is lost.

        It gets the data, an empty folder, and the arguments. Python of the user's own that the
        config names travels as text.

        Args:
            config: of what the call trains, but for the seed; its threads are what it asks for as
                CPUs.
            num_gpus: share of a GPU that it asks for.
        """
        threads = max(1, config.threads)
        task = self._task.options(num_cpus=threads, num_gpus=num_gpus, max_retries=RETRIES)
        sources = _sources_of(config)
        reference = task.remote(function, args, self._shared, self._facts, sources, threads)
        future: Future[T] = reference.future()
        return future

    def result(self, future: Future[T]) -> T:
        """Return what a call that has ended returned.

        Raises:
            ValueError: it failed.
            LostError: its process was killed, or too many nodes were lost.
        """
        try:
            return future.result()
        except self.ray.exceptions.RayTaskError as error:
            raise ValueError(one_line(error, 300)) from None
        except self.ray.exceptions.RayError as error:
            raise LostError(one_line(error, 300)) from None


def train_on_cluster(
    address: str,
    tasks: Sequence[tuple[RunConfig, Path]],
    data: DataSplits,
    *,
    gpus_per_run: float,
) -> Iterator[tuple[tuple[RunConfig, Path], str | None]]:
    """Train runs on the nodes of a Ray cluster, each asking for its threads as CPUs.

    Args:
        address: of the cluster, as for `Cluster`.
        tasks: configs and the folders to write; an unfinished folder is continued.
        data: what they are trained on.
        gpus_per_run: share of a GPU that each run asks for.

    Yields:
        Each task as it ends, with None or its error.

    Raises:
        ValueError: Ray is not installed, or the cluster does not answer.
    """
    with Cluster(address, data) as cluster:
        waiting = {
            cluster.submit(
                _train_run, config, read_files(folder), config=config, num_gpus=gpus_per_run
            ): (config, folder)
            for config, folder in tasks
        }
        for finished in as_completed(list(waiting)):
            config, folder = waiting.pop(finished)
            try:
                result = cluster.result(finished)
            except ValueError as error:
                result = str(error)
            if isinstance(result, dict):
                replace_files(folder, result)
            yield (config, folder), result if isinstance(result, str) else None


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("--cluster needs Ray: pip install -e '.[cluster]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "auto":
        _check_answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = one_line(error, 160)
        raise ValueError(f"no Ray cluster answers at {address!r}: {reason}") from None
    return ray


def _check_answers(address: str) -> None:
    """Raise in seconds where nobody listens; Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and host and port.isdigit()):
        raise ValueError(f"cluster={address!r} is no address; expected HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from None


def _work_on_node(
    function: Callable[..., T],
    args: tuple[Any, ...],
    arrays: dict[tuple[str, str], Any],
    facts: DataSplits,
    sources: Sequence[Source],
    threads: int,
) -> T:
    """Call a function with the data, as it lies in the node's memory, and a folder."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    parts = {
        part: Dataset(
            torch.from_numpy(arrays[part, "images"]),
            torch.from_numpy(arrays[part, "labels"]).clone(),
            facts.classes,
            **{
                kind: torch.from_numpy(arrays[part, kind]).clone()
                for kind in ("groups", "sizes")
                if (part, kind) in arrays
            },
        )
        for part in sorted({part for part, _ in arrays})
    }
    data = replace(
        facts, train=parts["train"], test=parts["test"], validation=parts.get("validation")
    )
    with scratch_folder() as folder:
        for index, source in enumerate(sources):
            settle(source, folder / f"source-{index}")
        return function(data, folder, *args)


def _train_run(
    data: DataSplits, folder: Path, config: RunConfig, files: dict[str, bytes]
) -> dict[str, bytes] | str:
    """Train one run on a node; return its files, or the error."""
    run = folder / "run"
    unpack_run(run, files)
    error = train_run(config, data, run)
    if error is not None:
        return error
    shutil.rmtree(run / "checkpoints")
    return read_files(run)


def _sources_of(config: RunConfig) -> list[Source]:
    """Return what stands at a config's places; what is in no file has to be on the nodes."""
    sources = []
    for place in config.places().values():
        if not place.startswith(TIMM):
            load(place)
            sources.append(read_source(place))
    return sources


def read_files(folder: Path) -> dict[str, bytes]:
    """Return what stands in a folder, by its path below it; nothing where there is none."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_run(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run folder for a node to go on with; none where it has no files."""
    _write_files(folder, files)
    if files:
        (folder / "checkpoints").mkdir(exist_ok=True)


def replace_files(folder: Path, files: dict[str, bytes]) -> None:
    """Put a folder that a node returned in the place of the one that it went on from."""
    with new_folder(folder) as part:
        _write_files(part, files)
        shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
