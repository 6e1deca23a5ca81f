"""What a search keeps: `search.json`, its clock, and Optuna's journal of trials.

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
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.errors import one_line
from halfmeg.files import HAS_LOCKS, read_json, remove_dead_parts, write_atomically, write_json
from halfmeg.places.settings import Value
from halfmeg.search.budget import Costs, Limits
from halfmeg.search.schedule import Plan

if TYPE_CHECKING:
    import optuna

SEARCH = "search.json"
JOURNAL = "journal.log"
STUDY = "search"

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

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return max(self.reached, default=0)

    @property
    def accuracy(self) -> float | None:
        """The last accuracy on validation images."""
        return self.reached.get(self.epochs)

    @property
    def was_trained(self) -> bool:
        """Whether it has got as far as a first look."""
        return bool(self.reached)


@dataclass(frozen=True)
class Final:
    """The last comparison, once it is decided what is compared."""

    trial: int
    folder: str
    seeds: int
    baselines: tuple[tuple[str, int], ...]
    tuning_trials: int


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
        strategy: `tpe` with halving, or `random`, both without.
        seconds: all the time there is.
        leg: how often it was given time.
        previous: the trials that won before it was given more.
        plan: None before the first trial.
        final: None before the last comparison.
    """

    data: dict[str, Any]
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
    try:
        return read_json(folder / SEARCH, Stored)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder} holds no search; start one with --data and --out") from None


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
        if HAS_LOCKS:
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"another process searches in {folder}; wait for it, or choose another --out"
                ) from None
        remove_dead_parts(folder)
        for lock in folder.glob(f"{JOURNAL}.lock*"):  # of a process that was killed
            lock.unlink(missing_ok=True)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class Clock:
    """The seconds that a search has spent, also before it was killed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock.json"
        try:
            self.before = float(read_json(self.path, dict[str, float]).get("spent", 0.0))
        except FileNotFoundError:
            self.before = 0.0
        self.started = time.monotonic()

    def spent(self) -> float:
        """Return the seconds so far."""
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        """Store them."""
        write_json(self.path, {"spent": self.spent()})


class Journal:
    """The trials of a search, in Optuna's journal.

    Raises:
        ValueError: Optuna is not installed, or the journal is damaged.
    """

    def __init__(self, folder: Path, seed: int, strategy: str) -> None:
        path = folder / JOURNAL
        _cut_torn_line(path)
        self.study = _open_study(path, create=True)
        # The draws differ each time it is opened: those before are in the journal.
        seed = seed + 1000 * len(self.study.trials)
        samplers = _optuna().samplers
        self.study.sampler = (
            samplers.RandomSampler(seed=seed)
            if strategy == "random"
            else samplers.TPESampler(seed=seed)
        )

    def trials(self) -> list[Trial]:
        """Return all trials, in the order of their numbers."""
        return _read_trials(self.study)

    def ask(self, values: Mapping[str, Value] | None = None) -> optuna.Trial:
        """Begin a trial, with the values that are given, or drawn ones."""
        with _quiet():
            if values is not None:
                self.study.enqueue_trial(dict(values))
            return self.study.ask()

    def open(self, number: int) -> optuna.Trial:
        """Return a trial that is running."""
        from optuna import Trial as Live

        return Live(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def keep(self, trial: optuna.Trial, **facts: Any) -> None:
        """Write facts of a trial."""
        for name, value in facts.items():
            trial.set_user_attr(name, msgspec.to_builtins(value))

    def tell(
        self, trial: optuna.Trial, outcome: Outcome, accuracy: float, cost: float, error: str = ""
    ) -> None:
        """End a trial.

        What was stopped counts by the accuracy that it had; a failure and what is over a limit by
        an accuracy of 0.
        """
        self.keep(trial, outcome=outcome, **({"error": error} if error else {}))
        with _quiet():
            self.study.tell(trial, [accuracy, cost])


def read_trials(folder: Path) -> list[Trial]:
    """Return the trials of a search that may be under way; nothing is written.

    Raises:
        ValueError: Optuna is not installed, or the journal is damaged or missing.
    """
    if not (folder / JOURNAL).exists():
        raise ValueError(f"{folder} has no trials yet")
    return _read_trials(_open_study(folder / JOURNAL))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError("a search needs Optuna: pip install -e '.[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open_study(path: Path, *, create: bool = False) -> optuna.Study:
    library = _optuna()
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        with _quiet():
            storage = JournalStorage(JournalFileBackend(str(path)))
            study: optuna.Study = (
                library.create_study(
                    storage=storage, study_name=STUDY, directions=["maximize", "minimize"],
                    load_if_exists=True,
                )
                if create
                else library.load_study(storage=storage, study_name=STUDY)
            )  # fmt: skip
            return study
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error, 200)}") from None


def _read_trials(study: optuna.Study) -> list[Trial]:
    with _quiet():
        frozen = study.get_trials(deepcopy=False)
    return [_read_trial(trial) for trial in frozen if trial.state.name != "WAITING"]


def suggest(trial: optuna.Trial, name: str, values: Any) -> Value:
    """Draw a value of a dimension."""
    if isinstance(values, range):
        return trial.suggest_int(name, values[0], values[-1], step=values.step)
    if isinstance(values, tuple):
        return trial.suggest_float(name, *values, log=values[0] > 0)
    return trial.suggest_categorical(name, values)  # type: ignore[no-any-return]


def _read_trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    facts = frozen.user_attrs
    config, costs = facts.get("config"), facts.get("costs")
    return Trial(
        number=frozen.number,
        drawn=dict(facts.get("drawn", frozen.params)),
        outcome=facts.get("outcome", "running") if frozen.state.is_finished() else "running",
        config=None if config is None else RunConfig.from_dict(config),
        costs=None if costs is None else Costs(**costs),
        reached={int(epochs): float(a) for epochs, a in facts.get("reached", {}).items()},
        seconds=float(facts.get("seconds", 0.0)),
        ended=facts.get("ended"),
        error=str(facts.get("error", "")),
    )


def _cut_torn_line(path: Path) -> None:
    """Drop what a crash left of a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Optuna's remarks on interfaces that may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def describe_data(data: DataSplits) -> dict[str, Any]:
    """Return what finds data again."""
    return {
        "name": data.name, "source": data.source, "fingerprint": data.fingerprint,
        "image_size": data.image_size, "options": data.options,
    }  # fmt: skip
