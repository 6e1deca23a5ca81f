"""Folders of images: `train/CLASS/*.png` and `test/CLASS/*.png`, or one folder of classes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

from halfmeg.data.dataset import list_some
from halfmeg.data.decode import EncodedImage
from halfmeg.data.parts import find_parts, part_of
from halfmeg.data.scan import (
    RESULT,
    PassedOver,
    Scan,
    objects_hint,
    scan_folder,
    summarize_passed_over,
    table_hint,
)
from halfmeg.data.source import EncodedSource

LEAST_CLASSES = 2
COMMON_ENDINGS = ".bmp, .gif, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp"


def read_folder(path: Path, group_of: Callable[[str], str]) -> EncodedSource:
    """List the images of a folder by class; the classes are its sub-folders, in sorted order.

    Sub-folders may be parts instead (`halfmeg.data.parts`), each with a folder for each class.
    Names that differ in their Unicode form or in spaces around them alone are one class. A folder
    without anything that could be an image is none.

    Args:
        path: the folder.
        group_of: gives what keeps an image, known by its path, together with others.

    Raises:
        ValueError: no classes or no images, or a class that the training part does not have.
    """
    scan = scan_folder(path)
    if not (scan.images or scan.passed_over or scan.folders):
        raise ValueError(f"{path} is an empty folder; expected: one folder of images per class")
    inner = _inner_folders(scan)
    folders = _find_part_folders(scan, inner, path)
    by_part = {part: _by_class(scan.images, folder) for part, folder in folders.items()}
    first = next(iter(folders))
    classes = tuple(sorted(by_part[first].keys() | _unreadable_classes(scan, folders[first])))
    if not classes:
        raise ValueError(_no_classes(path, folders[first], scan))
    if folders == {"all": Path()}:
        _require_no_inner_parts(inner, path)
    label_of = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[EncodedImage]] = {}
    for part, images in by_part.items():
        if unknown := sorted(images.keys() - label_of.keys()):
            raise ValueError(
                f"{path} has {part} images of a class without training images: {unknown[0]}; "
                f"allowed: {list_some(classes)}; rename its folder, or move it away"
            )
        parts[part] = [
            EncodedImage(str(image), path / image, label_of[name], group_of(str(image)))
            for name in classes
            for image in images.get(name, ())
        ]
        if not parts[part]:
            raise ValueError(_no_images(path, folders[part], scan))
    used = {image.name for images in parts.values() for image in images}
    tops = {folder.parts[0] for folder in folders.values() if folder.parts}
    astray = [
        PassedOver(
            str(image),
            "in a folder beside the parts"
            if tops and len(image.parts) > 1 and image.parts[0] not in tops
            else "in no folder of a class",
        )
        for image in scan.images
        if str(image) not in used
    ]
    maybe = _maybe_parts(inner, folders) or _nested(parts, folders)
    notes = (*_empty_classes(scan, folders, classes), *maybe)
    return EncodedSource(parts, classes, (*scan.passed_over, *astray), notes)


def _inner_folders(scan: Scan) -> dict[str, set[str]]:
    """Return the folders with images in each folder of the first level, by its name."""
    inner: dict[str, set[str]] = {}
    for image in scan.images:
        if len(image.parts) > 1:
            inner.setdefault(image.parts[0], set()).update(image.parts[1:-1][:1])
    return inner


def _find_part_folders(scan: Scan, inner: dict[str, set[str]], path: Path) -> dict[str, Path]:
    tops = set(inner)
    tops |= {
        folder.name for folder in scan.folders if len(folder.parts) == 1 and part_of(str(folder))
    }
    known: set[str] = set().union(*(inner[top] for top in inner if part_of(top) is not None))
    named = find_parts(
        tops, str(path), [top for top in inner if len(inner[top] & known) >= LEAST_CLASSES]
    )
    if named is None:
        return {"all": Path()}
    # Archives that hold a folder of their own name leave seg_train/seg_train/CLASS.
    return {
        part: Path(name, name) if inner.get(name) == {name} else Path(name)
        for part, name in named.items()
    }


def _require_no_inner_parts(inner: dict[str, set[str]], path: Path) -> None:
    """Raise where parts, or the classes once more, lie within what seem to be classes."""
    for top, names in sorted(inner.items()):
        twice = sorted(names & (inner.keys() - {top}))
        if len(twice) >= LEAST_CLASSES or (twice and part_of(top)):
            raise ValueError(
                f"{path} has the folders {list_some(twice, 3)}, and so has {path / top}; move one "
                f"of them away, or name {path / top}"
            )
        parts = find_parts(names, str(path / top)) or {}
        if parts and len(inner) == 1:
            raise ValueError(f"{path} has one folder, which holds parts; name {path / top}")
        if len(parts) > 1:
            first, second = sorted(parts.values())[:2]
            raise ValueError(
                f"{path / top} holds the parts {first} and {second}; "
                f"expected: {path / first / top} and {path / second / top}, the parts outside"
            )


def _empty_classes(scan: Scan, folders: dict[str, Path], classes: tuple[str, ...]) -> list[str]:
    """Say which folders lie where those of classes do, and have no image."""
    parents = set(folders.values())
    results = [Path(item.path) for item in scan.passed_over if item.reason == RESULT]
    of_results = {folder for result in results for folder in result.parents}
    empty = sorted(
        str(folder)
        for folder in scan.folders
        if folder.parent in parents
        and folder not in parents | of_results
        and _class_name(folder.name) not in classes
    )
    if not empty:
        return []
    return [f"{list_some(empty)}: no image that is read, so no class"]


def _maybe_parts(inner: dict[str, set[str]], folders: dict[str, Path]) -> list[str]:
    """Say where classes hold the very same folders, which may be the classes themselves."""
    distinct = {frozenset(names) for names in inner.values()}
    same = next(iter(distinct), frozenset())
    if "all" not in folders or folders["all"].parts or len(inner) < LEAST_CLASSES:
        return []
    if len(distinct) > 1 or len(same) < LEAST_CLASSES:
        return []
    return [
        f"the classes are {list_some(sorted(inner))}, and each holds the folders "
        f"{list_some(sorted(same))}; if those are the classes, call the outer folders train and "
        "test"
    ]


def _nested(parts: dict[str, list[EncodedImage]], folders: dict[str, Path]) -> list[str]:
    """Say where folders within classes are not told apart, since they may be the classes."""
    inner = {
        str(path.parent)
        for part, images in parts.items()
        for path in (Path(image.name) for image in images)
        if len(path.parts) > len(folders[part].parts) + 2
    }
    if not inner:
        return []
    return [f"folders within a class belong to it, as {list_some(sorted(inner), 2)}"]


def _by_class(images: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Return the images that lie in a folder of a class below `folder`, by class, sorted."""
    classes: dict[str, list[Path]] = {}
    depth = len(folder.parts)
    for image in images:
        if len(image.parts) > depth + 1 and image.is_relative_to(folder):
            classes.setdefault(_class_name(image.parts[depth]), []).append(image)
    return classes


def _class_name(folder: str) -> str:
    # Bytes that are no UTF-8, as old archives leave them, become escapes: JSON cannot hold them.
    text = os.fsencode(folder).decode(errors="backslashreplace")
    name = unicodedata.normalize("NFC", text)  # "é" is one letter on Linux, two on a Mac
    return name.strip() or name


def _unreadable_classes(scan: Scan, folder: Path) -> set[str]:
    """Return the classes that have nothing but what seems to be an image and cannot be read."""
    unreadable = [Path(item.path) for item in scan.passed_over if item.is_image]
    depth = len(folder.parts)
    return {
        _class_name(path.parts[depth])
        for path in unreadable
        if path.is_relative_to(folder)
        and (len(path.parts) > depth + 1 or (len(path.parts) == depth + 1 and path in scan.folders))
    }


def _no_classes(root: Path, below: Path, scan: Scan) -> str:
    folder = root / below
    if any(len(found.parts) == 1 for found in scan.folders):
        return _no_images(root, below, scan)
    return (
        f"{folder} has no sub-folders{table_hint(scan.passed_over)}; expected: one folder of "
        f"images for each class, as in {folder}/train/CLASS/image.png"
        f"{_told(summarize_passed_over(scan.passed_over))}"
    )


def _told(line: str) -> str:
    return f"; {line}" if line else ""


def _no_images(root: Path, below: Path, scan: Scan) -> str:
    loose = sum(image.parent == below for image in scan.images)
    if loose:
        return (
            f"{root / below} has {loose:,} image(s) in no folder of a class"
            f"{objects_hint(scan.passed_over) or table_hint(scan.passed_over)}; "
            f"expected: {root / below}/CLASS/image.png; images whose class is not known are for "
            "`halfmeg predict`"
        )
    passed_over = summarize_passed_over(scan.passed_over)
    return (
        f"{root / below} has no images in folders of classes{table_hint(scan.passed_over)}; "
        f"{passed_over or 'all are empty'}; "
        f"known endings: {COMMON_ENDINGS} and others"
    )
