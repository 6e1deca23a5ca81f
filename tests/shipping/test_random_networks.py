"""Networks drawn at random: the integers, ONNX and C agree, and memory is as stated before."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from halfmeg.artifacts.graph import onnx_logits
from halfmeg.data.shape import ImageShape
from halfmeg.networks.memory import measure_memory
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.build import build_c
from halfmeg.shipping.integer import run
from halfmeg.shipping.integer_onnx import to_onnx
from halfmeg.shipping.quantize import quantize

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ELU,
    nn.Softplus, nn.Hardsigmoid, nn.Mish, nn.PReLU, nn.Identity,
)  # fmt: skip


class Shortcut(nn.Module):
    """What `join` makes of a map and of what a layer of the same sides makes of it."""

    def __init__(self, body: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.join = body, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.body(x))


JOINS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, y: x + y,
    lambda x, y: x - y.relu(),
    lambda x, y: y + 0.5 * x,
    lambda x, y: x * y,
    lambda x, y: x * y.mean((2, 3), keepdim=True).sigmoid(),
    lambda x, y: torch.cat([x, y], 1),
    lambda x, y: torch.cat([y, x], 1),
)


class LayerNorm(nn.LayerNorm):
    """Over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Drawn(nn.Sequential):
    """Up to six layers and a head; `ValueError` where a map has become too small for the next."""

    def __init__(self, seed: int, shape: ImageShape) -> None:
        super().__init__()
        draw, x = random.Random(seed), torch.zeros(2, *shape)
        makers = (self._conv, self._conv, self._joined, self._joined, self._pool, self._single)
        with torch.no_grad():
            for _ in range(draw.randint(1, 6)):
                self.append(draw.choice(makers)(draw, x.shape[1]))
                try:
                    x = self[-1](x)
                except RuntimeError as error:
                    raise ValueError(f"drawn layers do not fit: {error}") from None
        ends = (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.Identity())
        self.extend([draw.choice(ends), nn.Flatten()])
        if draw.random() < 0.4:
            self.extend([nn.LazyLinear(7), draw.choice(ACTIVATIONS)()])
        self.append(nn.LazyLinear(draw.choice((2, 3, 10))))

    def _conv(self, draw: random.Random, channels: int) -> nn.Module:
        width = draw.choice((1, 2, 3, 5, 8, 12))
        kernel = (draw.randint(1, 5), draw.choice((1, 3, 4)))
        layer = nn.Conv2d(
            channels, width, kernel, (draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2))),
            tuple(draw.randint(0, side // 2) for side in kernel),
            draw.choice((1, 1, 2)), draw.choice(_groups(channels, width)),
            bias=draw.random() < 0.6,
            padding_mode=draw.choice(("zeros", "zeros", "reflect", "replicate", "circular")),
        )  # fmt: skip
        norm = (nn.BatchNorm2d(width),) if draw.random() < 0.6 else ()
        return nn.Sequential(layer, *norm, draw.choice(ACTIVATIONS)())

    def _joined(self, draw: random.Random, channels: int) -> nn.Module:
        side, dilation = draw.choice((1, 3, 5)), draw.choice((1, 1, 2))
        layer = nn.Conv2d(
            channels, channels, side, 1, dilation * (side - 1) // 2, dilation,
            draw.choice(_groups(channels, channels)),
        )  # fmt: skip
        body = nn.Sequential(layer, nn.BatchNorm2d(channels)) if draw.random() < 0.5 else layer
        return Shortcut(body, draw.choice(JOINS))

    def _pool(self, draw: random.Random, channels: int) -> nn.Module:
        side, stride, padding = draw.choice((2, 3)), draw.choice((1, 2, 3)), draw.choice((0, 1))
        if draw.random() < 0.5:
            return nn.MaxPool2d(side, stride, padding, ceil_mode=draw.random() < 0.5)
        return nn.AvgPool2d(side, stride, padding)  # windows of unlike numbers have no int8 form

    def _single(self, draw: random.Random, channels: int) -> nn.Module:
        layers = (
            nn.BatchNorm2d(channels), LayerNorm(channels), nn.ChannelShuffle(_half(channels)),
            nn.Upsample(scale_factor=2), nn.Dropout2d(0.2),
        )  # fmt: skip
        return draw.choice(layers)


def _groups(inputs: int, outputs: int) -> list[int]:
    """Return divisors of both, one group most often."""
    both = [n for n in range(2, inputs + 1) if inputs % n == outputs % n == 0]
    return [1, 1, 1, *both]


def _half(channels: int) -> int:
    return 2 if channels % 2 == 0 else 1


def drawn(seed: int) -> tuple[nn.Module, ImageShape]:
    """Return a network of such a seed, or of the next that fits, with weights that tell."""
    draw = random.Random(seed)
    shape = ImageShape(draw.choice((1, 3)), draw.randint(6, 20), draw.randint(6, 20))
    torch.manual_seed(seed)
    try:
        model = Drawn(seed, shape).train()
    except ValueError:
        return drawn(seed + 1_000_000)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, *shape))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm):
                layer.weight.uniform_(-0.3, 2)
                layer.bias.uniform_(-1, 1)
    return model.eval(), shape


def check(seed: int) -> None:
    model, shape = drawn(seed)
    generator = torch.Generator().manual_seed(seed)
    bright = 200 * torch.rand(24, shape.channels, 1, 1, generator=generator)
    images = (bright + 55 * torch.rand(24, *shape, generator=generator)).to(torch.uint8)
    mean, std = (0.4,) * shape.channels, (0.25,) * shape.channels
    graph = quantize(model, mean, std, images)
    with torch.inference_mode():
        expected = model((images / 255 - 0.4) / 0.25).numpy()
    error = np.sqrt(((run(graph, images.numpy()) - expected) ** 2).mean() / expected.var())
    assert error < 0.6, "the integers are of another network"

    hard = images[:6].clone()  # beyond what was calibrated
    hard[0], hard[1], hard[2] = 0, 255, 255
    hard[2, :, ::2] = 0
    logits = run(graph, hard.numpy())
    assert np.array_equal(onnx_logits(to_onnx(graph), hard).numpy(), logits)
    labels = [f"class {i}" for i in range(graph.num_classes)]
    source = build_c(Answered(graph, "net", labels, 1.0, hard.numpy(), logits))
    assert source.proof is not None
    memory = measure_memory(model, shape)
    assert (source.arena_bytes, source.constant_bytes) == (memory.ram_bytes, memory.flash_bytes)


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile C with")


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_few(seed: int) -> None:
    check(seed)


@needs_gcc
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(8, 300))
def test_many(seed: int) -> None:
    check(seed)
