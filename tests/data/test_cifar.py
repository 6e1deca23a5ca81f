"""CIFAR-10's official forms, made small, and the download against a local server."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import inspect_data
from PIL import Image

from halfmeg.data import cifar
from halfmeg.data.load import load_dataset
from halfmeg.data.options import DataOptions

PER_FILE = 20


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels 20×3072 and labels 20, two of each class."""
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8), np.arange(PER_FILE) % 10


def binary_files() -> dict[str, bytes]:
    files = {}
    for index, name in enumerate(cifar.BINARY.files):
        pixels, labels = batch(index)
        files[name] = np.hstack([labels[:, None].astype(np.uint8), pixels]).tobytes()
    return files


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes byte strings as Python 2 did, which wrote the official files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python_files() -> dict[str, bytes]:
    files = {}
    for index, name in enumerate(cifar.PYTHON.files):
        pixels, labels = batch(index)
        buffer = io.BytesIO()
        Python2Pickler(buffer, protocol=2).dump({b"data": pixels, b"labels": labels.tolist()})
        files[name] = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return files


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def take_for_official(
    monkeypatch: pytest.MonkeyPatch, kind: str, files: dict[str, bytes], packed: bytes = b""
) -> cifar.Form:
    """Let the checksums of other content stand in for the published ones."""
    form = getattr(cifar, kind)
    md5s = {name: hashlib.md5(files[name]).hexdigest() for name in form.files if name in files}
    form = dataclasses.replace(form, md5=hashlib.md5(packed).hexdigest(), files=form.files | md5s)
    monkeypatch.setattr(cifar, kind, form)
    return form


@pytest.fixture
def small_archive(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A small binary archive whose checksums stand in for the official ones."""
    content = archive("cifar-10-batches-bin", binary_files())
    take_for_official(monkeypatch, "BINARY", binary_files(), content)
    return content


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def check_pixels(data) -> None:
    assert data.classes == cifar.CLASSES
    assert (len(data.train), len(data.test)) == (5 * PER_FILE, PER_FILE)
    for index in range(5):
        pixels, labels = batch(index)
        part = slice(index * PER_FILE, (index + 1) * PER_FILE)
        assert np.array_equal(data.train.images[part].flatten(1), pixels)
        assert np.array_equal(data.train.labels[part], labels)
    assert np.array_equal(data.test.images.flatten(1), batch(5)[0])


def test_official_checksums() -> None:
    assert cifar.BINARY.md5 == "c32a1d4ab5d03f1284b67883e8d87530"
    assert cifar.PYTHON.md5 == "c58f30108f718f92721af3b95e74349a"
    assert list(cifar.BINARY.files)[-1] == "test_batch.bin"
    assert len({*cifar.BINARY.files.values(), *cifar.PYTHON.files.values()}) == 12
    assert cifar.MIRRORS[0] == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@pytest.mark.parametrize("inside", [True, False], ids=["parent named", "folder named"])
@pytest.mark.parametrize("kind", ["BINARY", "PYTHON"])
def test_an_unpacked_folder(tmp_path: Path, monkeypatch, kind: str, inside: bool) -> None:
    files = binary_files() if kind == "BINARY" else python_files()
    form = take_for_official(monkeypatch, kind, files)
    folder = unpack(tmp_path / form.folder, files)
    check_pixels(load_dataset("cifar10", data_dir=tmp_path if inside else folder))


def test_archives_of_both_forms_give_the_same_data(tmp_path, monkeypatch, small_archive) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / cifar.BINARY.archive).write_bytes(small_archive)
    check_pixels(load_dataset("cifar10", data_dir=tmp_path / "b"))
    content = archive("cifar-10-batches-py", python_files())
    form = take_for_official(monkeypatch, "PYTHON", python_files(), content)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / form.archive).write_bytes(content)
    check_pixels(load_dataset("cifar10", data_dir=tmp_path / "p"))
    assert os.listdir(tmp_path / "p") == [form.archive]  # nothing was unpacked


def test_the_same_pixels_have_one_fingerprint_in_every_container(tmp_path, monkeypatch) -> None:
    binary, python = binary_files(), python_files()
    found = {}
    for kind, files in (("BINARY", binary), ("PYTHON", python)):
        form = take_for_official(monkeypatch, kind, files, content := archive("any", files))
        unpack(tmp_path / kind / form.folder, files)
        found[kind] = load_dataset("cifar10", data_dir=tmp_path / kind).fingerprint
        folder = unpack(tmp_path / f"{kind} archive", {form.archive: content})
        found[f"{kind} archive"] = load_dataset("cifar10", data_dir=folder).fingerprint
    batches = [batch(index) for index in range(6)]
    for part, these in (("train", batches[:5]), ("test", batches[5:])):
        write_parquet(tmp_path / "parquet" / f"{part}-00000-of-00001.parquet", these)
    found["Parquet"] = load_dataset(str(tmp_path / "parquet")).fingerprint
    assert len(set(found.values())) == 1, found


def test_the_official_form_comes_before_a_parquet_copy(tmp_path, monkeypatch) -> None:
    for part, number in (("train", 3), ("test", 5)):
        write_parquet(tmp_path / "cifar10" / f"{part}-00000-of-00001.parquet", [batch(number)])
    form = take_for_official(monkeypatch, "BINARY", binary_files())
    unpack(tmp_path / form.folder, binary_files())
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


def test_tables_of_another_name_are_not_taken_for_it(tmp_path, monkeypatch) -> None:
    for part, number in (("train", 0), ("test", 5)):
        write_parquet(tmp_path / "cinic10" / f"{part}-00000-of-00001.parquet", [batch(number)])
    monkeypatch.setenv("HALFMEG_CIFAR10_URL", "http://127.0.0.1:9/none")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_a_parquet_copy_of_other_pixels_is_said(tmp_path, monkeypatch) -> None:
    for part, number in (("train", 0), ("test", 5)):
        write_parquet(tmp_path / "cifar10" / f"{part}-00000-of-00001.parquet", [batch(number)])
    copy = load_dataset("cifar10", data_dir=tmp_path)
    assert f"fingerprint {copy.fingerprint}, not {cifar.FINGERPRINT}" in copy.notes[0]
    gray = load_dataset("cifar10", data_dir=tmp_path, options=DataOptions(channels=1))
    assert gray.notes[0].endswith("brought to another shape, and so are unchecked")
    assert inspect_data("cifar10", data_dir=tmp_path).notes[0] == copy.notes[0]
    monkeypatch.setattr("halfmeg.data.load.FINGERPRINT", copy.fingerprint)
    assert not load_dataset("cifar10", data_dir=tmp_path).notes


def write_parquet(path: Path, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write images as lossless WebP, as the Hugging Face hub lays them out."""
    images = []
    for pixels in np.concatenate([pixels for pixels, _ in batches]):
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0))
        picture.save(buffer, "webp", lossless=True)
        images.append({"bytes": buffer.getvalue(), "path": None})
    labels = np.concatenate([labels for _, labels in batches])
    features = {"label": {"names": list(cifar.CLASSES), "_type": "ClassLabel"}}
    table = pa.table({"img": images, "label": labels}).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_a_group_that_a_parquet_copy_lacks_is_refused(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "test")):
        write_parquet(tmp_path / f"{part}-00000-of-00001.parquet", [batch(number)])
    with pytest.raises(ValueError, match="group='person' matches no path and is no column"):
        load_dataset("cifar10", data_dir=tmp_path, options=DataOptions(group="person"))


def test_other_tables_beside_the_official_archive_are_passed_over(tmp_path, monkeypatch) -> None:
    for number, part in enumerate(("train", "test")):
        pq.write_table(pa.table({"age": [number]}), tmp_path / f"{part}.parquet")
    form = take_for_official(monkeypatch, "BINARY", binary_files())
    unpack(tmp_path / form.folder, binary_files())
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


@pytest.mark.slow
def test_the_original_pixels_are_the_official_archives(cifar_original, tmp_path) -> None:
    """The batches made of the Parquet copy have the published md5 sums, which opening checks."""
    data = load_dataset(str(cifar_original))
    parts = [*zip(data.train.images.split(10_000), data.train.labels.split(10_000), strict=True)]
    parts.append((data.test.images, data.test.labels))
    folder = tmp_path / cifar.BINARY.folder
    folder.mkdir()
    for name, (images, labels) in zip(cifar.BINARY.files, parts, strict=True):
        rows = torch.cat([labels[:, None].to(torch.uint8), images.flatten(1)], 1)
        (folder / name).write_bytes(rows.numpy().tobytes())
    official = load_dataset("cifar10", data_dir=tmp_path)
    assert official.fingerprint == data.fingerprint == cifar.FINGERPRINT


def test_a_damaged_archive_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / cifar.BINARY.archive
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"is damaged: its md5 is .* remove it"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert path.exists()


def test_archive_members_never_leave_the_folder(tmp_path, monkeypatch) -> None:
    files = {**binary_files(), "../../escaped.bin": b"outside", "/absolute.bin": b"outside"}
    content = archive("cifar-10-batches-bin", files)
    form = take_for_official(monkeypatch, "BINARY", files, content)
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    (folder / form.archive).write_bytes(content)
    check_pixels(load_dataset("cifar10", data_dir=folder))
    assert not list(tmp_path.rglob("escaped.bin"))
    assert os.listdir(folder) == [form.archive]


def test_a_batch_of_another_checksum_is_never_parsed(tmp_path: Path, monkeypatch) -> None:
    form = take_for_official(monkeypatch, "PYTHON", python_files())
    folder = unpack(tmp_path / form.folder, python_files())
    monkeypatch.setattr(cifar, "_parse_python", lambda content, name: pytest.fail("parsed"))
    (folder / "data_batch_3").write_bytes(python_files()["data_batch_4"])
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged: its md5 is .* remove it"):
        load_dataset("cifar10", data_dir=tmp_path)


class Reduced:
    """Writes any call with any state into a pickle."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


ADDRESS = (0x41414141414).to_bytes(8, "little")
FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
BYTES = np.dtype("u1")
HOSTILE = {
    "code": Reduced(os.system, ("touch attacked",)),
    "objects from addresses": Reduced(np.ndarray, ((3072,), "O", ADDRESS * 3072)),
    "a field of objects": Reduced(
        np.ndarray, ((3072,), Reduced(np.dtype, ("V8",), FIELDS), ADDRESS * 3072)
    ),
    "objects": np.array([None] * 3072),
    "wide numbers": np.zeros((1, 3072), np.int64),
    "too few pixels": np.zeros((1, 3071), np.uint8),
    "columns first": np.asfortranarray(np.zeros((2, 1536), np.uint8)),
    "a dtype": BYTES,
    "a list": [0] * 3072,
    "huge": Reduced(np.ndarray, ((2**40,), "u1", b"")),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_pickle_that_means_harm_is_refused(tmp_path, monkeypatch, data: object) -> None:
    """Even where its checksum is taken for the official one."""
    monkeypatch.chdir(tmp_path)
    files = python_files() | {"data_batch_3": pickle.dumps({b"data": data, b"labels": [0]}, 3)}
    form = take_for_official(monkeypatch, "PYTHON", files)
    unpack(tmp_path / form.folder, files)
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("labels", [[10], [-1], [2**70], ["a"], [[0]], 3, None, {}])
def test_labels_that_are_none(tmp_path, monkeypatch, labels: object) -> None:
    pixels = np.zeros((1, 3072), np.uint8)
    files = python_files() | {"test_batch": pickle.dumps({b"data": pixels, b"labels": labels}, 2)}
    form = take_for_official(monkeypatch, "PYTHON", files)
    unpack(tmp_path / form.folder, files)
    with pytest.raises(ValueError, match=r"test_batch is damaged"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0" * 3000, "no whole number of 3073-byte records"),
        (b"", "no whole number"),
        (b"\x0b" + b"\0" * 3072, "labels outside 0 to 9"),
    ],
)
def test_a_damaged_binary_file_is_named(tmp_path, monkeypatch, content, message) -> None:
    files = binary_files() | {"data_batch_2.bin": content}
    form = take_for_official(monkeypatch, "BINARY", files)
    unpack(tmp_path / form.folder, files)
    with pytest.raises(ValueError, match=rf"data_batch_2.bin.*{message}"):
        load_dataset("cifar10", data_dir=tmp_path)


# --- the download -----------------------------------------------------------------------------


class Server:
    """A local web server with scripted answers: one for each request, the last one repeated."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.script: list[str] = ["serve"]
        self.ranges: list[str | None] = []
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                action = server.script.pop(0) if len(server.script) > 1 else server.script[0]
                server.ranges.append(self.headers.get("Range"))
                if action in ("drip", "drip a length", "send on"):
                    parts = repeat(b"x")  # of the extension of a chunk's length
                    if action == "drip a length":
                        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"
                        self.wfile.write(chunked)
                    else:
                        self.send_response(302 if action == "send on" else 200)
                        self.send_header("Location", self.path)
                        self.end_headers()
                        content = server.content
                        parts = (content[i : i + 1] for i in range(len(content)))
                    if action == "send on":
                        parts = repeat(bytes(2**16))
                    with contextlib.suppress(OSError):
                        for sent in parts:
                            self.wfile.write(sent)
                            if server.over.wait(0.02):
                                break
                    return
                if action == "fail":
                    self.send_error(503)
                    return
                body, start = server.content, 0
                if action == "wrong":
                    body = b"x" * len(body)
                asked = self.headers.get("Range")
                if asked and action != "no ranges":
                    start = int(asked.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_error(416)
                        return
                    self.send_response(206)
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                half = len(body) // 2 if action == "truncate" else len(body)
                self.wfile.write(body[start:half])

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-binary.tar.gz"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(small_archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(small_archive)
    monkeypatch.delenv("HALFMEG_CIFAR10_URL", raising=False)
    monkeypatch.setattr(cifar, "MIRRORS", (server.url,))
    yield server
    server.close()


def test_a_download_with_progress(tmp_path: Path, server: Server) -> None:
    seen: list[tuple[str, int, int]] = []
    data = load_dataset("cifar10", data_dir=tmp_path / "new", progress=lambda *a: seen.append(a))
    check_pixels(data)
    size = len(server.content)
    assert ("downloading CIFAR-10", size, size) in seen
    assert os.listdir(tmp_path / "new") == [cifar.BINARY.archive]
    load_dataset("cifar10", data_dir=tmp_path / "new")
    assert len(server.ranges) == 1  # the second call found it


def test_a_failing_mirror_gives_way_to_the_next(tmp_path, server, monkeypatch) -> None:
    dead = "http://127.0.0.1:9/none"
    monkeypatch.setattr(cifar, "MIRRORS", (dead, server.url, server.url))
    server.script = ["fail", "serve"]
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))
    assert len(server.ranges) == 2


@pytest.mark.slow
def test_a_mirror_that_hardly_sends_gives_way_to_the_next(tmp_path, server, monkeypatch) -> None:
    monkeypatch.setattr(cifar, "MIRRORS", (server.url, server.url))
    monkeypatch.setattr("halfmeg.data.pace.PATIENCE_SECONDS", 4.0)  # the next one takes less
    server.script = ["drip", "serve"]
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))
    monkeypatch.setattr("halfmeg.data.pace.PATIENCE_SECONDS", 0.5)
    server.script = ["drip", "drip a length"]
    with pytest.raises(ValueError, match="it sends less than 10,000 bytes a second"):
        load_dataset("cifar10", data_dir=tmp_path / "other")


def test_a_redirect_is_followed_without_its_body(tmp_path: Path, server: Server) -> None:
    server.script = ["send on", "serve"]
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


def test_the_environment_overrides_the_mirrors(tmp_path, server, monkeypatch) -> None:
    monkeypatch.setattr(cifar, "MIRRORS", ("http://127.0.0.1:9/none",))
    monkeypatch.setenv("HALFMEG_CIFAR10_URL", server.url)
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


def test_a_truncated_download_is_continued(tmp_path: Path, server: Server) -> None:
    server.script = ["truncate", "serve"]
    with pytest.raises(ValueError, match=r"ended after [\d,]+ of [\d,]+ bytes"):
        load_dataset("cifar10", data_dir=tmp_path)
    part = tmp_path / (cifar.BINARY.archive + ".part")
    assert part.stat().st_size == len(server.content) // 2
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))
    assert server.ranges == [None, f"bytes={len(server.content) // 2}-"]
    assert not part.exists()


def test_a_server_without_ranges_starts_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / (cifar.BINARY.archive + ".part")).write_bytes(b"some other beginning")
    server.script = ["no ranges"]
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


def test_a_complete_part_is_used(tmp_path: Path, server: Server) -> None:
    (tmp_path / (cifar.BINARY.archive + ".part")).write_bytes(server.content)
    check_pixels(load_dataset("cifar10", data_dir=tmp_path))


def test_a_wrong_checksum_is_never_used(tmp_path: Path, server: Server) -> None:
    server.script = ["wrong"]
    with pytest.raises(ValueError, match="the md5 of what came is"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_offline_names_file_folder_and_digits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HALFMEG_CIFAR10_URL", "http://127.0.0.1:9/none")
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        load_dataset("cifar10", data_dir=tmp_path / "here")
    message = str(caught.value)
    assert "cifar-10-binary.tar.gz" in message
    assert str(tmp_path / "here") in message
    assert "--data digits" in message


def test_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size=64 does not fit cifar10"):
        load_dataset("cifar10", data_dir=tmp_path, image_size=64)


def test_labels_are_int64(tmp_path: Path, server: Server) -> None:
    data = load_dataset("cifar10", data_dir=tmp_path)
    assert data.train.labels.dtype == torch.int64
