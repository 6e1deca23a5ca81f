"""int8 that loses nothing: weights trained on behind the rounding that the device will do.

Each pass over a batch computes the bytes of the oracle itself. Their gradient is that of the float
operation on the same bytes, and zero where a value left its range (straight-through: Bengio et al.
2013, arXiv 1308.3432). What is learned is to give the logits of the network in float32, so no label
is needed and nothing is learned but what rounding had changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from halfmeg.networks.graph import Conv, Graph, Node
from halfmeg.networks.simplify import Step, steps
from halfmeg.shipping.integer import IntegerGraph, compute
from halfmeg.shipping.operations import PIXELS, Convolution, Operation, UInt8
from halfmeg.shipping.proof import loses
from halfmeg.shipping.quantize import Ranges, quantize_graph, quantize_steps

BATCH_SIZE = 50
MAX_EPOCHS = 3
ALLOWED_LOSS = 0.002
"""Accuracy that int8 may lose against float32 on validation images, as a share."""

WEIGHT_LR = 0.02
"""In steps of int8, of which the largest weight of a channel has 127."""
BIAS_LR = 0.01
"""In steps of the result."""
LOGIT_STEP = 0.05
"""What counts as a step of the logits, which are not rounded."""


@dataclass(frozen=True)
class Finetuning:
    """What fine-tuning did.

    Attributes:
        epochs: passes over the training images; 0 where int8 lost no more than allowed before.
        losses: accuracy lost on the validation images, as a share: before, and after each epoch.
        kept: which of them is kept, the smallest.
        images: number of training images.
    """

    epochs: int
    losses: tuple[float, ...]
    kept: int
    images: int

    @property
    def reached(self) -> bool:
        """Whether no more than `ALLOWED_LOSS` is lost."""
        return self.losses[self.kept] <= ALLOWED_LOSS

    def __str__(self) -> str:
        """Say it in a line."""
        without = f"int8 {loses(self.losses[0])} without fine-tuning"
        if not self.epochs:
            return f"{without}; none was needed"
        line = (
            f"{without}, and {loses(self.losses[self.kept])} after {self.kept} of "
            f"{self.epochs} epochs on {self.images:,} training images"
        )
        return line if self.reached else f"{line}: more than {100 * ALLOWED_LOSS:g} are left"


def finetune(
    graph: Graph,
    ranges: Ranges,
    images: Tensor,
    loss_of: Callable[[IntegerGraph], float],
    *,
    seed: int = 0,
    max_epochs: int = MAX_EPOCHS,
) -> tuple[IntegerGraph, Finetuning]:
    """Return a graph of integers that loses as little as can be, and what it took.

    Args:
        graph: simplified; its convolutions then hold what was learned last.
        ranges: of its maps, as `measure_ranges` gives them.
        images: uint8 B×C×H×W to train on.
        loss_of: accuracy that integers lose on validation images, as a share.
        seed: of the order of the images.
        max_epochs: after which it ends in any case.
    """
    trainer = _Trainer(graph, ranges)
    targets: Tensor | None = None
    best = quantize_graph(graph, ranges)
    losses, kept = [loss_of(best)], 0
    schedule = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: max(0.0, 1 - step * BATCH_SIZE / (max_epochs * len(images))),
    )
    while losses[kept] > ALLOWED_LOSS and len(losses) <= max_epochs:
        if targets is None:
            targets = _float_logits(graph, images)
        generator = torch.Generator().manual_seed(seed * 1_000 + len(losses))
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            trainer.learn(images[chosen], targets[chosen])
            schedule.step()
        candidate = trainer.integers()
        losses.append(loss_of(candidate))
        if losses[-1] < losses[kept]:
            best, kept = candidate, len(losses) - 1
    return best, Finetuning(len(losses) - 1, tuple(losses), kept, len(images))


def _float_logits(graph: Graph, images: Tensor) -> Tensor:
    with torch.inference_mode():
        parts = [graph.logits(part.float()) for part in images.split(BATCH_SIZE)]  # type: ignore[no-untyped-call]
    return torch.cat(parts).clone()


class _Trainer:
    """Weights and biases of all convolutions as parameters, in steps of their integers.

    A network's float32 weights differ by orders of magnitude from layer to layer; in steps of the
    integers one rate fits all.
    """

    def __init__(self, graph: Graph, ranges: Ranges) -> None:
        self.graph, self.ranges = graph, ranges
        self.passes = steps(graph)
        self.weights: dict[str, Tensor] = {}  # a block that is used twice has them once
        self.biases: dict[Conv, Tensor] = {}
        self.units: dict[str | Conv, Tensor] = {}
        operations = quantize_steps(self.passes, graph.input, ranges)
        scales = [PIXELS.scale] + [op.quantization.scale for op in operations if op.quantization]
        for step, operation in zip(self.passes, operations, strict=True):
            node = step.node
            if not isinstance(node, Conv):
                continue
            assert isinstance(operation, Convolution)
            if node.weight_key not in self.weights:
                unit = _tensor(operation.weight_scale).view(-1, 1, 1, 1)
                self.units[node.weight_key] = unit
                self.weights[node.weight_key] = (_tensor(node.weight) / unit).requires_grad_()
            sums = scales[operation.inputs[0]] * operation.weight_scale
            if operation.quantization is None:  # logits, of which no step is known
                sums = LOGIT_STEP * operation.scale
            self.units[node] = _tensor(sums / operation.scale)
            self.biases[node] = (_tensor(node.bias) / self.units[node]).requires_grad_()
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.weights.values()), "lr": WEIGHT_LR},
                {"params": list(self.biases.values()), "lr": BIAS_LR},
            ]
        )

    def learn(self, images: Tensor, targets: Tensor) -> None:
        """Take a step towards logits of a batch."""
        operations = self._operations()
        logits = self._logits(images, operations)
        self.optimizer.zero_grad()
        (logits - targets).square().mean().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def integers(self) -> IntegerGraph:
        """Return the network as it is now."""
        self._write()
        return quantize_graph(self.graph, self.ranges)

    def _write(self) -> None:
        """Give the graph's convolutions the parameters."""
        for node, bias in self.biases.items():
            weight = self.weights[node.weight_key] * self.units[node.weight_key]
            node.weight = weight.detach().double().numpy()
            node.bias = (bias * self.units[node]).detach().double().numpy()

    def _operations(self) -> tuple[Operation, ...]:
        self._write()
        return quantize_steps(self.passes, self.graph.input, self.ranges)

    def _logits(self, images: Tensor, operations: tuple[Operation, ...]) -> Tensor:
        """Return the oracle's logits, with the gradient of the float operations."""
        pixels = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
        exact: list[UInt8] = [pixels]
        maps: dict[Node, Tensor] = {self.graph.input: images.float()}
        for step, operation in zip(self.passes, operations, strict=True):
            found = compute(operation, [exact[source] for source in operation.inputs])
            exact.append(found)
            values = self._float(step, operation, [maps[source] for source in step.inputs])
            result = torch.from_numpy(found).movedim(-1, 1).float()
            meaning = operation.quantization
            if meaning is not None:
                low = -meaning.zero_point * float(meaning.scale)
                values = values.clamp(low, low + 255 * float(meaning.scale))
                result = (result - meaning.zero_point) * float(meaning.scale)
            maps[step.result] = values + (result - values).detach()
        return maps[step.result].flatten(1)

    def _float(self, step: Step, operation: Operation, maps: list[Tensor]) -> Tensor:
        """Return what a step computes in float32, with the weights rounded to int8."""
        node = step.node
        if isinstance(node, Conv):
            assert isinstance(operation, Convolution)
            unit = self.units[node.weight_key]
            weight = self.weights[node.weight_key] * unit
            rounded = _tensor(operation.weight * operation.weight_scale[:, None, None, None])
            weight = weight + (rounded - weight).detach()
            values = node.convolve(maps[0], weight, self.biases[node] * self.units[node])
        else:
            values = node.compute(*maps)
        for follower in (step.clamp, step.function, step.pool):
            values = values if follower is None else follower.compute(values)
        return values


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
