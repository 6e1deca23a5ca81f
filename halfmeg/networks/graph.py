"""A network as a graph of few operators on maps C×H×W, whatever its code looks like.

`trace` writes it and `simplify` folds it; `memory` plans what it needs on a device, and
`halfmeg.shipping.integer` makes integers of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Shape = tuple[int, int, int]
"""Channels, height and width of a map; a vector of F features is F×1×1."""

Padding = tuple[int, int, int, int]
"""Rows above, columns to the left, rows below, columns to the right."""

OUTSIDE = -1
"""In an index of `Gather`: nothing stands here, the value is 0."""


@dataclass(eq=False)
class Node:
    """One operator and the map that it computes.

    Attributes:
        name: as in the traced program, for messages.
        shape: of the map.
        inputs: the nodes whose maps it reads.
    """

    name: str
    shape: Shape
    inputs: tuple[Node, ...]

    def compute(self, *maps: Tensor) -> Tensor:
        """Return the map B×C×H×W, in the type of the inputs' maps."""
        raise NotImplementedError


@final
@dataclass(eq=False)
class Input(Node):
    """The normalized image, until `simplify` takes the normalization in: then its pixels."""


@final
@dataclass(eq=False)
class Conv(Node):
    """A convolution, or as one of kernel H×W a linear layer.

    Attributes:
        weight: float64 O×(C/groups)×kh×kw.
        bias: float64 O.
        weight_key: equal where two nodes have the same weights, as in a block used twice.
        outside: float64 C, what padding stands for in each channel of the input.
        has_outside: whether that may be other than 0, as with weights of another training.
    """

    weight: Array
    bias: Array
    weight_key: str
    outside: Array
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    has_outside: bool = False

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel has one filter of its own."""
        return self.groups == self.shape[0] == self.inputs[0].shape[0]

    def compute(self, *maps: Tensor) -> Tensor:
        """Convolve."""
        (x,) = maps
        return self.convolve(x, _like(self.weight, x), _like(self.bias, x))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve with other weights than its own."""
        outside = _like(self.outside, x).view(1, -1, 1, 1)
        top, left, bottom, right = self.padding
        padded = F.pad(x - outside, (left, right, top, bottom)) + outside
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)


@final
@dataclass(eq=False)
class Combine(Node):
    """A weighted sum of one or two maps and a constant: add, subtract, scale and shift.

    Attributes:
        scales: for each input, float64 that broadcasts to C×H×W.
        shift: float64 that broadcasts to C×H×W.
        key: equal where two nodes have the same constants.
        learned: whether weights stand in them, which have other values after another training.
    """

    scales: tuple[Array, ...]
    shift: Array
    key: str
    learned: bool = False

    def compute(self, *maps: Tensor) -> Tensor:
        """Add up."""
        total = _like(self.shift, maps[0])
        for x, scale in zip(maps, self.scales, strict=True):
            total = total + x * _like(scale, x)
        return total.expand(-1, *self.shape)


@final
@dataclass(eq=False)
class Multiply(Node):
    """The product of two maps, each C×H×W or broadcast to it."""

    def compute(self, *maps: Tensor) -> Tensor:
        """Multiply."""
        return (maps[0] * maps[1]).expand(-1, *self.shape)


@final
@dataclass(eq=False)
class Function(Node):
    """A function of one value, applied to each.

    Attributes:
        function: from a tensor to one of the same shape.
        is_clamp: whether it is a clamp to an interval that holds 0, such as ReLU.
        kind: torch's operator, such as "silu"; empty where it was composed of several.
    """

    function: Callable[[Tensor], Tensor]
    is_clamp: bool = False
    kind: str = ""

    def compute(self, *maps: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(maps[0])


@final
@dataclass(eq=False)
class MaxPool(Node):
    """The maximum over windows; padding never wins."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)

    def compute(self, *maps: Tensor) -> Tensor:
        """Pool."""
        top, left, bottom, right = self.padding
        padded = F.pad(maps[0], (left, right, top, bottom), value=-torch.inf)
        return F.max_pool2d(padded, self.kernel, self.stride)


@final
@dataclass(eq=False)
class AvgPool(Node):
    """The sum over windows, in which padding counts as 0, divided by a constant."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    divisor: float
    padding: Padding = (0, 0, 0, 0)

    def compute(self, *maps: Tensor) -> Tensor:
        """Pool."""
        top, left, bottom, right = self.padding
        padded = F.pad(maps[0], (left, right, top, bottom))
        return F.avg_pool2d(padded, self.kernel, self.stride, divisor_override=1) / self.divisor


@final
@dataclass(eq=False)
class Normalize(Node):
    """LayerNorm: the channels of each position, brought to mean 0 and deviation 1, then scaled.

    Attributes:
        scale, shift: float64 C.
        eps: added to the variance.
    """

    scale: Array
    shift: Array
    eps: float

    def compute(self, *maps: Tensor) -> Tensor:
        """Normalize."""
        x = maps[0].movedim(1, -1)
        scale, shift = _like(self.scale, x), _like(self.shift, x)
        return F.layer_norm(x, x.shape[-1:], scale, shift, self.eps).movedim(-1, 1)


@final
@dataclass(eq=False)
class Softmax(Node):
    """The softmax of the channels of each position."""

    def compute(self, *maps: Tensor) -> Tensor:
        """Share out."""
        return maps[0].softmax(1)


@final
@dataclass(eq=False)
class MatMul(Node):
    """Products of matrices, one a row: K×R×M and K×R×N to N×R×M, summed over K.

    Attributes:
        factor: by which all products are multiplied.
    """

    factor: float

    def compute(self, *maps: Tensor) -> Tensor:
        """Multiply and add up."""
        return self.factor * torch.einsum("bkrm,bkrn->bnrm", *maps)


@final
@dataclass(eq=False)
class Concat(Node):
    """Maps of the same height and width, channel after channel."""

    def compute(self, *maps: Tensor) -> Tensor:
        """Concatenate."""
        return torch.cat(maps, 1)


@final
@dataclass(eq=False)
class Gather(Node):
    """Values taken from other places: slices, splits, flips, shuffled channels, zeros around.

    Attributes:
        index: int64 C×H×W into the input's flattened C×H×W, or `OUTSIDE`.
    """

    index: Array

    def compute(self, *maps: Tensor) -> Tensor:
        """Take the values."""
        flat = F.pad(maps[0].flatten(1), (0, 1))  # OUTSIDE is the last one
        return flat[:, torch.from_numpy(self.index).to(flat.device)]

    def axes(self) -> tuple[Array, Array, Array] | None:
        """Return where channels, rows and columns come from, or None where they do not separate."""
        return axis_maps(self.index, self.inputs[0].shape)


@dataclass(frozen=True)
class Graph:
    """A network: its nodes in the order of computing, the last one the logits (K×1×1).

    Attributes:
        input: the images.
        nodes: all others.
    """

    input: Input
    nodes: tuple[Node, ...]
    consumers: Counter[Node] = field(init=False)

    def __post_init__(self) -> None:
        reads = Counter(source for node in self.nodes for source in node.inputs)
        object.__setattr__(self, "consumers", reads)

    @property
    def output(self) -> Node:
        """The node of the logits."""
        return self.nodes[-1]

    def maps(self, images: Tensor) -> Iterator[tuple[Node, Tensor]]:
        """Yield each node with its map of a batch, in the order of computing."""
        left = self.consumers.copy()
        maps: dict[Node, Tensor] = {self.input: images}
        yield self.input, images
        for node in self.nodes:
            maps[node] = node.compute(*(maps[source] for source in node.inputs))
            yield node, maps[node]
            for source in node.inputs:
                left[source] -= 1
                if not left[source]:
                    del maps[source]

    def logits(self, images: Tensor) -> Tensor:
        """Return logits B×K of what the input node stands for."""
        for _, last in self.maps(images):
            found = last
        return found.flatten(1)


def in_order(output: Node) -> tuple[Node, ...]:
    """Return all nodes that an output needs, inputs first, without the `Input`."""
    found: dict[Node, None] = {}
    stack = [(output, False)]
    while stack:
        node, done = stack.pop()
        if done:
            found.setdefault(node)
        elif node not in found and not isinstance(node, Input):
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(node.inputs))
    return tuple(found)


def axis_maps(index: Array, shape: Shape) -> tuple[Array, Array, Array] | None:
    """Return int64 maps of channels, rows and columns that make up an index, or None.

    Each maps a place of the result to one of the input C×H×W, or to `OUTSIDE`.
    """
    inside = index != OUTSIDE
    places = np.unravel_index(np.where(inside, index, 0), shape)
    maps = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.where(inside, places[axis], OUTSIDE).max(axis=others)
        maps.append(found)
    grids = np.meshgrid(*maps, indexing="ij")
    valid = (grids[0] >= 0) & (grids[1] >= 0) & (grids[2] >= 0)
    _, height, width = shape
    again = np.where(valid, (grids[0] * height + grids[1]) * width + grids[2], OUTSIDE)
    return (maps[0], maps[1], maps[2]) if np.array_equal(again, index) else None


def even_steps(index: Array, shape: Shape) -> tuple[int, int, int, int] | None:
    """Return how to walk a map stored H×W×C in even steps along an index, or None.

    Returns:
        The first place, and how far it is to the next channel, row and column.
    """
    if (index == OUTSIDE).any():
        return None
    channels, height, width = shape
    stored = np.arange(channels * height * width).reshape(height, width, channels)
    places = stored.transpose(2, 0, 1).ravel()[index]
    first = int(places[0, 0, 0])
    corners = (places[1:2, 0, 0], places[0, 1:2, 0], places[0, 0, 1:2])  # empty at a single one
    steps = [int(corner.sum()) - first if corner.size else 0 for corner in corners]
    grids = np.meshgrid(*map(np.arange, index.shape), indexing="ij")
    again = first + sum(step * grid for step, grid in zip(steps, grids, strict=True))
    return (first, steps[0], steps[1], steps[2]) if np.array_equal(again, places) else None


def _like(array: Array, x: Tensor) -> Tensor:
    return torch.as_tensor(array, dtype=x.dtype, device=x.device)
