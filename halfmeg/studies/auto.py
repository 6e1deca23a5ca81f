"""`train auto`: picks network, recipe, image size, augmentation and epochs from data and time.

The first choice is the recipe that learns most in short time, `sprint`, where the time is enough
for some epochs of it, and else `common`. Where the time is long, changes of it are tried one after
another, each trained for the same measured seconds on most of the training images and scored on
others; what is better stays. A trial of few steps would tell who starts fastest, not who ends
best, so with less time nothing is tried. The test set is not read. What is left of the time, by
measured seconds of an image, makes the epochs of the training itself.
"""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.data.split import hold_out
from halfmeg.files import write_json
from halfmeg.networks.table import MODELS
from halfmeg.studies.plan import time_training
from halfmeg.training.fit import fit
from halfmeg.training.job import check, fits
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.plan import Plan
from halfmeg.training.recipes import build_recipe
from halfmeg.training.stopping import throwaway_folder

FIRST = "sprint"
"""The recipe that is chosen where nothing else is known."""

TRIAL_SHARE = 0.3
"""Of the time, for all trials together."""

MOST_TRIALS = 8
TRIAL_STEPS = 100
"""The fewest steps of a trial of the first choice; the other trials take as many seconds."""

FEWEST_EPOCHS = 3
"""Of a trial, which sees fewer images where they do not fit, and of a training worth a trial."""

MOST_EPOCHS = 200
SAFETY = 0.9
"""A machine's speed changes; so much of what is left is planned with."""

VALIDATION = 0.2
"""The share of the training images that trials are scored on; the user's own part, if any."""

MOST_SCORED = 2_000
"""Validation images that are scored: with more, scoring would take the time of training."""

OF_THE_START = {"seed", "init", "teacher", "val_fraction", "monitor", "epochs"}
"""Settings that the first recipe does not change."""


@dataclass(frozen=True)
class Trial:
    """A choice that was tried.

    Attributes:
        recipe: whose settings it has, but for what stands here.
        accuracy, loss: on `n` validation images, after `epochs` of `images`.
    """

    recipe: str
    model: str
    image_size: ImageSize
    batch_size: int
    hflip: bool
    accuracy: float
    loss: float
    epochs: int
    images: int
    n: int

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared: accuracy, then loss."""
        return self.accuracy, -self.loss

    def line(self) -> str:
        """Say what was tried, and what came of it."""
        tried = _in_words(self.recipe, self.model, self.image_size, self.batch_size, self.hflip)
        return (
            f"{tried}: {self.accuracy:.1%} of {self.n:,} validation images after {self.epochs} "
            f"epochs of {self.images:,} images"
        )


def _in_words(recipe: str, model: str, image_size: ImageSize, batch_size: int, hflip: bool) -> str:
    size = image_shape(image_size).written
    flip = "flipped" if hflip else "not flipped"
    return f"{model} by {recipe}, {size} pixels, batches of {batch_size}, {flip}"


@dataclass(frozen=True)
class Choice:
    """What was picked, and why.

    Attributes:
        config, image_size: to train with; its `recipe` is auto.
        recipe: whose settings it has, but for what was picked.
        seconds: planned for the training itself.
        reason: of the choice and of the number of epochs.
        trials: all that was tried, the first choice first; none where the time was short.
    """

    config: RunConfig
    image_size: ImageSize
    recipe: str
    seconds: float
    reason: str
    trials: tuple[Trial, ...] = ()

    def line(self) -> str:
        """Say what was picked, and why."""
        c = self.config
        picked = _in_words(self.recipe, c.model, self.image_size, c.batch_size, c.hflip)
        below = f"below {c.budget:,} parameters, " if c.budget != BUDGET else ""
        return f"{picked}, {below}{c.epochs} epochs: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "config": self.config.to_dict(), "image_size": self.image_size, "recipe": self.recipe,
            "trials": [asdict(trial) for trial in self.trials],
            "planned_seconds": self.seconds, "reason": self.reason,
        }  # fmt: skip


class WithChoice(Listener):
    """A listener that also writes auto.json, once the run folder is there."""

    def __init__(self, choice: Choice, inner: Listener) -> None:
        self.choice = choice
        self._inner = inner

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """Write the choice."""
        if run.writer.writes:
            write_json(run.folder / "auto.json", self.choice.to_dict())
        self._inner.on_start(run, damaged)

    def on_step(self, report: StepReport) -> None:
        """Pass it on."""
        self._inner.on_step(report)

    def on_epoch(self, row: MetricsRow) -> None:
        """Pass it on."""
        self._inner.on_epoch(row)


@dataclass
class _Candidate:
    """Settings on data of a size.

    Attributes:
        per_image: seconds of training on an image in full size, measured here.
    """

    config: RunConfig
    data: DataSplits
    per_image: float = field(init=False)

    def __post_init__(self) -> None:
        one = replace(self.config, epochs=1, val_fraction=0.0, schedule="constant", milestones=())
        seconds = time_training([one], self.data)
        self.per_image = seconds / self.num_images(1, len(self.data.train))

    @property
    def num_trained(self) -> int:
        """The training images that are not held out."""
        count = len(self.data.train)
        if self.data.validation is not None:
            return count
        return count - round(self.config.val_fraction * count)

    def plan(self, epochs: int, count: int) -> Plan:
        return Plan.of(replace(self.config, epochs=epochs), count, self.data.image_size)

    def num_images(self, epochs: int, count: int) -> float:
        """Return the images of so many epochs on `count`, in images of full size."""
        return self.plan(epochs, count).images_of(self.data.image_shape.shortest)

    def seconds(self, epochs: int) -> float:
        """Return what a training takes."""
        return self.per_image * self.num_images(epochs, self.num_trained)

    def epochs_within(self, seconds: float, count: int) -> int:
        """Return the most epochs on `count` images that take no longer; 0 if none does."""
        images = seconds / self.per_image
        return bisect.bisect_right(
            range(1, MOST_EPOCHS + 1), images, key=lambda epochs: self.num_images(epochs, count)
        )

    def seconds_of_steps(self, steps: int, seconds: float) -> float:
        """Return what so many steps take, in the mean of a training that lasts `seconds`."""
        plan = self.plan(max(1, self.epochs_within(seconds, self.num_trained)), self.num_trained)
        images = plan.images_of(self.data.image_shape.shortest) / plan.num_steps
        return steps * images * self.per_image

    def try_for(self, seconds: float) -> Trial:
        """Train for some seconds, on part of the training images, and score on others."""
        config = self.config
        trained, held_out = hold_out(self.data, VALIDATION, config.seed)
        generator = torch.Generator().manual_seed(config.seed)
        scored = held_out.subset(torch.randperm(len(held_out), generator=generator)[:MOST_SCORED])
        order = trained[torch.randperm(len(trained), generator=generator)]
        epochs = max(FEWEST_EPOCHS, self.epochs_within(seconds, len(order)))
        share = min(1.0, seconds / self.per_image / self.num_images(epochs, len(order)))
        count = max(2 * config.batch_size, int(share * len(order)))
        part = replace(
            self.data, train=self.data.train.subset(order[:count]), test=scored, validation=scored,
            fingerprint=f"{self.data.fingerprint}-trial",
        )  # fmt: skip
        with throwaway_folder() as folder:
            watched = VALIDATION if config.schedule == "plateau" else 0.0
            short = replace(config, epochs=epochs, val_fraction=watched)
            result = fit(short, part, folder / "run").result()
        assert result is not None
        return Trial(
            config.recipe, config.model, self.data.image_size, config.batch_size, config.hflip,
            result["test_accuracy"], result["test_loss"], epochs, len(part.train), len(scored),
        )  # fmt: skip


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
        start: the settings where the time is short, or the user named the network.
        seconds: for trials and training together.
        image_size: given by the user; None lets it be picked.
        fixed: names of settings that the user gave.
        tell: is told each trial, and the choice.

    Raises:
        ValueError: no time at all, or data that a network cannot be trained on.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"minutes={seconds / 60:g} is out of range; allowed: above 0, and finite")
    started = time.monotonic()

    def left() -> float:
        return seconds - (time.monotonic() - started)

    def is_worth_it(candidate: _Candidate) -> bool:
        epochs = candidate.epochs_within(SAFETY * left(), candidate.num_trained)
        return "epochs" in fixed or epochs >= FEWEST_EPOCHS

    loaded = {image_size or 32: load_at(image_size or 32)}
    data = loaded[image_size or 32]
    best = _Candidate(_first(start, data, fixed), data)
    # The start's network may be of one size, which a budget excludes.
    if best.config != start and not is_worth_it(best) and fits(start, data):
        best = _Candidate(start, data)
    length = max(TRIAL_SHARE * seconds / MOST_TRIALS, best.seconds_of_steps(TRIAL_STEPS, left()))
    trials: list[Trial] = []
    challenges = list(_challenges(start, data, image_size, fixed))
    reason = "too little time to try others" if challenges else "nothing else to try"
    if challenges and 2 * length <= TRIAL_SHARE * seconds:
        reason = "the best of what was tried"
        _require_held_out(data, start.seed)
        check(best.config, data)  # a trial is not of the test images that init and teacher may know
        trials.append(best.try_for(length))
        tell(trials[0].line())
        top = trials[0]
        for name, value in challenges:
            if length + (1 - TRIAL_SHARE) * seconds > left():
                break
            config, size = _changed(best, start, name, value)
            if (config, size) == (best.config, best.data.image_size):
                continue
            entry = MODELS.get(config.model)  # None for a network of one's own
            if entry is not None and not entry.takes(size):
                continue
            if entry is not None and config.budget != BUDGET and not entry.scalable:
                continue
            if size not in loaded:
                loaded[size] = load_at(size)
            if not fits(config, loaded[size]):  # what was given, as init, may not take a change
                continue
            candidate = _Candidate(config, loaded[size])
            if not is_worth_it(candidate):
                continue
            trials.append(candidate.try_for(length))
            tell(trials[-1].line())
            if trials[-1].rank > top.rank:
                best, top = candidate, trials[-1]
    choice = _with_epochs(best, left(), reason, trials, fixed)
    tell(f"picked {choice.line()}")
    return choice


def _require_held_out(data: DataSplits, seed: int) -> None:
    """Raise where there is nothing to choose by.

    Raises:
        ValueError: no training image can be held out.
    """
    try:
        hold_out(data, VALIDATION, seed)
    except ValueError:
        raise ValueError(
            f"auto chooses by images that are not trained on, and none of the {len(data.train):,} "
            f"training images of {data.name} can be held out: no class has two, or all are one "
            "group; add images, or train a recipe with val_fraction=0"
        ) from None


def _first(start: RunConfig, data: DataSplits, fixed: Collection[str]) -> RunConfig:
    """Return the first choice: the recipe, but for what the user gave."""
    # Its first epochs are of smaller images.
    if "model" in fixed or data.image_shape.shortest < 32:
        return start
    settings = build_recipe(FIRST).to_dict()
    if not start.hflip:
        settings["alternate"] = False
    given = OF_THE_START | set(fixed)
    try:
        return replace(start, **{k: v for k, v in settings.items() if k not in given})
    except ValueError:  # what the user gave excludes a setting of it
        return start


def _challenges(
    start: RunConfig, data: DataSplits, image_size: ImageSize | None, fixed: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Yield the settings that are tried instead, one at a time."""
    if image_size is None and not start.teacher:  # which answers to images of its own size
        yield from (("image_size", side) for side in data.larger_sides)
    if not {"hflip", "alternate"} & set(fixed):
        yield "hflip", False
    if "model" not in fixed:
        yield from (("model", name) for name in (start.model, "resnet8", "resnet20"))


def _changed(
    best: _Candidate, start: RunConfig, name: str, value: Any
) -> tuple[RunConfig, ImageSize]:
    """Return settings and image size with one change of the best; a network has the start's."""
    if name == "image_size":
        return best.config, value
    if name == "hflip":
        return replace(best.config, hflip=value, alternate=False), best.data.image_size
    return replace(start, model=value, hflip=best.config.hflip), best.data.image_size


def _with_epochs(
    best: _Candidate, left: float, reason: str, trials: Sequence[Trial], fixed: Collection[str]
) -> Choice:
    """Give a choice the epochs that fit into what is left of the time."""
    epochs = best.config.epochs
    if "epochs" in fixed:
        reason += f"; {epochs} epochs as asked for"
    else:
        epochs = max(1, best.epochs_within(SAFETY * left, best.num_trained))
        reason += (
            f"; {max(0.0, left):.0f} s are left, and an epoch takes "
            f"{best.seconds(epochs) / epochs:.2f} s"
        )
        if epochs == MOST_EPOCHS:
            reason += f"; more than {MOST_EPOCHS} are not planned"
    config = replace(
        best.config, recipe="auto", epochs=epochs,
        tuning_trials=best.config.tuning_trials + max(0, len(trials) - 1),
    )  # fmt: skip
    return Choice(
        config, best.data.image_size, best.config.recipe, best.seconds(epochs), reason,
        tuple(trials),
    )  # fmt: skip
