"""A bundle's ONNX files, bounded and compared with its weights before they are used.

The checksums in model.json are only as honest as whoever wrote it. So before a graph runs it has
to be one whose memory and arithmetic are bounded: no loops, no branches, no data outside, every
tensor of a known, small size. Then its logits have to be those of the weights, on random images.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import check_graph, onnx_logits
from halfmeg.data.shape import ImageShape
from halfmeg.errors import one_line
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.networks.summary import count_params

LOGIT_TOLERANCE = 1e-3
"""Largest difference of a logit that rounding in another order of sums explains."""

LARGEST_LOGIT = 100.0
"""Above it the tolerance grows no more; the logits of trained networks stay below 50."""

INT8_TOLERANCE = 0.4
"""Largest difference of int8 logits, as a share of the spread of the float32 ones (root mean
squares over drawn images). The trained `record` had 0.27 to 0.32 in 40 draws; a graph whose
answer does not depend on the image has 1 or more."""

NUM_PROBES = 96
"""Images for float32 logits; a third of them noise, the rest like the training images."""

NUM_INT8_PROBES = 256
"""Images for int8 logits, none of them noise: that lies outside of the ranges which integers were
calibrated to, so it tells nothing. The distance varies from draw to draw; with 64 of them a sound
file failed once in a hundred draws or fewer, which was too often."""

NUM_LEAVES = 40
SMALLEST_LEAF = 0.06
"""Radius of the smallest disc, as a share of the shorter side; the largest has half of that."""


def logit_tolerance(reference: Tensor) -> float:
    """Return the largest difference from these logits that rounding explains."""
    largest = reference.abs().max().item()
    return LOGIT_TOLERANCE * min(max(1.0, largest), LARGEST_LOGIT)


class LogitsDifferError(ValueError):
    """An ONNX file does not do what the weights do."""


def verify_onnx(bundle: Bundle, name: str, *, compare: bool = True) -> bytes:
    """Return the content of one of a bundle's ONNX files, after all checks.

    A network of one's own has no weights that could run without its Python: its float32 graph is
    only bounded, and is itself what the int8 graph is compared with.

    Args:
        bundle: the bundle.
        name: of the file.
        compare: its logits with those of the weights; else it has to run, and give as many.

    Raises:
        ValueError: the graph is not bounded, fails, or does not do what the weights do.
    """
    path = bundle.folder / name
    content = bundle.read_file(name)
    is_int8 = name == "model.int8.onnx"
    like = bundle.image_shape, bundle.mean, bundle.std
    images = _discs(NUM_INT8_PROBES, *like) if is_int8 and compare else _probes(*like)
    if bundle.is_own:
        num_params = sum(tensor.numel() for tensor in bundle.load_state().values())
    else:
        model = bundle.load_model()
        num_params = count_params(model)
    try:
        check_graph(content, bundle.image_shape, num_params)
        logits = onnx_logits(content, images, threads=1)
        if not bundle.is_own:
            reference = compute_logits(model, images, bundle.mean, bundle.std, precision="fp32")
        elif is_int8:
            reference = onnx_logits(verify_onnx(bundle, "model.onnx"), images, threads=1)
        else:
            reference = logits
    except Exception as error:  # the runtime's errors have no common base
        reason = one_line(error, 200)
        raise ValueError(f"{path} cannot be used: {reason}") from None
    shape = (len(images), len(bundle.classes))
    if logits.shape != shape:
        raise ValueError(f"{path} gives logits of shape {tuple(logits.shape)}; expected: {shape}")
    if not compare:
        return content
    difference = (logits - reference).abs().max().item()
    if is_int8:
        spread = (reference - reference.mean(0)).square().mean().sqrt().item()
        distance = (logits - reference).square().mean().sqrt().item()
        agrees = distance <= INT8_TOLERANCE * spread + LOGIT_TOLERANCE
    else:
        agrees = difference <= logit_tolerance(reference)
    if not agrees:  # also where one of them is no number
        raise LogitsDifferError(
            f"{path} does not do what the weights do: logits differ by {difference:.3g}"
        )
    return content


def int8_difference(bundle: Bundle) -> str:
    """Return what to say of an int8 file whose logits are far from the weights'; mostly nothing.

    Of a network of few epochs they may be: drawn images leave the ranges that its real ones have.

    Raises:
        ValueError: as `verify_onnx`.
    """
    if find_spec("onnxruntime") is None or not bundle.has("model.int8.onnx"):
        return ""
    try:
        verify_onnx(bundle, "model.int8.onnx")
    except LogitsDifferError as error:
        return f"{error}, on images that are drawn; `halfmeg evaluate` tells of real ones"
    return ""


def _probes(shape: ImageShape, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Draw uint8 images B×C×H×W: a third of them noise, the rest of discs."""
    count = NUM_PROBES // 3
    noise = (256 * torch.rand(count, *shape, generator=_new_generator())).to(torch.uint8)
    return torch.cat([noise, _discs(NUM_PROBES - count, shape, mean, std)])


def _new_generator() -> torch.Generator:
    """Return one of numbers that differ each time, so that no file can be made to agree on them."""
    generator = torch.Generator()
    generator.seed()
    return generator


def _discs(
    count: int, shape: ImageShape, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Draw uint8 images B×C×H×W like those that the integers were calibrated on.

    These are discs that cover one another, of many sizes, in colours with the mean and deviation of
    the training images, which the bundle states: they have edges, surfaces and the spectrum of
    natural images (the dead leaves of Lee, Mumford and Huang 2001, "Occlusion Models for Natural
    Images"). On patterns without edges a network may give nearly one answer. No image of a user's
    is needed.
    """
    generator = _new_generator()

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator)

    def colour() -> Tensor:
        gray = torch.randn(count, 1, 1, 1, generator=generator)
        tint = torch.randn(count, shape.channels, 1, 1, generator=generator)
        return 0.93 * gray + 0.37 * tint  # 0.93² + 0.37² is 1

    rows = torch.arange(shape.height).view(1, 1, -1, 1)
    columns = torch.arange(shape.width).view(1, 1, 1, -1)
    pattern = colour().expand(count, *shape)
    for _ in range(NUM_LEAVES):
        radius = SMALLEST_LEAF * shape.shortest / uniform().clamp_min(2 * SMALLEST_LEAF)
        middle = rows - shape.height * uniform(), columns - shape.width * uniform()
        pattern = torch.where(middle[0] ** 2 + middle[1] ** 2 <= radius**2, colour(), pattern)
    centre, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (255 * (centre + deviation * pattern).clamp(0, 1)).round().to(torch.uint8)
