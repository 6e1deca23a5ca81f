"""A bundle's ONNX files, bounded and compared with its weights before they are used.

The checksums in model.json are only as honest as whoever wrote it. So before a graph runs it has
to be one whose memory and arithmetic are bounded: no loops, no branches, no data outside, every
tensor of a known, small size. Then its logits have to be those of the weights, on random images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.networks.summary import count_params
from halfmeg.shipping.onnx import open_session

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit that rounding in another order of sums explains."""

LARGEST_LOGIT = 100.0
"""Above it the tolerance grows no more; the logits of trained networks stay below 50."""

INT8_TOLERANCE = 0.75
"""Largest difference of int8 logits, as a share of the spread of the float32 ones (root mean
squares over random images). Five of our networks had 0.04 to 0.32; a graph whose answer does not
depend on the image has 1 or more."""

MAX_NODES = 5_000
MAX_MAPS = 2_048
"""No tensor holds more than this many numbers for each pixel of an image."""

NUM_PROBES = 8


def logit_tolerance(reference: Tensor) -> float:
    """Return the largest difference from these logits that rounding explains."""
    largest = reference.abs().max().item()
    return LOGIT_TOLERANCE * min(max(1.0, largest), LARGEST_LOGIT)


def verify_onnx(bundle: Bundle, name: str) -> bytes:
    """Return the content of one of a bundle's ONNX files, after all checks.

    Raises:
        ValueError: the graph is not bounded, fails, or does not do what the weights do.
    """
    path = bundle.folder / name
    content = bundle.read_file(name)
    model = bundle.load_model()
    images = _probes(bundle.image_size)
    reference = compute_logits(model, images, bundle.mean, bundle.std, precision="fp32")
    try:
        check_graph(content, bundle.image_size, count_params(model))
        logits = run_onnx(open_session(content, 1))(images)
    except Exception as error:  # the runtime's errors have no common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be used: {reason}") from None
    if logits.shape != reference.shape:
        raise ValueError(
            f"{path} gives logits of shape {tuple(logits.shape)}, "
            f"the weights {tuple(reference.shape)}"
        )
    difference = (logits - reference).abs().max().item()
    if name == "model.int8.onnx":
        spread = (reference - reference.mean(0)).square().mean().sqrt().item()
        distance = (logits - reference).square().mean().sqrt().item()
        agrees = distance <= INT8_TOLERANCE * spread + LOGIT_TOLERANCE
    else:
        agrees = difference <= logit_tolerance(reference)
    if not agrees:  # also where one of them is no number
        raise ValueError(
            f"{path} does not do what the weights do: logits differ by {difference:.3g}"
        )
    return content


def run_onnx(session: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from uint8 B×3×H×W to float32 logits B×K.

    Raises:
        ValueError: of that function, where the runtime fails.
    """

    def run(images: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run(["logits"], {"pixels": images.numpy()})[0])
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"the ONNX file cannot be run: {reason}") from None

    return run


def _probes(image_size: int) -> Tensor:
    """Draw images: half of them noise, half of them as smooth as photographs are.

    They are other ones each time, so that no file can be made to agree on these only.
    """
    generator = torch.Generator()
    generator.seed()
    half = NUM_PROBES // 2
    rough = torch.rand(half, 3, image_size, image_size, generator=generator)
    coarse = torch.rand(half, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=image_size, mode="bicubic").clamp(0, 1)
    return (255 * torch.cat([rough, smooth])).round().to(torch.uint8)


def check_graph(content: bytes, image_size: int, num_params: int) -> None:
    """Raise ValueError where an ONNX graph's memory or arithmetic is not bounded by its network."""
    import onnx

    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1:
        raise ValueError("it has more than one input and output")
    if len(graph.node) > MAX_NODES or model.functions or graph.sparse_initializer:
        raise ValueError(f"it is no plain graph of at most {MAX_NODES:,} nodes")
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"its node {node.op_type} is of {node.domain!r}")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise ValueError(f"its node {node.op_type} branches or loops")
            tensors += [attribute.t, *attribute.tensors] if attribute.HasField("t") else []
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError("it asks for data outside of the file")
    numbers = sum(math.prod(tensor.dims) for tensor in tensors)
    if any(dim < 0 for tensor in tensors for dim in tensor.dims) or numbers > (
        2 * num_params + 100_000
    ):
        raise ValueError(f"it holds {numbers:,} numbers, the network {num_params:,}")
    shape = graph.input[0].type.tensor_type.shape
    for dim, size in zip(shape.dim, (2, 3, image_size, image_size), strict=True):
        dim.dim_value = size
    del graph.value_info[:]
    graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True).graph
    sizes = {
        value.name: math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.output)
        if value.type.HasField("tensor_type")
        and value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    most = max(2 * MAX_MAPS * image_size**2, 2 * num_params + 100_000)
    for node in graph.node:
        for output in node.output:
            if output and not 0 <= sizes.get(output, -1) <= most:
                raise ValueError(f"its node {node.op_type} gives a tensor of unknown or huge size")
