"""Multiply-accumulates, counted where they happen: in the operators that a network runs.

Counted are the products of convolutions, linear layers, matrix products and attention, whatever
layer or function they come from, by the formulas of `torch.utils.flop_counter`. Elementwise
operators, normalization, pooling, sums and moves of memory count as none, as is the custom. An
operator that is neither is named, and not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from halfmeg.data.shape import ImageSize
from halfmeg.networks.protocol import run_once

aten = torch.ops.aten

_ATTENTION = flop_registry[aten._scaled_dot_product_flash_attention]
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _ATTENTION,  # torch 2.13 lacks it
    aten._scaled_dot_product_fused_attention_overrideable: _ATTENTION,
}

WITHOUT = frozenset(
    [
        "_adaptive_avg_pool2d", "_batch_norm_no_update", "_fused_rms_norm", "_local_scalar_dense",
        "_log_softmax", "_native_batch_norm_legit", "_native_batch_norm_legit_functional",
        "_native_batch_norm_legit_no_training", "_prelu_kernel",
        "_reshape_alias", "_softmax", "_to_copy", "_unsafe_index", "_unsafe_view",
        "adaptive_avg_pool2d", "adaptive_max_pool2d", "all", "amax", "amin", "any", "arange",
        "argmax", "argmin", "argsort", "avg_pool1d", "avg_pool2d", "bernoulli",
        "broadcast_tensors", "cat", "channel_shuffle", "clone", "col2im", "constant_pad_nd",
        "copy", "copy_", "cudnn_batch_norm", "cummax", "cumprod", "cumsum", "embedding", "empty",
        "empty_like", "empty_permuted", "empty_strided", "eye", "fill", "fill_", "flip", "full",
        "full_like", "gather", "glu", "group_norm", "im2col", "index", "index_put",
        "index_select", "layer_norm", "lift_fresh", "linalg_vector_norm", "linspace", "logsumexp",
        "masked_fill", "masked_select", "max", "max_pool2d_with_indices", "mean", "median", "min",
        "mkldnn_max_pool2d", "native_batch_norm", "native_dropout", "native_group_norm",
        "native_layer_norm", "new_empty", "new_full", "new_ones", "new_zeros", "nonzero", "norm",
        "one_hot", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle", "prod", "rand",
        "randn", "reflection_pad1d", "reflection_pad2d", "relu", "repeat", "repeat_interleave",
        "replication_pad2d", "rms_norm", "roll", "scalar_tensor", "scatter", "scatter_add",
        "select_scatter", "slice_scatter", "softmax", "sort", "stack", "std", "std_mean", "sum",
        "topk", "tril", "triu", "upsample_nearest2d", "var", "var_mean", "where", "zero_",
        "zeros", "zeros_like",
    ]
)  # fmt: skip
"""Operators that are neither elementwise nor views, and make no products of sums."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image.

    Attributes:
        count: of all operators whose formula is known.
        unknown: the others, each with the module that ran it, as in `blocks.0.rnn (gru)`.
    """

    count: int
    unknown: tuple[str, ...]


def measure_macs(model: nn.Module, image_size: ImageSize = 32) -> Macs:
    """Run one blank image of that size through a network and count."""
    counter = _Counter()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(counter.enter, name)))
        handles.append(module.register_forward_hook(counter.leave))
    try:
        with torch.no_grad(), _without_fused_attention(), counter:
            run_once(model, image_size, lambda module, output: None)
    finally:
        for handle in handles:
            handle.remove()
    return Macs(counter.count, tuple(counter.unknown))


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Let `nn.MultiheadAttention` run its parts, whose formulas are known, and not one operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Is told every operator that runs, in its simplest form."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.unknown: dict[str, None] = {}
        self.running: list[str] = []  # modules, the innermost last

    def enter(self, name: str, module: nn.Module, inputs: object) -> None:
        """A module starts."""
        self.running.append(name)

    def leave(self, module: nn.Module, inputs: object, output: object) -> None:
        """The module that started last ends."""
        self.running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in FORMULAS and func.namespace == "aten":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in FORMULAS:
            self.count += FORMULAS[packet](*args, **kwargs, out_val=result) // 2
        elif not _makes_no_products(func):
            name = self.running[-1] if self.running else ""
            self.unknown[f"{name or 'the network itself'} ({func.__name__.split('.')[0]})"] = None
        return result


def _makes_no_products(func: Any) -> bool:
    """Return whether an operator is known to make no sums of products."""
    if func.namespace != "aten":
        return bool(func.namespace == "prim")
    name = func.__name__.split(".")[0]
    of_no_sums = bool({name, name.rstrip("_")} & WITHOUT)
    return of_no_sums or func.is_view or torch.Tag.pointwise in func.tags
