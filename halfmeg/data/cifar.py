"""CIFAR-10 in its official forms: found, or downloaded, checked, and read without pickles.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.decode import Progress
from halfmeg.data.source import load_cached

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer",
    "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """One official form of the data: its archive, and the folder and files it unpacks to."""

    archive: str
    md5: str
    folder: str
    train_files: tuple[str, ...]
    test_file: str


BINARY = Form(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test_batch.bin",
)
PYTHON = Form(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py",
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test_batch",
)

MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
)
"""Where the binary archive is asked for, in this order; `HALFMEG_CIFAR10_URL` replaces them."""

TIMEOUT_SECONDS = 30
RECORD_BYTES = 1 + 3 * 32 * 32
LARGEST_FILE_BYTES = 64 * 2**20
"""An official file has 31 MB; no larger member is read into memory."""


ReadFile = Callable[[str], bytes]


def load_cifar10(data_dir: Path, image_size: int, progress: Progress) -> DataSplits:
    """Load CIFAR-10 from a folder, after downloading it there if it is missing.

    Raises:
        ValueError: it is neither there nor to be had, or it is damaged.
    """
    if image_size != 32:
        raise ValueError(f"image_size={image_size} does not fit cifar10; allowed: 32")
    found = _find(data_dir)
    if found is None:
        _download_from_mirrors(data_dir, progress)
        found = _find(data_dir)
        assert found is not None, "the archive was just put there"
    form, path = found
    read_file = _archive_reader(path) if path.is_file() else _folder_reader(path)
    return load_cached(
        "cifar10", _content_key(form, path), lambda: _parse(form, read_file, progress)
    )


def _parse(form: Form, read_file: ReadFile, progress: Progress) -> DataSplits:
    parse_file = _parse_binary if form is BINARY else _parse_python
    files = [*form.train_files, form.test_file]
    parsed = []
    for index, name in enumerate(files):
        parsed.append(parse_file(read_file(name), name))
        progress("reading CIFAR-10", index + 1, len(files))
    images, labels = zip(*parsed, strict=True)
    train = Dataset(torch.cat(images[:-1]), torch.cat(labels[:-1]), CLASSES)
    test = Dataset(images[-1], labels[-1], CLASSES)
    return build_splits("cifar10", train, test)


def _find(data_dir: Path) -> tuple[Form, Path] | None:
    """Find an unpacked folder or an archive, binary form first.

    Raises:
        ValueError: an archive whose md5 is wrong.
    """
    for form in (BINARY, PYTHON):
        # The folder itself may have been named, as --data-dir data/cifar-10-batches-bin.
        for folder in (data_dir / form.folder, data_dir):
            if all((folder / name).is_file() for name in (*form.train_files, form.test_file)):
                return form, folder
    for form in (BINARY, PYTHON):
        archive = data_dir / form.archive
        if archive.is_file():
            found = _hash_file(archive, "md5")
            if found != form.md5:
                raise ValueError(
                    f"{archive} is damaged: its md5 is {found}, expected {form.md5}; remove it"
                )
            return form, archive
    return None


def _content_key(form: Form, path: Path) -> str:
    if path.is_file():
        return f"cifar10-{form.md5}"  # checked just before
    files = [path / name for name in (*form.train_files, form.test_file)]
    hashes = "".join(_hash_file(file, "sha256") for file in files)
    return hashlib.sha256(hashes.encode()).hexdigest()[:32]


def _folder_reader(folder: Path) -> ReadFile:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error.strerror}") from None

    return read


def _archive_reader(path: Path) -> ReadFile:
    """Read members straight into memory: nothing is unpacked, so no member can leave a folder."""
    contents: dict[str, bytes] = {}

    def read(name: str) -> bytes:
        if not contents:
            contents.update(_read_archive(path))
        if name not in contents:
            raise ValueError(f"{path} has no {name}; remove it")
        return contents[name]

    return read


def _read_archive(path: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and member.size <= LARGEST_FILE_BYTES:
                    contents[Path(member.name).name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; remove it") from None
    return contents


def _parse_binary(content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if not content or len(content) % RECORD_BYTES:
        raise ValueError(
            f"{name} is damaged: {len(content)} bytes are no whole number of "
            f"{RECORD_BYTES}-byte records"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    return _to_tensors(records[:, 1:], records[:, 0], name)


def _parse_python(content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        batch = _NumpyUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8)
        labels = np.asarray(batch[b"labels"], dtype=np.int64)
        pixels = pixels.reshape(len(labels), 3 * 32 * 32)
    except Exception as error:  # what a damaged pickle raises depends on where the damage is
        raise ValueError(f"{name} is damaged or no CIFAR-10 batch: {error}") from None
    return _to_tensors(pixels, labels, name)


def _to_tensors(
    pixels: np.ndarray, labels: np.ndarray, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if labels.max(initial=0) >= len(CLASSES) or labels.min(initial=0) < 0:
        raise ValueError(f"{name} is damaged: it has labels outside 0 to 9")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(labels.astype(np.int64))


class _NumpyUnpickler(pickle.Unpickler):
    """Admits what the official batches need, arrays of plain numbers, and nothing else."""

    ADMITTED = frozenset(
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in ((f"{package}.multiarray", "_reconstruct"),)
    ) | {("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise ValueError(f"it asks for {module}.{name}, which is not admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _download_from_mirrors(data_dir: Path, progress: Progress) -> None:
    override = os.environ.get("HALFMEG_CIFAR10_URL")
    mirrors = (override,) if override else MIRRORS
    target = data_dir / BINARY.archive
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {data_dir}: {error.strerror}") from None
    failures = []
    for url in mirrors:
        try:
            download(url, target, BINARY.md5, progress)
            return
        except (ValueError, OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
    raise ValueError(
        f"CIFAR-10 could not be downloaded ({'; '.join(failures)}); put {BINARY.archive} into "
        f"{data_dir}, name another folder with --data-dir, or use --data digits"
    )


def download(url: str, target: Path, md5: str, progress: Progress) -> None:
    """Download a file; a part left by an earlier try is continued.

    The part stands beside the target as `NAME.part` and takes its name once the md5 is right.

    Raises:
        ValueError: the body ended early (the part is kept), or the md5 is wrong (it is removed).
        OSError, http.client.HTTPException: the server does not answer or refuses.
    """
    part = target.with_name(target.name + ".part")
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "halfmeg"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ValueError(f"the server answered {error.code} {error.reason}") from None
        response = None  # the part is complete, or longer than the file: the md5 will tell
    if response is not None:
        with response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                offset = 0  # the server sends the whole file again
            _write_body(response, part, offset, progress)
    found = _hash_file(part, "md5")
    if found != md5:
        part.unlink()
        raise ValueError(f"the md5 of what came is {found}, expected {md5}")
    part.replace(target)


def _write_body(
    response: http.client.HTTPResponse, part: Path, offset: int, progress: Progress
) -> None:
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else 0
    done = offset
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        while chunk := response.read(1 << 16):
            file.write(chunk)
            done += len(chunk)
            progress("downloading CIFAR-10", done, total)
        file.truncate()
    if total and done < total:
        raise ValueError(f"the connection ended after {done:,} of {total:,} bytes")


def _hash_file(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
