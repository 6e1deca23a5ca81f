"""The run folder: the one place where a run's config, measurements and weights stand.

| file | holds |
|---|---|
| `config.json` | the `RunConfig` and the facts of the data |
| `trained_on.u64`, `held_out.u64`, `inherited.u64` | 8 bytes of each image's hash (`seen`) |
| `inherited.json` | the weights that `init` and `teacher` named |
| `environment.json` | versions, machine and command |
| `chosen.json` | what its `auto` settings chose on that machine, where it has any |
| `metrics.csv` | one row for each epoch |
| `checkpoints/` | everything needed to continue, the newest last |
| `weights.safetensors` | the evaluated weights |
| `result.json` | the outcome |
| `logits.npz` | logits and labels of the held-out images |
| `test_readings.jsonl` | when and for what the test set was read |
| `source.json`, `source/` | Python of the user's own, as text, and its hash |

Every file is written whole or not at all: to a temporary name, flushed to disk, then renamed.
`result.json` holds the SHA-256 of weights and logits, which are checked against it when they are
read. Runs from before that have none and open all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from halfmeg.artifacts.chosen import CHOSEN, Chosen
from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.facts import DataFacts, Result, StoredConfig
from halfmeg.artifacts.inherited import Inherited, read_inherited_bundles
from halfmeg.artifacts.metrics import MetricsRow, metrics_to_bytes, read_metrics
from halfmeg.artifacts.readings import read_log, warn_if_read_only
from halfmeg.artifacts.rebuild import rebuild
from halfmeg.artifacts.refusals import no_run, occupied, unfinished
from halfmeg.artifacts.seen import (
    HELD_OUT,
    INHERITED,
    TRAINED_ON,
    Known,
    ids_to_bytes,
    only_known,
    read_ids,
    unseen,
)
from halfmeg.artifacts.sources import check_sources, keep_objects, open_sources, write_sources
from halfmeg.artifacts.weights import (
    checkpoint_name,
    checkpoint_to_bytes,
    checkpoints_in,
    logits_to_bytes,
    read_checkpoint,
    read_logits,
    weights_to_bytes,
)
from halfmeg.artifacts.writer import FolderWriter, Writer
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.options import DataOptions
from halfmeg.evaluation.evaluate import Evaluation, evaluate
from halfmeg.files import check_json, find_json, json_bytes, new_folder, write_json
from halfmeg.networks.trial import try_out

ALLOWED_CHANGE = 0.02
"""By how much the accuracy that weights give may differ from what result.json says. Another
machine's bfloat16 changes about 0.001."""


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
        self.writer: Writer = FolderWriter(folder)
        keep_objects(folder, config.places())

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(
        cls, folder: str | Path, config: RunConfig, data: DataSplits, *,
        inherited: Inherited | None = None, start: tuple[str, bytes] | None = None,
    ) -> Run:  # fmt: skip
        """Make a new run folder.

        Args:
            folder: that must not exist.
            config, data: of the run.
            inherited: what it takes over from its initial weights and its teacher.
            start: name and content of a checkpoint that it continues from.

        Raises:
            ValueError: the folder exists already, or cannot be made.
        """
        folder = Path(folder)
        facts = DataFacts.of(data)
        if folder.exists():
            raise occupied(folder)
        threads = config.threads or torch.get_num_threads()
        stored = {"config": config.to_dict(), "data": vars(facts)}
        try:
            with new_folder(folder) as part:  # a run killed here leaves none that cannot be resumed
                (part / "checkpoints").mkdir()
                if start is not None:
                    (part / "checkpoints" / start[0]).write_bytes(start[1])
                write_json(part / "environment.json", environment() | {"threads": threads})
                write_sources(part, config.places())
                write_json(part / "config.json", stored)
                trained_on = [own.ids for name, own in data.parts.items() if name != "test"]
                (part / TRAINED_ON).write_bytes(ids_to_bytes(*trained_on))
                (part / HELD_OUT).write_bytes(ids_to_bytes(data.test.ids))
                if inherited is not None:
                    inherited.write(part)
        except OSError as error:
            raise ValueError(f"cannot make the run folder {folder}: {error.strerror}") from None
        return cls(folder, config, facts)

    @classmethod
    def open(cls, folder: str | Path, **objects: Any) -> Run:
        """Open a run folder.

        Args:
            folder: of the run.
            **objects: what the run was made with, by setting (`model`, `loss`, `optimizer` or
                `augment`), where it was handed over from Python and stands in no file.

        Raises:
            ValueError: no run folder, its config.json is damaged, or an object that it has not.
        """
        folder = Path(folder)
        path = folder / "config.json"
        stored = find_json(path, StoredConfig)
        if stored is None:
            raise no_run(folder)
        try:
            DataOptions.from_dict(stored.data.options)
            config = RunConfig.from_dict(stored.config)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return cls(folder, open_sources(folder, config, objects), stored.data)

    def remove_dead_parts(self) -> None:
        """Remove what killed processes were writing, where nothing may be written again."""
        self.writer.remove_dead_parts()
        self.writer.remove_dead_parts("checkpoints")

    def _stated_sha256(self, name: str) -> str | None:
        """Return the checksum that result.json states; None for a run from before there was one."""
        sha256: dict[str, str] = (self.result() or {}).get("sha256", {})
        return sha256.get(name)

    def save_chosen(self, chosen: Chosen) -> None:
        """Write chosen.json."""
        self.writer.write(CHOSEN, json_bytes(asdict(chosen)))

    def chosen(self) -> Chosen | None:
        """Return what its `auto` settings chose; None where nothing was, or is yet, to choose.

        Raises:
            ValueError: chosen.json is damaged.
        """
        return find_json(self.folder / CHOSEN, Chosen)

    def write_metrics(self, rows: Sequence[MetricsRow]) -> None:
        """Write metrics.csv."""
        self.writer.write("metrics.csv", metrics_to_bytes(rows))

    def read_metrics(self) -> list[MetricsRow]:
        """Read metrics.csv; an empty list before the first epoch has ended.

        Raises:
            ValueError: the file is damaged, or ends before a finished run did.
        """
        path, rows = self.folder / "metrics.csv", read_metrics(self.folder / "metrics.csv")
        last = rows[-1]["epoch"] if rows else 0
        if last != self.config.epochs and self.result() is not None:
            raise ValueError(f"{path} is damaged: it ends after epoch {last:g} of a finished run")
        return rows

    def save_checkpoint(self, state: Mapping[str, Any], epoch: int, step: int) -> Path:
        """Write a checkpoint named by the epochs and steps done, and drop the oldest ones.

        Raises:
            ValueError: it is too large to be read again.
        """
        path = self.folder / "checkpoints" / checkpoint_name(epoch, step)
        self.writer.write(f"checkpoints/{path.name}", checkpoint_to_bytes(state))
        if self.config.keep_checkpoints:
            for old in self.checkpoints()[: -self.config.keep_checkpoints]:
                self.writer.remove(old)
        return path

    def checkpoints(self) -> list[Path]:
        """Return the checkpoint files, the newest last."""
        return checkpoints_in(self.folder)

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
        self.writer.log_reading(purpose)

    def test_readings(self) -> list[str]:
        """Return for what the test set was read, in turn; empty where no log was kept.

        Raises:
            ValueError: the log is damaged.
        """
        return [reading.purpose for reading in read_log(self.folder)]

    def save_weights(self, model: nn.Module) -> None:
        """Write the weights; those that a network uses twice stand there once."""
        self.writer.write("weights.safetensors", weights_to_bytes(model))

    def load_model(self) -> nn.Module:
        """Rebuild the trained network from the folder, and one's own from its place too.

        Raises:
            ValueError: the weights are missing, damaged, or of another network; or nothing can be
                built at the place of a network of one's own.

        Warns:
            PlaceWarning: what stands there has changed since the run was made.
        """
        path, facts, config = self.folder / "weights.safetensors", self.data, self.config
        if not path.exists() and self.result() is None:
            raise unfinished(self.folder)
        places = {key: place for key, place in config.places().items() if key == "model"}
        if check_sources(self.folder, places):
            try_out(config.model, len(facts.classes), facts.image_shape, config.budget)
        sha256 = self._stated_sha256(path.name)
        return rebuild(config.model, facts.classes, facts.image_shape, config.budget, path, sha256)

    def evaluate(self, data: DataSplits) -> Evaluation:
        """Evaluate the trained weights on the test part of `data`; the reading is logged.

        Of other data than the run's, images that it was trained or validated on are left out.

        Raises:
            ValueError: images of other classes than the run's, or of these images alone, or
                weights that cannot be loaded, or damaged logits.
        """
        model, facts = self.load_model(), self.data
        if (self.folder / "logits.npz").exists():
            self.load_logits()  # not used, but a folder that is damaged is not vouched for
        test, left_out = unseen(data, facts.classes, self.known, str(self.folder))
        with warn_if_read_only(self.folder):
            self.log_test_reading(f"evaluation on {data.name}")
        found = evaluate(model, test, facts.mean, facts.std, precision=self.config.precision)
        if data.fingerprint == facts.fingerprint:
            self.check_accuracy(found.accuracy)
        return replace(found, left_out=left_out)

    @property
    def draws_validation(self) -> bool:
        """Whether it held out a draw of its training images, by groups where they are given."""
        return bool(self.config.val_fraction) and not self.data.num_validation

    @property
    def options(self) -> DataOptions:
        """How the run's source was read."""
        return DataOptions.from_dict(self.data.options)

    @property
    def knows_its_images(self) -> bool:
        """Whether the folder says which images it was trained on; those of old versions do not."""
        return (self.folder / TRAINED_ON).exists()

    def trained_on(self) -> np.ndarray | None:
        """Return the sorted ids of the images it was trained or validated on; None in old runs.

        Raises:
            ValueError: the file is damaged.
        """
        return read_ids(self.folder / TRAINED_ON)

    def seen(self) -> np.ndarray | None:
        """Return the ids of `trained_on`, and of what its initial weights and teacher had seen.

        Raises:
            ValueError: a file is damaged.
        """
        own, inherited = self.trained_on(), read_ids(self.folder / INHERITED)
        return own if own is None or inherited is None else np.union1d(own, inherited)

    @property
    def known(self) -> Known:
        """What the run says of the images that it, its initial weights and teacher have seen."""
        bundles = read_inherited_bundles(self.folder)
        taught = [name for name in ("init", "teacher") if getattr(self.config, name)]
        whole = all(name in bundles and bundles[name].comparable for name in taught)
        facts, fit = self.data, self.options.fit
        return Known(facts.fingerprint, facts.image_shape, fit, self.seen, whole)

    def own_data(self, data: DataSplits, whole: Path | None = None) -> DataSplits:
        """Return what the run was trained and tested on, out of a source that may have grown.

        Raises:
            ValueError: the source is another, or images have changed, moved or gone; it names
                `whole`, the folder of which the run is a part.
        """
        if data.fingerprint == self.data.fingerprint:
            return data
        told = f"{whole or self.folder} was trained on other data than {data.name}"
        remedy = "name its own with --data, or train anew"
        trained_on, held_out = self.trained_on(), read_ids(self.folder / HELD_OUT)
        if trained_on is None or held_out is None:
            raise ValueError(f"{told}; {remedy}")
        known = np.union1d(trained_on, held_out)
        there = np.concatenate([part.ids for part in data.parts.values()])
        gone = int((~np.isin(known, there)).sum())
        if gone:
            raise ValueError(f"{told}: {gone:,} of its {len(known):,} images are gone; {remedy}")
        own = only_known(data, self.data.classes, trained_on, held_out)
        if own is None or own.fingerprint != self.data.fingerprint:
            raise ValueError(
                f"{told}: its images are there, but some are renamed, copied, or in another class "
                f"or part; {remedy}"
            )
        return own

    def check_accuracy(self, accuracy: float) -> None:
        """Compare what the weights give on the run's own test images with what the run says.

        Raises:
            ValueError: another accuracy, by more than another machine's rounding explains.
        """
        result = self.result()
        if result is None:
            return
        allowed = ALLOWED_CHANGE + 2 / max(1, result["test_n"])
        if not abs(accuracy - result["test_accuracy"]) <= allowed:
            raise ValueError(
                f"{self.folder / 'weights.safetensors'} gives {accuracy:.2%} where result.json "
                f"says {result['test_accuracy']:.2%}; one of them is damaged or was altered"
            )

    def save_logits(self, **arrays: Tensor) -> None:
        """Write logits.npz."""
        self.writer.write("logits.npz", logits_to_bytes(arrays))

    def load_logits(self) -> dict[str, Tensor]:
        """Return what `save_logits` stored: test (and validation) logits B×K and labels B.

        Raises:
            ValueError: the file is missing or damaged.
        """
        facts, path = self.data, self.folder / "logits.npz"
        images = facts.num_train + facts.num_validation + facts.num_test
        return read_logits(path, self._stated_sha256(path.name), len(facts.classes), images)

    def save_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        self.writer.write("result.json", json_bytes({**result, "sha256": self.writer.sha256}))

    def result(self) -> dict[str, Any] | None:
        """Return result.json; None before the run has finished.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / "result.json"
        result = find_json(path, dict[str, Any])
        if result is not None:
            try:
                check_json(result, Result)
            except ValueError as error:
                raise ValueError(f"{path} is damaged: {error}") from None
        return result
