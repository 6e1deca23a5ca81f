"""int8 as integers: the one graph that C, WebAssembly and the exact ONNX are written from.

A map is uint8 with a scale and a zero point: value = scale · (q − zero_point). Sums are int32, and
each becomes uint8 by `requantize`, which is the same few float32 operations everywhere:
multiplication, clamping and rounding half to even. `run` is the oracle, in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfmeg.networks.graph import OUTSIDE, Padding, Shape
from halfmeg.networks.memory import Plan
from halfmeg.shipping.operations import (
    QUOTIENT_BITS,
    RECIPROCAL_BITS,
    SHARE_BITS,
    Average,
    Combination,
    Concatenation,
    Convolution,
    Float32,
    Int32,
    Lookup,
    MatrixProduct,
    Maximum,
    Normalization,
    Operation,
    Product,
    Quantization,
    Rearrangement,
    Softmax,
    Sum,
    UInt8,
)

EXACT_IN_FLOAT32 = 2**24
"""Integers up to here are exact in float32, and so are sums of them in any order."""


@dataclass(frozen=True)
class IntegerGraph:
    """A network in integers.

    Attributes:
        image: shape of the input, uint8.
        operations: in the order of computing; the last one gives the logits.
        plan: where each result stands in the memory of a device.
        constant_bytes: of all constants, as they are stored there.
    """

    image: Shape
    operations: tuple[Operation, ...]
    plan: Plan
    constant_bytes: int

    @property
    def output(self) -> Quantization | None:
        """What the bytes of the last result mean; None where they are the logits already."""
        return self.operations[-1].quantization

    @property
    def num_classes(self) -> int:
        """Length of the logits."""
        return self.operations[-1].shape[0]

    def shape_of(self, index: int) -> Shape:
        """Return the shape of a map: 0 is the image, i the result of operation i - 1."""
        return self.operations[index - 1].shape if index else self.image


def requantize(sums: Int32, scale: Float32, zero_point: int, table: UInt8 | None) -> UInt8:
    """Return int32 sums, channels last, as uint8.

    float32 throughout, as in C and onnxruntime: one rounding of the sum, one of the product, then
    half to even, which in C is adding 12582912.0f.
    """
    scaled = sums.astype(np.float32) * scale
    low, high = np.float32(-zero_point), np.float32(255 - zero_point)
    rounded = np.rint(np.clip(scaled, low, high)).astype(np.int32) + zero_point
    found: UInt8 = rounded.astype(np.uint8)
    return found if table is None else np.take(table, found)


def run(graph: IntegerGraph, images: UInt8, batch_size: int = 50) -> Float32:
    """Return float32 logits B×K of images B×C×H×W, exactly as a device computes them."""
    parts = [images[start:][:batch_size] for start in range(0, len(images), batch_size)]
    return np.concatenate([_run_batch(graph, part) for part in parts])


def maps(graph: IntegerGraph, images: UInt8) -> Iterator[NDArray[np.generic]]:
    """Yield the image and each result, B×H×W×C."""
    image = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    yield image
    last = {source: i for i, op in enumerate(graph.operations) for source in op.inputs}
    held: dict[int, UInt8] = {0: image}
    for i, operation in enumerate(graph.operations):
        held[i + 1] = compute(operation, [held[source] for source in operation.inputs])
        yield held[i + 1]
        for source in set(operation.inputs):
            if last[source] == i:
                del held[source]


def _run_batch(graph: IntegerGraph, images: UInt8) -> Float32:
    for found in maps(graph, images):
        result = found
    flat = result.reshape(len(images), -1)
    if graph.output is None:
        return flat.astype(np.float32)
    centred = flat.astype(np.int32) - graph.output.zero_point
    return centred.astype(np.float32) * graph.output.scale


def compute(operation: Operation, sources: list[UInt8]) -> UInt8:
    """Return the result of an operation, B×H×W×C; the last one's may be logits in float32."""
    match operation:
        case Sum():
            sums = _sums(operation, sources)
            if operation.quantization is None:
                return sums.astype(np.float32) * operation.scale  # type: ignore[return-value]
            found = requantize(sums, operation.scale, operation.zero_point, operation.table)
            if isinstance(operation, Convolution) and operation.pool is not None:
                kernel, stride = operation.pool
                return _windows(found, kernel, stride).max((-2, -1))  # type: ignore[no-any-return]
            return found
        case Maximum():
            padded = _pad(sources[0], operation.padding, 0)  # no byte is less
            windows = _windows(padded, operation.kernel, operation.stride)
            return windows.max((-2, -1))  # type: ignore[no-any-return]
        case Lookup():
            return np.take(operation.table, sources[0])
        case Concatenation():
            pairs = zip(sources, operation.tables, strict=True)
            return np.concatenate([x if t is None else t[x] for x, t in pairs], -1)
        case Rearrangement():
            flat = sources[0].transpose(0, 3, 1, 2).reshape(len(sources[0]), -1)
            taken = flat[:, operation.index].transpose(0, 2, 3, 1)
            outside = (operation.index == OUTSIDE).transpose(1, 2, 0)
            return np.where(outside, np.uint8(operation.outside), taken)
    raise AssertionError(operation)


def _convolve(operation: Convolution, sources: list[UInt8]) -> Int32:
    x = _pad(sources[0], operation.padding, operation.outside)
    weight = operation.weight
    channels, per_group, *kernel = weight.shape
    (step_y, step_x), (apart_y, apart_x) = operation.stride, operation.dilation
    height, width = operation.sides
    taps = [
        x[:, i * apart_y :, j * apart_x :][:, : (height - 1) * step_y + 1 : step_y][
            :, :, : (width - 1) * step_x + 1 : step_x
        ]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    flat = weight.transpose(2, 3, 1, 0).reshape(len(taps), per_group, channels)
    if operation.is_depthwise:
        sums = sum(tap.astype(np.int32) * w[0] for tap, w in zip(taps, flat, strict=True))
        return sums + _bias(operation)  # type: ignore[no-any-return]
    largest = 255 * int(np.abs(weight.astype(np.int64)).sum((1, 2, 3)).max())
    exact = np.float32 if largest < EXACT_IN_FLOAT32 else np.float64
    each = channels // operation.groups
    parts = []
    for group in range(operation.groups):
        ins = slice(group * per_group, (group + 1) * per_group)
        columns = np.concatenate([tap[..., ins].astype(exact) for tap in taps], -1)
        matrix = flat[:, :, group * each : (group + 1) * each].reshape(-1, each).astype(exact)
        parts.append((columns.reshape(-1, len(matrix)) @ matrix).astype(np.int32))
    sums = np.concatenate(parts, -1).reshape(len(x), height, width, channels)
    return sums + _bias(operation)


def _bias(operation: Convolution) -> Int32:
    """Return the bias of each position, H×W×O or 1×1×O."""
    if not operation.has_border:
        return operation.bias
    return operation.bias[operation.row_class][:, operation.column_class]


def _combine(operation: Combination, sources: list[UInt8]) -> Int32:
    terms = zip(sources, operation.multipliers, strict=True)
    total = operation.offset.transpose(1, 2, 0)
    for x, multiplier in terms:
        total = total + x.astype(np.int32) * multiplier.transpose(1, 2, 0)
    return total


def _multiply(operation: Product, sources: list[UInt8]) -> Int32:
    first, second = (
        x.astype(np.int32) - zero for x, zero in zip(sources, operation.zero_points, strict=True)
    )
    return first * second


def _average(operation: Average, sources: list[UInt8]) -> Int32:
    x = _pad(sources[0], operation.padding, operation.outside)
    windows = _windows(x, operation.kernel, operation.stride)
    values = operation.kernel[0] * operation.kernel[1]
    sums: Int32 = windows.sum((-2, -1), dtype=np.int32)
    return sums - np.int32(values * operation.outside)


def _normalize(operation: Normalization, sources: list[UInt8]) -> Int32:
    """Return sums of the quotient a / √v: see `Normalization`."""
    q = sources[0].astype(np.int64)
    total = q.sum(-1, keepdims=True)
    a = q.shape[-1] * q - total
    v = q.shape[-1] * (q * q).sum(-1, keepdims=True) - total * total + operation.floor
    wide = v << (2 * operation.root_bits)
    root = np.sqrt(wide.astype(np.float64)).astype(np.int64)
    root -= root * root > wide  # the float64 root may be off by one, whose floor is not
    root += (root + 1) * (root + 1) <= wide
    numerator = 1 << (operation.root_bits + QUOTIENT_BITS + RECIPROCAL_BITS)
    quotient = (a * (numerator // root) + (1 << (RECIPROCAL_BITS - 1))) >> RECIPROCAL_BITS
    sums: Int32 = quotient.astype(np.int32) * operation.multiplier + operation.offset
    return sums


def _share(operation: Softmax, sources: list[UInt8]) -> Int32:
    x = sources[0]
    parts = operation.exponentials[x.max(-1, keepdims=True) - x].astype(np.int64)
    total = parts.sum(-1, keepdims=True)
    shares: Int32 = (((parts << SHARE_BITS) + total // 2) // total).astype(np.int32)
    return shares


def _multiply_matrices(operation: MatrixProduct, sources: list[UInt8]) -> Int32:
    first, second = (
        x.astype(np.float64) - zero for x, zero in zip(sources, operation.zero_points, strict=True)
    )
    sums: Int32 = (first @ second.swapaxes(-1, -2)).astype(np.int32)  # exact: below 2^53
    return sums


def _sums(operation: Sum, sources: list[UInt8]) -> Int32:
    match operation:
        case Convolution():
            return _convolve(operation, sources)
        case Combination():
            return _combine(operation, sources)
        case Product():
            return _multiply(operation, sources)
        case Average():
            return _average(operation, sources)
        case Normalization():
            return _normalize(operation, sources)
        case Softmax():
            return _share(operation, sources)
        case MatrixProduct():
            return _multiply_matrices(operation, sources)
    raise AssertionError(operation)


def _pad(x: UInt8, padding: Padding, value: int) -> UInt8:
    top, left, bottom, right = padding
    if not any(padding):
        return x
    around = ((0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)), (0, 0))
    return np.pad(x, around, constant_values=value)


def _windows(x: UInt8, kernel: tuple[int, int], stride: tuple[int, int]) -> UInt8:
    """Return a view B×OH×OW×C×kh×kw."""
    view = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]]
