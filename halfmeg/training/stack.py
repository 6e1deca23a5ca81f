"""Several runs at once in one process: one network from several seeds, its weights stacked.

A network of half a million parameters leaves a large GPU idle, and each of its many small operators
has to be started. Here each operator is started once for all seeds: the parameters of all of them
stand in one tensor with a first dimension more, and `torch.func.vmap` runs the layers over it
(convolutions become grouped ones). Every seed keeps its own order, draws, gradients, averaged
weights and run folder: it is trained as `fit` would, within rounding, and its checkpoints are those
of an ordinary run. On a processor nothing is idle, and this is slower than one run after another.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
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
from halfmeg.training.distributed import Ranks
from halfmeg.training.fit import REPORT_SECONDS, end_epoch, finish, open_to_resume, report_step
from halfmeg.training.job import Job, Position, check
from halfmeg.training.listen import Listener, SilentListener
from halfmeg.training.process import keep_freed_memory
from halfmeg.training.stopping import Stop, TrainingInterruptedError, stop_signals

Tensors = dict[str, Tensor]


def check_stack(configs: Sequence[RunConfig]) -> None:
    """Raise where runs cannot be trained at once.

    Raises:
        ValueError: they differ in more than their seed, or each would need a step of its own.
    """
    first = configs[0]
    if any(replace(config, seed=first.seed) != first for config in configs):
        raise ValueError("runs trained as a stack may differ in their seed only")
    if first.schedule == "plateau":
        raise ValueError("schedule=plateau differs from seed to seed; it takes no stack")
    if first.teacher:
        raise ValueError(f"teacher={first.teacher} takes no stack; leave one of them out")


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
    config, listener = tasks[0][0], listener or SilentListener()
    check_stack([config for config, _ in tasks])
    check(config, data)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    jobs, positions, damaged = [], [], []
    for task, folder in tasks:
        if folder.exists():
            run, checkpoint, passed_over = open_to_resume(folder, data)
            if run.result() is not None:
                raise ValueError(f"{folder} is finished already; leave it out of the stack")
            damaged += passed_over
        else:
            run, checkpoint = Run.create(folder, task, data), None
        job = Job(run, data, Ranks())
        jobs.append(job)
        positions.append(job.load(checkpoint) if checkpoint is not None else Position())
    if len({(at.epoch, at.step) for at in positions}) > 1:
        raise ValueError("the runs of the stack stand at different steps; continue them one by one")
    stack = Stack(jobs)
    failures: list[str | None] = [None] * len(jobs)
    listener.on_start(jobs[0].run, damaged)
    with stop_signals() as stop:
        while positions[0].epoch < config.epochs:
            _train_epoch(stack, positions, listener, stop)
            for index, (job, at) in enumerate(zip(jobs, positions, strict=True)):
                if failures[index] is None and math.isfinite(at.loss_sum):
                    positions[index] = end_epoch(job, at)
                else:  # the others go on, and so does the count of its epochs
                    failures[index] = failures[index] or (
                        f"the loss became {at.loss_sum} in epoch {at.epoch + 1}; "
                        f"try a smaller lr than {config.lr:g}"
                    )
                    positions[index] = Position(epoch=at.epoch + 1)
            if all(failures):
                return failures
            listener.on_epoch(next(at for at in positions if at.metrics).metrics[-1])
            if stop.requested and positions[0].epoch < config.epochs:
                raise TrainingInterruptedError("the same command continues it", stop.requested)
    for job, at, failure in zip(jobs, positions, failures, strict=True):
        if failure is None:
            finish(job, at)
    return failures


@final
class Stack:
    """The networks of several jobs as one: S networks of the same kind, and one optimizer for all.

    The jobs' own networks become views of the stacked tensors, so whatever trains the stack trains
    them, and what averages, evaluates or stores a job's network needs to know of nothing.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        for job in jobs:
            job.runs_at_once = len(jobs)
        self.network = copy.deepcopy(jobs[0].model)  # the layers, to hold all networks' tensors
        for kind in (nn.Module.named_parameters, nn.Module.named_buffers):
            stacked = _share([dict(kind(job.model)) for job in jobs])
            for name, tensor in kind(self.network):
                tensor.data = stacked[name]
        self.parameters: Tensors = dict(self.network.named_parameters())
        self.buffers: Tensors = dict(self.network.named_buffers())
        self.optimizer = jobs[0].build_optimizer(self.parameters.values(), stacked=True)
        self._take_states()
        self.forward = jobs[0].compiled(self._forward)

    def _forward(self, images: Tensor) -> Tensor:
        """Map normalized images S×B×3×H×W, each network's own, to logits S×B×num_classes."""

        def of_one(parameters: Tensors, buffers: Tensors, batch: Tensor) -> Any:
            return torch.func.functional_call(self.network, (parameters, buffers), (batch,))

        with _Products(self.jobs[0].dtype):
            logits: Tensor = torch.func.vmap(of_one, randomness="different")(
                self.parameters, self.buffers, images
            )
        return logits

    def set_step(self, step: int) -> None:
        """Set the learning rate of a step."""
        for job in self.jobs:
            job.schedule.set_step(step)
        for group, own in zip(
            self.optimizer.param_groups, self.jobs[0].optimizer.param_groups, strict=True
        ):
            group["lr"] = own["lr"]

    def _pairs(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Return each trained parameter of the stack with those of the jobs that view it."""
        optimizers = [self.optimizer, *(job.optimizer for job in self.jobs)]
        flat = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]
        return [(stacked, list(own)) for stacked, *own in zip(*flat, strict=True)]

    def _take_states(self) -> None:
        """Start from the states of the jobs' optimizers, where they come from checkpoints."""
        for stacked, own in self._pairs():
            states = [job.optimizer.state[p] for job, p in zip(self.jobs, own, strict=True)]
            for key, value in states[0].items():  # a scalar is the count of the steps
                together = torch.stack([state[key] for state in states]) if value.ndim else value
                self.optimizer.state[stacked][key] = together.clone()

    def give_states(self) -> None:
        """Give the jobs' optimizers their parts of the stack's state, for their checkpoints."""
        for stacked, own in self._pairs():
            for index, (job, parameter) in enumerate(zip(self.jobs, own, strict=True)):
                job.optimizer.state[parameter] = {
                    key: value[index].clone() if value.ndim else value
                    for key, value in self.optimizer.state[stacked].items()
                }


class _Products(TorchFunctionMode):
    """Convolutions and linear layers in `dtype`, BatchNorm in float32.

    That is what autocast does, which does not reach through vmap (torch 2.13).
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (F.conv2d, F.linear):
            args = tuple(a.to(self.dtype) if isinstance(a, Tensor) else a for a in args)
        elif func is F.batch_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _share(tensors: Sequence[Tensors]) -> Tensors:
    """Stack tensors of the same name, and make each of them a view of its part of the stack."""
    stacked = {name: torch.stack([own[name].detach() for own in tensors]) for name in tensors[0]}
    for index, own in enumerate(tensors):
        for name, tensor in own.items():
            tensor.data = stacked[name][index]
    return stacked


def _train_epoch(stack: Stack, positions: list[Position], listener: Listener, stop: Stop) -> None:
    """Do the rest of an epoch for every network, and move the positions along.

    Raises:
        TrainingInterruptedError: a signal came; checkpoints were written.
    """
    jobs, first = stack.jobs, stack.jobs[0]
    config, device = first.config, first.device
    images, labels = first.data.train.images.to(device), first.data.train.labels.to(device)
    steps = len(first.batches[positions[0].epoch])
    loss_sum = torch.tensor([at.loss_sum for at in positions], dtype=torch.float64, device=device)
    num_right = torch.tensor([at.num_right for at in positions], device=device)
    seconds_before = positions[0].epoch_seconds
    reported = started = time.perf_counter()
    draws = [job.draw_batches(replace(at), images) for job, at in zip(jobs, positions, strict=True)]
    for drawn in zip(*draws, strict=True):
        stack.set_step(first.first_steps[positions[0].epoch] + positions[0].step)
        batch = torch.stack([batch for batch, _ in drawn])  # S×B×3×H×W
        chosen = torch.stack([indices for _, indices in drawn])
        targets = labels[chosen]  # S×B
        logits = stack.forward(batch)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(),
            reduction="none", label_smoothing=config.label_smoothing,
        ).view(targets.shape).mean(1)  # fmt: skip
        stack.optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        stack.optimizer.step()
        for job, indices, own, truth in zip(jobs, chosen, logits.detach(), targets, strict=True):
            job.average.update(job.model)
            if job.hard:
                job.hard.record(indices, own, truth)

        num_images = targets.shape[1]
        loss_sum += losses.detach().double() * num_images
        num_right += (logits.argmax(2) == targets).sum(1)
        for at in positions:
            at.step += 1
            at.num_seen += num_images
        now, done = time.perf_counter(), positions[0].step == steps
        if now - reported > REPORT_SECONDS or done or stop.requested:
            reported = now
            for at, loss, right in zip(  # waits for the device
                positions, loss_sum.tolist(), num_right.tolist(), strict=True
            ):
                at.loss_sum, at.num_right = loss, right
                at.epoch_seconds = seconds_before + time.perf_counter() - started
            listener.on_step(report_step(first, positions[0]))
        if done or stop.requested:
            stack.give_states()
        if stop.requested and not done:
            for job, at in zip(jobs, positions, strict=True):
                if math.isfinite(at.loss_sum):  # a seed that diverged keeps its last good one
                    job.save(at)
            raise TrainingInterruptedError("the same command continues it", stop.requested)
