"""The arena that TFLite Micro would need for a network in int8, before it is trained or converted.

The operators are those that litert-torch writes for a traced network: normalization folded into
convolutions where it follows them, zeros that `SAME` does not mean as an operator of their own,
SiLU as two, and a copy in another order of axes before values of a map are reduced or flattened.
Their maps are placed as TFLite Micro's greedy planner does; its tables are counted as its
interpreter for Python allocates them, whose pointers have 8 bytes. A microcontroller's have 4, so
its tables are smaller.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from halfmeg.networks.arena import Buffer, aligned, place
from halfmeg.networks.graph import (
    OUTSIDE,
    AvgPool,
    Combine,
    Concat,
    Conv,
    Function,
    Gather,
    Graph,
    MaxPool,
    Multiply,
    Node,
    Normalize,
)

ALIGNMENT = 16
BASE_BYTES = 680
"""Of the interpreter itself, and of the tables of input and output."""
TENSOR_BYTES = 24
NODE_BYTES = 64
OPERATOR_BYTES = {
    "CONV_2D": 112, "DEPTHWISE_CONV_2D": 120, "FULLY_CONNECTED": 112, "AVERAGE_POOL_2D": 64,
    "MAX_POOL_2D": 64, "ADD": 68, "SUB": 68, "MUL": 56, "LOGISTIC": 24, "PAD": 56, "MEAN": 64,
    "RESHAPE": 64, "STRIDED_SLICE": 48, "SLICE": 0, "CONCATENATION": 64, "TRANSPOSE": 0,
    "QUANTIZE": 24, "DEQUANTIZE": 24, "LEAKY_RELU": 24, "RELU": 40, "SQUARED_DIFFERENCE": 68,
    "RSQRT": 24,
}  # fmt: skip
"""What an operator keeps beside its node: its settings, and what it prepares for each image.

Fitted to what the interpreter allocated for the networks of the table.
"""
LACKING = ("gelu",)
"""Operators that the converter writes as one, and TFLite Micro does not have."""

FUSES = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL")
"""Operators that clamp their own results."""


@dataclass(frozen=True)
class MicroArena:
    """What TFLite Micro keeps in RAM.

    Attributes:
        maps_bytes: of the maps, placed by its planner.
        tables_bytes: of tensors, operators and the interpreter.
    """

    maps_bytes: int
    tables_bytes: int

    @property
    def total_bytes(self) -> int:
        """Size of the arena."""
        return self.maps_bytes + self.tables_bytes


def micro_arena(graph: Graph) -> MicroArena:
    """Return the arena for a network, as traced.

    Raises:
        ValueError: an operator that TFLite Micro lacks, or whose form there is not known; it is
            named.
    """
    for node in graph.nodes:
        if isinstance(node, Function) and node.kind in LACKING:
            raise ValueError(f"it has no {node.kind} ({node.name})")
    program = _Program(graph)
    return MicroArena(program.maps_bytes(), program.tables_bytes)


@dataclass
class _Tensor:
    """A tensor that an operator computes; `made` and `used` number operators."""

    size: int
    made: int
    used: int
    kind: str


class _Program:
    """The operators, written one after another; only what they need is kept."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tables_bytes = BASE_BYTES
        self._constants: set[Hashable] = set()  # those of equal content are stored once
        self._tensors: list[_Tensor] = []
        self._operators = 0
        image = self._tensor(graph.input.shape, "INPUT")
        self._maps: dict[Node, _Tensor] = {graph.input: image}
        for node in graph.nodes:
            self._maps[node] = self._lower(node)
        self._maps[graph.output].used = self._operators

    def maps_bytes(self) -> int:
        """Place the maps, the largest first, as the planner does."""
        buffers = [
            Buffer(i, aligned(tensor.size, ALIGNMENT), tensor.made, tensor.used)
            for i, tensor in enumerate(self._tensors)
        ]
        places = place(sorted(buffers, key=lambda buffer: (-buffer.size, -buffer.key)))
        return max(places[buffer.key] + buffer.size for buffer in buffers)

    def _tensor(self, shape: tuple[int, ...], kind: str, value_bytes: int = 1) -> _Tensor:
        size = math.prod(shape) * value_bytes
        tensor = _Tensor(size, self._operators, self._operators, kind)
        self._tensors.append(tensor)
        self.tables_bytes += TENSOR_BYTES
        return tensor

    def _call(
        self, kind: str, shape: tuple[int, ...], *inputs: _Tensor,
        constants: tuple[Hashable, ...] = (), channels: int = 0, value_bytes: int = 1,
    ) -> _Tensor:  # fmt: skip
        """Write an operator; `channels` is how many multipliers and shifts it prepares."""
        for tensor in inputs:
            tensor.used = self._operators
        result = self._tensor(shape, kind, value_bytes)
        self._operators += 1
        new = set(constants) - self._constants
        self._constants |= new
        self.tables_bytes += NODE_BYTES + OPERATOR_BYTES[kind] + TENSOR_BYTES * len(new)
        self.tables_bytes += 2 * aligned(4 * channels, ALIGNMENT)
        return result

    def _lower(self, node: Node) -> _Tensor:
        """Write the operators of a node; return its map."""
        maps = [self._maps[source] for source in node.inputs]
        match node:
            case Conv():
                return self._convolve(node, maps[0])
            case Combine() if len(maps) == 1:
                return self._scale_and_shift(node, maps[0])
            case Combine():
                for position, scale in enumerate(node.scales):
                    if not (np.abs(scale) == 1).all():
                        shape = node.inputs[position].shape
                        key = (node, position)
                        maps[position] = self._call("MUL", shape, maps[position], constants=(key,))
                return self._call("ADD", node.shape, *maps)
            case Multiply():
                return self._call("MUL", node.shape, *maps)
            case Function():
                return self._apply(node, maps[0])
            case MaxPool():
                source = self._pad(maps[0], node.inputs[0], node.padding)
                return self._call("MAX_POOL_2D", node.shape, source)
            case AvgPool() if node.divisor == math.prod(node.kernel):
                return self._average(node, maps[0])
            case Concat():
                return self._concatenate(node, maps)
            case Gather():
                return self._move(node, maps[0])
            case Normalize():
                return self._normalize(node, maps[0])
        self._refuse(node, type(node).__name__)

    def _refuse(self, node: Node, what: str) -> NoReturn:
        raise ValueError(f"{what} ({node.name}) has no known form there")

    def _convolve(self, node: Conv, source: _Tensor) -> _Tensor:
        (before,), channels = node.inputs, node.shape[0]
        constants = (node.weight_key, (node, "bias"))
        if node.weight.shape[1:] == before.shape and not any(node.padding):
            if math.prod(before.shape[1:]) > 1:
                source = self._channels_first(source, before)
                shape = (math.prod(before.shape),)
                source = self._call("RESHAPE", shape, source, constants=(shape,))
            return self._call(
                "FULLY_CONNECTED", (channels,), source, constants=constants, channels=channels
            )
        if node.padding != _same_padding(node):
            source = self._pad(source, before, node.padding)
        kind = "DEPTHWISE_CONV_2D" if node.is_depthwise else "CONV_2D"
        return self._call(kind, node.shape, source, constants=constants, channels=channels)

    def _pad(self, source: _Tensor, before: Node, padding: tuple[int, ...]) -> _Tensor:
        channels, height, width = before.shape
        top, left, bottom, right = padding
        if not any(padding):
            return source
        shape = (channels, height + top + bottom, width + left + right)
        return self._call("PAD", shape, source, constants=(("pad", padding),))

    def _channels_first(self, source: _Tensor, before: Node) -> _Tensor:
        return self._call("TRANSPOSE", before.shape, source, constants=("channels first",))

    def _scale_and_shift(self, node: Combine, source: _Tensor) -> _Tensor:
        before = node.inputs[0]
        if isinstance(before, MaxPool) and self.graph.consumers[before] == 1:
            before = before.inputs[0]  # it keeps the order of values
        if isinstance(before, Conv) and self.graph.consumers[before] == 1:
            return source
        scaled = node.scales[0].size > 1 or node.scales[0].item() != 1
        shifted = node.shift.size > 1 or node.shift.item() != 0
        kinds = ["MUL"] * scaled + ["ADD"] * shifted
        if node.scales[0].size > 1 < node.shift.size and math.prod(node.shape[1:]) > 1:
            kinds = ["SUB", "MUL", "MUL", "ADD"]  # a BatchNorm of maps, mean and deviation first
        for position, kind in enumerate(kinds):
            source = self._call(kind, node.shape, source, constants=((node, position),))
        return source

    def _apply(self, node: Function, source: _Tensor) -> _Tensor:
        shape = node.shape
        if node.is_clamp:
            if self.graph.consumers[node.inputs[0]] == 1 and source.kind in FUSES:
                return source
            return self._call("RELU", shape, source)
        match node.kind:
            case "silu":
                return self._call("MUL", shape, source, self._call("LOGISTIC", shape, source))
            case "sigmoid":
                return self._call("LOGISTIC", shape, source)
            case "leaky_relu":  # stays in float32
                wide = self._call("DEQUANTIZE", shape, source, value_bytes=4)
                wide = self._call("LEAKY_RELU", shape, wide, value_bytes=4)
                return self._call("QUANTIZE", shape, wide)
        self._refuse(node, node.kind or "a function of several operators")

    def _average(self, node: AvgPool, source: _Tensor) -> _Tensor:
        (before,) = node.inputs
        if node.kernel == before.shape[1:]:
            source = self._channels_first(source, before)
            return self._call("MEAN", node.shape, source, constants=("positions",))
        source = self._pad(source, before, node.padding)
        return self._call("AVERAGE_POOL_2D", node.shape, source)

    def _concatenate(self, node: Concat, maps: list[_Tensor]) -> _Tensor:
        """Write what brings slices, whose range is another map's, into the range of the whole."""
        for position, before in enumerate(node.inputs):
            if maps[position].kind == "SLICE":
                maps[position] = self._call("QUANTIZE", before.shape, maps[position])
        return self._call("CONCATENATION", node.shape, *maps)

    def _move(self, node: Gather, source: _Tensor) -> _Tensor:
        """Write slices and zeros around; what else moves values has no known form."""
        places = node.axes()
        if places is None:
            self._refuse(node, "what moves values")
        shape, padded = list(node.inputs[0].shape), False
        for axis, taken in enumerate(places):
            inside = taken[taken != OUTSIDE]
            padded |= len(inside) < len(taken)
            step = int(inside[1] - inside[0]) if len(inside) > 1 else 1
            if not len(inside) or step < 1 or (np.diff(inside) != step).any():
                self._refuse(node, "what moves values")
            if len(inside) == shape[axis]:
                continue
            shape[axis] = len(inside)
            kind = "SLICE" if step == 1 else "STRIDED_SLICE"
            bounds = (kind, axis, int(inside[0]), len(inside), step)
            source = self._call(kind, tuple(shape), source, constants=(bounds, (kind, axis)))
        if padded:
            source = self._call("PAD", node.shape, source, constants=(("pad", node),))
        return source

    def _normalize(self, node: Normalize, source: _Tensor) -> _Tensor:
        """Write the mean and deviation of each position, one operator after another."""
        channels, positions = node.shape[0], math.prod(node.shape[1:])
        whole, one = (positions, channels), (positions,)

        def column(values: _Tensor) -> _Tensor:
            return self._call("RESHAPE", one, values, constants=(("column", positions),))

        def mean(values: _Tensor) -> _Tensor:
            return self._call("MEAN", one, values, constants=("channels",))

        x = self._call("RESHAPE", whole, source, constants=(whole,))
        center = mean(x)
        squares = self._call("SQUARED_DIFFERENCE", whole, x, column(center))
        variance = self._call("ADD", one, mean(squares), constants=(("eps", node.eps),))
        scale = self._call("RSQRT", one, variance)
        product = self._call("MUL", one, scale, center)
        shift = self._call("SUB", one, product, constants=("zero",))
        x = self._call("MUL", whole, x, column(scale))
        x = self._call("ADD", whole, x, column(shift))
        x = self._call("RESHAPE", node.shape, x, constants=(node.shape,))
        x = self._call("MUL", node.shape, x, constants=((node, "scale"),))
        return self._call("ADD", node.shape, x, constants=((node, "shift"),))


def _same_padding(node: Conv) -> tuple[int, int, int, int]:
    """Return the zeros around the input that `SAME` means for a convolution."""
    sides = []
    for axis in (0, 1):
        side, stride = node.inputs[0].shape[1 + axis], node.stride[axis]
        window = (node.weight.shape[2 + axis] - 1) * node.dilation[axis] + 1
        around = max((math.ceil(side / stride) - 1) * stride + window - side, 0)
        sides.append((around // 2, around - around // 2))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right
