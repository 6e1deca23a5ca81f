"""The run folder: the one place where a run's config, measurements and weights stand.

| file | holds |
|---|---|
| `config.json` | the `RunConfig` and the facts of the data |
| `environment.json` | versions, machine and command |
| `metrics.csv` | one row for each epoch |
| `checkpoints/` | everything needed to continue, the newest last |
| `weights.safetensors` | the evaluated weights |
| `result.json` | the outcome |
| `logits.npz` | logits and labels of the held-out images |
| `test_readings.jsonl` | when and for what the test set was read |
| `source.json`, `source/` | Python of the user's own, as text, and its hash |

Every file is written whole or not at all: to a temporary name, flushed to disk, then renamed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.files import json_bytes, read_json, write_atomically, write_json
from halfmeg.artifacts.rebuild import check_classes, rebuild
from halfmeg.artifacts.sources import check_sources, find_sources, write_sources
from halfmeg.artifacts.weights import read_checkpoint, weights_to_bytes
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.evaluate import Evaluation, evaluate
from halfmeg.networks.trial import try_out
from halfmeg.places.place import provide

METRICS = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "test_loss", "test_accuracy", "images_per_second", "seconds",
)  # fmt: skip
"""Columns of metrics.csv; a cell is empty where nothing was measured. `seconds` adds up."""


MetricsRow = dict[str, float | int | None]


@dataclass(frozen=True)
class DataFacts:
    """What a run folder keeps of its data: enough to find it again and to prepare images."""

    name: str
    source: str
    fingerprint: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_test: int

    @classmethod
    def of(cls, data: DataSplits) -> DataFacts:
        """Take the facts from loaded data."""
        return cls(
            name=data.name,
            source=data.source,
            fingerprint=data.fingerprint,
            classes=data.classes,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            num_train=len(data.train),
            num_test=len(data.test),
        )


@final
class Run:
    """A run folder, opened.

    Example:
        >>> from halfmeg import Run, load_dataset
        >>> run = Run.open("runs/mine")
        >>> run.evaluate(load_dataset("digits")).accuracy == run.result()["test_accuracy"]
        True
    """

    def __init__(self, folder: Path, config: RunConfig, data: DataFacts) -> None:
        self.folder = folder
        self.config = config
        self.data = data
        self.writes = True  # of a distributed run only the first process does

    @classmethod
    def create(cls, folder: str | Path, config: RunConfig, data: DataSplits) -> Run:
        """Make a new run folder.

        Raises:
            ValueError: the folder exists already, or cannot be made.
        """
        folder = Path(folder)
        facts = DataFacts.of(data)
        if folder.exists():
            raise ValueError(
                f"{folder} exists already and is not overwritten; "
                f"choose another --out, or continue it with `halfmeg resume {folder}`"
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            (partial / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise ValueError(f"cannot make the run folder {folder}: {error.strerror}") from None
        threads = config.threads or torch.get_num_threads()
        write_json(partial / "environment.json", environment() | {"threads": threads})
        stored = {"config": config.to_dict(), "data": vars(facts)}
        write_sources(partial, config.places())
        write_json(partial / "config.json", stored)
        partial.rename(folder)  # a run killed here leaves no folder that cannot be resumed
        return cls(folder, config, facts)

    @classmethod
    def open(cls, folder: str | Path, *, model: Any = None) -> Run:
        """Open a run folder.

        Args:
            folder: of the run.
            model: the class, function or instance that the run was trained with, where it was
                handed over from Python and stands in no file.

        Raises:
            ValueError: no run folder, or its config.json is damaged.
        """
        folder = Path(folder)
        path = folder / "config.json"
        try:
            stored = json.loads(path.read_text())
            lists = {"classes", "mean", "std"}
            facts: dict[str, Any] = {
                key: tuple(value) if key in lists else value
                for key, value in stored["data"].items()
            }
            config = RunConfig.from_dict(stored["config"])
            run = cls(folder, config, DataFacts(**facts))
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"{folder} is no run folder: it has no config.json") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        find_sources(folder)
        if model is not None:
            provide(config.model, model)
        return run

    def _write(self, name: str, content: bytes) -> None:
        if self.writes:
            write_atomically(self.folder / name, content)

    def write_metrics(self, rows: Sequence[MetricsRow]) -> None:
        """Write metrics.csv."""
        text = io.StringIO()
        writer = csv.DictWriter(text, METRICS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write("metrics.csv", text.getvalue().encode())

    def read_metrics(self) -> list[MetricsRow]:
        """Read metrics.csv; an empty list before the first epoch has ended.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / "metrics.csv"
        if not path.exists():
            return []
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return [{key: float(row[key]) if row[key] else None for key in METRICS} for row in rows]
        except (ValueError, KeyError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def save_checkpoint(self, state: Mapping[str, Any], epoch: int, step: int) -> Path:
        """Write a checkpoint named by the epochs and steps done, and drop the oldest ones."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        path = self.folder / "checkpoints" / f"epoch_{epoch:05d}_step_{step:07d}.pt"
        self._write(f"checkpoints/{path.name}", buffer.getvalue())
        if self.writes and self.config.keep_checkpoints:
            for old in self.checkpoints()[: -self.config.keep_checkpoints]:
                old.unlink()
        return path

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint files, the newest last."""
        return sorted((self.folder / "checkpoints").glob("epoch_*_step_*.pt"))

    def load_checkpoint(self) -> tuple[dict[str, Any] | None, list[Path]]:
        """Load the newest undamaged checkpoint; None where there is none.

        Returns:
            Its content, and the damaged files that were passed over.
        """
        damaged: list[Path] = []
        for path in reversed(self.checkpoints()):
            state = read_checkpoint(path)
            if state is not None:
                return state, damaged
            damaged.append(path)
        return None, damaged

    def log_test_reading(self, purpose: str) -> None:
        """Note that the test set was read, and for what."""
        if not self.writes:
            return
        entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "purpose": purpose}
        with (self.folder / "test_readings.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def test_readings(self) -> list[str]:
        """Return for what the test set was read, in turn; empty where no log was kept.

        Raises:
            ValueError: the log is damaged.
        """
        path = self.folder / "test_readings.jsonl"
        if not path.exists():
            return []
        try:
            return [str(json.loads(line)["purpose"]) for line in path.read_text().splitlines()]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def save_weights(self, model: nn.Module) -> None:
        """Write the weights; those that a network uses twice stand there once."""
        self._write("weights.safetensors", weights_to_bytes(model))

    def load_model(self) -> nn.Module:
        """Rebuild the trained network from the folder, and one's own from its place too.

        Raises:
            ValueError: the weights are missing, damaged, or of another network; or nothing can be
                built at the place of a network of one's own.

        Warns:
            PlaceWarning: what stands there has changed since the run was made.
        """
        places = {key: place for key, place in self.config.places().items() if key == "model"}
        if check_sources(self.folder, places):
            num_classes, size = len(self.data.classes), self.data.image_size
            try_out(self.config.model, num_classes, size, self.config.budget)
        path, facts = self.folder / "weights.safetensors", self.data
        config = self.config
        return rebuild(config.model, facts.classes, facts.image_size, config.budget, path)

    def evaluate(self, data: DataSplits) -> Evaluation:
        """Evaluate the trained weights on the test part of `data`; the reading is logged.

        Raises:
            ValueError: other classes than the run's, or weights that cannot be loaded.
        """
        model = self.load_model()
        check_classes(data, self.data.classes, "run")
        self.log_test_reading(f"evaluation on {data.name}")
        mean, std = self.data.mean, self.data.std
        return evaluate(model, data.test, mean, std, precision=self.config.precision)

    def save_logits(self, **arrays: Tensor) -> None:
        """Write logits.npz."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, allow_pickle=False, **{name: value.numpy() for name, value in arrays.items()}
        )
        self._write("logits.npz", buffer.getvalue())

    def load_logits(self) -> dict[str, Tensor]:
        """Return what `save_logits` stored: test (and validation) logits B×K and labels B.

        Raises:
            ValueError: the file is missing or damaged.
        """
        path = self.folder / "logits.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; the run cannot be compared") from None
        except Exception as error:  # what a damaged archive raises depends on where the damage is
            raise ValueError(f"{path} is damaged: {error}") from None
        if not {"test_logits", "test_labels"} <= arrays.keys():
            raise ValueError(f"{path} is damaged: it has no test logits")
        return arrays

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        self._write("result.json", json_bytes(result))

    def result(self) -> dict[str, Any] | None:
        """Return result.json; None before the run has finished.

        Raises:
            ValueError: the file is damaged.
        """
        return read_json(self.folder / "result.json")
