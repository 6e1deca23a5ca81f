"""Tracing, folding and memory: any network as the passes over an image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import COSTLY, REPEATED, Cli, slow_where
from test_export import unsettled
from torch import Tensor, nn

from halfmeg.artifacts.graph import check_graph
from halfmeg.data.shape import image_shape
from halfmeg.networks.graph import Conv, Gather, Graph, MaxPool, axis_maps
from halfmeg.networks.memory import measure_memory, memory_of, plan_arena
from halfmeg.networks.simplify import border_classes, simplify, steps
from halfmeg.networks.summary import count_params
from halfmeg.networks.table import MODELS, build_model
from halfmeg.networks.trace import trace
from halfmeg.shipping.integer_onnx import to_onnx as integers_to_onnx
from halfmeg.shipping.onnx import to_onnx
from halfmeg.shipping.quantize import quantize

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COVERED = tuple(MODELS)


CHEAP = slow_where((*COSTLY, *REPEATED))


class Anything(nn.Module):
    """Operators that the networks of the table do not have, all in one."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(3, 8, 3, padding="same", dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.prelu = nn.PReLU()
        self.grouped = nn.Conv2d(8, 12, 3, groups=2, stride=(2, 1), padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.dilated(x), inplace=True)
        x = F.hardswish(self.plain_norm(self.depthwise(x)))
        x = self.prelu(F.gelu(x) + F.mish(x))
        a, b = x.chunk(2, 1)
        x = self.last(self.norm(F.relu(self.grouped(torch.cat([b, a.tanh()], 1)))))
        x = F.avg_pool2d(F.avg_pool2d(x, (1, 2)), 3, 2, 1)
        x = F.max_pool2d(F.adaptive_avg_pool2d(x, (4, 4)), 3, 2, 1, ceil_mode=True)
        x = F.dropout2d(x, 0.1, self.training)
        shuffled = x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = x + shuffled
        x = x * torch.sigmoid(x) - x.flip(2)
        x = F.adaptive_max_pool2d(F.hardtanh(x + 0.5, -4.0, 4.0) / 0.3, 1).flatten(1)
        return self.head(F.relu6(F.leaky_relu(x, 0.1)))  # type: ignore[no-any-return]


def anything() -> nn.Module:
    torch.manual_seed(0)
    model = Anything()
    for _ in range(2):
        model(torch.randn(8, 3, 16, 16))
    return model.eval()


def float_logits(model: nn.Module, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (MEAN, STD))
    with torch.inference_mode():
        return model((pixels / 255 - mean) / std)  # type: ignore[no-any-return]


@cache
def example(name: str) -> tuple[nn.Module, int]:
    """Return a network whose BatchNorm has seen something, and its image size."""
    return (anything(), 16) if name == "anything" else (unsettled(name), 32)


@cache
def folded(name: str) -> Graph:
    """Return a network's graph, traced once: that takes a second."""
    return simplify(trace(*example(name)), MEAN, STD)


@pytest.mark.parametrize("name", [*CHEAP, "anything"])
def test_a_folded_graph_computes_what_the_network_does(name: str) -> None:
    model, size = example(name)
    pixels = torch.randint(0, 256, (3, 3, size, size))
    found, expected = folded(name).logits(pixels.double()).float(), float_logits(model, pixels)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_maps_of_odd_size_are_halved_as_the_network_does() -> None:
    model = build_model("whitened-residual(width=8,growth=8,depth2=1,depth3=1)", 10, (26, 21))
    model.train()(torch.randn(8, 3, 26, 21))
    pixels = torch.randint(0, 256, (3, 3, 26, 21))
    graph = simplify(trace(model.eval(), (26, 21)), MEAN, STD)
    expected = float_logits(model, pixels)
    assert torch.allclose(graph.logits(pixels.double()).float(), expected, atol=1e-4, rtol=1e-4)


def test_normalization_and_batchnorm_leave_no_pass_of_their_own() -> None:
    for name, passes in (("record", 43), ("resnet20", 32), ("cnn", 5), ("resnet", 16)):
        assert len(steps(folded(name))) == passes, name


def test_a_batchnorm_with_a_negative_scale_stays_behind_a_maximum() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2)
    )
    assert isinstance(model[2], nn.BatchNorm2d)
    nn.init.constant_(model[2].weight, -1.5)
    graph = simplify(trace(model.eval(), 8), MEAN, STD)
    assert [type(node) for node in graph.nodes] == [Conv, MaxPool, Conv]
    pixels = torch.randint(0, 256, (3, 3, 8, 8))
    found = graph.logits(pixels.double()).float()
    assert torch.allclose(found, float_logits(model, pixels), atol=1e-4)


def test_a_padded_first_layer_knows_what_its_zeros_are() -> None:
    """A zero of the normalized image is the mean pixel."""
    graph = folded("resnet20")
    stem = graph.nodes[0]
    assert isinstance(stem, Conv)
    assert np.allclose(stem.outside, 255 * np.array(MEAN))
    rows, columns, missing = border_classes(stem)
    assert missing.shape == (3, 3, 3, 3)
    assert (rows[0], rows[1], rows[-1]) == (columns[0], columns[1], columns[-1])
    assert len(set(rows.tolist())) == 3
    second = next(node for node in graph.nodes[1:] if isinstance(node, Conv))
    assert border_classes(second)[2].shape[:2] == (1, 1)


def test_a_block_that_is_used_twice_keeps_its_weights_once() -> None:
    shared, alone = (memory_of(steps(folded(f"resnet-{kind}"))) for kind in ("shared", "linear"))
    more = shared.flash_bytes - alone.flash_bytes
    # biases, scales and multipliers of the second uses: no weights
    assert 0 < more < 6_000


def functional(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(function(self.conv(x)).amax((2, 3)))  # type: ignore[no-any-return]

    return Module()


def in_autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ x


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x.cumsum(2), "aten.cumsum"),
        (lambda x: F.group_norm(x, 2), "aten.group_norm"),
        (lambda x: F.prelu(x, torch.full((4,), 0.1)), "aten.prelu (prelu) has no int8 form: a dif"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "aten.upsample_bilinear2d"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), "8×8 in 3×3 windows of equal size"),
        (lambda x: x.flatten(2).max(2)[1][..., None, None].float(), "the places of its maxima"),
        (lambda x: x.int() + 0.5, "aten.to.dtype (to) has no int8 form: numbers that are not"),
        (lambda x: x if x.sum() > 0 else -x, "Module cannot be traced"),
        (lambda x: torch.max(x, x.roll(1, 1)), "aten.max.other (max_1) has no int8 form: of two"),
        (lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, ceil_mode=True), "windows of different"),
        (in_autocast, "Module cannot be traced"),
    ],
)  # fmt: skip
def test_an_operator_without_a_form_is_named(
    function: Callable[[Tensor], Tensor], named: str
) -> None:
    with pytest.raises(ValueError, match=r"int8|traced") as raised:
        trace(functional(function), 8)
    assert named in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "function",
    [
        nn.AdaptiveMaxPool2d(1),
        nn.AdaptiveMaxPool2d((4, 2)),
        lambda x: x.flatten(2).max(2)[0][..., None, None],
        nn.Upsample(scale_factor=2),
        lambda x: F.interpolate(x, size=(11, 20)).tanh(),
        lambda x: F.interpolate(x, scale_factor=(1.5, 2.3)).relu(),
        lambda x: F.interpolate(x, size=(5, 20), mode="nearest-exact"),
        lambda x: x.double().sigmoid().float(),
        lambda x: torch.max(x, -x / 2),
    ],
)  # fmt: skip
def test_maxima_and_repeated_values_without_their_places(
    function: Callable[[Tensor], Tensor],
) -> None:
    """torch.export writes the places of maxima too where nobody asks for them."""
    torch.manual_seed(0)
    model = functional(function)
    images = torch.randn(3, 3, 8, 8)
    assert torch.allclose(trace(model, 8).logits(images), model(images), atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_that_is_traced_keeps_the_mode_of_each_module(fails: bool) -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), nn.Flatten()]
    model = nn.Sequential(*layers, *([nn.Linear(1, 1)] if fails else []))
    with pytest.raises(ValueError, match="cannot be traced") if fails else nullcontext():
        trace(model, 8)
    assert [module.training for module in model] == [True, False, True, True][: len(model)]
    assert model.training


def test_maps_that_separate_are_found() -> None:
    places = torch.arange(4 * 6 * 6).view(1, 4, 6, 6)
    half = F.pad(places[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), value=-1)[0].numpy()
    maps = axis_maps(half, (4, 6, 6))
    assert maps is not None
    assert [part.tolist() for part in maps] == [[-1, -1, 0, 1, 2, 3, -1, -1], [0, 2, 4], [0, 2, 4]]
    assert axis_maps(places[0].transpose(1, 2).numpy(), (4, 6, 6)) is None


@pytest.mark.parametrize("name", [*CHEAP, "anything"])
def test_no_two_maps_that_are_needed_at_once_overlap(name: str) -> None:
    passes = steps(folded(name))
    plan, memory = plan_arena(passes), memory_of(passes)
    assert plan.arena_bytes == memory.ram_bytes >= memory.peak_bytes
    index = {step.result: i for i, step in enumerate(passes)}
    # a joined convolution is computed with the sum behind it, and its own map stands nowhere
    last = {s: i + plan.joined[i] for i, step in enumerate(passes) for s in step.inputs}
    stored = {node: i for node, i in index.items() if not plan.joined[i]}
    for i, step in enumerate(passes):
        here = [j for node, j in stored.items() if j < i and last.get(node, -1) >= i]
        spans = [(plan.offsets[j], int(np.prod(passes[j].result.shape))) for j in here]
        if not plan.joined[i] and (i < len(passes) - 1 or not step.can_give_logits):
            read_by_conv = passes[i - 1].inputs if i and plan.joined[i - 1] else ()
            in_place = any(plan.offsets[i] == plan.offsets[stored[source]]
                           for source in step.inputs
                           if source in stored and source not in read_by_conv)  # fmt: skip
            if not (in_place and not isinstance(step.node, Conv | Gather | MaxPool)):
                spans.append((plan.offsets[i], int(np.prod(step.result.shape))))
        scratch = plan.scratch[i]
        if scratch is not None:
            spans.append((scratch, 1))
        for number, (start, length) in enumerate(spans):
            assert start + length <= plan.arena_bytes
            for other, other_length in spans[:number]:
                assert start >= other + other_length or other >= start + length, step.node.name


def test_a_block_adds_to_the_map_of_its_shortcut() -> None:
    """In place of three maps of 16,384 bytes: two, and two positions of 32×3×3 values, unrolled."""
    memory = measure_memory(build_model("residual(width=16,stages=2)"))
    assert memory.ram_bytes == 2 * 16_384 + 2 * 2 * 32 * 9


def test_the_commands_state_ram_and_flash(cli: Cli) -> None:
    found = cli("summary", "record", "--json").json["memory"]
    assert found["ram_bytes"] == 99_456  # three maps of 32,768, and a patch of 1,152
    assert found["peak"] == "blocks.0.conv2 (32×32×32)"
    text = cli("summary", "cnn").out
    assert "RAM: 36,224 bytes" in text
    assert "Flash: 83,536 bytes" in text


@pytest.mark.slow
def test_models_lists_ram_and_flash(cli: Cli) -> None:
    made = cli("models", "--chip", "--json")
    rows = {row["name"]: row["memory"] for row in json.loads(made.out)}
    assert set(rows) == set(MODELS)
    assert not any("missing" in memory for memory in rows.values())
    measured = {name: (row["ram_bytes"], row["flash_bytes"]) for name, row in rows.items()}
    assert measured == {
        name: (entry.ram_bytes, entry.flash_bytes) for name, entry in MODELS.items()
    }
    rows = [line.split() for line in cli("models").out.splitlines()]
    (record,) = [row for row in rows if row[:1] == ["record"]]
    assert record[-2:] == ["99.5", "482.0"]


def test_a_global_pool_in_channels_last_is_exported_as_one() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # The last map is of one pixel, where torch writes such a pool as strides.
    model = nn.Sequential(nn.MaxPool2d(4), plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    graph = onnx.ModelProto.FromString(to_onnx(model, (0.5,) * 3, (0.2,) * 3, 8)).graph
    assert {"Range", "Gather"}.isdisjoint(node.op_type for node in graph.node)


def test_sizes_of_maps_are_constants_of_an_exported_graph() -> None:
    """`unfold` is written with Range over the sides, which would be bounded by nothing."""
    model = nn.Sequential(nn.Unfold(4, stride=4), nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    content = to_onnx(model, (0.5,) * 3, (0.2,) * 3, 8)
    kinds = {node.op_type for node in onnx.ModelProto.FromString(content).graph.node}
    assert {"Range", "Shape"}.isdisjoint(kinds)
    check_graph(content, image_shape(8), 3 * 8 * 8 * 5)


class Patches(nn.Module):
    """Takes an image as patches of 4×4 pixels, 48 channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        x = x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return self.head(x).mean((2, 3))


@pytest.mark.parametrize(("model", "size"), [("patches", 192), ("cct2", 96)])
def test_indices_of_large_maps_are_not_counted_as_weights(model: str, size: int) -> None:
    net = (Patches() if model == "patches" else build_model(model, 10, size)).eval()
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    content = integers_to_onnx(quantize(net, MEAN, STD, images))
    initializers = onnx.ModelProto.FromString(content).graph.initializer
    assert sum(math.prod(t.dims) for t in initializers) > 2 * count_params(net) + 100_000
    check_graph(content, image_shape(size), count_params(net))


class Tried(nn.Module):
    """A network of weights as drawn; a function makes logits of it and of images."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(192, 5)
        self.p = nn.Parameter(torch.randn(4, 1, 1))
        self.q = nn.Parameter(torch.randn(1, 2, 128))
        self.narrow = nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def tokens(net: Any, x: Tensor) -> Tensor:
    return net.conv(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 1, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.conv(x) * net.p.expand_as(net.conv(x)),
        lambda net, x: F.relu(net.conv(x) + net.p.expand_as(net.conv(x))),
        lambda net, x: net.conv(x) + net.q.view_as(net.conv(x)),
        lambda net, x: padded(y := net.conv(x)) + padded(y.sigmoid()),
        lambda net, x: F.avg_pool2d(F.pad(net.conv(x), (0, 1, 0, 1)), 2, 2, ceil_mode=True,
                                    divisor_override=4),
        lambda net, x: F.avg_pool2d(F.pad(net.conv(x), (0, 1, 0, 1)), 3, 2, ceil_mode=True),
        lambda net, x: net.attention(*[tokens(net, x)] * 3)[0].mean(1),
        lambda net, x: net.encoder(tokens(net, x)).amax(1, keepdim=True),
        lambda net, x: net.narrow(net.conv(x).permute(0, 2, 3, 1).reshape(-1, 4)).view(1, -1),
        lambda net, x: net.narrow(net.conv(x).permute(2, 0, 3, 1)).permute(1, 0, 2, 3).sum((1, 2)),
        lambda net, x: net.narrow(net.conv(x).permute(0, 2, 3, 1)).mean((1, 2), keepdim=True),
        lambda net, x: net.narrow(net.conv(x).unflatten(2, (2, 4)).movedim(1, -1)),
    ],
    ids=["expand_as", "expand_as of a sum", "view_as", "padded functions", "ceil_mode: one more",
         "ceil_mode: no more", "attention", "encoder", "positions as a batch", "rows first",
         "channels last", "five axes"],
)  # fmt: skip
def test_code_of_another_form_is_followed(function: Callable[[Any, Tensor], Tensor]) -> None:
    model = Tried(lambda net, x: function(net, x).flatten(1)).eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.allclose(trace(model, 8).logits(images), model(images), atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.linear(x.flatten(1)).relu() + net.linear(x.flip(3).flatten(1)).relu(),
        lambda net, x: (
            net.linear(x.relu().flatten(1)).relu() + net.linear(x.amax((2, 3)).repeat(1, 64)).relu()
        ),
        lambda net, x: F.linear(net.square(x), net.p).relu() + (net.square(x) @ net.p).relu(),
        lambda net, x: ((net.conv(x) * net.p).relu() + (net.conv(x) + net.p).relu()).amax((2, 3)),
    ],
    ids=["flipped", "a map and a vector", "turned", "times and plus"],
)
def test_only_equal_weights_have_one_key(function: Callable[[Any, Tensor], Tensor]) -> None:
    model = Tried(function)
    model.square = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    if "square" in function.__code__.co_names:
        model.p = nn.Parameter(torch.randn(4, 4))
    kept: dict[str, Conv] = {}
    for node in simplify(trace(model.eval(), 8), MEAN, STD).nodes:
        if isinstance(node, Conv):
            other = kept.setdefault(node.weight_key, node)
            assert np.array_equal(other.weight, node.weight)
    assert len(kept) >= 2


def test_a_sum_takes_the_batchnorm_behind_it_whichever_stands_first() -> None:
    pixels = torch.randint(0, 256, (3, 3, 8, 8))
    found = []
    for add in (lambda x, y: x + y, lambda x, y: y + x):
        model = Tried(lambda net, x, add=add: add(net.deep(y := net.conv(x).relu()), y))
        model.deep = nn.Conv2d(4, 4, 3, padding=1)
        ahead = (nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))  # it cannot go into what is behind it
        model = nn.Sequential(model, nn.BatchNorm2d(4), *ahead)
        for _ in range(3):
            model.train()(torch.randn(8, 3, 8, 8))
        graph = simplify(trace(model.eval(), 8), MEAN, STD)
        expected = float_logits(model, pixels)
        assert torch.allclose(graph.logits(pixels.double()).float(), expected, atol=1e-5)
        found.append(len(steps(graph)))
    assert found == [4, 4]


def test_a_scale_that_is_learned_counts_whatever_it_is_now() -> None:
    found = []
    for scale in (1.0, 0.7):
        model = Tried(lambda net, x: (net.conv(x).relu() * net.scale).amax((2, 3)))
        model.scale = nn.Parameter(torch.tensor(scale))
        found.append(measure_memory(model.eval(), 8).flash_bytes)
    assert found[0] == found[1]
