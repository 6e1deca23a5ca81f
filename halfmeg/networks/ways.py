"""Layers computed in other ways while a network trains, whatever code calls them.

Torch's own gradients of some layers are wrong in bfloat16 (docs/performance.md); others have ways
that may be faster (`networks.convolutions`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halfmeg.data.shape import ImageShape
from halfmeg.networks.convolutions import Convolution

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


def right_kernels(model: nn.Module, shapes: Iterable[ImageShape], dtype: torch.dtype) -> Ways:
    """Return another way for each layer of a network whose gradient torch gets wrong here.

    Args:
        model: in its order of memory; it stays as it is.
        shapes: of the images of all epochs.
        dtype: of the run's products.
    """
    if dtype != torch.bfloat16:
        return {}
    found = layers_of(model, shapes, 1, dtype)
    return {layer.name: layer.ways()[0] for layer in found if layer.has_wrong_gradient}


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


def layers_of(
    model: nn.Module, shapes: Iterable[ImageShape], batch_size: int, dtype: torch.dtype
) -> dict[Layer, int]:
    """Return the layers that have other ways, and the images that each gets in a step."""
    counts: dict[Layer, int] = {}
    few = 2

    def note(layer: Layer, x: Tensor, *_: Tensor | None) -> None:
        counts[layer] = len(x)

    trial = copy.deepcopy(model).train()
    products = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.random.fork_rng(devices=[]), products, _Calls(note):
        for shape in shapes:
            images = torch.zeros(few, *shape).to(dtype)
            trial(images.contiguous(memory_format=torch.channels_last))
    return {
        layer: count * batch_size // few
        for layer, count in counts.items()
        if layer.ways() != ["conv"]
    }
