"""RAM and flash of a network in C, to the byte, before it is trained.

The plan holds for the file that `halfmeg export --target c` writes: the file's own compiler checks
its constants and its arena against these numbers. Only shapes count, but that a BatchNorm behind a
max-pool goes into the convolution before it where its scales are positive, as they are at first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.networks.arena import Buffer, aligned, place
from halfmeg.networks.graph import (
    Combine,
    Concat,
    Conv,
    Function,
    Gather,
    Multiply,
    Node,
    Normalize,
    Softmax,
    even_steps,
)
from halfmeg.networks.micro import micro_arena
from halfmeg.networks.simplify import Step, border_classes, simplify, steps
from halfmeg.networks.trace import trace

ALIGNMENT = 4
TABLE_BYTES = 256
PROBABILITY_BYTES = 512
"""Of the table that makes probabilities of logits."""


@dataclass(frozen=True)
class Plan:
    """Where each step's result stands in the arena.

    Attributes:
        offsets: of each step's result, in bytes; logits in float32 stand elsewhere.
        scratch: offset of the patch that each step unrolls its input in; None where it needs none.
        joined: whether each step is one with the next: a convolution whose values are added up as
            soon as they are there, and stand nowhere themselves.
        live_bytes: at each step, of all maps that are needed at that moment and its patch.
        arena_bytes: size of the arena.
    """

    offsets: tuple[int, ...]
    scratch: tuple[int | None, ...]
    joined: tuple[bool, ...]
    live_bytes: tuple[int, ...]
    arena_bytes: int


@dataclass(frozen=True)
class Memory:
    """What a network needs on a device, in C.

    Attributes:
        ram_bytes: the arena. The image, the logits and the stack are the caller's.
        flash_bytes: weights, biases, scales and tables; code is not counted.
        peak: name of the step that needs the most RAM.
        peak_bytes: what it needs; the arena is as large where nothing is lost to gaps.
        tflite_micro_bytes: the arena that TFLite Micro would need, estimated; None where that is
            not known, and then `tflite_micro_missing` says why.
    """

    ram_bytes: int
    flash_bytes: int
    peak: str
    peak_bytes: int
    tflite_micro_bytes: int | None = None
    tflite_micro_missing: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dict(vars(self))


def measure_memory(model: nn.Module, image_size: ImageSize = 32) -> Memory:
    """Return what a network needs in C, for images of that size.

    Raises:
        ValueError: an operator that has no form in integers.
    """
    # any mean and deviation: they change values, not shapes
    channels = image_shape(image_size).channels
    graph = trace(model, image_size)
    arena, missing = None, ""
    try:
        arena = micro_arena(graph).total_bytes
    except ValueError as error:
        missing = str(error)
    found = memory_of(steps(simplify(graph, (0.5,) * channels, (0.25,) * channels)))
    return replace(found, tflite_micro_bytes=arena, tflite_micro_missing=missing)


def memory_of(passes: tuple[Step, ...]) -> Memory:
    """Return what the passes over an image need."""
    plan = plan_arena(passes)
    peak_bytes = max(plan.live_bytes)
    peak = passes[plan.live_bytes.index(peak_bytes)].node
    shape = "×".join(map(str, peak.shape))
    return Memory(plan.arena_bytes, flash_bytes(passes), f"{peak.name} ({shape})", peak_bytes)


def patch_values(node: Conv) -> int:
    """Return the length of a filter in memory: whole groups of four."""
    taps: int = node.weight[0].size
    return 4 * math.ceil(taps / 4)


def scratch_bytes(step: Step) -> int:
    """Return the size of a step's patch: two positions, unrolled, in 16 bits."""
    if not isinstance(step.node, Conv) or step.node.is_depthwise:
        return 0
    return 2 * 2 * patch_values(step.node)


def flash_bytes(passes: tuple[Step, ...]) -> int:
    """Return the bytes of all constants; weights that are used twice stand there once."""
    weights = {
        step.node.weight_key: step.node.weight.size
        if step.node.is_depthwise
        else len(step.node.weight) * patch_values(step.node)
        for step in passes
        if isinstance(step.node, Conv)
    }
    return sum(weights.values()) + sum(map(_constant_bytes, passes)) + PROBABILITY_BYTES


def _constant_bytes(step: Step) -> int:
    node, channels = step.node, step.node.shape[0]
    total = 0 if step.function is None else TABLE_BYTES
    match node:
        case Conv():
            rows, columns, missing = border_classes(node)
            classes = missing.shape[0] * missing.shape[1]
            total += 4 * channels * classes + 4 * channels  # biases, scales
            total += len(rows) + len(columns) if classes > 1 else 0
        case Combine():
            # the zero points, times the scales, go into the shift
            shift = np.broadcast_shapes(node.shift.shape, *(s.shape for s in node.scales))
            total += 4 * (sum(scale.size for scale in node.scales) + math.prod(shift))
        case Concat():
            total += TABLE_BYTES * len(node.inputs)
        case Gather():
            if node.axes() is not None:
                total += 2 * sum(node.shape)
            elif even_steps(node.index, node.inputs[0].shape) is None:
                total += 4 * math.prod(node.shape)
        case Normalize():
            total += 2 * 4 * channels  # multipliers, offsets
        case Softmax():
            total += 2 * TABLE_BYTES
        case Function():
            total += TABLE_BYTES
    return total


def plan_arena(passes: tuple[Step, ...]) -> Plan:
    """Return a plan in which no two maps that are needed at the same time overlap.

    A step that works value by value writes over an input that nobody reads later: a residual block
    adds its last convolution to the map of its shortcut, and so needs two maps instead of three.
    The rest is placed greedily, in several orders, of which the best is taken.
    """
    joined = _joined(passes)
    buffers, owner = _buffers(passes, joined)
    best: tuple[int, dict[int, int]] | None = None
    for order in _ORDERS:
        placed = place(sorted(buffers, key=order))
        top = max((placed[b.key] + b.size for b in buffers), default=0)
        if best is None or top < best[0]:
            best = top, placed
    assert best is not None
    top, places = best
    live = tuple(sum(b.size for b in buffers if b.first <= i <= b.last) for i in range(len(passes)))
    offsets = tuple(places[owner[i]] if i in owner else 0 for i in range(len(passes)))
    scratch = tuple(places.get(-1 - i) for i in range(len(passes)))
    return Plan(offsets, scratch, joined, live, top)


_ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (b.first, -b.size),
    lambda b: (b.first - b.last, -b.size),
    lambda b: (b.key < 0, -b.size, b.first),
)


def _joined(passes: tuple[Step, ...]) -> tuple[bool, ...]:
    """Return which steps are one with the next."""
    readers = Counter(source for step in passes for source in step.inputs)
    found = [
        isinstance(step.node, Conv) and not step.node.is_depthwise and step.pool is None
        and isinstance(ahead.node, Combine) and len(ahead.inputs) == 2
        and step.result in ahead.inputs and readers[step.result] == 1
        and step.result.shape == ahead.node.shape
        and not (ahead is passes[-1] and ahead.can_give_logits)
        for step, ahead in pairwise(passes)
    ]  # fmt: skip
    return (*found, False)


def _buffers(
    passes: tuple[Step, ...], joined: tuple[bool, ...]
) -> tuple[list[Buffer], dict[int, int]]:
    """Return all buffers, and the key of each step's."""
    index = {step.result: i for i, step in enumerate(passes)}
    last = {source: i + joined[i] for i, step in enumerate(passes) for source in step.inputs}
    owner: dict[int, int] = {}
    spans: dict[int, list[int]] = {}  # key: size, first, last
    for i, step in enumerate(passes):
        if joined[i]:
            continue
        if i == len(passes) - 1 and step.can_give_logits:
            break
        # what the convolution reads, it reads until the last value is added
        taken = passes[i - 1].inputs if i and joined[i - 1] else ()
        size = aligned(math.prod(step.result.shape), ALIGNMENT)
        until = last.get(step.result, i)
        reused = next(
            (owner[index[source]] for source in step.inputs
             if index.get(source) in owner and source not in taken and last[source] == i
             and _overwrites(step, source)),
            None,
        )  # fmt: skip
        if reused is None:
            owner[i], spans[i] = i, [size, i, until]
        else:
            owner[i] = reused
            spans[reused][2] = until
    found = [Buffer(key, *span) for key, span in spans.items()]
    for i, step in enumerate(passes):
        if size := scratch_bytes(step):
            found.append(Buffer(-1 - i, aligned(size, ALIGNMENT), i, i + joined[i]))
    return found, owner


def _overwrites(step: Step, source: Node) -> bool:
    """Return whether a step may write its result over this input."""
    if isinstance(step.node, Combine | Multiply | Function | Normalize | Softmax):
        return source.shape == step.result.shape
    return False
