"""A table in CSV that names images and their classes."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from os.path import isfile
from pathlib import Path

from halfmeg.data.columns import divides, find_columns, no_part, parts_by_word
from halfmeg.data.dataset import list_some
from halfmeg.data.decode import EncodedImage
from halfmeg.data.options import DataOptions
from halfmeg.data.scan import unnamed_images
from halfmeg.data.source import EncodedSource
from halfmeg.files import read_limited

IMAGE_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path")
LABEL_COLUMNS = ("label", "class", "category", "target")
DELIMITERS = ",;\t|"
MAX_TABLE_BYTES = 256 * 2**20


def read_table(path: Path, options: DataOptions) -> EncodedSource:
    """Read a CSV file with a row for each image: its path, its class, perhaps its part and group.

    Paths start at the table's own folder. Columns are found by their usual names, or as `options`
    say; one with the names of parts, such as `split`, divides the images. Passed over are rows of
    no part, and images that no row names beside those that one does.

    Raises:
        ValueError: no such columns, a file that does not exist, a row without a class or with more
            cells than there are columns.
    """
    text = _read_text(path)
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = filter(None, reader)
        header = next(lines, [])
        if header[:1] == ["sep="]:  # Excel's line that names the delimiter
            header = next(lines, [])
        numbered = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    numbers, rows = [number for number, _ in numbered], [row for _, row in numbered]
    names = [name for name in header if name]
    place_of = {name: place for place, name in enumerate(header)}

    def cell_of(row: list[str], column: str) -> str:
        # A row that is filled up to a header of many columns would take much memory.
        place = place_of[column]
        return row[place].strip() if place < len(row) else ""

    if names and isfile(path.parent / names[0]):  # pathlib's raises where a text is too long
        raise ValueError(
            f"{path} begins with the image {names[0]}; expected: a first line that names the "
            "columns, as path,label"
        )
    columns = find_columns(
        path, names, options, (IMAGE_COLUMNS, LABEL_COLUMNS),
        lambda name: {cell_of(row, name) for row in rows},
    )  # fmt: skip
    if not rows:
        raise ValueError(f"{path} has the columns {list_some(names)}, and no rows of images")
    words = [cell_of(row, columns.part) if columns.part else "all" for row in rows]
    part_of = {"all": "all"}
    notes = columns.notes
    if columns.part:
        named = parts_by_word(set(words), f"{path}, column {columns.part},")
        if named is None:
            raise ValueError(
                f"{path}: {columns.part} holds {list_some(sorted(set(words)), 5)}; "
                "expected: train, validation and test; give the column another name where it "
                "divides nothing"
            )
        part_of, notes = named, (*notes, divides(columns.part))
    labels = [unicodedata.normalize("NFC", cell_of(row, columns.label)) for row in rows]
    classes = tuple(sorted({y for y, word in zip(labels, words, strict=True) if word in part_of}))
    index = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[EncodedImage]] = {part: [] for part in part_of.values()}
    passed_over, files = [], []
    for number, row, label, word in zip(numbers, rows, labels, words, strict=True):
        name = cell_of(row, columns.image)
        file = path.parent / name
        if not isfile(file):
            file = path.parent / name.replace("\\", "/")  # as Windows writes paths
        files.append(file)
        if any(cell.strip() for cell in row[len(header) :]):
            raise ValueError(
                f"{path} line {number} has more cells than the first line has columns; "
                f"put texts that hold {delimiter!r} into quotes"
            )
        if word not in part_of:
            passed_over.append(no_part(f"line {number}: {name}", columns.part, word))
            continue
        if not label or not name:
            empty = columns.label if name else columns.image
            raise ValueError(f"{path} line {number}: {empty} is empty")
        if not isfile(file):
            raise ValueError(
                f"{path} line {number}: {path.parent / name[:200]} does not exist; paths start at "
                f"the table's folder"
            )
        group = cell_of(row, columns.group) if columns.group else options.path_group(name).strip()
        parts[part_of[word]].append(EncodedImage(name, file, index[label], group))
    passed_over += unnamed_images(filter(isfile, files), path.parent)
    return EncodedSource(parts, classes, tuple(passed_over), notes)


def _read_text(path: Path) -> str:
    try:
        content = read_limited(path, MAX_TABLE_BYTES)
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}; save it as UTF-8") from None
    if "\0" in text.partition("\n")[0]:  # UTF-16 without its mark is UTF-8 too
        raise ValueError(f"{path} cannot be read as CSV: it is UTF-16 or no text; save it as UTF-8")
    return text
