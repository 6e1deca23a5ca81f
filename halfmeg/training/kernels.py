"""The fastest kernel of each convolution of a network, measured (`kernels=auto`), then kept.

Grouped and dilated convolutions are timed in the ways of `networks.convolutions`, forward and
backward, with the batch, order of memory and type that the run has. One that is faster than torch's
own by a tenth or more is taken. What a run takes is written to its folder, and found there again by
`resume`; what was measured stays in the cache (`training.measured`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from halfmeg.data.shape import ImageShape
from halfmeg.evaluation.precision import autocast
from halfmeg.networks.convolutions import Convolution
from halfmeg.networks.ways import Ways, layers_of
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
    found = layers_of(model, shapes, batch_size, dtype)
    return {
        layer.name: fastest(layer, _times_of(layer, min(n, MOST_IMAGES)))
        for layer, n in found.items()
        if isinstance(layer, Convolution)
    }


def fastest(layer: Convolution, milliseconds: Mapping[str, float]) -> str:
    """Return the way of the least time; the usual one unless another is clearly faster."""
    usual = layer.ways()[0]
    best = min(layer.ways(), key=lambda way: milliseconds.get(way, math.inf))
    is_faster = milliseconds.get(best, math.inf) <= GAIN * milliseconds.get(usual, math.inf)
    return best if is_faster else usual


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
