"""What a network costs to run: parameters, multiply-accumulates, bytes, latency, throughput."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.networks.summary import count_macs, count_params

BATCH_SIZE = 128
ROUNDS = 7


@dataclass(frozen=True)
class Cost:
    """Costs of one network; times are medians on this machine, in float32 or what it has faster.

    Attributes:
        params: all of them.
        macs: multiply-accumulates for one image.
        weights_bytes: of parameters and buffers as stored.
        latency_ms: one image.
        images_per_second: a batch of 128.
    """

    params: int
    macs: int
    weights_bytes: int
    latency_ms: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dict(vars(self))


@torch.inference_mode()
def measure_costs(
    models: Mapping[str, nn.Module], image_size: ImageSize, in_float32: Collection[str] = ()
) -> dict[str, Cost]:
    """Measure networks in one process, interleaved: each round times each of them once.

    So a change in the machine's speed meets all networks, and their ratios hold.

    Args:
        models: by name.
        image_size: of what they are timed on.
        in_float32: names of those that compute in float32 where this machine has bfloat16, too.
    """
    cpu = torch.device("cpu")
    fastest = compute_dtype("auto", cpu)
    dtypes = {name: torch.float32 if name in in_float32 else fastest for name in models}
    batches = [
        torch.rand(count, *image_shape(image_size)).contiguous(memory_format=torch.channels_last)
        for count in (1, BATCH_SIZE)
    ]
    images = {dtype: [batch.to(dtype) for batch in batches] for dtype in dtypes.values()}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in models}
    for round_number in range(1 + ROUNDS):
        for name, model in models.items():
            model.eval()
            with autocast(cpu, dtypes[name]):
                for batch, times in zip(images[dtypes[name]], seconds[name], strict=True):
                    started = time.perf_counter()
                    model(batch)
                    if round_number:  # the first warms up
                        times.append(time.perf_counter() - started)
    return {
        name: Cost(
            params=count_params(model),
            macs=count_macs(model, image_size),
            weights_bytes=sum(
                tensor.numel() * tensor.element_size()
                for tensor in (*model.parameters(), *model.buffers())
            ),
            latency_ms=1000 * statistics.median(seconds[name][0]),
            images_per_second=BATCH_SIZE / statistics.median(seconds[name][1]),
        )
        for name, model in models.items()
    }
