"""The integers as ONNX: the same logits, bit for bit, in onnxruntime.

Sums are `QLinearConv` where they can be; its requantization is that of `requantize`. Where they
cannot be, integer operators make the sum and float operators requantize it. Functions of one value
are a `Gather` from 256 bytes. Weights are stored as unsigned bytes around 128: with signed ones
onnxruntime adds pairs in 16 bits on processors without VNNI, and they overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfmeg.networks.graph import OUTSIDE, axis_maps
from halfmeg.shipping.integer import IntegerGraph
from halfmeg.shipping.operations import (
    QUOTIENT_BITS,
    RECIPROCAL_BITS,
    SHARE_BITS,
    Average,
    Combination,
    Concatenation,
    Convolution,
    Lookup,
    MatrixProduct,
    Maximum,
    Normalization,
    Product,
    Rearrangement,
    Softmax,
    Sum,
    UInt8,
)

OPSET = 17
IR_VERSION = 8
WEIGHT_ZERO = 128
POSITIVE = 2**60
"""Added to what is divided, a multiple of the divisor, so that it is positive."""


def to_onnx(graph: IntegerGraph) -> bytes:
    """Return the graph as ONNX: input `pixels` uint8 B×C×H×W, output `logits` B×K, any B."""
    from onnx import TensorProto, helper

    writer = _Writer()
    names = ["pixels"]
    for operation in graph.operations:
        names.append(writer.write(operation, [names[i] for i in operation.inputs], graph))
    last = names[-1]
    if graph.output is not None:
        centred = writer.add("Sub", writer.cast(last, "int32"), _int32(graph.output.zero_point))
        last = writer.add("Mul", writer.cast(centred, "float32"), graph.output.scale)
    writer.add("Flatten", last, axis=1, output="logits")
    image: list[str | int | None] = ["batch", *graph.image]
    made = helper.make_graph(
        writer.nodes,
        "int8",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, image)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", graph.num_classes])],
        writer.initializers,
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="halfmeg",
    )  # fmt: skip
    content: bytes = model.SerializeToString()
    return content


class _Writer:
    """Collects nodes and constants; each method returns the name of a result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def add(self, kind: str, *inputs: Any, output: str = "", **attributes: Any) -> str:
        """Add a node; inputs are names, or arrays, which become constants."""
        from onnx import helper

        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Return the name of a constant; equal ones stand in the file once."""
        from onnx import numpy_helper

        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return self._constants[key]

    def cast(self, name: str, dtype: str) -> str:
        from onnx import helper

        return self.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def write(self, operation: Any, sources: list[str], graph: IntegerGraph) -> str:
        """Add an operation."""
        match operation:
            case Convolution():
                return self.convolution(operation, sources[0])
            case Combination():
                terms = [
                    self.add("Mul", self.cast(name, "int32"), multiplier[None])
                    for name, multiplier in zip(sources, operation.multipliers, strict=True)
                ]
                total = terms[0] if len(terms) == 1 else self.add("Add", *terms)
                return self.requantize(operation, self.add("Add", total, operation.offset[None]))
            case Product():
                centred = [
                    self.add("Sub", self.cast(name, "int32"), _int32(zero))
                    for name, zero in zip(sources, operation.zero_points, strict=True)
                ]
                return self.requantize(operation, self.add("Mul", *centred))
            case Average():
                return self.average(operation, sources[0], graph.shape_of(operation.inputs[0]))
            case Normalization():
                return self.normalize(operation, sources[0])
            case Softmax():
                return self.share(operation, sources[0])
            case MatrixProduct():
                first, second = (
                    self.add("Sub", self.cast(name, "int32"), _int32(zero))
                    for name, zero in zip(sources, operation.zero_points, strict=True)
                )
                return self.requantize(operation, self.multiply_matrices(first, second))
            case Maximum():
                return self.maximum(
                    sources[0], operation.kernel, operation.stride, operation.padding
                )
            case Lookup():
                return self.lookup(sources[0], operation.table)
            case Concatenation():
                pairs = zip(sources, operation.tables, strict=True)
                parts = [name if t is None else self.lookup(name, t) for name, t in pairs]
                return self.add("Concat", *parts, axis=1)
            case Rearrangement():
                return self.rearrange(operation, sources[0], graph)
        raise AssertionError(operation)

    def convolution(self, operation: Convolution, x: str) -> str:
        weight = (operation.weight.astype(np.int16) + WEIGHT_ZERO).astype(np.uint8)
        attributes: dict[str, Any] = {
            "strides": operation.stride,
            "pads": operation.padding,
            "dilations": operation.dilation,
            "group": operation.groups,
        }
        zero, one = np.uint8(operation.outside), np.float32(1)
        weight_zero = np.uint8(WEIGHT_ZERO)
        # onnxruntime subtracts the zero point itself
        sums = operation.weight.astype(np.int64).sum((1, 2, 3))
        bias = (operation.bias + operation.outside * sums).astype(np.int32)
        if operation.quantization is None or operation.has_border:
            summed = self.add("ConvInteger", x, weight, zero, weight_zero, **attributes)
            found = self.requantize(
                operation, self.add("Add", summed, self.border(operation, bias))
            )
        else:
            # scale = (1 · scale) / 1: the operator's own formula, without another rounding
            rounded = self.add(
                "QLinearConv", x, one, zero, weight, operation.scale,
                np.full(len(weight), weight_zero), one, np.uint8(operation.zero_point), bias[0, 0],
                **attributes,
            )  # fmt: skip
            table = operation.table
            found = rounded if table is None else self.lookup(rounded, table)
        return found if operation.pool is None else self.maximum(found, *operation.pool)

    def border(self, operation: Convolution, bias: NDArray[np.int32]) -> str:
        """Return the bias of each position, 1×O×H×W, or 1×O×1×1 where it is the same."""
        found = self.constant(np.ascontiguousarray(bias.transpose(2, 0, 1)[None]))
        if operation.has_border:
            for axis, classes in ((2, operation.row_class), (3, operation.column_class)):
                found = self.add("Gather", found, classes.astype(np.int64), axis=axis)
        return found

    def average(self, operation: Average, x: str, shape: tuple[int, int, int]) -> str:
        kernel, zero = operation.kernel, operation.outside
        if kernel == shape[1:] and not any(operation.padding):
            axes = np.array([2, 3], np.int64)
            summed = self.add("ReduceSum", self.cast(x, "int32"), axes, keepdims=1)
            centred = self.add("Sub", summed, _int32(zero * kernel[0] * kernel[1]))
            return self.requantize(operation, centred)
        ones = np.ones((shape[0], 1, *kernel), np.uint8)
        summed = self.add(
            "ConvInteger", x, ones, np.uint8(zero), np.uint8(0),
            strides=operation.stride, pads=operation.padding, group=shape[0],
        )  # fmt: skip
        return self.requantize(operation, summed)

    def normalize(self, operation: Normalization, x: str) -> str:
        """Normalize with the root of `Normalization`, whatever root the runtime gives."""
        size = len(operation.multiplier)
        axis = np.array([1], np.int64)
        q = self.cast(x, "int64")
        total = self.add("ReduceSum", q, axis, keepdims=1)
        squares = self.add("ReduceSum", self.add("Mul", q, q), axis, keepdims=1)
        a = self.add("Sub", self.add("Mul", q, _int64(size)), total)
        v = self.add(
            "Sub", self.add("Mul", squares, _int64(size)), self.add("Mul", total, total)
        )  # fmt: skip
        v = self.add("Add", v, _int64(operation.floor))
        wide = self.add("Mul", v, _int64(4**operation.root_bits))
        root = self.cast(self.add("Sqrt", self.cast(wide, "float64")), "int64")
        too_large = self.add("Greater", self.add("Mul", root, root), wide)
        root = self.add("Sub", root, self.cast(too_large, "int64"))
        above = self.add("Add", root, _int64(1))
        too_small = self.add("LessOrEqual", self.add("Mul", above, above), wide)
        root = self.add("Add", root, self.cast(too_small, "int64"))
        numerator = 1 << (operation.root_bits + QUOTIENT_BITS + RECIPROCAL_BITS)
        product = self.add("Mul", a, self.add("Div", _int64(numerator), root))
        # Div rounds towards 0, so what it divides is made positive
        raised = self.add("Add", product, _int64(POSITIVE + (1 << (RECIPROCAL_BITS - 1))))
        quotient = self.add("Div", raised, _int64(1 << RECIPROCAL_BITS))
        quotient = self.add("Sub", quotient, _int64(POSITIVE >> RECIPROCAL_BITS))
        scaled = self.add("Mul", quotient, _per_channel(operation.multiplier))
        sums = self.add("Add", scaled, _per_channel(operation.offset))
        return self.requantize(operation, self.cast(sums, "int32"))

    def share(self, operation: Softmax, x: str) -> str:
        x = self.cast(x, "int32")
        below = self.add("Sub", self.add("ReduceMax", x, axes=[1], keepdims=1), x)
        parts = self.add("Gather", operation.exponentials.astype(np.int32), below)
        total = self.add("ReduceSum", parts, np.array([1], np.int64), keepdims=1)
        raised = self.add("Mul", parts, _int32(1 << SHARE_BITS))
        rounded = self.add("Add", raised, self.add("Div", total, _int32(2)))
        return self.requantize(operation, self.add("Div", rounded, total))

    def multiply_matrices(self, first: str, second: str) -> str:
        """Return N×R×M of K×R×M and K×R×N."""
        rows = self.add("Transpose", self.cast(first, "float64"), perm=[0, 2, 3, 1])
        columns = self.add("Transpose", self.cast(second, "float64"), perm=[0, 2, 1, 3])
        product = self.cast(self.add("MatMul", rows, columns), "int32")  # exact: below 2^53
        return self.add("Transpose", product, perm=[0, 3, 1, 2])

    def requantize(self, operation: Sum, sums: str) -> str:
        """Round int32 sums to bytes, or leave logits as they are."""
        scale = operation.scale.reshape(1, -1, 1, 1)
        scaled = self.add("Mul", self.cast(sums, "float32"), scale)
        if operation.quantization is None:
            return scaled
        low, high = np.float32(-operation.zero_point), np.float32(255 - operation.zero_point)
        rounded = self.add("Round", self.add("Clip", scaled, low, high))
        shifted = self.add("Add", rounded, np.float32(operation.zero_point))
        found = self.cast(shifted, "uint8")
        return found if operation.table is None else self.lookup(found, operation.table)

    def lookup(self, x: str, table: UInt8) -> str:
        return self.add("Gather", table, self.cast(x, "int32"))

    def maximum(
        self, x: str, kernel: tuple[int, int], stride: tuple[int, int],
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> str:  # fmt: skip
        return self.add("MaxPool", x, kernel_shape=kernel, strides=stride, pads=padding)

    def rearrange(self, operation: Rearrangement, x: str, graph: IntegerGraph) -> str:
        shape = graph.shape_of(operation.inputs[0])
        maps = axis_maps(operation.index, shape)
        outside = np.uint8(operation.outside)
        if maps is None:
            flat = self.add("Flatten", x, axis=1)
            index = operation.index.ravel()
            taken = self.take(flat, index, 1, int(np.prod(shape)), 2, outside)
            return self.add("Reshape", taken, np.array([-1, *operation.shape], np.int64))
        for axis, (places, size) in enumerate(zip(maps, shape, strict=True), start=1):
            if not np.array_equal(places, np.arange(size)):
                x = self.take(x, places, axis, size, 4, outside)
        return x

    def take(
        self, x: str, places: NDArray[np.int64], axis: int, size: int, axes: int, outside: np.uint8
    ) -> str:
        """Take places along an axis; `OUTSIDE` is one more place behind its end."""
        if (places == OUTSIDE).any():
            pads = np.zeros(2 * axes, np.int64)
            pads[axes + axis] = 1
            x = self.add("Pad", x, pads, outside)
            places = np.where(places == OUTSIDE, size, places)
        return self.add("Gather", x, places, axis=axis)


def _int64(value: int) -> NDArray[np.int64]:
    return np.asarray(value, np.int64)


def _per_channel(values: NDArray[np.int32]) -> NDArray[np.int64]:
    return values.astype(np.int64).reshape(1, -1, 1, 1)


def _int32(value: int) -> NDArray[np.int32]:
    return np.asarray(value, np.int32)
