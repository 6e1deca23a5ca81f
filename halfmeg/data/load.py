"""Sources of images behind one call, `load_dataset`, and one `--data` value."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmeg.data.arrays import find_arrays
from halfmeg.data.check import IMBALANCE, DataReport, check_data
from halfmeg.data.cifar import CLASSES, FINGERPRINT, find_official, load_cifar10
from halfmeg.data.dataset import (
    MAX_CLASSES,
    DataSplits,
    copied_images,
    list_some,
    missing_classes,
    one_class_message,
    repeated_images,
    require_trainable,
)
from halfmeg.data.decode import FitName, Progress, no_progress
from halfmeg.data.digits import load_digits
from halfmeg.data.folder import read_folder
from halfmeg.data.folds import Folds, parse_fold
from halfmeg.data.formats import image_endings
from halfmeg.data.hub import find_on_hub, is_hub_source
from halfmeg.data.options import DataOptions
from halfmeg.data.parquet import read_parquet
from halfmeg.data.parquet_files import beside_tables, find_parquet
from halfmeg.data.scan import objects_hint, summarize_passed_over, table_hint
from halfmeg.data.shape import ImageShape, ImageSize, data_shape
from halfmeg.data.source import (
    DecodedSource,
    EncodedSource,
    decode_cached,
    load_encoded,
    torn_groups,
)
from halfmeg.data.table import read_table
from halfmeg.errors import did_you_mean, quoted


@dataclass(frozen=True)
class Named:
    """A source that goes by a name.

    Attributes:
        load: takes the folder that it may be downloaded to, the shape of its images, how they are
            brought to it, and who is told of longer work.
        side: of its images before they are brought to that shape, in pixels.
    """

    load: Callable[[Path, ImageShape, FitName, Progress], DataSplits]
    side: int


NAMED = {
    "digits": Named(lambda data_dir, shape, fit, progress: load_digits(shape, fit), 8),
    "cifar10": Named(
        lambda data_dir, shape, fit, progress: load_cifar10(data_dir, shape, progress), 32
    ),
}
PATHS = (
    "a folder of images or of IDX files, CIFAR-100's folder or archive, or a .parquet, .csv, .tsv, "
    ".npz or .npy file"
)
"""What is read by its path."""

SINGLE = (".gz", ".bz2", ".xz", ".zst")
ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", *SINGLE)

LEAST_COPIES = 0.01
"""Share of copies in a part from which on they are told before training, too."""


def load_dataset(
    source: str | Path,
    *,
    data_dir: str | Path = "data",
    image_size: ImageSize = 32,
    options: DataOptions | None = None,
    to_train: bool = True,
    progress: Progress = no_progress,
) -> DataSplits:
    """Load a source of labelled images.

    Args:
        source: `digits`, `cifar10`, `hf:OWNER/NAME` for a data set of the Hugging Face hub, or the
            path of a folder of images, of Parquet files, a .csv, .tsv, .npz or .npy file, IDX files
            or CIFAR-100; a `Path` is never one of the names.
        data_dir: where `cifar10` is looked for and downloaded to.
        image_size: side of the images in pixels, or (height, width).
        options: how the source is read.
        to_train: False takes a test part alone too, and images of one class.
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
    options = options or DataOptions()
    shape = data_shape(image_size, options.channels)
    if isinstance(source, Path):
        text = str(source)
        source = f"./{text}" if text in NAMED or is_hub_source(text) else text
    _require_text(source)
    encoded = _find(source, Path(data_dir), options, progress)
    if encoded is None:
        splits = _load_named(source, Path(data_dir), shape, options.fit, progress)
    else:
        torn = torn_groups(encoded)
        if torn and to_train:
            raise ValueError(f"{source}: {torn}; divide it anew, or leave the parts to halfmeg")
        splits = load_encoded(_name(source), encoded, shape, progress, options.fit)
        line = summarize_passed_over(encoded.passed_over)
        told = (f"{line}; `halfmeg data check {quoted(source)}` lists them",) if line else ()
        splits = dataclasses.replace(splits, notes=(*told, *splits.notes))
        if source == "cifar10":
            splits = _with_pixels_told(splits)
    if to_train:
        _require_classes(splits, encoded, source)
        require_trainable(splits)
        _require_images_of_each_class(splits, encoded)
        also = (
            *missing_classes(splits),
            *copied_images(splits),
            *repeated_images(splits, LEAST_COPIES),
            *_unbalanced(splits),
        )
        splits = dataclasses.replace(splits, notes=(*splits.notes, *also))
    stored = dataclasses.replace(options, fold="").to_dict()
    splits = dataclasses.replace(splits, source=source, options=stored)
    if not options.fold:
        return splits
    fold, count = parse_fold(options.fold)
    folds = Folds.of(splits, count)
    own = folds.splits(fold - 1)
    return dataclasses.replace(own, notes=(*own.notes, f"fold {fold} of {folds.note}"))


def inspect_source(
    source: str,
    *,
    data_dir: str | Path = "data",
    image_size: ImageSize = 32,
    options: DataOptions | None = None,
    progress: Progress = no_progress,
) -> tuple[DataReport, DecodedSource]:
    """Load a source past its unreadable images, and report all that is wrong with it.

    Returns:
        The report, and the images that it is about.

    Raises:
        ValueError: the source does not exist, or too little of it can be read to say more.
    """
    options = options or DataOptions()
    if options.fold:
        raise ValueError(f"fold={options.fold} is for training; all images are looked at here")
    shape = data_shape(image_size, options.channels)
    encoded = _find(source, Path(data_dir), options, progress)
    if encoded is None:
        splits = _load_named(source, Path(data_dir), shape, options.fit, progress)
        names = {part: [f"{part} {i}" for i in range(len(d))] for part, d in splits.parts.items()}
        sizes = np.full((sum(map(len, names.values())), 2), NAMED[source].side)
        decoded = DecodedSource(splits, names, ())
        return check_data(decoded, sizes, progress=progress), decoded
    decoded = decode_cached(_name(source), encoded, shape, progress, options.fit)
    if source == "cifar10":
        decoded = dataclasses.replace(decoded, splits=_with_pixels_told(decoded.splits))
    if len(decoded.splits.classes) < 2:
        _require_classes(decoded.splits, encoded, source)
        require_trainable(decoded.splits)
    sizes = np.concatenate([d.sizes for d in decoded.splits.parts.values() if d.sizes is not None])
    torn = torn_groups(encoded)
    problems = [torn] if torn else []
    return check_data(decoded, sizes, encoded.passed_over, problems, progress=progress), decoded


def _find(
    source: str, data_dir: Path, options: DataOptions, progress: Progress
) -> EncodedSource | None:
    """Return the encoded images of a source; None for one that has a loader of its own."""
    if is_hub_source(source):
        tables, note = find_on_hub(source, progress)
        encoded = read_parquet(tables, options)
        encoded = _check_groups(encoded, options)
        _check_classes(encoded, source)
        return dataclasses.replace(encoded, notes=(note, *encoded.notes))
    if source == "cifar10" and (copy := _cifar10_in_parquet(data_dir, options)) is not None:
        return _check_groups(copy, options)
    if source in NAMED:
        _refuse_columns(source, options)
        if options.group:
            raise ValueError(f"{_no_group(options)}; the images of {source} have neither")
        return None
    return _read(Path(source), source, options)


def _cifar10_in_parquet(data_dir: Path, options: DataOptions) -> EncodedSource | None:
    """Return a Parquet copy of CIFAR-10 where no official form is; it may have other pixels."""
    if find_official(data_dir) is not None:
        return None
    for folder in (data_dir / "cifar10", data_dir):
        try:
            files = find_parquet(folder) if folder.is_dir() else None
            if files is None or not {"train", "test"} <= files.parts.keys():
                continue
            if folder == data_dir and any(
                file.parent != data_dir for part in files.parts.values() for file in part
            ):
                continue  # a data set of another name beside it
            encoded = read_parquet(files, options)
        except ValueError:
            continue  # other tables than this one
        if encoded.classes == CLASSES:
            return encoded
    return None


def _with_pixels_told(copy: DataSplits) -> DataSplits:
    """Add a note where a Parquet copy of CIFAR-10 has other pixels than were published."""
    if copy.fingerprint == FINGERPRINT:
        return copy
    note = "the Parquet files found as cifar10 were brought to another shape, and so are unchecked"
    if copy.image_shape == data_shape(32, 3):
        note = (
            "the Parquet files found as cifar10 hold other images than were published (fingerprint "
            f"{copy.fingerprint}, not {FINGERPRINT}): compare accuracies on the same files only"
        )
    return dataclasses.replace(copy, notes=(note, *copy.notes))


def _load_named(
    source: str, data_dir: Path, shape: ImageShape, fit: FitName, progress: Progress
) -> DataSplits:
    splits = NAMED[source].load(data_dir, shape, fit, progress)
    if not Path(source).exists():
        return splits
    note = (
        f"{source} is the data set that halfmeg knows by this name; "
        f"what is called {source} here is not read: write ./{source} for it"
    )
    return dataclasses.replace(splits, notes=(note,))


def _read(path: Path, source: str, options: DataOptions) -> EncodedSource:
    if not path.exists():
        hint = did_you_mean(source, NAMED)
        raise ValueError(
            f"data {source!r} does not exist; {hint}allowed: {', '.join(NAMED)}, hf:OWNER/NAME, "
            f"or the path of {PATHS}"
        )
    if not path.is_file() and not path.is_dir():  # a pipe or a device would never end
        raise ValueError(f"{source} is neither a file nor a folder; expected: {PATHS}")
    files = find_parquet(path)
    arrays = find_arrays(path) if files is None else None
    if files is not None:
        encoded = read_parquet(files, options)
        if path.is_dir():
            beside = beside_tables(path, files)
            encoded = dataclasses.replace(encoded, passed_over=(*encoded.passed_over, *beside))
    elif arrays is not None:
        _refuse_columns(source, options)
        encoded = arrays
    elif path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        encoded = read_table(path, options)
    elif path.is_file():
        raise ValueError(f"{source} is a file; expected: {PATHS}{_file_hint(path)}")
    else:
        _refuse_columns(source, options)
        encoded = read_folder(path, options.path_group)
    encoded = _check_groups(encoded, options)
    _check_classes(encoded, source)
    return encoded


def _check_classes(encoded: EncodedSource, source: str) -> None:
    if len(encoded.classes) > MAX_CLASSES:
        raise ValueError(
            f"{source} has {len(encoded.classes):,} classes, as {list_some(encoded.classes, 3)}; "
            f"allowed: {MAX_CLASSES:,}; a measured number is no class"
        )


def _file_hint(path: Path) -> str:
    """Say what to do with a file that is no source, or ""."""
    name = path.name.lower()
    if name.endswith(ARCHIVES):
        is_one_file = name.endswith(SINGLE) and ".tar." not in name
        return f"; unpack it, and name the {'file' if is_one_file else 'folder'}"
    if path.suffix.lower() in image_endings():
        return "; `halfmeg predict` takes images"
    return ""


def _check_groups(encoded: EncodedSource, options: DataOptions) -> EncodedSource:
    """Note how many images have no group, where one was asked for.

    Raises:
        ValueError: no image has one.
    """
    images = [image for part in encoded.parts.values() for image in part]
    alone = [image.name for image in images if not image.group]
    if not options.group or not alone:
        return encoded
    if len(alone) == len(images):
        raise ValueError(f"{_no_group(options)}; the first image is {alone[0]}")
    note = (
        f"{len(alone):,} of {len(images):,} images have no group by group={options.group!r} and "
        f"stand alone, as {alone[0]}"
    )
    return dataclasses.replace(encoded, notes=(*encoded.notes, note))


def _no_group(options: DataOptions) -> str:
    return f"group={options.group!r} matches no path and is no column"


def _refuse_columns(source: str, options: DataOptions) -> None:
    """Raise where a column was named of what is no table.

    Raises:
        ValueError: one was.
    """
    for name in ("image_column", "label_column"):
        if column := getattr(options, name):
            raise ValueError(f"{name}={column!r}: {source} is no table; leave it out")


def _require_text(source: str) -> None:
    """Raise where a name holds bytes that are no UTF-8: what is made of it could not be read back.

    Raises:
        ValueError: it does.
    """
    try:
        f"{source} {_name(source)}".encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of {source} is no UTF-8; rename it") from None


def _require_classes(data: DataSplits, encoded: EncodedSource | None, source: str) -> None:
    """Raise where a folder is one class whose own folders may be what was meant."""
    if encoded is None or len(data.classes) != 1 or not Path(source).is_dir():
        return
    hint = objects_hint(encoded.passed_over) or table_hint(encoded.passed_over)
    told = one_class_message(data.name, data.classes) + hint
    folders = {Path(image.name).parent for part in encoded.parts.values() for image in part}
    outer = Path(os.path.commonpath(folders))
    inner = sorted({folder.relative_to(outer).parts[0] for folder in folders if folder != outer})
    if len(inner) > 1 and outer != Path():
        told += f"; if its folders {list_some(inner)} are the classes, name {Path(source) / outer}"
    raise ValueError(told)


def _require_images_of_each_class(data: DataSplits, encoded: EncodedSource | None) -> None:
    counts = data.train.labels.bincount(minlength=len(data.classes)).tolist()
    empty = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if empty and encoded is not None and any(item.is_image for item in encoded.passed_over):
        raise ValueError(
            f"class {empty[0]!r} of {data.name} has no training images that can be read "
            f"({summarize_passed_over(encoded.passed_over)})"
        )


def _unbalanced(data: DataSplits) -> tuple[str, ...]:
    """Say what a constant answer scores where some classes are much larger than others."""
    counts = data.train.labels.bincount(minlength=len(data.classes))
    present = counts[counts > 0]
    if int(present.max()) < IMBALANCE * int(present.min()):
        return ()
    name = data.classes[int(counts.argmax())]
    share = (data.test.labels == counts.argmax()).float().mean().item()
    return (
        f"classes have {int(present.min()):,} to {int(present.max()):,} training images: always "
        f"answering {name!r} would score {share:.1%} of the test images; class_weights=balanced "
        "or sampling=balanced count the classes alike",
    )


def _name(source: str) -> str:
    if source in NAMED:
        return source
    path = source.partition("@")[0] if is_hub_source(source) else source
    # `Path.resolve` fails where links lead in a circle.
    return os.path.basename(os.path.realpath(path))
