"""Encoded images of a source, and their decoding into a cache of memory-mapped arrays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits, stratified_split
from halfmeg.data.decode import EncodedImage, Progress, decode_images

TEST_FRACTION = 0.2
SPLIT_SEED = 0
"""A source without a test part is split 80/20, stratified, with this seed."""

CACHE_FORMAT = 1
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


def cache_folder() -> Path:
    """Return the folder for decoded data: `HALFMEG_CACHE`, or the user's cache folder."""
    configured = os.environ.get("HALFMEG_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "halfmeg"


def load_encoded(
    name: str, source: EncodedSource, image_size: int, progress: Progress
) -> DataSplits:
    """Decode a source, or open the arrays that an earlier call has left in the cache.

    Raises:
        ValueError: images that cannot be read, by name; or too few images or classes.
    """
    folder = cache_folder() / source.content_key(image_size)
    if not (folder / "info.json").exists():
        splits = _decode(name, source, image_size, progress)
        try:
            _store(splits, folder)
        except OSError:  # a full disk or a read-only folder: this run works from memory
            return splits
    return _open(name, folder)


def _decode(
    name: str, source: EncodedSource, image_size: int, progress: Progress
) -> DataSplits:
    parts: dict[str, Dataset] = {}
    unreadable: list[str] = []
    for part, encoded in source.parts.items():
        pixels, failures = decode_images(encoded, image_size, progress)
        unreadable += [f"{encoded[index].name}: {reason}" for index, reason in failures.items()]
        labels = torch.tensor([image.label for image in encoded], dtype=torch.int64)
        parts[part] = Dataset(torch.from_numpy(pixels), labels, source.classes)
    if unreadable:
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise ValueError(
            f"{name} has {len(unreadable)} unreadable image(s): {'; '.join(unreadable[:3])}{more}; "
            f"mend or remove them (`halfmeg data check` lists all)"
        )
    if "all" in parts:
        everything = parts["all"]
        train, test = stratified_split(everything.labels, TEST_FRACTION, SPLIT_SEED)
        parts = {"train": everything.subset(train), "test": everything.subset(test)}
    return build_splits(name, parts["train"], parts["test"])


def _store(splits: DataSplits, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    try:
        for part, dataset in (("train", splits.train), ("test", splits.test)):
            np.save(temporary / f"{part}_images.npy", dataset.images.numpy())
            np.save(temporary / f"{part}_labels.npy", dataset.labels.numpy())
        info = {
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


def _open(name: str, folder: Path) -> DataSplits:
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
        name, train, test, tuple(info["mean"]), tuple(info["std"]), info["fingerprint"]
    )


def missing_classes(images: Sequence[EncodedImage], classes: Sequence[str]) -> list[str]:
    """Return the names of classes that no image has."""
    present = {image.label for image in images}
    return [name for index, name in enumerate(classes) if index not in present]
