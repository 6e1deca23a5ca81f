"""Which Parquet files a source has, and the part that each belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from os.path import isdir, isfile  # pathlib's raise below a folder that cannot be opened
from pathlib import Path

from halfmeg.data.dataset import list_some
from halfmeg.data.parts import find_parts, part_of, plain_words
from halfmeg.data.scan import PassedOver, scan_folder

ENDINGS = (".parquet", ".pq", ".parq")

_SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)(?:-[0-9a-f]+)?$")  # older ones end in a hash


@dataclass
class ParquetFiles:
    """The files of a source.

    Attributes:
        root: the folder below which they stand.
        parts: "train", "validation" and "test", or "all".
        passed_over: files that belong to no part.
    """

    root: Path
    parts: dict[str, list[Path]]
    passed_over: list[PassedOver] = field(default_factory=list)

    def name_of(self, file: Path) -> str:
        """Return the path below the root: files of two parts may have the same name."""
        return str(file.relative_to(self.root))


def find_parquet(path: Path) -> ParquetFiles | None:
    """Return the Parquet files of `path`, a file or a folder; None where there are none.

    They stand in the folder, in its `data`, or in the one sub-folder that the hub names after a
    configuration, each also in a folder for each part. A file's part is the first word of its
    name; files of other names hold everything together.

    Raises:
        ValueError: shards are missing, or there are several configurations.
    """
    if path.is_file():
        # Pandas writes .parquet.gzip, and others what they like.
        is_table = _is_parquet(path) or begins_with(path, b"PAR1")
        return ParquetFiles(path.parent, {"all": [path]}) if is_table else None
    files = _files_of(path) or _files_of(path / "data")
    if not files:
        found = {folder.name: _files_of(folder) for folder in _sub_folders(path)}
        found = {name: files for name, files in found.items() if files}
        if len(found) > 1:
            raise ValueError(
                f"{path} has several tables: {', '.join(sorted(found))}; name one of these folders"
            )
        files = next(iter(found.values()), {})
    if not files:
        return None
    for file in files:
        _require_shards(file, list(files))
    named = find_parts(set(files.values()), str(path), set(files.values()))
    if named is None:
        return ParquetFiles(path, {"all": sorted(files)})
    parts = {
        part: sorted(f for f, own in files.items() if own == word) for part, word in named.items()
    }
    left = sorted(files.keys() - {file for part in parts.values() for file in part})
    reason = "beside the tables of the parts"
    return ParquetFiles(
        path, parts, [PassedOver(str(file.relative_to(path)), reason) for file in left]
    )


def beside_tables(path: Path, files: ParquetFiles) -> list[PassedOver]:
    """Return what else lies below the folder of `find_parquet`'s files."""
    known = {str(file.relative_to(path)) for part in files.parts.values() for file in part}
    known |= {item.path for item in files.passed_over}
    scan = scan_folder(path)
    others = [PassedOver(str(image), "beside the tables") for image in scan.images]
    others += [
        replace(item, reason="beside the tables") if _is_parquet(path / item.path) else item
        for item in scan.passed_over
        if item.path not in known
    ]
    return others


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def begins_with(path: Path, head: bytes) -> bool:
    """Return whether a file begins with these bytes; not where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """Return what stands in a folder, sorted; nothing where it cannot be opened."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _sub_folders(folder: Path) -> list[Path]:
    return [p for p in _entries(folder) if isdir(p) and not p.name.startswith(".")]


def _files_of(folder: Path) -> dict[Path, str]:
    """Return a folder's Parquet files with the word that may name their part."""
    files = {}
    for path in _entries(folder):
        if _is_parquet(path) and isfile(path):
            stem = re.sub(r"-?\d+-of-\d+.*", "", path.stem.lower())
            first = re.split(r"[^a-z]", stem, maxsplit=1)[0]
            files[path] = first if part_of(first) else " ".join(plain_words(stem))
        elif isdir(path):  # Spark writes a folder called train.parquet
            word = (path.stem if _is_parquet(path) else path.name).lower()
            inner = _entries(path) if part_of(word) else []
            files |= {p: word for p in inner if _is_parquet(p) and isfile(p)}
    return files


def _require_shards(file: Path, files: list[Path]) -> None:
    """Raise where a file says that it is one of several and not all are there."""
    shard = _SHARD.match(file.stem)
    if shard is None:
        return
    name, total = shard[1], int(shard[3])
    siblings = (_SHARD.match(f.stem) for f in files if f.parent == file.parent)
    there = {int(s[2]) for s in siblings if s and s[1] == name and int(s[3]) == total}
    if missing := sorted(set(range(min(total, 100_000))) - there):
        listed = list_some(map(str, missing), 5)
        raise ValueError(
            f"{file.parent} has not all of the {total} files {name}-…-of-{shard[3]}: "
            f"missing are {listed}, counted from 0"
        )
