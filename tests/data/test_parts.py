"""Which images belong to which part, class and group: what names, columns and folders say.

Each test is named after its case in docs/data.md; `test_images.py` has the others.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Cli, inspect_data
from PIL import Image
from test_images import QUICK, make, picture, table

from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import repeated_images
from halfmeg.data.load import inspect_source, load_dataset
from halfmeg.data.options import DataOptions
from halfmeg.data.parts import find_parts, part_of

LABELS = [0, 1] * 10


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "holdout"), ("training_set", "test_set"), ("train2017", "val2017"),
     ("seg_train", "seg_test"), ("TrainData", "hold-out"), ("train_images", "TEST IMAGES"),
     ("my-photos-train", "my-photos-evaluation"), ("trn", "tst"), ("trainval", "test")],
)  # fmt: skip
def test_parts_by_the_names_that_people_give_them(tmp_path: Path, train: str, test: str) -> None:
    make(tmp_path / "photos", {f"{train}/{c}": 6 for c in "ab"} | {f"{test}/{c}": 3 for c in "ab"})
    data = load_dataset(str(tmp_path / "photos"))
    assert (len(data.train), len(data.test), data.classes) == (12, 6, ("a", "b"))
    table(tmp_path / "tables" / f"{train}-00000-of-00001.parquet", LABELS)
    table(tmp_path / "tables" / f"{test}-00000-of-00001.parquet", LABELS[:6], start=100)
    data = load_dataset(str(tmp_path / "tables"))
    assert (len(data.train), len(data.test)) == (20, 6)


def test_a_holdout_beside_train_and_val_is_the_test_part(tmp_path: Path) -> None:
    counts = {"Training": 8, "Val": 3, "holdout": 2}
    make(tmp_path / "p", {f"{part}/{c}": n for part, n in counts.items() for c in "ab"})
    parts = load_dataset(str(tmp_path / "p")).parts
    assert {part: len(d) for part, d in parts.items()} == {"train": 16, "validation": 6, "test": 4}


def test_what_is_no_part_stays_a_class() -> None:
    for name in ("bus", "train station", "test tube", "dev board", "settings", "data"):
        assert part_of(name) is None
    assert find_parts(["train station", "bus station"], "") is None
    assert find_parts(["test tube", "beaker"], "") is None
    assert find_parts(["train", "bus"], "", ()) is None


def test_a_folder_of_unknown_part_beside_the_training_part_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "p", {f"{part}/{c}": 3 for part in ("train", "final") for c in "ab"})
    told = "'final' beside 'train', and which part it is cannot be told; call it train, validation"
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "p"))
    table(tmp_path / "t" / "train.parquet", LABELS)
    table(tmp_path / "t" / "extra.parquet", LABELS, start=50)
    with pytest.raises(ValueError, match="'extra' beside 'train'"):
        load_dataset(str(tmp_path / "t"))


@pytest.mark.parametrize("other", ["learn", "final"])
def test_a_folder_of_unknown_part_beside_the_test_part_is_an_error(
    tmp_path: Path, other: str
) -> None:
    told = f"'{other}' beside 'test', and which part it is cannot be told"
    make(tmp_path / "p", {f"{part}/{c}": 3 for part in ("test", other) for c in "ab"})
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "p"))
    table(tmp_path / "t" / "test.parquet", LABELS)
    table(tmp_path / "t" / f"{other}.parquet", LABELS, start=50)
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "t"))


def test_parts_within_the_classes_are_named(tmp_path: Path) -> None:
    make(tmp_path / "p", {f"{c}/{part}": 3 for part in ("train", "test") for c in "ab"})
    with pytest.raises(ValueError, match=r"a holds the parts test and train; expected: .*test/a"):
        load_dataset(str(tmp_path / "p"))
    make(tmp_path / "q", {"vehicles/train": 4, "vehicles/bus": 4, "animals/cat": 4})
    data = load_dataset(str(tmp_path / "q"))
    assert data.classes == ("animals", "vehicles")
    assert data.notes == (
        "folders within a class belong to it, as animals/cat, vehicles/bus and 1 more",
    )


def test_classes_of_nearly_one_name_are_said(tmp_path: Path) -> None:
    told = "classes of nearly one name: 'Red Hat' and 'red_hat'"
    folder = make(tmp_path / "p", {"red_hat": 5, "Red Hat": 5, "redder": 5})
    assert load_dataset(str(folder)).notes == (told,)
    assert inspect_data(str(folder)).notes == (told,)
    path = csv_of(tmp_path, "path,label", ["Red Hat", "red_hat"] * 10)
    assert load_dataset(path).notes == (told,)


def test_classes_without_training_or_test_images_are_said(tmp_path: Path) -> None:
    make(tmp_path / "p", {"train/a": 4, "train/b": 4, "train/c": 4, "test/a": 2, "test/b": 2})
    assert load_dataset(str(tmp_path / "p")).notes == ("no test images: c",)
    table(tmp_path / "one.parquet", [1, 2] * 10)  # as if numbered from 1
    assert load_dataset(str(tmp_path / "one.parquet")).notes == ("no training images: 0",)


def test_one_picture_in_two_files_is_said_and_a_group_keeps_it_together(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", {"a": 20, "b": 20})
    for path in [*folder.rglob("*.png")]:
        Image.open(path).save(path.with_suffix(".webp"), lossless=True)
    data = load_dataset(str(folder))
    copies = int(np.isin(data.test.ids, data.train.ids).sum())
    assert copies > 0, "their bytes divide them"
    told = (
        f"{copies} test image(s) have the pixels of a training image; "
        "`halfmeg data check` names them"
    )
    assert data.notes == (told, *repeated_images(data))
    together = load_dataset(str(folder), options=DataOptions(group=r"\w+/\d+"))
    train, test = len(together.train), len(together.test)
    assert together.notes == (
        f"of {train} training images {train // 2} are different, the others copies",
        f"of {test} test images {test // 2} are different, the others copies",
    )
    assert not np.isin(together.test.ids, together.train.ids).any()


def test_a_folder_beside_given_parts_is_passed_over_by_its_reason(tmp_path: Path) -> None:
    parts = ("train", "test", "archive")
    make(tmp_path / "p", {f"{part}/{c}": 3 for part in parts for c in "ab"})
    report = inspect_data(str(tmp_path / "p"))
    assert {item.reason for item in report.passed_over} == {"in a folder beside the parts"}
    assert (report.files, report.train, report.test) == (18, 6, 6)


def test_classes_that_hold_the_same_folders_are_said(tmp_path: Path) -> None:
    make(tmp_path / "p", {f"{part}/{c}": 6 for part in ("north", "south") for c in "ab"})
    notes = load_dataset(str(tmp_path / "p")).notes
    assert notes == (
        "the classes are north, south, and each holds the folders a, b; if those are the "
        "classes, call the outer folders train and test",
    )


def test_a_folder_that_repeats_its_name_is_one(tmp_path: Path) -> None:
    """As archives of one folder leave them when they are unpacked into a folder of their name."""
    make(tmp_path / "p", {f"{part}/{part}/{c}": 5 for part in ("train", "test") for c in "ab"})
    data = load_dataset(str(tmp_path / "p"))
    assert (data.classes, len(data.train), len(data.test)) == (("a", "b"), 10, 10)
    make(tmp_path / "q", {f"q/q/{c}": 5 for c in "ab"})
    with pytest.raises(ValueError, match=r"its folders a, b are the classes, name .*q/q/q$"):
        load_dataset(str(tmp_path / "q"))


def test_a_class_without_an_image_is_said(cli: Cli, tmp_path: Path) -> None:
    make(tmp_path / "p", {"a": 8, "b": 8})
    (tmp_path / "p" / "empty").mkdir()
    (tmp_path / "p" / "raw").mkdir()
    (tmp_path / "p" / "raw" / "1.cr2").write_bytes(b"II*")
    told = "empty, raw: no image that is read, so no class"
    assert told in load_dataset(str(tmp_path / "p")).notes
    checked = cli("data", "check", "p")
    assert f"note: {told}" in checked.out
    assert "raw/1.cr2: no image format" in checked.out


@pytest.mark.parametrize("outer", ["train", "backup"])
def test_classes_within_a_folder_beside_them_are_an_error(tmp_path: Path, outer: str) -> None:
    make(tmp_path / "p", {"a": 3, "b": 3, f"{outer}/a": 3, f"{outer}/b": 3})
    with pytest.raises(ValueError, match=f"has the folders a, b, and so has .*p/{outer}; move"):
        load_dataset(str(tmp_path / "p"))


def test_spaces_around_a_folders_name_make_no_class(tmp_path: Path) -> None:
    make(tmp_path / "p", {"train/Cat": 4, "train/Dog ": 4, "test/Cat ": 2, "test/Dog": 2})
    data = load_dataset(str(tmp_path / "p"))
    assert (data.classes, len(data.train), len(data.test)) == (("Cat", "Dog"), 8, 4)
    make(tmp_path / "p", {"test/cat": 2}, start=50)
    with pytest.raises(ValueError, match="images: cat; allowed: Cat, Dog; rename its folder, or"):
        load_dataset(str(tmp_path / "p"))


def test_behind_a_dot_there_may_be_no_ending(tmp_path: Path) -> None:
    folder = make(tmp_path / "p", {"a": 8, "b": 8})
    for index, name in enumerate(("IMG.1234", "2024.01.05", "x.png?w=300", "y.jpg_large")):
        (folder / "a" / f"{index}.png").rename(folder / "a" / name)
    (folder / "b" / "7.bak.1").write_text("no image")
    (folder / "b" / "7.3gp").write_text("no image")
    report = inspect_data(str(folder))
    assert report.train + report.test == 16
    assert {item.path: item.reason for item in report.passed_over} == {
        "b/7.bak.1": "without an ending, and no image",
        "b/7.3gp": "no image format that is read (.3gp)",
    }


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_images_that_are_called_otherwise_are_said(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "p", {"a": 8, "b": 8})
    (folder / "c").mkdir()
    picture(99).save(folder / "c" / "photo.txt", kind)
    reason = "an image by its first bytes, but called .txt: rename it"
    assert [item.reason for item in inspect_data(str(folder)).passed_over] == [reason]
    with pytest.raises(ValueError, match=f"class 'c' of p has no training images .*{reason}"):
        load_dataset(str(folder))


def test_images_without_a_class_are_named_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path / "p", {"train/a": 4, "train/b": 4, "test": 3})
    with pytest.raises(
        ValueError, match=r"p/test has 3 image\(s\) in no folder of a class; .*pred"
    ):
        load_dataset(str(tmp_path / "p"))


def test_data_of_object_detection_is_named(tmp_path: Path) -> None:
    coco = make(tmp_path / "coco", {"train2017": 3, "val2017": 3})
    (coco / "annotations").mkdir()
    (coco / "annotations" / "instances.json").write_text("{}")
    with pytest.raises(ValueError, match=r"annotations/instances.json seems to describe objects"):
        load_dataset(str(coco))
    yolo = make(tmp_path / "yolo", {"train/images": 3, "valid/images": 3})
    (yolo / "train" / "labels").mkdir()
    (yolo / "train" / "labels" / "0.txt").write_text("0 .5 .5 1 1")
    with pytest.raises(ValueError, match=r"one class, 'images'.*labels/0.txt seems to describe"):
        load_dataset(str(yolo))


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "p.ZIP").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"is a file; .*; unpack it, and name the folder"):
        load_dataset(str(tmp_path / "p.ZIP"))


def test_one_image_of_each_class_can_be_evaluated_but_not_divided(cli: Cli, tmp_path: Path) -> None:
    make(tmp_path / "p", {"a": 12, "b": 12})
    make(tmp_path / "one", {"a": 1, "b": 1}, start=500)
    assert cli("train", "common", *QUICK, "--data", "p", "--out", "run").code == 0
    assert "(2 test images of one)" in cli("evaluate", "run", "--data", "one").out
    refused = cli("train", "common", "--data", "one")
    assert refused.code == 2
    assert "each class is one image, or all images one group, so none can be held" in refused.err
    problems = inspect_data(str(tmp_path / "one")).problems
    assert len(problems) == 1
    assert "add images, or a test part" in problems[0]


def test_more_classes_than_a_network_takes_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("halfmeg.data.load.MAX_CLASSES", 3)
    make(tmp_path, {"img": 5})
    rows = [f"img/{i}.png,{i / 7:.3f}" for i in range(5)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(ValueError, match=r"has 5 classes, as 0.000, .*a measured number is no cla"):
        load_dataset(str(tmp_path / "t.csv"))


# --- Tables --------------------------------------------------------------------------------------


def csv_of(folder: Path, header: str, *cells: list[str], encoding: str = "utf-8") -> str:
    """Write a table of 20 pictures, with a column of cells each; return its path."""
    make(folder, {"img": 20})
    rows = [",".join((f"img/{i}.png", *(c[i] for c in cells))) for i in range(20)]
    (folder / "t.csv").write_text("\n".join([header, *rows]), encoding=encoding)
    return str(folder / "t.csv")


CLASSES = ["a", "b"] * 10


@pytest.mark.parametrize("words", [("train", "val", "holdout"), ("Training", "Val", "Hold-out")])
def test_a_column_of_parts_by_other_names(tmp_path: Path, words: tuple[str, ...]) -> None:
    column = [words[0]] * 12 + [words[1]] * 4 + [words[2]] * 4
    data = load_dataset(csv_of(tmp_path, "path,label,split", CLASSES, column))
    assert {part: len(d) for part, d in data.parts.items()} == {
        "train": 12, "validation": 4, "test": 4,
    }  # fmt: skip


@pytest.mark.parametrize("word", ["", "unlabeled"])
def test_rows_of_no_part_are_passed_over_and_said(tmp_path: Path, word: str) -> None:
    column = ["train"] * 12 + ["test"] * 6 + [word] * 2
    data = load_dataset(csv_of(tmp_path, "path,label,split", CLASSES, column))
    assert (len(data.train), len(data.test)) == (12, 6)
    assert data.notes[0].startswith(f"2 files passed over: 2 of no part (split is {word!r})")
    table(tmp_path / "t" / "all.parquet", LABELS, split=[w or None for w in column])
    report = inspect_data(str(tmp_path / "t"))
    assert (report.train, report.test, len(report.passed_over)) == (12, 6, 2)


def test_a_word_that_may_be_the_missing_part_is_an_error(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "path,label,split", CLASSES, ["train"] * 12 + ["final"] * 8)
    with pytest.raises(ValueError, match="column split, has 'final' beside 'train', and which"):
        load_dataset(path)


def test_a_split_column_divides_parquet_too(tmp_path: Path) -> None:
    table(tmp_path / "a" / "all.parquet", LABELS, split=["train"] * 15 + ["test"] * 5)
    data = load_dataset(str(tmp_path / "a"))
    assert (len(data.train), len(data.test)) == (15, 5)
    assert data.notes == ("the column split divides the images",)
    table(tmp_path / "b" / "all.parquet", LABELS, split=["0"] * 15 + ["1"] * 5)
    assert load_dataset(str(tmp_path / "b")).notes == (
        "the column split is not used: '0', '1' name no parts",
    )


def test_a_column_of_any_name_that_holds_parts_divides(tmp_path: Path) -> None:
    column = ["train"] * 10 + ["Train"] * 2 + [""] * 2 + ["test"] * 6
    with pytest.raises(ValueError, match="column phase, has 'Train' and 'train', two names for"):
        load_dataset(csv_of(tmp_path / "two", "path,label,phase", CLASSES, column))
    column = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    data = load_dataset(csv_of(tmp_path, "path,label,phase", CLASSES, column))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.notes == ("the column phase divides the images",)
    for shard, words in enumerate((column[:12], column[12:])):  # the first holds one part alone
        path = tmp_path / "t" / f"data-{shard:05}-of-00002.parquet"
        table(path, LABELS[: len(words)], start=20 * shard, phase=words)
    data = load_dataset(str(tmp_path / "t"))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert data.notes == ("the column phase divides the images",)
    kinds = ["train", "bus"] * 10  # of vehicles
    assert load_dataset(csv_of(tmp_path, "path,label,kind", CLASSES, kinds)).notes == ()


def test_a_column_that_the_user_named_is_not_one_of_parts(tmp_path: Path) -> None:
    path = csv_of(tmp_path / "label", "path,part", ["bolt", "nut"] * 10)
    data = load_dataset(path, options=DataOptions(label_column="part"))
    assert (data.classes, data.notes) == (("bolt", "nut"), ())
    path = csv_of(
        tmp_path / "group", "path,label,subset", CLASSES, [str(i // 4) for i in range(20)]
    )
    data = load_dataset(path, options=DataOptions(group="subset"))
    assert not {*data.train.groups.tolist()} & {*data.test.groups.tolist()}


def test_a_column_that_one_of_several_files_has(tmp_path: Path) -> None:
    first = table(tmp_path / "p" / "a.parquet", LABELS, camera=["left", "right"] * 10)
    table(tmp_path / "p" / "b.parquet", LABELS, start=50)
    data = load_dataset(str(tmp_path / "p"))
    assert (len(data.train) + len(data.test), data.notes) == (40, ())
    table(first, LABELS, split=["train"] * 15 + ["test"] * 5)
    told = "20 files passed over: 20 of no part (split is '')"
    assert load_dataset(str(tmp_path / "p")).notes[0].startswith(told)


def test_columns_are_found_in_any_capitals_and_others_are_said(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    assert load_dataset(csv_of(tmp_path / "upper", "Path,LABEL", CLASSES)).classes == ("a", "b")
    path = csv_of(tmp_path, "path,label,class", ["0", "1"] * 10, CLASSES)
    data = load_dataset(path)
    assert data.classes == ("0", "1")
    assert data.notes == (
        "labels are read from the column label, not from class; --label-column names another",
    )
    named = load_dataset(path, options=DataOptions(label_column="class"))
    assert (named.classes, named.notes) == (("a", "b"), ())
    table(tmp_path / "t" / "x.parquet", LABELS, Labels=LABELS[::-1])
    assert "not from Labels" in load_dataset(str(tmp_path / "t")).notes[0]


def test_a_csv_of_windows_and_one_without_a_header(tmp_path: Path) -> None:
    path = Path(csv_of(tmp_path, "path,label", CLASSES))
    path.write_text(path.read_text().replace("/", "\\"))
    assert len(load_dataset(str(path)).train)
    path.write_text("\n".join(f"img/{i}.png,a" for i in range(20)))
    with pytest.raises(ValueError, match=r"begins with the image img/0.png; expected: a first l"):
        load_dataset(str(path))
    path.write_text("path,label\n")
    with pytest.raises(ValueError, match="has the columns path, label, and no rows of images"):
        load_dataset(str(path))
    plain = load_dataset(csv_of(tmp_path, "path,label", CLASSES)).fingerprint
    text = path.read_text()
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_text(text, encoding=encoding)
        assert load_dataset(str(path)).fingerprint == plain


def test_images_that_no_row_names_are_listed(tmp_path: Path, cli: Cli) -> None:
    path = Path(csv_of(tmp_path, "path,label", CLASSES))
    (tmp_path / "img" / "notes.txt").write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    for name in ("img/left.png", "elsewhere/right.png"):
        shutil.copy(tmp_path / "img" / "0.png", tmp_path / name)
    told = cli("data", "check", str(path)).out
    assert "img/left.png" in told and "named by no row" in told
    assert "notes.txt" not in told and "right.png" not in told  # no image; in no named folder
    listed = cli("data", "check", str(path), "--json").json["passed_over"]
    assert [(item["path"], item["reason"]) for item in listed] == [
        ("img/left.png", "named by no row")
    ]


def test_dialects_of_csv(tmp_path: Path) -> None:
    path = Path(csv_of(tmp_path, "path,label", CLASSES))
    rows = [line.split(",") for line in path.read_text().splitlines()]
    expected = load_dataset(str(path)).fingerprint
    for separator in (";", "|", "\t", ', "', '", "'):
        lines = [separator.join(row) for row in rows]
        if '"' in separator:
            lines = [f'"{line}"' if separator[0] == '"' else f'{line}"' for line in lines]
        path.write_text("\r\n".join(lines) + "\r\n\r\n")
        assert load_dataset(str(path)).fingerprint == expected, separator


def test_a_row_of_more_cells_and_two_columns_of_one_name_are_errors(tmp_path: Path) -> None:
    path = Path(csv_of(tmp_path, "path,label", CLASSES))
    path.write_text(path.read_text().replace("img/3.png,b", "\nimg/3.png,b, red"))
    with pytest.raises(ValueError, match=r"line 6 has more cells .* hold ',' into quotes"):
        load_dataset(str(path))
    for header in ("path,label,label", "path,path,label"):
        with pytest.raises(ValueError, match=r"has two columns called '(label|path)'; rename one"):
            load_dataset(csv_of(tmp_path, header, CLASSES, CLASSES))


def test_rows_of_no_part_need_no_class(tmp_path: Path) -> None:
    parts = ["train"] * 12 + ["test"] * 6 + [""] * 2
    labels = [*CLASSES[:18], "", "unknown"]
    data = load_dataset(csv_of(tmp_path, "path,label,split", labels, parts))
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.test) == 18


@pytest.mark.parametrize("cell", ["QUJD" * 5000, "/9j/" * 500, "a\0b.png"])
def test_a_text_that_is_no_path_is_named_in_short(tmp_path: Path, cell: str) -> None:
    pq.write_table(pa.table({"img": [cell], "label": [0]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 0: img has no bytes, but the path '.*no such file"):
        load_dataset(str(tmp_path / "t.parquet"))
    (tmp_path / "t.csv").write_text(f"path,label\n{cell},a\n")
    with pytest.raises(ValueError, match=r"t\.csv line 2: .* does not exist"):
        load_dataset(str(tmp_path / "t.csv"))
    for name in ("t.parquet", "t.csv"):
        with pytest.raises(ValueError, match="t") as told:
            load_dataset(str(tmp_path / name))
        assert len(str(told.value)) < 500


def test_the_tables_beside_images_are_named(tmp_path: Path) -> None:
    csv_of(tmp_path, "path,label", CLASSES)
    with pytest.raises(ValueError, match=r"has one class, 'img'.*classes from t\.csv, name that"):
        load_dataset(str(tmp_path))


def test_a_row_without_a_group_stands_alone(tmp_path: Path) -> None:
    people = [None if i % 2 else f"p{i % 8}" for i in range(20)]
    options = DataOptions(group="person")
    table(tmp_path / "t" / "x.parquet", LABELS, person=people)
    of_table = load_dataset(str(tmp_path / "t"), options=options).whole.train
    data = load_dataset(str(tmp_path / "t"), options=options)
    cells = [p or "" for p in people]
    rows = load_dataset(csv_of(tmp_path, "path,label,person", CLASSES, cells), options=options)
    assert len(of_table) == 0
    for splits in (data, rows):
        groups = [d.groups for d in splits.parts.values()]
        assert all(g is not None for g in groups)
        assert len(np.unique(np.concatenate(groups))) == 4 + 10


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_is_named_and_spaces_make_no_class(tmp_path: Path, empty: str) -> None:
    table(tmp_path / "a.parquet", ["a", "b "] * 5 + [" a", "b"] * 5)
    assert load_dataset(str(tmp_path / "a.parquet")).classes == ("a", "b")
    table(tmp_path / "b.parquet", ["a", "b"] * 5 + [empty])
    with pytest.raises(ValueError, match=r"b.parquet row 10: label '\s*'; expected: a class index"):
        load_dataset(str(tmp_path / "b.parquet"))


def test_rows_of_equal_files_in_two_parts_have_names_and_pictures_of_their_own(
    tmp_path: Path, cli: Cli
) -> None:
    root = tmp_path / "t" / "default"  # as the hub's own copy has them
    table(root / "train" / "0000.parquet", LABELS)
    table(root / "test" / "0000.parquet", LABELS[:6], start=19)  # its first image is the last above
    report, source = inspect_source(str(root.parent))
    names = [name for part in source.names.values() for name in part]
    assert len(set(names)) == len(names) == 26
    last, first = "default/train/0000.parquet row 19", "default/test/0000.parquet row 0"
    assert any(f"{last} = {first}" in problem for problem in report.problems)
    assert cli("data", "check", "t", "--html", "check.html").code == 1
    page = (tmp_path / "check.html").read_text().partition("<h2>Darkest and brightest</h2>")[2]
    shown = re.findall(r'base64,([^"]+)" alt=""><figcaption>(.+?)</figcaption>', page)
    assert len(shown) == 16
    for picture_of, name in shown:
        part = name.split("/")[1]
        pixels = source.splits.parts[part].images[source.names[part].index(name)]
        with Image.open(io.BytesIO(base64.b64decode(picture_of))) as image:
            assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())


def test_true_and_false_are_names_of_classes(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [True, False] * 10)
    assert load_dataset(str(tmp_path / "a.parquet")).classes == ("False", "True")


def test_the_rows_of_a_table_have_no_file_ending(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", sorted([0, 1] * 30))
    assert inspect_data(str(tmp_path / "a.parquet")).giveaways == ()


@pytest.mark.parametrize("name", ["t.pq", "t.PARQ", "t.parquet.gzip"])
def test_parquet_by_other_endings(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name, LABELS)
    assert len(load_dataset(str(path)).train)
    if name != "t.parquet.gzip":  # in a folder, by its ending alone
        assert len(load_dataset(str(tmp_path)).train)


def test_what_lies_beside_tables_is_listed(tmp_path: Path) -> None:
    table(tmp_path / "p" / "train.parquet", LABELS)
    table(tmp_path / "p" / "test.parquet", LABELS, start=50)
    table(tmp_path / "p" / "old" / "train.parquet", LABELS, start=90)
    make(tmp_path / "p", {"cat": 2}, start=200)
    (tmp_path / "p" / "README.md").write_text("text")
    report = inspect_data(str(tmp_path / "p"))
    assert (report.train, report.test, report.files) == (20, 20, 44)
    assert {item.path: item.reason for item in report.passed_over} == {
        "cat/0.png": "beside the tables", "cat/1.png": "beside the tables",
        "old/train.parquet": "beside the tables",
        "README.md": "no image format that is read (.md)",
    }  # fmt: skip
    assert load_dataset(str(tmp_path / "p")).notes[0].startswith("4 files passed over: ")


@pytest.mark.parametrize("name", ["is_valid", "isTest", "Fold"])
def test_a_column_that_may_divide_is_said(tmp_path: Path, name: str) -> None:
    told = f"the column {name} is not used; to divide the images, write train and test into it"
    marks = ["0", "1"] * 10
    assert load_dataset(csv_of(tmp_path, f"path,label,{name}", CLASSES, marks)).notes == (told,)
    table(tmp_path / "t" / "x.parquet", LABELS, **{name: [True, False] * 10})
    assert load_dataset(str(tmp_path / "t")).notes == (told,)
    parts = ["train"] * 14 + ["test"] * 6  # another column divides
    both = csv_of(tmp_path, f"path,label,{name},phase", CLASSES, marks, parts)
    assert load_dataset(both).notes == ("the column phase divides the images",)


def test_a_column_for_each_class_is_refused_with_what_to_write(tmp_path: Path) -> None:
    told = "name another with --label-column; one column has to hold each row's class"
    marks = ["0", "1"] * 10, ["1", "0"] * 10
    with pytest.raises(ValueError, match=told):
        load_dataset(csv_of(tmp_path, "path,a,b", *marks))
    pixels = np.zeros((20, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.eye(2)[LABELS])
    with pytest.raises(ValueError, match=r"store labels\.argmax\(1\)"):
        load_dataset(str(tmp_path / "a.npz"))


def test_a_csv_of_excel_and_utf16_without_its_mark(tmp_path: Path) -> None:
    path = Path(csv_of(tmp_path, "path,label", CLASSES))
    expected, text = load_dataset(str(path)).fingerprint, path.read_text()
    for separator in ",;":
        path.write_text(f"sep={separator}\n" + text.replace(",", separator))
        assert load_dataset(str(path)).fingerprint == expected
    for encoding in ("utf-16-le", "utf-16-be"):
        path.write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match="it is UTF-16 or no text; save it as UTF-8"):
            load_dataset(str(path))


@pytest.mark.parametrize(
    ("name", "told"),
    [("t.csv.gz", "unpack it, and name the file"), ("p.tar.gz", "unpack it, and name the folder"),
     ("a.jpg", "`halfmeg predict` takes images")],
)  # fmt: skip
def test_a_file_that_is_no_source_is_told_with_what_to_do(
    tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / name).write_bytes(b"text")
    with pytest.raises(ValueError, match=f"is a file; .*; {told}"):
        load_dataset(str(tmp_path / name))


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "shard-0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no sub-folders.*1 no image format.*\(\.tar\)"):
        load_dataset(str(tmp_path / "p"))
    table(tmp_path / "deep" / "a" / "b" / "x.parquet", LABELS)
    with pytest.raises(ValueError, match=r"to read a/b/x\.parquet, name its folder"):
        load_dataset(str(tmp_path / "deep"))


def test_names_that_are_no_utf8(tmp_path: Path, cli: Cli) -> None:
    folder = make(tmp_path / "p", {"a": 12, "b": 12})
    (folder / "b").rename(folder / os.fsdecode(b"caf\xe9"))  # as an old archive leaves it
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"\xff.png"))
    assert cli("train", "common", *QUICK, "--data", "p", "--out", "run").code == 0
    assert Run.open(tmp_path / "run").data.classes == ("a", r"caf\xe9")
    assert cli("evaluate", "run").code == 0
    assert cli("predict", "p", "--bundle", "run", "--json").code == 0
    other = os.fsdecode(b"\xe9")
    told = cli("train", "common", *QUICK, "--data", "p", "--out", other)
    assert told.is_one_line("its name is no UTF-8; choose another")
    folder.rename(tmp_path / other)
    assert cli("train", "common", "--data", other).is_one_line("is no UTF-8; rename it")


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    told = "a pointer of Git LFS, not the file itself; run git lfs pull"
    folder = make(tmp_path / "p", {"a": 6, "b": 6})
    (folder / "a" / "0.png").write_bytes(pointer)
    with pytest.raises(ValueError, match=f"a/0.png: {told}"):
        load_dataset(str(folder))
    (tmp_path / "t.parquet").write_bytes(pointer)
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "t.parquet"))
    (tmp_path / "t.npz").write_bytes(pointer)
    with pytest.raises(ValueError, match="it is damaged, or holds Python objects; store arrays"):
        load_dataset(str(tmp_path / "t.npz"))


def test_folders_that_spark_calls_as_parts(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("test", 6)):
        table(tmp_path / "t" / f"{part}.parquet" / "part-0.snappy.parquet", LABELS[:count])
        (tmp_path / "t" / f"{part}.parquet" / "other.parquet").mkdir()
    data = load_dataset(str(tmp_path / "t"))
    assert (len(data.train), len(data.test)) == (20, 6)
