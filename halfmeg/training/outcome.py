"""What a run has come to: measured after an epoch and at its end, and written to its folder."""

from __future__ import annotations

import torch
from torch import Tensor

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.weights import named_tensors
from halfmeg.evaluation.evaluate import score
from halfmeg.evaluation.familiarity import Familiarity
from halfmeg.networks.macs import measure_macs
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.training.job import Job
from halfmeg.training.state import Position
from halfmeg.training.stopping import require_finite


def end_epoch(job: Job, at: Position) -> Position:
    """Measure after an epoch, write metrics and a checkpoint, and return the next one's start."""
    row = _metrics_row(at, job.state.optimizer.param_groups[0]["lr"]) | _held_out_metrics(job, at)
    job.state.schedule.end_epoch(row[f"{job.run.config.monitor}_loss"])
    at = Position(
        epoch=at.epoch + 1,
        total_seconds=at.total_seconds + at.epoch_seconds,
        metrics=[*at.metrics, row],
    )
    job.save([at])
    job.run.write_metrics(at.metrics)
    return at


def finish(job: Job, at: Position) -> None:
    """Write weights, logits and result; this reads the test set once.

    Raises:
        TrainingDivergedError: after the last step the network gives no numbers any more.
    """
    run, config, data = job.run, job.run.config, job.data
    model = job.state.average.evaluated(job.state.model)
    tensors = named_tensors(model)
    require_finite(run, (tensors[name] for name in job.finite))
    run.save_weights(model)
    arrays: dict[str, Tensor] = {}
    val_accuracy, familiarity = None, None
    if len(job.val):
        arrays |= {"val_logits": job.logits(job.val.images), "val_labels": job.val.labels}
        require_finite(run, [arrays["val_logits"]])
        val_accuracy = score(arrays["val_logits"], job.val.labels).accuracy
        familiarity = Familiarity.fit(
            data.train.images, job.batches.indices, job.val.images, arrays["val_logits"]
        )
    run.log_test_reading("final evaluation")
    arrays |= {"test_logits": job.logits(data.test.images), "test_labels": data.test.labels}
    require_finite(run, [arrays["test_logits"]])
    test = score(arrays["test_logits"], data.test.labels)
    run.save_logits(**arrays)
    macs = measure_macs(model, data.image_shape)
    by_size = {  # backward: at most twice forward
        size: 3 * count_macs(model, shape) + job.criterion.macs(shape)
        for size in {epoch.size for epoch in job.plan.epochs}
        for shape in [data.image_shape.scaled_to(size)]
    }
    run.save_result(
        {
            "model": config.model,
            "recipe": config.recipe,
            "seed": config.seed,
            "params": count_params(model),
            "macs": macs.count,
            "unknown_macs": list(macs.unknown),  # layers that the counts leave out
            "total_macs": sum(e.num_images * by_size[e.size] for e in job.plan.epochs),
            "epochs": config.epochs,
            "precision": "bf16" if job.dtype == torch.bfloat16 else "fp32",  # what auto chose
            "val_accuracy": val_accuracy,
            "val_n": len(job.val),
            "familiarity": familiarity.to_dict() if familiarity else None,
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_balanced_accuracy": test.balanced_accuracy,
            "test_macro_f1": test.macro_f1,
            "test_precision": list(test.precision),
            "test_recall": list(test.per_class),
            "constant_accuracy": test.constant_accuracy,
            "test_n": test.n,
            "test_curve": "monitoring only" if config.monitor == "test" else None,
            "data": run.data.name,
            "fingerprint": run.data.fingerprint,
            "images_per_second": job.plan.num_images / at.total_seconds,
            "seconds": at.total_seconds,
            "runs_at_once": job.runs_at_once,  # that shared these seconds, as a stack
            "weights": "weights.safetensors",
        }
    )


def _held_out_metrics(job: Job, at: Position) -> MetricsRow:
    """Measure the validation split, and the test set where the recipe draws its curve."""
    measured: MetricsRow = {}
    if len(job.val):
        result = score(job.logits(job.val.images), job.val.labels)
        measured |= {"val_loss": result.loss, "val_accuracy": result.accuracy}
    if job.run.config.monitor == "test":
        job.run.log_test_reading(f"epoch {at.epoch + 1}: test curve, monitoring only")
        result = score(job.logits(job.data.test.images), job.data.test.labels)
        measured |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
    return measured


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
