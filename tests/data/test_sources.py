"""Tables in CSV, arrays, and classes of different size."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, small_config
from PIL import Image
from sklearn import metrics
from test_cifar import Python2Pickler

from halfmeg.config import RunConfig
from halfmeg.data.decode import EncodedImage
from halfmeg.data.load import load_dataset
from halfmeg.data.options import DataOptions
from halfmeg.evaluation.evaluate import score
from halfmeg.training.fit import fit
from halfmeg.training.plan import Plan, balanced_weights

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def write_images(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index:02}.png" for index in range(40)]
    for name, pixels in zip(names, PIXELS, strict=True):
        Image.fromarray(pixels).save(folder / name)
    return names


# --- labels from a CSV --------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_from_a_csv(tmp_path: Path, delimiter: str) -> None:
    names = write_images(tmp_path / "images")
    lines = [delimiter.join(("path", "label", "person"))]
    lines += [
        delimiter.join((f"images/{n}", f"class {y}", f"p{i // 4}"))
        for i, (n, y) in enumerate(zip(names, LABELS, strict=True))
    ]
    (tmp_path / "labels.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n")
    data = load_dataset(str(tmp_path / "labels.csv"))
    assert data.classes == tuple(f"class {k}" for k in range(4))
    assert len(data.train) + len(data.test) == 40
    grouped = load_dataset(str(tmp_path / "labels.csv"), options=DataOptions(group="person"))
    assert not {*grouped.train.groups.tolist()} & {*grouped.test.groups.tolist()}


def test_other_columns_and_parts_of_a_csv(tmp_path: Path, cli: Cli) -> None:
    names = write_images(tmp_path)
    parts = ["train"] * 24 + ["valid"] * 8 + ["test"] * 8
    rows = [f"{n},{y},{p}" for n, y, p in zip(names, LABELS, parts, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["photo,kind,split", *rows]))
    assert cli("data", "check", "t.csv").is_one_line("name another with --image-column")
    columns = ("--image-column", "photo", "--label-column", "kind")
    assert cli("data", "check", "t.csv", *columns).code == 0
    data = load_dataset(
        str(tmp_path / "t.csv"), options=DataOptions(image_column="photo", label_column="kind")
    )
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 8, 8)


@pytest.mark.parametrize("source", ["digits", "cifar10", "arrays.npz", "photos"])
def test_a_source_without_columns_refuses_their_names(
    tmp_path: Path, cli: Cli, source: str
) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    write_images(tmp_path / "photos" / "a")
    np.savez(tmp_path / "arrays.npz", images=PIXELS, labels=LABELS)
    for name in ("image_column", "label_column"):
        told = f"{name}='kind': {source} is no table; leave it out"
        refused = cli("train", "common", "--data", source, f"{name}=kind")
        assert refused.code == 2 and refused.is_one_line(told)
    refused = cli("data", "check", source, "group=person")
    assert refused.code == 2
    assert refused.is_one_line("group='person' matches no path and is no column")


@pytest.mark.parametrize(
    ("rows", "told"),
    [("path,label\nnone.png,a", "line 2: .*none.png does not exist"),
     ("path,label\n00.png,", "line 2: label is empty"),
     ("path,label,split\n00.png,a,left\n00.png,b,right", "right.*; give the column another"),
     ("", "has the columns none")],
)  # fmt: skip
def test_csv_mistakes(tmp_path: Path, rows: str, told: str) -> None:
    write_images(tmp_path)
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"to take classes from t\.csv, name that file"):
        load_dataset(str(tmp_path))


# --- arrays -------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim))
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_mnist(tmp_path: Path, packed: bool) -> None:
    images, labels = PIXELS[:, :28, :28, 0], LABELS.astype(np.uint8)
    for name, array in (
        ("train-images-idx3-ubyte", images[:30]), ("train-labels-idx1-ubyte", labels[:30]),
        ("t10k-images-idx3-ubyte", images[30:]), ("t10k-labels-idx1-ubyte", labels[30:]),
    ):  # fmt: skip
        content = idx(array)
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
    data = load_dataset(str(tmp_path), image_size=28)
    assert (len(data.train), len(data.test), data.classes) == (30, 10, ("0", "1", "2", "3"))
    assert np.array_equal(data.train.images[7, 2], images[7])
    assert load_dataset(str(tmp_path)).train.images.shape[1:] == (3, 32, 32)
    next(tmp_path.glob("train-labels*")).write_bytes(b"\0\0\x08\1\0\0\0\x1eabc")
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.* is damaged"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "form", ["{}-images.idx3-ubyte {}-labels.idx1-ubyte t10k",
             "emnist-{}-images-idx3-ubyte emnist-{}-labels-idx1-ubyte test",
             "{}-Images-idx3-ubyte {}-Labels-idx1-ubyte val"],
)  # fmt: skip
def test_idx_files_of_other_names(tmp_path: Path, form: str) -> None:
    *names, test = form.split()
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, kept in (("train", slice(30)), (test, slice(30, None))):
        arrays = (PIXELS[kept, ..., 0], LABELS[kept].astype(np.uint8))
        for name, array in zip(names, arrays, strict=True):
            (folder / name.format(part)).write_bytes(idx(array))
            if "." in name:  # Kaggle's archive holds a folder beside each file
                (folder / name.format(part).replace(".", "-")).mkdir()
    data = load_dataset(str(folder))
    assert (len(data.train), len(data.test)) == (30, 10)
    with pytest.raises(ValueError, match=r"to read .*ubyte, name its folder"):
        load_dataset(str(tmp_path))
    (folder / names[1].format(test)).unlink()
    with pytest.raises(ValueError, match=f"{test}-.*ubyte, but not its labels"):
        load_dataset(str(folder))


def test_idx_files_of_the_test_part_alone_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(PIXELS[..., 0]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS.astype(np.uint8)))
    data = load_dataset(str(tmp_path), to_train=False)
    assert (len(data.train), len(data.test)) == (0, 40)


def assert_is_read_packed_too(folder: Path) -> None:
    """A folder of CIFAR-100 is the images of this file, and so is its archive."""
    data = load_dataset(str(folder))
    assert data.classes == ("apple", "baby", "bear", "bed")
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1), PIXELS[30:])
    packed = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder, folder.name)
    assert load_dataset(str(packed)).fingerprint == data.fingerprint


def test_cifar100_as_folder_and_as_archive(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    chw = PIXELS.transpose(0, 3, 1, 2).reshape(40, -1)
    records = np.concatenate([LABELS[:, None] * 0 + 1, LABELS[:, None], chw], axis=1).astype(
        np.uint8
    )
    (folder / "train.bin").write_bytes(records[:30].tobytes())
    (folder / "test.bin").write_bytes(records[30:].tobytes())
    (folder / "fine_label_names.txt").write_text("apple\nbaby\nbear\nbed\n")
    assert_is_read_packed_too(folder)
    for content in (b"", records[30:].tobytes()[:-1]):
        (folder / "test.bin").write_bytes(content)
        told = f"its test part is damaged: {len(content)} bytes are no whole number of 3074-byte"
        with pytest.raises(ValueError, match=told):
            load_dataset(str(folder))


def python2(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def test_cifar100_in_its_python_form_runs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    chw = PIXELS.transpose(0, 3, 1, 2).reshape(40, -1)
    for name, kept in (("train", slice(30)), ("test", slice(30, None))):
        batch = {b"fine_labels": LABELS[kept].tolist(), b"coarse_labels": [0], b"data": chw[kept]}
        (folder / name).write_bytes(python2(batch))
    names = [b"apple", b"baby", b"bear", b"bed"]
    (folder / "meta").write_bytes(python2({b"fine_label_names": names}))
    assert_is_read_packed_too(folder)
    ran = tmp_path / "ran"
    for name, content in (("meta", [1]), ("meta", Path), ("test", {b"data": chw}), ("train", Path)):
        kept_content = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match="is damaged or"):
            load_dataset(str(folder))
        (folder / name).write_bytes(kept_content)
    (folder / "meta").write_bytes(
        b"\x80\x02cos\nmkdir\n(X\x00\x00\x00\x00tR.".replace(
            b"X\x00\x00\x00\x00", b"X" + struct.pack("<I", len(str(ran))) + str(ran).encode()
        )
    )
    with pytest.raises(ValueError, match=r"it asks for os\.mkdir, which is not admitted"):
        load_dataset(str(folder))
    assert not ran.exists()


def test_the_same_bytes_in_another_shape_are_other_images(tmp_path: Path) -> None:
    pixels = PIXELS[:, :, :20]
    turned = pixels.reshape(len(pixels), pixels.shape[2], pixels.shape[1], 3)
    for number, images in enumerate((pixels, turned)):
        np.savez(tmp_path / f"{number}.npz", images=images, labels=LABELS)
    first, second = (load_dataset(str(tmp_path / f"{number}.npz")) for number in (0, 1))
    assert first.fingerprint != second.fingerprint


def test_images_in_arrays_have_the_bounds_of_files() -> None:
    pixels = np.broadcast_to(np.uint8(0), (8001, 8000))
    with pytest.raises(ValueError, match="8000×8001 pixels; allowed: 64,000,000 in all"):
        EncodedImage("0", pixels, 0).decode(32, "crop")


def test_npz_and_npy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    np.savez_compressed(tmp_path / "b.npz", x=PIXELS.transpose(0, 3, 1, 2), y=LABELS[:, None])
    np.save(tmp_path / "c.npy", PIXELS)
    np.save(tmp_path / "c_labels.npy", LABELS)
    prints = {
        load_dataset(str(tmp_path / name)).fingerprint for name in ("a.npz", "b.npz", "c.npy")
    }
    assert len(prints) == 1
    names = np.array(["cat", "dog", "frog", "bird"])[LABELS]
    np.savez(
        tmp_path / "parts.npz", train_images=PIXELS[:20], train_labels=names[:20],
        val_images=PIXELS[20:30], val_labels=names[20:30],
        test_images=PIXELS[30:, ..., 0], test_labels=names[30:],
    )  # fmt: skip
    data = load_dataset(str(tmp_path / "parts.npz"))
    assert data.classes == ("bird", "cat", "dog", "frog")
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)


def test_names_in_arrays_are_those_of_other_sources(tmp_path: Path) -> None:
    names = np.array(["caf\u00e9", "cafe\u0301", "tea ", "tea"])[LABELS]
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=names)
    assert load_dataset(str(tmp_path / "a.npz")).classes == ("caf\u00e9", "tea")
    np.savez(tmp_path / "b.npz", images=PIXELS, labels=np.char.encode(names, "utf-8"))
    assert load_dataset(str(tmp_path / "b.npz")).classes == ("caf\u00e9", "tea")
    surrogates = np.array(["a", "b\udcff"] * 20)  # which JSON cannot hold
    np.savez(tmp_path / "b.npz", images=PIXELS, labels=surrogates)
    assert load_dataset(str(tmp_path / "b.npz")).classes == ("a", "b\\udcff")
    for labels, told in (
        (np.char.encode(names, "utf-16"), r"b.npz has labels of bytes that are no UTF-8"),
        (np.array(["tea", " "] * 20), r"b.npz: the label of image 1 is empty"),
    ):
        np.savez(tmp_path / "b.npz", images=PIXELS, labels=labels)
        with pytest.raises(ValueError, match=told):
            load_dataset(str(tmp_path / "b.npz"))
    np.savez(
        tmp_path / "c.npz", x_train=PIXELS, y_train=names, x_test=PIXELS[:4], y_test=[0, 1, 0, 1]
    )
    with pytest.raises(ValueError, match=r"labels of texts in one part and numbers in another"):
        load_dataset(str(tmp_path / "c.npz"))


@pytest.mark.parametrize(
    "names", ["x_train y_train x_dev y_dev", "X_train Y_train X_valid Y_valid",
              "train_images train_labels testing_images testing_labels",
              "train_data train_label holdout_data holdout_label"],
)  # fmt: skip
def test_arrays_are_parts_by_other_names(tmp_path: Path, names: str) -> None:
    arrays = (PIXELS[:30], LABELS[:30], PIXELS[30:], LABELS[30:])
    np.savez(tmp_path / "A.NPZ", **dict(zip(names.split(), arrays, strict=True)), more=LABELS)
    (tmp_path / "A.NPZ.npz").rename(tmp_path / "A.NPZ")
    data = load_dataset(str(tmp_path / "A.NPZ"))
    assert (len(data.train), len(data.test)) == (30, 10)
    assert data.notes[0].startswith("1 file passed over: 1 no pair of arrays")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [({"images": PIXELS, "labels": LABELS, "test_images": PIXELS, "test_labels": LABELS},
      "has 'images' beside 'test_images', and which part it is cannot be told"),
     ({"pictures": PIXELS}, "has the arrays pictures; expected: images and labels"),
     ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "type float32"),
     ({"images": PIXELS, "labels": LABELS[:5]}, "40 images and labels of type"),
     ({"images": PIXELS, "labels": LABELS - 1}, "labels from -1 to 2"),
     ({"images": np.array([{}], dtype=object), "labels": LABELS}, "cannot be read")],
)  # fmt: skip
def test_npz_mistakes(tmp_path: Path, arrays: dict, told: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("name", ["x.npy", "x_labels.npy"])
def test_an_npz_that_is_called_npy_is_named(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    np.save(tmp_path / "x_labels.npy", LABELS)
    with (tmp_path / name).open("wb") as file:
        np.savez(file, images=PIXELS, labels=LABELS)
    told = rf"x\.npy cannot be read: {name} is an \.npz file; name it so"
    with pytest.raises(ValueError, match=told):
        load_dataset(str(tmp_path / "x.npy"))


# --- classes of different size ------------------------------------------------------------------


def test_metrics_equal_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(
        torch.tensor([0.8, 0.15, 0.04, 0.01]), 500, True, generator=generator
    )
    logits = torch.randn(500, 4, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 4)
    logits[:, 3] -= 10  # a class that is never answered
    result, guessed = score(logits, labels), logits.argmax(1)
    expected = metrics.precision_recall_fscore_support(labels, guessed, zero_division=0)
    assert result.balanced_accuracy == pytest.approx(
        metrics.balanced_accuracy_score(labels, guessed)
    )
    assert result.macro_f1 == pytest.approx(metrics.f1_score(labels, guessed, average="macro"))
    assert [p or 0 for p in result.precision] == pytest.approx(expected[0])
    assert result.precision[3] is None
    assert list(result.per_class) == pytest.approx(expected[1])
    assert list(result.f1) == pytest.approx(expected[2])
    assert result.constant_accuracy == labels.bincount().max() / 500


def test_balanced_weights_and_draws() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = balanced_weights(labels, 3)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[0] * 90 == pytest.approx(float(weights[1] * 10))
    assert weights[2] == 0
    plan = Plan.of(small_config(epochs=50), 100, 32)
    indices = torch.arange(100)
    orders = [epoch.order(indices, weights[labels]) for epoch in plan.epochs]
    assert torch.equal(orders[5], plan.epochs[5].order(indices, weights[labels]))
    assert labels[torch.cat(orders)].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert sorted(plan.epochs[0].order(indices).tolist()) == list(range(100))
    with pytest.raises(ValueError, match="sampling=balanced draws images anew"):
        RunConfig(model="cnn", epochs=1, sampling="balanced", hard_share=0.5)


@pytest.mark.parametrize(
    "setting", ["class_weights", pytest.param("sampling", marks=pytest.mark.slow)]
)
def test_small_classes_are_found_with_balance(few_digits, tmp_path: Path, setting: str) -> None:
    """One class of 60 images beside two of 4: without balance the small ones are never answered."""
    from dataclasses import replace

    chosen = []
    for label, count in ((0, 60), (1, 5), (7, 5)):
        chosen += (few_digits.train.labels == label).nonzero()[:count, 0].tolist()
    data = replace(few_digits, train=few_digits.train.subset(torch.tensor(chosen)), fingerprint="u")
    settings = {"epochs": 6, "batch_size": 32, "val_fraction": 0, "lr": 0.001}
    keep = torch.isin(data.test.labels, torch.tensor([0, 1, 7]))
    data = replace(data, test=data.test.subset(keep.nonzero()[:, 0]))
    plain = fit(small_config(**settings), data, tmp_path / "plain").result()
    balanced = fit(
        small_config(**settings, **{setting: "balanced"}), data, tmp_path / "balanced"
    ).result()
    assert balanced["test_balanced_accuracy"] > plain["test_balanced_accuracy"] + 0.1


def test_a_constant_answer_is_said_first(tmp_path: Path, cli: Cli) -> None:
    for name, count in (("many", 150), ("few", 6)):
        for index in range(count):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index + 1000 * count).integers(0, 256, (8, 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(
                tmp_path / "photos" / name / f"{index}.png"
            )
    found = cli("train", "common", "model=cnn", "epochs=1", "--data", "photos", "--out", "run")
    assert "always answering 'many' would score" in found.err
    assert "balanced" in found.out and "a constant answer" in found.out
