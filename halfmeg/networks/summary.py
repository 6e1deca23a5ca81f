"""Layer table, parameters and mult-adds: as published, and as they truly are.

The published study printed its tables with torch-summary 1.4. That tool shows three levels, leaves
out of its total what lies deeper (here: the head), and counts as mult-adds a convolution's weights
times its output positions, every other `weight` once, and the weights of a module with children
once more at the module itself. `summarize` repeats its rules to the digit and sets the true
counts beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from halfmeg.config import BUDGET
from halfmeg.data.shape import ImageSize
from halfmeg.networks.macs import measure_macs
from halfmeg.networks.protocol import body_parameters, run_once

SHOWN_DEPTH = 3


@dataclass(frozen=True)
class LayerRow:
    """A row of the table.

    Attributes:
        kind: the module's class.
        depth, index: its place; index counts the rows of a depth and is None for containers
            that are never called themselves.
        output_shape: without the batch dimension, of the first tensor of several; empty for such
            containers and for a module that gives no tensor.
        params: None where the table shows none, as for modules whose children are listed.
        recursive: True from the second use of the same weights on.
        frozen: True where not all parameters take a gradient; the table puts them in parentheses.
    """

    kind: str
    depth: int
    index: int | None
    output_shape: tuple[int, ...]
    params: int | None
    recursive: bool = False
    frozen: bool = False

    @property
    def name(self) -> str:
        """The module's class with its depth and index, as in `Conv2d: 2-1`."""
        place = f"{self.depth}" if self.index is None else f"{self.depth}-{self.index}"
        return f"{self.kind}: {place}"


@dataclass(frozen=True)
class ModelSummary:
    """Counts of a network.

    Attributes:
        params: all parameters: head, normalization and frozen ones included.
        trainable_params: those that take a gradient.
        body_params: all but the head's.
        macs: true multiply-accumulates for one image, once for each use of a weight.
        unknown_macs: layers whose multiply-accumulates are not known, and so not in `macs`.
        published_params, published_mult_adds: by the published table's rules.
        layers: the published table.
    """

    params: int
    trainable_params: int
    body_params: int
    macs: int
    unknown_macs: tuple[str, ...]
    published_params: int
    published_mult_adds: int
    layers: tuple[LayerRow, ...]

    @property
    def within_budget(self) -> bool:
        """Whether all parameters together are fewer than 500,000."""
        return self.params < BUDGET


def count_params(module: nn.Module) -> int:
    """Count all parameters; those used more than once count once, a complex one is two."""
    return sum((1 + p.is_complex()) * p.numel() for p in module.parameters())


def count_macs(model: nn.Module, image_size: ImageSize = 32) -> int:
    """Count the true multiply-accumulates of one image of that size.

    Those of an operator without a formula are left out; `measure_macs` names it.
    """
    return measure_macs(model, image_size).count


def summarize(model: nn.Module, image_size: ImageSize = 32) -> ModelSummary:
    """Run one blank image through a network and count; the network is left as it was."""
    table = _LayerTable(model)
    try:
        with torch.no_grad():
            run_once(model, image_size, lambda module, output: None)
    finally:
        table.remove_hooks()
    macs = measure_macs(model, image_size)
    return ModelSummary(
        params=count_params(model),
        trainable_params=sum(p.numel() for p in model.parameters() if p.requires_grad),
        body_params=sum(p.numel() for p in body_parameters(model, image_size)),
        macs=macs.count,
        unknown_macs=macs.unknown,
        published_params=table.total_params,
        published_mult_adds=table.total_mult_adds,
        layers=tuple(table.rows),
    )


def format_table(summary: ModelSummary, *, published: bool = False) -> str:
    """Return the layer table in the published layout, followed by the true counts.

    Args:
        summary: of a network.
        published: give the counts by the published table's rules beside them.
    """
    rows, counts = [], []
    for row in summary.layers:
        branch = "├─" if row.depth == 1 else "|    " * (row.depth - 1) + "└─"
        shape = str([-1, *row.output_shape]) if row.output_shape else "[]"
        rows.append(_format_row(branch + row.name, shape, _format_params(row)))
    line = "=" * 90
    if published:
        counts = [
            "As published (the head's parameters left out, weights inside blocks counted twice):",
            f"Total params: {summary.published_params:,}",
            f"Total mult-adds (M): {summary.published_mult_adds / 1e6:.2f}",
            line,
            "In truth:",
        ]
    fits = "fits" if summary.within_budget else "does not fit"
    return "\n".join(
        [
            line,
            _format_row("Layer (type:depth-idx)", "Output Shape", "Param #"),
            line,
            *rows,
            line,
            *counts,
            f"All parameters: {summary.params:,} ({fits} the budget of {BUDGET:,})",
            f"Trainable parameters: {summary.trainable_params:,}",
            f"Body without head: {summary.body_params:,}",
            f"Multiply-accumulates (M): {summary.macs / 1e6:.6f}",
            *(f"Not known and not counted: {name}" for name in summary.unknown_macs),
            line,
        ]
    )


def _format_params(row: LayerRow) -> str:
    if row.recursive:
        return "(recursive)"
    if row.params is None:
        return "--"
    return f"({row.params:,})" if row.frozen else f"{row.params:,}"


def _format_row(name: str, shape: str, params: str) -> str:
    return f"{name:<40} {shape:<25} {params:<25}".rstrip()


def _first_tensor(output: object) -> Tensor | None:
    """Return what a module gives, or the first tensor in it, as of an LSTM or of attention."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, dict) else output
    if not isinstance(parts, list | tuple):
        return None
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


class _LayerTable:
    """Collects the rows and totals of the published table while a network runs once."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[LayerRow] = []
        self.total_params = 0
        self.total_mult_adds = 0
        self._indices: dict[int, int] = {}
        self._seen: set[nn.Module] = set()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._parents: dict[int, nn.Module] = {}  # depth -> container whose row stands above
        for child in model.children():
            self._watch(child, depth=1, parents=())

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, module: nn.Module, depth: int, parents: tuple[nn.Module, ...]) -> None:
        """Register hooks on a module and, as far down as torch-summary looks, its children."""
        pending: list[int] = []  # rows that wait for their output shape

        def before(module: nn.Module, inputs: object) -> None:
            pending.append(self._open_row(module, depth, parents))

        def after(module: nn.Module, inputs: object, output: object) -> None:
            first = _first_tensor(output)
            shape = () if first is None else tuple(first.shape[1:])
            self._close_row(pending.pop(), module, shape)

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after))
        if depth <= SHOWN_DEPTH:
            for child in module.children():
                self._watch(child, depth + 1, (*parents, module))

    def _open_row(self, module: nn.Module, depth: int, parents: tuple[nn.Module, ...]) -> int:
        self._indices[depth] = self._indices.get(depth, 0) + 1
        has_params = any(True for _ in module.parameters())
        recursive = has_params and module in self._seen
        self._seen.add(module)
        is_leaf = not any(True for _ in module.children())
        if not recursive and (depth == SHOWN_DEPTH or (is_leaf and depth < SHOWN_DEPTH)):
            self.total_params += count_params(module)
        if depth > SHOWN_DEPTH:
            return -1
        for level, parent in enumerate(parents, start=1):  # containers that are never called
            if self._parents.get(level) is not parent:
                self.rows.append(LayerRow(type(parent).__name__, level, None, (), None))
                self._parents[level] = parent
        self._parents[depth] = module
        for deeper in [level for level in self._parents if level > depth]:
            del self._parents[deeper]
        shows_params = has_params and (is_leaf or depth == SHOWN_DEPTH)
        params = count_params(module) if shows_params else None
        kind, index = type(module).__name__, self._indices[depth]
        frozen = not all(parameter.requires_grad for parameter in module.parameters())
        self.rows.append(LayerRow(kind, depth, index, (), params, recursive, frozen))
        return len(self.rows) - 1

    def _close_row(self, row: int, module: nn.Module, shape: tuple[int, ...]) -> None:
        if row >= 0:
            self.rows[row] = replace(self.rows[row], output_shape=shape)
        positions = math.prod(shape[1:]) if "Conv" in type(module).__name__ else 1
        for name, parameter in module.named_parameters():
            if name == "weight":
                self.total_mult_adds += parameter.numel() * positions
            elif "weight" in name:
                self.total_mult_adds += parameter.numel()
