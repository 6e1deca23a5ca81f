"""Sources of images behind one call, `load_dataset`, and one `--data` value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from halfmeg.data.dataset import Dataset, DataSplits, stratified_split
from halfmeg.data.decode import Progress, no_progress
from halfmeg.data.digits import load_digits
from halfmeg.data.parquet import find_parquet, read_parquet
from halfmeg.data.source import load_encoded

__all__ = ["DataSplits", "Dataset", "load_dataset", "stratified_split"]


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
    """
    splits = _load(source, Path(data_dir), image_size, progress)
    return dataclasses.replace(splits, source=source)


def _load(source: str, data_dir: Path, image_size: int, progress: Progress) -> DataSplits:
    if source == "digits":
        return load_digits(image_size)
    path = Path(source)
    return load_encoded(path.name, read_parquet(find_parquet(path)), image_size, progress)
