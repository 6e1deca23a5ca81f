"""A network as ONNX: in float32, and where integers do not know it in int8 by a library."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.errors import with_kind
from halfmeg.files import scratch_folder
from halfmeg.networks.trace import quiet

FOLD_TOLERANCE = 1e-3
"""Largest difference of a logit, in parts of the largest, that folding may make by rounding."""


def fold_batchnorm(model: nn.Module, image_size: ImageSize) -> nn.Module:
    """Return a copy in evaluation mode with each BatchNorm folded into the layer before it.

    The layer before it is taken to be the child before it. Where that is not so, the logits differ,
    and the copy is left unfolded; onnxruntime folds what it finds itself.
    """
    plain = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, *image_shape(image_size), generator=generator)
    try:
        folded = _fold_into_child_before(plain)
        with torch.no_grad():
            expected, found = plain(images), folded(images)
    except (RuntimeError, ValueError, AttributeError, TypeError):  # of layers that do not fit
        return plain
    scale = max(1.0, expected.abs().max().item())
    return folded if (found - expected).abs().max() <= FOLD_TOLERANCE * scale else plain


def _fold_into_child_before(model: nn.Module) -> nn.Module:
    """Return a folded copy of a network in evaluation mode.

    A max-pool between the two may stay where BatchNorm's scale is positive, as a maximum then moves
    with it.
    """
    folded = copy.deepcopy(model)
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
    """A network that takes pixels: uint8 B×C×H×W to logits B×K."""

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("scale", (1 / 255 / torch.tensor(std)).view(1, -1, 1, 1))
        self.register_buffer("offset", (-torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize and classify."""
        return self.model(pixels.float() * self.scale + self.offset)  # type: ignore[no-any-return]


def to_onnx(
    model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], image_size: ImageSize
) -> bytes:
    """Return a network as ONNX: input `pixels` uint8 B×C×H×W, output `logits` B×K, any B.

    Raises:
        ValueError: the exporter refuses the network.
    """
    deployed = FromPixels(fold_batchnorm(model, image_size), mean, std).eval()
    # Weights in channels_last make the exporter write a global pool as Range and Gather.
    deployed.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # A batch of 1 in the example would be taken for a constant.
    example = torch.zeros(2, *image_shape(image_size), dtype=torch.uint8)
    try:
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
            model_proto = _fold_sizes(program.model_proto)
    except Exception as error:  # whatever the exporter, or a user's code in it, raises
        cause: BaseException = error
        while cause.__cause__ is not None:  # those around it say how to debug the exporter
            cause = cause.__cause__
        reason = with_kind(cause, 200)
        raise ValueError(
            f"torch.onnx does not export the network: {reason}; model.onnx cannot be made"
        ) from None
    content: bytes = _without_origins(model_proto).SerializeToString()
    return content


def _fold_sizes(model: Any) -> Any:
    """Compute what depends on the sides of maps alone; the exporter leaves it to the runtime.

    Else a graph with `unfold` has a Range whose length nobody can bound before it runs. Sizes that
    go through a Reshape of a vector to a vector are lost to the inference of shapes likewise.
    """
    import onnxscript.optimizer
    from onnx import numpy_helper, shape_inference

    inferred = shape_inference.infer_shapes(model).graph.value_info
    dims = {value.name: value.type.tensor_type.shape.dim for value in inferred}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    measured = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Shape" and not any(attribute.i for attribute in node.attribute)
    }
    folded = False
    for node in list(model.graph.node):
        if node.op_type == "Reshape" and len(dims.get(node.input[0], ())) == 1:
            flat = constants.get(node.input[1])
            if flat is not None and flat.tolist() == [-1]:  # leaves a vector as it is
                node.op_type = "Identity"
                del node.input[1:], node.attribute[:]
                folded = True
        if node.op_type != "Gather" or node.input[0] not in measured:
            continue
        sizes, index = dims.get(measured[node.input[0]], ()), constants.get(node.input[1])
        if index is None or index.ndim or not sizes:  # of some operators no rank is known
            continue
        if sizes[int(index)].HasField("dim_value"):
            size = np.array(sizes[int(index)].dim_value, np.int64)
            model.graph.initializer.append(numpy_helper.from_array(size, node.output[0]))
            model.graph.node.remove(node)
            folded = True
    return onnxscript.optimizer.optimize(model) if folded else model


def _without_origins(model: Any) -> Any:
    """Drop where in the source each node comes from, which names folders of this machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
    return model


def quantize_by_library(onnx_model: bytes, calibration: Tensor) -> bytes:
    """Return an ONNX model in int8, calibrated on uint8 images B×C×H×W.

    For networks with operators that `halfmeg.shipping.quantize` refuses. Static, in QDQ form:
    weights in 7 of 8 bits for each channel, since processors with AVX2 but without VNNI overflow
    at 8, activations in 8 bits between the largest and smallest seen.
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

    with scratch_folder() as folder, quiet():
        plain, prepared, small = (folder / f"{n}.onnx" for n in ("plain", "prepared", "int8"))
        plain.write_bytes(onnx_model)
        # its symbolic shapes fail on axes that are an input; onnx's own know them
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
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
