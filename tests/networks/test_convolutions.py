from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.networks.convolutions import Convolution
from halfmeg.networks.trial import try_out

CL = torch.channels_last
SHAPES: dict[str, dict[str, Any]] = {
    # in, out, kernel, size, and the rest as F.conv2d takes it
    "gated": {"shape": (8, 8, (7, 7), (16, 16)), "padding": 9, "dilation": 3, "groups": 8},
    "not square": {"shape": (4, 8, (3, 5), (11, 14)), "padding": (2, 6), "dilation": (2, 3)},
    "no padding": {"shape": (6, 4, (3, 3), (13, 12)), "dilation": 4, "groups": 2},
    "rows only": {"shape": (3, 3, (3, 1), (10, 7)), "padding": (2, 0), "dilation": (2, 1)},
    "grouped": {"shape": (8, 12, (3, 3), (9, 9)), "padding": 1, "stride": 2, "groups": 4},
}


def drawn(
    kind: str, order: torch.memory_format = CL, *, bias: bool = True
) -> tuple[list[Tensor], dict[str, Any]]:
    rest = dict(SHAPES[kind])
    channels, out_channels, kernel, size = rest.pop("shape")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, channels, *size, generator=generator).contiguous(memory_format=order)
    weight = torch.randn(
        out_channels, channels // rest.get("groups", 1), *kernel, generator=generator
    )
    tensors = [x, weight, torch.randn(out_channels, generator=generator)][: 2 + bias]
    return [tensor.requires_grad_() for tensor in tensors], rest


@pytest.mark.parametrize("order", [CL, torch.contiguous_format], ids=["channels_last", "plain"])
@pytest.mark.parametrize("kind", SHAPES)
def test_each_way_gives_the_same_output_and_gradients(
    kind: str, order: torch.memory_format
) -> None:
    tensors, rest = drawn(kind, order)
    layer = Convolution.of(*tensors, **rest)
    assert layer is not None
    assert layer.channels_last == (order == CL)
    expected = F.conv2d(*tensors, **rest)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, tensors, weights)
    assert ("phases" in layer.ways()) == ("dilation" in rest)
    assert ("other order" in layer.ways()) == ("groups" in rest)
    for way in layer.ways():
        y = layer.compute(way, *tensors)
        assert y.shape == expected.shape
        assert (y.stride(1) == 1) == layer.channels_last
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        for own, theirs in zip(torch.autograd.grad(y, tensors, weights), gradients, strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3)


def test_in_bfloat16_each_way_has_a_form_in_float32_of_the_same_type() -> None:
    (x, weight), rest = drawn("gated", bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        layer = Convolution.of(x, weight, **rest)
        assert layer is not None
        ways = layer.ways()
        assert ways == ["conv float32", "phases", "other order float32", "phases float32"]
        outputs = {way: layer.compute(way, x, weight, None) for way in ways}
    exact = F.conv2d(x, weight, **rest)
    for way, y in outputs.items():
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0.1, msg=way)
    torch.testing.assert_close(outputs["conv float32"], exact.bfloat16())


def fill_free_memory(value: float) -> None:
    """Let what is allocated next hold a value, for kernels that read what they did not write."""
    blocks = [torch.full((2**power,), value) for power in range(4, 22) for _ in range(3)]
    del blocks


WITH_WRONG_GRADIENT: dict[str, dict[str, Any]] = {
    "gated": {"channels": 12, "kernel": 7, "padding": 9, "dilation": 3},
    "rows": {"channels": 16, "kernel": 3, "padding": (2, 1), "dilation": (2, 1)},
    "groups of four": {"channels": 16, "kernel": 3, "padding": 2, "dilation": 2, "groups": 4},
    "by name": {"channels": 8, "kernel": 3, "padding": "same", "dilation": 2},
    "uneven": {"channels": 8, "kernel": 4, "padding": "same", "dilation": 3},
    "strided": {"channels": 8, "kernel": 3, "padding": 2, "dilation": 2, "stride": 2},
}


@pytest.mark.parametrize("order", [CL, torch.contiguous_format], ids=["channels_last", "plain"])
@pytest.mark.parametrize("kind", WITH_WRONG_GRADIENT)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_dilated_grouped_one_in_bfloat16_gets_its_gradient(
    kind: str, order: torch.memory_format
) -> None:
    """oneDNN's own kernel for it gives garbage from maps of 20 rows on."""
    rest = dict(WITH_WRONG_GRADIENT[kind])
    channels, kernel = rest.pop("channels"), rest.pop("kernel")
    rest.setdefault("groups", channels)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, channels, 32, 32, generator=generator).contiguous(memory_format=order)
    weight = torch.randn(channels, channels // rest["groups"], kernel, kernel, generator=generator)
    weight = weight.contiguous(memory_format=CL).requires_grad_()
    exact = F.conv2d(x, weight, **rest)
    (expected,) = torch.autograd.grad(exact.sum(), weight)
    with torch.autocast("cpu", torch.bfloat16):
        layer = Convolution.of(x, weight, **rest)
    assert layer is not None
    assert layer.has_wrong_gradient
    assert layer.ways()[0] == "conv float32"
    assert not {"conv", "other order"} & {*layer.ways()}
    for way in layer.ways():
        for value in (torch.nan, 1e4, 0.0):
            fill_free_memory(value)
            with torch.autocast("cpu", torch.bfloat16):
                y = layer.compute(way, x, weight, None)
            fill_free_memory(value)
            (gradient,) = torch.autograd.grad(y.sum(), weight)
            assert (gradient - expected).norm() < 0.01 * expected.norm(), way
        assert (y - exact).norm() < 0.01 * exact.norm(), way


def test_a_network_of_ones_own_is_tried_out_with_the_gradients_that_training_has(
    tmp_path: Path,
) -> None:
    for number in range(3):
        file = tmp_path / f"own{number}.py"
        file.write_text(
            """
from torch import nn


class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.head(self.dilated(x).mean((2, 3)))
"""
        )
        fill_free_memory(torch.nan)
        try_out(f"{file}:Own", 10, 32, 500_000, torch.bfloat16)  # would name a gradient


def test_padding_by_name_is_what_torch_makes_of_it() -> None:
    x, weight = torch.zeros(2, 4, 9, 9), torch.zeros(4, 4, 3, 5)
    assert Convolution.of(x, weight, padding="same") == Convolution.of(x, weight, padding=(1, 2))
    assert Convolution.of(x, weight, padding="valid") == Convolution.of(x, weight)
    uneven = Convolution.of(x, torch.zeros(4, 4, 2, 2), padding="same", dilation=3)
    assert uneven is not None
    assert "padding same" in uneven.name
    assert uneven.ways() == ["conv"]  # no grid divides it


def test_what_has_no_other_way() -> None:
    x, weight = torch.zeros(2, 4, 8, 8), torch.zeros(4, 4, 3, 3)
    assert Convolution.of(x, weight, None, 1, 1).ways() == ["conv"]  # type: ignore[union-attr]
    strided = Convolution.of(x, weight, stride=2, padding=2, dilation=2)
    assert strided is not None
    assert strided.ways() == ["conv"]
    uneven = Convolution.of(x, weight, padding=1, dilation=2)  # a border that no grid divides
    assert uneven is not None
    assert uneven.ways() == ["conv"]
    assert Convolution.of(x, weight, stride=(2,), padding=[2], dilation=(2, 2)) == strided
    assert Convolution.of(x[0], weight) is None


def test_the_name_tells_all_apart_that_is_timed_apart() -> None:
    tensors, rest = drawn("gated")
    layer = Convolution.of(*tensors, **rest)
    assert layer is not None
    assert layer.name == ("8→8 7×7, groups 8, padding 9×9, dilation 3×3, on 16×16, float32, bias")
    plain = Convolution.of(*(t.detach().contiguous() for t in tensors[:2]), stride=2)
    assert plain is not None
    assert plain.name == (
        "8→8 7×7, stride 2×2, on 16×16, float32, plain order, no gradient for its input"
    )
    sliced = tensors[0].chunk(2, 1)[0]  # of every position half of the channels
    half = Convolution.of(sliced, torch.zeros(4, 1, 3, 3), groups=4)
    assert half is not None
    assert half.channels_last
