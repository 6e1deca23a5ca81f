"""What lies below a folder: its images, and every other file with the reason it is passed over."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from halfmeg.data.formats import HEIC_HINT, image_endings, is_heic, read_formats

SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""What operating systems, archives and network storage leave beside a user's files."""

RESULT = "in a result of halfmeg"

MAX_DEPTH = 100
"""Folders within each other that are looked into."""

_OWN_FILES = (("config.json", "environment.json"), ("model.json", "model.safetensors"))
_OWN_PAGES = frozenset((
    "study.json", "comparison.json", "comparison.html", "ranking.json", "ranking.html",
    "search.json",
))  # fmt: skip
_MAX_HEAD = 32
_ENDING = re.compile(r"\.(?=\d*[a-z])[a-z0-9]+~?")
"""What may be an ending; behind other dots, as in `IMG.1234` and `a.jpg?w=300`, stands none."""

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")  # TIFF's is that of raw files too


@dataclass(frozen=True)
class PassedOver:
    """A file that is not used, or a folder of them.

    Attributes:
        path: below the root.
        reason: why, in a few words.
        count: the files that it stands for.
        is_image: it seems to be an image, which only cannot be read here.
    """

    path: str
    reason: str
    count: int = 1
    is_image: bool = False


@dataclass
class Scan:
    """What `scan_folder` found.

    Attributes:
        images: sorted paths below the root.
        passed_over: everything else.
        folders: the folders that were looked into, below the root.
    """

    images: list[Path] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def scan_folder(root: Path) -> Scan:
    """Look at every file below a folder.

    An image is known by its ending, and without one by its first bytes; one that is called
    otherwise, as `a.txt`, is not taken for one, but told apart from other files. Passed over are
    hidden files and those of the system, results of this program, links to folders below the
    first level, broken links, and what cannot be opened.

    Raises:
        ValueError: the folder itself cannot be opened.
    """
    found = Scan()
    try:
        os.listdir(root)
    except OSError as error:
        raise ValueError(f"{root} cannot be opened: {error.strerror}") from None
    _look(root, Path(), found, root.resolve())
    found.images.sort()
    return found


def find_images(patterns: Iterable[str]) -> tuple[list[Path], list[PassedOver]]:
    """Return the files that paths, folders and patterns such as `*.jpg` stand for.

    A file that is named is taken as it is; a folder, named or matched by a pattern, stands for the
    images anywhere below it.

    Returns:
        The images, each once, and what was passed over in folders.

    Raises:
        ValueError: something that does not exist, or a folder or pattern without an image.
    """
    found: dict[Path, None] = {}
    passed_over: dict[Path, PassedOver] = {}
    for pattern in patterns:
        named = Path(pattern)
        is_named = named.exists()
        paths = [named] if is_named else [*map(Path, sorted(glob.glob(pattern, recursive=True)))]
        matches: list[Path] = []
        for path in paths:
            if path.is_dir():
                scan = scan_folder(path)
                matches += [path / image for image in scan.images]
                passed_over |= {path / item.path: item for item in scan.passed_over}
            elif is_named or path.is_file():
                matches.append(path)
            elif (why_not := _no_image(path, path)) is not None:
                passed_over[path] = why_not
        if not matches:
            told = summarize_passed_over(passed_over.values())
            kind = "file that does not exist"
            if paths:
                kind = f"{'folder' if is_named else 'pattern'} without images"
            raise ValueError(f"{pattern} is a {kind}" + (f"; {told}" if told else ""))
        found |= dict.fromkeys(matches)
    return list(found), [item for path, item in passed_over.items() if path not in found]


def unnamed_images(files: Iterable[Path], root: Path) -> list[PassedOver]:
    """Return the images that stand beside others and are not among them.

    Args:
        files: images that a table names.
        root: the table's folder, below which paths are told where they can be.
    """
    named = {os.path.normpath(file) for file in files}
    found: list[PassedOver] = []
    for folder in sorted({os.path.dirname(file) or "." for file in named}):
        for entry in sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else ():
            file = os.path.normpath(os.path.join(folder, entry))
            if entry.startswith(".") or file in named or os.path.isdir(file):
                continue
            if _no_image(Path(file), Path(file)) is None:
                path = os.path.relpath(file, root)
                found.append(PassedOver(path, "named by no row"))
    return found


def summarize_passed_over(passed_over: Iterable[PassedOver]) -> str:
    """Return "12 files passed over: 8 hidden, 4 …", or "" for none."""
    counts: Counter[str] = Counter()
    for item in passed_over:
        counts[item.reason] += item.count
    if not counts:
        return ""
    total = sum(counts.values())
    listed = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    return f"{total:,} file{'' if total == 1 else 's'} passed over: {listed}"


def objects_hint(passed_over: Iterable[PassedOver]) -> str:
    """Say what the files beside the images of a data set for object detection are, or ""."""
    described = {"annotations", "labels"}
    found = next((i.path for i in passed_over if described & set(Path(i.path).parts)), None)
    return f" ({found} seems to describe objects in images, not classes of images)" if found else ""


def table_hint(passed_over: Iterable[PassedOver]) -> str:
    """Say which of the files beside the images may name them or hold them, or ""."""
    for item in passed_over:
        path = Path(item.path)
        if path.suffix.lower() in (".csv", ".tsv", ".npz", ".npy"):
            return f" (to take classes from {path}, name that file)"
        if path.suffix.lower() in (".parquet", ".pq"):
            return f" (to read {path}, name its folder)"
        if "-ubyte" in path.name:
            return f" (to read {path}, name its folder)"
    return ""


def _look(folder: Path, below: Path, found: Scan, root: Path) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        reason = f"in a folder that cannot be opened ({error.strerror})"
        found.passed_over.append(PassedOver(str(below), reason, is_image=True))
        return
    for entry in entries:
        path, name = below / entry.name, Path(entry.path)
        unwanted = _unwanted(entry, below, root)
        if unwanted is not None:
            count = _count_files(name) if entry.is_dir(follow_symlinks=False) else 1
            if count:
                found.passed_over.append(PassedOver(str(path), unwanted, count))
        elif _is_folder(entry):
            found.folders.append(path)
            _look(name, path, found, root)
        else:
            passed_over = _no_image(name, path)
            if passed_over is None:
                found.images.append(path)
            else:
                found.passed_over.append(passed_over)


def _unwanted(entry: os.DirEntry[str], below: Path, root: Path) -> str | None:
    if entry.name.startswith("."):
        return "hidden"
    if not _is_folder(entry):
        return None
    if entry.name in SYSTEM_FOLDERS:
        return "in a folder of the system"
    if entry.is_symlink():  # a class may be a link; a link further down may lead anywhere
        target = Path(entry.path).resolve()
        if any(one.is_relative_to(target) for one in (root, Path(entry.path).parent.resolve())):
            return "link to a folder above"
        if len(below.parts) >= 2:
            return "link to a folder"
    if is_result(Path(entry.path)):
        return RESULT
    if len(below.parts) >= MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: broken, as one to nothing
        return False


def is_result(folder: Path) -> bool:
    """Return whether a folder is a run, bundle, study, search or page that this program wrote."""
    try:
        names = set(os.listdir(folder))
    except OSError:
        return False
    return any(names.issuperset(files) for files in _OWN_FILES) or not names.isdisjoint(_OWN_PAGES)


def _no_image(file: Path, path: Path) -> PassedOver | None:
    """Return why a file is no image, or None for one that is to be decoded."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        reason = "broken link" if os.path.islink(file) else f"cannot be opened ({error.strerror})"
        return PassedOver(str(path), reason, is_image=True)
    if not stat.S_ISREG(mode):
        return PassedOver(str(path), "not a regular file")
    ending = file.suffix.lower()
    if ending in image_endings():
        return None
    is_other = _ENDING.fullmatch(ending) is not None and not is_heic(file, b"")
    try:
        with file.open("rb") as opened:
            head = opened.read(_MAX_HEAD)
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        return PassedOver(str(path), reason, is_image=not is_other)
    if is_other:
        if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            reason = f"an image by its first bytes, but called {ending}: rename it"
            return PassedOver(str(path), reason, is_image=True)
        return PassedOver(str(path), f"no image format that is read ({ending})")
    if is_heic(file, head):  # with its extra the ending is known
        readable = "HEIF" in read_formats()
        return None if readable else PassedOver(str(path), HEIC_HINT, is_image=True)
    return None if _is_image(file) else PassedOver(str(path), "without an ending, and no image")


def _is_image(file: Path) -> bool:
    formats = [name for name in read_formats() if name not in ("TGA", "ICO", "PCX")]  # weak signs
    try:
        with Image.open(file, formats=formats):
            return True
    except Exception:  # what a decoder raises depends on format and damage
        return False


def _count_files(folder: Path) -> int:
    count, folders = 0, [folder]
    while folders:  # os.walk would call itself for each level
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    count += 1
    return count
