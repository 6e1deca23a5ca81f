"""The integers as C99: one file, no dependency, no heap, all memory in one arena.

`write_c` is text from an `IntegerGraph`. Its kernels are the files of `kernels/`; `dot` of
`convolve.c` is the inner loop, and the only place that knows instructions of a processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfmeg.networks.graph import Shape, axis_maps, even_steps
from halfmeg.shipping.c_constants import Constants, Fields, number, quoted, structure
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
    Operation,
    Product,
    Rearrangement,
    Softmax,
    UInt8,
)
from halfmeg.shipping.render import render

KERNELS = {
    "broadcast": (), "sum": ("broadcast",), "positions": (),
    "convolve": ("broadcast", "sum", "positions"), "depthwise": ("positions",),
    "combine": ("broadcast", "sum"), "multiply": ("broadcast",), "pool": (), "maximum": ("pool",),
    "average": ("pool",), "lookup": (), "concatenate": (), "take": (), "gather": (), "walk": (),
    "finish": (), "normalize": ("finish",), "share": ("finish",), "matrices": ("finish",),
}  # fmt: skip
"""Each file of kernels/, in the order of the text, and the files that it needs before it."""

PROBABILITY_STEPS = 32
"""Entries of the table of exponentials for each unit of a logit."""

PROBABILITY_TABLE = np.rint(32767 * np.exp(-np.arange(256) / PROBABILITY_STEPS)).astype(np.uint16)


def write_c(
    graph: IntegerGraph, name: str, classes: Sequence[str], temperature: float = 1.0
) -> dict[str, str]:
    """Return the source and its header, by their names.

    Args:
        graph: the network.
        name: prefix of all that the header declares, an identifier of C.
        classes: names of the classes.
        temperature: by which logits are divided before they become probabilities.
    """
    writer = _Writer(graph)
    for index, operation in enumerate(graph.operations):
        writer.write(index, operation)
    writer.constants.add("exponentials", PROBABILITY_TABLE)
    facts: dict[str, Any] = {
        "name": name,
        "macro": name.upper(),
        "classes": [quoted(label) for label in classes],
        "image": graph.image,
        "arena_bytes": graph.plan.arena_bytes,
        "constant_bytes": graph.constant_bytes,
        "constants": writer.constants.text(),
        "sizes": " + ".join(f"sizeof {constant}" for constant in writer.constants.names),
        "structures": "\n".join(writer.structures),
        "calls": writer.calls,
        "kernels": writer.kernels(),
        "output": graph.output and {
            "offset": graph.plan.offsets[-1],
            "zero": graph.output.zero_point,
            "scale": number(graph.output.scale),
        },
        "probability_scale": number(np.float32(PROBABILITY_STEPS / temperature)),
    }  # fmt: skip
    return {
        f"{name}.c": render("c/network.c", **facts),
        f"{name}.h": render("c/network.h", **facts),
    }


class _Writer:
    """Collects constants, structures and calls of kernels, operation by operation."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph = graph
        self.constants = Constants()
        self.structures: list[str] = []
        self.calls: list[str] = []
        self._used: set[str] = set()

    def kernels(self) -> str:
        """Return the text of all kernels that are called."""
        needed = {part for used in self._used for part in (*KERNELS[used], used)}
        folder = files("halfmeg.shipping").joinpath("kernels")
        names = ["common", *(kernel for kernel in KERNELS if kernel in needed)]
        texts = [folder.joinpath(f"{kernel}.c").read_text(encoding="ascii") for kernel in names]
        return "\n".join(texts)

    def write(self, index: int, operation: Operation) -> None:
        """Add an operation, or none where the one before has added it too."""
        joined = self.graph.plan.joined
        if index and joined[index - 1]:
            return
        sources = [self.place(source) for source in operation.inputs]
        shapes = [self.graph.shape_of(source) for source in operation.inputs]
        result = self.place(index + 1)
        logits = operation.quantization is None
        ends = "0, logits" if logits else f"{result}, 0"
        structure_name = f"&layer_{index}"
        match operation:
            case Convolution():
                self.convolution(index, operation, shapes[0])
                if operation.is_depthwise:
                    self.call("depthwise", "convolve_channels", structure_name, sources[0], result)
                else:
                    scratch = self.graph.plan.scratch[index]
                    assert scratch is not None
                    patch = f"memory.values + {scratch // 2}"
                    added = ("0", "0")
                    if joined[index]:
                        ends = f"{self.place(index + 2)}, 0"
                        added = self.joined_sum(index + 1)
                    self.call(
                        "convolve", "convolve", structure_name, sources[0], ends, patch, *added
                    )
            case Combination():
                self.combination(index, operation, shapes)
                second = sources[1] if len(sources) > 1 else "0"
                self.call("combine", "combine", structure_name, sources[0], second, ends)
            case Product():
                self.product(index, operation, shapes)
                self.call("multiply", "multiply", structure_name, *sources, ends)
            case Average():
                self.pooling(
                    index, operation, shapes[0], scale=operation.scale[0],
                    outside=operation.outside, zero=operation.zero_point,
                    **self.table(index, operation.table),
                )  # fmt: skip
                self.call("average", "pool_average", structure_name, sources[0], ends)
            case Normalization():
                self.normalization(index, operation)
                self.call("normalize", "normalize", structure_name, sources[0], ends)
            case Softmax():
                self.softmax(index, operation)
                self.call("share", "share", structure_name, sources[0], ends)
            case MatrixProduct():
                self.matrix_product(index, operation, shapes[0])
                self.call("matrices", "multiply_matrices", structure_name, *sources, ends)
            case Maximum():
                self.pooling(index, operation, shapes[0])
                self.call("maximum", "pool_maximum", structure_name, sources[0], result)
            case Lookup():
                table = self.constants.add(f"table_{index}", operation.table)
                values = int(np.prod(operation.shape))
                self.call("lookup", "look_up", table, sources[0], values, result)
            case Concatenation():
                self.concatenation(index, operation, sources, shapes, result)
            case Rearrangement():
                self.rearrangement(index, operation, sources[0], shapes[0], result)
            case _:
                raise AssertionError(operation)

    def place(self, index: int) -> str:
        """Return where a map stands: 0 is the image, i the result of operation i - 1."""
        return f"arena + {self.graph.plan.offsets[index - 1]}" if index else "image"

    def call(self, kernel: str, function: str, *arguments: str | int) -> None:
        self._used.add(kernel)
        self.calls.append(f"{function}({', '.join(map(str, arguments))});")

    def table(self, index: int, table: UInt8 | None) -> dict[str, str]:
        return {} if table is None else {"table": self.constants.add(f"table_{index}", table)}

    def convolution(self, index: int, operation: Convolution, shape: Shape) -> None:
        weight = operation.weight.transpose(0, 2, 3, 1)  # kernel rows, columns, then channels
        filters = weight.reshape(len(weight), -1)
        if operation.is_depthwise:
            filters = filters.T  # one tap of all channels after another
        else:
            filters = np.pad(filters, ((0, 0), (0, -filters.shape[1] % 4)))
        fields: Fields = {
            "weight": self.constants.add(f"weight_{index}", filters, operation.weight_key),
            "bias": self.constants.add(f"bias_{index}", operation.bias),
            "scale": self.constants.add(f"scale_{index}", operation.scale),
            **self.table(index, operation.table),
        }
        if operation.has_border:
            fields["row_class"] = self.constants.add(f"rows_{index}", operation.row_class)
            fields["column_class"] = self.constants.add(f"columns_{index}", operation.column_class)
            fields["column_classes"] = operation.bias.shape[1]
        kernel, stride = operation.pool or ((1, 1), (1, 1))
        fields |= {
            "in_height": shape[1],
            "in_width": shape[2],
            "in_channels": shape[0],
            "groups": operation.groups,
            "out_height": operation.shape[1],
            "out_width": operation.shape[2],
            "out_channels": operation.shape[0],
            "kernel_height": operation.weight.shape[2],
            "kernel_width": operation.weight.shape[3],
            "stride_y": operation.stride[0],
            "stride_x": operation.stride[1],
            "dilation_y": operation.dilation[0],
            "dilation_x": operation.dilation[1],
            "top": operation.padding[0],
            "left": operation.padding[1],
            "pool_height": kernel[0],
            "pool_width": kernel[1],
            "pool_stride_y": stride[0],
            "pool_stride_x": stride[1],
            "fours": filters.shape[1] // 4,
            "outside": operation.outside,
            "zero": operation.zero_point,
        }
        self.structures.append(structure("convolution", f"layer_{index}", fields))

    def combination(self, index: int, operation: Combination, shapes: list[Shape]) -> None:
        multipliers = [
            self.constants.add(f"multiplier_{index}_{i}", _channels_last(multiplier))
            for i, multiplier in enumerate(operation.multipliers)
        ]
        _, height, width = operation.shape
        fields: Fields = {
            "multiplier": f"{{{', '.join(multipliers)}}}",
            "offset": self.constants.add(f"offset_{index}", _channels_last(operation.offset)),
            **self.table(index, operation.table),
            "inputs": len(multipliers),
            "height": height,
            "width": width,
            "channels": operation.shape[0],
            "in": f"{{{', '.join(map(_steps, shapes))}}}",
            "by": f"{{{', '.join(_steps(m.shape) for m in operation.multipliers)}}}",
            "plus": _steps(operation.offset.shape),
            "scale": operation.scale[0],
            "zero": operation.zero_point,
        }
        self.structures.append(structure("combination", f"layer_{index}", fields))

    def joined_sum(self, index: int) -> tuple[str, str]:
        """Add the sum that takes the values of the convolution before it; return its other map."""
        operation = self.graph.operations[index]
        assert isinstance(operation, Combination)
        own = operation.inputs.index(index)
        other = operation.inputs[1 - own]
        first, second = operation.multipliers[own], operation.multipliers[1 - own]
        shapes = [operation.shape, self.graph.shape_of(other)]
        self.combination(index, replace(operation, multipliers=(first, second)), shapes)
        return f"&layer_{index}", self.place(other)

    def product(self, index: int, operation: Product, shapes: list[Shape]) -> None:
        channels, height, width = operation.shape
        fields: Fields = {"height": height, "width": width, "channels": channels}
        fields["in"] = f"{{{', '.join(map(_steps, shapes))}}}"
        self.of_two("product", index, operation, fields)

    def matrix_product(self, index: int, operation: MatrixProduct, shape: Shape) -> None:
        columns, count, rows = operation.shape
        fields: Fields = {"count": count, "rows": rows, "columns": columns, "inner": shape[0]}
        self.of_two("matrix_product", index, operation, fields)

    def of_two(
        self, kind: str, index: int, operation: Product | MatrixProduct, fields: Fields
    ) -> None:
        """Add the structure of what multiplies two maps."""
        fields |= self.table(index, operation.table)
        fields |= {
            "scale": operation.scale[0],
            "zero_in": f"{{{', '.join(map(str, operation.zero_points))}}}",
            "zero": operation.zero_point,
        }
        self.structures.append(structure(kind, f"layer_{index}", fields))

    def normalization(self, index: int, operation: Normalization) -> None:
        channels, height, width = operation.shape
        fields: Fields = {
            "multiplier": self.constants.add(f"multiplier_{index}", operation.multiplier),
            "offset": self.constants.add(f"offset_{index}", operation.offset),
            **self.table(index, operation.table),
            "positions": height * width,
            "channels": channels,
            "root_bits": operation.root_bits,
            "quotient_bits": QUOTIENT_BITS,
            "reciprocal_bits": RECIPROCAL_BITS,
            "floor": f"UINT64_C({operation.floor})",
            "scale": operation.scale[0],
            "zero": operation.zero_point,
        }
        self.structures.append(structure("normalization", f"layer_{index}", fields))

    def softmax(self, index: int, operation: Softmax) -> None:
        channels, height, width = operation.shape
        fields: Fields = {
            "exponentials": self.constants.add(f"exponentials_{index}", operation.exponentials),
            **self.table(index, operation.table),
            "positions": height * width,
            "channels": channels,
            "share_bits": SHARE_BITS,
            "scale": operation.scale[0],
            "zero": operation.zero_point,
        }
        self.structures.append(structure("softmax", f"layer_{index}", fields))

    def pooling(self, index: int, operation: Maximum | Average, shape: Shape, **more: Any) -> None:
        fields = {
            "in_height": shape[1],
            "in_width": shape[2],
            "channels": shape[0],
            "out_height": operation.shape[1],
            "out_width": operation.shape[2],
            "kernel_height": operation.kernel[0],
            "kernel_width": operation.kernel[1],
            "stride_y": operation.stride[0],
            "stride_x": operation.stride[1],
            "top": operation.padding[0],
            "left": operation.padding[1],
            **more,
        }
        self.structures.append(structure("pooling", f"layer_{index}", fields))

    def concatenation(
        self, index: int, operation: Concatenation, sources: list[str], shapes: list[Shape],
        result: str,
    ) -> None:  # fmt: skip
        first = 0
        for i, (source, shape) in enumerate(zip(sources, shapes, strict=True)):
            table = operation.tables[i]
            name = self.constants.add(
                f"table_{index}_{i}", np.arange(256, dtype=np.uint8) if table is None else table
            )
            self.call(
                "concatenate", "place_channels", name, source, shape[1] * shape[2], shape[0],
                f"{result} + {first}", operation.shape[0],
            )  # fmt: skip
            first += shape[0]

    def rearrangement(
        self, index: int, operation: Rearrangement, source: str, shape: Shape, result: str
    ) -> None:
        maps = axis_maps(operation.index, shape)
        even = even_steps(operation.index, shape)
        if maps is None and even is not None:
            first, channel_step, row_step, column_step = even
            channels, height, width = operation.shape
            self.call(
                "walk", "walk", height, row_step, width, column_step, channels, channel_step,
                f"{source} + {first}", result,
            )  # fmt: skip
            return
        if maps is None:
            channels, height, width = shape
            places = np.arange(channels * height * width).reshape(height, width, channels)
            stored = places.transpose(2, 0, 1).ravel()  # where each value of C×H×W stands
            taken = np.where(operation.index < 0, -1, stored[operation.index])
            name = self.constants.add(f"places_{index}", taken.transpose(1, 2, 0).astype(np.int32))
            self.call("gather", "gather", name, taken.size, operation.outside, source, result)
            return
        channels_of, rows, columns = (
            self.constants.add(f"{axis}_{index}", places.astype(np.int16))
            for axis, places in zip(("channels", "rows", "columns"), maps, strict=True)
        )
        _, height, width = operation.shape
        self.call(
            "take", "take", rows, columns, channels_of, height, width, operation.shape[0], shape[2],
            shape[0], operation.outside, source, result,
        )  # fmt: skip


def _channels_last(array: NDArray[np.int32]) -> NDArray[np.int32]:
    return array.transpose(1, 2, 0)


def _steps(shape: tuple[int, ...]) -> str:
    """Return how far to go for the next row, column and channel of an array that broadcasts."""
    channels, height, width = shape
    row = width * channels if height > 1 else 0
    column = channels if width > 1 else 0
    return f"{{{row}, {column}, {1 if channels > 1 else 0}}}"
