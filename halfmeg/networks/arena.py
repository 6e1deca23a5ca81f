"""Places in one stretch of memory for maps that are needed at different times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Buffer:
    """A stretch of memory that is needed from one step to another, both included."""

    key: int
    size: int
    first: int
    last: int


def place(buffers: Sequence[Buffer]) -> dict[int, int]:
    """Put each buffer, in this order, at the lowest place that is free while it is needed.

    Returns:
        The offset of each buffer's key, in bytes.
    """
    placed: list[tuple[int, Buffer]] = []
    for buffer in buffers:
        offset = 0
        for start, other in sorted(placed, key=lambda entry: entry[0]):
            at_once = other.first <= buffer.last and buffer.first <= other.last
            if at_once and start < offset + buffer.size and offset < start + other.size:
                offset = start + other.size
        placed.append((offset, buffer))
    return {buffer.key: offset for offset, buffer in placed}


def aligned(size: int, to: int) -> int:
    """Return a size, rounded up to a multiple."""
    return to * -(-size // to)
