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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from halfmeg.config import RunConfig
from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.files import new_folder, scratch_folder
from halfmeg.places.load import load
from halfmeg.places.place import TIMM
from halfmeg.places.source import Source, read_source, settle
from halfmeg.training.fit import train_run

CONNECT_SECONDS = 5.0
RETRIES = 20
"""How often a run is repeated when its node is lost."""


def train_on_cluster(
    address: str,
    tasks: Sequence[tuple[RunConfig, Path]],
    data: DataSplits,
    *,
    gpus_per_run: float = 0.0,
) -> Iterator[tuple[tuple[RunConfig, Path], str | None]]:
    """Train runs on the nodes of a Ray cluster, each asking for its threads as CPUs.

    Python of the user's own that the configs name travels as text. The images are put into the
    cluster's object store once and shared by the runs of a node.

    Args:
        address: of the cluster, such as "10.0.0.1:6379", or "auto" for the one of this machine.
        tasks: configs and the folders to write; an unfinished folder is continued.
        data: what they are trained on.
        gpus_per_run: share of a GPU that each run asks for.

    Yields:
        Each task as it ends, with None or its error.

    Raises:
        ValueError: Ray is not installed, or the cluster does not answer.
    """
    previous = signal.getsignal(signal.SIGTERM)
    ray = _connect(address)
    try:
        arrays = {
            (part, kind): tensor.numpy()
            for part, dataset in data.parts.items()
            for kind in ("images", "labels", "groups")
            if (tensor := getattr(dataset, kind)) is not None
        }
        empty = Dataset(torch.empty(0), torch.empty(0), data.classes)
        facts = replace(data, train=empty, test=empty, validation=None)
        shared = ray.put(arrays)
        train = ray.remote(_train_on_node)
        waiting = {}
        for config, folder in tasks:
            options = train.options(
                num_cpus=max(1, config.threads), num_gpus=gpus_per_run, max_retries=RETRIES
            )
            sources = _sources_of(config)
            task = options.remote(config, shared, facts, _read_files(folder), sources)
            waiting[task] = (config, folder)
        while waiting:
            (finished,), _ = ray.wait(list(waiting), num_returns=1)
            config, folder = waiting.pop(finished)
            yield (config, folder), _collect(ray, finished, folder)
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)  # Ray leaves its own behind


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
        reason = " ".join(str(error).split())[:160]
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


def _train_on_node(
    config: RunConfig,
    arrays: dict[tuple[str, str], Any],
    facts: DataSplits,
    files: dict[str, bytes],
    sources: Sequence[Source],
) -> dict[str, bytes] | str:
    """Train one run on a node; return its files, or the error."""
    torch.set_num_threads(max(1, config.threads))
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    parts = {
        part: Dataset(
            torch.from_numpy(arrays[part, "images"]),
            torch.from_numpy(arrays[part, "labels"]).clone(),
            facts.classes,
            groups=torch.from_numpy(groups).clone() if groups is not None else None,
        )
        for part in sorted({part for part, _ in arrays})
        for groups in [arrays.get((part, "groups"))]
    }
    data = replace(
        facts, train=parts["train"], test=parts["test"], validation=parts.get("validation")
    )
    with scratch_folder() as temporary:
        folder = temporary / "run"
        for index, source in enumerate(sources):
            settle(source, temporary / f"source-{index}")
        if files:
            _write_files(folder, files)
            (folder / "checkpoints").mkdir(exist_ok=True)
        error = train_run(config, data, folder)
        if error is not None:
            return error
        shutil.rmtree(folder / "checkpoints")
        return _read_files(folder)


def _sources_of(config: RunConfig) -> list[Source]:
    """Return what stands at a config's places; what is in no file has to be on the nodes."""
    sources = []
    for place in config.places().values():
        if not place.startswith(TIMM):
            load(place)
            sources.append(read_source(place))
    return sources


def _collect(ray: Any, finished: Any, folder: Path) -> str | None:
    try:
        result = ray.get(finished)
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[:300]
    if isinstance(result, str):
        return result
    with new_folder(folder) as part:
        _write_files(part, result)
        shutil.rmtree(folder, ignore_errors=True)  # the unfinished run that the task went on from
    return None


def _read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
