"""What a search keeps: `search.json`, its clock, and its trials, which `journal` reads.

| file of the folder | holds |
|---|---|
| `search.json` | data, limits, space and plan: what a trial means |
| `clock.json` | the seconds spent so far |
| `journal.log` | Optuna's journal: what was drawn, what it costs, what it reached |
| `trials/0007/` | a run folder; `-fold-1` and so on behind it where there are several |
| `final-1/` | the study at the end: the winner and its baselines, with several seeds |
| `search.html` | the page |

One process at a time writes here. A journal whose last line was cut off by a crash loses that line,
and what it would have said is done again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal, TypedDict

import msgspec
from msgspec import Meta

from halfmeg.artifacts.facts import Count, StoredSize
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.errors import quoted
from halfmeg.files import HAS_LOCKS, find_json, lock, read_json, remove_dead_parts, write_json
from halfmeg.places.settings import Value
from halfmeg.search.budget import Costs, Limits
from halfmeg.search.schedule import Plan, rung_epochs
from halfmeg.studies.pool import KILLED
from halfmeg.studies.trials import SEARCH

JOURNAL = "journal.log"
UNBUILT = "cannot be built: "
"""Before the error of a candidate whose network or recipe cannot be built."""

TOO_SLOW = "too slow: "
"""Before the error of a trial that the time does not allow."""

NO_MEMORY = "not enough memory: "
"""Before the error of a trial that the memory does not allow."""

NOT_ITS_OWN = (TOO_SLOW, NO_MEMORY, KILLED)
"""Begin the errors of trials that are the machine's, and not the network's."""

Outcome = Literal["running", "done", "stopped", "failed", "over"]
"""Of a trial; `over` is over a limit, or cannot be built, and is never trained."""


@dataclass(frozen=True)
class Trial:
    """A candidate and what became of it.

    Attributes:
        number: from 0.
        drawn: by dimension of the space.
        config: of its run; None where there is none.
        costs: None where the network cannot be built.
        reached: by epochs done, the mean accuracy on validation images.
        seconds: of training.
        ended: when, in seconds that the search had spent.
        error: why it failed.
        repeats: the trial that it trains again with another seed; None for a candidate of its own.
        repeated: the accuracies of those that repeat this one.
    """

    number: int
    drawn: dict[str, Value]
    outcome: Outcome
    config: RunConfig | None = None
    costs: Costs | None = None
    reached: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    ended: float | None = None
    error: str = ""
    repeats: int | None = None
    repeated: tuple[float, ...] = ()

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return max(self.reached, default=0)

    @property
    def accuracy(self) -> float | None:
        """The last accuracy on validation images, the mean where it was trained again."""
        return mean((self.first_accuracy, *self.repeated)) if self.reached else None

    @property
    def first_accuracy(self) -> float:
        """The same of its own run alone; 0 before its first look."""
        return self.reached.get(self.epochs, 0.0)

    @property
    def was_trained(self) -> bool:
        """Whether it has got as far as a first look."""
        return bool(self.reached)

    def at_look(self, number: int) -> float | None:
        """Return the accuracy at a look, counted from 0; None where it has not come as far."""
        rungs = rung_epochs(self.config.epochs) if self.config is not None else []
        return self.reached.get(rungs[number]) if number < len(rungs) else None


@dataclass(frozen=True)
class Final:
    """The last comparison, once it is decided what is compared.

    Attributes:
        trial: the winner.
        folder: of the study.
        seeds: of each network; 0 where nothing is compared.
        baselines: networks and their budgets.
        tuning_trials: candidates that were trained.
        no_verdict: why nothing is compared; empty where something is.
        failures: why a network could not be trained at all, by network.
        former: the baselines that won before, so that the trials chose them too.
    """

    trial: Count
    folder: Annotated[str, Meta(pattern=r"^[\w-]+$")]
    seeds: Count
    baselines: tuple[tuple[str, int], ...]
    tuning_trials: int
    no_verdict: str = ""
    failures: dict[str, str] = field(default_factory=dict)
    former: tuple[tuple[str, int], ...] = ()


class StoredData(TypedDict):
    """What finds the data of a search again."""

    name: str
    source: str
    fingerprint: str
    image_size: StoredSize
    options: dict[str, str | int]


@dataclass(frozen=True)
class Stored:
    """search.json.

    Attributes:
        data: name, source, fingerprint, image size and options.
        table: the space, as a reader sees it.
        place: of a space of the user's own; empty for the table of the program.
        networks, settings: as they were given instead of the table's.
        limits: what a network may cost.
        folds: runs of a trial, each with a validation split of its own.
        val_fraction: share of the training images that each holds out.
        baselines: named by the user; None: those that fit.
        compare: whether there is a last comparison.
        seed: of the draws.
        strategy: `tpe` with halving, or `random`: neither, and nothing chosen to begin with.
        seconds: all the time there is.
        leg: how often it was given time.
        previous: the trials that won before it was given more.
        plan: None before the first trial.
        final: None before the last comparison.
    """

    data: StoredData
    table: list[tuple[str, str]]
    place: str
    networks: list[str]
    settings: list[str]
    limits: Limits
    folds: int
    val_fraction: float
    baselines: list[str] | None
    compare: bool
    seed: int
    strategy: str
    seconds: float
    leg: int = 1
    previous: tuple[int, ...] = ()
    plan: Plan | None = None
    final: Final | None = None


def read_stored(folder: Path) -> Stored:
    """Read a search's search.json.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    stored = find_json(folder / SEARCH, Stored)
    if stored is None:
        raise ValueError(f"{folder} holds no search; start one with --data and --out")
    return stored


def write_stored(folder: Path, stored: Stored) -> None:
    """Write search.json."""
    write_json(folder / SEARCH, msgspec.to_builtins(stored))


def is_search(folder: str | Path) -> bool:
    """Return whether a folder holds a search."""
    return (Path(folder) / SEARCH).is_file()


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a search's folder, and clear what a killed process was writing there.

    Raises:
        ValueError: another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY) if HAS_LOCKS else -1
    try:
        if HAS_LOCKS and not lock(descriptor, wait=False):
            raise ValueError(
                f"another process searches in {folder}; wait for it, or choose another --out"
            )
        remove_dead_parts(folder)
        for path in folder.glob(f"{JOURNAL}.lock*"):  # of a process that was killed
            path.unlink(missing_ok=True)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class Clock:
    """The seconds that a search has spent, also before it was stopped or, `was_killed`, killed."""

    def __init__(self, folder: Path, started: float | None = None) -> None:
        self.path = folder / "clock.json"
        try:
            stored = read_json(self.path, dict[str, float])
        except FileNotFoundError:
            stored = {}
        self.before = stored.get("spent", 0.0)
        self.was_killed = bool(stored) and not stored.get("ended", 0.0)
        self.started = time.monotonic() if started is None else started

    def spent(self) -> float:
        """Return the seconds so far."""
        return self.before + time.monotonic() - self.started

    def save(self, *, ended: bool = False) -> None:
        """Store them, and whether the search has ended or was stopped in order."""
        write_json(self.path, {"spent": self.spent(), "ended": float(ended)})


def with_repeats(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials, each with the accuracies of those that repeat it and came to their end.

    One that failed counts as 0, or a network that diverges now and then would be preferred to those
    that never do; but not where the machine had no time or memory for it.
    """
    found: dict[int, tuple[float, ...]] = {}
    for trial in trials:
        ended = trial.outcome == "done" and trial.accuracy is not None
        failed = trial.outcome == "failed" and not trial.error.startswith(NOT_ITS_OWN)
        if trial.repeats is not None and (ended or failed):
            accuracy = (trial.accuracy or 0.0) if ended else 0.0
            found[trial.repeats] = (*found.get(trial.repeats, ()), accuracy)
    return [replace(trial, repeated=found.get(trial.number, ())) for trial in trials]


def all_failed(failed: Sequence[Trial]) -> ValueError:
    """Return the error of a search in which nothing but failures came of its trials."""
    which = f"all {len(failed)} trials failed; the last" if len(failed) > 1 else "its trial failed"
    return ValueError(f"{which}: {failed[-1].error}")


def decided(trials: Sequence[Trial], final: Final) -> Trial:
    """Return the trial whose network is the winner.

    Raises:
        ValueError: search.json names one that is not there, or was never trained.
    """
    if final.trial >= len(trials) or trials[final.trial].config is None:
        raise ValueError(f"{SEARCH} is damaged: it names trial {final.trial} as the winner")
    return trials[final.trial]


def describe_data(data: DataSplits) -> StoredData:
    """Return what finds data again."""
    return {
        "name": data.name, "source": data.source, "fingerprint": data.fingerprint,
        "image_size": data.image_size, "options": data.options,
    }  # fmt: skip


def own_data(folder: Path, stored: Stored, data: DataSplits) -> DataSplits:
    """Return what a search trains on, out of a source that may have grown: its runs know it.

    Raises:
        ValueError: the source is another, or images have changed, moved or gone; or it had grown
            before the first run began.
    """
    if data.fingerprint == stored.data["fingerprint"]:
        return data
    for path in sorted(folder.glob("*/*/config.json")):
        run = Run.open(path.parent)
        if run.data.fingerprint == stored.data["fingerprint"]:
            return run.own_data(data, folder)
    raise other_data(folder, data)


def no_network(folder: Path) -> ValueError:
    """Return the error of a search that has found nothing yet."""
    return ValueError(
        f"{folder} has no network that was trained to its end; `halfmeg search --resume "
        f"{quoted(folder)}` goes on with it, and --hours gives it more time"
    )


def other_data(folder: Path, data: DataSplits) -> ValueError:
    """Return the error of a search that is to go on with other images."""
    return ValueError(
        f"{folder} searched on other data than {data.name} is now; name its own with --data, "
        "or search anew"
    )
