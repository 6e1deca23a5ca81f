"""Operators that mix what stands in several places: LayerNorm, softmax and attention, as nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.networks.graph import MatMul, Node, Normalize, Shape, Softmax
from halfmeg.networks.lowering import Lowering
from halfmeg.networks.values import Value, array


def layer_norm(
    lowering: Lowering, input: Value, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5, **_: Any,
) -> Value:  # fmt: skip
    """Normalize over the last axes: their values become the channels of one position."""
    axes = len(normalized_shape)
    joined = Value(input.node, input.index.flatten(-axes))
    source, restore = _channels(lowering, joined, -1)
    size = source.shape[0]
    scale = np.ones(size) if weight is None else array(weight).ravel()
    shift = np.zeros(size) if bias is None else array(bias).ravel()
    found = restore(Normalize(lowering.name, source.shape, (source,), scale, shift, eps))
    return Value(found.node, found.index.view(input.index.shape))


def softmax(lowering: Lowering, self_: Value, dim: int, *_: Any, **__: Any) -> Value:
    """Share out along an axis."""
    source, restore = _channels(lowering, self_, dim)
    return restore(Softmax(lowering.name, source.shape, (source,)))


def _channels(lowering: Lowering, value: Value, axis: int) -> tuple[Node, Callable[[Node], Value]]:
    """Return a node whose channels are an axis of a tensor, and what makes tensors of its like."""
    index = value.index
    axis %= index.dim()
    if index.shape[0] != 1:  # the batch of one image was joined with another axis
        index, axis = index.unsqueeze(0), axis + 1
    if axis == 0:
        raise lowering.unknown("over the images of a batch")
    moved = index.movedim(axis, 1)
    flat = moved.flatten(2) if moved.dim() > 4 else moved
    source = lowering.node(Value(value.node, flat))

    def restore(node: Node) -> Value:
        places = torch.arange(moved.numel()).view(moved.shape).movedim(1, axis)
        return Value(node, places.reshape(value.index.shape))

    return source, restore


def matmul(lowering: Lowering, self_: Value, other: Value | Tensor) -> Value:
    """Multiply by a constant matrix, or two maps matrix by matrix."""
    if isinstance(self_, Value) and isinstance(other, Tensor) and other.dim() == 2:
        lowering.weights += " turned"  # `linear` may have the same matrix as it is
        return lowering.linear(self_, other.T)
    if not (isinstance(self_, Value) and isinstance(other, Value)):
        raise lowering.unknown("by a constant that is no matrix")
    return _products(lowering, self_, other, 1.0)


def batched_matmul(lowering: Lowering, self_: Value, mat2: Value | Tensor) -> Value:
    """Multiply two maps matrix by matrix."""
    return matmul(lowering, self_, mat2)


def attention(
    lowering: Lowering, query: Value, key: Value, value: Value, attn_mask: Any = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:  # fmt: skip
    """Mix values by the softmax of products of queries and keys."""
    if attn_mask is not None or is_causal or enable_gqa:
        raise lowering.unknown("with a mask or shared heads")
    factor = query.index.shape[-1] ** -0.5 if scale is None else scale
    turned = Value(key.node, key.index.transpose(-1, -2))
    shares = softmax(lowering, _products(lowering, query, turned, factor), -1)
    return _products(lowering, shares, value, 1.0)


def _products(lowering: Lowering, first: Value, second: Value, factor: float) -> Value:
    """Return first (…×M×K) times second (…×K×N)."""
    if min(first.index.dim(), second.index.dim()) < 3:
        raise lowering.unknown("of two maps without rows")
    (rows, inner), columns = first.index.shape[-2:], second.index.shape[-1]
    batch = np.broadcast_shapes(first.index.shape[:-2], second.index.shape[:-2])
    sources = []
    for value, sides, axis in ((first, (rows, inner), -1), (second, (inner, columns), -2)):
        matrices = value.index.expand(*batch, *sides).reshape(1, -1, *sides)
        sources.append(lowering.node(Value(value.node, matrices.movedim(axis, 1))))
    count = math.prod(batch)
    shape: Shape = (columns, count, rows)
    node = MatMul(lowering.name, shape, tuple(sources), factor)
    places = torch.arange(math.prod(shape)).view(columns, count, rows).movedim(0, -1)
    return Value(node, places.reshape(*batch, rows, columns))


MIXING: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "matmul": matmul,
    "bmm": batched_matmul,
    "scaled_dot_product_attention": attention,
}
