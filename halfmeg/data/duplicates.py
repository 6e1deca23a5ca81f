"""Images that stand in a source more than once: bit for bit, or nearly.

Near duplicates are found by a perceptual hash of 63 bits: the signs, against their median, of the
lowest frequencies of a cosine transform (Zauner 2010, "Implementation and Benchmarking of
Perceptual Image Hash Functions"). Pairs that it proposes are then compared pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dct
from torch import Tensor

from halfmeg.data.augment import gray_weights
from halfmeg.data.decode import Progress, no_progress

HASH_DISTANCE = 12
"""Pairs whose hashes differ in more bits are not looked at."""

LEAST_CORRELATION = 0.9
"""Of the pixels of two near duplicates, in gray, as measured in docs/data.md."""

THUMB = 32
ROWS = 64
CHUNK = 256
MAX_CANDIDATES = 2_000_000
"""More pairs are not compared: images that are all alike would take hours."""


@dataclass(frozen=True)
class Pair:
    """Two images, by their index in the order of all parts.

    Attributes:
        first, second: indices, the smaller one first.
        likeness: correlation of their pixels; 1 for the same pixels.
    """

    first: int
    second: int
    likeness: float


def exact_duplicates(ids: np.ndarray) -> list[list[int]]:
    """Return the indices of each set of images that have the same pixels.

    Args:
        ids: uint64 B, as `Dataset.ids`.
    """
    _, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[inverse] > 1)
    sets: dict[int, list[int]] = {}
    for index in repeated.tolist():
        sets.setdefault(int(inverse[index]), []).append(index)
    return sorted(sets.values())


def near_duplicates(
    images: list[Tensor], progress: Progress = no_progress
) -> tuple[list[Pair], bool]:
    """Return the pairs of images that show nearly the same, the likest first.

    And whether all images were compared: where too many are alike, the last ones are not.

    Args:
        images: uint8 B×C×H×W of each part.
        progress: told how far it is.
    """
    # Filled chunk by chunk: at 60,000 images a second copy would be another quarter of a gigabyte.
    flat = np.empty((sum(map(len, images)), THUMB * THUMB), np.float32)
    hashes = np.empty(len(flat), np.uint64)
    done = 0
    for part in images:
        for chunk in part.split(CHUNK) if len(part) else ():  # type: ignore[no-untyped-call]
            thumbs = _thumbnails(chunk)
            flat[done : done + len(chunk)] = thumbs.reshape(len(chunk), -1)
            hashes[done : done + len(chunk)] = _hashes(thumbs)
            done += len(chunk)
    pairs: list[Pair] = []
    candidates, complete = 0, True
    for start in range(0, len(hashes), ROWS):
        block = hashes[start : start + ROWS, None] ^ hashes[None, start:]
        rows, columns = np.nonzero(np.bitwise_count(block) <= HASH_DISTANCE)
        later = columns > rows
        rows, columns = rows[later] + start, columns[later] + start
        candidates += len(rows)
        if candidates > MAX_CANDIDATES:
            complete = False
            break
        likeness = np.einsum("ij,ij->i", flat[rows], flat[columns])
        close = likeness >= LEAST_CORRELATION
        found = zip(rows[close], columns[close], likeness[close], strict=True)
        pairs += [Pair(int(a), int(b), float(c)) for a, b, c in found]
        progress("looking for near duplicates", min(start + ROWS, len(hashes)), len(hashes))
    return sorted(pairs, key=lambda pair: -pair.likeness), complete


def _thumbnails(images: Tensor) -> np.ndarray:
    """Return float32 B×THUMB×THUMB in gray, each of mean 0 and length 1 (0 where all is flat)."""
    gray = torch.einsum("bchw,c->bhw", images.float(), gray_weights(images.shape[1]))[:, None]
    small = F.interpolate(gray, (THUMB, THUMB), mode="area")[:, 0]
    small = small - small.mean((1, 2), keepdim=True)
    scaled: np.ndarray = (small / small.norm(dim=(1, 2), keepdim=True).clamp_min(1e-3)).numpy()
    return scaled


def _hashes(thumbs: np.ndarray) -> np.ndarray:
    """Return uint64 B: bit k says whether the k-th low frequency lies above their median."""
    basis: Any = dct(np.eye(THUMB, dtype=np.float32), axis=0, norm="ortho")[:8]
    low = np.einsum("fy,byx,gx->bfg", basis, thumbs, basis, optimize=True).reshape(-1, 64)[:, 1:]
    bits = low > np.median(low, axis=1, keepdims=True)
    padded = np.pad(bits, ((0, 0), (1, 0)))
    packed = np.packbits(padded, axis=1)
    return packed.view(np.uint64)[:, 0]
