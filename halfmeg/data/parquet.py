"""Parquet files in the layout of the Hugging Face hub: an image column and a label column."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from os.path import isfile
from pathlib import Path
from typing import Any

from halfmeg.data.columns import Columns, divides, find_columns, no_part, parts_by_word
from halfmeg.data.dataset import MAX_CLASSES, class_names, list_some
from halfmeg.data.decode import EncodedImage
from halfmeg.data.formats import LFS_HEAD, LFS_HINT, MAX_FILE_BYTES
from halfmeg.data.options import DataOptions
from halfmeg.data.parquet_files import ParquetFiles, begins_with
from halfmeg.data.source import EncodedSource
from halfmeg.data.unpack import Room
from halfmeg.errors import one_line
from halfmeg.files import parse_json

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels")
BATCH_ROWS = 8
"""Rows that are held at once; few, as each may be as large as an image file may be."""

MOST_WORDS = 32
"""A column of more different texts names no parts."""

ROW_BYTES = 600
"""What a row takes beside its contents."""


@dataclass(frozen=True)
class _Row:
    name: str
    content: bytes | Path
    label: int | str
    group: str
    part: str


@dataclass(frozen=True)
class _Table:
    path: Path
    name: str  # as rows are called by
    rows: list[_Row]
    names: tuple[str, ...] | None  # of the class indices
    columns: Columns


def read_parquet(files: ParquetFiles, options: DataOptions) -> EncodedSource:
    """Read the encoded images and labels of `find_parquet`'s files.

    Labels are class indices, matched between files by the names that each file's metadata gives
    them, or texts. Where no file is a part, a column of parts may divide the rows.

    Raises:
        ValueError: no Parquet file, no image column, labels that are neither, or too much content.
    """

    @cache
    def words_of(column: str) -> set[str]:  # in all files, since one may hold a part alone
        return set().union(*(_words(path, column) for path in files.parts.get("all", [])))

    tables = {
        part: [_read_file(path, files.name_of(path), options, words_of) for path in paths]
        for part, paths in files.parts.items()
    }
    everything = [table for part in tables.values() for table in part]
    classes, notes = _classes_of(everything)
    notes = (*dict.fromkeys(note for table in everything for note in table.columns.notes), *notes)
    passed_over = [*files.passed_over]
    parts: dict[str, list[EncodedImage]] = {part: [] for part in tables}
    undivided = tables.get("all", [])
    column = next((table.columns.part for table in undivided if table.columns.part), None)
    words, note = _part_words(undivided, column) if column else ({}, [])
    if words:
        parts = {part: [] for part in words.values()}
    for part, own in tables.items():
        for table in own:
            for row, label in zip(table.rows, _labels_of(table, classes), strict=True):
                image = EncodedImage(row.name, row.content, label, row.group)
                if not words:
                    parts[part].append(image)
                elif row.part in words:
                    parts[words[row.part]].append(image)
                else:
                    passed_over.append(no_part(row.name, column, row.part))
    return EncodedSource(parts, classes, tuple(passed_over), (*notes, *note))


def _part_words(tables: list[_Table], column: str) -> tuple[dict[str, str], list[str]]:
    """Return the part of each word in the tables' part column, and what is to be said of it."""
    words = {row.part for table in tables for row in table.rows}
    named = parts_by_word(words, f"{tables[0].path.parent}, column {column},")
    if named is None:
        shown = list_some(map(repr, sorted(words)), 5)
        return {}, [f"the column {column} is not used: {shown} name no parts"]
    return named, [divides(column)]


def _classes_of(tables: list[_Table]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of all tables, and what is to be said about them."""
    labels = {row.label for table in tables for row in table.rows}
    texts = {label for label in labels if isinstance(label, str)}
    if texts:
        if len(texts) < len(labels):
            raise ValueError("labels are texts in some rows and numbers in others; use one kind")
        return tuple(sorted(texts)), ()
    numbers = [label for label in labels if isinstance(label, int)]
    highest = max(numbers, default=-1)
    named = [table for table in tables if table.names is not None]
    if not named:
        if highest >= MAX_CLASSES:
            raise ValueError(f"label {highest} is out of range; allowed: 0 to {MAX_CLASSES - 1:,}")
        return class_names(highest + 1, None), ()
    classes = named[0].names
    assert classes is not None
    notes = tuple(
        f"{table.name} has no class names; those of {named[0].name} are used"
        for table in tables
        if table.names is None
    )
    return classes, notes


def _labels_of(table: _Table, classes: tuple[str, ...]) -> list[int]:
    index = {name: label for label, name in enumerate(classes)}
    names = table.names or classes
    labels = []
    for row in table.rows:
        if isinstance(row.label, str):
            labels.append(index[row.label])
        elif row.label >= len(names):
            raise ValueError(
                f"{row.name}: label {row.label} has no name; the metadata names "
                f"{len(names)} classes"
            )
        elif names[row.label] not in index:
            raise ValueError(
                f"{row.name} is of the class {names[row.label]!r}; allowed: {list_some(classes)}"
            )
        else:
            labels.append(index[names[row.label]])
    return labels


def _read_file(
    path: Path, name: str, options: DataOptions, words_of: Callable[[str], set[str]]
) -> _Table:
    import pyarrow.parquet as pq

    with _as_mistake(path):
        room, file = Room(path), pq.ParquetFile(path)
        groups = range(file.metadata.num_row_groups)
        room.require(sum(file.metadata.row_group(i).total_byte_size for i in groups))
        room.require(ROW_BYTES * file.metadata.num_rows)
        schema = file.schema_arrow
        structs = [f.name.lower() for f in schema if str(f.type).startswith("struct<bytes: ")]
        images = dict.fromkeys((*IMAGE_COLUMNS, *(structs if len(structs) == 1 else ())))
        columns = find_columns(path, schema.names, options, ([*images], LABEL_COLUMNS), words_of)
        rows = _read_rows(path, name, file, columns, options, room)
        return _Table(path, name, rows, _label_names(schema.metadata or {}, columns.label), columns)


@contextmanager
def _as_mistake(path: Path) -> Iterator[None]:
    """Turn what a damaged file makes pyarrow raise into a line that names it."""
    try:
        yield
    except Exception as error:  # what a value that cannot be raises depends on its type
        if type(error) is ValueError:  # one of our own; those of pyarrow are of its kinds
            raise
        text = LFS_HINT if begins_with(path, LFS_HEAD) else one_line(error)
        raise ValueError(f"{path} cannot be read as Parquet of images: {text}") from None


def _words(path: Path, column: str) -> set[str]:
    """Return the texts of a column, or the first of many: one that names parts has few.

    A file may lack a column that another has. The least and greatest stand in the file's metadata
    too; but where those are damaged, pyarrow ends the process.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: set[str] = set()
    with _as_mistake(path):
        file = pq.ParquetFile(path)
        if column not in file.schema_arrow.names:
            return found
        kind = file.schema_arrow.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return found
        for batch in file.iter_batches(batch_size=8 * BATCH_ROWS, columns=[column]):
            found |= {text for text in batch[column].unique().to_pylist() if text is not None}
            if len(found) > MOST_WORDS:
                break
    return found


def _read_rows(
    path: Path, name: str, file: Any, columns: Columns, options: DataOptions, room: Room
) -> list[_Row]:
    names = [n for n in (columns.image, columns.label, columns.group, columns.part) if n]
    rows: list[_Row] = []
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(dict.fromkeys(names))):
        groups, words = (_texts(batch, n) for n in (columns.group, columns.part))
        pairs = zip(_cells(batch[columns.image]), batch[columns.label].to_pylist(), strict=True)
        for place, (cell, label) in enumerate(pairs):
            where = f"{name} row {len(rows)}"
            content, inner = _content(cell, path, columns.image, len(rows))
            if content == b"":
                where += f" ({columns.image} is null)"
            group = groups[place] if groups else options.path_group(inner)
            part = words[place] if words else ""
            label = room.keep(_label(label, columns.label, f"{path} row {len(rows)}"))
            room.take(ROW_BYTES)
            rows.append(_Row(where, room.keep(content), label, room.keep(group), room.keep(part)))
    return rows


def _texts(batch: Any, column: str | None) -> list[str]:
    """Return the texts of a column, "" for nulls; nothing for no column."""
    if column is None:
        return []
    return ["" if cell is None else str(cell).strip() for cell in batch[column].to_pylist()]


def _cells(column: Any) -> Iterator[Any]:
    """Yield a batch's cells, without making Python numbers of a list's bytes."""
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        for cell in column:
            if not cell.is_valid:
                yield None
            elif not pa.types.is_uint8(column.type.value_type):
                yield cell
            else:
                yield cell.values.to_numpy(zero_copy_only=False).tobytes()
    else:
        yield from column.to_pylist()


def _content(cell: Any, path: Path, column: str, row: int) -> tuple[bytes | Path, str]:
    """Return an image's bytes or file, and the path by which the table calls it.

    Raises:
        ValueError: neither bytes nor the path of a file below the table's folder.
    """
    inner = ""
    if isinstance(cell, dict):
        inner = str(cell.get("path") or "")
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        return b"", inner
    if isinstance(cell, bytes):
        if len(cell) > MAX_FILE_BYTES:
            raise ValueError(f"{path} row {row}: {column} is larger than {MAX_FILE_BYTES:,} bytes")
        return cell, inner
    if not isinstance(cell, str):
        raise ValueError(
            f"{path} row {row}: {column} cannot be read as Parquet of images; "
            "expected: bytes, a struct of bytes and path, or a path"
        )
    file = path.parent / cell
    # of os, since pathlib's raises where a text is too long for a path
    if "\0" in cell or not isfile(file) or not file.resolve().is_relative_to(path.parent.resolve()):
        raise ValueError(
            f"{path} row {row}: {column} has no bytes, but the path {cell[:80]!r}, and there is "
            f"no such file below {path.parent}"
        )
    return file, cell


def _label(label: Any, column: str, where: str) -> int | str:
    if isinstance(label, bool):
        label = str(label)
    if isinstance(label, str) and label.strip():
        return unicodedata.normalize("NFC", label.strip())
    if not isinstance(label, int) or label < 0:
        raise ValueError(
            f"{where}: {column} {label!r}; expected: a class index, 0 or more, or a text"
        )
    return label


def _label_names(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    try:
        features = parse_json(metadata[b"huggingface"], dict[str, Any])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        return None
    return tuple(unicodedata.normalize("NFC", str(name)) for name in names)
