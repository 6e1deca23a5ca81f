"""Training: `fit` starts a run, `resume` continues one; both end in the loop of `loop`.

Nothing in the loop depends on what happened before but the checkpointed state: the order of the
images comes from (seed, epoch), the draws of a batch from (seed, epoch, step). So a run that was
killed continues to the same bits as one that was not, on the same machine and versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import check_sources, find_change
from halfmeg.artifacts.weights import checkpoint_name, read_checkpoint
from halfmeg.config import RunConfig, as_configs, tell_apart
from halfmeg.data.dataset import DataSplits, require_splits
from halfmeg.errors import one_line
from halfmeg.places.load import blame
from halfmeg.training.distributed import Ranks, join_ranks
from halfmeg.training.initial import inherited_by, require_inherited
from halfmeg.training.job import check, check_shares, check_start, set_up
from halfmeg.training.listen import Listener
from halfmeg.training.loop import train_epoch
from halfmeg.training.outcome import end_epoch, finish
from halfmeg.training.process import kept_process, prepare_process
from halfmeg.training.stopping import TrainingInterruptedError, how_to_continue, stop_signals

RUN_FAILURES = (RuntimeError, ValueError, OSError, MemoryError)
"""What ends one run of a study and leaves the others, beside what a user's own code raises."""


@kept_process()
def fit(
    config: RunConfig,
    data: DataSplits,
    out: str | Path,
    *,
    model: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    augment: Any = None,
    listener: Listener | None = None,
    start: str | Path | None = None,
) -> Run:
    """Train a network and store everything about it in a new folder.

    On Linux the process keeps the memory it frees from here on (docs/performance.md). Global
    generators and the number of threads are afterwards what they were. Threads train in turn.

    Args:
        config: what to train and how.
        data: what to train on; its test part is read as `config.monitor` says, and at the end.
        out: the run folder, which must not exist.
        model, loss, optimizer, augment: in place of the config's: a place such as `FILE.py:NAME`,
            or from Python the thing itself. A network is a class, function or instance; the
            others are what `halfmeg.training.own` says.
        listener: is told how it goes.
        start: a checkpoint file of a run of the same network, to continue from its epoch.

    Raises:
        ValueError: config and data do not fit together, `out` exists, or `start` is no checkpoint,
            or one of another network, of other data, of a run that held out or took over
            something else, or of the end of the run.
        TrainingDivergedError: the loss became NaN or infinite.
        TrainingInterruptedError: Ctrl-C or SIGTERM; a checkpoint was written.

    Example:
        >>> from halfmeg import build_recipe, fit, load_dataset
        >>> config = build_recipe("common").override(["model=cnn", "epochs=1"])
        >>> run = fit(config, load_dataset("digits"), "runs/one-epoch")
        >>> run.result()["params"], run.result()["test_n"]
        (81578, 360)
    """
    as_configs([config])
    require_splits(data)
    own = {"model": model, "loss": loss, "optimizer": optimizer, "augment": augment}
    own = {key: value for key, value in own.items() if value is not None}
    (config,) = tell_apart([replace(config, **own)])
    check(config, data)
    checkpoint, first = None, None
    if start is not None:
        checkpoint = read_checkpoint(Path(start))
        if checkpoint is None:
            raise ValueError(f"{start} is missing, damaged or no checkpoint")
        at = check_start(checkpoint, config, data, str(start))
        _require_own_run(Path(start), config, data)
        first = checkpoint_name(at.epoch, at.step), Path(start).read_bytes()
    with join_ranks(config.device) as ranks:
        check_shares(config, data, ranks)
        run = ranks.first(
            lambda: Run.create(out, config, data, inherited=inherited_by(config, data), start=first)
        )
        run.config = config  # with the objects of this process
        return _train(run, data, listener or Listener(), checkpoint, [], ranks)


def _require_own_run(checkpoint: Path, config: RunConfig, data: DataSplits) -> None:
    """Raise where a checkpoint lies in the folder of a run that has seen other images.

    Raises:
        ValueError: it does; its weights may know the test images, or those held out now.
    """
    checkpoints = checkpoint.absolute().parent
    folder = checkpoints.parent
    if checkpoints.name != "checkpoints" or not (folder / "config.json").is_file():
        return  # a copy, which does not say
    run = Run.open(folder)
    facts = run.data
    if facts.fingerprint != data.fingerprint:
        raise ValueError(
            f"{checkpoint} is of a run on {facts.name} ({facts.fingerprint}), not on {data.name} "
            f"({data.fingerprint}); export that run, and start from its weights with init="
        )
    for key, then, now in _unlike(run, config, data):
        raise ValueError(
            f"{checkpoint} is of a run with {key}={then}, and this one has {key}={now}: it may "
            f"know images that are held out now; give {key}={then}"
        )


def _unlike(run: Run, config: RunConfig, data: DataSplits) -> Iterator[tuple[str, object, object]]:
    """Say what a run has seen or held out otherwise than a new one that goes on from it."""
    for key in ("init", "teacher"):
        then, now = getattr(run.config, key), getattr(config, key)
        if then and then != now:
            yield key, then, now
    if run.draws_validation:
        for key in ("seed", "val_fraction"):
            if getattr(run.config, key) != getattr(config, key):
                yield key, getattr(run.config, key), getattr(config, key)
        if run.options.group != data.options.get("group", ""):
            yield "group", run.options.group, data.options.get("group", "")


@kept_process()
def resume(
    folder: str | Path,
    data: DataSplits,
    *,
    model: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    augment: Any = None,
    listener: Listener | None = None,
) -> Run:
    """Continue a run to its end; a finished one is returned as it is.

    Args:
        folder: of the run.
        data: what it was trained on.
        model, loss, optimizer, augment: what the run was made with, where it stands in no file.
            In the process that made the run they are known.
        listener: is told how it goes.

    Raises:
        ValueError: no run folder, other data than the run's, no readable checkpoint, Python of the
            user's own that has changed since, or an object that the run was made with and that is
            not handed over again.

    Example:
        >>> from halfmeg import load_dataset, resume
        >>> run = resume("runs/mine", load_dataset("digits"))
        >>> len(run.read_metrics()) == run.config.epochs
        True
    """
    require_splits(data)
    run = Run.open(folder, model=model, loss=loss, optimizer=optimizer, augment=augment)
    with join_ranks(run.config.device) as ranks:
        config = run.config
        run, checkpoint, damaged = ranks.first(lambda: open_to_resume(folder, data))
        run.config = config  # with the objects of this process
        if run.result() is not None:
            return run
        return _train(run, data, listener or Listener(), checkpoint, damaged, ranks)


def open_to_resume(
    folder: str | Path, data: DataSplits
) -> tuple[Run, dict[str, Any] | None, list[Path]]:
    """Return a run, its newest readable checkpoint, and the damaged ones passed over.

    Raises:
        ValueError: no run folder, other data or groups than the run's, no readable checkpoint, or
            Python of the user's own that has changed since.
    """
    run = Run.open(folder)
    if data.fingerprint != run.data.fingerprint:
        raise ValueError(
            f"the data has the fingerprint {data.fingerprint}, "
            f"but {folder} was trained on {run.data.fingerprint} ({run.data.name}); "
            "`Run.own_data` leaves out images that came later"
        )
    group = data.options.get("group", "")
    if run.draws_validation and group != run.options.group:  # it would hold out other images
        raise ValueError(f"{folder} was trained with group={run.options.group!r}, not {group!r}")
    if run.result() is not None:
        return run, None, []
    run.remove_dead_parts()
    checkpoint, damaged = run.load_checkpoint()
    if checkpoint is None and damaged:
        raise ValueError(f"no readable checkpoint in {run.folder}; damaged: {damaged[0].name}")
    # The settings are the folder's own, whatever has become of the recipe that they came from.
    places = {key: place for key, place in run.config.places().items() if key != "recipe"}
    if (changed := find_change(run.folder, places)) is not None:
        told, kept = changed  # its source would be that of its first epochs alone
        raise ValueError(f"{told}; put back what {kept} keeps, or train anew")
    check_sources(run.folder, places)
    require_inherited(run)
    check(run.config, data)
    return run, checkpoint, damaged


def train_run(
    config: RunConfig, data: DataSplits, folder: Path, listener: Listener | None = None
) -> str | None:
    """Start or continue a run; return the error where it fails, so that others can go on."""
    try:
        if folder.exists():
            resume(folder, data, listener=listener)
        else:
            fit(config, data, folder, listener=listener)
    except TrainingInterruptedError:
        raise
    except Exception as error:
        if (told := failure(error)) is None:
            raise
        return told
    return None


def failure(error: Exception) -> str | None:
    """Say what ended one run and leaves the others; None for what ends them all."""
    return blame(error) or (one_line(error) if isinstance(error, RUN_FAILURES) else None)


def _train(
    run: Run,
    data: DataSplits,
    listener: Listener,
    checkpoint: dict[str, Any] | None,
    damaged: list[Path],
    ranks: Ranks,
) -> Run:
    """Train from a checkpoint, or from random weights, to the end."""
    prepare_process(run.config.threads)
    job = set_up(run, data, ranks)
    at = job.load(checkpoint)
    listener.on_start(run, damaged)
    with stop_signals(ranks) as stop:
        while at.epoch < run.config.epochs:
            train_epoch(job, [at], listener, stop)
            at = end_epoch(job, at)
            try:
                listener.on_epoch(at.metrics[-1])
            except Exception:  # a listener may end a run here; a signal that came counts more
                if stop.poll():
                    raise TrainingInterruptedError(how_to_continue(run), stop.requested) from None
                raise
            if stop.poll() and at.epoch < run.config.epochs:
                raise TrainingInterruptedError(how_to_continue(run), stop.requested)
    finish(job, at)
    return run
