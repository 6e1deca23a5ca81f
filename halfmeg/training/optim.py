"""Optimizers, learning-rate schedules in steps, and the average of the weights."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from halfmeg.artifacts.weights import named_tensors
from halfmeg.config import OptimizerName, ScheduleName
from halfmeg.training.stateful import Stateful, Stateless


def decay_groups(
    parameters: Iterable[Tensor], weight_decay: float, *, stacked: bool = False
) -> list[dict[str, Any]]:
    """Return the parameters that take a gradient in two groups: those that decay, and the rest.

    Weight decay acts on the weights of convolutions and linear layers; biases, normalization and
    other vectors, such as a scale of 1×C×1×1, are left out of it.
    """
    trained = [p for p in parameters if p.requires_grad]
    decaying = {id(p) for p in trained if not _is_vector(p, stacked)}
    return [
        {"params": [p for p in trained if id(p) in decaying], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in decaying], "weight_decay": 0.0},
    ]


def _is_vector(parameter: Tensor, stacked: bool) -> bool:
    """Return whether a network's parameter has at most one dimension that is not 1."""
    return sum(size > 1 for size in parameter.shape[int(stacked) :]) <= 1


def build_optimizer(
    parameters: Iterable[Tensor],
    name: OptimizerName,
    *,
    lr: float,
    betas: tuple[float, float],
    momentum: float,
    weight_decay: float,
    head_lr: float = 1.0,
    dtype: torch.dtype = torch.float32,
    stacked: bool = False,
) -> torch.optim.Optimizer:
    """Build a fused optimizer for those parameters that take a gradient.

    Weight decay acts on the weights of convolutions and linear layers; biases and normalization
    are left out of it, as is the custom since Goyal et al. 2017, section 5.3. For `adam` it is
    added to the gradient, for `adamw` decoupled from it; `sgd` uses Nesterov's momentum. `muon`
    is `Muon` for the weights of convolutions, with products in `dtype`, and `sgd` for the rest, at
    `head_lr` times the rate in linear layers. With `stacked`, each parameter holds those of several
    networks along its first dimension, and each network is trained as it would be alone.
    """
    groups = decay_groups(parameters, weight_decay, stacked=stacked)
    if name == "muon":
        return Muon(groups, lr=lr, momentum=momentum, head_lr=head_lr, dtype=dtype, stacked=stacked)
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr, momentum, nesterov=momentum > 0, fused=True)
        if momentum:  # torch's fused step takes all momenta or none: a layer may be passed over
            for weight in (p for group in groups for p in group["params"]):
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr, betas, fused=True)


@final
class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for the weights of convolutions.

    A weight is seen as a matrix of out_channels × (in_channels · kernel²). The step is the nearest
    (semi-)orthogonal matrix to its Nesterov momentum times `lr`, and the weight's norm is set to
    the root of out_channels before it, so `lr` is the relative change of a step. Source: Jordan et
    al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the fixed norm is from the
    same author's CIFAR-10 speed runs. So where no BatchNorm follows, weights that another optimizer
    trained are rescaled by the first step. All other parameters take a Nesterov step of `lr`, the
    weights of linear layers one of `head_lr` times that.

    torch's own `Muon` is for matrices only and always computes in bfloat16, which processors
    without it emulate hundreds of times slower. Here `dtype` says in what the step is made
    orthogonal.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        head_lr: float,
        dtype: torch.dtype,
        stacked: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self.head_lr = head_lr
        self.dtype = dtype
        self.stacked = stacked

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Do one step."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                grad, ndim = weight.grad, weight.ndim - self.stacked
                if grad is None:  # of a layer that this step passed over
                    continue
                is_filter = ndim == 4 and not _is_vector(weight, self.stacked)
                if not is_filter:
                    grad = grad.add(weight, alpha=group["weight_decay"])
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(grad))
                buffer.mul_(momentum).add_(grad)
                grad = grad.add(buffer, alpha=momentum)
                if is_filter:
                    norm = torch.linalg.vector_norm(weight, dim=(-4, -3, -2, -1), keepdim=True)
                    weight.mul_(weight.shape[-4] ** 0.5 / norm.clamp_min(1e-12))  # 0 stays 0
                    grad = orthogonalize(grad.flatten(-3), self.dtype).view(grad.shape)
                weight.add_(grad, alpha=-lr * (self.head_lr if ndim == 2 else 1))


NAMED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, Muon)
"""What `build_optimizer` returns: all they keep of a parameter has its shape, or is a number."""


def orthogonalize(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a float32 m×n matrix near the (semi-)orthogonal one nearest to `matrix`.

    Of a stack of matrices s×m×n, each is treated so.

    Five Newton-Schulz steps, in `dtype`, with the coefficients of Jordan et al. 2024, which bring
    the singular values to between 0.7 and 1.2 and not exactly to 1.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    addmm = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(5):
        gram = x @ x.mT
        polynomial = addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = addmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).float()


Tensors = tuple[Tensor, ...] | list[Tensor]


class Schedule(Stateful, Protocol):
    """Sets the learning rate of an optimizer: before each step, and after each epoch."""

    def set_step(self, step: int) -> None:
        """Set the rate of step `step`, counted from 0 over the whole run."""

    def end_epoch(self, loss: float | None) -> None:
        """Take in the monitored loss of an epoch; None where nothing was measured."""


@final
class FactorSchedule(Stateless):
    """The rate of each group times a factor that depends on the step alone; it keeps no state.

    The rates are those of the optimizer as it was built, before a checkpoint is loaded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.factor = factor

    def set_step(self, step: int) -> None:
        """Set the rate of a step."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(step)

    def end_epoch(self, loss: float | None) -> None:
        """Do nothing."""


@final
class PlateauSchedule:
    """Lowers the rate when the monitored loss stops falling: torch's ReduceLROnPlateau."""

    def __init__(self, optimizer: torch.optim.Optimizer, drop: float, patience: int) -> None:
        self.inner = ReduceLROnPlateau(optimizer, factor=drop, patience=patience)

    def set_step(self, step: int) -> None:
        """Do nothing."""

    def end_epoch(self, loss: float | None) -> None:
        """Take in the monitored loss of an epoch; None where nothing was measured."""
        assert loss is not None, "RunConfig refuses plateau without a monitored loss"
        self.inner.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the plateau watch."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the plateau watch."""
        self.inner.load_state_dict(state)


def build_schedule(
    optimizer: torch.optim.Optimizer,
    name: ScheduleName,
    *,
    total_steps: int,
    milestones: Sequence[int],
    drop: float,
    patience: int,
    warmup: float,
) -> Schedule:
    """Build a schedule; `warmup` is a share of `total_steps`.

    `milestones` are steps in rising order: for `exponential` the first of each epoch but the first.
    """
    if name == "plateau":
        return PlateauSchedule(optimizer, drop, patience)
    factors: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "step": lambda step: step_factor(step, milestones, drop),
        "exponential": lambda step: step_factor(step, milestones, drop),
        "cosine": lambda step: cosine_factor(step, total_steps, total_steps // 10),
        "onecycle": lambda step: onecycle_factor(step, total_steps, warmup),
    }
    return FactorSchedule(optimizer, factors[name])


def step_factor(step: int, milestones: Sequence[int], drop: float) -> float:
    """Return `drop` to the power of the number of milestones reached."""
    return float(drop ** bisect_right(milestones, step))


def cosine_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Rise linearly for `warmup_steps`, then fall to 0 along half a cosine.

    Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def onecycle_factor(step: int, total_steps: int, warmup: float) -> float:
    """Rise linearly from 1/25 to 1, then fall linearly to 1/250,000.

    The factor of torch's OneCycleLR with linear annealing; source: Smith and Topin 2018,
    "Super-Convergence".
    """
    first, last = 1 / 25, 1 / 25 / 10_000
    peak = max(1e-9, warmup * total_steps - 1)
    if step <= peak:
        return first + (1 - first) * step / peak
    return 1 + (last - 1) * (step - peak) / max(1e-9, total_steps - 1 - peak)


class WeightAverage(Stateful, Protocol):
    """The weights that are evaluated and stored."""

    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the network to evaluate."""


@final
class LastWeights(Stateless):
    """No average: the network itself is evaluated."""

    def update(self, model: nn.Module) -> None:
        """Do nothing."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the network itself."""
        return model


@final
class ExponentialAverage:
    """Exponential moving average of weights and buffers (Polyak and Juditsky 1992).

    The decay of step n is at most (1 + n) / (10 + n), so that the random first weights are
    forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def average(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
            n = int(updates)
            weight = 1 - min(decay, (1 + n) / (10 + n))
            if averaged[0].is_floating_point() or averaged[0].is_complex():
                torch._foreach_lerp_(averaged, current, weight)
            else:  # the batch counters of BatchNorm
                torch._foreach_copy_(averaged, current)

        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        own, current = named_tensors(self.averaged.module), named_tensors(model)
        self.infinite = [  # such as a mask of -inf, which averaged with itself is NaN
            (own[name], tensor) for name, tensor in current.items() if not tensor.isfinite().all()
        ]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.averaged.update_parameters(model)
        for averaged, current in self.infinite:
            averaged.copy_(current)

    def evaluated(self, model: nn.Module) -> nn.Module:
        """Return the averaged network."""
        return self.averaged.module

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and their count."""
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averaged weights and their count."""
        self.averaged.load_state_dict(state)


def build_average(model: nn.Module, decay: float) -> WeightAverage:
    """Return the exponential average, or with decay 0 the network's own last weights."""
    return ExponentialAverage(model, decay) if decay else LastWeights()
