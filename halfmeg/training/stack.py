"""Several runs at once in one process: one network from several seeds, its weights stacked.

A network of half a million parameters leaves a large GPU idle, and each of its many small operators
has to be started. Here each operator is started once for all seeds: the parameters of all of them
stand in one tensor with a first dimension more, and `torch.func.vmap` runs the layers over it
(convolutions become grouped ones). Every seed keeps its own order, draws, gradients, averaged
weights and run folder: it is trained as `fit` would, within rounding and but for the masks of
dropout, and its checkpoints are those of an ordinary run. On a processor nothing is idle, and this
is slower than one run after another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.mix import Mixture
from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.data.split import hold_out
from halfmeg.networks.convolutions import Convolution
from halfmeg.networks.own import build_own
from halfmeg.places.draws import kept_draws
from halfmeg.places.load import describe
from halfmeg.places.place import is_place
from halfmeg.training.batches import Batch
from halfmeg.training.compiling import compiled
from halfmeg.training.distributed import Ranks
from halfmeg.training.fit import open_to_resume
from halfmeg.training.initial import inherited_by
from halfmeg.training.job import Job, check, optimizer_of, schedule_of, set_up
from halfmeg.training.listen import Listener
from halfmeg.training.loop import train_epoch
from halfmeg.training.loss import MixedLoss, WeighedLoss
from halfmeg.training.optim import LastWeights
from halfmeg.training.outcome import end_epoch, finish
from halfmeg.training.plan import Epoch
from halfmeg.training.process import kept_process, prepare_process
from halfmeg.training.selection import AllImages
from halfmeg.training.state import Position, State
from halfmeg.training.stopping import (
    TrainingDivergedError,
    TrainingInterruptedError,
    how_it_diverged,
    stop_signals,
)

Tensors = dict[str, Tensor]
TRIAL_BATCH = 7
COUNT = "step"
"""The steps done, the same for all networks; whatever else is kept of a parameter has its shape."""


def check_stack(configs: Sequence[RunConfig], data: DataSplits) -> None:
    """Raise where runs cannot be trained at once.

    Raises:
        ValueError: they differ in more than their seed or in the number of their training images,
            or each would need a step of its own.
    """
    first = configs[0]
    if any(replace(config, seed=first.seed) != first for config in configs):
        raise ValueError("runs trained as a stack may differ in their seed only")
    if first.schedule == "plateau":
        raise ValueError("schedule=plateau differs from seed to seed; it takes no stack")
    alone = {
        "loss": bool(first.loss), "optimizer": is_place(first.optimizer),
        "kernels": first.kernels == "auto", "compile": first.compile == "auto",
        "teacher": bool(first.teacher),
    }  # fmt: skip
    for name, is_set in alone.items():
        if is_set:
            raise ValueError(f"{name}={getattr(first, name)} takes no stack; leave one of them out")
    sizes = sorted({len(hold_out(data, c.val_fraction, c.seed)[0]) for c in configs})
    if len(sizes) > 1:
        raise ValueError(
            f"the seeds train on {sizes[0]:,} to {sizes[-1]:,} images, since a validation part "
            "takes groups and copies whole; train them without a stack"
        )


def _try_stack(place: str, num_classes: int, image_size: ImageSize, budget: int) -> None:
    """Try whether several networks of a place can be trained at once, by `torch.func.vmap`.

    Raises:
        ValueError: they cannot.
    """
    with kept_draws():
        models = [build_own(place, num_classes, image_size, budget).train() for _ in range(2)]
        state = torch.func.stack_module_state(models)
        images = torch.zeros(2, TRIAL_BATCH, *image_shape(image_size))

        def of_one(parameters: Any, buffers: Any, batch: Tensor) -> Any:
            return torch.func.functional_call(models[0], (parameters, buffers), (batch,))

        try:
            torch.func.vmap(of_one, randomness="different")(*state, images)
        except Exception as error:  # whatever a user's code or vmap raises
            raise ValueError(
                f"{place} takes no stack, leave it out: {describe(error, place)}"
            ) from None
        buffers = dict(models[0].named_buffers())
        with torch.no_grad():
            models[0](images[0])
        for name, buffer in models[0].named_buffers():
            if buffer is not buffers.get(name):  # a new one is lost behind each step
                raise ValueError(
                    f"{place} takes no stack, leave it out: it assigns {name} anew; change it in "
                    f"place, as by self.{name}.copy_(...)"
                )


@kept_process()
def train_stack(
    tasks: Sequence[tuple[RunConfig, Path]], data: DataSplits, listener: Listener | None = None
) -> list[str | None]:
    """Train or continue runs that differ in their seed only, all of them at once.

    Args:
        tasks: a config and a folder for each run. Folders that exist are continued, and have to
            stand at the same step, as those of an interrupted stack do.
        data: what all of them are trained on.
        listener: is told how the first of them goes.

    Returns:
        For each run the error that ended it, None where it was trained.

    Raises:
        ValueError: the runs do not fit together, or one is finished already.
        TrainingInterruptedError: Ctrl-C or SIGTERM; each run wrote a checkpoint.
    """
    config, listener = tasks[0][0], listener or Listener()
    check(config, data)
    check_stack([config for config, _ in tasks], data)
    if is_place(config.model):
        _try_stack(config.model, len(data.classes), data.image_shape, config.budget)
    prepare_process(config.threads)
    inherited = inherited_by(config, data)
    jobs, positions, damaged = [], [], []
    for task, folder in tasks:
        if folder.exists():
            run, checkpoint, passed_over = open_to_resume(folder, data)
            if run.result() is not None:
                raise ValueError(f"{folder} is finished already; leave it out of the stack")
            damaged += passed_over
        else:
            run, checkpoint = Run.create(folder, task, data, inherited=inherited), None
        job = set_up(run, data, Ranks())
        jobs.append(job)
        positions.append(job.load(checkpoint))
    if len({(at.epoch, at.step) for at in positions}) > 1:
        raise ValueError("the runs of the stack stand at different steps; continue them one by one")
    stack = Stack(jobs)
    failures: list[str | None] = [None] * len(jobs)
    listener.on_start(stack.run, damaged)
    with stop_signals(stack.ranks) as stop:
        while positions[0].epoch < config.epochs:
            with suppress(TrainingDivergedError):  # all of them; each is told of below
                train_epoch(stack, positions, listener, stop)
            stack.give_states()
            for index, (job, at) in enumerate(zip(jobs, positions, strict=True)):
                if failures[index] is None and math.isfinite(at.loss_sum):
                    positions[index] = end_epoch(job, at)
                else:  # the others go on, and so does the count of its epochs
                    failures[index] = failures[index] or how_it_diverged(job.run, at)
                    positions[index] = Position(epoch=at.epoch + 1)
            if all(failures):
                return failures
            listener.on_epoch(next(at for at in positions if at.metrics).metrics[-1])
            if stop.poll() and positions[0].epoch < config.epochs:
                raise TrainingInterruptedError(stack.advice, stop.requested)
    for index, (job, at) in enumerate(zip(jobs, positions, strict=True)):
        if failures[index] is None:
            try:
                finish(job, at)
            except TrainingDivergedError as error:  # in its last step
                failures[index] = str(error)
    return failures


@final
class Stack:
    """The networks of several jobs as one: S networks of the same kind, and one optimizer for all.

    The jobs' own networks become views of the stacked tensors, so whatever trains the stack trains
    them, and what averages, evaluates or stores a job's network needs to know of nothing.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        first = jobs[0]
        self.jobs = jobs
        self.run, self.plan, self.ranks, self.device = (
            first.run, first.plan, first.ranks, first.device
        )  # fmt: skip
        self.dtype = first.dtype
        config = first.run.config
        for job in jobs:
            job.runs_at_once = len(jobs)
        # the layers, to hold all networks' tensors
        self.network = copy.deepcopy(first.state.model)
        for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
            stacked = _share([dict(kind(job.state.model)) for job in jobs])
            for name, tensor in kind(self.network):
                tensor.data = stacked[name]
        self.parameters: Tensors = dict(self.network.named_parameters())
        self.buffers: Tensors = dict(self.network.named_buffers())
        optimizer = optimizer_of(config, self.parameters.values(), self.dtype, stacked=True)
        # each job averages its own weights, and selects its own images
        self.state = State(
            self.network, optimizer, schedule_of(config, optimizer, self.plan),
            LastWeights(), AllImages(),
        )  # fmt: skip
        self._take_states()
        self.forward = compiled(self._forward, self.device, on=config.compile is True)

    @property
    def advice(self) -> str:
        """What to do when it was stopped."""
        return "the same command continues it"

    def draw(self, epoch: Epoch, first: int) -> Iterator[Batch]:
        """Yield each network's own batches as one, S×B×C×H×W."""
        train = self.jobs[0].train  # the same for all
        draws = [job.batches.draw(train, job.plan.epochs[epoch.number], first) for job in self.jobs]
        for drawn in zip(*draws, strict=True):
            mixtures = [batch.mixture for batch in drawn if batch.mixture]
            yield Batch(
                torch.stack([batch.images for batch in drawn]),
                torch.stack([batch.labels for batch in drawn]),
                torch.stack([batch.indices for batch in drawn]),
                Mixture(*map(torch.stack, zip(*mixtures, strict=True))) if mixtures else None,
            )

    def _forward(self, images: Tensor) -> Tensor:
        """Map normalized images S×B×C×H×W, each network's own, to logits S×B×num_classes."""

        def of_one(parameters: Tensors, buffers: Tensors, batch: Tensor) -> Any:
            return torch.func.functional_call(self.network, (parameters, buffers), (batch,))

        with _Products(self.dtype):
            logits: Tensor = torch.func.vmap(of_one, randomness="different")(
                self.parameters, self.buffers, images
            )
        return logits

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of each network's batch, S values."""
        of_own = self._loss_of(logits, batch.labels)
        if batch.mixture is None:
            return of_own
        return batch.mixture.expect(of_own, self._loss_of(logits, batch.mixture.labels))

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(),
            reduction="none", label_smoothing=self.run.config.label_smoothing,
        ).view(labels.shape)  # fmt: skip
        criteria = [job.criterion for job in self.jobs]
        of_labels = [c.of_labels if isinstance(c, MixedLoss) else c for c in criteria]
        weights = [loss.weights for loss in of_labels if isinstance(loss, WeighedLoss)]
        if weights:
            losses = losses * torch.stack(weights).gather(1, labels)
        return losses.mean(1)

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Let each job take in its own weights and losses."""
        parts = zip(batch.images, batch.labels, batch.indices, strict=True)
        for job, part, own in zip(self.jobs, parts, logits, strict=True):
            job.after_step(Batch(*part), own)

    def save(self, positions: Sequence[Position]) -> None:
        """Write a checkpoint of each network; one that diverged keeps its last good one."""
        self.give_states()
        for job, at in zip(self.jobs, positions, strict=True):
            if math.isfinite(at.loss_sum):
                job.save([at])

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.state.optimizer, *(job.state.optimizer for job in self.jobs)]

    def _pairs(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Return each trained parameter of the stack with those of the jobs that view it."""
        flat = [
            [p for group in o.param_groups for p in group["params"]] for o in self._optimizers()
        ]
        return [(stacked, list(own)) for stacked, *own in zip(*flat, strict=True)]

    def _take_states(self) -> None:
        """Start from the states of the jobs' optimizers, where they come from checkpoints."""
        together, *single = (optimizer.state for optimizer in self._optimizers())
        for stacked, own in self._pairs():
            states = [state[p] for state, p in zip(single, own, strict=True)]
            for key, value in states[0].items():
                same = key == COUNT
                merged = value if same else torch.stack([state[key] for state in states])
                together[stacked][key] = merged.clone()

    def give_states(self) -> None:
        """Give the jobs' optimizers their parts of the stack's, for checkpoints and metrics."""
        together, *single = self._optimizers()
        for stacked, own in self._pairs():
            for index, (optimizer, parameter) in enumerate(zip(single, own, strict=True)):
                optimizer.state[parameter] = {
                    key: value if key == COUNT else value[index].clone()
                    for key, value in together.state[stacked].items()
                }
        for optimizer in single:
            for group, own_group in zip(together.param_groups, optimizer.param_groups, strict=True):
                own_group["lr"] = group["lr"]


_OF_MATRICES = (
    F.conv2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__,
    torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm, torch.einsum,
    F.scaled_dot_product_attention,
)  # fmt: skip


class _Products(TorchFunctionMode):
    """Convolutions and products of matrices in `dtype`, BatchNorm in float32.

    That is what autocast does, which does not reach through vmap (torch 2.13). The networks'
    convolutions become one with a group for each, so dilated ones stay in float32 on a processor
    (`Convolution.has_wrong_gradient`).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.conv2d and _stays_in_float32(*args, **(kwargs or {})):
            args = tuple(a.float() if isinstance(a, Tensor) else a for a in args)
        elif func in _OF_MATRICES:
            args = tuple(map(self._cast, args))
            kwargs = {key: self._cast(value) for key, value in (kwargs or {}).items()}
        elif func is F.batch_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))

    def _cast(self, value: Any) -> Any:
        casts = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.dtype) if casts and value.dtype != torch.float64 else value


def _stays_in_float32(input: Tensor, *args: Any, **kwargs: Any) -> bool:
    layer = Convolution.of(input, *args, **kwargs)
    return input.device.type == "cpu" and layer is not None and layer.dilation != (1, 1)


def _share(tensors: Sequence[Tensors]) -> Tensors:
    """Stack tensors of the same name, and make each of them a view of its part of the stack."""
    stacked = {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}
    for index, own in enumerate(tensors):
        for name, tensor in own.items():
            tensor.data = stacked[name][index]
    return stacked
