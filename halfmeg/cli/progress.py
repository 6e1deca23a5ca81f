"""What is shown while a command works: bars on a screen, lines in a pipe, TensorBoard's files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.cli.show import SPEAKS, print_error, screen
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.folds import Folds, parse_fold
from halfmeg.data.load import load_dataset
from halfmeg.data.options import DataOptions
from halfmeg.data.shape import ImageSize
from halfmeg.evaluation.precision import emulation_note
from halfmeg.places.place import short_name
from halfmeg.studies.folder import StudyData
from halfmeg.studies.workers import StudyListener
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.plan import on_hard_images
from halfmeg.training.recipes import milestones_note


def load(
    source: str,
    data_dir: str,
    image_size: ImageSize,
    *,
    quiet: bool,
    options: DataOptions | None = None,
    to_train: bool = True,
    told: bool = True,
) -> DataSplits:
    """Load data; what takes long is shown, and what a user should know about it is told once."""
    with progress_bars(quiet=quiet) as progress:
        data = load_dataset(
            source, data_dir=data_dir, image_size=image_size, options=options, to_train=to_train,
            progress=progress,
        )  # fmt: skip
    for note in data.notes if told else ():
        print_error(f"halfmeg: {note}")
    return data


def load_again(run: Run, data: str | None, data_dir: str, *, quiet: bool) -> DataSplits:
    """Load a run's data, from where it is now if that is said, as it was read before."""
    return load(
        data or run.data.source, data_dir, run.data.image_size, quiet=quiet, options=run.options
    )


def load_own(run: Run, data: str | None, data_dir: str, *, quiet: bool) -> DataSplits:
    """Load what a run was trained and tested on; images that came later are left out, and said."""
    loaded = load_again(run, data, data_dir, quiet=quiet)
    own = run.own_data(loaded)
    tell_newcomers(loaded, own, run.folder)
    return own


def tell_newcomers(loaded: DataSplits, own: DataSplits, folder: Path) -> None:
    """Say how many images of a source are left out, since they came after a run or a search."""
    newer = sum(map(len, loaded.parts.values())) - sum(map(len, own.parts.values()))
    if newer:
        print_error(f"halfmeg: {newer:,} image(s) of {own.name} came after {folder}; left out")


def load_study(run: Run, data: str | None, data_dir: str, *, quiet: bool) -> StudyData:
    """Load again what the study of a run is of: its data, or all folds of it."""
    fold = run.options.fold
    if not fold:
        return load_own(run, data, data_dir, quiet=quiet)
    whole = load(
        data or run.data.source, data_dir, run.data.image_size, quiet=quiet,
        options=replace(run.options, fold=""),
    )  # fmt: skip
    return Folds.of(whole, parse_fold(fold)[1])


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows what is being done as bars on the error stream."""
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), console=screen(stderr=True), transient=True,
        disable=quiet or not screen(stderr=True).is_terminal,
    ) as bars:  # fmt: skip
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total or None)

        yield progress


def duration(seconds: float) -> str:
    """Return seconds as minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None


MOST_PAIRS = 5
"""Undecided pairs that are named."""


class StudyDisplay(StudyListener):
    """Shows the run under way, or one line for each run where they train elsewhere."""

    def __init__(
        self,
        display: TrainingDisplay,
        *,
        quiet: bool,
        apart: bool,
    ) -> None:
        self.display = display
        self.quiet = quiet
        self.apart = apart
        self.has_trained = False

    def on_begin(self, configs: Sequence[RunConfig]) -> None:
        """Print what is to be known of the runs before they are trained."""
        self.display.tell(configs)

    def of_run(self, config: RunConfig) -> Listener:
        """Return the display of a run in this process."""
        return self.display(config)

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        """Print how a run has ended that was not shown."""
        if self.quiet:
            return
        self.has_trained = True
        self.display.tell(())  # not yet where a cluster trains
        if self.apart or error:
            outcome = f"failed: {error}" if error else "done"
            name = f"{short_name(config.model)} {short_name(config.recipe)}"
            print_error(f"{name} {self.display.unit_of(config)}  {outcome}  {done}/{total}")

    def on_measure(self) -> None:
        """Print what follows the last run."""
        if self.has_trained:
            print_error("all runs have ended; now robustness and costs are measured")

    def on_look(self, seeds: int, undecided: Sequence[str], to_come: Sequence[int]) -> None:
        """Print what is undecided, and how many seeds follow at most."""
        if self.quiet:
            return
        pairs = "; ".join(undecided[:MOST_PAIRS])
        more = f" and {len(undecided) - MOST_PAIRS} more" if len(undecided) > MOST_PAIRS else ""
        print_error(
            f"undecided with {seeds} seeds: {pairs}{more}; on to {to_come[0]} seeds, of at most "
            f"{to_come[-1]}"
        )


class _Display(Listener):
    """Shows a run as a progress bar, and as one line for each epoch where there is no screen."""

    def __init__(self, bars: Progress, config: RunConfig, whole: TrainingDisplay) -> None:
        self.bars = bars
        self.tell = whole.tell
        self.config = config
        self.name = f"{short_name(config.model)} {whole.unit_of(config)}"
        self.task = bars.add_task(self.name, total=None, numbers="")

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        self.tell([self.config])
        for note in chosen.notes if (chosen := run.chosen()) else ():
            print_error(f"{self.name}  {note}")
        for path in damaged:
            print_error(f"damaged checkpoint passed over: {path}")

    def on_step(self, report: StepReport) -> None:
        self.bars.update(
            self.task,
            total=report.epochs * report.steps,
            completed=(report.epoch - 1) * report.steps + report.step,
            numbers=f"epoch {report.epoch}/{report.epochs}  {duration(report.seconds_left)} left  "
            f"loss {report.loss:.3f}  accuracy {report.accuracy:.1%}  "
            f"{report.images_per_second:,.0f} images/s",
        )

    def on_epoch(self, row: MetricsRow) -> None:
        epoch = int(row["epoch"] or 0)
        if not screen(stderr=True).is_terminal:
            held_out = "".join(
                f"  {part} {row[f'{part}_accuracy']:.2%}"
                for part in ("val", "test")
                if row[f"{part}_accuracy"] is not None
            )
            trained_on = "hard images" if on_hard_images(self.config, epoch - 1) else "train"
            print_error(
                f"{self.name}  epoch {epoch}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
                f"{trained_on} {row['train_accuracy']:.2%}{held_out}  "
                f"{row['images_per_second']:,.0f} images/s"
            )
        if epoch == self.config.epochs:
            self.bars.remove_task(self.task)


class _TensorBoard(Listener):
    """Writes the metrics of each epoch to the run folder's `tensorboard/` too."""

    def __init__(self, display: _Display) -> None:
        self.display = display
        self.writer: Any = None

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.display.on_start(run, damaged)
        self.writer = SummaryWriter(str(run.folder / "tensorboard"))

    def on_step(self, report: StepReport) -> None:
        self.display.on_step(report)

    def on_epoch(self, row: MetricsRow) -> None:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self.writer.flush()
        self.display.on_epoch(row)

    def close(self) -> None:
        """End the writer, which has a file and a thread, of a run that has started."""
        if self.writer is not None:
            self.writer.close()


class TrainingDisplay:
    """Shows the runs of a command one after another, and tells once what is to be known of them."""

    def __init__(self, bars: Progress, note: str | None, *, folds: bool, quiet: bool) -> None:
        self.bars = bars
        self.note = note
        self.folds = folds
        self.quiet = quiet
        self.curves = ExitStack()
        self.told: set[str] = set()

    def __call__(self, config: RunConfig) -> Listener:
        """Return the display of a run, TensorBoard too, where installed; that of the last ends."""
        self.close()
        display = _Display(self.bars, config, self)
        if not (SPEAKS and _has_tensorboard()):
            return display
        curves = _TensorBoard(display)
        self.curves.callback(curves.close)
        return curves

    def unit_of(self, config: RunConfig) -> str:
        """Return which of a network's runs one is, as its folder is called."""
        return f"fold {config.seed + 1}" if self.folds else f"seed {config.seed}"

    def tell(self, configs: Sequence[RunConfig]) -> None:
        """Print the command's note, and what to know of runs that this machine is to train.

        When the first begins, so that a mistake before it remains one line.
        """
        slow = [emulation_note(config.precision, torch.device(config.device)) for config in configs]
        constant = [milestones_note(config) for config in configs]
        for note in (self.note, *(f"halfmeg: {text}" for text in (*slow, *constant) if text)):
            if note and note not in self.told and not self.quiet:
                print_error(note)
                self.told.add(note)

    def close(self) -> None:
        """End the display of the last run."""
        for ended in self.bars.task_ids:  # early, or by an error
            self.bars.remove_task(ended)
        self.curves.close()


@contextmanager
def training_display(
    *, quiet: bool, note: str | None = None, folds: bool = False
) -> Iterator[TrainingDisplay]:
    """Yield what shows a command's runs; a note is told when the first begins."""
    bars = Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}", markup=False), transient=True,
        console=screen(stderr=True),
        disable=quiet or not screen(stderr=True).is_terminal,
    )  # fmt: skip
    with bars, closing(TrainingDisplay(bars, note, folds=folds, quiet=quiet)) as display:
        yield display
