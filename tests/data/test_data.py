from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Cli, inspect_data
from PIL import Image

from halfmeg.data.cache import list_cache
from halfmeg.data.dataset import Dataset, channel_statistics, fingerprint
from halfmeg.data.decode import decode_image
from halfmeg.data.load import load_dataset
from halfmeg.data.split import stratified_split


def picture(seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, counts: dict[str, int], **options) -> Path:
    """Write `counts[class]` different PNG files for each `part/class` or `class`."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed += 1
            picture(seed, **options).save(root / name / f"{index}.png")
    return root


# --- the parts of a data set ------------------------------------------------------------------


def test_digits_are_split_by_class(digits) -> None:
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.images.shape[1:] == (3, 32, 32)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.classes == tuple("0123456789")
    assert digits.test.labels.bincount().min() >= 34
    assert load_dataset("digits").fingerprint == digits.fingerprint


def test_a_stratified_split_keeps_shares_and_loses_nothing() -> None:
    labels = torch.tensor([0] * 100 + [1] * 50 + [2] * 10)
    first, second = stratified_split(labels, 0.2, seed=3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(160))
    assert labels[second].bincount().tolist() == [20, 10, 2]
    assert torch.equal(second, stratified_split(labels, 0.2, seed=3)[1])
    assert not torch.equal(second, stratified_split(labels, 0.2, seed=4)[1])
    assert len(stratified_split(labels, 0, seed=3)[1]) == 0


def test_small_classes_are_held_out_without_a_message() -> None:
    labels = torch.arange(220).repeat_interleave(9)  # a tenth is fewer images than classes
    first, second = stratified_split(labels, 0.1, seed=0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(220 * 9))
    assert labels[second].bincount().tolist() == [1] * 220
    first, second = stratified_split(torch.tensor([0] * 10 + [1]), 0.2, seed=0)
    assert 10 in first.tolist() and len(second) == 2
    with pytest.raises(ValueError, match=r"val_fraction=0\.1 cannot hold out.* set val_fraction=0"):
        stratified_split(torch.arange(5), 0.1, seed=0)


def test_statistics_equal_numpy() -> None:
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.numpy() / 255
    assert np.allclose(mean, scaled.mean((0, 2, 3)))
    assert np.allclose(std, scaled.std((0, 2, 3)))


def test_a_channel_without_contrast_is_not_divided_by_zero() -> None:
    _, std = channel_statistics(torch.full((2, 3, 4, 4), 7, dtype=torch.uint8))
    assert std == (1.0, 1.0, 1.0)


def test_the_fingerprint_sees_each_pixel_label_and_name() -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    prints = {fingerprint(Dataset(images, labels, ("a", "b")))}
    prints.add(fingerprint(Dataset(images, labels, ("a", "c"))))
    prints.add(fingerprint(Dataset(images, labels.flip(0), ("a", "b"))))
    changed = images.clone()
    changed[1, 2, 3, 3] = 1
    prints.add(fingerprint(Dataset(changed, labels, ("a", "b"))))
    assert len(prints) == 4


# --- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "YCbCr"])
@pytest.mark.parametrize("size", [(32, 32), (40, 64), (200, 30), (5, 2)])
def test_any_mode_and_size_becomes_rgb(mode: str, size: tuple[int, int]) -> None:
    image = picture(size=size, mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    # Compressed, since Pillow 12.3 does not read the uncompressed YCbCr files that it writes.
    as_tiff = {"kind": "TIFF", "compression": "tiff_lzw"}
    content = encoded(image, **as_tiff) if mode in ("CMYK", "YCbCr") else encoded(image)
    pixels, own_size, _ = decode_image(content, 32)
    assert own_size == size
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 1


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = picture()
    assert np.array_equal(decode_image(encoded(image), 32)[0], np.asarray(image).transpose(2, 0, 1))


def test_sixteen_bit_gray_is_scaled() -> None:
    deep = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert np.all(decode_image(encoded(deep), 8)[0] == 128)


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.all(decode_image(encoded(clear), 8)[0] == 255)


def test_exif_orientation_is_honoured() -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = decode_image(encoded(image, "PNG", exif=exif), 8).pixels
    assert pixels[0, 0, 0] == 0
    assert pixels[0, 7, 0] == 255


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, I am a text", encoded(picture())[:300], encoded(picture(), "JPEG")[:400]],
    ids=["empty", "text", "cut PNG", "cut JPEG"],
)
def test_what_is_no_image_is_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(content, 32)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_a_side_of_one_pixel_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="allowed: sides of 2 and more"):
        decode_image(encoded(picture(size=size)), 32)


# --- Parquet ----------------------------------------------------------------------------------


def write_parquet(path: Path, labels: list[int], column: str = "img", names=None) -> Path:
    images = [{"bytes": encoded(picture(i + 1000 * abs(label))), "path": None}
              for i, label in enumerate(labels)]  # fmt: skip
    table = pa.table({column: images, "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.mark.slow
def test_real_cifar_jpeg(cifar_jpeg: Path) -> None:
    data = load_dataset(str(cifar_jpeg))
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.classes[3] == "cat"
    row = pq.read_table(next(cifar_jpeg.glob("test*"))).slice(4321, 1).to_pylist()[0]
    expected = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
    assert np.array_equal(data.test.images[4321].permute(1, 2, 0), expected)
    assert int(data.test.labels[4321]) == row["label"]
    started = time.perf_counter()
    again = load_dataset(str(cifar_jpeg))
    assert time.perf_counter() - started < 5
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_the_hubs_layout(tmp_path: Path, column: str, held_out: str) -> None:
    folder = tmp_path / "data" if column == "image" else tmp_path
    write_parquet(folder / "train-00000-of-00002.parquet", [0, 1] * 5, column, ["cat", "dog"])
    write_parquet(folder / "train-00001-of-00002.parquet", [1] * 3, column, ["cat", "dog"])
    write_parquet(folder / f"{held_out}-00000-of-00001.parquet", [0, 1], column, ["cat", "dog"])
    data = load_dataset(str(tmp_path))
    assert (len(data.train), len(data.test), data.classes) == (13, 2, ("cat", "dog"))


def test_one_file_without_names_is_split(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "all.parquet", [0, 1, 2] * 10)
    data = load_dataset(str(path))
    assert (len(data.train) + len(data.test), data.classes) == (30, ("0", "1", "2"))
    assert data.train.labels.bincount().min() > 0
    assert data.test.labels.bincount().min() > 0


def test_parquet_mistakes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="columns text, label; expected: img or image"):
        load_dataset(str(tmp_path / "text.parquet"))
    pq.write_table(pa.table({"img": ["a"], "label": [0]}), tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="row 0: img has no bytes, but the path 'a'"):
        load_dataset(str(tmp_path / "plain.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_dataset(str(tmp_path / "broken.parquet"))
    path = write_parquet(tmp_path / "more.parquet", [0, 1, 2], names=["a", "b"])
    with pytest.raises(ValueError, match="label 2 has no name"):
        load_dataset(str(path))
    path = write_parquet(tmp_path / "negative.parquet", [0, -1])
    with pytest.raises(ValueError, match="row 1: label -1"):
        load_dataset(str(path))


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_with_train_and_test(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/b": 3, "train/a": 4, "test/a": 2, "test/b": 1}, size=(50, 40))
    (tmp_path / "train" / "a" / "notes.txt").write_text("left out")
    data = load_dataset(str(tmp_path), image_size=24)
    assert (len(data.train), len(data.test), data.classes) == (7, 3, ("a", "b"))
    assert data.image_size == 24
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3


def test_a_folder_of_classes_is_split_by_content(tmp_path: Path) -> None:
    make_folder(tmp_path, {"cats": 200, "dogs": 100}, size=(8, 8))
    data = load_dataset(str(tmp_path))
    assert (data.train.labels.bincount() + data.test.labels.bincount()).tolist() == [200, 100]
    assert 0.12 < len(data.test) / 300 < 0.28
    assert torch.equal(load_dataset(str(tmp_path)).test.images, data.test.images)


def test_the_cache_follows_the_content(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "images", {"a": 6, "b": 6})
    first = load_dataset(str(folder))
    calls: list[str] = []
    load_dataset(str(folder), progress=lambda what, done, total: calls.append(what))
    assert not calls  # nothing was decoded again
    moved = folder.rename(tmp_path / "moved")
    load_dataset(str(moved), progress=lambda what, done, total: calls.append(what))
    assert not calls
    picture(99).save(moved / "a" / "0.png")
    changed = load_dataset(str(moved), progress=lambda what, done, total: calls.append(what))
    assert calls
    assert changed.fingerprint != first.fingerprint
    assert not list((tmp_path / "cache").glob(".partial-*"))


def test_the_cache_counts_the_images_of_all_parts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    parts = {"train/a": 4, "train/b": 4, "val/a": 3, "val/b": 3, "test/a": 2, "test/b": 2}
    load_dataset(str(make_folder(tmp_path / "images", parts)))
    assert [entry.num_images for entry in list_cache()] == [18]


def test_cached_images_are_memory_mapped(tmp_path: Path) -> None:
    data = load_dataset(str(make_folder(tmp_path, {"a": 6, "b": 6})))
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list memory maps")
    address = data.train.images.data_ptr()
    spans = [line.split() for line in maps.read_text().splitlines() if "train_images" in line]
    ranges = [[int(part, 16) for part in span[0].split("-")] for span in spans]
    assert any(low <= address < high for low, high in ranges)


def test_a_damaged_cache_is_made_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    folder = make_folder(tmp_path / "images", {"a": 6, "b": 6})
    first = load_dataset(str(folder)).fingerprint
    for name, content in (("train_images.npy", b"cut"), ("info.json", b"{}")):
        (path,) = (tmp_path / "cache").rglob(name)
        path.write_bytes(content)
        assert load_dataset(str(folder)).fingerprint == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "file" / "cache"))
    data = load_dataset(str(make_folder(tmp_path / "i", {"a": 5, "b": 5})))
    assert len(data.train) + len(data.test) == 10


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "is an empty folder"),
        ({"a": 5}, "has one class, 'a'"),
        ({"a": 0, "b": 0}, "has no images"),
        ({"train/a": 2, "train/b": 2, "test/c": 1}, "without training images: c"),
        ({"train/a": 2, "train/b": 2, "test/a": 0}, "has no images"),
    ],
)
def test_folder_mistakes(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(str(make_folder(tmp_path, counts)))


def test_images_without_class_folders(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="one folder of images for each class"):
        load_dataset(str(tmp_path))


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'digit' does not exist; did you mean 'digits'"):
        load_dataset("digit")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="is a file; expected"):
        load_dataset(str(tmp_path / "notes.txt"))
    for source in ("photographs", str(tmp_path / "notes.txt")):
        with pytest.raises(ValueError, match=r"IDX files, CIFAR-100.*\.csv, \.tsv, \.npz or \.npy"):
            load_dataset(source)
    with pytest.raises(ValueError, match="image_size=4"):
        load_dataset("digits", image_size=4)


def test_links_in_a_circle_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(tmp_path / "images")
    (tmp_path / "images").symlink_to(tmp_path / "photos")
    for read in (load_dataset, inspect_data):
        with pytest.raises(ValueError, match="photos' does not exist; "):
            read(str(tmp_path / "photos"))


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, {"a": 5, "b": 5})
    (folder / "a" / "text.png").write_text("no image")
    picture(size=(1, 1)).save(folder / "b" / "dot.png")
    with pytest.raises(ValueError, match=r"2 unreadable image\(s\): a/text.png: .*b/dot.png: 1×1"):
        load_dataset(str(folder))


def test_an_unreadable_test_part_is_named_and_listed(tmp_path: Path, cli: Cli) -> None:
    folder = make_folder(tmp_path / "p", {"train/a": 4, "train/b": 4})
    for name in "ab":
        (folder / "test" / name).mkdir(parents=True)
        for index in range(2):
            (folder / "test" / name / f"{index}.png").write_text("no image")
    told = r"p has 4 unreadable image\(s\): test/a/0.png: cannot identify .* and 1 more; mend"
    for to_train in (True, False):
        with pytest.raises(ValueError, match=told):
            load_dataset(str(folder), to_train=to_train)
    listed = cli("data", "check", "p", "--html", "page.html")
    assert listed.code == 1
    assert listed.out.count("unreadable: test/") == 4


# --- the check --------------------------------------------------------------------------------


def test_a_clean_source_has_no_problems(digits) -> None:
    report = inspect_data("digits")
    assert report.problems == ()
    assert (report.train, report.test, report.fingerprint) == (1437, 360, digits.fingerprint)


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path, {"train/a": 30, "train/b": 2, "train/c": 5, "test/a": 3, "test/b": 1}
    )
    (folder / "test" / "c").mkdir()
    (folder / "train" / "a" / "bad.png").write_text("no image")
    (folder / "test" / "a" / "copy.png").write_bytes(
        (folder / "train" / "a" / "7.png").read_bytes()
    )
    report = inspect_data(str(folder))
    text = "\n".join(report.problems)
    assert "unreadable: train/a/bad.png" in text
    assert "class 'b' has 2 training images, the largest 30" in text
    assert "class 'c' has no test images" in text
    assert "1 test image(s) stand in the training part too" in text
    assert len(report.problems) == 4
    assert report.classes["a"] == {"train": 30, "test": 4}


def test_the_check_tells_the_images_own_sizes(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": 5, "b": 5}, size=(40, 50))
    picture(77, size=(20, 30)).save(tmp_path / "a" / "small.png")
    report = inspect_data(str(tmp_path))
    assert (report.smallest, report.largest, report.image_size) == ((20, 30), (40, 50), 32)


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"no readable images; the first: a/x\.png"):
        inspect_data(str(tmp_path))
