"""Small files that would take all memory, and values that no reader is made for."""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_cifar import Python2Pickler

from halfmeg.data.batches import read_batch, read_names
from halfmeg.data.decode import decode_image
from halfmeg.data.load import load_dataset
from halfmeg.data.unpack import FREE_BYTES, MAX_MEMBER_BYTES


@contextlib.contextmanager
def python_memory_below(most: float) -> Iterator[None]:
    """Count what Python's own objects take at once, in bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most


def png(width: int, height: int, before: bytes = b"") -> bytes:
    """Return a PNG that says how large it is, and ends there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + before + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def ico(icon: bytes) -> bytes:
    """Return an ICO file whose list says 16×16 pixels, whatever the icon is."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(icon), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + icon


def webp(side: int) -> bytes:
    """Return a small animation on a canvas of another size."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    first.save(buffer, "WEBP", save_all=True, append_images=[second])
    content = bytearray(buffer.getvalue())
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ico(png(13_000, 13_000)), "an icon of 13000×13000 pixels; allowed: 4,000,000 in all"),
        (ico(png(9, 9, b"\0\0\0\0tEXt\0\0\0\0")), "does not begin with its size"),
        (ico(struct.pack("<Iii", 40, 5_000, -9_000)), "an icon of 5000×9000 pixels"),
        (ico(struct.pack("<IHH", 12, 9_000, 900)), "an icon of 9000×900 pixels"),
        (ico(b""), "."),
        (ico(b"")[:9], "."),
        (webp(7_999), "7999×7999 pixels; allowed: 32,000,000 in all"),
    ],
    ids=["large png", "no header", "large bmp", "large old bmp", "empty", "cut", "webp"],
)
def test_sizes_that_stand_deeper_in_a_file(content: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        decode_image(content, 32)


def test_icons_are_still_read() -> None:
    for bits in ("bmp", "png"):
        buffer = io.BytesIO()
        Image.new("RGBA", (48, 48), "red").save(buffer, "ICO", bitmap_format=bits)
        assert decode_image(buffer.getvalue(), 32).size == (48, 48)


def write_npz(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape in (("images", (300_000, 32, 32)), ("labels", (300_000,))):
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(shape[0] // 10_000):
                    file.write(bytes(10_000 * int(np.prod(shape[1:]))))
    return path


def write_idx(path: Path) -> Path:
    path.mkdir()
    with gzip.open(path / "train-images-idx3-ubyte.gz", "wb", 1) as file:
        for _ in range(FREE_BYTES // 2**24 + 1):
            file.write(bytes(2**24))
    (path / "train-labels-idx1-ubyte").write_bytes(b"")
    return path


def write_large_array(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on disk
    np.save(path.with_name(f"{path.stem}_labels.npy"), np.zeros(3, np.uint8))
    return path


def write_tar(path: Path, kind: bytes, size: int) -> Path:
    """A member of a few bytes that says it is large."""
    header = bytearray(tarfile.TarInfo("train.bin").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = kind
    number = b"%011o\0" % size
    if kind == tarfile.GNUTYPE_SPARSE:
        header[386:410] = b"%011o\0" % 0 * 2
        header[483:495] = number
    else:
        header[124:136] = number
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    return path


@pytest.mark.parametrize(
    ("write", "name", "told"),
    [
        (write_npz, "x.npz", "unpacks to more than 268,435,456 bytes"),
        (write_idx, "mnist", "unpacks to more than 268,435,456 bytes"),
        (write_large_array, "x.npy", "x.npy is larger than 2,147,483,648 bytes"),
        (lambda p: write_tar(p, b"S", 2**30), "cifar-100-binary.tar.gz", "has no train.bin"),
        (lambda p: write_tar(p, b"x", 2**30), "cifar-100-binary.tgz", "cannot be unpacked"),
    ],
)  # fmt: skip
def test_arrays_that_unpack_to_much(tmp_path: Path, write: Any, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_dataset(str(write(tmp_path / name)))


def test_an_archive_of_another_kind_is_one_line(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(bytes(4096)))
    content[len(content) // 2] ^= 255
    (tmp_path / "cifar-100-binary.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"cifar-100-binary.tar cannot be unpacked"):
        load_dataset(str(tmp_path / "cifar-100-binary.tar"))


@pytest.mark.parametrize("content", [b"", b"abcde", b"\0\0\x08\x03\0\0\0"])
def test_a_short_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is damaged"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.csv", "x.parquet", "cifar-100-binary.tar"])
def test_a_pipe_as_a_source_does_not_block(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is neither a file nor a folder; expected: "):
        load_dataset(str(tmp_path / name))


def test_a_table_of_many_columns_is_read_by_those_that_are_used(tmp_path: Path) -> None:
    names = ",".join(f"c{index}" for index in range(5_000))
    for index in range(12):
        Image.new("RGB", (9, 9), (20 * index, 0, 0)).save(tmp_path / f"{index}.png")
    rows = [f"{index % 12}.png,{index % 2}\n" for index in range(1_000)]  # 5 million cells
    (tmp_path / "t.csv").write_text(f"path,label,{names}\n" + "".join(rows))
    with python_memory_below(100e6):
        data = load_dataset(str(tmp_path / "t.csv"), image_size=8)
    assert len(data.train) + len(data.test) == 1_000


def test_a_name_that_no_file_can_have_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\n" + "a" * 5_000 + ",0\n")
    with pytest.raises(ValueError, match=r"t.csv line 2: .* does not exist"):
        load_dataset(str(tmp_path / "t.csv"))


def pictures() -> list[bytes]:
    found = []
    for index in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (20 * index, 0, 0)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def write_table(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path, compression="zstd")
    return str(path)


@pytest.mark.parametrize("column", ["label", "split"])
def test_texts_that_a_table_repeats_stand_in_memory_once(tmp_path: Path, column: str) -> None:
    """600 rows of texts of a megabyte, which a dictionary of Parquet stores twice."""
    texts = pa.array([letter * 2**20 for letter in "ab"])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 300, pa.int32()), texts)
    columns = {"image": pictures() * 50, "label": [0, 1] * 300, column: repeated}
    path = write_table(tmp_path / "x.parquet", **columns)
    with python_memory_below(100e6):
        data = load_dataset(path, image_size=8)
    assert len(data.train) + len(data.test) == 600


@pytest.mark.slow
def test_a_table_that_holds_much_more_than_its_size(tmp_path: Path) -> None:
    rows = 500_000
    many = write_table(
        tmp_path / "rows.parquet", image=pa.nulls(rows, pa.binary()), label=np.zeros(rows, np.int64)
    )
    images = pa.array([bytes(100 * 2**20)] * 3)
    path = tmp_path / "plain.parquet"
    table = pa.table({"image": images, "label": [0, 1, 0]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    for source in (many, str(path)):
        with pytest.raises(ValueError, match="holds much more than its size"):
            load_dataset(source)


@pytest.mark.parametrize("column", ["label", "split"])
@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**30] * 4, pa.date32()),
        pa.Array.from_buffers(pa.string(), 4, pa.array([b"\xff"] * 4).buffers()),
    ],
)
def test_values_that_python_cannot_hold(tmp_path: Path, column: str, values: Any) -> None:
    columns = {"image": pictures()[:4], "label": [0, 1, 0, 1], column: values}
    path = write_table(tmp_path / "x.parquet", **columns)
    with pytest.raises(ValueError, match=r"x.parquet cannot be read as Parquet of images"):
        load_dataset(path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5_000, "../../../../dev/zero"])
def test_paths_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    images = [{"bytes": None, "path": name}] * 4
    path = write_table(tmp_path / "x.parquet", image=images, label=[0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"x.parquet"):
        load_dataset(path)


def test_damaged_metadata_of_a_table_ends_no_process(tmp_path: Path) -> None:
    """Of 500 such files pyarrow ends the process at two, where a chunk's metadata is asked for."""
    parts = ["train"] * 8 + ["test"] * 4
    path = Path(write_table(tmp_path / "x.parquet", img=pictures(), label=[0, 1] * 6, which=parts))
    data = load_dataset(str(path), image_size=8)
    assert (len(data.train), len(data.test)) == (8, 4)
    code = (
        "import sys\nfrom halfmeg.data.options import DataOptions\n"
        "import halfmeg.data.parquet as p, pyarrow.parquet as pq\n"
        "from halfmeg.data.parquet_files import find_parquet\n"
        "def no(*_): raise AssertionError('the metadata of a chunk is asked for')\n"
        "class Group:\n"
        "    def __init__(self, inner): self.total_byte_size = inner.total_byte_size\n"
        "    column = no\n"
        "class Meta:\n"
        "    def __init__(self, inner): self.inner = inner\n"
        "    num_rows = property(lambda self: self.inner.num_rows)\n"
        "    num_row_groups = property(lambda self: self.inner.num_row_groups)\n"
        "    def row_group(self, index): return Group(self.inner.row_group(index))\n"
        "inner = pq.ParquetFile.metadata.fget\n"
        "pq.ParquetFile.metadata = property(lambda self: Meta(inner(self)))\n"
        "pq.read_metadata = no\n"
        "source = p.read_parquet(find_parquet(p.Path(sys.argv[1])), DataOptions())\n"
        "print(sorted(source.parts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "['test', 'train']\n", done.stderr


def long_text(count: int) -> bytes:
    """Return a pickle's beginning: a text so long, in the memo under 0."""
    return b"\x80\x02T" + struct.pack("<i", count) + b"x" * count + b"q\0"


DTYPE = b"cnumpy\ndtype\nq\1"
PICKLES = {
    "lists": (b"\x80\x02" + b"]" * 2_000_000 + b".", "more than 1,000,000 operations"),
    "marks": (b"\x80\x02" + b"(" * 2_000_000 + b".", "more than 1,000,000 operations"),
    "places in the memo": (b"\x80\x02]" + b"\x94" * 2_000_000 + b".", "more than 1,000,000"),
    "sets": (b"\x80\x04" + b"\x8f" * 2_000_000 + b".", r"operation b'\\x8f', which is not"),
    "floats": (b"\x80\x02F" + b"x" * 2_000_000 + b"\n.", "operation b'F', which is not admitted"),
    "bytes as arguments": (DTYPE + long_text(10_000_000) + b"R.", "else than a tuple"),
    "bytes for an object": (DTYPE + long_text(10_000_000) + b"\x81.", r"operation b'\\x81'"),
    "a long name of a dtype": (
        long_text(2_000_000) + DTYPE + b"h\1h\0\x85R" * 100 + b".", "not subscriptable",
    ),
    "tuples in tuples as a key": (
        b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns.", "has a key that is no text",
    ),
    "the same among others": (
        b"\x80\x02}(U\1aN)" + b"\x85" * 500_000 + b"Nu.", "has a key that is no text",
    ),
}  # fmt: skip


SLOW_PICKLES = ("lists", "marks", "places in the memo")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param(*pickle, id=name, marks=[pytest.mark.slow] if name in SLOW_PICKLES else [])
        for name, pickle in PICKLES.items()
    ],
)
def test_a_pickle_takes_memory_as_its_size(content: bytes, told: str) -> None:
    """Python's objects are as large for a byte as for a kilobyte of a file."""
    with python_memory_below(160e6), pytest.raises(ValueError, match=told):
        read_batch(content, "train", "fine_labels")


def test_a_name_that_a_pickle_repeats_is_not_copied() -> None:
    content = long_text(1_000_000) + b"}U\x10fine_label_names](" + b"h\0" * 400 + b"es."
    with python_memory_below(20e6), pytest.raises(ValueError, match="longer than the file"):
        read_names(content, "meta", "fine_label_names")


def test_a_pickle_of_cifar100s_length_is_read() -> None:
    count = 50_000
    whole = {
        b"filenames": [b"train_s_%06d.png" % index for index in range(count)],
        b"batch_label": b"training batch 1 of 1",
        b"fine_labels": [index % 100 for index in range(count)],
        b"coarse_labels": [index % 20 for index in range(count)],
    }
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(whole)
    names = read_names(buffer.getvalue(), "train", "filenames")
    assert names[-1] == "train_s_049999.png"
    assert len(names) == count


def test_a_file_of_cifar100_larger_than_the_real_ones_is_not_read(tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / name).write_bytes(b"\x80\x02}.")
    os.truncate(tmp_path / "train", MAX_MEMBER_BYTES + 1)
    with (
        python_memory_below(MAX_MEMBER_BYTES + 10e6),
        pytest.raises(ValueError, match=r"train is larger than 201,326,592 bytes"),
    ):
        load_dataset(str(tmp_path))
