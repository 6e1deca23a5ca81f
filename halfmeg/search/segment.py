"""A part of a run: trained up to an epoch, and from there again later; test images are not read.

A run that is stopped after its last epoch has a checkpoint and no result. `halfmeg resume`
finishes it: only then is the test set read, once.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.errors import text_of
from halfmeg.files import scratch_folder
from halfmeg.places.place import short_name
from halfmeg.search.record import NO_MEMORY, TOO_SLOW
from halfmeg.training.fit import failure, fit, resume
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.plan import work_left
from halfmeg.training.stopping import TrainingInterruptedError

DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
)
"""The disk's, not the network's: they end a search, which goes on from there later."""

OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory")
"""What torch and the system say where there is none, in errors of no kind of their own."""


@dataclass(frozen=True)
class Reached:
    """How far a run has come.

    Attributes:
        epochs: done.
        accuracy: on validation images after the last of them; None before the first.
        seconds: that it took this time.
        error: why it cannot go on; None where it can.
        in_all: seconds that its epochs took, those of calls that were interrupted too.
    """

    epochs: int
    accuracy: float | None
    seconds: float
    error: str | None = None
    in_all: float = 0.0


TIMED_STEPS = 4
"""That are trained to see how fast this machine is."""

TIMED_EPOCHS = 3
"""Of so many steps; the fastest but the first counts, as what else runs only makes one slower."""


LOW_RATE = 1e-5

MANY_EPOCHS = 100
"""In so many, the share of those of smaller images is what it is in any number, nearly."""


class _Pause(Exception):
    """Ends a run after an epoch whose checkpoint is written."""


class _TooSlowError(RuntimeError):
    """A run would take much longer than the time allows for one."""


class _Until(Listener):
    """Passes on what it is told, and ends the run after an epoch, or soon if it is too slow.

    It is judged by the fastest that it was in an epoch, so a machine that was paused or busy for a
    moment does not make a run too slow.
    """

    def __init__(self, config: RunConfig, until: int, inner: Listener, most_seconds: float) -> None:
        self.config, self.until, self.inner = config, until, inner
        self.most_seconds = most_seconds
        self.fastest = 0.0
        self.last: tuple[int, float] | None = None

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        self.inner.on_start(run, damaged)
        if len(run.read_metrics()) >= self.until:
            raise _Pause

    def on_step(self, report: StepReport) -> None:
        self.inner.on_step(report)
        now = time.monotonic()
        if self.last is not None:
            num_images = (report.step - self.last[0]) * self.config.batch_size
            self.fastest = max(self.fastest, num_images / (now - self.last[1]))
            rate = max(self.fastest, report.images_per_second)
            seconds_left = report.seconds_left * report.images_per_second / rate
            if seconds_left > self.most_seconds:
                raise _TooSlowError(
                    f"{TOO_SLOW}{seconds_left:,.0f} seconds are left of it, and the time "
                    f"allows {self.most_seconds:,.0f} for a run"
                )
        self.last = report.step, now

    def on_epoch(self, row: MetricsRow) -> None:
        self.inner.on_epoch(row)
        self.fastest, self.last = 0.0, None  # the next one may have images of another size
        if int(row["epoch"] or 0) >= self.until:
            raise _Pause


class _Watch(Listener):
    """Keeps when epochs ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_epoch(self, row: MetricsRow) -> None:
        self.ends.append(time.monotonic())


def train_until(
    config: RunConfig,
    folder: Path,
    until: int,
    data: DataSplits,
    listener: Listener | None = None,
    most_seconds: float = math.inf,
) -> Reached:
    """Start or continue a run up to an epoch; a fault of the network is told, not raised.

    A run that has more than `most_seconds` left when its speed is known counts as a fault.

    Raises:
        OSError: the disk is full or cannot be written.
        TrainingInterruptedError: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    told = _Until(config, until, listener or Listener(), most_seconds)
    try:
        if folder.exists():
            resume(folder, data, listener=told)
        else:
            fit(config, data, folder, listener=told)
    except _Pause:
        return reached(folder)
    except TrainingInterruptedError:
        raise
    except Exception as error:
        for cause in (error, error.__context__):  # where a folder cannot be made
            if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
                raise cause from None
        if (failed := failure(error)) is None:
            raise
        kind = NO_MEMORY if _is_of_memory(error) else ""
        return replace(reached(folder), error=f"{kind}{failed}"[:300])
    return reached(folder)


def _is_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised for, is that memory was not enough."""
    while error is not None:
        text = text_of(error).lower()
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
            said in text for said in OF_MEMORY
        ):
            return True
        error = error.__context__
    return False


def train_folds(
    data: DataSplits,
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    until: int,
    most_seconds: float = math.inf,
    listener: Callable[[RunConfig], Listener] = lambda config: Listener(),
) -> Reached:
    """Train the runs of a trial up to an epoch, each with a split of its own; return their mean."""
    started = time.monotonic()
    found = []
    for config, folder in zip(configs, folders, strict=True):
        found.append(train_until(config, folder, until, data, listener(config), most_seconds))
        if found[-1].error is not None:
            break
    accuracies = [one.accuracy for one in found if one.accuracy is not None]
    whole = len(accuracies) == len(configs)
    return Reached(
        epochs=min(one.epochs for one in found),
        accuracy=sum(accuracies) / len(accuracies) if whole else None,
        seconds=time.monotonic() - started,
        error=found[-1].error,
        in_all=sum(one.in_all for one in found),
    )


def time_epoch(config: RunConfig, data: DataSplits, threads: int) -> float:
    """Return the seconds that an epoch of a run takes here, from a few steps; 0 threads: torch's.

    It is the mean of its epochs: those of smaller images take less time. No test image is read.

    Raises:
        ValueError: the run does not fit the data.
    """
    part = data.train.subset(slice(0, TIMED_STEPS * config.batch_size))
    few = replace(data, train=part, test=part, validation=None)
    # The first epoch also makes what the later ones use again. With a low rate none diverges.
    short = replace(
        config, epochs=TIMED_EPOCHS, val_fraction=0.0, schedule="constant", milestones=(),
        small_size=0, first_size=0, hard_share=1.0, lr=min(config.lr, LOW_RATE),
    )  # fmt: skip
    before, watch = torch.get_num_threads(), _Watch()
    with scratch_folder() as folder:
        try:
            torch.set_num_threads(threads or before)
            told = train_until(short, folder / "run", TIMED_EPOCHS, few, watch)
        finally:
            torch.set_num_threads(before)
        if told.error is not None:
            raise ValueError(f"{short_name(config.model)}: {told.error}")
        later = Run.open(folder / "run").read_metrics()[1:]
    speed = max(row["images_per_second"] or 0.0 for row in later) or 1.0
    # What an epoch takes beside its steps, such as for a checkpoint, does not grow with the data.
    beside = min(end - start for start, end in pairwise(watch.ends)) - len(part) / speed
    own = replace(config, epochs=MANY_EPOCHS, schedule="constant", milestones=())
    share = work_left(own, data.image_size) / MANY_EPOCHS
    return share * len(data.train) / speed + max(0.0, beside)


def reached(folder: Path) -> Reached:
    """Return how far a run folder has come.

    Raises:
        ValueError: its metrics are damaged.
    """
    has_begun = (folder / "config.json").exists()
    if not (rows := Run.open(folder).read_metrics() if has_begun else []):
        return Reached(0, None, 0.0)
    return Reached(len(rows), rows[-1]["val_accuracy"], 0.0, in_all=rows[-1]["seconds"] or 0.0)
