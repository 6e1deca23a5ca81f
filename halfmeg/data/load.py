"""Sources of images behind one call, `load_dataset`, and one `--data` value."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

import numpy as np

from halfmeg.data.check import DataReport, check_data
from halfmeg.data.cifar import load_cifar10
from halfmeg.data.dataset import DataSplits
from halfmeg.data.decode import Progress, no_progress
from halfmeg.data.digits import load_digits
from halfmeg.data.folder import read_folder
from halfmeg.data.parquet import find_parquet, read_parquet
from halfmeg.data.source import EncodedSource, decode_source, load_encoded

NAMED_SOURCES = ("digits", "cifar10")


def load_dataset(
    source: str,
    *,
    data_dir: str | Path = "data",
    image_size: int = 32,
    progress: Progress = no_progress,
) -> DataSplits:
    """Load a source of labelled images.

    Args:
        source: `digits`, `cifar10`, or a path to Parquet files or to a folder of images.
        data_dir: where `cifar10` is looked for and downloaded to.
        image_size: side of the square images in pixels.
        progress: told of longer work.

    Raises:
        ValueError: the source does not exist or cannot be used; the message says why.

    Example:
        >>> from halfmeg import load_dataset
        >>> data = load_dataset("digits")
        >>> len(data.train), len(data.test), len(data.classes)
        (1437, 360, 10)
        >>> data.train.images.dtype, tuple(data.train.images.shape[1:])
        (torch.uint8, (3, 32, 32))
    """
    _check_image_size(image_size)
    if source in NAMED_SOURCES:
        splits = _load_named(source, Path(data_dir), image_size, progress)
    else:
        splits = load_encoded(_source_name(source), _read(source), image_size, progress)
    return dataclasses.replace(splits, source=source)


def inspect_data(
    source: str,
    *,
    data_dir: str | Path = "data",
    image_size: int = 32,
    progress: Progress = no_progress,
) -> DataReport:
    """Load a source past its unreadable images, and report all that is wrong with it.

    Raises:
        ValueError: the source does not exist, or too little of it can be read to say more.
    """
    _check_image_size(image_size)
    if source in NAMED_SOURCES:
        splits = _load_named(source, Path(data_dir), image_size, progress)
        own_size = 8 if source == "digits" else 32
        return check_data(splits, np.full((1, 2), own_size))
    decoded = decode_source(_source_name(source), _read(source), image_size, progress)
    return check_data(decoded.splits, decoded.sizes, decoded.unreadable)


def _check_image_size(image_size: int) -> None:
    if not 8 <= image_size <= 512:
        raise ValueError(f"image_size={image_size} is out of range; allowed: [8, 512]")


def _load_named(source: str, data_dir: Path, image_size: int, progress: Progress) -> DataSplits:
    if source == "digits":
        return load_digits(image_size)
    return load_cifar10(data_dir, image_size, progress)


def _read(source: str) -> EncodedSource:
    path = Path(source)
    if not path.exists():
        close = difflib.get_close_matches(source, NAMED_SOURCES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"data {source!r} does not exist; {hint}allowed: {', '.join(NAMED_SOURCES)}, "
            "a path to Parquet files, or a path to a folder of images"
        )
    files = find_parquet(path)
    if files:
        return read_parquet(files)
    if path.is_file():
        raise ValueError(f"{source} is a file; expected: a folder of images, or a .parquet file")
    if not any(path.iterdir()):
        raise ValueError(f"{source} is an empty folder; expected: one folder of images per class")
    return read_folder(path)


def _source_name(source: str) -> str:
    return Path(source).resolve().name
