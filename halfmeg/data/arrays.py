"""Images as arrays: MNIST's IDX files, CIFAR-100's official forms, NumPy's .npz and .npy."""

from __future__ import annotations

import gzip
import io
import math
import re
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from halfmeg.data.batches import read_batch, read_names, read_records
from halfmeg.data.dataset import MAX_CLASSES, class_names, list_some
from halfmeg.data.decode import EncodedImage
from halfmeg.data.parts import find_parts
from halfmeg.data.scan import PassedOver
from halfmeg.data.source import EncodedSource
from halfmeg.data.unpack import MAX_MEMBER_BYTES, most_unpacked, read_members
from halfmeg.files import read_limited

MAX_BYTES = 2 * 2**30
"""No larger file is read; what one may unpack to is bounded by its size too."""

_IDX_FILE = re.compile(r"(.*)(images|labels)[-.]idx[13]-ubyte(\.gz)?", re.IGNORECASE)
"""As MNIST and those in its form call their files; what stands in front may name a part."""

_MNIST_TEST = "t10k"
CIFAR100 = {
    "binary": ("train.bin", "test.bin", "fine_label_names.txt"),
    "python": ("train", "test", "meta"),
}
"""The files of each official form: the parts, and the names of the 100 classes."""

CIFAR100_LABEL_BYTES = 2  # the coarse class, and the fine one

_NPZ_KINDS = {"images": 0, "image": 0, "x": 0, "data": 0, "labels": 1, "label": 1, "y": 1}
"""Words for images (0) and for labels (1) in names such as x_train, as Keras and MedMNIST write."""


def find_arrays(path: Path) -> EncodedSource | None:
    """Read a source of arrays; None where `path` is none.

    It may be a folder with MNIST's IDX files (each perhaps as .gz), the folder or the archive of
    CIFAR-100's binary or Python form, an .npz file, or an .npy file beside NAME_labels.npy.

    Raises:
        ValueError: files that are damaged or do not fit together.
    """
    if path.is_dir():
        for wanted in CIFAR100.values():
            if all((path / name).is_file() for name in wanted):
                return _cifar100([_read(path / name, MAX_MEMBER_BYTES) for name in wanted], path)
        # Kaggle packs each of MNIST's files once more, in a folder of nearly its name.
        files = {
            f.name: match
            for f in path.iterdir()
            if (match := _IDX_FILE.fullmatch(f.name)) and f.is_file()
        }
        return _idx(path, files) if files else None
    for form, wanted in CIFAR100.items():
        if path.name.startswith(f"cifar-100-{form}") and path.suffix in (".gz", ".tar", ".tgz"):
            members = read_members(path, wanted)
            return _cifar100([members[name] for name in wanted], path)
    if path.suffix.lower() == ".npz":
        return _npz(path)
    return _npy(path) if path.suffix.lower() == ".npy" else None


def _read(path: Path, limit: int = MAX_BYTES) -> bytes:
    try:
        return read_limited(path, limit)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _cifar100(contents: list[bytes], path: Path) -> EncodedSource:
    """Read the training part, the test part and the names, in either form."""
    *batches, listed = contents
    in_python = listed[:1] == b"\x80"  # as pickles begin
    if in_python:
        names = read_names(listed, f"{path}: meta", "fine_label_names")
    else:
        names = listed.decode(errors="replace").split()
    parts = {}
    for part, content in zip(("train", "test"), batches, strict=True):
        called = f"{path}: its {part} part"
        if in_python:
            pixels, labels = read_batch(content, called, "fine_labels")
        else:
            pixels, labels = read_records(content, called, CIFAR100_LABEL_BYTES)
        parts[part] = (pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
    return _source(parts, path, names)


def _idx(path: Path, files: dict[str, re.Match[str]]) -> EncodedSource:
    """Read pairs of IDX files, given by their names as `_IDX_FILE` takes them apart."""
    found: dict[str, dict[str, str]] = {}
    for name, match in sorted(files.items(), reverse=True):  # plain ones last: they are taken
        word = match[1].lower().replace(_MNIST_TEST, "test")
        found.setdefault(word.rstrip("-_. "), {})[match[2].lower()] = name
    pairs = {}
    for word, pair in found.items():
        if missing := {"images", "labels"} - pair.keys():
            raise ValueError(f"{path} has {next(iter(pair.values()))}, but not its {missing.pop()}")
        pairs[word] = (_read_idx(path / pair["images"], 3), _read_idx(path / pair["labels"], 1))
    return _source(_by_part(pairs, path), path, None)


def _by_part(
    pairs: dict[str, tuple[np.ndarray, np.ndarray]], path: Path
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return images and labels by part; those of one name, or of none, are all there is.

    Raises:
        ValueError: names of which some are no part.
    """
    named = find_parts(pairs, str(path), pairs)
    if named is None:
        if len(pairs) > 1:
            raise ValueError(
                f"{path} has {list_some(map(repr, pairs))}, which name no parts; "
                "expected: train, validation and test"
            )
        named = {"all": next(iter(pairs))}
    return {part: pairs[name] for part, name in named.items()}


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes (LeCun, "The MNIST database of handwritten digits")."""
    content = _read(path)
    if path.suffix == ".gz":
        most = min(MAX_BYTES, most_unpacked(len(content)))
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if len(content) > most:
            raise ValueError(f"{path} unpacks to more than {most:,} bytes; nothing is read")
    start = 4 + 4 * dimensions
    is_idx = len(content) >= start and content[:4] == bytes((0, 0, 8, dimensions))
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if is_idx else ()
    if not is_idx or len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} is damaged: it is no IDX file of {dimensions} dimension(s) of bytes"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _npz(path: Path) -> EncodedSource:
    try:
        with np.load(path, allow_pickle=False) as stored:
            sizes = {name: stored.zip.getinfo(f"{name}.npy").file_size for name in stored.files}
            most = min(MAX_BYTES, most_unpacked(path.stat().st_size))
            if sum(sizes.values()) > most:
                raise ValueError(f"it unpacks to more than {most:,} bytes")
            names: dict[str, list[str]] = {}  # of images and labels, by the rest of their names
            for name in sizes:
                kind, rest = _npz_kind(name)
                pair = names.setdefault(rest, ["", ""])
                if kind is not None and not pair[kind]:
                    pair[kind] = name
            used = [pair for pair in names.values() if all(pair)]
            pairs = {images: (stored[images], stored[labels]) for images, labels in used}
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from None
    if not pairs:
        raise ValueError(
            f"{path} has the arrays {list_some(sizes, 20)}; expected: images and labels, or "
            "train_images, train_labels, test_images and test_labels"
        )
    source = _source(_by_part(pairs, path), path, None)
    left = [name for name in sizes if not any(name in pair for pair in used)]
    return replace(source, passed_over=tuple(PassedOver(n, "no pair of arrays") for n in left))


def _reason(error: Exception) -> str:
    """Return what is wrong with an array; NumPy's own text would advise to run what is in it."""
    if "pickle" in str(error):
        return "it is damaged, or holds Python objects; store arrays of numbers and texts"
    return str(error)


def _npz_kind(name: str) -> tuple[int | None, str]:
    """Return whether a name is one of images (0), labels (1) or neither, and its other words."""
    kind, rest = None, []
    for word in name.lower().split("_"):
        if word in _NPZ_KINDS:
            kind = _NPZ_KINDS[word]
        else:
            rest.append(word)
    return kind, "_".join(rest)


def _npy(path: Path) -> EncodedSource:
    labels = path.with_name(f"{path.stem}_labels.npy")
    if not labels.is_file():
        raise ValueError(f"{path} needs its labels beside it, in {labels.name}")
    try:
        pair = (_read_npy(path), _read_npy(labels))
    except Exception as error:  # as above
        raise ValueError(f"{path} cannot be read: {_reason(error)}") from None
    return _source({"all": pair}, path, None)


def _read_npy(path: Path) -> np.ndarray:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES:,} bytes")
    stored: np.ndarray | np.lib.npyio.NpzFile = np.load(path, allow_pickle=False)
    if isinstance(stored, np.lib.npyio.NpzFile):  # NumPy goes by the content
        stored.close()
        raise ValueError(f"{path.name} is an .npz file; name it so")
    return stored


def _source(
    parts: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, names: list[str] | None
) -> EncodedSource:
    """Make a source of images B×H×W, B×H×W×C or B×C×H×W of bytes, and labels B."""
    checked = {part: _checked(*pair, path) for part, pair in parts.items()}
    texts = sorted({str(n) for _, labels in checked.values() for n in labels if isinstance(n, str)})
    names = texts or names
    index = {name: label for label, name in enumerate(texts)}
    highest = max(
        (n for _, labels in checked.values() for n in labels if isinstance(n, int)), default=-1
    )
    classes = class_names(highest + 1, names)
    if texts and highest >= 0:
        raise ValueError(f"{path} has labels of texts in one part and numbers in another")
    if highest >= len(classes):
        raise ValueError(f"{path}: label {highest} has no name; there are {len(classes)} names")
    encoded = {
        part: [
            EncodedImage(f"{part} {i}", image, n if isinstance(n, int) else index[n])
            for i, (image, n) in enumerate(zip(images, labels, strict=True))
        ]
        for part, (images, labels) in checked.items()
    }
    return EncodedSource(encoded, classes)


def _checked(
    images: np.ndarray, labels: np.ndarray, path: Path
) -> tuple[np.ndarray, list[int | str]]:
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        raise ValueError(
            f"{path} has images of type {images.dtype} and shape {images.shape}; expected: uint8 "
            "of count, height, width, and 3 channels or none"
        )
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),) or labels.dtype.kind not in "iuUS":
        raise ValueError(
            f"{path} has {len(images)} images and labels of type {labels.dtype} and shape "
            f"{labels.shape}; expected: a class index or a name for each image"
            + ("; of a column for each class, store labels.argmax(1)" if labels.ndim == 2 else "")
        )
    if labels.dtype.kind in "US":
        return np.ascontiguousarray(images), [*_names(labels, path)]
    if len(labels) and (labels.min() < 0 or labels.max() >= MAX_CLASSES):
        raise ValueError(
            f"{path} has labels from {labels.min()} to {labels.max()}; "
            f"allowed: 0 to {MAX_CLASSES - 1:,}"
        )
    return np.ascontiguousarray(images), [int(label) for label in labels]


def _names(labels: np.ndarray, path: Path) -> list[str]:
    """Return labels of texts, or of bytes in UTF-8, as class names."""
    try:
        texts = np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has labels of bytes that are no UTF-8: {error}") from None
    # Lone surrogates become escapes: JSON cannot hold them.
    encoded = (str(name).encode(errors="backslashreplace").decode() for name in texts)
    names = [unicodedata.normalize("NFC", name).strip() for name in encoded]
    if "" in names:
        raise ValueError(f"{path}: the label of image {names.index('')} is empty")
    return names
