"""`train auto`: picks network, image size, batch, augmentation and epochs from data and time.

The start is `common`'s own choice. Changes of it are tried one after another, each trained for the
same measured seconds on most of the training images and scored on others; what is better stays. A
change that would leave too few epochs is not tried. The test set is not read. What is left of the
time, by the measured seconds of the trial, makes the epochs of the training itself.
"""

from __future__ import annotations

import bisect
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
from halfmeg.training.plan import Plan
from halfmeg.training.recipes import build_recipe

TRIAL_SHARE = 0.25
"""Of the time, for all trials together."""

NUM_TRIALS = 6
TRIAL_EPOCHS = 3
"""The fewest epochs of a trial; where they do not fit, it sees fewer images."""

FEWEST_EPOCHS = 5
"""What cannot be trained for so many in the time is not tried."""

MOST_EPOCHS = 200
SAFETY = 0.9
"""A machine's speed changes; so much of what is left is planned with."""

VALIDATION = 0.2
"""The share of the training images that trials are scored on; the user's own part, if any."""

MOST_SCORED = 2_000
"""Validation images that are scored: with more, scoring would take the time of training."""

RECIPES = ("sprint",)
"""Recipes that are tried with all their settings; the other networks with the start's."""

OWN = {"seed", "init", "teacher", "val_fraction", "monitor", "epochs"}
"""Settings of the start that a recipe does not change."""


@dataclass(frozen=True)
class Trial:
    """A choice that was tried.

    Attributes:
        recipe: whose settings the network was trained with, but for what stands here.
        seconds: that an epoch on all training images, in full size, takes here.
        accuracy, loss: on `n` validation images, after `epochs` of `images`; None if not trained.
    """

    recipe: str
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
        return f"{self.model} by {self.recipe}, {size} pixels, batches of {self.batch_size}, {flip}"

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

    def left() -> float:
        return seconds - (time.monotonic() - started)

    def attempt(config: RunConfig, size: ImageSize) -> None:
        """Try one change; keep it where it is better than the best so far."""
        if size not in loaded:
            loaded[size] = load_at(size)
        data = loaded[size]
        per_image = _time_image(config, data)
        if current.trials and "epochs" not in fixed:
            images = SAFETY * left() / per_image
            if _most_epochs(config, data, _num_trained(config, data), images) < FEWEST_EPOCHS:
                return
        trial = _try(config, data, TRIAL_SHARE * seconds / NUM_TRIALS, per_image)
        is_better = not current.trials or trial.rank > current.best.rank
        current.trials.append(trial)
        tell(current.lines()[-2])
        if is_better:
            current.config, current.image_size = config, size

    attempt(start, current.image_size)
    for name, values in _challenges(loaded[current.image_size], image_size).items():
        if name in fixed:
            continue
        for value in values:
            if left() < (1 - TRIAL_SHARE) * seconds:
                break
            own = current.image_size if name != "image_size" else value
            if name == "model":
                config = _with_network(start, value, fixed)
            elif name == "image_size":
                config = current.config
            else:
                config = replace(current.config, **{name: value})
            if config.model in MODELS and not MODELS[config.model].takes(own):
                continue
            attempt(config, own)
    return _with_epochs(current, loaded[current.image_size], left(), fixed)


def _challenges(data: DataSplits, image_size: ImageSize | None) -> dict[str, list[Any]]:
    """Return what is tried instead, by setting."""
    native = 0
    if data.train.sizes is not None and len(data.train):
        native = int(data.train.sizes.min(1).values.median())
    larger = [side for side in (48, 64, 96) if side <= native and image_size is None]
    recipes = ["sprint"] if data.image_shape.shortest >= 32 else []  # its first images are small
    return {
        "model": [*recipes, "resnet8", "resnet20", "record"],
        "image_size": larger,
        "batch_size": [32 if len(data.train) < 2_000 else 64],
        "hflip": [False],
    }


def _with_network(start: RunConfig, name: str, fixed: Collection[str]) -> RunConfig:
    """Return the start with another network, and its recipe's settings where it has one."""
    if name not in RECIPES:
        return replace(start, model=name)
    settings = build_recipe(name).to_dict()
    return replace(start, **{k: v for k, v in settings.items() if k not in OWN | set(fixed)})


def _num_trained(config: RunConfig, data: DataSplits) -> int:
    """Return how many images a training would have."""
    if data.validation is not None:
        return len(data.train)
    return len(data.train) - round(config.val_fraction * len(data.train))


def _num_images(config: RunConfig, data: DataSplits, count: int) -> float:
    """Return the images of a training on `count`, in images of full size."""
    return Plan.of(config, count, data.image_size).images_of(data.image_shape.shortest)


def _most_epochs(config: RunConfig, data: DataSplits, count: int, images: float) -> int:
    """Return the epochs on `count` training images that fit into so many of full size."""
    return bisect.bisect_right(
        range(1, MOST_EPOCHS + 1), images,
        key=lambda epochs: _num_images(replace(config, epochs=epochs), data, count),
    )  # fmt: skip


def _time_image(config: RunConfig, data: DataSplits) -> float:
    """Return the seconds that an image in full size takes in training, from a few steps."""
    one = replace(config, epochs=1, val_fraction=0.0)
    return time_training([one], data) / _num_images(one, data, len(data.train))


def _try(config: RunConfig, data: DataSplits, seconds: float, per_image: float) -> Trial:
    """Train a choice for some seconds, on part of the training images, and score it on others."""
    trained, held_out = hold_out(data, VALIDATION, config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    scored = held_out.subset(torch.randperm(len(held_out), generator=generator)[:MOST_SCORED])
    order = trained[torch.randperm(len(trained), generator=generator)]
    images = seconds / per_image
    epochs = max(TRIAL_EPOCHS, _most_epochs(config, data, len(order), images))
    short = replace(config, epochs=epochs, val_fraction=0.0)
    share = min(1.0, images / _num_images(short, data, len(order)))
    some = data.train.subset(order[: max(2 * config.batch_size, int(share * len(order)))])
    part = replace(
        data, train=some, test=scored, validation=None, fingerprint=f"{data.fingerprint}-trial"
    )
    with scratch_folder() as folder:
        result = fit(short, part, folder / "run").result()
    assert result is not None
    measured = result["seconds"] / _num_images(short, data, len(some))
    return Trial(
        config.recipe, config.model, data.image_size, config.batch_size, config.hflip,
        measured * len(data.train), result["test_accuracy"], result["test_loss"], epochs,
        len(some), len(scored),
    )  # fmt: skip


def _with_epochs(choice: Choice, data: DataSplits, left: float, fixed: Collection[str]) -> Choice:
    """Give a choice the epochs that fit into what is left of the time."""
    config = choice.config
    count = _num_trained(config, data)
    per_image = choice.best.seconds / len(data.train)
    epochs = config.epochs
    choice.reason = "as asked for"
    if "epochs" not in fixed:
        epochs = max(1, _most_epochs(config, data, count, SAFETY * left / per_image))
    choice.seconds = per_image * _num_images(replace(config, epochs=epochs), data, count)
    if "epochs" not in fixed:
        choice.reason = (
            f"{max(0.0, left):.0f} s are left, and an epoch takes {choice.seconds / epochs:.2f} s"
        )
        if epochs == MOST_EPOCHS:
            choice.reason += f"; more than {MOST_EPOCHS} are not planned"
    choice.config = replace(
        config, recipe="auto", epochs=epochs,
        tuning_trials=config.tuning_trials + len(choice.trials) - 1,
    )  # fmt: skip
    return choice
