"""Training: `fit` starts a run, `resume` continues one; both end in the same loop.

Nothing in the loop depends on what happened before but the checkpointed state: the order of the
images comes from (seed, epoch), the draws of a batch from (seed, epoch, step). So a run that was
killed continues to the same bits as one that was not, on the same machine and versions.
"""

from __future__ import annotations

import ctypes
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.augment import Augmentation, augment, normalize
from halfmeg.bundle import Bundle
from halfmeg.config import RunConfig
from halfmeg.data import DataSplits, stratified_split
from halfmeg.distill import Teacher, open_teacher
from halfmeg.distributed import Ranks, join_ranks
from halfmeg.evaluate import autocast, compute_dtype, compute_logits, score
from halfmeg.models import MODELS, WhitenedNet, build_model
from halfmeg.optim import build_average, build_optimizer, build_schedule
from halfmeg.runs import OTHER_VERSION, MetricsRow, Run, read_checkpoint
from halfmeg.selection import HardImages
from halfmeg.summary import count_macs, count_params

REPORT_SECONDS = 0.2
WHITENING_IMAGES = 5_000
RUN_FAILURES = (RuntimeError, ValueError, OSError, MemoryError)
"""What ends one run of a study and leaves the others."""


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class TrainingInterruptedError(RuntimeError):
    """A signal stopped the run after a checkpoint was written."""

    def __init__(self, advice: str, signal_number: int) -> None:
        super().__init__(f"stopped; {advice}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class StepReport:
    """Where a run stands: counts from 1, means over the epoch so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


class Listener(Protocol):
    """Is told how a run goes: a progress bar, TensorBoard."""

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """The run starts or continues; `damaged` checkpoints were passed over."""

    def on_step(self, report: StepReport) -> None:
        """Some steps were done; called at most a few times a second."""

    def on_epoch(self, row: MetricsRow) -> None:
        """An epoch has ended."""


class SilentListener:
    """Tells nobody."""

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """Do nothing."""

    def on_step(self, report: StepReport) -> None:
        """Do nothing."""

    def on_epoch(self, row: MetricsRow) -> None:
        """Do nothing."""


@dataclass
class Position:
    """Where in the run the loop stands, and what it has added up."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    loss_sum: float = 0.0  # over the images of the epoch under way
    num_right: int = 0
    num_seen: int = 0
    epoch_seconds: float = 0.0  # of training alone, evaluation excluded
    total_seconds: float = 0.0
    metrics: list[MetricsRow] = field(default_factory=list)


def derive_seed(*parts: int) -> int:
    """Mix numbers, such as (seed, epoch, step), to one seed of 63 bits (numpy's SeedSequence).

    Their count is mixed in, since to SeedSequence (0,) and (0, 0) are the same.
    """
    sequence = np.random.SeedSequence((len(parts), *parts))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


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


def check(config: RunConfig, data: DataSplits) -> None:
    """Raise before anything is written what would fail later."""
    allowed = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if config.device not in (*allowed, *(["cuda"] if len(allowed) > 1 else [])):
        raise ValueError(f"device={config.device} is not there; allowed here: {', '.join(allowed)}")
    if config.crop_mode == "reflect" and config.crop >= data.image_size:
        raise ValueError(f"crop={config.crop} is too wide; allowed: below {data.image_size}")
    model = build_model(config.model, len(data.classes), data.image_size, config.budget)
    entry = MODELS[config.model]
    for name, size in config.small_sizes().items():
        if not entry.takes(size) or size > data.image_size:
            smallest = entry.image_size or entry.smallest
            raise ValueError(
                f"{name}={size} does not fit {config.model} and this data; "
                f"allowed: 0 for none, or from {smallest} to {data.image_size}"
            )
    if config.init:
        load_initial_weights(model, config)
    if config.teacher:
        open_teacher(config, data)
    train, _ = stratified_split(data.train.labels, config.val_fraction, config.seed)
    if len(train) < 2:
        raise ValueError(f"{len(train)} training image(s) are too few; allowed: 2 or more")


def load_initial_weights(model: nn.Module, config: RunConfig) -> None:
    """Copy a bundle's weights into a network of the same kind; a head of other classes is left.

    Raises:
        ValueError: no bundle, or one of another network.
    """
    bundle = Bundle.open(config.init)
    if bundle.model != config.model:
        raise ValueError(
            f"init={config.init} holds a {bundle.model}, not a {config.model}; "
            f"add model={bundle.model}"
        )
    if bundle.budget != config.budget:
        raise ValueError(
            f"init={config.init} was made with budget={bundle.budget}, "
            f"not {config.budget}; add budget={bundle.budget}"
        )
    stored = bundle.load_model().state_dict()
    own = model.state_dict()
    fitting = {name: value for name, value in stored.items() if own[name].shape == value.shape}
    model.load_state_dict(own | fitting)


@final
class Job:
    """A run set up: the data's parts, the network, and what changes it."""

    def __init__(self, run: Run, data: DataSplits, ranks: Ranks) -> None:
        config = run.config
        run.writes = ranks.rank == 0
        self.run = run
        self.ranks = ranks
        self.config = config
        self.data = data
        self.device = ranks.device(config.device)
        self.dtype = compute_dtype(config.precision, self.device)
        self.train_indices, self.val_indices = stratified_split(
            data.train.labels, config.val_fraction, config.seed
        )
        count, epochs = len(self.train_indices), range(config.epochs)
        self.image_counts = [images_in(config, epoch, count) for epoch in epochs]
        self.image_sizes = [training_size(config, epoch) or data.image_size for epoch in epochs]
        self.batches = [batch_bounds(n, config.batch_size) for n in self.image_counts]
        self.first_steps = [0, *accumulate(len(bounds) for bounds in self.batches)]
        torch.manual_seed(derive_seed(config.seed))
        model = build_model(config.model, len(data.classes), data.image_size, config.budget)
        if isinstance(model, WhitenedNet):
            some = data.train.images[self.train_indices[:WHITENING_IMAGES]]
            model.whiten(normalize(some, torch.tensor(data.mean), torch.tensor(data.std)))
        if config.init:
            load_initial_weights(model, config)
        model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        wrapped = ranks.wrap(model, synchronize_batchnorm=config.sync_bn)
        self.forward = self.compiled(wrapped)
        self.runs_at_once = 1
        self.optimizer = self.build_optimizer(model.parameters())
        self.schedule = build_schedule(
            self.optimizer, config.schedule, lr=config.lr, total_steps=self.first_steps[-1],
            milestones=[self.first_steps[min(e, config.epochs)] for e in config.milestones],
            drop=config.lr_drop, patience=config.patience, warmup=config.warmup,
        )  # fmt: skip
        self.average = build_average(model, config.ema)
        self.teacher = Teacher(config, data, self.device) if config.teacher else None
        self.hard = HardImages(len(data.train), self.device) if config.hard_share < 1 else None

    def compiled(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return the same function, compiled where the config says so; on a GPU as CUDA graphs."""
        if not self.config.compile:
            return forward
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return torch.compile(forward, mode=mode, dynamic=False)

    def build_optimizer(
        self, parameters: Iterable[Tensor], *, stacked: bool = False
    ) -> torch.optim.Optimizer:
        """Build the config's optimizer."""
        config = self.config
        return build_optimizer(
            parameters, config.optimizer, lr=config.lr, betas=(config.beta1, config.beta2),
            momentum=config.momentum, weight_decay=config.weight_decay,
            head_lr=config.head_lr, dtype=self.dtype, stacked=stacked,
        )  # fmt: skip

    def _stateful(self) -> dict[str, Any]:
        names = ["model", "optimizer", "schedule", "average", *(["hard"] if self.hard else [])]
        return {name: getattr(self, name) for name in names}

    def save(self, at: Position) -> None:
        """Write a checkpoint."""
        states = {name: part.state_dict() for name, part in self._stateful().items()}
        # a view would bring the whole stack of seeds that it is a part of into the file
        states["model"] = {key: value.clone() for key, value in states["model"].items()}
        self.run.save_checkpoint(states | {"position": asdict(at)}, at.epoch, at.step)

    def load(self, checkpoint: dict[str, Any]) -> Position:
        """Continue from a checkpoint.

        Raises:
            ValueError: it is of another network.
        """
        try:
            for name, part in self._stateful().items():
                part.load_state_dict(checkpoint[name])
            return Position(**checkpoint["position"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            message = f"the checkpoint does not fit {self.config.model}; {OTHER_VERSION}: {error}"
            raise ValueError(message) from None

    def draw_batches(self, at: Position, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the rest of an epoch, augmented, and the indices of their images.

        They are whole on every rank, so that the draws do not depend on the number of ranks. Each
        also seeds torch's global generator, which dropout draws from.

        Args:
            at: where the epoch stands.
            images: all training images, uint8 N×3×H×W on the job's device.
        """
        config, device = self.config, self.device
        mean, std = (
            torch.tensor(value, device=device) for value in (self.data.mean, self.data.std)
        )
        augmentation = augmentation_of(config)
        order = _epoch_order(self.train_indices, config.seed, at.epoch)
        mirrored = _mirrored(len(images), config.seed, at.epoch) if config.alternate else None
        size = training_size(config, at.epoch)
        if self.hard:
            if at.step == 0:
                self.hard.start_epoch()
            order = self.hard.choose(order, self.image_counts[at.epoch])
        batches = self.batches[at.epoch]
        for step in range(at.step, len(batches)):
            generator = _seed_step(config.seed, at.epoch, step)
            chosen = order[batches[step]]
            indices = chosen.to(device)
            batch = augment(
                images[indices], augmentation, mean, std, generator=generator,
                mirrored=None if mirrored is None else mirrored[chosen],
                size=size, dtype=self.dtype,
            )  # fmt: skip
            yield batch, indices

    def logits(self, images: Tensor) -> Tensor:
        """Return the evaluated network's logits of uint8 images; each rank does its share."""
        network = self.ranks.agree(self.average.evaluated(self.model))
        mean, std, precision = self.data.mean, self.data.std, self.config.precision
        own = compute_logits(network, self.ranks.share(images), mean, std, precision=precision)
        return self.ranks.gather(own, len(images))


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


def how_to_continue(run: Run) -> str:
    """Return what to say of a run that was stopped."""
    return f"continue with `halfmeg resume {run.folder}`"


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


def augmentation_of(config: RunConfig) -> Augmentation:
    """Return the part of a config that `augment` takes."""
    return Augmentation(
        rotation=config.rotation, crop=config.crop, crop_mode=config.crop_mode,
        brightness=config.brightness, contrast=config.contrast, saturation=config.saturation,
        hflip=config.hflip, vflip=config.vflip, cutout=config.cutout,
    )  # fmt: skip


def batch_bounds(count: int, batch_size: int) -> list[slice]:
    """Cut an epoch into batches of `batch_size` and a last one of what is left.

    Where that would be less than a quarter of a batch, all are made of nearly the same size: the
    statistics of BatchNorm over a few images would spoil the running ones, which matters where an
    epoch is a few batches. A batch of one image, possible with a `batch_size` of 2, has no
    variance to divide by and is left out. Otherwise every image is used in every epoch.
    """
    number = math.ceil(count / batch_size)
    left = count - (number - 1) * batch_size
    if left < max(2, batch_size / 4):
        edges = [count * i // number for i in range(number + 1)]
    else:
        edges = [*range(0, count, batch_size), count]
    bounds = [slice(start, stop) for start, stop in pairwise(edges)]
    return [b for b in bounds if b.stop - b.start > 1 or batch_size == 1]


def _epoch_order(indices: Tensor, seed: int, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
    return indices[torch.randperm(len(indices), generator=generator)]


def _mirrored(count: int, seed: int, epoch: int) -> Tensor:
    """Return which images are mirrored: a random half, and in the next epoch the other half.

    So each image is seen in both forms within two epochs (Jordan 2024, section 3.6).
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, 0, 0))
    return (torch.randint(0, 2, (count,), generator=generator) + epoch) % 2 == 1


def training_size(config: RunConfig, epoch: int) -> int:
    """Return the side of the images in an epoch counted from 0; 0 means the data's own."""
    if epoch >= round(config.small_share * config.epochs):
        return 0
    sides = config.small_sizes()
    return sides.get("first_size" if epoch == 0 else "small_size", config.small_size)


def on_hard_images(config: RunConfig, epoch: int) -> bool:
    """Return whether an epoch, counted from 0, passes over the images that are easiest.

    The first never does, since its losses are the first to rank by, nor do those of small images.
    """
    return config.hard_share < 1 and epoch > 0 and not training_size(config, epoch)


def images_in(config: RunConfig, epoch: int, count: int) -> int:
    """Return how many of `count` training images an epoch, counted from 0, trains on."""
    if on_hard_images(config, epoch):
        return max(2, round(config.hard_share * count))
    return count


def _seed_step(seed: int, epoch: int, step: int) -> torch.Generator:
    """Return the generator of a step's augmentation; dropout draws from torch's global one."""
    derived = derive_seed(seed, epoch, step)
    torch.manual_seed(derived)
    return torch.Generator().manual_seed(derived)


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


@dataclass
class Stop:
    """Whether a signal asked a run to stop."""

    requested: int = 0  # the signal's number


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request; a second Ctrl-C stops at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = number

    previous = {
        number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    Each step allocates the same large tensors. By default glibc maps each anew, and the page
    faults cost a plain CNN several percent of its step (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8  # <malloc.h>
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 * 2**20)
    libc.mallopt(m_arena_max, 1)
