"""From a trained network to its `IntegerGraph`, calibrated on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halfmeg.networks.graph import (
    Array,
    AvgPool,
    Combine,
    Concat,
    Conv,
    Function,
    Gather,
    Graph,
    MatMul,
    MaxPool,
    Multiply,
    Node,
    Normalize,
)
from halfmeg.networks.graph import Softmax as SoftmaxNode
from halfmeg.networks.memory import flash_bytes, plan_arena
from halfmeg.networks.simplify import Step, border_classes, simplify, steps
from halfmeg.networks.trace import trace
from halfmeg.shipping.integer import IntegerGraph
from halfmeg.shipping.operations import (
    PIXELS,
    QUOTIENT_BITS,
    SHARE_BITS,
    Average,
    Combination,
    Concatenation,
    Convolution,
    Float32,
    Int8,
    Lookup,
    MatrixProduct,
    Maximum,
    Normalization,
    Operation,
    Product,
    Quantization,
    Rearrangement,
    Softmax,
    UInt8,
)

WEIGHT_LIMIT = 127
SUM_LIMIT = 2**30
"""No sum of int32 comes near its end."""

ROOT_DIGITS = 52
"""Bits of the number whose root is taken: float64 finds the root of such a one to within 1."""

BATCH_SIZE = 64

Ranges = dict[Node, tuple[float, float]]


def quantize(
    model: nn.Module, mean: Sequence[float], std: Sequence[float], calibration: Tensor
) -> IntegerGraph:
    """Return a network in integers.

    Weights are int8, symmetric, with a scale for each channel of the result. The range of each map
    is the smallest and largest value that the calibration images give.

    Args:
        model: the network.
        mean, std: of the pixels scaled to [0, 1], for each channel.
        calibration: uint8 B×C×H×W, of the training images.

    Raises:
        ValueError: a network that cannot be traced, an operator without an int8 form, or values
            that are not finite.
    """
    graph = simplify(trace(model, tuple(calibration.shape[1:])), mean, std)
    return quantize_graph(graph, measure_ranges(graph, calibration))


def measure_ranges(graph: Graph, calibration: Tensor) -> Ranges:
    """Return the smallest and largest value of each node's map over uint8 images B×C×H×W."""
    found: Ranges = {}
    with torch.inference_mode():
        for batch in calibration.split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            for node, values in graph.maps(batch.float()):
                low, high = (limit.item() for limit in values.aminmax())
                if not np.isfinite([low, high]).all():
                    raise ValueError(f"{node.name} has values that are not finite: no int8 form")
                before = found.get(node, (0.0, 0.0))  # zero is exact in every map
                found[node] = min(low, before[0]), max(high, before[1])
    return found


def quantize_graph(graph: Graph, ranges: Ranges) -> IntegerGraph:
    """Return a simplified graph in integers, each map with the range that was measured."""
    passes = steps(graph)
    operations = quantize_steps(passes, graph.input, ranges)
    return IntegerGraph(graph.input.shape, operations, plan_arena(passes), flash_bytes(passes))


def quantize_steps(
    passes: tuple[Step, ...], image: Node, ranges: Ranges
) -> tuple[Operation, ...]:  # fmt: skip
    """Return the operation of each pass."""
    places: dict[Node, int] = {image: 0}
    meanings: dict[Node, Quantization] = {image: PIXELS}
    operations: list[Operation] = []
    for step in passes:
        sources = [meanings[source] for source in step.inputs]
        inputs = tuple(places[source] for source in step.inputs)
        is_logits = step is passes[-1] and step.can_give_logits
        operation = _quantize_step(step, inputs, sources, ranges, is_logits)
        operations.append(operation)
        places[step.result] = len(operations)
        if operation.quantization is not None:
            meanings[step.result] = operation.quantization
    return tuple(operations)


def _quantize_step(
    step: Step, inputs: tuple[int, ...], sources: list[Quantization], ranges: Ranges,
    is_logits: bool,
) -> Operation:  # fmt: skip
    node, shape = step.node, step.result.shape
    result = _meaning(ranges[step.result])
    match node:
        case MaxPool():
            return Maximum(
                node.name, inputs, shape, sources[0], node.kernel, node.stride, node.padding
            )
        case Function():
            return Lookup(node.name, inputs, shape, result, _table(node, sources[0], result))
        case Concat():
            tables = tuple(None if s == result else _table(None, s, result) for s in sources)
            return Concatenation(node.name, inputs, shape, result, tables)
        case Gather():
            zero = sources[0].zero_point
            return Rearrangement(node.name, inputs, shape, sources[0], node.index, zero)
        case Conv() | Combine() | Multiply() | AvgPool() | Normalize() | SoftmaxNode() | MatMul():
            pass
        case _:
            raise AssertionError(node)
    # The sum is rounded to the meaning of what the table takes, or of the result itself.
    rounded, table = result, None
    if step.function is not None:
        rounded = _meaning(ranges[step.clamp or node])
        table = _table(step.function, rounded, result)
    common = (node.name, inputs, shape, None if is_logits else result)
    unit = np.float32(1) if is_logits else rounded.scale
    zero = 0 if is_logits else rounded.zero_point
    match node:
        case Conv():
            return _convolution(step, node, common, sources[0], unit, zero, table)
        case Combine():
            multipliers, offset, exact = _multipliers(node, sources)
            scale = np.array([exact / float(unit)], np.float32)
            return Combination(*common, scale, zero, table, multipliers, offset)
        case Multiply():
            first, second = sources
            scale = np.array([first.scale * second.scale / unit], np.float32)
            zeros = (first.zero_point, second.zero_point)
            return Product(*common, scale, zero, table, zeros)
        case Normalize():
            return _normalization(node, common, sources[0], unit, zero, table)
        case SoftmaxNode():
            scale = np.array([2.0**-SHARE_BITS / float(unit)], np.float32)
            below = np.arange(256) * float(sources[0].scale)
            exponentials = np.rint(2**SHARE_BITS * np.exp(-below)).astype(np.uint16)
            return Softmax(*common, scale, zero, table, exponentials)
        case MatMul():
            first, second = sources
            exact = float(first.scale) * float(second.scale) * node.factor
            scale = np.array([exact / float(unit)], np.float32)
            zeros = (first.zero_point, second.zero_point)
            return MatrixProduct(*common, scale, zero, table, zeros)
        case AvgPool():
            scale = np.array([float(sources[0].scale) / node.divisor / float(unit)], np.float32)
            return Average(
                *common, scale, zero, table, node.kernel, node.stride, node.padding,
                sources[0].zero_point,
            )  # fmt: skip
    raise AssertionError(node)


def _meaning(limits: tuple[float, float]) -> Quantization:
    low, high = limits
    scale = np.float32((high - low) / 255) or np.float32(1)
    return Quantization(scale, int(np.clip(np.rint(-low / float(scale)), 0, 255)))


def _table(node: Function | None, source: Quantization, result: Quantization) -> UInt8:
    """Return the function as a table; without one, that from one meaning to the other."""
    values = (np.arange(256) - source.zero_point) * float(source.scale)
    if node is not None:
        values = node.function(torch.from_numpy(values)).numpy()
    steps_of = np.rint(values / float(result.scale)) + result.zero_point
    # bytes that no image gave may lie where the function is not defined
    finite = np.nan_to_num(steps_of, nan=result.zero_point, posinf=255, neginf=0)
    found: UInt8 = finite.clip(0, 255).astype(np.uint8)
    return found


def _convolution(
    step: Step, node: Conv, common: tuple[str, tuple[int, ...], tuple[int, int, int],
    Quantization | None], source: Quantization, unit: np.float32, zero: int, table: UInt8 | None,
) -> Convolution:  # fmt: skip
    weight, weight_scale = _int8(node.weight, node.bias / float(source.scale))
    acc_scale = source.scale * weight_scale  # float32, and in this order as in onnxruntime
    exact = acc_scale.astype(np.float64)
    # Inside, the zero point counts for every weight. Outside of the image, padding is filled with
    # the zero point, and the bias of positions at the border makes up for what it stands for.
    base = node.bias / exact
    # What lies around an image is a pixel as any other. Around a map behind a folded BatchNorm of
    # small scale it is huge, and the bias has the exact shift in it: no weight may be rounded.
    taps = node.weight
    if source is PIXELS and node.outside.min() >= 0 and node.outside.max() <= 255:
        taps = weight.astype(np.float64) * weight_scale[:, None, None, None]
    group = np.arange(len(weight)) // (len(weight) // node.groups)
    channels = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])
    outside = (taps * node.outside[channels][:, :, None, None]).sum(1)  # O×kh×kw
    rows, columns, missing = border_classes(node)
    bias = np.empty((*missing.shape[:2], len(weight)))
    folded = source.zero_point * weight.astype(np.int64).sum((1, 2, 3))
    for place in np.ndindex(*missing.shape[:2]):
        border = (outside * missing[place]).sum((1, 2))
        bias[place] = np.rint(base + border / exact) - folded
    largest = 255 * np.abs(weight.astype(np.int64)).sum((1, 2, 3)) + np.abs(bias).max((0, 1))
    if largest.max() >= 2**31:
        raise ValueError(f"{node.name}: its sums do not fit 32 bits")
    pool = None if step.pool is None else (step.pool.kernel, step.pool.stride)
    return Convolution(
        *common,
        scale=acc_scale / unit,
        zero_point=zero,
        table=table,
        weight=weight,
        bias=bias.astype(np.int32),
        row_class=rows,
        column_class=columns,
        weight_scale=weight_scale,
        outside=source.zero_point,
        weight_key=node.weight_key,
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=node.groups,
        pool=pool,
        sides=node.shape[1:],
    )


def _int8(weight: Array, bias: Array) -> tuple[Int8, Float32]:
    """Return weights as int8 and the scale of each channel, which leaves room for the bias."""
    largest = np.abs(weight).max((1, 2, 3)) / WEIGHT_LIMIT
    room = np.abs(bias) / SUM_LIMIT
    scale = np.maximum(largest, room).astype(np.float32)
    scale[scale == 0] = 1
    steps_of = np.rint(weight / scale[:, None, None, None].astype(np.float64))
    return steps_of.clip(-WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scale


def _normalization(
    node: Normalize, common: tuple[str, tuple[int, ...], tuple[int, int, int],
    Quantization | None], source: Quantization, unit: np.float32, zero: int, table: UInt8 | None,
) -> Normalization:  # fmt: skip
    size = len(node.scale)
    floor = max(1, round(node.eps * (size / float(source.scale)) ** 2))
    largest = (size * 255) ** 2 // 4 + floor  # of N·Σq² − (Σq)²
    root_bits = (ROOT_DIGITS - largest.bit_length()) // 2
    if root_bits < 0:
        raise ValueError(f"{node.name}: its variances do not fit {ROOT_DIGITS} bits")
    # no value lies further from the mean than √(N − 1) deviations
    reach = float(np.abs(node.shift).max() + np.abs(node.scale).max() * (size**0.5 + 1))
    step = reach / SUM_LIMIT or 1.0
    return Normalization(
        *common,
        scale=np.array([step / float(unit)], np.float32),
        zero_point=zero,
        table=table,
        floor=floor,
        root_bits=root_bits,
        multiplier=np.rint(node.scale * 2.0**-QUOTIENT_BITS / step).astype(np.int32),
        offset=np.rint(node.shift / step).astype(np.int32),
    )


def _multipliers(
    node: Combine, sources: list[Quantization]
) -> tuple[tuple[NDArray[np.int32], ...], NDArray[np.int32], float]:
    """Return integers for scales and shift, and the unit of their sum.

    The unit is so small that the largest possible sum just fits.
    """
    exact = [
        scale * float(source.scale) for scale, source in zip(node.scales, sources, strict=True)
    ]
    largest = np.abs(node.shift).max() + sum(np.abs(e).max() * 2 * 255 for e in exact)
    unit = float(largest) / SUM_LIMIT or 1.0
    multipliers = tuple(np.rint(e / unit).astype(np.int32) for e in exact)
    offset = np.rint(node.shift / unit).astype(np.int64)
    for multiplier, source in zip(multipliers, sources, strict=True):
        offset = offset - multiplier.astype(np.int64) * source.zero_point
    return multipliers, offset.astype(np.int32), unit
