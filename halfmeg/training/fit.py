"""Training: `fit` starts a run, `resume` continues one; both end in the same loop.

Nothing in the loop depends on what happened before but the checkpointed state: the order of the
images comes from (seed, epoch), the draws of a batch from (seed, epoch, step). So a run that was
killed continues to the same bits as one that was not, on the same machine and versions.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.artifacts.run import MetricsRow, Run
from halfmeg.artifacts.weights import read_checkpoint
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.evaluate import score
from halfmeg.evaluation.precision import autocast
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.training.distributed import Ranks, join_ranks
from halfmeg.training.job import Job, Position, check
from halfmeg.training.listen import Listener, SilentListener, StepReport
from halfmeg.training.process import keep_freed_memory
from halfmeg.training.stopping import (
    Stop,
    TrainingDivergedError,
    TrainingInterruptedError,
    how_to_continue,
    stop_signals,
)

REPORT_SECONDS = 0.2


RUN_FAILURES = (RuntimeError, ValueError, OSError, MemoryError)
"""What ends one run of a study and leaves the others."""


def fit(
    config: RunConfig,
    data: DataSplits,
    out: str | Path,
    *,
    listener: Listener | None = None,
    start: str | Path | None = None,
) -> Run:
    """Train a network and store everything about it in a new folder.

    On Linux the process keeps the memory it frees from here on (docs/performance.md).

    Args:
        config: what to train and how.
        data: what to train on; its test part is read as `config.monitor` says, and at the end.
        out: the run folder, which must not exist.
        listener: is told how it goes.
        start: a checkpoint file of a run of the same network, to continue from its epoch.

    Raises:
        ValueError: config and data do not fit together, or `out` exists.
        TrainingDivergedError: the loss became NaN or infinite.
        TrainingInterruptedError: Ctrl-C or SIGTERM; a checkpoint was written.

    Example:
        >>> from halfmeg import build_recipe, fit, load_dataset
        >>> config = build_recipe("common").override(["model=cnn", "epochs=1"])
        >>> run = fit(config, load_dataset("digits"), "runs/one-epoch")
        >>> run.result()["params"], run.result()["test_n"]
        (81578, 360)
    """
    check(config, data)
    checkpoint = None
    if start is not None:
        checkpoint = read_checkpoint(Path(start))
        if checkpoint is None:
            raise ValueError(f"{start} is missing, damaged or no checkpoint")
    with join_ranks(config.device) as ranks:
        run = ranks.first(lambda: Run.create(out, config, data))
        return _train(run, data, listener or SilentListener(), checkpoint, [], ranks)


def resume(folder: str | Path, data: DataSplits, *, listener: Listener | None = None) -> Run:
    """Continue a run to its end; a finished one is returned as it is.

    Raises:
        ValueError: no run folder, other data than the run's, or no readable checkpoint.

    Example:
        >>> from halfmeg import load_dataset, resume
        >>> run = resume("runs/mine", load_dataset("digits"))
        >>> len(run.read_metrics()) == run.config.epochs
        True
    """
    with join_ranks(Run.open(folder).config.device) as ranks:
        run, checkpoint, damaged = ranks.first(lambda: open_to_resume(folder, data))
        if run.result() is not None:
            return run
        return _train(run, data, listener or SilentListener(), checkpoint, damaged, ranks)


def open_to_resume(
    folder: str | Path, data: DataSplits
) -> tuple[Run, dict[str, Any] | None, list[Path]]:
    """Return a run, its newest readable checkpoint, and the damaged ones passed over.

    Raises:
        ValueError: no run folder, other data than the run's, or no readable checkpoint.
    """
    run = Run.open(folder)
    if data.fingerprint != run.data.fingerprint:
        raise ValueError(
            f"the data has the fingerprint {data.fingerprint}, "
            f"but {folder} was trained on {run.data.fingerprint} ({run.data.name})"
        )
    if run.result() is not None:
        return run, None, []
    checkpoint, damaged = run.load_checkpoint()
    if checkpoint is None and damaged:
        raise ValueError(f"no readable checkpoint in {run.folder}; damaged: {damaged[0].name}")
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
    except RUN_FAILURES as error:
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _train(
    run: Run,
    data: DataSplits,
    listener: Listener,
    checkpoint: dict[str, Any] | None,
    damaged: list[Path],
    ranks: Ranks,
) -> Run:
    """Train from a checkpoint, or from random weights, to the end."""
    keep_freed_memory()
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    job = Job(run, data, ranks)
    at = job.load(checkpoint) if checkpoint is not None else Position()
    listener.on_start(run, damaged)
    with stop_signals() as stop:
        while at.epoch < run.config.epochs:
            _train_epoch(job, at, listener, stop)
            at = end_epoch(job, at)
            listener.on_epoch(at.metrics[-1])
            if stop.requested and at.epoch < run.config.epochs:
                raise TrainingInterruptedError(how_to_continue(run), stop.requested)
    finish(job, at)
    return run


def end_epoch(job: Job, at: Position) -> Position:
    """Measure after an epoch, write metrics and a checkpoint, and return the next one's start."""
    row = _metrics_row(at, job.optimizer.param_groups[0]["lr"]) | _held_out_metrics(job, at)
    job.schedule.end_epoch(row[f"{job.config.monitor}_loss"])
    at = Position(
        epoch=at.epoch + 1,
        total_seconds=at.total_seconds + at.epoch_seconds,
        metrics=[*at.metrics, row],
    )
    job.save(at)
    job.run.write_metrics(at.metrics)
    return at


def _train_epoch(job: Job, at: Position, listener: Listener, stop: Stop) -> None:
    """Do the rest of an epoch, and move `at` along.

    Raises:
        TrainingDivergedError: the loss is NaN or infinite.
        TrainingInterruptedError: a signal came; a checkpoint was written.
    """
    config, device, ranks = job.config, job.device, job.ranks
    images, labels = job.data.train.images.to(device), job.data.train.labels.to(device)
    steps = len(job.batches[at.epoch])
    loss_sum = torch.tensor(at.loss_sum, dtype=torch.float64, device=device)
    num_right = torch.tensor(at.num_right, device=device)
    seconds_before = at.epoch_seconds
    reported = started = time.perf_counter()
    job.model.train()
    for whole, indices in job.draw_batches(at, images):
        job.schedule.set_step(job.first_steps[at.epoch] + at.step)
        batch, targets = ranks.share(whole), ranks.share(labels[indices])
        num_own = len(range(ranks.rank, len(indices), ranks.size))
        with autocast(device, job.dtype):
            logits = job.forward(batch)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
        if job.teacher:
            loss = job.teacher.mix(loss, batch, logits)
        loss = loss * (num_own * ranks.size / len(indices))  # the ranks' mean is the batch's
        job.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        job.optimizer.step()
        job.average.update(job.model)
        if job.hard:
            job.hard.record(
                indices, ranks.gather(logits.detach().float(), len(indices)), labels[indices]
            )

        loss_sum += ranks.sum(loss.detach().double() * (len(indices) / ranks.size))
        num_right += ranks.sum((logits.argmax(1) == targets)[:num_own].sum())
        stop.requested = ranks.largest(stop.requested)
        at.step += 1
        at.num_seen += len(indices)
        now = time.perf_counter()
        if now - reported > REPORT_SECONDS or at.step == steps or stop.requested:
            reported = now
            at.loss_sum, at.num_right = loss_sum.item(), int(num_right)  # waits for the device
            at.epoch_seconds = seconds_before + time.perf_counter() - started
            if not math.isfinite(at.loss_sum):
                raise TrainingDivergedError(
                    f"the loss became {at.loss_sum / at.num_seen} in epoch {at.epoch + 1}, "
                    f"step {at.step}; the checkpoints in {job.run.folder} are from before; "
                    f"try a smaller lr than {config.lr:g}"
                )
            listener.on_step(report_step(job, at))
        if stop.requested and at.step < steps:
            job.save(at)
            raise TrainingInterruptedError(how_to_continue(job.run), stop.requested)


def _held_out_metrics(job: Job, at: Position) -> MetricsRow:
    """Measure the validation split, and the test set where the recipe draws its curve."""
    measured: MetricsRow = {}
    if len(job.val_indices):
        val = job.data.train.subset(job.val_indices)
        result = score(job.logits(val.images), val.labels)
        measured |= {"val_loss": result.loss, "val_accuracy": result.accuracy}
    if job.config.monitor == "test":
        job.run.log_test_reading(f"epoch {at.epoch + 1}: test curve, monitoring only")
        result = score(job.logits(job.data.test.images), job.data.test.labels)
        measured |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
    return measured


def finish(job: Job, at: Position) -> None:
    """Write weights, logits and result; this reads the test set once."""
    run, config, data = job.run, job.config, job.data
    model = job.average.evaluated(job.model)
    run.save_weights(model)
    arrays: dict[str, Tensor] = {}
    val_accuracy = None
    if len(job.val_indices):
        val = data.train.subset(job.val_indices)
        arrays |= {"val_logits": job.logits(val.images), "val_labels": val.labels}
        val_accuracy = score(arrays["val_logits"], val.labels).accuracy
    run.log_test_reading("final evaluation")
    arrays |= {"test_logits": job.logits(data.test.images), "test_labels": data.test.labels}
    test = score(arrays["test_logits"], data.test.labels)
    run.save_logits(**arrays)
    total_macs = 0
    for count, size in zip(job.image_counts, job.image_sizes, strict=True):
        macs = 3 * count_macs(model, size)  # backward: at most twice forward
        if job.teacher:
            macs += count_macs(job.teacher.model, size)
        total_macs += count * macs
    run.save_result(
        {
            "model": config.model,
            "recipe": config.recipe,
            "seed": config.seed,
            "params": count_params(model),
            "macs": count_macs(model, data.image_size),
            "total_macs": total_macs,
            "epochs": config.epochs,
            "precision": "bf16" if job.dtype == torch.bfloat16 else "fp32",  # what auto chose
            "val_accuracy": val_accuracy,
            "val_n": len(job.val_indices),
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_n": test.n,
            "test_curve": "monitoring only" if config.monitor == "test" else None,
            "data": run.data.name,
            "fingerprint": run.data.fingerprint,
            "images_per_second": sum(job.image_counts) / at.total_seconds,
            "seconds": at.total_seconds,
            "runs_at_once": job.runs_at_once,  # that shared these seconds, as a stack
            "weights": "weights.safetensors",
        }
    )


def _metrics_row(at: Position, lr: float) -> MetricsRow:
    return {
        "epoch": at.epoch + 1,
        "lr": lr,
        "train_loss": at.loss_sum / at.num_seen,
        "train_accuracy": at.num_right / at.num_seen,
        "val_loss": None,
        "val_accuracy": None,
        "test_loss": None,
        "test_accuracy": None,
        "images_per_second": at.num_seen / at.epoch_seconds,
        "seconds": at.total_seconds + at.epoch_seconds,
    }


def report_step(job: Job, at: Position) -> StepReport:
    """Describe where a run stands; in the time left an image counts by its pixels."""
    rate = at.num_seen / at.epoch_seconds
    sizes = job.image_sizes[at.epoch :]
    counts = job.image_counts[at.epoch :]
    images = sum(n * (size / sizes[0]) ** 2 for n, size in zip(counts, sizes, strict=True))
    return StepReport(
        epoch=at.epoch + 1,
        epochs=job.config.epochs,
        step=at.step,
        steps=len(job.batches[at.epoch]),
        loss=at.loss_sum / at.num_seen,
        accuracy=at.num_right / at.num_seen,
        images_per_second=rate,
        seconds_left=max(0, images - at.num_seen) / rate,
    )
