"""A table in CSV that names images and their classes."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

from halfmeg.data.decode import EncodedImage
from halfmeg.data.options import DataOptions
from halfmeg.data.parts import find_parts
from halfmeg.data.source import EncodedSource

IMAGE_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path")
LABEL_COLUMNS = ("label", "class", "category", "target")
PART_COLUMNS = ("split", "part", "subset")
DELIMITERS = ",;\t"
MAX_TABLE_BYTES = 256 * 2**20


def read_table(path: Path, options: DataOptions) -> EncodedSource:
    """Read a CSV file with a row for each image: its path, its class, perhaps its part and group.

    Paths start at the table's own folder. Columns are found by their usual names, or as `options`
    say; a column `split` with the names of parts divides the images.

    Raises:
        ValueError: no such columns, a file that does not exist, a row without a class.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TABLE_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=first.count)
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    columns = [name for name in (rows[0] if rows else {}) if name]
    image_column = _find(path, columns, options.image_column, IMAGE_COLUMNS, "image")
    label_column = _find(path, columns, options.label_column, LABEL_COLUMNS, "label")
    part_column = next((name for name in PART_COLUMNS if name in columns), None)
    words = {(row[part_column] or "").strip() for row in rows} if part_column else set()
    named = find_parts(words, str(path)) if words else None
    if words and named is None:
        raise ValueError(
            f"{path}: {part_column} holds {', '.join(sorted(words)[:5])}; "
            "expected: train, validation and test"
        )
    part_of = {word: part for part, word in named.items()} if named else {}
    labels = [unicodedata.normalize("NFC", (row[label_column] or "").strip()) for row in rows]
    classes = tuple(sorted(set(labels)))
    parts: dict[str, list[EncodedImage]] = {part: [] for part in named or ("all",)}
    for number, (row, label) in enumerate(zip(rows, labels, strict=True), 2):
        name = (row[image_column] or "").strip()
        if not label or not name:
            empty = label_column if name else image_column
            raise ValueError(f"{path} line {number}: {empty} is empty")
        file = path.parent / name
        if not file.is_file():
            raise ValueError(f"{path} line {number}: {file} does not exist")
        part = part_of[(row[part_column] or "").strip()] if part_column and named else "all"
        own = row.get(options.group) if options.group in columns else options.path_group(name)
        parts[part].append(EncodedImage(name, file, classes.index(label), own or ""))
    return EncodedSource(parts, classes)


def _find(path: Path, columns: list[str], wanted: str, usual: tuple[str, ...], kind: str) -> str:
    found = next((name for name in ((wanted,) if wanted else usual) if name in columns), None)
    if found is None:
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or 'none'}; expected: "
            f"{wanted or ' or '.join(usual)}; name another with --{kind}-column"
        )
    return found
