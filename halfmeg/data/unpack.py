"""What a packed file may unpack to: bounds that hold before any of it is in memory."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

T = TypeVar("T")

MAX_EXPANSION = 20
"""A file may hold this many times its own size, and `FREE_BYTES` at least; images seldom hold
twice theirs."""

FREE_BYTES = 256 * 2**20

MAX_ARCHIVE_BYTES = 256 * 2**20
"""The official archives of CIFAR hold 185 MB; no more than this is unpacked of one."""

MAX_MEMBER_BYTES = 192 * 2**20
"""The largest file in one, CIFAR-100's training images, has 154 MB."""


def most_unpacked(packed_bytes: int) -> int:
    """Return how many bytes a file may hold unpacked, by its own size."""
    return max(FREE_BYTES, MAX_EXPANSION * packed_bytes)


class Room:
    """What the rows of a file may still take in memory, by the file's own size.

    Of equal values one is kept, and counted once: a dictionary repeats them at no cost on disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = most_unpacked(path.stat().st_size)
        self.kept: dict[Any, Any] = {}

    def require(self, count: int) -> None:
        """Raise where so many bytes are more than is left."""
        if count > self.left:
            raise ValueError(f"{self.path} holds much more than its size; nothing is read")

    def take(self, count: int) -> None:
        """Use so many bytes."""
        self.require(count)
        self.left -= count

    def keep(self, value: T) -> T:
        """Return the equal value that is kept already, or keep this one."""
        if not isinstance(value, bytes | str):
            return value
        if value not in self.kept:
            self.take(len(value))
        return cast(T, self.kept.setdefault(value, value))


class _Limited(io.RawIOBase):
    """A stream that ends with an error where it has given more than an archive holds."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile) -> None:
        self.stream = stream
        self.left = MAX_ARCHIVE_BYTES

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"it holds more than {MAX_ARCHIVE_BYTES:,} bytes")
        content = self.stream.read(size)
        self.left -= len(content)
        return content


def read_members(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """Read files of a tar archive, plain or gzip, into memory, by their names without folders.

    Nothing is unpacked to disk, so no member leaves a folder. Links, sparse files and whatever
    else is no plain file are passed over.

    Raises:
        ValueError: it is damaged, larger than an archive of images is, or lacks one of them.
    """
    contents: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if is_packed else file
            with tarfile.open(fileobj=_Limited(stream), mode="r|") as archive:
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if name not in names or not member.isreg() or member.issparse():
                        continue
                    found = archive.extractfile(member)
                    if found is not None and member.size <= MAX_MEMBER_BYTES:
                        contents[name] = found.read()
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise ValueError(f"{path} cannot be unpacked: {error}; remove it") from None
    for name in names:
        if name not in contents:
            raise ValueError(f"{path} has no {name}; remove it")
    return contents
