"""The operators of a traced program, one by one, as nodes of a `Graph`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.networks.graph import (
    OUTSIDE,
    AvgPool,
    Combine,
    Concat,
    Conv,
    Function,
    Gather,
    MaxPool,
    Multiply,
    Node,
    Padding,
    Shape,
    axis_maps,
)
from halfmeg.networks.values import (
    Value,
    array,
    as_function,
    as_type,
    compact,
    function_of_one,
    margins,
    order_of,
    pair,
    pool_padding,
    pooled,
    whole,
)


class Lowering:
    """Lowers one operator at a time.

    Args:
        name: of its node in the program.
        operator: its own name, for messages.
        weights: names of the parameters that it reads, or of the operator where it reads none.
        learned: whether it reads any.
    """

    def __init__(self, name: str, operator: str, weights: str = "", learned: bool = False) -> None:
        self.name = name
        self.operator = operator
        self.weights = weights
        self.learned = learned

    def unknown(self, why: str = "") -> ValueError:
        """Return the error that names the operator."""
        name = self.operator.removesuffix(".default")
        return ValueError(f"{name} ({self.name}) has no int8 form{why and ': ' + why}")

    def node(self, value: Value) -> Node:
        """Return a node whose map is the value, gathered where it does not lie so already."""
        shape = tuple(value.index.shape[1:])
        if len(shape) > 3 or value.index.shape[0] != 1:
            raise self.unknown(f"a tensor of {len(shape) + 1} axes")
        sides = [*shape, 1, 1, 1]
        filled: Shape = (sides[0], sides[1], sides[2])
        index = value.index.reshape(filled).numpy()
        if filled == value.node.shape and np.array_equal(index.ravel(), np.arange(index.size)):
            return value.node
        return Gather(f"{value.node.name}_moved", filled, (value.node,), index)

    def all_of(self, value: Value) -> Value:
        """Return a value as all of a node, gathered where it is not; the first axis may be any."""
        if value.is_whole:
            return value
        index = value.index if value.index.shape[0] == 1 else value.index[None]
        places = torch.arange(index.numel()).view(value.index.shape)
        return Value(self.node(Value(value.node, index)), places)

    def image(self, value: Value) -> tuple[Node, Padding]:
        """Return a value of B×C×H×W as a node and the zeros around it."""
        if value.index.dim() != 4:
            raise self.unknown(f"a tensor of {value.index.dim()} axes")
        index, node = value.index[0].numpy(), value.node
        maps = axis_maps(index, node.shape)
        if maps is not None and np.array_equal(maps[0], np.arange(node.shape[0])):
            rows, columns = (margins(maps[i], node.shape[i]) for i in (1, 2))
            if rows is not None and columns is not None:
                return node, (rows[0], columns[0], rows[1], columns[1])
        return self.node(value), (0, 0, 0, 0)

    def conv2d(
        self, input: Value, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
        dilation: Any, groups: int,
    ) -> Value:  # fmt: skip
        """Convolve, zeros around the image included."""
        if not isinstance(weight, Tensor):
            raise self.unknown("its weights are computed")
        source, (top, left, bottom, right) = self.image(input)
        kernel = tuple(weight.shape[2:])
        if padding == "same":
            around = [d * (k - 1) for d, k in zip(pair(dilation), kernel, strict=True)]
            before = [total // 2 for total in around]
            after = [total - b for total, b in zip(around, before, strict=True)]
        else:
            before = after = list(pair(0 if padding == "valid" else padding))
        pads = (top + before[0], left + before[1], bottom + after[0], right + after[1])
        return self._conv(
            source, weight, bias, stride=pair(stride), padding=pads, dilation=pair(dilation),
            groups=groups,
        )  # fmt: skip

    def _conv(
        self, source: Node, weight: Tensor, bias: Tensor | None, *,
        stride: tuple[int, int] = (1, 1), padding: Padding = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1), groups: int = 1,
    ) -> Value:  # fmt: skip
        channels, _, *kernel = weight.shape
        sides = pooled(source.shape, tuple(kernel), stride, padding, dilation)
        return whole(
            Conv(
                self.name, (channels, *sides), (source,),
                array(weight), np.zeros(channels) if bias is None else array(bias), self.weights,
                np.zeros(source.shape[0]), stride, padding, dilation, groups,
            )
        )  # fmt: skip

    def linear(self, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """Multiply by a matrix: a convolution of kernel H×W, or of 1×1 where positions stay."""
        if not isinstance(weight, Tensor):
            raise self.unknown("its weights are computed")
        if input.index.shape[0] != 1 or input.index.dim() > 4:  # all axes but the last as one
            *before, size = input.index.shape
            found = self.linear(Value(input.node, input.index.view(1, -1, size)), weight, bias)
            return Value(found.node, found.index.view(*before, -1))
        if input.index.dim() == 2:
            source, index = input.node, input.index[0]
            if not input.is_whole:
                source = self.node(input)
                index = torch.arange(index.numel())
            dense = torch.zeros(len(weight), index.numel(), dtype=torch.float64)
            dense[:, index] = weight.double()
            self.weights += order_of(index, source.shape)
            found = self._conv(source, dense.view(-1, *source.shape), bias)
            return Value(found.node, found.index.flatten(1))
        places = torch.movedim(input.index, -1, 1)  # each position by itself: a 1×1 convolution
        source = self.node(Value(input.node, places))
        found = self._conv(source, weight.double()[:, :, None, None], bias)
        return Value(found.node, torch.movedim(found.index.view(1, -1, *places.shape[2:]), 1, -1))

    def batch_norm(
        self, input: Value, weight: Tensor | None, bias: Tensor | None, running_mean: Any,
        running_var: Any, eps: float, training: bool = False, **_: Any,
    ) -> Value:  # fmt: skip
        """Scale and shift each channel."""
        if training or running_mean is None:
            raise self.unknown("it has no running statistics")
        scale = 1 / (running_var.double() + eps).sqrt()
        if weight is not None:
            scale = scale * weight.double()
        shift = -running_mean.double() * scale
        if bias is not None:
            shift = shift + bias.double()
        along = (1, -1, *[1] * (input.index.dim() - 2))
        return self._affine(input, scale.view(along), shift.view(along))

    def native_batch_norm(self, **arguments: Any) -> tuple[Value]:
        """Scale and shift each channel."""
        return (self.batch_norm(**arguments),)

    def _affine(self, value: Value, scale: Tensor, shift: Tensor) -> Value:
        """Scale and shift by constants that broadcast to the value."""
        shape = np.broadcast_shapes(value.index.shape, scale.shape, shift.shape)
        if tuple(shape) != tuple(value.index.shape):
            value = Value(value.node, value.index.expand(shape).clone())
        value = self.all_of(value)
        arrays = []
        shape, flat = value.index.shape, value.index.flatten()
        for constant in (scale.double(), shift.double()):
            both = (constant, torch.arange(constant.numel()).view(constant.shape))
            placed = [t.expand(shape).flatten()[flat.argsort()] for t in both]
            arrays.append(compact(*(t.view(value.node.shape).numpy() for t in placed)))
        node = Combine(
            self.name, value.node.shape, (value.node,), (arrays[0],), arrays[1], self.weights,
            self.learned,
        )  # fmt: skip
        return Value(node, value.index)

    def arithmetic(self, kind: str, target: Any, args: Any, kwargs: Any) -> Value:
        """Lower an operator of two maps."""
        first, second = args[:2]
        alpha = float(kwargs.get("alpha", 1)) * (-1 if kind == "sub" else 1)
        base = function_of_one(first, second)
        if base is not None:
            f, g = (as_function(value.node, base) for value in (first, second))
            shared = Value(base, first.index)
            return self._function(shared, lambda x: target(f(x), g(x), **kwargs), is_clamp=False)
        if kind not in ("add", "sub", "mul"):
            raise self.unknown("of two maps")
        if first.node.shape == second.node.shape and torch.equal(first.index, second.index):
            index, sources = first.index, (first.node, second.node)
            if not first.is_whole:
                sources = (self.node(first), self.node(second))
                index = torch.arange(index.numel()).view(index.shape)
        else:
            if first.index.dim() != second.index.dim():
                raise self.unknown("of tensors with another number of axes")
            sources = (self.node(first), self.node(second))
            shape = np.broadcast_shapes(first.index.shape, second.index.shape)
            index = torch.arange(math.prod(shape)).view(shape)
        filled: Shape = np.broadcast_shapes(sources[0].shape, sources[1].shape)
        if kind == "mul":
            return Value(Multiply(self.name, filled, sources), index)
        scales = (np.ones((1, 1, 1)), np.full((1, 1, 1), alpha))
        return Value(
            Combine(self.name, filled, sources, scales, np.zeros((1, 1, 1)), self.weights), index
        )

    def constant_or_function(
        self, kind: str, target: Any, args: Any, kwargs: Any, is_clamp: bool
    ) -> Value:
        """Lower an operator with one tensor that is computed; all others are constants."""
        position = next(i for i, a in enumerate(args) if isinstance(a, Value))
        value = args[position]
        if kind in ("add", "sub", "mul", "div") and not kwargs.get("rounding_mode"):
            other = torch.as_tensor(args[1 - position]).double()
            one, zero, alpha = torch.ones(()), torch.zeros(()), kwargs.get("alpha", 1)
            self.weights = f"{kind} {position} {alpha} {self.weights}"
            if kind == "mul":
                return self._affine(value, other, zero)
            if kind == "div" and position == 0:
                return self._affine(value, 1 / other, zero)
            if kind == "add":
                return self._affine(value, one, other * alpha) if position == 0 else (
                    self._affine(value, one * alpha, other))  # fmt: skip
            if kind == "sub":
                return self._affine(value, one, -other * alpha) if position == 0 else (
                    self._affine(value, -one * alpha, other))  # fmt: skip
        if any(isinstance(a, Tensor) and a.numel() != 1 for a in args):
            raise self.unknown("a different function for each channel")

        def function(x: Tensor) -> Tensor:
            filled = [x if i == position else as_type(a, x) for i, a in enumerate(args)]
            return target(*filled, **kwargs)  # type: ignore[no-any-return]

        return self._function(value, function, is_clamp=is_clamp, kind=kind)

    def _function(
        self, value: Value, function: Callable[[Tensor], Tensor], *, is_clamp: bool, kind: str = ""
    ) -> Value:
        if is_clamp:  # to an interval that holds 0, or else it is a function like any other
            is_clamp = function(torch.zeros(())).item() == 0
        value = self.all_of(value)
        node = Function(self.name, value.node.shape, (value.node,), function, is_clamp, kind)
        return Value(node, value.index)

    def max_pool2d(
        self, self_: Value, kernel_size: Any, stride: Any, padding: Any, dilation: Any,
        ceil_mode: bool,
    ) -> Value:  # fmt: skip
        """Take the maximum of windows."""
        if pair(dilation) != (1, 1):
            raise self.unknown("dilation")
        if self_.index.dim() == 4 and bool((self_.index == OUTSIDE).any()):
            source, zeros = self.node(self_), (0, 0, 0, 0)  # these zeros take part
        else:
            source, zeros = self.image(self_)
        kernel, step = pair(kernel_size), pair(stride or kernel_size)
        pads = pool_padding(source.shape, kernel, step, pair(padding), ceil_mode)
        assert zeros == (0, 0, 0, 0)
        shape = (source.shape[0], *pooled(source.shape, kernel, step, pads))
        return whole(MaxPool(self.name, shape, (source,), kernel, step, pads))

    def avg_pool2d(
        self, self_: Value, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool,
        count_include_pad: bool, divisor_override: int | None,
    ) -> Value:  # fmt: skip
        """Take the mean of windows."""
        source, zeros = self.image(self_)
        if ceil_mode and any(zeros):  # where the last window ends depends on them
            source, zeros = self.node(self_), (0, 0, 0, 0)
        kernel, step, around = pair(kernel_size), pair(stride or kernel_size), pair(padding)
        pads = pool_padding(source.shape, kernel, step, around, ceil_mode)
        uneven = not count_include_pad and any(around)
        if (uneven or pads != (*around, *around)) and not divisor_override:
            raise self.unknown("windows of different numbers of values")
        pads = tuple(a + b for a, b in zip(pads, zeros, strict=True))  # type: ignore[assignment]
        shape = (source.shape[0], *pooled(source.shape, kernel, step, pads))
        divisor = divisor_override or kernel[0] * kernel[1]
        return whole(AvgPool(self.name, shape, (source,), kernel, step, divisor, pads))

    def adaptive_avg_pool2d(self, self_: Value, output_size: Any) -> Value:
        """Take the mean of so many windows."""
        source, kernel, shape = self._adaptive(self_, output_size)
        return whole(AvgPool(self.name, shape, (source,), kernel, kernel, kernel[0] * kernel[1]))

    def adaptive_max_pool2d(self, self_: Value, output_size: Any) -> tuple[Value]:
        """Take the maximum of so many windows."""
        source, kernel, shape = self._adaptive(self_, output_size)
        return (whole(MaxPool(self.name, shape, (source,), kernel, kernel)),)

    def _adaptive(self, value: Value, output_size: Any) -> tuple[Node, tuple[int, int], Shape]:
        source = self.node(value)
        channels, height, width = source.shape
        rows, columns = pair(output_size)
        if height % rows or width % columns:
            raise self.unknown(f"{height}×{width} in {rows}×{columns} windows of equal size")
        return source, (height // rows, width // columns), (channels, rows, columns)

    def mean(self, self_: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        """Take the mean over all positions."""
        source, kernel, index = self._reduced(self_, dim, keepdim)
        shape = (source.shape[0], 1, 1)
        found = AvgPool(self.name, shape, (source,), kernel, kernel, kernel[0] * kernel[1])
        return Value(found, index)

    def sum(self, self_: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        """Add up all positions."""
        source, kernel, index = self._reduced(self_, dim, keepdim)
        shape = (source.shape[0], 1, 1)
        return Value(AvgPool(self.name, shape, (source,), kernel, kernel, 1), index)

    def amax(self, self_: Value, dim: Any = (), keepdim: bool = False) -> Value:
        """Take the maximum over all positions."""
        source, kernel, index = self._reduced(self_, dim, keepdim)
        return Value(MaxPool(self.name, (source.shape[0], 1, 1), (source,), kernel, kernel), index)

    def max(self, self_: Value, dim: int, keepdim: bool = False) -> tuple[Value]:
        """Take the maximum over all positions, whose places are not asked for."""
        return (self.amax(self_, dim, keepdim),)

    def _reduced(
        self, value: Value, dim: Any, keepdim: bool
    ) -> tuple[Node, tuple[int, int], Tensor]:
        """Return what to reduce over all its positions, and where the results then stand."""
        axes = value.index.dim()
        dims = sorted(d % axes for d in ([dim] if isinstance(dim, int) else dim or range(axes)))
        last = dims == list(range(1, axes - 1))  # channels stand behind their positions
        if not (last or dims == list(range(2, axes))) or axes > 4 or not dims:
            raise self.unknown("over other axes than all positions of an image")
        if last:
            value = Value(value.node, value.index.movedim(-1, 1))
        channels = value.index.shape[1]
        places = torch.arange(math.prod(value.node.shape)).view(value.node.shape[0], -1)
        rows = value.index.reshape(channels, -1)
        source = value.node if torch.equal(rows, places) else self.node(value)
        ones = [1] * (axes - 2 if keepdim else 0)
        shape = (1, *ones, channels) if last else (1, channels, *ones)
        return source, source.shape[1:], torch.arange(channels).view(shape)

    def cat(self, tensors: list[Value], dim: int = 0) -> Value:
        """Put channels one after another."""
        if not all(isinstance(value, Value) for value in tensors):
            raise self.unknown("with a constant")
        axes = tensors[0].index.dim()
        if dim % axes != 1:
            raise self.unknown("along another axis than channels")
        if len({value.node for value in tensors}) == 1:
            return Value(tensors[0].node, torch.cat([value.index for value in tensors], 1))
        sources = tuple(self.node(value) for value in tensors)
        channels = sum(source.shape[0] for source in sources)
        node = Concat(self.name, (channels, *sources[0].shape[1:]), sources)
        shape = (1, channels, *tensors[0].index.shape[2:])
        return Value(node, torch.arange(math.prod(shape)).view(shape))

    def pad(self, self_: Value, pad: Any, mode: str = "constant", value: Any = None) -> Value:
        """Add zeros around, or repeat the edges."""
        if mode == "constant":
            if value not in (None, 0):
                raise self.unknown("padding with another value than 0")
            return Value(self_.node, F.pad(self_.index, pad, value=OUTSIDE))
        moved = F.pad(self_.index.double(), pad, mode)  # torch has it for floats only
        return Value(self_.node, moved.long())


LOWERINGS: dict[str, Callable[..., Any]] = {
    "conv2d": Lowering.conv2d,
    "linear": Lowering.linear,
    "batch_norm": Lowering.batch_norm,
    "_native_batch_norm_legit_no_training": Lowering.native_batch_norm,
    "max_pool2d": Lowering.max_pool2d,
    "avg_pool2d": Lowering.avg_pool2d,
    "adaptive_avg_pool2d": Lowering.adaptive_avg_pool2d,
    "adaptive_max_pool2d": Lowering.adaptive_max_pool2d,
    "mean": Lowering.mean,
    "sum": Lowering.sum,
    "amax": Lowering.amax,
    "max": Lowering.max,
    "cat": Lowering.cat,
    "pad": Lowering.pad,
    "constant_pad_nd": Lowering.pad,
}
