"""Decoded data kept on disk: memory-mapped arrays, checked by checksum whenever they are opened."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.files import is_part, new_folder, read_json, remove_if_dead, write_json

PARTS = ("train", "validation", "test")
KINDS = ("images", "labels", "groups", "sizes")
ARRAYS = tuple(f"{part}_{kind}.npy" for part in PARTS for kind in KINDS)
"""The files that may stand there; validation part, groups and sizes only where there are any."""
INFO = "info.json"
MEASURED = "measured"
_OWN_MEASURED = re.compile(r"lock|[0-9a-f]{32}\.json")
"""A folder of answers that `halfmeg.training.measured` keeps."""
HUB_INFO = "hub.json"
"""In a folder of downloaded files, as `halfmeg.data.hub` keeps them."""


@dataclass(frozen=True)
class Info:
    """What stands in info.json; `checksum` is a CRC-32 of the rest of it.

    A CRC-32 finds what a disk does to a file, at 3 GB/s. It is no defence against somebody who
    means harm, who would have to be able to write to the user's own folder.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    files: dict[str, tuple[int, int]]  # size in bytes and CRC-32 of each array's file
    divided: bool = False
    notes: tuple[str, ...] = ()
    options: dict[str, str | int] = field(default_factory=dict)
    checksum: int = 0

    def sealed(self) -> Info:
        """Return a copy with the right checksum."""
        fields = asdict(replace(self, checksum=0))
        return replace(self, checksum=zlib.crc32(json.dumps(fields, sort_keys=True).encode()))


@dataclass(frozen=True)
class CacheEntry:
    """A data set in the cache, or what a killed process has left there (`name` is None then)."""

    path: Path
    name: str | None
    num_images: int
    num_bytes: int


def cache_folder() -> Path:
    """Return the folder for decoded data: `HALFMEG_CACHE`, or the user's cache folder.

    A user without a home, as in a container, has it in the folder for temporary files.
    """
    configured = os.environ.get("HALFMEG_CACHE")
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "halfmeg"
    try:
        return Path.home() / ".cache" / "halfmeg"
    except RuntimeError:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"halfmeg-cache-{user}"


def load_cached(name: str, key: str, build: Callable[[], DataSplits]) -> DataSplits:
    """Open the arrays that an earlier call has left in the cache, or build and store them.

    Args:
        name: of the result.
        key: a hash of the content; the name of the cache's sub-folder.
        build: decodes the source.
    """
    found = find_cached(name, key)
    return keep_cached(build(), key) if found is None else found


def find_cached(name: str, key: str) -> DataSplits | None:
    """Open what lies in the cache; None where there is nothing, or nothing undamaged."""
    folder = cache_folder() / key
    if not folder.exists():
        return None
    try:
        return replace(open_splits(folder), name=name)
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep_cached(splits: DataSplits, key: str) -> DataSplits:
    """Put decoded data into the cache and return it from there, memory-mapped."""
    folder = cache_folder() / key
    try:
        save_splits(splits, folder)
        return replace(open_splits(folder), name=splits.name)
    except (OSError, ValueError):  # a full disk or a read-only folder: this run works from memory
        return splits


def save_splits(splits: DataSplits, folder: Path) -> None:
    """Write decoded data to a new folder, whole or not at all, for `open_splits`.

    Raises:
        OSError: the disk is full or read-only.
    """
    arrays = {
        f"{name}_{kind}.npy": getattr(dataset, kind)
        for name, dataset in splits.parts.items()
        for kind in KINDS
    }
    try:
        with new_folder(folder) as part:
            files = {
                name: _write_array(part / name, array.numpy())
                for name, array in arrays.items()
                if array is not None
            }
            info = Info(
                splits.name,
                splits.source,
                splits.classes,
                tuple(map(float, splits.mean)),
                tuple(map(float, splits.std)),
                splits.fingerprint,
                files,
                splits.divided,
                splits.notes,
                splits.options,
            )
            write_json(part / INFO, asdict(info.sealed()))
    except FileExistsError:
        pass  # another process was first


def open_splits(folder: Path) -> DataSplits:
    """Open what `save_splits` wrote, the images memory-mapped.

    Raises:
        OSError, ValueError: the folder is absent or damaged.
    """
    info = read_json(folder / INFO, Info)
    if info.sealed() != info or not set(info.files) <= set(ARRAYS):
        raise ValueError(f"{folder / INFO} is damaged: its checksum is another")
    arrays = {name: _open_array(folder / name, *facts) for name, facts in info.files.items()}
    parts = {}
    for part in PARTS:
        images, labels, groups, sizes = (arrays.get(f"{part}_{kind}.npy") for kind in KINDS)
        if images is not None and labels is not None:
            parts[part] = Dataset(
                images,
                labels.clone(),
                info.classes,
                None if groups is None else groups.clone(),
                None if sizes is None else sizes.clone(),
            )
    if not {"train", "test"} <= parts.keys():
        raise ValueError(f"{folder / INFO} is damaged: a part is missing")
    return DataSplits(
        info.name, parts["train"], parts["test"], info.mean, info.std, info.fingerprint,
        info.source, parts.get("validation"), info.divided, info.notes,
        info.options,
    )  # fmt: skip


def list_cache() -> list[CacheEntry]:
    """Return what lies in the cache, the newest last; nothing that the program did not make."""
    try:
        paths = sorted(cache_folder().iterdir(), key=lambda path: path.lstat().st_mtime)
    except OSError:
        return []
    entries = []
    for path in paths:
        if not path.is_dir() or path.is_symlink():
            continue
        is_whole = (path / HUB_INFO).is_file() and path.name.startswith("hub-")
        if is_whole or is_part(path.name):
            size = sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            name = "downloaded from the hub" if is_whole else None
            entries.append(CacheEntry(path, name, 0, size))
            continue
        if path.name == MEASURED:
            files = list(path.iterdir())
            if not all(_OWN_MEASURED.fullmatch(f.name) or is_part(f.name) for f in files):
                continue
            size = sum(file.lstat().st_size for file in files)
            entries.append(CacheEntry(path, "measured on this machine", 0, size))
            continue
        inside = [file for file in path.iterdir() if not file.name.startswith(f".{INFO}.")]
        if any(file.name not in (*ARRAYS, INFO) for file in inside):
            continue
        size = sum(file.lstat().st_size for file in inside)
        if path.name.startswith(".partial-"):  # as older versions called what they were writing
            entries.append(CacheEntry(path, None, 0, size))
        elif (path / INFO).exists() and not path.name.startswith("."):
            name, count = "damaged", 0
            try:
                splits = open_splits(path)
                name, count = splits.name, sum(map(len, splits.parts.values()))
            except (OSError, ValueError):
                pass  # it will be made again when next asked for
            entries.append(CacheEntry(path, name, count, size))
    return entries


def clear_cache() -> list[CacheEntry]:
    """Remove what lies in the cache, but parts that a living process writes; return what went."""
    entries = list_cache()
    for entry in entries:
        if entry.name is None:
            remove_if_dead(entry.path)
        else:
            shutil.rmtree(entry.path, ignore_errors=True)
    return [entry for entry in entries if not entry.path.exists()]


def _write_array(path: Path, array: np.ndarray) -> tuple[int, int]:
    """Write an array in numpy's format; return the file's size and checksum."""
    array = np.ascontiguousarray(array)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
    header = buffer.getvalue()
    with path.open("wb") as file:
        file.write(header)
        file.write(array.data)
    return len(header) + array.nbytes, zlib.crc32(array.data, zlib.crc32(header))


def _open_array(path: Path, size: int, checksum: int) -> torch.Tensor:
    content = np.memmap(path, np.uint8, "r") if path.stat().st_size == size else None
    if content is None or zlib.crc32(content.data) != checksum:
        raise ValueError(f"{path} is damaged: its checksum is another")
    # Copy-on-write: pages come from disk as they are read, and nothing is written back.
    return torch.from_numpy(np.load(path, mmap_mode="c"))
