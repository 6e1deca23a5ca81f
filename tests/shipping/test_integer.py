"""The integers: their oracle, their rounding, and ONNX written from them."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import FEW
from test_export import unsettled
from test_graph import MEAN, STD, example, float_logits, folded
from torch import nn

from halfmeg.artifacts.graph import onnx_logits
from halfmeg.shipping.integer import IntegerGraph, requantize, run
from halfmeg.shipping.integer_onnx import to_onnx
from halfmeg.shipping.operations import Convolution
from halfmeg.shipping.quantize import measure_ranges, quantize, quantize_graph


def pixels(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@cache
def integers(name: str) -> IntegerGraph:
    """Return an example network in integers, calibrated on 24 images."""
    _, size = example(name)
    graph = folded(name)
    return quantize_graph(graph, measure_ranges(graph, pixels(24, size)))


@pytest.mark.parametrize("name", [*FEW, "anything"])
def test_onnx_gives_the_oracles_logits_bit_for_bit(name: str) -> None:
    model, size = example(name)
    images = pixels(24, size)
    graph = integers(name)
    oracle = run(graph, images.numpy(), batch_size=7)
    assert oracle.dtype == np.float32
    assert len(np.unique(oracle[:, 0])) > 5, "the images tell apart what is computed"
    content = to_onnx(graph)
    for batch in (1, 24):
        found = onnx_logits(content, images[:batch], batch_size=batch).numpy()
        assert np.array_equal(found, oracle[:batch])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "pixels", "tensor(uint8)", ["batch", 3, size, size],
    )  # fmt: skip
    expected = float_logits(model, images).numpy()
    error = np.sqrt(((oracle - expected) ** 2).mean() / expected.var())
    # 256 levels for the noise of an untrained network, whose logits barely differ between images
    assert error < 0.2


def test_extreme_images_are_exact_too() -> None:
    """Black, white and checkered images lie outside of what was calibrated: they saturate."""
    model = unsettled("resnet20")
    graph = quantize(model, MEAN, STD, pixels(8) // 4 + 96)
    hard = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    hard[1] = 255
    hard[2, :, ::2, 1::2] = 255
    oracle = run(graph, hard.numpy())
    assert np.array_equal(onnx_logits(to_onnx(graph), hard).numpy(), oracle)


def test_sums_round_half_to_even_as_in_c() -> None:
    sums = np.array([[-3, -1, 1, 3, 5, 7, 509, 511, 513, 10**9, -(10**9)]], np.int32)
    found = requantize(sums, np.array([0.5], np.float32), 10, None)
    assert found.tolist() == [[8, 10, 10, 12, 12, 14, 255, 255, 255, 255, 0]]
    magic = np.float32(12582912)
    scaled = np.clip(sums.astype(np.float32) * np.float32(0.5), -10, 245).astype(np.float32)
    bits = (scaled + magic).view(np.int32) - magic.view(np.int32) + 10
    assert np.array_equal(found, bits)


def test_zeros_around_a_normalized_image_are_the_mean_pixel_exactly() -> None:
    """A filter of ones sees at the border what it would see with the mean pixel around."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    images = pixels(64, 8)
    graph = quantize(model.eval(), MEAN, STD, images)
    stem = graph.operations[0]
    assert isinstance(stem, Convolution)
    assert stem.has_border
    assert stem.bias.shape == (3, 3, 2)
    found, expected = run(graph, images.numpy()), float_logits(model, images).numpy()
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("norm_first", [False, True])
def test_batchnorms_of_small_scale_cost_nothing_at_the_border(norm_first: bool) -> None:
    """Of a BatchNorm folded ahead a zero around the map is -shift/scale, here far out of range."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3 if norm_first else 8)
    before = [] if norm_first else [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(
        *before, norm, nn.Conv2d(norm.num_features, 8, 3, padding=1), nn.Flatten()
    )
    with torch.no_grad():
        norm.weight[-(norm.num_features // 2) :] = 0.001
        norm.bias.copy_(torch.randn(norm.num_features))
    images = pixels(16, 8)
    graph = quantize(model.eval(), MEAN, STD, images)
    error = np.abs(run(graph, images.numpy()) - float_logits(model, images).numpy())
    maps = error.reshape(-1, 8, 8)
    inner = maps[:, 1:-1, 1:-1].mean()
    assert maps.mean() < 1.2 * inner


def test_a_channel_without_weights_leaves_room_for_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias[0] = 3.0
        model[0].weight[1] = 1e-12
        model[0].bias[1] = 2.0
    images = pixels(16, 8)
    graph = quantize(model.eval(), MEAN, STD, images)
    found, expected = run(graph, images.numpy()), float_logits(model, images).numpy()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    assert np.array_equal(onnx_logits(to_onnx(graph), images).numpy(), found)


def test_values_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    with torch.no_grad():
        model[0].weight[0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        quantize(model, MEAN, STD, pixels(2, 8))
