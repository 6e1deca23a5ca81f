"""A table in CSV that names images and their classes."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

from halfmeg.data.columns import find_column, find_part_column, no_part, parts_by_word
from halfmeg.data.dataset import list_some
from halfmeg.data.decode import EncodedImage
from halfmeg.data.options import DataOptions
from halfmeg.data.source import EncodedSource

IMAGE_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path")
LABEL_COLUMNS = ("label", "class", "category", "target")
DELIMITERS = ",;\t"
MAX_TABLE_BYTES = 256 * 2**20


def read_table(path: Path, options: DataOptions) -> EncodedSource:
    """Read a CSV file with a row for each image: its path, its class, perhaps its part and group.

    Paths start at the table's own folder. Columns are found by their usual names, or as `options`
    say; a column `split` with the names of parts divides the images. Rows of no part are passed
    over.

    Raises:
        ValueError: no such columns, a file that does not exist, a row without a class.
    """
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TABLE_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=first.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}; save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    columns = [name for name in reader.fieldnames or () if name]
    image_column, image_note = _find(path, columns, options.image_column, IMAGE_COLUMNS, "image")
    label_column, label_note = _find(path, columns, options.label_column, LABEL_COLUMNS, "label")
    if not rows:
        raise ValueError(f"{path} has the columns {list_some(columns)}, and no rows of images")
    part_column = find_part_column(columns)
    words = [_text(row, part_column) for row in rows] if part_column else ["all"] * len(rows)
    part_of = {"all": "all"}
    if part_column:
        named = parts_by_word(set(words), f"{path}, column {part_column},")
        if named is None:
            raise ValueError(
                f"{path}: {part_column} holds {list_some(sorted(set(words)), 5)}; "
                "expected: train, validation and test"
            )
        part_of = named
    labels = [unicodedata.normalize("NFC", _text(row, label_column)) for row in rows]
    classes = tuple(sorted(set(labels)))
    index = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[EncodedImage]] = {part: [] for part in part_of.values()}
    passed_over = []
    for number, (row, label, word) in enumerate(zip(rows, labels, words, strict=True), 2):
        name = _text(row, image_column)
        if not label or not name:
            empty = label_column if name else image_column
            raise ValueError(f"{path} line {number}: {empty} is empty")
        if word not in part_of:
            passed_over.append(no_part(f"line {number}: {name}", part_column, word))
            continue
        file = path.parent / name
        if not file.is_file():
            file = path.parent / name.replace("\\", "/")  # as Windows writes paths
        if not file.is_file():
            raise ValueError(f"{path} line {number}: {path.parent / name} does not exist")
        own = row.get(options.group) if options.group in columns else options.path_group(name)
        parts[part_of[word]].append(EncodedImage(name, file, index[label], (own or "").strip()))
    notes = tuple(note for note in (image_note, label_note) if note)
    return EncodedSource(parts, classes, tuple(passed_over), notes)


def _text(row: dict[str, str | None], column: str) -> str:
    return (row[column] or "").strip()


def _find(
    path: Path, columns: list[str], wanted: str, usual: tuple[str, ...], kind: str
) -> tuple[str, str]:
    found, note = find_column(columns, wanted, usual, kind)
    if found is None:
        if columns and not wanted and (path.parent / columns[0]).is_file():
            raise ValueError(
                f"{path} begins with the image {columns[0]}; expected: a first line that names the "
                "columns, as path,label"
            )
        raise ValueError(
            f"{path} has the columns {list_some(columns, 20) or 'none'}; expected: "
            f"{wanted or ' or '.join(usual)}; name another with --{kind}-column"
        )
    return found, note
