"""A network as ExecuTorch programs (`.pte`) for XNNPACK, in float32 and in int8.

Torch's own exporter and quantizer write them. Normalization stays in float32, as int8 would round
every pixel twice. A global average keeps its axes for a while: XNNPACK takes no other form.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from halfmeg.data.dataset import Dataset
from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.errors import one_line
from halfmeg.evaluation.evaluate import score
from halfmeg.networks.trace import quiet
from halfmeg.shipping.onnx import FromPixels, fold_batchnorm
from halfmeg.shipping.program import (
    require_packages,
    taken_from_the_screen,
    with_kept_axes,
    with_pooling,
)
from halfmeg.shipping.proof import check_loss, loses, lost
from halfmeg.shipping.verify import logit_tolerance

NUM_CALIBRATION = 200


@dataclass(frozen=True)
class ExecutorchFiles:
    """Two ExecuTorch programs with their proof.

    Attributes:
        float32, int8: contents; input is float32 1×C×H×W, pixels from 0 to 255, output logits 1×K.
        max_difference: largest difference between a float32 logit and torch's.
        loss: accuracy that int8 loses, as a share, on `n` images.
        portable: operators that XNNPACK does not take, by name; the runtime's portable ones
            compute them.
        runtime: name and version of what ran both.
    """

    float32: bytes
    int8: bytes
    max_difference: float
    loss: float
    n: int
    portable: tuple[str, ...]
    runtime: str

    @property
    def proof_text(self) -> str:
        """What was proved, in a line."""
        others = f"; {', '.join(self.portable)} by portable kernels" if self.portable else ""
        return (
            f"float32 logits differ by at most {self.max_difference:.1e}, int8 "
            f"{loses(self.loss)} on {self.n:,} images in {self.runtime}{others}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a bundle states, as JSON types."""
        return {
            "bytes": len(self.float32), "int8_bytes": len(self.int8),
            "max_difference": self.max_difference, "loss": self.loss, "n": self.n,
            "portable_operators": list(self.portable), "runtime": self.runtime,
        }  # fmt: skip


def require_executorch() -> None:
    """Check for the exporter.

    Raises:
        ValueError: it is missing; the message says what to install.
    """
    require_packages("executorch", "executorch", "torchao")


def build_executorch(
    model: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    image_size: ImageSize,
    calibration: Tensor,
    held_out: Dataset,
    reference: Tensor,
    allowed_loss: float,
) -> ExecutorchFiles:
    """Return a network as ExecuTorch programs, run on images before they are handed out.

    Args:
        model: the network.
        mean, std: of the pixels scaled to [0, 1], for each channel.
        image_size: of the images.
        calibration: uint8 B×C×H×W, of the training images.
        held_out: images and labels of the proof.
        reference: torch's logits of these images, in float32.
        allowed_loss: accuracy that int8 may lose, as a share.

    Raises:
        ValueError: the exporter or the runtime refuses the network, the float32 program differs by
            more than rounding, or the int8 one loses more.
    """
    require_executorch()
    deployed = FromPixels(fold_batchnorm(model, image_size), mean, std).eval()
    deployed.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    try:
        with quiet(), taken_from_the_screen():
            module = _export(deployed, image_size)
            float32, _ = _lower(module, image_size)
            quantized = _quantize(module, calibration[:NUM_CALIBRATION].float())
            int8, portable = _lower(quantized, image_size)
            logits = run_program(float32, held_out.images)
            int8_logits = run_program(int8, held_out.images)
    except Exception as error:  # whatever exporter and runtime raise has no common base
        reason = one_line(error, 200)
        raise ValueError(f"executorch does not take the network: {reason}") from None
    difference = (logits - reference).abs().max().item()
    accuracy = score(reference, held_out.labels).accuracy
    if not difference <= logit_tolerance(reference):
        raise ValueError(
            f"the ExecuTorch program does not do what the network does: logits differ by "
            f"{difference:g}"
        )
    loss = lost(accuracy, score(int8_logits, held_out.labels).accuracy)
    images = f"{len(held_out):,} images"
    check_loss("the int8 ExecuTorch program", loss, allowed_loss, images)
    runtime = f"ExecuTorch {version('executorch')}"
    return ExecutorchFiles(float32, int8, difference, loss, len(held_out), portable, runtime)


def _example(image_size: ImageSize) -> tuple[Tensor]:
    return (torch.zeros(1, *image_shape(image_size)),)


def _export(model: nn.Module, image_size: ImageSize) -> Any:
    """Return a network as a graph whose poolings XNNPACK takes."""
    return with_kept_axes(with_pooling(torch.export.export(model, _example(image_size)).module()))


def _quantize(module: Any, images: Tensor) -> Any:
    """Return a graph with int8 operators, calibrated on float32 images B×C×H×W."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(_is_of_the_network)
    prepared = prepare_pt2e(module, quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image[None])
    return convert_pt2e(prepared)


def _is_of_the_network(node: Any) -> bool:
    """Whether an operator is not of `FromPixels` itself, which normalizes."""
    inside = node.meta.get("nn_module_stack", {})
    return len(inside) != 1


def _lower(module: Any, image_size: ImageSize) -> tuple[bytes, tuple[str, ...]]:
    """Return a program for XNNPACK, and the names of operators that are left to others."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.exir.dialects.edge._ops import EdgeOpOverload

    program = torch.export.export(module, _example(image_size))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    nodes = lowered.exported_program().graph.nodes
    left = {node.target.name() for node in nodes if isinstance(node.target, EdgeOpOverload)}
    content: bytes = lowered.to_executorch().buffer
    return content, tuple(sorted(left))


def run_program(content: bytes, images: Tensor) -> Tensor:
    """Return a program's logits of uint8 images B×C×H×W."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(content)  # reads from `content`, which has to outlive it
    method = program.load_method("forward")
    # the result lies in memory of the runtime, and the next call writes there
    return torch.cat([method.execute((image[None].float(),))[0].clone() for image in images])
