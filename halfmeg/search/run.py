"""A search from its start, or from where it was, to its end."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import check_outside, require_same
from halfmeg.data.dataset import DataSplits, require_trainable
from halfmeg.data.split import hold_out
from halfmeg.errors import quoted
from halfmeg.files import holds_nothing, make_folder
from halfmeg.places.place import is_place
from halfmeg.places.source import holding
from halfmeg.search.budget import Limits, require_room
from halfmeg.search.finish import (
    Baseline,
    Outcome,
    Timed,
    choose_baselines,
    decide,
    fill_up,
    finish,
)
from halfmeg.search.journal import Journal
from halfmeg.search.lanes import SearchListener
from halfmeg.search.page import write_page
from halfmeg.search.plan import SHORT_SECONDS, plan_time, time_baselines
from halfmeg.search.record import (
    Clock,
    Stored,
    StoredData,
    Trial,
    describe_data,
    is_search,
    no_network,
    other_data,
    read_stored,
    sole_writer,
    write_stored,
)
from halfmeg.search.space import SPACE, Space, build_space, load_space
from halfmeg.search.state import Search
from halfmeg.search.trials import run_trials
from halfmeg.studies.cluster import Cluster
from halfmeg.studies.pool import terminate_as_interrupt
from halfmeg.studies.study import require_no_fold
from halfmeg.studies.workers import StudyListener
from halfmeg.training.initial import require_inherited
from halfmeg.training.job import check
from halfmeg.training.stopping import TrainingInterruptedError

FEW_IMAGES = 10_000
"""Below, a fifth of the training images is held out instead of a tenth."""

ENOUGH_IMAGES = 500
"""With fewer held out, a trial is several runs, each with a split of its own."""

MOST_FOLDS = 5
MOST_SEED = 2**31
"""Optuna's samplers take 32 bits, and the journal adds to it."""

PAGE_SECONDS = 60
PAGE_PAUSE = 100
"""Between two pages pass so many seconds, and so many times what one takes."""


def check_time(seconds: float) -> None:
    """Check the time that a search is to have.

    Raises:
        ValueError: it is not above 0, or has no end.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"--hours {seconds / 3600:g} is out of range; allowed: above 0")


def describe_search(
    data: DataSplits,
    *,
    limits: Limits,
    seconds: float,
    place: str = "",
    networks: Sequence[str] = (),
    settings: Sequence[str] = (),
    baselines: Sequence[str] | None = None,
    compare: bool = True,
    seed: int = 0,
    strategy: str = "tpe",
) -> tuple[Stored, Space]:
    """Return what `search.json` will say, and the space.

    Args:
        data: what is trained on.
        limits: what a network may cost.
        seconds: all the time there is.
        place: of a space of one's own; empty for the program's.
        networks: search among these; none for those of the space.
        settings: `key=value`, fixed instead of drawn.
        baselines: what the winner is compared with at the end; None for those that fit.
        compare: whether it is.
        seed: of the draws.
        strategy: `tpe`, or `random`: without halving, and nothing chosen to begin with.

    Raises:
        ValueError: a fault in any of these, or data that nothing can be validated on.
    """
    check_time(seconds)
    if not 0 <= seed < MOST_SEED:
        raise ValueError(f"--seed {seed} is out of range; allowed: 0 to {MOST_SEED - 1:,}")
    require_trainable(data)
    require_no_fold(data.options.get("fold"))  # the last comparison has several seeds
    space = build_space(load_space(place) if place else SPACE, networks, settings)
    fraction, folds = _validation(data)
    stored = Stored(
        data=describe_data(data), table=space.rows(), place=place,
        networks=list(networks), settings=list(settings), limits=limits, folds=folds,
        val_fraction=fraction, baselines=None if baselines is None else list(baselines),
        compare=compare, seed=seed, strategy=strategy, seconds=seconds,
    )  # fmt: skip
    return stored, space


def _validation(data: DataSplits) -> tuple[float, int]:
    """Return the share of the training images that a run holds out, and how often.

    Raises:
        ValueError: nothing can be held out.
    """
    fraction = 0.1 if len(data.train) >= FEW_IMAGES else 0.2
    try:
        _, held_out = hold_out(data, fraction, 0)
    except ValueError as error:
        told = str(error).split(";")[0]
        raise ValueError(f"a search needs validation images, and {told}; add images") from None
    if not len(held_out):
        raise ValueError(f"a search needs validation images; {data.name} has none to hold out")
    if data.validation is not None:  # the user's own, the same for every run
        return fraction, 1
    return fraction, min(MOST_FOLDS, math.ceil(ENOUGH_IMAGES / len(held_out)))


def start(
    folder: str | Path,
    data: DataSplits,
    stored: Stored,
    space: Space,
    *,
    workers: int = 1,
    cluster: str | None = None,
    listener: Callable[[Search], SearchListener] | None = None,
    final_listener: StudyListener | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Start a search in a folder, or go on with the same one there, to its end.

    Args:
        folder: which must not exist, or hold this search.
        data: what is trained on.
        stored, space: from `describe_search`, or `open_search` and `with_time`.
        workers: trials at once, each in a process with its share of the cores.
        cluster: the address of a Ray cluster, which trains in their place: one trial for each of
            its CPUs.
        listener: makes who is told how the trials go.
        final_listener: is told how the last comparison goes.
        tell: is told what takes time before the first trial.

    Raises:
        ValueError: the folder holds something else, or nothing fits the limits.
        OSError: the disk is full or cannot be written; started again, it goes on.
        TrainingInterruptedError: Ctrl-C or SIGTERM; so too.
    """
    folder = Path(folder)
    if workers < 1:
        raise ValueError(f"--workers {workers} is out of range; allowed: 1 or more")
    if cluster is not None and workers > 1:
        raise ValueError(f"--workers {workers} are of this machine; leave it out with --cluster")
    if (
        folder.exists()
        and not is_search(folder)
        and not (folder.is_dir() and holds_nothing(folder))
    ):
        raise ValueError(f"{folder} exists and holds no search; choose another --out")
    started = time.monotonic()
    note = ""
    before = None
    if is_search(folder):
        before = read_stored(folder)
        if _identity(before) != _identity(stored):
            raise ValueError(
                f"{folder} holds a search with other settings or data; choose another --out, or go "
                f"on with it by --resume {quoted(folder)}"
            )
        if stored.leg <= before.leg:
            if before.leg == 1 and before.seconds != stored.seconds:
                told = f"it goes on with its {before.seconds / 3600:g} hours"
                note = f"{told}; `--resume {quoted(folder)} --hours` gives it more"
            stored = before
        _require_same_texts(folder)
    else:
        require_room(space, stored.limits, len(data.classes), data.image_shape, tell)
        _require_run(space, stored, data)
    baselines = choose_baselines(stored, data)
    if cluster is not None:
        with Cluster(cluster, data) as nodes:
            workers = nodes.num_cpus
    make_folder(folder)
    with sole_writer(folder), holding(_places(stored, space.networks)):
        if (read_stored(folder) if is_search(folder) else None) != before:
            raise ValueError(f"another process has searched in {folder} just now; start it again")
        write_stored(folder, stored)
        clock = Clock(folder, started)
        clock.save()  # from here on it can be killed
        search = Search(
            folder, stored, space, data, Journal(folder, stored.seed, stored.strategy),
            clock, SearchListener(), workers, cluster,
            stored.plan.most_macs if stored.plan else None,
        )  # fmt: skip
        if listener is not None:
            search.listener = listener(search)
        if note:
            search.listener.on_note(note)
        try:
            with terminate_as_interrupt():
                return _run(search, baselines, final_listener)
        except (TrainingInterruptedError, KeyboardInterrupt) as stopped:
            search.clock.save(ended=True)
            with contextlib.suppress(Exception):  # whoever stops it is not to wait for a reason
                write_page(search)
            told = f"`halfmeg search --resume {quoted(folder)}` goes on"
            number = getattr(stopped, "signal_number", signal.SIGINT)
            raise TrainingInterruptedError(told, number) from None
        finally:
            search.clock.save(ended=True)


def _require_run(space: Space, stored: Stored, data: DataSplits) -> None:
    """Check that the recipe that a search begins with fits the data, with one network at least.

    Raises:
        ValueError: it does not; the message says why.
    """
    told = ""
    for network in space.networks:
        try:
            config = space.config(
                space.scaled(network, 0), most_epochs=1, side=data.image_shape.shortest,
                val_fraction=stored.val_fraction,
            )  # fmt: skip
            check(config, data)
        except ValueError as error:
            told = str(error)
        else:
            return
    raise ValueError(f"no network of the space can be trained; {told}")


def open_search(folder: str | Path, data: DataSplits) -> tuple[Stored, Space]:
    """Return what a search is, to go on with it.

    Raises:
        ValueError: no search, other data than it had, or its space has changed; or it names Python
            of its own folder.
    """
    folder = Path(folder)
    stored = read_stored(folder)
    if data.fingerprint != stored.data["fingerprint"]:
        raise other_data(folder, data)
    for place in _places(stored, stored.networks):
        check_outside(folder, place)
    table = load_space(stored.place) if stored.place else SPACE
    space = build_space(table, stored.networks, stored.settings)
    if space.rows() != [tuple(row) for row in stored.table]:
        where = stored.place or "this version's space"
        raise ValueError(f"{where} is another than {folder} began with; start anew with --out")
    return stored, space


def _places(stored: Stored, networks: Sequence[str]) -> list[str]:
    """Return what a search names of the user's own Python."""
    values = (text.partition("=")[2] for text in stored.settings)
    named = (stored.place, *networks, *(stored.baselines or ()), *values)
    return [place for place in named if is_place(place)]


def _require_same_texts(folder: Path) -> None:
    """Raise ValueError where a trial of a search was of another text than there is now."""
    for path in sorted((folder / "trials").glob("*/source.json")):
        run = Run.open(path.parent)
        require_same(run.folder, run.config.places())
        require_inherited(run)


def with_time(folder: str | Path, stored: Stored, seconds: float) -> Stored:
    """Return a search with so many seconds from now on; what was planned is planned anew.

    Raises:
        ValueError: not above 0.
    """
    check_time(seconds)
    won = (stored.final.trial,) if stored.final else ()
    plan = stored.plan  # `plan_time` sees that the time is another
    return replace(
        stored, seconds=Clock(Path(folder)).spent() + seconds, leg=stored.leg + 1, final=None,
        previous=tuple(dict.fromkeys((*stored.previous, *won))),
        plan=None if plan is None else replace(plan, total_seconds=0.0),
    )  # fmt: skip


def _run(
    search: Search,
    baselines: list[Baseline],
    final_listener: StudyListener | None,
) -> Outcome:
    timed = Timed()
    if search.stored.final is None:
        plan = search.stored.plan
        timed = time_baselines(search, fill_up(search, baselines))
        if plan is None or not plan.total_seconds:
            plan_time(search, timed)
        if search.stored.seconds >= SHORT_SECONDS:
            write_page(search)
        search.listener = _WithPage(search.listener, search)
        run_trials(search)
        timed = timed.at_pace_of(search)
    final = decide(search, timed)
    if final is None:
        write_page(search)
        raise no_network(search.folder)
    if final.seeds:
        write_page(search)
    outcome = finish(search, final, listener=final_listener)
    write_page(search, outcome)
    return outcome


class _WithPage(SearchListener):
    """Passes on what it is told, and writes the page where the last one is old."""

    def __init__(self, inner: SearchListener, search: Search) -> None:
        self.inner, self.search = inner, search
        self.on_begin = inner.on_begin  # type: ignore[method-assign]
        self.of_run = inner.of_run  # type: ignore[method-assign]
        self.on_note = inner.on_note  # type: ignore[method-assign]
        self.due = search.clock.spent() + PAGE_SECONDS
        self.error: Exception | None = None

    def on_trial(self, trial: Trial) -> None:
        """Pass it on; write the page, and raise what hindered it during a run."""
        self.inner.on_trial(trial)
        self.on_time()
        if self.error is not None:
            raise self.error

    def on_time(self) -> None:
        """Write the page, for a hundredth of the time at most; no run is to blame for an error."""
        if (began := self.search.clock.spent()) < self.due:
            return
        try:
            write_page(self.search)
        except Exception as error:
            self.error = error
        ended = self.search.clock.spent()
        self.due = ended + max(PAGE_SECONDS, PAGE_PAUSE * (ended - began))


def _identity(stored: Stored) -> Stored:
    """Return what two searches have to share to be one: all but time, plan and the data's place."""
    # Groups change no image, but which of them are held out for validation.
    groups = {key: value for key, value in stored.data["options"].items() if key == "group"}
    data: StoredData = {**stored.data, "name": "", "source": "", "options": groups}
    same = replace(stored, data=data, seconds=0.0, leg=1, previous=(), plan=None, final=None)
    return msgspec.convert(msgspec.to_builtins(same), Stored)  # as it is after it was stored
