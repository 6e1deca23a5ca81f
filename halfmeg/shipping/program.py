"""A network as a program of torch.export, as the converters of other libraries take it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

APART = {"litert": "constraints-litert.txt"}
"""Targets whose packages need an environment of their own, and what pins it."""


def require_packages(target: str, *packages: str) -> None:
    """Check for what a target needs; its extra has the same name.

    Raises:
        ValueError: a package is missing; the message says what to install.
    """
    remedy = f"pip install -e '.[{target}]'"
    if target in APART:
        remedy = f"in an environment of its own, pip install -c {APART[target]} "
        remedy += f"-e '.[ship,{target}]'"
    for package in packages:
        if find_spec(package) is None:
            raise ValueError(f"--target {target} needs {package}, which is not installed: {remedy}")


def with_pooling(module: Any) -> Any:
    """Write a maximum over all positions as a max-pooling, which has a form in int8."""
    aten = torch.ops.aten

    def pool(graph: Any, source: Any) -> Any:
        sides = list(source.meta["val"].shape[2:])
        return graph.call_function(aten.max_pool2d.default, (source, sides))

    return _replace_global(module, aten.amax.default, pool)


def with_kept_axes(module: Any) -> Any:
    """Write a mean over all positions as one that keeps its axes, and lay them down after it."""
    mean = torch.ops.aten.mean.dim
    return _replace_global(
        module, mean, lambda graph, source: graph.call_function(mean, (source, [2, 3], True))
    )


def _replace_global(module: Any, operator: Any, pool: Callable[[Any, Any], Any]) -> Any:
    """Replace an operator over all positions of B×C×H×W by one whose result is B×C×1×1."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is not operator or node.kwargs:
            continue
        source, axes, *keep = node.args
        if source.meta["val"].dim() != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        result = node.meta["val"]
        with graph.inserting_before(node):
            found = pool(graph, source)
            # what a quantizer asks of a node: its result's form, and the layer that it is from
            found.meta = node.meta | {"val": result.reshape(*result.shape[:2], 1, 1)}
            if not any(keep):
                found = graph.call_function(torch.ops.aten.flatten.using_ints, (found, 1))
                found.meta = dict(node.meta)
        node.replace_all_uses_with(found)
        graph.erase_node(node)
    module.recompile()
    return module


@contextmanager
def taken_from_the_screen() -> Iterator[Callable[[], str]]:
    """Keep what compiled code prints from the screen; yields what returns it afterwards."""
    with tempfile.TemporaryFile() as kept:
        screens = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        try:
            for descriptor in screens:
                os.dup2(kept.fileno(), descriptor)
            text: list[str] = []
            yield lambda: text[0]
        finally:
            for descriptor, screen in screens.items():
                os.dup2(screen, descriptor)
                os.close(screen)
            kept.seek(0)
            text.append(kept.read().decode(errors="replace"))
