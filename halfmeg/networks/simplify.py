"""Folds a traced graph: normalization into convolutions, functions and poolings into steps.

What is computed stays the same but for rounding. Each `Step` is then one pass over the image: an
operator, and what follows it value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
from torch import Tensor

from halfmeg.networks.graph import (
    Array,
    AvgPool,
    Combine,
    Conv,
    Function,
    Graph,
    MatMul,
    MaxPool,
    Multiply,
    Node,
    Normalize,
    Softmax,
    in_order,
)

SUMS = (Conv, Combine, Multiply, AvgPool, Normalize, Softmax, MatMul)
"""Operators that add up in more than 8 bits, so what follows is applied before they round."""


def simplify(graph: Graph, mean: Sequence[float], std: Sequence[float]) -> Graph:
    """Return a graph that takes pixels of 0 to 255 instead of normalized images.

    BatchNorm and other scales and shifts go into the convolution before them, else into the one
    behind them. Where that one pads with zeros, these are no zeros of its new input: `outside` of
    the convolution says what they are.

    Args:
        graph: as traced.
        mean, std: of the pixels scaled to [0, 1], for each channel.
    """
    scale = 1 / (255 * np.array(std, dtype=np.float64))
    shift = -np.array(mean, dtype=np.float64) / np.array(std, dtype=np.float64)
    pixels = graph.input
    normalized = Combine(
        "normalize", pixels.shape, (pixels,), (scale.reshape(-1, 1, 1),),
        shift.reshape(-1, 1, 1), "normalize",
    )  # fmt: skip
    nodes = _replaced(graph.nodes, {pixels: normalized})
    found = Graph(pixels, in_order(nodes[-1]))
    found = _apply(found, (_drop_identity, _fold_back, _merge_sums, _pass_pool))
    return _apply(found, (_fold_ahead, _compose))


@dataclass(frozen=True)
class Step:
    """An operator and what follows it value by value, before or after its result is rounded.

    Attributes:
        node: the operator.
        clamp: a clamp of its result, such as ReLU.
        function: then a function of one value.
        pool: then a maximum over windows that do not overlap, in a convolution's step.
    """

    node: Node
    clamp: Function | None = None
    function: Function | None = None
    pool: MaxPool | None = None

    @property
    def result(self) -> Node:
        """The node whose map the step writes."""
        return self.pool or self.function or self.clamp or self.node

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes whose maps it reads."""
        return self.node.inputs

    @property
    def can_give_logits(self) -> bool:
        """Whether it can end a network with sums that are not rounded to bytes."""
        depthwise = isinstance(self.node, Conv) and self.node.is_depthwise
        return isinstance(self.node, SUMS) and self.result is self.node and not depthwise


def steps(graph: Graph) -> tuple[Step, ...]:
    """Return the passes over an image that compute a graph."""
    followers = {source: node for node in graph.nodes for source in node.inputs}
    taken: set[Node] = set()
    found = []
    for node in graph.nodes:
        if node in taken:
            continue
        step = Step(node)
        while graph.consumers[step.result] == 1:
            ahead = followers[step.result]
            if isinstance(node, SUMS) and isinstance(ahead, Function) and step.function is None:
                if ahead.is_clamp and step.clamp is None:
                    step = replace(step, clamp=ahead)
                else:
                    step = replace(step, function=ahead)
            elif isinstance(node, Conv) and isinstance(ahead, MaxPool) and _is_tiling(ahead):
                step = replace(step, pool=ahead)
                taken.add(ahead)
                break
            else:
                break
            taken.add(ahead)
        found.append(step)
    return tuple(found)


def _is_tiling(pool: MaxPool) -> bool:
    """Return whether windows share no value, so that none is computed twice."""
    rows, columns = (k <= s for k, s in zip(pool.kernel, pool.stride, strict=True))
    return rows and columns and pool.padding == (0, 0, 0, 0)


Rule = Callable[[Node, Graph], Node | None]


def _apply(graph: Graph, rules: tuple[Rule, ...]) -> Graph:
    """Apply rules until none changes anything; each replaces a node by what it returns."""
    while True:
        changed = False
        for node in graph.nodes:
            for rule in rules:
                new = rule(node, graph)
                if new is not None:
                    nodes = _replaced(graph.nodes, {node: new})
                    last = new if node is graph.output else nodes[-1]
                    graph, changed = Graph(graph.input, in_order(last)), True
                    break
            if changed:
                break
        if not changed:
            return graph


def _replaced(nodes: tuple[Node, ...], new: dict[Node, Node]) -> tuple[Node, ...]:
    for node in nodes:
        if node not in new:
            node.inputs = tuple(new.get(source, source) for source in node.inputs)
    return nodes


def _drop_identity(node: Node, graph: Graph) -> Node | None:
    if _is_affine(node) and node.shape == node.inputs[0].shape:
        numbers = node.scales[0].size == node.shift.size == 1
        if numbers and not node.learned and node.scales[0].item() == 1 and node.shift.item() == 0:
            return node.inputs[0]
    return None


def _fold_back(node: Node, graph: Graph) -> Node | None:
    """Fold a scale and shift of each channel into the convolution before it."""
    conv = node.inputs[0]
    if not (_is_affine(node) and isinstance(conv, Conv) and graph.consumers[conv] == 1):
        return None
    scale, shift = _of_channels(node.scales[0], conv), _of_channels(node.shift, conv)
    if scale is None or shift is None or node.shape != conv.shape:
        return None
    return replace(
        conv,
        weight=conv.weight * scale[:, None, None, None],
        bias=conv.bias * scale + shift,
        weight_key=f"{conv.weight_key}|{node.key}",
    )


def _merge_sums(node: Node, graph: Graph) -> Node | None:
    """Take a scale and shift into the sum before or behind it."""
    if not isinstance(node, Combine):
        return None
    for position, source in enumerate(node.inputs):
        if not isinstance(source, Combine) or graph.consumers[source] > 1:
            continue
        if len(node.inputs) > 1 and len(source.inputs) > 1:
            continue
        conv = source.inputs[0]
        if _is_affine(source) and isinstance(conv, Conv) and graph.consumers[conv] == 1:
            continue  # it goes into the convolution
        scale = node.scales[position]
        before, after = slice(position), slice(position + 1, None)
        return replace(
            node,
            inputs=(*node.inputs[before], *source.inputs, *node.inputs[after]),
            scales=(*node.scales[before], *(scale * s for s in source.scales), *node.scales[after]),
            shift=node.shift + scale * source.shift,
            key=f"{source.key}|{node.key}",
            learned=source.learned or node.learned,
        )
    return None


def _pass_pool(node: Node, graph: Graph) -> Node | None:
    """Let what keeps the order of values go before a maximum, next to the operator before it."""
    pool = node.inputs[0]
    if not isinstance(pool, MaxPool) or graph.consumers[pool] > 1:
        return None
    (source,) = pool.inputs
    if not isinstance(source, SUMS) or graph.consumers[source] > 1:
        return None
    if isinstance(node, Function):
        if not node.is_clamp:
            return None
    else:
        if not (_is_affine(node) and bool((node.scales[0] > 0).all())):
            return None
        constants = (node.scales[0], node.shift)
        if node.shape != pool.shape or any(_of_channels(c, pool) is None for c in constants):
            return None
    moved = replace(node, inputs=(source,), shape=source.shape)
    return replace(pool, inputs=(moved,))


def _fold_ahead(node: Node, graph: Graph) -> Node | None:
    """Fold a scale and shift into the convolution behind it."""
    affine = node.inputs[0]
    if not (isinstance(node, Conv) and _is_affine(affine)):
        return None
    (source,) = affine.inputs
    if source.shape != affine.shape:
        return None
    scale, shift = (_of_channels(c, affine) for c in (affine.scales[0], affine.shift))
    per_group = node.weight.shape[1]
    if scale is not None and shift is not None:
        if not (scale != 0).all():
            return None  # what its zeros would be is not to be said
        group = np.arange(len(node.weight)) // (len(node.weight) // node.groups)
        channels = group[:, None] * per_group + np.arange(per_group)  # O×(C/groups)
        outside = (node.outside - shift) / scale
        scale, shift = scale[channels][:, :, None, None], shift[channels][:, :, None, None]
    elif node.padding == (0, 0, 0, 0) and node.weight.shape[1:] == source.shape:
        scale, shift = (np.broadcast_to(c, source.shape) for c in (affine.scales[0], affine.shift))
        outside = node.outside
    else:
        return None
    return replace(
        node,
        inputs=(source,),
        weight=node.weight * scale,
        bias=node.bias + (node.weight * shift).sum((1, 2, 3)),
        outside=outside,
        has_outside=True,
        weight_key=f"{affine.key}|{node.weight_key}",
    )


def _compose(node: Node, graph: Graph) -> Node | None:
    """Make one function of two that follow each other, scales and shifts by a number included."""
    source = node.inputs[0]
    if graph.consumers[source] > 1 or node.shape != source.shape:
        return None
    inner, outer = _as_function(source), _as_function(node)
    if inner is None or outer is None or (inner.is_clamp and isinstance(source.inputs[0], SUMS)):
        return None
    if _is_affine(source) and _is_affine(node):
        return None
    f, g = outer.function, inner.function

    def composed(x: Tensor) -> Tensor:
        return f(g(x))

    both = outer.is_clamp and inner.is_clamp
    return Function(node.name, node.shape, source.inputs, composed, both)


def _as_function(node: Node) -> Function | None:
    if isinstance(node, Function):
        return node
    if not _is_affine(node):
        return None
    if node.scales[0].size > 1 or node.shift.size > 1:
        return None
    scale, shift = node.scales[0].item(), node.shift.item()
    return Function(node.name, node.shape, node.inputs, lambda x: x * scale + shift)


def _is_affine(node: Node) -> TypeGuard[Combine]:
    """Return whether a node is a scale and shift of one map."""
    return isinstance(node, Combine) and len(node.inputs) == 1


def _of_channels(constant: Array, node: Node) -> Array | None:
    """Return a constant as one value for each channel of a node, or None where it is not."""
    if constant.shape[1:] != (1, 1):
        return None
    return np.broadcast_to(constant.ravel(), node.shape[0])


def border_classes(node: Conv) -> tuple[Array, Array, Array]:
    """Return which positions of a convolution see the same part of their window.

    Where padding is a zero of the input itself (no `has_outside`), all positions are of one class.

    Returns:
        The class of each row and of each column, uint8; and for each pair of classes the taps that
        lie outside of the image, bool R×S×kh×kw.
    """
    _, height, width = node.inputs[0].shape
    found = []
    for axis, side in enumerate((height, width)):
        taps = np.arange(node.weight.shape[2 + axis]) * node.dilation[axis]
        starts = np.arange(node.shape[1 + axis]) * node.stride[axis] - node.padding[axis]
        places = starts[:, None] + taps
        missing = (places < 0) | (places >= side)
        if not node.has_outside:
            missing = np.zeros_like(missing)
        kinds, classes = np.unique(missing, axis=0, return_inverse=True)
        found.append((kinds, classes.ravel().astype(np.uint8)))
    (rows, row_class), (columns, column_class) = found
    outside = rows[:, None, :, None] | columns[None, :, None, :]
    return row_class, column_class, outside
