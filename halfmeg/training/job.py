"""A run set up: the plan of its epochs, its network, and what is done with both in a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from halfmeg.artifacts.metrics import METRICS
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.seen import UncheckedImagesWarning, require_unseen
from halfmeg.artifacts.weights import OTHER_VERSION, named_tensors
from halfmeg.artifacts.writer import Writer
from halfmeg.config import RunConfig
from halfmeg.data.augment import normalize
from halfmeg.data.dataset import Dataset, DataSplits, spread_over
from halfmeg.data.split import hold_out
from halfmeg.errors import one_line, with_kind
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.files import check_json
from halfmeg.networks.own import use_channels_last
from halfmeg.networks.protocol import preparation
from halfmeg.networks.table import build_model, find_entry, other_sizes
from halfmeg.networks.trial import try_out
from halfmeg.networks.ways import with_kernels
from halfmeg.places.draws import kept_draws, seed_draws
from halfmeg.places.place import is_place
from halfmeg.training.batches import Batch, Batches
from halfmeg.training.choice import chosen_by
from halfmeg.training.compiling import check_compiler, compiled
from halfmeg.training.distill import open_teacher
from halfmeg.training.distributed import Ranks, check_batchnorm
from halfmeg.training.initial import load_initial_weights
from halfmeg.training.loss import Loss, build_loss
from halfmeg.training.optim import (
    Schedule,
    build_average,
    build_optimizer,
    build_schedule,
    decay_groups,
)
from halfmeg.training.own import build_own_optimizer, build_transform, try_own
from halfmeg.training.plan import Epoch, Plan, augmentation_of, balanced_weights, derive_seed
from halfmeg.training.selection import build_selection
from halfmeg.training.state import Position, State
from halfmeg.training.stopping import how_to_continue

PREPARATION_IMAGES = 5_000
"""Of those to train on, spread over all of them: the first may be of the first classes alone."""


def check(config: RunConfig, data: DataSplits) -> None:
    """Raise before anything is written what would fail later."""
    allowed = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if config.device not in (*allowed, *(["cuda"] if len(allowed) > 1 else [])):
        raise ValueError(f"device={config.device} is not there; allowed here: {', '.join(allowed)}")
    check_compiler(config)
    if config.schedule == "plateau" and config.monitor == "test":
        raise ValueError("schedule=plateau would choose by test images; set monitor=val")
    shape = data.image_shape
    if config.crop_mode == "reflect" and config.crop >= shape.shortest:
        raise ValueError(f"crop={config.crop} is too wide; allowed: below {shape.shortest}")
    num_classes = len(data.classes)
    check_places(config, data)
    model = build_model(config.model, num_classes, shape, config.budget)
    if config.sync_bn:
        check_batchnorm(model)
    small = config.small_sizes()
    fitting = other_sizes(config.model, model, num_classes, shape, small.values())
    for name, size in small.items():
        if size not in fitting or size > shape.shortest:
            raise ValueError(
                f"{name}={size} does not fit {config.model} and this data; "
                f"allowed: {_small_sizes_of(config.model, shape.shortest)}"
            )
    if config.init:
        init = load_initial_weights(model, config, data)
        require_unseen(data, f"init={config.init}", init.known)
    if config.teacher:
        teacher = open_teacher(config, data)
        require_unseen(data, f"teacher={config.teacher}", teacher.known)
    train, _ = hold_out(data, config.val_fraction, config.seed)
    if len(train) < 2:
        raise ValueError(f"{len(train)} training image(s) are too few; allowed: 2 or more")


def fits(config: RunConfig, data: DataSplits) -> bool:
    """Return whether `check` finds nothing that would fail later."""
    with warnings.catch_warnings(action="ignore", category=UncheckedImagesWarning):
        try:
            check(config, data)
        except ValueError:
            return False
    return True


def check_places(config: RunConfig, data: DataSplits) -> None:
    """Try out what a config has of the user's own; what was tried is not tried again.

    Raises:
        ValueError: a fault, by name.
    """
    num_classes = len(data.classes)
    if is_place(config.model):
        device = torch.device(config.device if torch.cuda.is_available() else "cpu")
        dtype = compute_dtype(config.precision, device)
        try_out(config.model, num_classes, data.image_shape, config.budget, dtype)
    try_own(config, num_classes, data.image_shape)


def check_shares(config: RunConfig, data: DataSplits, ranks: Ranks) -> None:
    """Raise where a process would have one image of a batch, of which BatchNorm has no variance.

    That of maps has one over their positions.
    """
    if config.sync_bn if ranks.size > 1 else config.batch_size > 1:
        return
    model = build_model(config.model, len(data.classes), data.image_shape, config.budget)
    if ranks.size == 1:
        if not _takes_one_image(model, data.image_shape):
            told = "leaves BatchNorm one image, of which it has no variance; take 2 or more"
            raise ValueError(f"batch_size=1 {told}")
        return
    train, _ = hold_out(data, config.val_fraction, config.seed)
    plan = Plan.of(config, len(train), data.image_shape)
    smallest = min(b.stop - b.start for epoch in plan.epochs for b in epoch.batches)
    if smallest < 2 * ranks.size and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        raise ValueError(
            f"a batch of {smallest} images leaves one of {ranks.size} processes fewer than two, of "
            "which BatchNorm has no variance; take sync_bn=true, or another batch_size"
        )


def _takes_one_image(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether BatchNorm, if there is any, sees more than one position of a single image."""
    with kept_draws(), torch.no_grad():
        try:
            model.train()(torch.zeros(1, *shape))
        except Exception as error:  # another fault is told where it is trained
            return "more than 1 value per channel" not in one_line(error)
    return True


def _small_sizes_of(model: str, largest: int) -> str:
    entry = None if is_place(model) else find_entry(model)[0]
    if entry is None or entry.settings:  # where settings decide, too
        return "0 for none, or a side that it takes"
    if entry.fixed:
        return "0 for none"
    return f"0 for none, or from {entry.smallest} to {largest}"


def check_start(
    checkpoint: dict[str, Any], config: RunConfig, data: DataSplits, name: str
) -> Position:
    """Return where a checkpoint stands that a new run is to continue from.

    Raises:
        ValueError: it is of another network or recipe, or further than the run goes.
    """
    try:
        at = check_json(checkpoint["position"], Position)
        model = build_model(config.model, len(data.classes), data.image_shape, config.budget)
        train, _ = hold_out(data, config.val_fraction, config.seed)
        plan = Plan.of(config, len(train), data.image_shape)
        build_state(config, data, model, plan, torch.float32, Ranks()).load_state_dict(checkpoint)
        if at.epoch < config.epochs:
            check_position(at, plan)
    except Exception as error:  # what a foreign file raises depends on what it holds
        told = one_line(error, 200)
        raise ValueError(
            f"{name} does not fit {config.model}; {OTHER_VERSION}; its optimizer, schedule, ema "
            f"and hard_share have to be those here: {told}"
        ) from None
    if at.epoch >= config.epochs:
        told = "is less" if at.epoch > config.epochs else "leaves nothing to train"
        raise ValueError(
            f"{name} is of epoch {at.epoch}, and epochs={config.epochs} {told}; name more epochs"
        )
    return at


def check_position(at: Position, plan: Plan) -> None:
    """Raise where a run with such a plan cannot stand.

    Raises:
        ValueError: it is outside the run, or does not agree with itself.
    """
    epochs = len(plan.epochs)
    steps = len(plan.epochs[at.epoch].batches) if 0 <= at.epoch < epochs else 0
    if not (0 <= at.epoch <= epochs and 0 <= at.step <= steps):
        raise ValueError(f"epoch {at.epoch}, step {at.step} is outside the run")
    seconds = (at.total_seconds if at.epoch else 1.0, at.epoch_seconds if at.step else 1.0)
    if not (min(seconds) > 0 and at.num_seen >= at.step and 0 <= at.num_right <= at.num_seen):
        raise ValueError("its sums cannot be")
    if len(at.metrics) != at.epoch or any(set(row) != set(METRICS) for row in at.metrics):
        raise ValueError(f"it has no row of metrics for each of {at.epoch} epochs")


@final
@dataclass
class Job:
    """A run set up.

    Attributes:
        device, dtype: where and in what its network is computed.
        plan: what its epochs do.
        val: the images to validate on.
        state: its network, and what changes with it.
        network: maps normalized images B×C×H×W to logits; compiled, and over several processes.
        criterion: the loss of a batch.
        finite: names of the weights and buffers that hold finite numbers alone at the start.
        runs_at_once: how many runs share its time, as a stack.
    """

    run: Run
    data: DataSplits
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    plan: Plan
    val: Dataset
    state: State
    batches: Batches
    network: Callable[[Tensor], Tensor]
    criterion: Loss
    finite: list[str]
    runs_at_once: int = 1

    @property
    def advice(self) -> str:
        """What to do when it was stopped."""
        return how_to_continue(self.run)

    @cached_property
    def train(self) -> Dataset:
        """All training images and labels, on the device."""
        train = self.data.train
        return Dataset(train.images.to(self.device), train.labels.to(self.device), train.classes)

    def draw(self, epoch: Epoch, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on."""
        return self.batches.draw(self.train, epoch, first)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        with autocast(self.device, self.dtype):
            return self.network(images)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        loss = self.criterion(logits, batch)
        return self.ranks.weigh(loss, batch.num_images)

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Take the new weights into their average, and the losses into the next selection."""
        self.state.average.update(self.state.model)
        self.state.selection.record(batch.indices, logits, batch.labels)

    def save(self, positions: Sequence[Position]) -> None:
        """Write a checkpoint."""
        (at,) = positions
        content = self.state.state_dict() | {"position": asdict(at)}
        self.run.save_checkpoint(content, at.epoch, at.step)

    def load(self, checkpoint: dict[str, Any] | None) -> Position:
        """Continue from a checkpoint, or without one from the start.

        Raises:
            ValueError: it is of another network.
        """
        if checkpoint is None:
            return Position()
        try:
            at = check_json(checkpoint["position"], Position)
            check_position(at, self.plan)
            self.state.load_state_dict(checkpoint)
        except Exception as error:  # what a foreign file raises depends on what it holds
            model = self.run.config.model
            message = f"the checkpoint does not fit {model}; {OTHER_VERSION}: {error}"
            raise ValueError(message) from None
        # The run may have been killed after the checkpoint and before its row of metrics.csv.
        self.run.write_metrics(at.metrics)
        return at

    def logits(self, images: Tensor) -> Tensor:
        """Return the evaluated network's logits of uint8 images; each rank does its share."""
        network = self.ranks.agree(self.state.average.evaluated(self.state.model))
        mean, std, precision = self.data.mean, self.data.std, self.run.config.precision
        own = compute_logits(network, self.ranks.share(images), mean, std, precision=precision)
        return self.ranks.gather(own, len(images))


def set_up(run: Run, data: DataSplits, ranks: Ranks) -> Job:
    """Set up a run, with its network as training starts from it."""
    config = run.config
    if ranks.rank > 0:
        run.writer = Writer()
    device = ranks.device(config.device)
    dtype = compute_dtype(config.precision, device)
    train_indices, val = hold_out(data, config.val_fraction, config.seed)
    labels = data.train.labels[train_indices]
    by_class = balanced_weights(labels, len(data.classes))
    weights = by_class[labels] if config.sampling == "balanced" else None
    plan = Plan.of(config, len(train_indices), data.image_shape)
    model = build_network(config, data, train_indices)
    finite = [name for name, tensor in named_tensors(model).items() if tensor.isfinite().all()]
    model.to(device=device)
    use_channels_last(model)
    own_batch = ranks.num_own(config.batch_size)
    chosen = ranks.first(lambda: chosen_by(run, model, plan, own_batch, dtype))
    wrapped = ranks.wrap(
        model, synchronize_batchnorm=config.sync_bn, passes_over=is_place(config.model)
    )
    network = compiled(with_kernels(wrapped, chosen.kernels), device, on=chosen.compile)
    state = build_state(config, data, model, plan, dtype, ranks)
    mean, std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
    batches = Batches(
        train_indices, augmentation_of(config), mean, std, dtype, state.selection, ranks,
        build_transform(config), weights, config.mixup, config.cutmix,
        draws_apart=bool(config.places().keys() - {"recipe"}),
    )  # fmt: skip
    criterion = build_loss(
        config, data, device, by_class if config.class_weights == "balanced" else None
    )
    return Job(
        run, data, ranks, device, dtype, plan, val, state, batches, network, criterion, finite
    )


def build_state(
    config: RunConfig,
    data: DataSplits,
    model: nn.Module,
    plan: Plan,
    dtype: torch.dtype,
    ranks: Ranks,
) -> State:
    """Return what the steps of a run change, before the first of them."""
    optimizer = optimizer_of(config, model.parameters(), dtype)
    device = ranks.device(config.device)
    return State(
        model, optimizer, schedule_of(config, optimizer, plan), build_average(model, config.ema),
        build_selection(config.hard_share, len(data.train), device, ranks),
    )  # fmt: skip


def build_network(config: RunConfig, data: DataSplits, train_indices: Tensor) -> nn.Module:
    """Build a config's network with the weights that training starts from.

    Raises:
        ValueError: it cannot be prepared from images, or `init` does not fit.
    """
    seed = derive_seed(config.seed)
    if is_place(config.model):
        seed_draws(seed)
    else:
        torch.manual_seed(seed)
    model = build_model(config.model, len(data.classes), data.image_shape, config.budget)
    if prepare := preparation(model):
        some = data.train.images[train_indices[spread_over(len(train_indices), PREPARATION_IMAGES)]]
        try:
            prepare(normalize(some, torch.tensor(data.mean), torch.tensor(data.std)))
        except Exception as error:  # of a network that is a user's own it may be anything
            told = with_kind(error)
            raise ValueError(f"{type(model).__name__}.prepare failed: {told}") from None
    if config.init:
        load_initial_weights(model, config, data)
    return model


def optimizer_of(
    config: RunConfig, parameters: Iterable[Tensor], dtype: torch.dtype, *, stacked: bool = False
) -> torch.optim.Optimizer:
    """Build the config's optimizer."""
    if is_place(config.optimizer):
        return build_own_optimizer(config, decay_groups(parameters, config.weight_decay))
    return build_optimizer(
        parameters, config.optimizer, lr=config.lr, betas=(config.beta1, config.beta2),
        momentum=config.momentum, weight_decay=config.weight_decay,
        head_lr=config.head_lr, dtype=dtype, stacked=stacked,
    )  # fmt: skip


def schedule_of(config: RunConfig, optimizer: torch.optim.Optimizer, plan: Plan) -> Schedule:
    """Build the config's schedule for an optimizer."""
    each = config.schedule == "exponential"
    epochs = range(1, config.epochs) if each else config.milestones
    return build_schedule(
        optimizer, config.schedule, total_steps=plan.num_steps,
        milestones=[plan.steps_before(epoch) for epoch in epochs],
        drop=config.lr_drop, patience=config.patience, warmup=config.warmup,
    )  # fmt: skip
