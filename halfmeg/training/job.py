"""A run set up: its data's parts, its network, and the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any, final

import torch
from torch import Tensor, nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.run import MetricsRow, Run
from halfmeg.artifacts.weights import OTHER_VERSION
from halfmeg.config import RunConfig
from halfmeg.data.augment import augment, normalize
from halfmeg.data.dataset import DataSplits, stratified_split
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.evaluation.precision import compute_dtype
from halfmeg.networks.protocol import preparation
from halfmeg.networks.table import MODELS, build_model
from halfmeg.training.distill import Teacher, open_teacher
from halfmeg.training.distributed import Ranks
from halfmeg.training.optim import build_average, build_optimizer, build_schedule
from halfmeg.training.plan import (
    augmentation_of,
    batch_bounds,
    derive_seed,
    epoch_order,
    images_in,
    mirrored_images,
    seed_step,
    training_size,
)
from halfmeg.training.selection import HardImages

PREPARATION_IMAGES = 5_000


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
        if prepare := preparation(model):
            some = data.train.images[self.train_indices[:PREPARATION_IMAGES]]
            prepare(normalize(some, torch.tensor(data.mean), torch.tensor(data.std)))
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
        order = epoch_order(self.train_indices, config.seed, at.epoch)
        mirrored = mirrored_images(len(images), config.seed, at.epoch) if config.alternate else None
        size = training_size(config, at.epoch)
        if self.hard:
            if at.step == 0:
                self.hard.start_epoch()
            order = self.hard.choose(order, self.image_counts[at.epoch])
        batches = self.batches[at.epoch]
        for step in range(at.step, len(batches)):
            generator = seed_step(config.seed, at.epoch, step)
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
