"""What a network may say about itself. Any `nn.Module` from images to logits will do without.

| method | what for | where there is none |
|---|---|---|
| `prepare(images)` | initialization from normalized training images N×C×H×W | nothing is done |
| `body_modules()` | all modules but the head, to count their parameters | all but the last layer |
| `last_map()` | the layer whose map Grad-CAM looks at | the last map of more than 3×3 positions |

Only a method of the network's class counts; a layer or value of the same name does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.errors import with_kind

COARSEST_MAP = 4
"""The fewest positions on a side of a map that show where a network looked."""


def preparation(model: nn.Module) -> Callable[[Tensor], None] | None:
    """Return the function that initializes a network from images; None where it needs none."""
    return _method(model, "prepare")


def body_parameters(model: nn.Module, image_size: ImageSize) -> list[nn.Parameter]:
    """Return the parameters that are not the head's, each once.

    The head of a network that does not say is the convolution or linear layer that runs last.

    Raises:
        ValueError: its `body_modules` returns something else than modules.
    """
    if own := _method(model, "body_modules"):
        try:
            return list(dict.fromkeys(p for module in own() for p in module.parameters()))
        except Exception as error:  # whatever a method of a user's that is called so does
            raise ValueError(
                f"{type(model).__name__}.body_modules returns a list of all modules but the head; "
                f"rename it if it means something else: {with_kind(error, 200)}"
            ) from None
    layers: list[nn.Module] = []
    with torch.no_grad():
        run_once(model, image_size, lambda layer, _: layers.append(layer), nn.Conv2d, nn.Linear)
    of_head = {parameter for layer in layers[-1:] for parameter in layer.parameters()}
    return [parameter for parameter in model.parameters() if parameter not in of_head]


def last_map(model: nn.Module, image_size: ImageSize) -> nn.Module | None:
    """Return the layer whose output, a map B×C×H×W that the logits depend on, Grad-CAM looks at.

    Of a network that does not say it is the last one finer than 3×3 positions; None without any.
    """
    if own := _method(model, "last_map"):
        return own()  # type: ignore[no-any-return]
    layers: list[nn.Module] = []
    maps: list[Tensor] = []

    def keep(layer: nn.Module, output: Tensor) -> None:
        if output.ndim == 4 and min(output.shape[2:]) >= COARSEST_MAP and output.requires_grad:
            layers.append(layer)
            maps.append(output)

    with torch.enable_grad():
        logits = run_once(model, image_size, keep, nn.Module)
    if not maps or not logits.requires_grad:
        return None
    gradients = torch.autograd.grad(logits.sum(), maps, allow_unused=True)
    reached = [layer for layer, g in zip(layers, gradients, strict=True) if g is not None]
    return reached[-1] if reached else None


def run_once(
    model: nn.Module,
    image_size: ImageSize,
    on_output: Callable[[Any, Tensor], None],
    *kinds: type[nn.Module],
) -> Tensor:
    """Run one blank image through a network in evaluation mode, and leave the network as it was.

    Args:
        model: the network.
        image_size: of the image.
        on_output: is told each module of those kinds that gives a tensor, when it ends, and that.
        kinds: of the modules to tell of.
    """

    def tell(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            on_output(module, output)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *image_shape(image_size), device=device, requires_grad=True)
    watched = [module for module in model.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(tell) for module in watched]
    try:
        with evaluating(model):
            return model(image)  # type: ignore[no-any-return]
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for the time, and each of its modules back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _method(model: nn.Module, name: str) -> Callable[..., Any] | None:
    return getattr(model, name) if callable(getattr(type(model), name, None)) else None
