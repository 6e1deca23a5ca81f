"""Which kernel each convolution of a network runs on.

Torch's own, but where its gradient is wrong. With `kernels=auto` it is measured, then kept.

Grouped and dilated convolutions are timed in the ways of `networks.convolutions`, forward and
backward, with the batch, order of memory and type that the run has. One that is faster than torch's
own by a tenth or more is taken. What a run takes is written to its folder, and found there again by
`resume`; what was measured stays in the cache (`training.measured`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halfmeg.data.shape import ImageShape
from halfmeg.evaluation.precision import autocast
from halfmeg.networks.convolutions import Convolution
from halfmeg.training.measured import clock, remember

GAIN = 0.9
"""A way is taken if its time is at most this part of torch's own: noise alone shall not change a
run's bits, and what it seldom wins is not worth that."""

MOST_IMAGES = 128
"""Of a batch; the times of more are in proportion."""

ROUNDS = 30
FEWEST_ROUNDS = 4
SECONDS = 0.3
"""For each way of a convolution; when they are over, no further round is begun."""
HOPELESS = 2.0
"""A way that is slower by this factor in two rounds is not timed again."""

Ways = dict[str, str]
"""The way of each layer, by its name; `conv` is torch's own."""


@final
@dataclass(frozen=True)
class LayerNorm:
    """A LayerNorm of images or tokens in bfloat16.

    Torch sums the gradients of its scale and shift in that type: over ten thousands of positions
    nearly all of them is lost (docs/performance.md).
    """

    shape: tuple[int, ...]
    eps: float

    name = "LayerNorm, bfloat16"
    has_wrong_gradient = True

    @classmethod
    def of(
        cls, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
        bias: Tensor | None = None, eps: float = 1e-5, *_: Any,
    ) -> LayerNorm | None:  # fmt: skip
        """Look at a call of `F.layer_norm`; None for another type, or nothing to learn."""
        if input.dtype != torch.bfloat16 or weight is None:
            return None
        return cls(tuple(normalized_shape), eps)

    def ways(self) -> list[str]:
        """Return the one way to compute it."""
        return ["float32"]

    def compute(self, way: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Normalize as `F.layer_norm` does; the output has the type of the input."""
        shift = None if bias is None else bias.float()
        return F.layer_norm(x.float(), self.shape, weight.float(), shift, self.eps).to(x.dtype)


Layer = Convolution | LayerNorm


def choose_kernels(
    model: nn.Module, shapes: Iterable[ImageShape], batch_size: int, dtype: torch.dtype
) -> Ways:
    """Return the fastest way of each convolution of a network that has several.

    Args:
        model: in its order of memory; it stays as it is.
        shapes: of the images of all epochs.
        batch_size: images of a step in this process.
        dtype: of the run's products.
    """
    found = _find_layers(model, shapes, batch_size, dtype)
    return {
        layer.name: fastest(layer, _times_of(layer, n))
        for layer, n in found.items()
        if isinstance(layer, Convolution)
    }


def right_kernels(model: nn.Module, shapes: Iterable[ImageShape], dtype: torch.dtype) -> Ways:
    """Return another way for each layer of a network whose gradient torch gets wrong here.

    Args:
        model: in its order of memory; it stays as it is.
        shapes: of the images of all epochs.
        dtype: of the run's products.
    """
    if dtype != torch.bfloat16:
        return {}
    found = _find_layers(model, shapes, 1, dtype)
    return {layer.name: layer.ways()[0] for layer in found if layer.has_wrong_gradient}


def fastest(layer: Convolution, milliseconds: Mapping[str, float]) -> str:
    """Return the way of the least time; the usual one unless another is clearly faster."""
    usual = layer.ways()[0]
    best = min(layer.ways(), key=lambda way: milliseconds.get(way, math.inf))
    is_faster = milliseconds.get(best, math.inf) <= GAIN * milliseconds.get(usual, math.inf)
    return best if is_faster else usual


def with_kernels(forward: Callable[[Tensor], Tensor], ways: Ways) -> Callable[[Tensor], Tensor]:
    """Return the same function with its layers computed in these ways while it trains."""
    others = {name: way for name, way in ways.items() if way != "conv"}
    if not others:
        return forward

    def compute(layer: Layer, *tensors: Tensor | None) -> Tensor | None:
        way = others.get(layer.name)
        return layer.compute(way, *tensors) if way else None  # type: ignore[arg-type]

    def run(images: Tensor) -> Tensor:
        with _Calls(compute):
            return forward(images)

    return run


@final
class _Calls(TorchFunctionMode):
    """Asks a function first about each layer that a gradient will come back through."""

    def __init__(self, compute: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self.compute = compute

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled() and func in _LAYERS:
            look, tensors = _LAYERS[func]
            layer = look(*args, **kwargs)
            y = layer and self.compute(layer, *tensors(*args, **kwargs))
            if y is not None:
                return y
        return func(*args, **kwargs)


def _of_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors of a call of `F.conv2d`."""
    return input, weight, bias


def _of_layer_norm(
    input: Tensor, _: Any, weight: Tensor, bias: Tensor | None = None, *__: Any, **___: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors of a call of `F.layer_norm`."""
    return input, weight, bias


_LAYERS: dict[Any, tuple[Callable[..., Layer | None], Callable[..., tuple[Tensor | None, ...]]]] = {
    F.conv2d: (Convolution.of, _of_convolution),
    F.layer_norm: (LayerNorm.of, _of_layer_norm),
    torch.layer_norm: (LayerNorm.of, _of_layer_norm),
}


def _find_layers(
    model: nn.Module, shapes: Iterable[ImageShape], batch_size: int, dtype: torch.dtype
) -> dict[Layer, int]:
    """Return the layers that have other ways, and the images that each gets in a step."""
    counts: dict[Layer, int] = {}
    few = 2

    def note(layer: Layer, x: Tensor, *_: Tensor | None) -> None:
        counts[layer] = len(x)

    trial = copy.deepcopy(model).train()
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]), autocast(cpu, dtype), _Calls(note):
        for shape in shapes:
            images = torch.zeros(few, *shape).to(dtype)
            trial(images.contiguous(memory_format=torch.channels_last))
    return {
        layer: min(count * batch_size // few, MOST_IMAGES)
        for layer, count in counts.items()
        if layer.ways() != ["conv"]
    }


def _times_of(layer: Convolution, num_images: int) -> dict[str, float]:
    facts = {"convolution": layer.name, "images": num_images, "ways": layer.ways()}
    return remember(facts, dict[str, float], lambda: time_ways(layer, num_images))


def time_ways(layer: Convolution, num_images: int) -> dict[str, float]:
    """Return milliseconds of each way, forward and backward: the least of some rounds in turn.

    Args:
        layer: what is computed, on random numbers.
        num_images: in a batch.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator)
        order = torch.channels_last if layer.channels_last else torch.contiguous_format
        return values.contiguous(memory_format=order) if len(shape) == 4 else values

    dtype = torch.bfloat16 if layer.bfloat16 else torch.float32
    x = draw(num_images, layer.in_channels, *layer.size).to(dtype).requires_grad_(layer.gradient)
    weight = draw(layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
    weight.requires_grad_()
    bias = draw(layer.out_channels).requires_grad_() if layer.bias else None
    needing = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    seconds: dict[str, list[float]] = {way: [] for way in layer.ways()}

    def once(way: str) -> float:
        started = now()
        with autocast(torch.device("cpu"), dtype):
            y = layer.compute(way, x, weight, bias)
        torch.autograd.grad(y, needing, torch.ones_like(y))
        return now() - started

    now = clock()
    left, begun = layer.ways(), now()
    for number in range(1 + ROUNDS):
        if number > FEWEST_ROUNDS and now() - begun > SECONDS * len(seconds):
            break
        for way in left:
            taken = once(way)
            if number:  # the first warms up
                seconds[way].append(taken)
        if number == 2:
            limit = HOPELESS * min(map(min, seconds.values()))
            left = [way for way in left if min(seconds[way]) <= limit]
    return {way: 1000 * min(times) for way, times in seconds.items()}
