"""LayerNorm, softmax, attention and products of maps: the same bits in NumPy, ONNX and C."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_c import proved_graph
from test_graph import MEAN, STD, float_logits
from test_integer import pixels
from torch import Tensor, nn

from halfmeg.artifacts.graph import onnx_logits
from halfmeg.networks.graph import Gather, even_steps
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.trace import trace
from halfmeg.shipping.integer import run
from halfmeg.shipping.integer_onnx import to_onnx
from halfmeg.shipping.operations import Normalization, Rearrangement
from halfmeg.shipping.quantize import quantize

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile C with")


class Mixer(nn.Module):
    """A convolution to 6×8×8, an operation on it, and a head."""

    def __init__(self, mix: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = mix
        self.head = nn.Linear(width, 4)
        nn.init.normal_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def heads(x: Tensor) -> Tensor:
    return tokens(x).unflatten(2, (2, 3)).transpose(1, 2)


def joined_heads(x: Tensor) -> Tensor:
    return heads(x).reshape(-1, 64, 3)


SCALE, SHIFT = torch.linspace(-1, 2, 6), torch.linspace(0.5, -0.5, 6)
MIXES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "channels last": (lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (6,), SCALE, SHIFT), 384),
    "tokens": (lambda x: F.layer_norm(tokens(x), (6,), SCALE), 384),
    "rows": (lambda x: F.layer_norm(x, (8,)), 384),
    "all values": (lambda x: F.layer_norm(x, (6, 8, 8)), 384),
    "a vector": (lambda x: F.layer_norm(x.amax((2, 3)), (6,), eps=0.1), 6),
    "and a function": (lambda x: F.silu(F.layer_norm(tokens(x), (6,))), 384),
    "softmax of channels": (lambda x: (4 * x).softmax(1), 384),
    "softmax of tokens": (lambda x: (tokens(x) * 9).softmax(-2), 384),
    "attention": (lambda x: F.scaled_dot_product_attention(*3 * [heads(x) * 3], scale=2.0), 384),
    "two maps": (lambda x: tokens(x).transpose(1, 2) @ tokens(x), 36),
    "joined heads": (lambda x: torch.bmm(joined_heads(x).mT, joined_heads(x)), 18),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXES)
def test_integers_follow_and_onnx_gives_their_bits(name: str) -> None:
    if name == "joined heads":  # a batch of one, which torch.export freezes
        model = Mixer(lambda x: torch.bmm(joined_heads(x).mT, joined_heads(x)).view(1, 18), 18)
    else:
        model = Mixer(*MIXES[name])
    images = pixels(16, 8)
    graph = quantize(model.eval(), MEAN, STD, images)
    oracle = run(graph, images.numpy(), batch_size=5)
    assert np.array_equal(onnx_logits(to_onnx(graph), images).numpy(), oracle)
    expected = torch.cat([float_logits(model, image[None]) for image in images]).numpy()
    error = np.sqrt(((oracle - expected) ** 2).mean() / expected.var())
    assert error < 0.05
    # black and white lie outside of what was seen, and have no variance
    hard = torch.stack([torch.zeros_like(images[0]), torch.full_like(images[0], 255)])
    assert np.array_equal(onnx_logits(to_onnx(graph), hard).numpy(), run(graph, hard.numpy()))


@needs_gcc
def test_c_gives_their_bits_in_the_memory_stated() -> None:
    def everything(x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), (6,), SCALE, SHIFT).permute(0, 3, 1, 2)
        mixed = F.scaled_dot_product_attention(heads(x), heads(x), heads(x.flip(2)) * 0.5)
        y = x + mixed.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (8, 8))
        return F.layer_norm(y, (6, 8, 8)).amax((2, 3)) * y.mean((2, 3)).softmax(1)

    model = Mixer(everything, 6).eval()
    images = pixels(12, 8)
    source = proved_graph(quantize(model, MEAN, STD, images), images)
    assert source.proof is not None
    memory = measure_memory(model, 8)
    assert (source.arena_bytes, source.constant_bytes) == (memory.ram_bytes, memory.flash_bytes)


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("name", ["channels last", "softmax of channels", "two maps"])
def test_each_may_give_the_logits(name: str) -> None:
    mix, _ = MIXES[name]
    last = nn.Sequential(nn.Conv2d(3, 6, 8), Mixed(mix), nn.Flatten()).eval()
    images = pixels(6, 8)
    assert proved_graph(quantize(last, MEAN, STD, images), images).proof is not None


@needs_gcc
def test_c_normalizes_more_values_than_whose_squares_fit_32_bits() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 32, 1)
    nn.init.constant_(conv.bias, 10.0)  # bright values, whose squares are large
    norm = nn.LayerNorm((32, 64, 64), elementwise_affine=False)
    pool = Mixed(lambda x: x.amax((2, 3)))
    model = nn.Sequential(conv, norm, pool, nn.Linear(32, 4)).eval()
    images = pixels(2, 64)
    assert proved_graph(quantize(model, MEAN, STD, images), images).proof is not None


class Mixed(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def test_the_root_is_the_exact_one_rounded_down() -> None:
    """A position whose variance is a square, and others beside it."""
    model = Mixer(*MIXES["tokens"]).eval()
    graph = quantize(model, MEAN, STD, pixels(8, 8))
    norm = next(op for op in graph.operations if isinstance(op, Normalization))
    assert norm.floor >= 1
    assert (255 * 6) ** 2 // 4 + norm.floor < 2 ** (52 - 2 * norm.root_bits)


def test_even_steps_need_no_table() -> None:
    places = torch.arange(6 * 4 * 4).view(6, 4, 4)
    stored = places.permute(1, 2, 0).flatten().argsort().numpy()
    for index in (places, places.flip(1), places.transpose(0, 2), places[1:3, ::2]):
        found = even_steps(index.numpy(), (6, 4, 4))
        assert found is not None
        first, channel, row, column = found
        c, h, w = np.indices(index.shape)
        walked = first + c * channel + h * row + w * column
        assert np.array_equal(walked, stored[index.numpy()])
    assert even_steps(places[[0, 2, 1]].numpy(), (6, 4, 4)) is None
    assert even_steps(np.full((1, 1, 1), -1), (6, 4, 4)) is None
    model = Mixer(*MIXES["attention"]).eval()
    assert any(isinstance(node, Gather) for node in trace(model, 8).nodes)
    graph = quantize(model, MEAN, STD, pixels(4, 8))
    assert any(isinstance(operation, Rearrangement) for operation in graph.operations)
    assert graph.constant_bytes < 10_000


@pytest.mark.parametrize(
    ("mix", "named"),
    [
        (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "with a mask"),
        (lambda x: torch.ones(1, 6, 8, 8) @ x, "by a constant that is no matrix"),
        (lambda x: x.softmax(0), "over the images of a batch"),
    ],
)  # fmt: skip
def test_what_has_no_form_is_named(mix: Callable[[Tensor], Tensor], named: str) -> None:
    with pytest.raises(ValueError, match="has no int8 form") as raised:
        trace(Mixer(mix, 384), 8)
    assert named in str(raised.value)
