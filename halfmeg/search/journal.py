"""The trials of a search, in Optuna's journal: written as they go on, checked by type when read."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from halfmeg.artifacts.facts import Share
from halfmeg.config import RunConfig
from halfmeg.errors import one_line, quoted
from halfmeg.files import check_json, read_limited, write_atomically
from halfmeg.places.settings import Value
from halfmeg.search.budget import Costs
from halfmeg.search.record import JOURNAL, Outcome, Trial, with_repeats

if TYPE_CHECKING:
    import optuna

STUDY = "search"
MAX_JOURNAL_BYTES = 256 * 2**20

FRONT_EVERY = 4
"""One trial of so many seeks networks that are cheaper, too."""


class Journal:
    """The trials of a search, in Optuna's journal.

    Raises:
        ValueError: Optuna is not installed, or the journal is damaged.
    """

    def __init__(self, folder: Path, seed: int, strategy: str) -> None:
        self.path = folder / JOURNAL
        _cut_torn_line(self.path)
        self.study = _open_study(self.path, create=True)
        self._drop_waiting()
        # The draws differ each time it is opened: those before are in the journal.
        seed = seed + 1000 * len(self.study.trials)
        random = _optuna().samplers.RandomSampler(seed=seed)
        self.study.sampler = random if strategy == "random" else _build_sampler(seed)

    def _drop_waiting(self) -> None:
        """End what was queued when a process was killed, which else would be drawn as the next."""
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state.name == "WAITING":
                with _quiet():
                    live = self.study.ask()
                self.tell(live, "over", None, "it was interrupted before it began")

    def trials(self) -> list[Trial]:
        """Return all trials, in the order of their numbers.

        Raises:
            ValueError: the journal is damaged.
        """
        return _read_trials(self.study, self.path)

    @property
    def count(self) -> int:
        """How many trials there are, which is the number of the next."""
        return len(self.study.get_trials(deepcopy=False))

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

    def count_try(self, trial: optuna.Trial, epochs: int) -> None:
        """Count that a trial is taken up when its runs have so many epochs."""
        at, count = trial.user_attrs.get("tries", (epochs, 0))
        self.keep(trial, tries=[epochs, count + 1 if at == epochs else 1])

    def tries(self, trial: optuna.Trial) -> int:
        """Return how often a trial was taken up without an epoch in between."""
        return int(trial.user_attrs.get("tries", (0, 0))[1])

    def tell(
        self, trial: optuna.Trial, outcome: Outcome, values: tuple[float, float] | None,
        error: str = "",
    ) -> None:  # fmt: skip
        """End a trial.

        Args:
            trial: which.
            outcome: of it.
            values: accuracy and cost, that the next are drawn by. What was stopped counts by the
                accuracy that it had; a failure and what is over a limit by an accuracy of 0. None
                where nothing was learned.
            error: why it failed or was not trained.
        """
        self.keep(trial, outcome=outcome, **({"error": error} if error else {}))
        failed = _optuna().trial.TrialState.FAIL
        with _quiet():
            if values is None:
                self.study.tell(trial, state=failed)
            else:
                self.study.tell(trial, list(values))


def read_trials(folder: Path) -> list[Trial]:
    """Return the trials of a search that may be under way; nothing is written.

    Raises:
        ValueError: Optuna is not installed, or the journal is damaged or missing.
    """
    path = folder / JOURNAL
    if not path.exists():
        told = f"`halfmeg search --resume {quoted(folder)}` goes on with it"
        raise ValueError(f"{folder} has no trials yet; {told}")
    _read_whole(path)  # a pipe or a device would never end
    return _read_trials(_open_study(path), path)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError("a search needs Optuna: pip install -e '.[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def seeks_front(number: int) -> bool:
    """Return whether a trial is drawn and judged by its cost too, and not by accuracy alone."""
    return number % FRONT_EVERY == FRONT_EVERY - 1


def _build_sampler(seed: int) -> optuna.samplers.BaseSampler:
    library = _optuna()

    class Sampler(library.samplers.TPESampler):  # type: ignore[misc, name-defined]
        """Draws by accuracy and cost where a trial seeks the front, else by accuracy alone."""

        def __init__(self) -> None:
            # Settings together: each by itself is near those that did well, all at once are not.
            together = {"multivariate": True, "group": True, "warn_independent_sampling": False}
            super().__init__(seed=seed, **together)
            self.of_accuracy = library.samplers.TPESampler(
                seed=seed + 1,
                constant_liar=False,  # its study has no running trials
                **together,
            )
            self.known = -1
            self.alone: Any = None

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            if seeks_front(trial.number):
                return super().infer_relative_search_space(study, trial)
            return self.of_accuracy.infer_relative_search_space(self.by_accuracy(study), trial)

        def sample_relative(self, study: Any, trial: Any, space: Any) -> Any:
            if seeks_front(trial.number):
                return super().sample_relative(study, trial, space)
            return self.of_accuracy.sample_relative(self.by_accuracy(study), trial, space)

        def sample_independent(self, study: Any, trial: Any, *parameter: Any) -> Any:
            if seeks_front(trial.number):
                return super().sample_independent(study, trial, *parameter)
            return self.of_accuracy.sample_independent(self.by_accuracy(study), trial, *parameter)

        def by_accuracy(self, study: Any) -> Any:
            """Return a study of the same trials that knows nothing of their costs."""
            states = (library.trial.TrialState.COMPLETE,)
            trials = study.get_trials(deepcopy=False, states=states)
            if len(trials) != self.known:
                self.known = len(trials)
                with _quiet():
                    self.alone = library.create_study(direction="maximize")
                    self.alone.add_trials(
                        library.trial.create_trial(
                            value=trial.values[0], params=trial.params,
                            distributions=trial.distributions, constraints=trial.constraints,
                        )
                        for trial in trials
                    )  # fmt: skip
            return self.alone

    with _quiet():
        return Sampler()


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
    except OSError:
        raise
    except Exception as error:  # Optuna believes what stands in each line
        raise _damaged(path, error) from None


def _read_trials(study: optuna.Study, path: Path) -> list[Trial]:
    with _quiet():
        frozen = study.get_trials(deepcopy=False)
    try:
        read = [_read_trial(trial) for trial in frozen if trial.state.name != "WAITING"]
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    return with_repeats(read)


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged: {one_line(error, 200)}")


def suggest(trial: optuna.Trial, name: str, values: Any) -> Value:
    """Draw a value of a dimension."""
    if isinstance(values, range):
        return trial.suggest_int(name, values[0], values[-1], step=values.step)
    if isinstance(values, tuple):
        return trial.suggest_float(name, *values, log=values[0] > 0)
    return trial.suggest_categorical(name, values)  # type: ignore[no-any-return]


_Number = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]


@dataclass(frozen=True)
class _Facts:
    """What the program keeps of a trial beside what Optuna does."""

    drawn: dict[str, Value] | None = None
    outcome: Outcome = "running"
    config: dict[str, Any] | None = None
    costs: Costs | None = None
    reached: dict[_Number, Share] = field(default_factory=dict)
    seconds: float = 0.0
    ended: float | None = None
    error: str = ""
    repeats: int | None = None
    tries: tuple[int, int] = (0, 0)


def _read_trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    facts = check_json(frozen.user_attrs, _Facts)
    return Trial(
        number=frozen.number,
        drawn=frozen.params if facts.drawn is None else facts.drawn,
        outcome=facts.outcome if frozen.state.is_finished() else "running",
        config=None if facts.config is None else RunConfig.from_dict(facts.config),
        costs=facts.costs,
        reached={int(epochs): accuracy for epochs, accuracy in facts.reached.items()},
        seconds=facts.seconds,
        ended=facts.ended,
        error=facts.error,
        repeats=facts.repeats,
    )


def _read_whole(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_JOURNAL_BYTES)
    except ValueError as error:
        raise _damaged(path, error) from None


def _cut_torn_line(path: Path) -> None:
    """Drop what a crash left of a line."""
    if not path.exists():
        return
    content = _read_whole(path)
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, whole)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out Optuna's remarks on interfaces that may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
