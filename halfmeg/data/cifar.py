"""CIFAR-10 in its official forms: found, or downloaded, checked, and read without pickles.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from halfmeg.data.batches import read_batch, read_records
from halfmeg.data.cache import load_cached
from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.data.decode import Progress
from halfmeg.data.pace import Pace, TooSlowError
from halfmeg.data.shape import RGB, ImageShape
from halfmeg.data.trivial import to_gray
from halfmeg.data.unpack import read_members
from halfmeg.files import make_folder, read_limited

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
    files: dict[str, str]
    """The md5 of each batch, as published; the last one holds the test images."""


BINARY = Form(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
)
PYTHON = Form(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py",
    {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)

MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
)
"""Where the binary archive is asked for, in this order; `HALFMEG_CIFAR10_URL` replaces them."""

FINGERPRINT = "976c321e2b2723f8"
"""Of the data set as published: its pixels in colours, labels and class names."""

TIMEOUT_SECONDS = 30
LABEL_BYTES = 1
LARGEST_FILE_BYTES = 64 * 2**20
"""An official file has 31 MB; no larger one is read into memory."""


def load_cifar10(data_dir: Path, shape: ImageShape, progress: Progress) -> DataSplits:
    """Load CIFAR-10 from a folder, after downloading it there if it is missing.

    Raises:
        ValueError: it is neither there nor to be had, or it is damaged.
    """
    if shape.size != 32:
        raise ValueError(f"image_size={shape.written} does not fit cifar10; allowed: 32")
    found = find_official(data_dir)
    if found is None:
        _download_from_mirrors(data_dir, progress)
        found = find_official(data_dir)
        assert found is not None, "the archive was just put there"
    form, path = found
    if path.is_dir():
        for name, md5 in form.files.items():
            _check_md5(path / name, _hash_file(path / name), md5)

    def build() -> DataSplits:
        batches = read_members(path, form.files) if path.is_file() else _read_folder(path, form)
        return _parse(form, batches, progress)

    # The checksums just found stand for the content.
    key = hashlib.sha256(" ".join(form.files.values()).encode()).hexdigest()[:32]
    splits = load_cached("cifar10", f"cifar10-{key}", build)
    return splits if shape.channels == RGB else _to_gray(splits)


def _to_gray(splits: DataSplits) -> DataSplits:
    """Return the images with one channel, as Pillow makes it of other sources."""

    def convert(dataset: Dataset) -> Dataset:
        return replace(dataset, images=to_gray(dataset.images).to(torch.uint8))

    return build_splits(splits.name, convert(splits.train), convert(splits.test))


def _parse(form: Form, batches: dict[str, bytes], progress: Progress) -> DataSplits:
    """Parse batches of the right checksum into the training and the test part."""
    parse = _parse_binary if form is BINARY else _parse_python
    parsed = []
    for index, (name, md5) in enumerate(form.files.items()):
        content = batches[name]
        _check_md5(name, hashlib.md5(content, usedforsecurity=False).hexdigest(), md5)
        parsed.append(parse(content, name))
        progress("reading CIFAR-10", index + 1, len(form.files))
    images, labels = zip(*parsed, strict=True)
    train = Dataset(torch.cat(images[:-1]), torch.cat(labels[:-1]), CLASSES)
    test = Dataset(images[-1], labels[-1], CLASSES)
    return build_splits("cifar10", train, test)


def find_official(data_dir: Path) -> tuple[Form, Path] | None:
    """Find an unpacked folder or an archive, binary form first; None where neither is there.

    Raises:
        ValueError: an archive whose md5 is wrong.
    """
    for form in (BINARY, PYTHON):
        # The folder itself may have been named, as --data-dir data/cifar-10-batches-bin.
        for folder in (data_dir / form.folder, data_dir):
            if all((folder / name).is_file() for name in form.files):
                return form, folder
    for form in (BINARY, PYTHON):
        archive = data_dir / form.archive
        if archive.is_file():
            _check_md5(archive, _hash_file(archive), form.md5)
            return form, archive
    return None


def _check_md5(what: Path | str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{what} is damaged: its md5 is {found}, expected {expected}; remove it")


def _read_folder(folder: Path, form: Form) -> dict[str, bytes]:
    contents = {}
    for name in form.files:
        try:
            contents[name] = read_limited(folder / name, LARGEST_FILE_BYTES)
        except OSError as error:
            raise ValueError(f"{folder / name} cannot be read: {error.strerror}") from None
    return contents


def _parse_binary(content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return _to_tensors(*read_records(content, name, LABEL_BYTES), name)


def _parse_python(content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return _to_tensors(*read_batch(content, name, "labels"), name)


def _to_tensors(
    pixels: np.ndarray, labels: np.ndarray, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if labels.max(initial=0) >= len(CLASSES) or labels.min(initial=0) < 0:
        raise ValueError(f"{name} is damaged: it has labels outside 0 to 9")
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.from_numpy(labels.astype(np.int64))


def _download_from_mirrors(data_dir: Path, progress: Progress) -> None:
    override = os.environ.get("HALFMEG_CIFAR10_URL")
    mirrors = (override,) if override else MIRRORS
    target = data_dir / BINARY.archive
    try:
        make_folder(data_dir)
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
        ValueError: the body ended early or comes too slowly (the part is kept), or the md5 is
            wrong (it is removed).
        OSError, http.client.HTTPException: the server does not answer or refuses.
    """
    part = target.with_name(target.name + ".part")
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "halfmeg"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    opener, pace = urllib.request.build_opener(_Redirects), Pace()
    try:
        response = pace.wait(lambda: opener.open(request, timeout=TIMEOUT_SECONDS))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise ValueError(f"the server answered {error.code} {error.reason}") from None
        response = None  # the part is complete, or longer than the file: the md5 will tell
    if response is not None:
        with response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                offset = 0  # the server sends the whole file again
            try:
                _write_body(response, part, offset, pace, progress)
            except TooSlowError:
                _hang_up(response)
                raise
    found = _hash_file(part)
    if found != md5:
        part.unlink()
        raise ValueError(f"the md5 of what came is {found}, expected {md5}")
    part.replace(target)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Leaves the body of a redirect unread, which may be of any size."""

    def http_error_302(self, request, answer, *rest):  # type: ignore[no-untyped-def]
        answer.close()
        return super().http_error_302(request, answer, *rest)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _hang_up(response: http.client.HTTPResponse) -> None:
    """End a connection that a thread still reads; closing it would wait for that thread."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(response.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


def _write_body(
    response: http.client.HTTPResponse, part: Path, offset: int, pace: Pace, progress: Progress
) -> None:
    length = response.headers.get("Content-Length")
    total = offset + int(length) if length else 0
    done = offset
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        # What is there: `read` would wait for all of it.
        while chunk := pace.wait(lambda: response.read1(1 << 16)):
            pace.add(len(chunk))
            file.write(chunk)
            done += len(chunk)
            progress("downloading CIFAR-10", done, total)
        file.truncate()
    if total and done < total:
        raise ValueError(f"the connection ended after {done:,} of {total:,} bytes")


def _hash_file(path: Path) -> str:
    """Return the md5 of a file, as its publisher states it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
