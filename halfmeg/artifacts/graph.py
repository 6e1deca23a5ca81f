"""An exported graph run by onnxruntime: what predicts without the network's source."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from halfmeg.data.shape import ImageShape
from halfmeg.errors import one_line

MAX_NODES = 5_000
MAX_MAPS = 2_048
"""No tensor holds more than this many numbers for each pixel of an image."""

MAX_REUSE = 8
"""No image takes more multiply-accumulates than this many for each parameter and pixel; of the
networks here none takes one."""

UNCOUNTED = ("Det", "DFT", "STFT")
"""Operators whose arithmetic `_terms` does not know, and no image classifier needs."""


def open_onnx(onnx_model: bytes, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a function from uint8 images B×C×H×W to float32 logits B×K, by onnxruntime.

    Args:
        onnx_model: the content of an ONNX file with the input `pixels` and the output `logits`.
        threads: of the processor; 0 means as many as there are.

    Raises:
        ValueError: onnxruntime is not installed; of the function, where the runtime fails.
        Exception: it cannot open the model; its errors have no common base.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("onnxruntime is missing: pip install -e '.[ship]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(["logits"], {"pixels": images.numpy()})[0])
        except Exception as error:  # as above
            reason = one_line(error, 200)
            raise ValueError(f"the ONNX file cannot be run: {reason}") from None

    return run


def onnx_logits(
    onnx_model: bytes, images: Tensor, *, batch_size: int = 64, threads: int = 0
) -> Tensor:
    """Return the logits N×K of an ONNX model for uint8 images N×C×H×W, as `open_onnx` does."""
    run = open_onnx(onnx_model, threads)
    batches = images.split(batch_size)  # type: ignore[no-untyped-call]
    return torch.cat([run(batch) for batch in batches])


def check_graph(content: bytes, shape: ImageShape, num_params: int) -> None:
    """Raise ValueError where an ONNX graph's memory or arithmetic is not bounded by its network."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    most_numbers = 2 * num_params + 100_000
    most_in_map = MAX_MAPS * shape.height * shape.width
    _check_nodes(model, num_params, most_numbers, most_in_map)
    shapes = _shapes(model, shape)
    most = max(2 * most_in_map, most_numbers)
    work = 0
    for node in model.graph.node:
        sizes = [math.prod(shapes.get(output, [-1])) for output in node.output if output]
        if not all(0 <= size <= most for size in sizes):
            raise ValueError(f"its node {node.op_type} gives a tensor of unknown or huge size")
        work += sum(sizes) * _terms(node, shapes)
    allowed = 2 * MAX_REUSE * (num_params + 100_000) * shape.height * shape.width
    if work > allowed:
        raise ValueError(f"it takes {work / 2:.3g} steps for an image; allowed: {allowed / 2:.3g}")


def _check_nodes(model: Any, num_params: int, most_numbers: int, most_in_map: int) -> None:
    """Raise ValueError where a graph branches, loops, reads files or holds too many numbers."""
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ValueError("it has more than one input and output")
    if len(graph.node) > MAX_NODES or model.functions or graph.sparse_initializer:
        raise ValueError(f"it is no plain graph of at most {MAX_NODES:,} nodes")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"its node {node.op_type} is of {node.domain!r}")
        if node.op_type in UNCOUNTED:
            raise ValueError(f"its node {node.op_type} takes steps that are not counted here")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ValueError(f"its node {node.op_type} branches or loops")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise ValueError(f"its node {node.op_type} holds a sparse tensor")
            tensors += [attribute.t, *attribute.tensors] if attribute.HasField("t") else []
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError("it asks for data outside of the file")
    # What rearranges a map has an index for each of its places, however few weights there are.
    indices = [math.prod(tensor.dims) for tensor in _only_indices(graph)]
    numbers = sum(math.prod(tensor.dims) for tensor in tensors) - sum(indices)
    if numbers > most_numbers or any(dim < 0 for tensor in tensors for dim in tensor.dims):
        raise ValueError(f"it holds {numbers:,} numbers, the network {num_params:,}")
    if (longest := max(indices, default=0)) > most_in_map:
        raise ValueError(f"a Gather has {longest:,} indices; allowed: {most_in_map:,}")


def _only_indices(graph: Any) -> list[Any]:
    """Return the initializers that are read as the indices of Gather alone.

    Each is one whose bytes stand in the file, so that all of them are bounded by its size.
    """
    read = {
        (name, node.op_type == "Gather" and place == 1)
        for node in graph.node
        for place, name in enumerate(node.input)
    }
    return [
        tensor
        for tensor in graph.initializer
        if (tensor.name, True) in read
        and (tensor.name, False) not in read
        and 0 <= math.prod(tensor.dims) <= len(tensor.raw_data)
    ]


def _shapes(model: Any, shape: ImageShape) -> dict[str, list[int]]:
    """Return the shapes of what is read and computed of two images, where they are known."""
    import onnx

    graph = model.graph
    declared = graph.input[0].type.tensor_type.shape
    for dim, size in zip(declared.dim, (2, *shape), strict=True):
        dim.dim_value = size
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *inferred.value_info, *inferred.output)
        if value.type.HasField("tensor_type")
        and value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def _terms(node: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return about how many products or values each number that a node gives is the sum of."""
    of_inputs = [shapes.get(name, []) for name in node.input] or [[]]
    for attribute in node.attribute:
        if attribute.name == "kernel_shape" and "Pool" in node.op_type:
            return int(max(1, math.prod(attribute.ints)))
    if "Conv" in node.op_type:
        weight = max(of_inputs[1:], key=len, default=[])
        outputs = weight[1:2] if "Transpose" in node.op_type else weight[:1]
        return max(1, math.prod(weight) // max(1, math.prod(outputs)))
    if "MatMul" in node.op_type or node.op_type == "Gemm":
        summed = of_inputs[0][-1:] if "MatMul" in node.op_type else of_inputs[0][-2:]
        return max(summed, default=1)
    if node.op_type in ("RNN", "GRU", "LSTM"):
        return max(1, sum(map(math.prod, of_inputs[1:3])) // max(1, *of_inputs[2][-1:]))
    if node.op_type == "Einsum":
        return max((dim for dims in of_inputs for dim in dims), default=1)
    return 1
