"""Encoded images of a source, and their decoding into a cache of memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

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


def cache_folder() -> Path:
    """Return the folder for decoded data: `HALFMEG_CACHE`, or the user's cache folder."""
    configured = os.environ.get("HALFMEG_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "halfmeg"


def load_cached(name: str, key: str, build: Callable[[], DataSplits]) -> DataSplits:
    """Open the arrays that an earlier call has left in the cache, or build and store them.

    Args:
        name: of the result.
        key: a hash of the content; the name of the cache's sub-folder.
        build: decodes the source.
    """
    folder = cache_folder() / key
    try:
        return replace(open_splits(folder), name=name)
    except (OSError, ValueError, KeyError):
        shutil.rmtree(folder, ignore_errors=True)  # it was absent or damaged
    splits = build()
    try:
        save_splits(splits, folder)
        return replace(open_splits(folder), name=name)
    except OSError:  # a full disk or a read-only folder: this run works from memory
        return splits


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


def save_splits(splits: DataSplits, folder: Path) -> None:
    """Write decoded data to a new folder, whole or not at all, for `open_splits`.

    Raises:
        OSError: the disk is full or read-only.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        for part, dataset in (("train", splits.train), ("test", splits.test)):
            np.save(temporary / f"{part}_images.npy", dataset.images.numpy())
            np.save(temporary / f"{part}_labels.npy", dataset.labels.numpy())
        info = {
            "name": splits.name,
            "source": splits.source,
            "classes": splits.classes,
            "mean": splits.mean,
            "std": splits.std,
            "fingerprint": splits.fingerprint,
        }
        (temporary / "info.json").write_text(json.dumps(info))
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "info.json").exists():  # another process may have been first
            raise


def open_splits(folder: Path) -> DataSplits:
    """Open what `save_splits` wrote, the images memory-mapped.

    Raises:
        OSError, ValueError, KeyError: the folder is absent or damaged.
    """
    info = json.loads((folder / "info.json").read_text())
    classes = tuple(info["classes"])
    train, test = (
        Dataset(
            # Copy-on-write: pages come from disk as they are read, and nothing is written back.
            torch.from_numpy(np.load(folder / f"{part}_images.npy", mmap_mode="c")),
            torch.from_numpy(np.load(folder / f"{part}_labels.npy")),
            classes,
        )
        for part in ("train", "test")
    )
    return DataSplits(
        info["name"], train, test, tuple(info["mean"]), tuple(info["std"]),
        info["fingerprint"], info["source"],
    )  # fmt: skip
