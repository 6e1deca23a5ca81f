"""Parquet files in the layout of the Hugging Face hub: an image column and a label column."""

from __future__ import annotations

import json
from pathlib import Path

from halfmeg.data.dataset import class_names
from halfmeg.data.decode import EncodedImage
from halfmeg.data.source import EncodedSource

IMAGE_COLUMNS = ("img", "image")
TEST_PREFIXES = ("test", "validation")


def find_parquet(path: Path) -> dict[str, list[Path]]:
    """Return the Parquet files of `path`, a file or a folder, for "train" and "test".

    A validation file stands in for the test part where there is no test file. A single file, or
    files of other names, hold everything and come under "all". No file gives an empty result.
    """
    if path.is_file():
        return {"all": [path]} if path.suffix == ".parquet" else {}
    files = sorted(path.glob("*.parquet"))
    if not files and (path / "data").is_dir():  # where the hub puts them
        files = sorted((path / "data").glob("*.parquet"))
    train = [file for file in files if file.name.startswith("train")]
    for prefix in TEST_PREFIXES:
        test = [file for file in files if file.name.startswith(prefix)]
        if train and test:
            return {"train": train, "test": test}
    return {"all": files} if files else {}


def read_parquet(files: dict[str, list[Path]]) -> EncodedSource:
    """Read the encoded images and labels of `find_parquet`'s files.

    Raises:
        ValueError: no Parquet file, no image column, or labels that are no class indices.
    """
    names: list[str] | None = None
    parts: dict[str, list[EncodedImage]] = {}
    for part, paths in files.items():
        parts[part] = []
        for path in paths:
            images, file_names = _read_file(path)
            parts[part] += images
            names = names or file_names
    highest = max((image.label for images in parts.values() for image in images), default=-1)
    classes = class_names(highest + 1, names)
    if highest >= len(classes):
        raise ValueError(f"label {highest} has no name; the metadata names {len(classes)} classes")
    return EncodedSource(parts, classes)


def _read_file(path: Path) -> tuple[list[EncodedImage], list[str] | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        column = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        if column is None or "label" not in schema.names:
            raise ValueError(
                f"{path} has the columns {', '.join(schema.names)}; "
                "expected: img or image, and label"
            )
        table = pq.read_table(path, columns=[column, "label"])
        contents = pa.compute.struct_field(table[column], "bytes").to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet of images: {error}") from None
    labels = table["label"].to_pylist()
    images = []
    for row, (content, label) in enumerate(zip(contents, labels, strict=True)):
        if not isinstance(label, int) or label < 0:
            raise ValueError(
                f"{path} row {row}: label {label!r}; expected: a class index, 0 or more"
            )
        images.append(EncodedImage(f"{path.name} row {row}", content or b"", label))
    return images, _label_names(schema.metadata or {})


def _label_names(metadata: dict[bytes, bytes]) -> list[str] | None:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, ValueError, TypeError):
        return None
