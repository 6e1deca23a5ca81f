"""`train auto`: picks network, image size, batch, augmentation and epochs from data and time.

The start is `common`'s own choice. Changes of it are tried one after another, in the order of
`CHALLENGES`, each trained for the same measured seconds on most of the training images and scored
on the rest; what is better stays. The test set is not read. What is left of the time, by measured
seconds of an epoch, makes the epochs of the training itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits, hold_out
from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.files import scratch_folder
from halfmeg.networks.table import MODELS
from halfmeg.studies.plan import time_training
from halfmeg.training.fit import fit

TRIAL_SHARE = 0.4
"""Of the time, for all trials together."""

NUM_TRIALS = 8
TRIAL_EPOCHS = 3
"""The fewest epochs of a trial; where they do not fit, it sees fewer images."""

MOST_EPOCHS = 200
SAFETY = 0.9
"""A machine's speed changes; so much of what is left is planned with."""

VALIDATION = 0.2
"""The share of the training images that trials are scored on; the user's own part, if any."""


@dataclass(frozen=True)
class Trial:
    """A choice that was tried.

    Attributes:
        seconds: that one epoch on all training images takes here.
        accuracy, loss: on `n` validation images, after `epochs` of `images`; None if not trained.
    """

    model: str
    image_size: ImageSize
    batch_size: int
    hflip: bool
    seconds: float
    accuracy: float
    loss: float
    epochs: int
    images: int
    n: int

    @property
    def choice(self) -> str:
        """What was tried, in words."""
        size = image_shape(self.image_size).written
        flip = "flipped" if self.hflip else "not flipped"
        return f"{self.model}, {size} pixels, batches of {self.batch_size}, {flip}"

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared: accuracy, then loss."""
        return self.accuracy, -self.loss


@dataclass
class Choice:
    """What was picked, and why.

    Attributes:
        config, image_size: to train with.
        trials: all that was tried, the start first.
        seconds: planned for the training itself.
        reason: of the number of epochs.
    """

    config: RunConfig
    image_size: ImageSize
    trials: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""

    @property
    def best(self) -> Trial:
        """The trial that it follows."""
        return max(self.trials, key=lambda trial: trial.rank)

    def lines(self) -> list[str]:
        """Say it: each trial, and the choice."""
        tried = [
            f"{t.choice}: {t.accuracy:.1%} of {t.n:,} validation images after {t.epochs} epochs of "
            f"{t.images:,} images; {t.seconds:.2f} s an epoch of all"
            for t in self.trials
        ]
        return [*tried, f"picked {self.best.choice}, {self.config.epochs} epochs: {self.reason}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "config": self.config.to_dict(), "image_size": self.image_size,
            "trials": [asdict(trial) for trial in self.trials],
            "planned_seconds": self.seconds, "reason": self.reason,
        }  # fmt: skip


def choose(
    load_at: Callable[[ImageSize], DataSplits],
    start: RunConfig,
    seconds: float,
    *,
    image_size: ImageSize | None = None,
    fixed: Collection[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Pick what to train, and for how long.

    Args:
        load_at: loads the data at a side in pixels.
        start: the first choice; what is not tried stays as it is.
        seconds: for trials and training together.
        image_size: given by the user; None lets it be picked.
        fixed: names of settings that the user gave.
        tell: is told each trial.

    Raises:
        ValueError: no time at all, or data that a network cannot be trained on.
    """
    if not seconds > 0:
        raise ValueError(f"minutes={seconds / 60:g} is out of range; allowed: above 0")
    started = time.monotonic()
    loaded: dict[ImageSize, DataSplits] = {}
    loaded[image_size or 32] = load_at(image_size or 32)
    current = Choice(start, image_size or 32)

    def attempt(changes: dict[str, Any], size: ImageSize) -> None:
        """Try one change of what is best so far; keep it where it is better."""
        config = replace(current.config, **changes)
        if size not in loaded:
            loaded[size] = load_at(size)
        trial = _try(config, loaded[size], TRIAL_SHARE * seconds / NUM_TRIALS)
        is_better = not current.trials or trial.rank > current.best.rank
        current.trials.append(trial)
        tell(current.lines()[-2])
        if is_better:
            current.config, current.image_size = config, size

    attempt({}, current.image_size)
    for name, values in _challenges(loaded[current.image_size], image_size).items():
        if name in fixed:
            continue
        for value in values:
            if time.monotonic() - started > TRIAL_SHARE * seconds:
                break
            own = current.image_size if name != "image_size" else value
            changes = {} if name == "image_size" else {name: value}
            model = changes.get("model", current.config.model)
            if model in MODELS and not MODELS[model].takes(own):
                continue
            attempt(changes, own)
    return _with_epochs(current, seconds - (time.monotonic() - started), fixed)


def _challenges(data: DataSplits, image_size: ImageSize | None) -> dict[str, list[Any]]:
    """Return what is tried instead, by setting."""
    native = 0
    if data.train.sizes is not None and len(data.train):
        native = int(data.train.sizes.min(1).values.median())
    larger = [side for side in (48, 64, 96) if side <= native and image_size is None]
    return {
        "model": ["record", "sprint", "resnet20"],
        "image_size": larger,
        "batch_size": [32 if len(data.train) < 2_000 else 64],
        "hflip": [False],
    }


def _try(config: RunConfig, data: DataSplits, seconds: float) -> Trial:
    """Train a choice for some seconds, on part of the training images, and score it on others."""
    per_epoch = time_training([replace(config, epochs=1, val_fraction=0.0)], data)
    trained, held_out = hold_out(data, VALIDATION, config.seed)
    affordable = round(seconds / per_epoch * len(data.train) / TRIAL_EPOCHS)
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(config.seed))
    count = min(len(trained), max(2 * config.batch_size, affordable))
    some = data.train.subset(trained[order[:count]])
    of_these = per_epoch * len(some) / len(data.train)
    epochs = min(MOST_EPOCHS, max(1, round(seconds / of_these)))
    part = replace(
        data, train=some, test=held_out, validation=None,
        fingerprint=f"{data.fingerprint}-trial",
    )  # fmt: skip
    short = replace(config, epochs=epochs, val_fraction=0.0)
    with scratch_folder() as folder:
        result = fit(short, part, folder / "run").result()
    assert result is not None
    return Trial(
        config.model, data.image_size, config.batch_size, config.hflip, per_epoch,
        result["test_accuracy"], result["test_loss"], epochs, len(some), len(held_out),
    )  # fmt: skip


def _with_epochs(choice: Choice, left: float, fixed: Collection[str]) -> Choice:
    """Give a choice the epochs that fit into what is left of the time."""
    per_epoch = choice.best.seconds * (1 - choice.config.val_fraction)
    epochs = choice.config.epochs
    choice.reason = "as asked for"
    if "epochs" not in fixed:
        epochs = min(MOST_EPOCHS, max(1, int(SAFETY * left / per_epoch)))
        choice.reason = f"{max(0.0, left):.0f} s are left, and an epoch takes {per_epoch:.2f} s"
        if epochs == MOST_EPOCHS:
            choice.reason += f"; more than {MOST_EPOCHS} are not planned"
    choice.seconds = epochs * per_epoch
    choice.config = replace(
        choice.config, recipe="auto", epochs=epochs,
        tuning_trials=choice.config.tuning_trials + len(choice.trials) - 1,
    )  # fmt: skip
    return choice
