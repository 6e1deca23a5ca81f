"""A bundle's ONNX files, bounded and compared with its weights before they are used.

The checksums in model.json are only as honest as whoever wrote it. So before a graph runs it has
to be one whose memory and arithmetic are bounded: no loops, no branches, no data outside, every
tensor of a known, small size. Then its logits have to be those of the weights, on random images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import check_graph, open_session
from halfmeg.data.shape import ImageShape
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.networks.summary import count_params

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit that rounding in another order of sums explains."""

LARGEST_LOGIT = 100.0
"""Above it the tolerance grows no more; the logits of trained networks stay below 50."""

INT8_TOLERANCE = 0.75
"""Largest difference of int8 logits, as a share of the spread of the float32 ones (root mean
squares over smooth random images). The trained `record` had 0.16 to 0.34 in five draws; a graph
whose answer does not depend on the image has 1 or more."""

NUM_PROBES = 8


def logit_tolerance(reference: Tensor) -> float:
    """Return the largest difference from these logits that rounding explains."""
    largest = reference.abs().max().item()
    return LOGIT_TOLERANCE * min(max(1.0, largest), LARGEST_LOGIT)


def verify_onnx(bundle: Bundle, name: str) -> bytes:
    """Return the content of one of a bundle's ONNX files, after all checks.

    A network of one's own has no weights that could run without its Python: its float32 graph is
    only bounded, and is itself what the int8 graph is compared with.

    Raises:
        ValueError: the graph is not bounded, fails, or does not do what the weights do.
    """
    path = bundle.folder / name
    content = bundle.read_file(name)
    images = _probes(bundle.image_shape)
    if bundle.is_own:
        num_params = sum(tensor.numel() for tensor in bundle.load_state().values())
    else:
        model = bundle.load_model()
        num_params = count_params(model)
    try:
        check_graph(content, bundle.image_shape, num_params)
        logits = run_onnx(open_session(content, 1))(images)
        if not bundle.is_own:
            reference = compute_logits(model, images, bundle.mean, bundle.std, precision="fp32")
        elif name == "model.onnx":
            reference = logits
        else:
            reference = run_onnx(open_session(verify_onnx(bundle, "model.onnx"), 1))(images)
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
        # noise lies outside of the ranges that integers were calibrated to, so it tells nothing
        smooth, expected = logits[NUM_PROBES // 2 :], reference[NUM_PROBES // 2 :]
        spread = (expected - expected.mean(0)).square().mean().sqrt().item()
        distance = (smooth - expected).square().mean().sqrt().item()
        agrees = distance <= INT8_TOLERANCE * spread + LOGIT_TOLERANCE
    else:
        agrees = difference <= logit_tolerance(reference)
    if not agrees:  # also where one of them is no number
        raise ValueError(
            f"{path} does not do what the weights do: logits differ by {difference:.3g}"
        )
    return content


def run_onnx(session: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from uint8 B×C×H×W to float32 logits B×K.

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


def _probes(shape: ImageShape) -> Tensor:
    """Draw images: half of them noise, half of them as smooth as photographs are.

    They are other ones each time, so that no file can be made to agree on these only.
    """
    generator = torch.Generator()
    generator.seed()
    half = NUM_PROBES // 2
    rough = torch.rand(half, *shape, generator=generator)
    coarse = torch.rand(half, shape.channels, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=shape[1:], mode="bicubic").clamp(0, 1)
    return (255 * torch.cat([rough, smooth])).round().to(torch.uint8)
