"""Tensors of a traced program as values of nodes, and the arithmetic of their shapes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.networks.graph import OUTSIDE, Array, Combine, Function, Node, Padding, Shape


@dataclass(frozen=True)
class Value:
    """A tensor of the traced program: values of one node, wherever they stand.

    Attributes:
        node: whose values they are.
        index: int64, of the tensor's shape with a batch of 1: places in the node's map, flattened.
    """

    node: Node
    index: Tensor

    def __post_init__(self) -> None:
        # so that any `view` of the program holds, which had strides of its own
        object.__setattr__(self, "index", self.index.contiguous())

    @property
    def is_whole(self) -> bool:
        """Whether each value of the node stands here once."""
        flat = self.index.flatten()
        return flat.numel() == math.prod(self.node.shape) and bool(
            torch.equal(flat.sort().values, torch.arange(flat.numel()))
        )


def whole(node: Node) -> Value:
    """Return the map of a node as a tensor B×C×H×W."""
    return Value(node, torch.arange(math.prod(node.shape)).view(1, *node.shape))


def function_of_one(first: Value, second: Value) -> Node | None:
    """Return the node that two tensors are both functions of, value by value, or None."""
    if first.index.shape != second.index.shape or not torch.equal(first.index, second.index):
        return None
    if (first.index == OUTSIDE).any():  # zeros behind the two functions, which make no 0 of 0
        return None
    others = _sources(second.node)
    return next((node for node in _sources(first.node) if node in others), None)


def _sources(node: Node) -> list[Node]:
    """Return a node and those before it of which it is a function, value by value."""
    found = [node]
    while isinstance(node, Function) or _is_scalar(node):
        (node,) = node.inputs
        found.append(node)
    return found


def _is_scalar(node: Node) -> bool:
    return (
        isinstance(node, Combine)
        and len(node.inputs) == 1
        and node.scales[0].size == node.shift.size == 1
        and node.shape == node.inputs[0].shape
    )


def as_function(node: Node, base: Node) -> Callable[[Tensor], Tensor]:
    """Return how a node is computed from one that it is a function of."""
    chain: list[Node] = []
    while node is not base:
        chain.append(node)
        (node,) = node.inputs

    def function(x: Tensor) -> Tensor:
        for step in reversed(chain):
            x = step.function(x) if isinstance(step, Function) else _scaled(step, x)
        return x

    return function


def _scaled(node: Node, x: Tensor) -> Tensor:
    assert isinstance(node, Combine)
    return x * float(node.scales[0].item()) + float(node.shift.item())


def array(tensor: Tensor) -> Array:
    """Return a tensor as float64."""
    return tensor.double().numpy()


def compact(values: Array, places: Array) -> Array:
    """Return C×H×W values as C×1×1 or 1×1×1 where they are one constant along the other axes.

    `places` says which one each value is: what the values are by chance does not count, so a
    network has the same shapes before and after training.
    """
    channels = places[:, :1, :1]
    if not np.array_equal(np.broadcast_to(channels, places.shape), places):
        return values
    return (
        values[:1, :1, :1].copy() if (channels == channels[0]).all() else values[:, :1, :1].copy()
    )


def order_of(index: Tensor, shape: Shape) -> str:
    """Return a name of the order in which a map's values meet a matrix; empty for a vector's own.

    In another order, or on a map with sides, the same matrix is stored as other weights.
    """
    if shape[1:] == (1, 1) and torch.equal(index, torch.arange(index.numel())):
        return ""
    return f" on {shape} {hashlib.sha256(index.numpy().tobytes()).hexdigest()}"


def pair(value: Any) -> tuple[int, int]:
    """Return a number or two as rows and columns."""
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def margins(places: Array, size: int) -> tuple[int, int] | None:
    """Return how many zeros stand before and after all places in order, or None if it is other."""
    before = int(np.argmax(places != OUTSIDE))
    after = len(places) - before - size
    plain = after >= 0 and np.array_equal(places[before:][:size], np.arange(size))
    outside = np.delete(places, slice(before, before + size))
    return (before, after) if plain and bool((outside == OUTSIDE).all()) else None


def pooled(
    shape: Shape, kernel: tuple[int, ...], stride: tuple[int, int], padding: Padding,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:  # fmt: skip
    """Return the height and width of what windows give."""
    sides = (shape[1] + padding[0] + padding[2], shape[2] + padding[1] + padding[3])
    rows, columns = (
        (side - step * (taps - 1) - 1) // by + 1
        for side, taps, by, step in zip(sides, kernel, stride, dilation, strict=True)
    )
    return rows, columns


def pool_padding(
    shape: Shape, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    ceil_mode: bool,
) -> Padding:  # fmt: skip
    """Return the padding on four sides; with `ceil_mode` more on two, for a last window."""
    after = list(padding)
    for axis in range(2 if ceil_mode else 0):
        side, around, by = shape[1 + axis], padding[axis], stride[axis]
        windows = math.ceil((side + 2 * around - kernel[axis]) / by) + 1
        if (windows - 1) * by >= side + around:  # it would hold nothing but padding
            windows -= 1
        after[axis] = max(around, (windows - 1) * by + kernel[axis] - side - around)
    return padding[0], padding[1], after[0], after[1]


def as_type(argument: Any, x: Tensor) -> Any:
    """Return a constant in the type of x; a tensor of one value keeps its one axis."""
    return argument.to(x.dtype) if isinstance(argument, Tensor) else argument
