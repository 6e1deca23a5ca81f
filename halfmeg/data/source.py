"""Encoded images of a source, and their decoding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from halfmeg.data.cache import load_cached
from halfmeg.data.dataset import (
    Dataset,
    DataSplits,
    build_splits,
    one_class_message,
    stratified_split,
)
from halfmeg.data.decode import EncodedImage, Progress, decode_images

TEST_FRACTION = 0.2
SPLIT_SEED = 0
"""A source without a test part is split 80/20, stratified, with this seed."""

CACHE_FORMAT = 2
"""Raised when decoding changes, so that older caches are not used."""


@dataclass(frozen=True)
class EncodedSource:
    """A source before decoding: its parts ("train" and "test", or "all") and class names."""

    parts: dict[str, list[EncodedImage]]
    classes: tuple[str, ...]

    def content_key(self, image_size: int) -> str:
        """Return a hash of all image bytes, labels and names, and of how they are decoded."""
        digest = hashlib.sha256(repr((CACHE_FORMAT, image_size, self.classes)).encode())
        for part, images in self.parts.items():
            digest.update(part.encode())
            for image in images:
                digest.update(image.label.to_bytes(8, "little"))
                digest.update(hashlib.sha256(image.read()).digest())
        return digest.hexdigest()[:32]


@dataclass(frozen=True)
class DecodedSource:
    """What could be read of a source.

    Attributes:
        splits: the readable images.
        sizes: int B×2, their own widths and heights.
        unreadable: a line for each image that could not be read.
    """

    splits: DataSplits
    sizes: np.ndarray
    unreadable: tuple[str, ...]


def load_encoded(
    name: str, source: EncodedSource, image_size: int, progress: Progress
) -> DataSplits:
    """Load a source through the cache.

    Raises:
        ValueError: images that cannot be read, by name; or too few images or classes.
    """

    def build() -> DataSplits:
        decoded = decode_source(name, source, image_size, progress)
        if unreadable := decoded.unreadable:
            more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
            raise ValueError(
                f"{name} has {len(unreadable)} unreadable image(s): "
                f"{'; '.join(unreadable[:3])}{more}; "
                "mend or remove them (`halfmeg data check` lists all)"
            )
        return decoded.splits

    return load_cached(name, source.content_key(image_size), build)


def decode_source(
    name: str, source: EncodedSource, image_size: int, progress: Progress
) -> DecodedSource:
    """Decode what can be read of a source.

    Raises:
        ValueError: too few readable images or classes.
    """
    parts: dict[str, Dataset] = {}
    unreadable: list[str] = []
    sizes: list[np.ndarray] = []
    for part, encoded in source.parts.items():
        decoded = decode_images(encoded, image_size, progress)
        pixels = decoded.pixels
        readable = [index for index in range(len(encoded)) if index not in decoded.unreadable]
        if decoded.unreadable:
            pixels = pixels[readable]
        unreadable += [f"{encoded[i].name}: {reason}" for i, reason in decoded.unreadable.items()]
        sizes.append(decoded.sizes[readable])
        labels = torch.tensor([encoded[index].label for index in readable], dtype=torch.int64)
        parts[part] = Dataset(torch.from_numpy(pixels), labels, source.classes)
    if not sum(map(len, parts.values())):
        raise ValueError(f"{name} has no readable images; the first: {unreadable[0]}")
    if len(source.classes) < 2:
        raise ValueError(one_class_message(name, source.classes))
    if "all" in parts:
        everything = parts["all"]
        first, second = stratified_split(everything.labels, TEST_FRACTION, SPLIT_SEED)
        parts = {"train": everything.subset(first), "test": everything.subset(second)}
    splits = build_splits(name, parts["train"], parts["test"])
    return DecodedSource(splits, np.concatenate(sizes), tuple(unreadable))
