"""Encoded images of a source, their division into parts, and their decoding."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from halfmeg.data.cache import find_cached, keep_cached
from halfmeg.data.dataset import Dataset, DataSplits, alike_classes, build_splits
from halfmeg.data.decode import EncodedImage, FitName, Progress, decode_images
from halfmeg.data.scan import PassedOver
from halfmeg.data.shape import ImageShape
from halfmeg.data.split import split_by_content

TEST_FRACTION = 0.2
"""About this share of a source without a test part is held out, by a hash of the content."""

CACHE_FORMAT = 4
"""Raised when decoding changes, so that older caches are not used."""


@dataclass(frozen=True)
class EncodedSource:
    """A source before decoding.

    Attributes:
        parts: "train", "test" and perhaps "validation", or "all"; "test" alone can be evaluated on.
        classes: the names.
        passed_over: the files that are not used, and why.
        notes: what a user should know about how it was read, a line each.
        divided: the test part was drawn here, not given.
    """

    parts: dict[str, list[EncodedImage]]
    classes: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()
    notes: tuple[str, ...] = ()
    divided: bool = False

    def divide(self) -> Self:
        """Return the source with a training and a test part, drawn by content if need be."""
        if "all" not in self.parts:
            return (
                self if "train" in self.parts else replace(self, parts={"train": []} | self.parts)
            )
        images = self.parts["all"]
        keys = [_group_digest(image.group) if image.group else image.digest for image in images]
        labels = torch.tensor([image.label for image in images], dtype=torch.int64)
        chosen = dict(
            zip(("train", "test"), split_by_content(labels, keys, TEST_FRACTION), strict=True)
        )
        if not len(chosen["test"]):  # there is nothing to train and test on, yet to evaluate on
            chosen = {"train": chosen["test"], "test": chosen["train"]}
        parts = {part: [images[i] for i in indices.tolist()] for part, indices in chosen.items()}
        return replace(self, parts=parts, divided=True)

    def content_key(self, shape: ImageShape, fit: FitName) -> str:
        """Return a hash of all image bytes, labels and names, and of how they are decoded."""
        digest = hashlib.sha256(repr((CACHE_FORMAT, *shape, fit, self.classes)).encode())
        for part, images in self.parts.items():
            digest.update(part.encode())
            for image in images:
                digest.update(image.label.to_bytes(8, "little"))
                digest.update(_group_digest(image.group) if image.group else b"")
                digest.update(image.digest)
                if isinstance(image.content, np.ndarray):  # the same bytes may have other shapes
                    digest.update(repr(image.content.shape).encode())
        return digest.hexdigest()[:32]


def _group_digest(group: str) -> bytes:
    return hashlib.sha256(group.encode(errors="surrogateescape")).digest()


def torn_groups(source: EncodedSource) -> str:
    """Return a line that names the groups which a given division into parts tears, or ""."""
    first: dict[str, tuple[str, str]] = {}
    torn: dict[str, str] = {}
    for part, images in source.parts.items():
        for image in images:
            own_part, name = first.setdefault(image.group, (part, image.name))
            if image.group and own_part != part:
                torn.setdefault(image.group, f"{name} and {image.name}")
    if not torn:
        return ""
    return f"{len(torn)} group(s) stand in two parts: {'; '.join([*torn.values()][:3])}"


@dataclass(frozen=True)
class DecodedSource:
    """What could be read of a source.

    Attributes:
        splits: the readable images.
        names: for each part, where each image comes from.
        unreadable: a line for each image that could not be read.
    """

    splits: DataSplits
    names: dict[str, list[str]]
    unreadable: tuple[str, ...]


def load_encoded(
    name: str, source: EncodedSource, shape: ImageShape, progress: Progress, fit: FitName
) -> DataSplits:
    """Load a source through the cache.

    Raises:
        ValueError: images that cannot be read, by name; or too few images or classes.
    """
    decoded = decode_cached(name, source, shape, progress, fit)
    if unreadable := decoded.unreadable:
        more = f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise ValueError(
            f"{name} has {len(unreadable)} unreadable image(s): "
            f"{'; '.join(unreadable[:3])}{more}; "
            "mend or remove them (`halfmeg data check` lists all)"
        )
    return decoded.splits


def decode_cached(
    name: str, source: EncodedSource, shape: ImageShape, progress: Progress, fit: FitName
) -> DecodedSource:
    """Decode what can be read of a source; in the cache it is kept where all of it can be.

    Raises:
        ValueError: nothing of it can be read, or its test part is empty.
    """
    source = source.divide()
    key = source.content_key(shape, fit)
    splits = find_cached(name, key)
    if splits is None:
        decoded = decode_source(name, source, shape, progress, fit)
        if not decoded.unreadable:
            decoded = replace(decoded, splits=keep_cached(decoded.splits, key))
    else:
        names = {part: [image.name for image in images] for part, images in source.parts.items()}
        decoded = DecodedSource(splits, names, ())
    notes = (*source.notes, *alike_classes(source.classes), *decoded.splits.notes)
    return replace(decoded, splits=replace(decoded.splits, notes=notes))


def decode_source(
    name: str, source: EncodedSource, shape: ImageShape, progress: Progress, fit: FitName
) -> DecodedSource:
    """Decode what can be read of a divided source.

    Raises:
        ValueError: nothing of it can be read, or its test part is empty.
    """
    parts: dict[str, Dataset] = {}
    names: dict[str, list[str]] = {}
    unreadable: list[str] = []
    found: Counter[str] = Counter()
    for part, encoded in source.parts.items():
        decoded = decode_images(encoded, shape, progress, fit)
        pixels = decoded.pixels
        readable = [index for index in range(len(encoded)) if index not in decoded.unreadable]
        if decoded.unreadable:
            pixels = pixels[readable]
        kept = [encoded[index] for index in readable]
        unreadable += [f"{encoded[i].name}: {reason}" for i, reason in decoded.unreadable.items()]
        found.update(decoded.notes.values())
        names[part] = [image.name for image in kept]
        parts[part] = Dataset(
            torch.from_numpy(pixels),
            torch.tensor([image.label for image in kept], dtype=torch.int64),
            source.classes,
            groups=_groups(kept),
            sizes=torch.from_numpy(decoded.sizes[readable]),
        )
    if not sum(map(len, parts.values())):
        first = f"; the first: {unreadable[0]}" if unreadable else ""
        raise ValueError(f"{name} has no readable images{first}")
    if not parts["test"] and not unreadable:
        raise ValueError(f"{name} has no test images")
    splits = build_splits(name, parts["train"], parts["test"], parts.get("validation"))
    notes = tuple(f"{count:,} image(s) {note}" for note, count in found.items())
    splits = replace(splits, divided=source.divided, notes=notes)
    return DecodedSource(splits, names, tuple(sorted(unreadable)))


def _groups(images: list[EncodedImage]) -> torch.Tensor | None:
    """Return a number for each image, equal for those of one group; one without has its own."""
    if not any(image.group for image in images):
        return None
    keys = [_group_digest(image.group) if image.group else image.digest for image in images]
    numbers = np.array([int.from_bytes(key[:8], "little") for key in keys], dtype=np.uint64)
    return torch.from_numpy(numbers.view(np.int64))
