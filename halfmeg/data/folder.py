"""Folders of images: `train/CLASS/*.png` and `test/CLASS/*.png`, or one folder of classes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from halfmeg.data.decode import EncodedImage
from halfmeg.data.source import EncodedSource

TEST_NAMES = ("test", "val", "validation")


def read_folder(path: Path) -> EncodedSource:
    """List the images of a folder by class; the classes are its sub-folders, in sorted order.

    Files whose ending is none of an image are left out, and so is what begins with a dot.

    Raises:
        ValueError: no classes or no images, or a class that the training part does not have.
    """
    test_name = next((name for name in TEST_NAMES if (path / name).is_dir()), None)
    if (path / "train").is_dir() and test_name is not None:
        folders = {"train": path / "train", "test": path / test_name}
    else:
        folders = {"all": path}
    names = {part: _class_folders(folder) for part, folder in folders.items()}
    first = next(iter(names))
    classes = tuple(names[first])
    if not classes:
        raise ValueError(
            f"{folders[first]} has no sub-folders; expected: one folder of images for each class, "
            f"as in {path}/train/CLASS/image.png"
        )
    unknown = [name for part in names.values() for name in part if name not in classes]
    if unknown:
        raise ValueError(f"{path} has test images of a class without training images: {unknown[0]}")
    parts = {part: _list_images(folder, classes, path) for part, folder in folders.items()}
    for part, images in parts.items():
        if not images:
            raise ValueError(
                f"{folders[part]} has no images; known endings: "
                + ", ".join(sorted({*COMMON_ENDINGS} & Image.registered_extensions().keys()))
            )
    return EncodedSource(parts, classes)


COMMON_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def _class_folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _list_images(folder: Path, classes: tuple[str, ...], root: Path) -> list[EncodedImage]:
    endings = Image.registered_extensions().keys()
    return [
        EncodedImage(str(file.relative_to(root)), file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() in endings
    ]
