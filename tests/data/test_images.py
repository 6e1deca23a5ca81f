"""Images as people have them: nothing silently dropped, leaked, swapped or guessed.

Each test is named after its case in docs/data.md.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Cli, inspect_data
from PIL import Image, ImageOps

from halfmeg.artifacts.bundle import BUNDLED
from halfmeg.artifacts.run import Run
from halfmeg.data.decode import CHUNK, EncodedImage, decode_image, decode_images
from halfmeg.data.duplicates import near_duplicates
from halfmeg.data.load import load_dataset
from halfmeg.data.options import DataOptions
from halfmeg.data.scan import scan_folder
from halfmeg.data.shape import image_shape
from halfmeg.data.split import hold_out, split_by_content

QUICK = ("model=cnn", "epochs=1", "batch_size=64")


def picture(seed: int, side: int = 32) -> Image.Image:
    """Clouds of colour, different for each seed, alike in nothing."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make(root: Path, counts: dict[str, int], start: int = 0, name: str = "{}.png") -> Path:
    """Write pictures into folders; no two of them are the same."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            start += 1
            picture(start).save(root / folder / name.format(index), "PNG")
    return root


def table(path: Path, labels: list, names=None, start: int = 0, **columns) -> Path:
    """Write a Parquet file as the hub lays it out."""
    images = [{"bytes": encoded(picture(start + i)), "path": None} for i in range(len(labels))]
    content = pa.table({"img": images, "label": labels} | columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names}}}}
        content = content.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)
    return path


# --- A: wrong without a word --------------------------------------------------------------------


def test_a_growing_folder_moves_no_image(tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", {"a": 40, "b": 40, "c": 40})
    before = load_dataset(str(folder))
    make(folder, {"a": 10, "b": 10, "c": 10}, start=1000, name="0-{}.png")
    (folder / "a" / "7.png").rename(folder / "a" / "zz.png")
    after = load_dataset(str(folder))
    assert len(after.train) + len(after.test) == 150
    assert np.isin(before.train.ids, after.train.ids).all()
    assert np.isin(before.test.ids, after.test.ids).all()


def test_a_split_by_content_gives_each_class_both_parts() -> None:
    labels = torch.arange(50).repeat_interleave(3)
    keys = [os.urandom(8) for _ in labels]
    train, test = split_by_content(labels, keys, 0.2)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(150))
    assert labels[train].bincount().min() >= 1
    assert labels[test].bincount(minlength=50).min() >= 1


def test_a_group_of_two_classes_is_not_taken_from_the_one_that_keeps_it() -> None:
    keys = [int(place * 2**64).to_bytes(8, "big") for place in (0.1, 0.3, 0.3, 0.5)]
    train, test = split_by_content(torch.tensor([0, 0, 1, 1]), keys, 0.2)
    assert (train.tolist(), test.tolist()) == ([1, 2, 3], [0])


def test_a_run_knows_its_images_and_evaluate_leaves_them_out(cli: Cli, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", {"a": 20, "b": 20})
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "run").code == 0
    run = Run.open(tmp_path / "run")
    result = run.result()
    data = load_dataset(str(folder))
    held_out = np.frombuffer((run.folder / "held_out.u64").read_bytes(), "<u8")
    assert set(held_out) == set(data.test.ids)
    trained_on = run.trained_on()
    assert trained_on is not None and set(trained_on) == set(data.train.ids)

    same = cli("evaluate", "run", "--data", "photos", "--json")
    assert same.json["accuracy"] == result["test_accuracy"]
    assert same.json["left_out"] == 0

    shutil.copytree(folder, tmp_path / "grown")
    make(tmp_path / "grown", {"a": 5, "b": 5}, start=1000, name="new-{}.png")
    grown = cli("evaluate", "run", "--data", "grown", "--json")
    assert grown.json["n"] == len(data.test) + 10
    assert grown.json["left_out"] == len(data.train)
    assert "images were trained or validated on, and are left out" in grown.err

    only = tmp_path / "only"
    for index, pixels in enumerate(data.train.images[:6]):
        target = only / data.classes[int(data.train.labels[index])] / f"{index}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(target)
    assert cli("evaluate", "run", "--data", "only").is_one_line("all 6 images of only were trained")


def test_a_run_leaves_out_images_that_came_later(cli: Cli, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", {"train/b": 20, "train/c": 20, "test/b": 6, "test/c": 6})
    settings = ("common", *QUICK[::2], "epochs=2", "keep_checkpoints=0", "--data", "photos")
    assert cli("train", *settings, "--out", "run").code == 0
    run = Run.open(tmp_path / "run")
    before = run.result()
    assert before is not None
    make(folder, {"train/a": 5, "train/c": 5, "test/b": 5}, start=1000, name="0-{}.png")

    (run.folder / "result.json").unlink()  # as if it had been stopped after an epoch
    run.checkpoints()[-1].unlink()
    resumed = cli("resume", "run")
    assert "15 image(s) of photos came after run; left out" in resumed.err
    after = Run.open(run.folder).result()
    assert after is not None
    assert after["test_loss"] == before["test_loss"]
    assert cli("export", "run", "--out", "bundle", "--allow-loss").code == 0


def test_data_that_a_run_is_not_of_is_told_with_a_remedy(cli: Cli, tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", {"a": 20, "b": 20})
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "run").code == 0
    (folder / "a" / "0.png").rename(folder / "a" / "zz.png")
    for line in (("resume", "run"), ("export", "run", "--out", "bundle")):
        renamed = cli(*line)
        assert renamed.is_one_line(
            "run was trained on other data than photos", "some are renamed", "with --data"
        )
    (folder / "a" / "zz.png").unlink()
    gone = cli("resume", "run")
    assert gone.is_one_line("1 of its 40 images are gone; name its own with --data, or train anew")


@pytest.mark.parametrize(
    ("train", "other"),
    [("train", "valid"), ("Train", "Test"), ("training", "testing"), ("train", "dev")],
)
def test_other_names_of_parts(tmp_path: Path, train: str, other: str) -> None:
    make(tmp_path, {f"{train}/cat": 4, f"{train}/dog": 3, f"{other}/cat": 2, f"{other}/dog": 1})
    data = load_dataset(str(tmp_path))
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 7, 3)
    table(tmp_path / "tables" / f"{train}-00000-of-00001.parquet", [0, 1] * 4)
    table(tmp_path / "tables" / f"{other}-00000-of-00001.parquet", [0, 1], start=100)
    data = load_dataset(str(tmp_path / "tables"))
    assert (len(data.train), len(data.test)) == (8, 2)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, {"train": 8, "bus": 8, "tram": 8})
    assert load_dataset(str(tmp_path)).classes == ("bus", "train", "tram")


def test_two_names_for_one_part_are_told(tmp_path: Path) -> None:
    make(tmp_path, {"train/a": 2, "val/a": 2, "valid/a": 2})
    with pytest.raises(ValueError, match="'val' and 'valid', two names for one part"):
        load_dataset(str(tmp_path))


def test_validation_beside_train_and_test_is_the_users(tmp_path: Path, cli: Cli) -> None:
    parts = {"train": 12, "validation": 5, "test": 3}
    make(tmp_path / "photos", {f"{p}/{c}": n for p, n in parts.items() for c in ("a", "b")})
    data = load_dataset(str(tmp_path / "photos"))
    again = load_dataset(str(tmp_path / "photos"))  # from the cache
    for loaded in (data, again):
        assert loaded.validation is not None
        assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (24, 10, 6)
    assert again.fingerprint == data.fingerprint
    indices, val = hold_out(data, 0.1, seed=3)
    assert len(indices) == 24 and torch.equal(val.images, data.validation.images)
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "run").code == 0
    result = Run.open(tmp_path / "run").result()
    assert (result["val_n"], result["test_n"]) == (10, 6)
    report = cli("data", "check", "photos")
    assert "validation images" in report.out


def test_evaluate_takes_all_of_a_folder_of_classes(cli: Cli, tmp_path: Path) -> None:
    make(tmp_path / "photos", {"a": 15, "b": 15})
    make(tmp_path / "new", {"a": 7, "b": 6}, start=500)
    make(tmp_path / "onlytest", {"test/b": 4, "test/a": 3}, start=700)
    make(tmp_path / "one", {"b": 4}, start=800)
    make(tmp_path / "strange", {"a": 2, "z": 4}, start=900)
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "run").code == 0
    for name, count in (("new", 13), ("onlytest", 7), ("one", 4)):
        assert cli("evaluate", "run", "--data", name, "--json").json["n"] == count
    assert cli("evaluate", "run", "--data", "strange").is_one_line(
        "4 image(s) are of the class 'z'"
    )
    assert cli("train", "common", "--data", "onlytest").is_one_line("has no training images")


def test_parquet_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [0, 1, 2] * 4, ["cat", "dog", "frog"])
    table(tmp_path / "test.parquet", [0, 0, 1, 2], ["frog", "dog", "cat"], start=100)
    data = load_dataset(str(tmp_path))
    assert [data.classes[label] for label in data.test.labels] == ["frog", "frog", "dog", "cat"]


def test_class_names_in_one_part_only_are_said(tmp_path: Path) -> None:
    table(tmp_path / "train.parquet", [0, 1] * 4)
    table(tmp_path / "test.parquet", [0, 1], ["cat", "dog"], start=100)
    data = load_dataset(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.notes == ("train.parquet has no class names; those of test.parquet are used",)


def test_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    composed, parted = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    make(tmp_path, {f"train/{composed}": 3, "train/bar": 3, f"test/{parted}": 2, "test/bar": 1})
    data = load_dataset(str(tmp_path))
    assert data.classes == ("bar", composed)
    assert data.test.labels.bincount().tolist() == [1, 2]


def test_every_file_is_used_or_passed_over_with_a_reason(tmp_path: Path, cli: Cli) -> None:
    root = make(tmp_path / "photos", {"cat": 10, "dog": 10})
    extra = {
        "cat/.ipynb_checkpoints/x.png": "hidden",
        "cat/@eaDir/x.png": "in a folder of the system",
        "__MACOSX/cat/._1.png": "in a folder of the system",
        "cat/._1.png": "hidden",
        "annotations/1.xml": "no image format that is read (.xml)",
        "cat/drawing.eps": "no image format that is read (.eps)",
        "cat/README": "without an ending, and no image",
        "loose.png": "in no folder of a class",
    }
    for name in extra:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1).save(root / name) if name.endswith("png") else (root / name).write_text("text")
    picture(99).save(root / "dog" / "without_ending", "PNG")
    (root / "dog" / "gone.png").symlink_to("nowhere.png")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "itself").symlink_to("itself")
    os.mkfifo(root / "dog" / "pipe.png")
    make(tmp_path / "elsewhere", {"bird": 9}, start=500)
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    expected = extra | {
        "dog/gone.png": "broken link",
        "cat/itself": "broken link",
        "cat/loop": "link to a folder above",
        "dog/pipe.png": "not a regular file",
    }
    report = inspect_data(str(root))
    found = {item.path: item.reason for item in report.passed_over}
    folders = {"cat/.ipynb_checkpoints/x.png", "cat/@eaDir/x.png", "__MACOSX/cat/._1.png"}
    for name, reason in expected.items():
        key = next(k for k in found if name.startswith(k)) if name in folders else name
        assert found[key] == reason, name
    assert set(report.classes) == {"bird", "cat", "dog"}
    used = report.train + report.test
    assert used == 30
    assert report.files == used + sum(item.count for item in report.passed_over)
    trained = cli("train", "common", *QUICK, "--data", "photos", "--out", "run")
    assert trained.code == 0
    told = [line for line in trained.err.splitlines() if "passed over" in line]
    assert len(told) == 1 and "12 files passed over: " in told[0]


def test_a_class_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch) -> None:
    from halfmeg.data import formats, scan

    root = make(tmp_path, {"cat": 4, "dog": 4})
    (root / "bird").mkdir()
    for index in range(3):
        (root / "bird" / f"{index}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr(scan, "image_endings", lambda: formats.image_endings() - {".heic"})
    monkeypatch.setattr(scan, "read_formats", lambda: ("PNG",))
    with pytest.raises(ValueError, match=r"class 'bird' .* 3 HEIC needs pillow-heif"):
        load_dataset(str(root))


def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    root = make(tmp_path, {"dog": 4})
    (root / "cat").mkdir()
    for index in range(4):
        picture(100 + index, 64).save(root / "cat" / f"{index}.HEIC", "HEIF")
        (root / "cat" / f"{index}.HEIC").rename(root / "cat" / f"{index}{'.HEIC' * (index > 0)}")
    report = inspect_data(str(root))
    assert report.passed_over == ()
    assert sum(report.classes["cat"].values()) == 4


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", {"cat": 4, "dog": 4, "bird": 4, "fish": 4})
    (root / "bird").chmod(0)
    (root / "fish").chmod(0o444)  # its files have names, and cannot be opened
    if os.getuid() == 0:  # who may open everything, so another user looks
        for folder in (root, *list(root.parents)[:-1]):
            folder.chmod(folder.stat().st_mode | 0o055)
    code = (
        "import os, sys; from halfmeg.data.load import inspect_source\n"
        "inspect_source(sys.argv[1])  # imports all it needs, which another user may not\n"
        "os.getuid() or os.setuid(12345)\n"
        "print(inspect_source(sys.argv[1])[0].passed_over)"
    )
    command = [sys.executable, "-c", code, str(root)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        (root / "bird").chmod(0o755)
        (root / "fish").chmod(0o755)
    assert "'bird', reason='in a folder that cannot be opened (Permission denied)'" in done.stdout
    assert "'fish/0.png', reason='cannot be opened (Permission denied)'" in done.stdout, done.stderr


def test_results_of_halfmeg_are_no_class(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path, {"cat": 10, "dog": 10})
    for out in ("runs/one", "one"):
        assert cli("train", "common", *QUICK, "--data", ".", "--out", out).code == 0
    report = inspect_data(str(tmp_path))
    assert set(report.classes) == {"cat", "dog"}
    assert {i.reason for i in report.passed_over} == {"in a result of halfmeg"}
    assert Run.open(tmp_path / "one").data.fingerprint == report.fingerprint
    assert report.notes == ()

    (tmp_path / "found").mkdir()  # as a search leaves it
    (tmp_path / "found" / "search.json").write_text("{}")
    picture(1).save(tmp_path / "found" / "figure.png")
    (tmp_path / "found" / "trials").mkdir()
    (tmp_path / "sets").mkdir()  # as a comparison on several data sets leaves it
    (tmp_path / "sets" / "ranking.json").write_text("{}")
    picture(2).save(tmp_path / "sets" / "ranks.png")
    assert set(load_dataset(str(tmp_path)).classes) == {"cat", "dog"}


def test_the_same_image_under_two_labels_or_in_two_parts_is_a_problem(tmp_path: Path) -> None:
    root = make(tmp_path, {"train/a": 6, "train/b": 6, "test/a": 3, "test/b": 3})
    shutil.copy(root / "train/a/1.png", root / "train/b/other.png")
    shutil.copy(root / "train/b/2.png", root / "test/b/leak.png")
    problems = "\n".join(inspect_data(str(root)).problems)
    assert "1 image(s) stand under two labels: train/a/1.png = train/b/other.png" in problems
    assert "1 test image(s) stand in the training part too: train/b/2.png" in problems


def test_one_image_in_training_and_validation_is_told_by_its_parts(tmp_path: Path) -> None:
    parts = ("train", "valid", "test")
    root = make(tmp_path, {f"{part}/{c}": 6 for part in parts for c in "ab"})
    for name in ("4", "5"):
        shutil.copy(root / "train" / "a" / f"{name}.png", root / "valid" / "a" / f"{name}.png")
    shutil.copy(root / "valid" / "a" / "0.png", root / "test" / "a" / "0.png")
    told = [line.partition(":")[0] for line in inspect_data(str(root)).problems]
    assert told == [
        "2 validation image(s) stand in the training part too",
        "1 test image(s) stand in the validation part too",
    ]
    (note,) = load_dataset(str(root)).notes
    assert note.startswith("2 validation image(s) have the pixels of a training image; ")


def test_nearly_the_same_image_is_listed(tmp_path: Path, cli: Cli) -> None:
    root = make(tmp_path / "photos", {"train/a": 20, "train/b": 20, "test/a": 5, "test/b": 5})
    image = Image.open(root / "train/a/3.png")
    shifted = ImageOps.expand(image, 1, "gray").crop((0, 1, 32, 33))
    shifted.save(root / "test/a/frame.jpg", quality=80)
    Image.eval(image, lambda v: v * 0.8 + 20).save(root / "train/a/darker.png")
    report = inspect_data(str(root))
    pairs = {(pair.first, pair.second) for pair in report.near_duplicates}
    assert ("train/a/3.png", "test/a/frame.jpg") in pairs
    assert any({"train/a/3.png", "train/a/darker.png"} == set(pair) for pair in pairs)
    assert len(pairs) == 3
    shown = cli("data", "check", "photos")
    assert "near duplicates: 3 pairs, 2 of them across parts" in shown.out


def test_the_page_shows_what_was_found(tmp_path: Path, cli: Cli) -> None:
    root = make(tmp_path / "photos", {"train/<b>a": 8, "train/b": 8, "test/<b>a": 3, "test/b": 3})
    Image.open(root / "train/b/3.png").save(root / "train/<b>a/again.webp", quality=90)
    assert cli("data", "check", "photos", "--html", "out/check.html").code == 0
    page = (tmp_path / "out" / "check.html").read_text()
    assert "train/&lt;b&gt;a/again.webp" in page and "<b>under two labels</b>" in page
    assert "<b>a" not in page and "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") >= 2 + 17 + 16
    wide = make(tmp_path / "wide", {"a": 6, "b": 6})
    picture(99, 40).resize((40, 20)).save(wide / "a" / "wide.png")
    assert cli("data", "check", "wide", "image_size=32x64", "--html", "wide.html").code == 0
    shown = (tmp_path / "wide.html").read_text()
    assert "height × width, are 20×40 to 32×32" in shown and "20×40: 1" in shown
    assert "object-fit: contain" in shown and "validation" not in shown
    again = cli("data", "check", "photos", "--html", "out/check.html")
    assert again.is_one_line("out/check.html exists already and is not overwritten")


def test_what_gives_the_class_away_is_said(tmp_path: Path) -> None:
    for name, ending, side in (("a", "png", 40), ("b", "webp", 50)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(20):
            image = picture(index + 100 * side, side)
            image.save(tmp_path / "photos" / name / f"{index}.{ending}", lossless=True)
    found = inspect_data(str(tmp_path / "photos")).giveaways
    assert [line.split(" alone")[0] for line in found] == ["file endings", "sizes in pixels"]
    assert inspect_data(str(make(tmp_path / "fair", {"a": 20, "b": 20}))).giveaways == ()


def test_near_duplicates_of_flat_and_of_no_images() -> None:
    flat = torch.full((5, 3, 32, 32), 7, dtype=torch.uint8)
    assert near_duplicates([flat]) == ([], True)
    assert near_duplicates([flat[:0]]) == ([], True)


def test_where_too_many_are_alike_it_is_said_that_not_all_were_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "photos", {"a": 20, "b": 20})
    assert not any("not all" in note for note in inspect_data(str(root)).notes)
    monkeypatch.setattr("halfmeg.data.duplicates.MAX_CANDIDATES", -1)
    assert any("not all were compared" in note for note in inspect_data(str(root)).notes)


def test_folders_in_folders_without_end(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", {"a": 20, "b": 20})
    here = os.open(root / "a", os.O_RDONLY)
    try:
        for _ in range(1_100):  # a path of so many is too long to be made at once
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("photo.png", os.O_CREAT, dir_fd=here))
    finally:
        os.close(here)
    try:
        (passed_over,) = inspect_data(str(root)).passed_over
    finally:  # Python's own removal of folders calls itself for each
        subprocess.run(["rm", "-r", str(root / "a" / "d")], check=True)
    assert passed_over.reason == "more than 100 folders deep"
    assert passed_over.count == 1


def test_copies_and_contradictions_are_told(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", {"a": 20, "b": 20})
    assert not any("copies" in note for note in load_dataset(str(root)).notes)
    for path in list((root / "a").iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}-copy"))
    shutil.copy(root / "a" / "0.png", root / "b" / "0-as-b.png")
    data = load_dataset(str(root))
    train, test = len(data.train), len(data.test)
    different = [len(np.unique(part.ids)) for part in (data.train, data.test)]
    assert sum(different) == 40
    assert train + test == 61
    for count, (part, size) in zip(different, (("training", train), ("test", test)), strict=True):
        line = f"of {size} {part} images {count} are different, the others copies"
        assert line in data.notes
        assert line in inspect_data(str(root)).notes
    assert "1 image(s) stand under two labels; `halfmeg data check` names them" in data.notes


def test_copies_give_no_class_away(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "n.npz", images=np.concatenate([noise, noise]), labels=np.arange(60) % 3)
    assert inspect_data(str(tmp_path / "n.npz")).giveaways == ()


def test_a_link_to_the_class_itself_is_passed_over(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", {"a": 10, "b": 10})
    (root / "a" / "again").symlink_to(root / "a")
    report = inspect_data(str(root))
    assert sum(report.classes["a"].values()) == 10
    assert [(item.path, item.reason) for item in report.passed_over] == [
        ("a/again", "link to a folder above")
    ]


def test_copies_stay_on_one_side_of_the_validation_split(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make(root / "train", {"a": 20, "b": 20})
    make(root / "test", {"a": 2, "b": 2}, start=900)
    alone = load_dataset(str(root))
    for file in sorted((root / "train").glob("*/*.png")):
        shutil.copy(file, file.with_name(f"again_{file.name}"))
    data = load_dataset(str(root))
    indices, val = hold_out(data, 0.2, seed=0)
    assert not set(data.train.ids[indices].tolist()) & set(val.ids.tolist())
    assert sorted(val.labels.tolist()) == [0] * 8 + [1] * 8  # each with its copy
    assert set(val.ids.tolist()) == set(hold_out(alone, 0.2, seed=0)[1].ids.tolist())
    # two groups that share a picture are one
    groups = torch.arange(len(data.train)) // 2
    grouped = replace(data, train=replace(data.train, groups=groups))
    indices, val = hold_out(grouped, 0.2, seed=0)
    assert not set(data.train.ids[indices].tolist()) & set(val.ids.tolist())
    assert not set(groups[indices].tolist()) & set(val.groups.tolist())


def test_groups_stay_on_one_side_of_every_split(tmp_path: Path, cli: Cli) -> None:
    root = tmp_path / "people"
    for person in range(12):
        make(root, {"a": 4, "b": 4}, start=100 * person, name=f"p{person}_{{}}.png")
    options = DataOptions(group=r"p\d+")
    data = load_dataset(str(root), options=options)
    again = load_dataset(str(root), options=options)  # from the cache
    for loaded in (data, again):
        assert loaded.train.groups is not None and loaded.test.groups is not None
        assert not set(loaded.train.groups.tolist()) & set(loaded.test.groups.tolist())
        assert len(set(loaded.train.groups.tolist())) + len(set(loaded.test.groups.tolist())) == 12
    indices, val = hold_out(data, 0.2, seed=0)
    assert len(val) and not set(data.train.groups[indices].tolist()) & set(val.groups.tolist())
    assert not data.notes
    with pytest.raises(ValueError, match="group='frame' matches no path and is no column"):
        load_dataset(str(root), options=DataOptions(group="frame"))
    some = load_dataset(str(root), options=DataOptions(group=r"p1\d_"))
    told = "80 of 96 images have no group by group='p1\\\\d_' and stand alone, as a/p0_"
    assert told in " ".join(some.notes)
    checked = cli("data", "check", "people", r"group=p1\d_")
    assert "80 of 96 images have no group" in " ".join((checked.out + checked.err).split())
    with pytest.raises(ValueError, match="no regular expression"):
        DataOptions(group="(")
    trained = cli(
        "train", "common", *QUICK, r"group=p\d+", "--data", "people", "--out", "run", "--json"
    )
    assert trained.code == 0
    run = Run.open(tmp_path / "run")
    assert run.options == options and run.data.fingerprint == data.fingerprint
    assert cli("evaluate", "run", "--json").json["accuracy"] == run.result()["test_accuracy"]


@pytest.mark.slow
def test_a_bundle_is_exported_anew_with_the_split_of_its_run(tmp_path: Path, cli: Cli) -> None:
    """Else what it is proved on would be among what it was trained on."""
    make(tmp_path / "photos", {"train/a": 100, "train/b": 100})
    make(tmp_path / "photos", {"test/a": 10, "test/b": 10}, start=900, name="t{}.png")
    settings = ["model=resnet8", "epochs=1", "batch_size=20", "val_fraction=0.2", "precision=fp32"]
    for words in (
        ["train", "common", *settings, r"group=/(\d)\d*\.png", "--data", "photos", "--out", "run"],
        ["export", "run", "--out", "bundle", "--allow-loss"],
        ["export", "bundle", "--data", "photos", "--finetune", "--out", "anew", "--allow-loss"],
    ):
        done = cli(*words)
        assert done.code == 0, done.err
    first, anew = (
        json.loads((tmp_path / name / "model.json").read_text()) for name in ("bundle", "anew")
    )
    assert first["options"] == {"group": r"/(\d)\d*\.png"}
    for stated in ("options", "temperature", "familiarity"):
        assert first[stated] == anew[stated]


def test_a_bundle_that_does_not_say_how_it_was_trained(tmp_path: Path, cli: Cli) -> None:
    bundle = Path(shutil.copytree(BUNDLED, tmp_path / "bundle"))
    described = json.loads((bundle / "model.json").read_text())
    make(tmp_path / "photos", {"a": 20, "b": 20})
    for missing in ("recipe", "data"):
        left = {key: value for key, value in described.items() if key != missing}
        (bundle / "model.json").write_text(json.dumps(left))
        done = cli("export", "bundle", "--data", "photos", "--finetune", "--out", "anew")
        assert done.is_one_line("bundle/model.json does not say how it was trained: ")


def test_a_column_names_the_groups(tmp_path: Path) -> None:
    persons = [f"p{i // 5}" for i in range(40)]
    path = table(tmp_path / "all.parquet", [0, 1] * 20, person=persons)
    data = load_dataset(str(path), options=DataOptions(group="person"))
    assert len({*data.train.groups.tolist()} | {*data.test.groups.tolist()}) == 8
    assert not {*data.train.groups.tolist()} & {*data.test.groups.tolist()}


def test_a_given_division_that_tears_groups_is_a_problem(tmp_path: Path) -> None:
    root = make(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2, "test/b": 2})
    for part in ("train", "test"):
        (root / part / "a" / "0.png").rename(root / part / "a" / "anna0.png")
    options = DataOptions(group=r"anna|\w/\w/\d+")
    problems = "\n".join(inspect_data(str(root), options=options).problems)
    assert "1 group(s) stand in two parts: train/a/anna0.png and test/a/anna0.png" in problems
    with pytest.raises(ValueError, match=r"1 group\(s\) stand in two parts"):
        load_dataset(str(root), options=options)


def test_ppm_after_a_text_conversion_is_damaged() -> None:
    pixels = np.arange(3 * 64, dtype=np.uint8).reshape(8, 8, 3)
    good = b"P6\n8 8\n255\n" + pixels.tobytes()
    assert np.array_equal(decode_image(good, 8).pixels, pixels.transpose(2, 0, 1))
    assert decode_image(b"P6 # a comment\n8 8\n255\n" + pixels.tobytes() + b"\n", 8).size == (8, 8)
    for bad in (good.replace(b"\n", b"\r\n"), good + b"more than its size"):
        with pytest.raises(ValueError, match="text conversion"):
            decode_image(bad, 8)


def wide_ppm(pixels: np.ndarray, most: int = 65535) -> bytes:
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n%d\n" % (width, height, most) + pixels.astype(">u2").tobytes()


def test_ppm_of_more_than_8_bits_is_scaled() -> None:
    full = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3), dtype=np.uint16)
    expected = np.asarray(decode_image(wide_png(full), 8).pixels)
    assert np.abs(decode_image(wide_ppm(full), 8).pixels - expected.astype(int)).max() <= 1
    twelve = wide_ppm(full // 16, 4095)
    assert np.abs(decode_image(twelve, 8).pixels - expected.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="text conversion"):
        decode_image(twelve + b"more than its size", 8)
    with pytest.raises(ValueError, match="colour of 16 bits that uses 12 or fewer of them"):
        decode_image(wide_ppm(full // 16), 8)
    assert decode_image(wide_ppm(np.full((8, 8, 3), 15), 4095), 8).pixels.max() == 1


@pytest.mark.parametrize(
    ("dtype", "high", "kind"),
    [(np.uint16, 4095, "PNG"), (np.uint16, 65535, "PNG"), (np.int32, 255, "TIFF"),
     (np.int32, 65535, "TIFF"), (np.uint16, 4095, "TIFF")],
)  # fmt: skip
def test_gray_is_scaled_by_the_bits_it_uses(dtype: type, high: int, kind: str, tmp_path) -> None:
    ramp = np.linspace(0, high, 64 * 64).reshape(64, 64).round().astype(dtype)
    image = decode_image(encoded(Image.fromarray(ramp), kind), 64)
    assert (image.pixels.min(), image.pixels.max()) == (0, 255)
    assert len(np.unique(image.pixels)) == 256
    assert bool(image.note) == (high < 65535)


def test_gray_without_a_known_range_is_refused() -> None:
    for low, high in ((-5, 200), (0, 10**6)):
        ramp = np.linspace(low, high, 64).reshape(8, 8).astype(np.int32)
        with pytest.raises(ValueError, match="have no known range"):
            decode_image(encoded(Image.fromarray(ramp), "TIFF"), 8)


def test_twelve_bits_in_sixteen_are_said(tmp_path: Path) -> None:
    root = make(tmp_path, {"a": 5, "b": 5})
    Image.fromarray(np.linspace(0, 4095, 1024).reshape(32, 32).astype(np.uint16)).save(
        root / "a" / "deep.png"
    )
    for _ in range(2):  # decoded, then from the cache
        (note,) = load_dataset(str(root)).notes
        assert note == "1 image(s) hold gray of 12 bits in more, and are scaled so"


def test_fourteen_bits_in_sixteen_are_said() -> None:
    ramp = np.linspace(0, 2**14 - 1, 4096).reshape(64, 64).round().astype(np.uint16)
    image = decode_image(encoded(Image.fromarray(ramp)), 64)
    assert image.note.startswith("use 14 of 16 bits of gray or fewer, and stay as dark; store")
    assert image.pixels.max() == 64


def wide_png(pixels: np.ndarray) -> bytes:
    """A PNG of uint16 H×W×C, which Pillow does not write: gray and alpha, RGB or RGBA."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_twelve_bits_in_sixteen_is_refused(channels: int) -> None:
    """Pillow reads the upper 8 of 16 bits of colour, where 12 bits leave 16 levels."""
    rng = np.random.default_rng(0)
    full = rng.integers(0, 2**16, (8, 8, channels), dtype=np.uint16)
    assert decode_image(wide_png(full), 8).note == ""
    with pytest.raises(ValueError, match="colour of 16 bits that uses 12 or fewer of them"):
        decode_image(wide_png(full // 16), 8)
    dark = np.asarray(decode_image(encoded(Image.new("RGB", (8, 8), (3, 3, 3))), 8).pixels)
    assert dark.max() == 3, "dark colour of 8 bits is as it is"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_frames_and_pages_beyond_the_first_are_said(tmp_path: Path, cli: Cli, kind: str) -> None:
    frames = [picture(i) for i in range(3)]
    several = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    note = "hold several frames or pages, of which the first is read"
    assert decode_image(several, 32).note == note
    assert decode_image(encoded(frames[0], kind), 32).note == ""
    if kind == "GIF":
        first = decode_image(encoded(frames[0], kind), 32).pixels
        assert (decode_image(several, 32).pixels == first).all()
        (tmp_path / "a.gif").write_bytes(several)
        assert f"halfmeg: 1 image(s) {note}" in cli("predict", "a.gif").err


def test_mpo_is_known_by_its_ending(tmp_path: Path) -> None:
    folder = make(tmp_path / "photos", {"a": 2, "b": 2})
    picture(9).save(folder / "a" / "DSCF1.MPO", save_all=True, append_images=[picture(10)])
    report = inspect_data(str(folder))
    assert (report.files, report.passed_over, report.notes) == (5, (), ())


def test_a_photograph_of_a_phone_is_one_frame() -> None:
    """MPO is a JPEG with a second picture, of the other eye or of depth."""
    frames = [picture(i) for i in range(2)]
    photograph = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decode_image(photograph, 32).note == ""


def damaged_exif() -> bytes:
    """A JPEG, its EXIF with the right orientation and a tag that says text and is a number."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x8298, 5, 1, 2**31)
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + bytes(4)
    exif = b"Exif\0\0" + tiff
    jpeg = encoded(Image.new("RGB", (40, 20)), "JPEG")
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def damaged_images() -> dict[str, bytes]:
    avif = bytearray(encoded(picture(1, 64), "AVIF"))
    avif[200:260] = bytes(60)
    qoi = encoded(picture(1, 64), "QOI")[:200]
    return {
        "avif": bytes(avif),
        "qoi": qoi,
        "dds": b"DDS "
        + struct.pack("<7I44x8I", 124, 4103, 4, 4, 0, 0, 0, 32, 4, 0x31415926, *[0] * 5)
        + bytes(64),
        "spider": struct.pack(">30f", *[1.0] * 30) + bytes(1000),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
        "bigtiff": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60) + bytes(50),
        "tiff": b"II*\0" + struct.pack("<IHHHII", 8, 1, 256, 3, 2**31, 8) + bytes(9),
    }  # fmt: skip


def test_what_a_decoder_raises_names_the_file(tmp_path: Path, cli: Cli) -> None:
    content = damaged_exif()
    turned = decode_image(content, 16)
    assert turned.size == (20, 40)  # by its orientation, though the rest of its EXIF is broken
    root = make(tmp_path / "photos", {"a": 5, "b": 5})
    (root / "a" / "exif.jpg").write_bytes(content)
    for name, content in damaged_images().items():
        (root / "a" / f"{name}.png").write_bytes(content)
    found = cli("data", "check", "photos")
    assert found.code == 1
    for name in damaged_images():
        assert f"problem: unreadable: a/{name}.png: " in found.out
    assert "exif.jpg" not in found.out + found.err
    assert cli("train", "common", "--data", "photos").is_one_line(
        "7 unreadable image(s): a/avif.png"
    )
    answers = cli("predict", "photos", "--json")
    assert answers.code == 1
    assert sum("error" in row for row in answers.json) == 7
    assert len(answers.json) == 18
    assert "Traceback" not in found.err + answers.err


def test_threads_that_decode_leave_the_filters_of_warnings() -> None:
    before, seen = [*warnings.filters], []
    images = [EncodedImage("a", encoded(picture(0, 8)), 0)] * 50 * CHUNK
    decode_images(images, 8, lambda *_: seen.append(warnings.filters))
    assert all(filters is seen[0] for filters in seen), "no thread changes them for the others"
    assert warnings.filters == before


def test_libtiff_writes_nothing_of_its_own(capfd) -> None:
    content = bytearray(encoded(picture(1, 64), "TIFF", compression="tiff_lzw"))
    content[300:900] = bytes(byte ^ 0x5A for byte in content[300:900])
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(bytes(content), 32)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [32, (48, 20), (1, 20, 48)])
def test_the_cards_snippet_gives_the_same_bits(fit: str, size) -> None:
    from halfmeg.shipping.preprocess import preprocessing, snippet

    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 255, 60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    noisy = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    images = {
        "turned.jpg": encoded(Image.fromarray(ramp), "JPEG", exif=exif),
        "noise.png": encoded(Image.fromarray(noisy)),
        "clear.png": encoded(Image.fromarray(noisy).convert("RGBA").rotate(30, expand=True)),
        "gray.png": encoded(Image.fromarray(noisy).convert("L")),
        "palette.gif": encoded(Image.fromarray(noisy).convert("P"), "GIF"),
        "cmyk.jpg": encoded(Image.fromarray(noisy).convert("CMYK"), "JPEG"),
        "fits.png": encoded(picture(1, 32)),
    }
    program = snippet(size, fit)
    assert len(program.strip().splitlines()) <= 12
    for name, content in images.items():
        space = {"PATH": io.BytesIO(content)}
        exec(program, space)
        assert np.array_equal(space["pixels"][0], decode_image(content, size, fit).pixels), name
    steps = preprocessing(size, fit)
    assert "antialiased" in steps["filter"] and steps["size_means"] == "height, width"
    assert steps["size"] == list(image_shape(size)[1:])


def test_names_in_brackets_and_long_paths_are_shown(tmp_path: Path, cli: Cli) -> None:
    deep = tmp_path / "photos" / ("a_long_folder_name_" * 3) / "[red]"
    deep.mkdir(parents=True)
    (deep / "[").mkdir()
    for name in ("photo[copy].jpg", "[b]x.jpg", "[/b].jpg", "bell\x07\x1b[31m.jpg"):
        picture(1).save(deep / name)
    found = cli("predict", "photos")
    assert found.code == 0
    assert len(found.out.splitlines()) == 4
    for name in ("photo[copy].jpg", "[b]x.jpg", "[/b].jpg", r"bell\x07\x1b[31m.jpg"):
        (line,) = [
            line for line in found.out.splitlines() if line.split("  (then")[0].endswith(f"/{name}")
        ]
        assert "%" in line and "[red]" in line
    make(tmp_path / "classes", {"[red]": 5, "[b]": 5, ":cat:": 5})
    shown = cli("data", "check", "classes").out
    assert all(name in shown for name in ("[red]", "[b]", ":cat:"))


def test_small_classes_train_without_a_message(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {f"c{i:03}": 4 for i in range(40)})
    trained = cli("train", "common", *QUICK, "--data", "photos", "--out", "run")
    assert trained.code == 0, trained.err
    assert Run.open(tmp_path / "run").result()["val_n"] > 0


def test_without_home_and_user(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is run with a user's number that it does not know."""
    make(tmp_path / "photos", {"a": 10, "b": 10})

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("HOME", "USER", "LOGNAME", "HALFMEG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = cli("train", "common", *QUICK, "--data", "photos", "--out", "run")
    assert done.code == 0, done.err
    assert list(tmp_path.glob("halfmeg-cache-*/*/info.json"))


@pytest.mark.slow
def test_a_process_starts_without_home_and_user(tmp_path: Path) -> None:
    """Whatever a library asks for when it is imported."""
    make(tmp_path / "photos", {"a": 10, "b": 10})
    code = (
        "import os, pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from halfmeg.cli.main import main\n"
        f"sys.argv = ['halfmeg', 'train', 'common', *{QUICK}, '--data', 'photos', '--out', 'run']\n"
        "main()"
    )
    kept = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("halfmeg-cache-*/*/info.json"))


def test_no_data_named_is_said(tmp_path: Path, cli: Cli) -> None:
    found = cli("train", "common", "model=logistic", "epochs=1", "--out", "run")
    assert "without --data this is the built-in data set, digits" in found.err
    (tmp_path / "digits").mkdir()
    found = cli("data", "check", "digits")
    assert "what is called digits here is not read: write ./digits for it" in found.out


# --- B: poor ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_while_decoding_ends_at_once(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "JPEG", quality=95)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(300):
            (root / name / f"{index}.jpg").write_bytes(content + bytes([index % 256]) * (index + 1))
    running = subprocess.Popen(
        [sys.executable, "-m", "halfmeg", "data", "check", str(root)],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"HALFMEG_CACHE": str(tmp_path / "c")},
    )  # fmt: skip
    time.sleep(12)
    assert running.poll() is None, "the test's images are too few"
    started = time.monotonic()
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert errors.strip().splitlines()[-1] == "halfmeg: stopped"
    assert "Traceback" not in errors


def test_predict_keeps_what_is_finished(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {".": 6})
    (tmp_path / "photos" / "bad.png").write_text("no image")
    for ending in ("csv", "json"):
        found = cli("predict", "photos", "--out", f"answers.{ending}", "--top", "2")
        assert found.code == 1 and found.out == ""
        text = (tmp_path / f"answers.{ending}").read_text()
        rows = list(csv.DictReader(io.StringIO(text))) if ending == "csv" else json.loads(text)
        assert len(rows) == 7
        assert [row["path"] for row in rows if row.get("error")] == ["photos/bad.png"]
    assert next(csv.reader(io.StringIO((tmp_path / "answers.csv").read_text()))) == [
        "path", "label", "probability", "label_2", "probability_2", "error", "unfamiliar",
    ]  # fmt: skip
    again = cli("predict", "photos", "--out", "answers.csv")
    assert "answers.csv exists already and is not overwritten" in again.err
    assert again.is_one_line("choose another --out")
    assert "neither .csv nor .json" in cli("predict", "photos", "--out", "answers.txt").err


def test_stopped_answers_are_whole_json(tmp_path: Path) -> None:
    from halfmeg.cli.answers import write_answers
    from halfmeg.shipping.predict import Prediction

    def interrupted():
        yield Prediction("a.png", (("cat", 0.75),))
        raise KeyboardInterrupt

    out = tmp_path / "answers.json"
    with pytest.raises(KeyboardInterrupt):
        write_answers(interrupted(), 2, str(out), None, 1, lambda *_: None)
    assert [row["path"] for row in json.loads(out.read_text())] == ["a.png"]


def test_an_output_that_lacks_a_letter(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(1).save(folder / "café→.png")
    encoding = sys.stdout.encoding
    sys.stdout.reconfigure(encoding="ascii")
    try:
        found = cli("predict", "photos")
    finally:
        sys.stdout.reconfigure(encoding=encoding, errors="strict")
    assert found.code == 0, found.err
    assert r"caf\xe9\u2192.png" in found.out


@pytest.mark.slow
def test_a_process_whose_output_lacks_a_letter(tmp_path: Path, process: Cli) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(1).save(folder / "café→.png")
    found = process("predict", "photos", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert found.code == 0, found.err
    assert r"caf\xe9\u2192.png" in found.out


def test_predict_takes_a_run_and_says_who_answers(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {"a": 10, "b": 10})
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "runs/x").code == 0
    found = cli("predict", "photos/a/1.png", "--bundle", "runs/x", "--json")
    assert found.code == 0
    assert found.json[0]["label"] in ("a", "b")
    assert "answers by runs/x: cnn, 2 classes, " in found.err
    assert "record, 10 classes" in cli("predict", "photos/a/1.png").err


def test_export_of_a_bundle_copies_it(tmp_path: Path, cli: Cli) -> None:
    from halfmeg.artifacts.bundle import Bundle

    assert cli("export", "record", "--out", "mine").code == 0
    assert Bundle.open(tmp_path / "mine").model == "record"
    assert "exists already" in cli("export", "record", "--out", "mine").err


def test_resume_of_a_finished_run_says_so(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {"a": 10, "b": 10})
    assert cli("train", "common", *QUICK, "--data", "photos", "--out", "run").code == 0
    assert "run has finished already; nothing is trained" in cli("resume", "run").err


def test_hidden_files_are_read_by_nobody(tmp_path: Path) -> None:
    make(tmp_path, {"a": 3})
    (tmp_path / "a" / "._1.png").write_bytes(b"\0\x05\x16\x07 from a Mac")
    scan = scan_folder(tmp_path)
    assert [str(path) for path in scan.images] == ["a/0.png", "a/1.png", "a/2.png"]


@pytest.mark.parametrize(
    "names",
    [("default/train/0000.parquet", "default/test/0000.parquet"),
     ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
     ("TRAIN.PARQUET", "TEST.PARQUET"), ("data/train.parquet", "data/val.parquet"),
     ("trainset.parquet", "testset.parquet")],
)  # fmt: skip
def test_parquet_layouts(tmp_path: Path, names: tuple[str, str]) -> None:
    table(tmp_path / names[0], [0, 1] * 3)
    table(tmp_path / names[1], [0, 1], start=100)
    data = load_dataset(str(tmp_path))
    assert (len(data.train), len(data.test)) == (6, 2)


def test_several_tables_are_told_apart(tmp_path: Path) -> None:
    for name in ("fine", "coarse"):
        table(tmp_path / name / "train-00000-of-00001.parquet", [0, 1] * 3)
    with pytest.raises(ValueError, match="several tables: coarse, fine; name one"):
        load_dataset(str(tmp_path))


def test_missing_shards_are_named(tmp_path: Path) -> None:
    for shard in (1, 2, 4):
        table(tmp_path / f"train-{shard:05}-of-00005.parquet", [0, 1])
        table(tmp_path / "hashes" / f"train-{shard:05}-of-00005-a09b74b3ef9c3b56.parquet", [0, 1])
    for folder in (tmp_path, tmp_path / "hashes"):
        with pytest.raises(ValueError, match="missing are 0, 3, counted from 0"):
            load_dataset(str(folder))


def test_parquet_columns_of_other_kinds(tmp_path: Path) -> None:
    contents = [encoded(picture(i)) for i in range(10)]
    labels = ["cat", "dog"] * 5
    for index, content in enumerate(contents):
        (tmp_path / f"{index}.png").write_bytes(content)
    columns = {
        "binary": pa.array(contents, pa.binary()),
        "large": pa.array(contents, pa.large_binary()),
        "lists": pa.array([list(c) for c in contents], pa.list_(pa.uint8())),
        "paths": pa.array([f"{i}.png" for i in range(10)]),
        "struct": pa.array([{"bytes": None, "path": f"{i}.png"} for i in range(10)]),
    }
    prints = set()
    for name, column in columns.items():
        pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / f"{name}.parquet")
        data = load_dataset(str(tmp_path / f"{name}.parquet"))
        assert data.classes == ("cat", "dog")
        prints.add(data.fingerprint)
    assert len(prints) == 1
    renamed = pa.table({"picture": columns["binary"], "kind": labels})
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    with pytest.raises(ValueError, match="name another with --image-column"):
        load_dataset(str(tmp_path / "renamed.parquet"))
    options = DataOptions(image_column="picture", label_column="kind")
    assert load_dataset(str(tmp_path / "renamed.parquet"), options=options).fingerprint in prints


def test_null_images_and_labels_are_named(tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(i)), "path": None} if i != 3 else None for i in range(8)]
    pq.write_table(pa.table({"img": images, "label": [0, 1] * 4}), tmp_path / "n.parquet")
    with pytest.raises(ValueError, match=r"n\.parquet row 3 \(img is null\): empty"):
        load_dataset(str(tmp_path / "n.parquet"))
    table(tmp_path / "l.parquet", [0, None, 1, 0])
    with pytest.raises(ValueError, match="row 1: label None; expected: a class index"):
        load_dataset(str(tmp_path / "l.parquet"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "resnet20"), "halfmeg train common model=resnet20"),
        (("train", "photos", "epochs=3"), "halfmeg train common --data photos epochs=3"),
        (("train", "sprint", "photos"), "halfmeg train sprint --data photos"),
        (("train", "common", "--model", "resnet20"), "write model="),
        (("train", "common", "--batch-size=8"), "write batch_size=8"),
        (("compare", "cnn", "resnet20", "photos"), "halfmeg compare cnn resnet20 --data photos"),
        (("compare", "cnn", "sprint", "photos"), "halfmeg compare cnn"),
        (("evaluate", "run", "photos"), "write --data photos"),
        (("data", "check", "--data", "photos"), "write: halfmeg data check photos"),
        (("data", "check", "--data=photos"), "write: halfmeg data check photos"),
    ],
)
def test_the_line_to_type_instead(tmp_path: Path, cli: Cli, words, told: str) -> None:
    (tmp_path / "photos").mkdir()
    found = cli(*words)
    assert found.code == 2
    assert found.is_one_line(told), found.err


# --- bounds before allocation -------------------------------------------------------------------


def test_bounds_before_allocation(tmp_path: Path) -> None:
    table(tmp_path / "label.parquet", [0, 1, 1_700_000_000])
    with pytest.raises(ValueError, match="label 1700000000 is out of range; allowed: 0 to 9,999"):
        load_dataset(str(tmp_path / "label.parquet"))
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(3 * 2**30)
    from halfmeg.data.decode import read_file

    with pytest.raises(ValueError, match="larger than 134,217,728 bytes"):
        read_file(tmp_path / "huge.jpg")
    wide = encoded(Image.new("I;16", (5000, 4000)), "PNG")
    with pytest.raises(ValueError, match="5000×4000 pixels; allowed: 16,000,000 in all"):
        decode_image(wide, 32)
    with pytest.raises(ValueError, match="cannot identify"):
        decode_image(encoded(Image.new("RGBA", (64, 64)), "ICNS"), 32)


@pytest.mark.slow
def test_a_table_of_repeated_content_is_small(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(600_000)
    images = pa.array([{"bytes": content}] * 200)  # 1.2 GB of content in a file of 6 MB
    schema = pa.schema({"img": pa.struct({"bytes": pa.binary()}), "label": pa.int64()})
    with pq.ParquetWriter(tmp_path / "rep.parquet", schema, write_batch_size=8) as writer:
        for _ in range(10):
            writer.write_table(pa.table({"img": images, "label": [0, 1] * 100}, schema))
    code = (
        "import re, sys\nfrom halfmeg.data.parquet import *\n"
        "from halfmeg.data.parquet_files import find_parquet\n"
        "s = read_parquet(find_parquet(Path(sys.argv[1])), DataOptions())\n"
        "status = open('/proc/self/status').read()\n"
        "print(len(s.parts['all']), *re.findall(r'VmHWM:\\s+(\\d+)', status))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rep.parquet")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, peak_kb = map(int, done.stdout.split())
    assert count == 2000
    assert (tmp_path / "rep.parquet").stat().st_size < 10_000_000
    assert peak_kb < 700_000
