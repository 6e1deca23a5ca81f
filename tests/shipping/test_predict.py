from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from PIL import Image

from halfmeg.artifacts.bundle import BUNDLED, Bundle, checksum
from halfmeg.artifacts.weights import weights_to_bytes
from halfmeg.data.load import load_dataset
from halfmeg.data.scan import find_images
from halfmeg.networks.table import build_model
from halfmeg.shipping.demo import _answerer
from halfmeg.shipping.predict import predict


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One picture in several formats and modes, in a folder with something broken."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    ramp = np.linspace(0, 255, 60 * 80 * 3).reshape(60, 80, 3).astype(np.uint8)
    image = Image.fromarray(ramp)
    for name in ("a.png", "b.JPG", "c.webp", "d.bmp", "deeper/e.gif", "f.tiff"):
        image.save(folder / name)
    image.convert("L").save(folder / "gray.png")
    image.convert("RGBA").save(folder / "clear.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "text.png").write_text("no image either")
    return folder


def test_a_folder_of_any_formats(cli: Cli, photos: Path) -> None:
    found = cli("predict", "photos", "--json")
    assert found.code == 1
    rows = [row for row in found.json if "error" not in row]
    assert len(found.json) == len(rows) + 1
    assert [Path(row["path"]).name for row in rows] == [
        "a.png", "b.JPG", "c.webp", "clear.png", "d.bmp", "e.gif", "f.tiff", "gray.png",
    ]  # fmt: skip
    assert "text.png: cannot identify image file; JPEG, PNG and most" in found.err
    assert "1 file passed over: 1 no image format that is read (.txt)" in found.err
    for row in rows:
        assert row["label"] == row["top"][0]["label"]
        assert row["probability"] == row["top"][0]["probability"]
        assert len(row["top"]) == 3
        assert row["top"][0]["probability"] >= row["top"][1]["probability"]
    lossless = {row["label"] for row in rows if row["path"][-3:] in ("png", "bmp")}
    assert len(lossless - {rows[-1]["label"]}) <= 1


def test_patterns_top_and_csv(cli: Cli, photos: Path) -> None:
    found = cli("predict", "photos/*.png", "photos/a.png", "--top", "1", "--csv")
    rows = list(csv.reader(io.StringIO(found.out)))
    assert rows[0] == ["path", "label", "probability", "error", "unfamiliar"]
    assert len(rows) == 5, "each file once"
    assert [row[0] for row in rows[1:] if row[3]] == ["photos/text.png"]
    table = cli("predict", "photos/a.png")
    assert table.code == 0
    assert "photos/a.png" in table.out


def test_folders_that_a_pattern_matches_are_looked_into(cli: Cli, photos: Path) -> None:
    (photos / "empty").mkdir()
    (photos / "gone.png").symlink_to("nowhere")
    named = [*photos.glob("*.*"), photos / "deeper"]
    every, _ = find_images([str(path) for path in named if path.exists()])
    for pattern in (f"{photos}/*", f"{photos}/**"):
        found, passed_over = find_images([pattern])
        assert sorted(found) == sorted(every)
        assert photos / "deeper" / "e.gif" in found
        assert [item.reason for item in passed_over] == ["broken link"]
    shutil.copy(photos / "notes.txt", photos / "deeper")
    assert len(find_images([f"{photos}/*", str(photos)])[1]) == 2, "each once"
    refused = cli("predict", "photos/emp*")
    assert refused.is_one_line("photos/emp* is a pattern without images")


def test_orientation_is_honoured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright.rotate(180).save(tmp_path / "turned.png", exif=exif)
    bundle = Bundle.open(BUNDLED)
    first, second = predict(bundle, [tmp_path / "upright.png", tmp_path / "turned.png"])
    assert [name for name, _ in first.top] == [name for name, _ in second.top]
    assert [p for _, p in first.top] == pytest.approx([p for _, p in second.top], abs=1e-5)


def test_probabilities_use_the_temperature(tmp_path: Path) -> None:
    from dataclasses import replace

    Image.new("RGB", (32, 32), "blue").save(tmp_path / "blue.png")
    bundle = Bundle.open(BUNDLED)
    (sure,) = predict(bundle, [tmp_path / "blue.png"], top=10)
    (unsure,) = predict(replace(bundle, temperature=100.0), [tmp_path / "blue.png"], top=10)
    assert sum(p for _, p in sure.top) == pytest.approx(1)
    assert unsure.top[0][1] < sure.top[0][1]
    assert [name for name, _ in sure.top] == [name for name, _ in unsure.top]


def test_an_image_that_is_named_twice_has_two_answers(photos: Path) -> None:
    path = photos / "a.png"
    first, broken, second = predict(Bundle.open(BUNDLED), [path, photos / "text.png", path])
    assert first == second
    assert broken.error is not None


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """A bundle whose network gives finite logits for black images alone."""
    model = build_model("logistic")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 3e38 if parameter.ndim > 1 else 0.5)
    weights = weights_to_bytes(model)
    described = json.loads((BUNDLED / "model.json").read_text()) | {
        "model": "logistic", "mean": [0.0] * 3, "std": [1.0] * 3, "familiarity": None,
        "files": {"model.safetensors": checksum(weights)},
    }  # fmt: skip
    folder = tmp_path / "overflowing"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "model.json").write_text(json.dumps(described))
    return folder


def test_an_image_without_numbers_is_an_error_and_the_rest_go_on(
    cli: Cli, overflowing: Path, tmp_path: Path
) -> None:
    for name in ("a-black", "b-white", "c-black"):
        colour = name.partition("-")[2]
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    words = ["predict", "a-black.png", "b-white.png", "c-black.png", "--bundle", str(overflowing)]
    found = cli(*words, "--json")
    assert found.code == 1
    told = "the network gives no numbers for it"
    assert [row.get("error") for row in found.json] == [None, told, None]
    assert found.json[0]["probability"] == pytest.approx(0.1)
    lines = cli(*words)
    assert lines.code == 1
    assert f"b-white.png: {told}" in lines.err
    assert "nan" not in lines.out
    assert len(lines.out.splitlines()) == 2


def test_the_demo_says_so_too(overflowing: Path, tmp_path: Path) -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs the extra `demo`")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    answer = _answerer(Bundle.open(overflowing))
    classes, remark, picture = answer((tmp_path / "white.png").read_bytes())
    assert (classes, remark) == ({}, "The network gives no numbers for it.")
    assert picture.size == (256, 256)
    assert gradio.Label().postprocess(classes) is not None


def test_mistakes(cli: Cli, photos: Path) -> None:
    (photos / "empty").mkdir()
    assert cli("predict", "nothing.jpg").is_one_line("nothing.jpg is a file that does not exist")
    assert cli("predict", "photos/empty").is_one_line("is a folder without images")
    assert cli("predict", "photos/a.png", "--top", "0").is_one_line("top=0")
    assert len(find_images([str(photos), str(photos / "a.png")])[0]) == 9


@pytest.mark.slow
def test_it_answers_as_evaluation_does(cifar_jpeg: Path, tmp_path: Path) -> None:
    test = load_dataset(str(cifar_jpeg)).test.subset(torch.arange(0, 10_000, 100))
    paths = []
    for index, pixels in enumerate(test.images.permute(0, 2, 3, 1).numpy()):
        paths.append(tmp_path / f"{index:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    right = [
        answer.top[0][0] == test.classes[label]
        for answer, label in zip(
            predict(Bundle.open(BUNDLED), paths), test.labels.tolist(), strict=True
        )
    ]
    assert sum(right) > 75
