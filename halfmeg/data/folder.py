"""Folders of images: `train/CLASS/*.png` and `test/CLASS/*.png`, or one folder of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

from halfmeg.data.decode import EncodedImage
from halfmeg.data.parts import find_parts, part_of
from halfmeg.data.scan import PassedOver, Scan, scan_folder, summarize_passed_over
from halfmeg.data.source import EncodedSource

COMMON_ENDINGS = ".bmp, .gif, .jpeg, .jpg, .png, .ppm, .tif, .tiff, .webp"


def read_folder(path: Path, group_of: Callable[[str], str]) -> EncodedSource:
    """List the images of a folder by class; the classes are its sub-folders, in sorted order.

    Sub-folders may be parts instead (`halfmeg.data.parts`), each with a folder for each class.
    Names that differ in their Unicode form alone are one class. A folder without anything that
    could be an image is none.

    Args:
        path: the folder.
        group_of: gives what keeps an image, known by its path, together with others.

    Raises:
        ValueError: no classes or no images, or a class that the training part does not have.
    """
    scan = scan_folder(path)
    if not (scan.images or scan.passed_over or scan.folders):
        raise ValueError(f"{path} is an empty folder; expected: one folder of images per class")
    folders = _find_part_folders(scan, path)
    by_part = {part: _by_class(scan.images, folder) for part, folder in folders.items()}
    first = next(iter(folders))
    classes = tuple(sorted(by_part[first].keys() | _unreadable_classes(scan, folders[first])))
    if not classes:
        raise ValueError(_no_classes(path / folders[first], scan))
    inner = {image.parts[1] for image in scan.images if len(image.parts) > 2}
    if len(classes) == 1 and "all" in folders and find_parts(inner, str(path)):
        raise ValueError(f"{path} has one folder, which holds parts; name {path / classes[0]}")
    label_of = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[EncodedImage]] = {}
    for part, images in by_part.items():
        if unknown := sorted(images.keys() - label_of.keys()):
            raise ValueError(
                f"{path} has {part} images of a class without training images: {unknown[0]}; "
                f"allowed: {', '.join(classes)}"
            )
        parts[part] = [
            EncodedImage(str(image), path / image, label_of[name], group_of(str(image)))
            for name in classes
            for image in images.get(name, ())
        ]
        if not parts[part]:
            raise ValueError(_no_images(path / folders[part], scan))
    used = {image.name for images in parts.values() for image in images}
    astray = [
        PassedOver(str(image), "in no folder of a class")
        for image in scan.images
        if str(image) not in used
    ]
    return EncodedSource(parts, classes, (*scan.passed_over, *astray))


def _find_part_folders(scan: Scan, path: Path) -> dict[str, Path]:
    tops = {image.parts[0] for image in scan.images if len(image.parts) > 1}
    tops |= {
        folder.name for folder in scan.folders if len(folder.parts) == 1 and part_of(str(folder))
    }
    named = find_parts(tops, str(path))
    if named is None:
        return {"all": Path()}
    return {part: Path(name) for part, name in named.items()}


def _by_class(images: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Return the images that lie in a folder of a class below `folder`, by class, sorted."""
    classes: dict[str, list[Path]] = {}
    depth = len(folder.parts)
    for image in images:
        if len(image.parts) > depth + 1 and image.is_relative_to(folder):
            classes.setdefault(_class_name(image.parts[depth]), []).append(image)
    return classes


def _class_name(folder: str) -> str:
    return unicodedata.normalize("NFC", folder)  # "é" is one letter on Linux, two on a Mac


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


def _no_classes(folder: Path, scan: Scan) -> str:
    if any(len(found.parts) == 1 for found in scan.folders):
        return _no_images(folder, scan)
    return (
        f"{folder} has no sub-folders{_tables(scan)}; expected: one folder of images for each "
        f"class, as in {folder}/train/CLASS/image.png"
    )


def _tables(scan: Scan) -> str:
    tables = [item.path for item in scan.passed_over if item.path.endswith(".csv")]
    return f" (to take classes from {tables[0]}, name that file)" if tables else ""


def _no_images(folder: Path, scan: Scan) -> str:
    passed_over = summarize_passed_over(scan.passed_over)
    return (
        f"{folder} has no images in folders of classes; {passed_over or 'all are empty'}; "
        f"known endings: {COMMON_ENDINGS} and others"
    )
