"""What a loss depends on, and where a network keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def gradient_leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a gradient is collected in."""
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions]


def passing_buffers(model: nn.Module) -> set[str]:
    """Return the names of buffers that are in no state: those of `persistent=False`."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }


def plain_numbers(model: nn.Module) -> dict[str, int | float]:
    """Return the numbers that modules keep in attributes, by name; whether they train is none."""
    return {
        f"{prefix}.{key}" if prefix else key: value
        for prefix, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def name_of(model: nn.Module, tensor: Tensor) -> str:
    """Return where a network keeps a tensor that it has not registered, or its shape."""
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            name = f"{prefix}.{key}" if prefix else key
            if key.startswith("_") or value is None:
                continue
            for place, item in _items(name, value):
                if item is tensor:
                    return place
    return f"a tensor of {'×'.join(map(str, tensor.shape))}"


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors within lists, dicts and modules, each with its name."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{key}", item) for key, item in value.named_parameters())
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _items(f"{name}[{index}]", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _items(f"{name}[{key!r}]", item)
