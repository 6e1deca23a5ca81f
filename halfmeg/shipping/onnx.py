<<<<<<< HEAD
"""A network as ONNX, in float32 and int8, and its logits by onnxruntime."""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode with each BatchNorm folded into the layer before it.

    The layer before it is the child before it: so all networks of `MODELS` are written. A max-pool
    between the two may stay where BatchNorm's scale is positive, as a maximum then moves with it.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        before: tuple[str, nn.Module] | None = None
        pooled = False
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d):
                pooled = True
                continue
            movable = not pooled or (isinstance(child, nn.BatchNorm2d) and child.weight.min() > 0)
            if not (before and movable):
                pass
            elif isinstance(child, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.BatchNorm1d) and isinstance(before[1], nn.Linear):
                setattr(module, before[0], fuse_linear_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before, pooled = (name, child), False
    return folded


class FromPixels(nn.Module):
    """A network that takes pixels: uint8 B×3×H×W to logits B×K."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", (1 / 255 / torch.tensor(std)).view(1, 3, 1, 1))
        self.register_buffer("offset", (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize and classify."""
        return self.model(pixels.float() * self.scale + self.offset)  # type: ignore[no-any-return]


def to_onnx(
    model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], image_size: int
) -> bytes:
    """Return a network as ONNX: input `pixels` uint8 B×3×H×W, output `logits` B×K, any B."""
    deployed = FromPixels(fold_batchnorm(model), mean, std).eval()
    # A batch of 1 in the example would be taken for a constant.
    example = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    with quiet():
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=65_536)}},
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def quantize(onnx_model: bytes, calibration: Tensor) -> bytes:
    """Return an ONNX model in int8, calibrated on uint8 images B×3×H×W.

    Static, in QDQ form: weights in 7 of 8 bits for each channel, since processors with AVX2 but
    without VNNI overflow at 8, activations in 8 bits between the largest and smallest seen.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration.split(64))  # type: ignore[no-untyped-call]

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, prepared, small = (Path(folder) / f"{n}.onnx" for n in ("plain", "prepared", "int8"))
        plain.write_bytes(onnx_model)
        quant_pre_process(str(plain), str(prepared))
        quantize_static(
            str(prepared),
            str(small),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return small.read_bytes()


def onnx_logits(onnx_model: bytes, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Return the logits of an ONNX model for uint8 images, by onnxruntime on the processor."""
    session = open_session(onnx_model)
    chunks = images.split(batch_size)  # type: ignore[no-untyped-call]
    return torch.cat(
        [torch.from_numpy(session.run(None, {"pixels": chunk.numpy()})[0]) for chunk in chunks]
    )


def open_session(onnx_model: bytes, threads: int = 0) -> Any:
    """Return an onnxruntime session on the processor; 0 threads means as many as there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' own chatter from the user's screen."""
    from contextlib import redirect_stderr, redirect_stdout

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
=======
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
from halfmeg.shipping.integer import (
    Average,
    Combination,
    Concatenation,
    Convolution,
    IntegerGraph,
    Lookup,
    Maximum,
    Product,
    Rearrangement,
    Sum,
    UInt8,
)

OPSET = 17
IR_VERSION = 8
WEIGHT_ZERO = 128


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
    image = ["batch", *graph.image]
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
        attributes = {
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


def _int32(value: int) -> NDArray[np.int32]:
    return np.asarray(value, np.int32)
>>>>>>> 0378eef (Write the exact ONNX from the integers)
