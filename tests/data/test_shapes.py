"""Images of any form: height × width, one channel, the three ways to fit, the whole way through."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, inspect_data
from PIL import Image
from sklearn.datasets import load_digits
from test_images import encoded, make, picture

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.run import Run
from halfmeg.data.augment import Augmentation, augment, jitter_colour, shrink
from halfmeg.data.corrupt import CORRUPTIONS, corrupt
from halfmeg.data.decode import FITS, FitName, decode_image
from halfmeg.data.load import load_dataset
from halfmeg.data.options import DataOptions, read_size
from halfmeg.data.shape import ImageShape, ImageSize, image_shape, parse_size
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.summary import summarize
from halfmeg.networks.table import build_model

GRAY = DataOptions(channels=1)


def half_and_half(width: int, height: int) -> bytes:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return encoded(Image.fromarray(pixels))


# --- how a size is written ---


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("96x64", (96, 64)), ("96×64", (96, 64)), ("40X40", 40)]
)
def test_a_size_is_a_side_or_height_times_width(text: str, size: object) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "96x", "x64", "96x64x3", "-5", "1.5", "big", "9" * 5000])
def test_what_is_no_size_is_told_in_a_line(text: str) -> None:
    with pytest.raises(ValueError, match="write a side, as 64, or HEIGHTxWIDTH, as 96x64"):
        parse_size(text)


def test_the_option_and_the_setting_are_one() -> None:
    assert read_size(["lr=1", "image_size=96x64"], None) == ((96, 64), ["lr=1"])
    assert read_size([], "48") == (48, [])
    assert read_size([], None) == (32, [])
    assert read_size(["image_size=48"], "48x48")[0] == 48
    with pytest.raises(ValueError, match="given as 48 and as 64; leave one out"):
        read_size(["image_size=64"], "48")


@pytest.mark.parametrize("size", [7, 513, (96, 7), (600, 64)])
def test_sides_out_of_range(size: object) -> None:
    with pytest.raises(ValueError, match=r"image_size=.* is out of range; allowed: \[8, 512\]"):
        load_dataset("digits", image_size=size)  # type: ignore[arg-type]


def test_channels_are_one_or_three() -> None:
    for settings in (["channels=2"], ["channels=gray"]):
        with pytest.raises(ValueError, match=r"channels=.* is not known; allowed: 1, 3"):
            DataOptions().override(settings)
    assert DataOptions().override(["channels=1"]) == (GRAY, [])
    assert DataOptions.from_dict(GRAY.to_dict()) == GRAY


# --- pixels ---


def test_height_stands_before_width() -> None:
    image = decode_image(half_and_half(100, 50), (20, 40))
    assert image.pixels.shape == (3, 20, 40)
    assert image.size == (100, 50)
    expected = np.asarray(
        Image.open(io.BytesIO(half_and_half(100, 50))).resize((40, 20), Image.Resampling.BICUBIC)
    )
    assert np.array_equal(image.pixels, expected.transpose(2, 0, 1))


def test_the_three_ways_to_fit() -> None:
    wide = half_and_half(200, 50)
    crop, pad, squash = (decode_image(wide, (32, 64), f).pixels for f in ("crop", "pad", "squash"))
    assert (crop[0].max(), crop[2].max()) == (255, 255) and crop.max(0).min() > 100  # all colour
    assert pad[:, 0].max() == 0 and pad[:, -1].max() == 0  # black above and below
    assert pad[:, 16].max(0).min() > 100  # whole in the middle
    assert squash.max(0).min() > 100
    assert not np.array_equal(crop, squash)


@pytest.mark.parametrize("size", [32, (32, 16), (20, 48)])
@pytest.mark.parametrize("fit", FITS)
def test_the_digits_are_brought_to_size_as_files_are(size: ImageSize, fit: FitName) -> None:
    """As `predict` prepares them for the network that was trained on them."""
    data = load_dataset("digits", image_size=size, options=DataOptions(fit=fit))
    found = {image.tobytes() for part in data.parts.values() for image in part.images.numpy()}
    for image in load_digits().images[:20]:
        file = encoded(Image.fromarray((image * (255 / 16)).round().astype(np.uint8)))
        assert decode_image(file, size, fit).pixels.tobytes() in found
    inspected = inspect_data("digits", image_size=size, options=DataOptions(fit=fit))
    assert inspected.fingerprint == data.fingerprint


def test_an_image_too_narrow_to_pad_is_named(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {"a": 5, "b": 5})
    Image.new("RGB", (900, 2)).save(tmp_path / "photos" / "a" / "line.png")
    found = cli("data", "check", "photos", "fit=pad")
    assert found.code == 1
    assert "a/line.png: 900×2 pixels are too narrow for fit=pad" in found.out


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "1", "I;16"])
def test_one_channel_is_luma(mode: str) -> None:
    image = picture(3, 40).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    in_colour = decode_image(content, 40).pixels
    gray = decode_image(content, (1, 40, 40)).pixels
    assert gray.shape == (1, 40, 40)
    luma = Image.fromarray(in_colour.transpose(1, 2, 0)).convert("L")
    assert np.array_equal(gray[0], np.asarray(luma))
    if mode in ("L", "I;16"):
        assert np.array_equal(gray[0], in_colour[0])  # what is gray is left as it is


def test_sources_of_one_channel(tmp_path: Path) -> None:
    digits = load_dataset("digits", image_size=(24, 16), options=GRAY)
    in_colour = load_dataset("digits", image_size=(24, 16))
    assert digits.image_shape == ImageShape(1, 24, 16)
    assert digits.image_size == (24, 16)
    assert torch.equal(digits.train.images, in_colour.train.images[:, :1])
    assert (len(digits.mean), len(digits.std)) == (1, 1)
    assert digits.fingerprint != in_colour.fingerprint
    random = np.random.default_rng(0)
    np.savez(tmp_path / "g.npz", images=random.integers(0, 256, (40, 20, 30), np.uint8),
             labels=np.arange(40) % 2)  # fmt: skip
    arrays = load_dataset(str(tmp_path / "g.npz"), image_size=(20, 30), options=GRAY)
    assert arrays.train.images.shape[1:] == (1, 20, 30)


def test_cifar10_in_its_own_form_in_gray(tmp_path: Path) -> None:
    from halfmeg.data.cifar import _to_gray
    from halfmeg.data.dataset import Dataset, build_splits

    images = torch.stack([torch.from_numpy(decode_image(encoded(picture(i)), 32).pixels.copy())
                          for i in range(6)])  # fmt: skip
    part = Dataset(images, torch.arange(6) % 2, ("a", "b"))
    gray = _to_gray(build_splits("x", part, part))
    for image, found in zip(images, gray.train.images, strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
        assert np.array_equal(found[0], np.asarray(expected))


def test_the_cache_keeps_forms_apart(tmp_path: Path) -> None:
    make(tmp_path / "photos", {"a": 6, "b": 6})
    source = str(tmp_path / "photos")
    shapes = [
        load_dataset(source, image_size=size, options=options).train.images.shape[1:]
        for _ in range(2)
        for size in (24, (24, 16), (16, 24))
        for options in (DataOptions(), GRAY)
    ]
    assert shapes == 2 * [(3, 24, 24), (1, 24, 24), (3, 24, 16), (1, 24, 16), (3, 16, 24),
                          (1, 16, 24)]  # fmt: skip


def test_the_check_and_its_page_of_gray_and_oblong_images(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {"a": 6, "b": 6})
    report = inspect_data(str(tmp_path / "photos"), image_size=(24, 16), options=GRAY)
    assert report.image_size == (24, 16)
    found = cli("data", "check", "photos", "image_size=24x16", "channels=1", "--html", "p.html")
    assert found.code == 0, found.out
    assert "(height × width), brought to 24×16 pixels" in found.out
    assert "24×16" in (tmp_path / "p.html").read_text()


# --- augmentation and corruption ---


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_take_any_form(channels: int) -> None:
    images = torch.randint(0, 256, (4, channels, 40, 24), dtype=torch.uint8)
    spec = Augmentation(rotation=20, crop=4, crop_mode="reflect", brightness=0.3, contrast=0.3,
                        saturation=0.3, hflip=True, vflip=True, cutout=8)  # fmt: skip
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    result = augment(images, spec, mean, std, generator=torch.Generator().manual_seed(0), size=12)
    assert result.shape == (4, channels, 20, 12)  # the shorter side is 12, proportions are kept
    assert shrink(result, 12) is result


def test_gray_is_jittered_as_gray_in_three_channels_is() -> None:
    images = torch.randint(0, 256, (4, 1, 12, 20), dtype=torch.uint8)

    def jitter(pixels: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return jitter_colour(
            pixels, brightness=0.4, contrast=0.4, saturation=0.4, generator=generator
        )

    torch.testing.assert_close(
        jitter(images).expand(4, 3, 12, 20), jitter(images.expand(4, 3, 12, 20))
    )


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_corruptions_take_any_form(name: str, channels: int) -> None:
    images = torch.randint(0, 256, (3, channels, 40, 24), dtype=torch.uint8)
    result = corrupt(images, name, 2)
    assert result.shape == images.shape and result.dtype == torch.uint8
    assert torch.equal(result, images) == (name == "colour" and channels == 1)  # gray has no colour


# --- networks ---


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [("cnn", 64, 64 * 13 * 13), ("cnn", (16, 40), 64 * 1 * 7), ("resnet", 64, 128 * 4 * 4),
     ("resnet-linear", (96, 64), 128 * 6 * 4), ("resnet-shared", (9, 30), 128 * 1 * 2)],
)  # fmt: skip
def test_the_studys_heads_take_what_comes(name: str, size: object, head: int) -> None:
    shape = image_shape(size)  # type: ignore[arg-type]
    model = build_model(name, 7, shape)
    linear = next(m for m in model.layers[-1].modules() if isinstance(m, torch.nn.Linear))
    assert linear.in_features == head
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


def test_macs_and_memory_of_oblong_images() -> None:
    tall, wide = (build_model("record", 5, size) for size in ((48, 32), (32, 48)))
    assert summarize(tall, (48, 32)).macs == summarize(wide, (32, 48)).macs
    square = summarize(build_model("resnet20", 5, 32), 32).macs - 64 * 5  # all but the head
    assert summarize(build_model("resnet20", 5, (64, 32)), (64, 32)).macs == 2 * square + 64 * 5
    gray = measure_memory(build_model("cnn", 5, (1, 24, 40)), (1, 24, 40))
    colour = measure_memory(build_model("cnn", 5, (24, 40)), (24, 40))
    assert gray.flash_bytes < colour.flash_bytes
    assert gray.ram_bytes <= colour.ram_bytes


@pytest.mark.slow
def test_the_list_of_networks_says_which_sizes_they_take(cli: Cli) -> None:
    listed = cli("models").out
    lines = {words[0]: words for line in listed.splitlines() if (words := line.split())}
    assert lines["cnn"][4] == "16+"
    assert lines["resnet-linear"][4] == "9+"
    assert "Sides are in pixels" in listed
    assert "resnet-shared" in listed
    assert "1,020,490" in listed
    shown = cli("summary", "resnet-linear", "--image-size", "96x64", "--channels", "1")
    assert "[-1, 32, 48, 32]" in shown.out, "height before width"


# --- integers ---


@pytest.mark.parametrize("shape", [(1, 20, 28), pytest.param((3, 28, 20), marks=pytest.mark.slow)])
def test_integers_of_any_form_in_onnx_and_c(shape: tuple[int, int, int]) -> None:
    from halfmeg.artifacts.graph import onnx_logits
    from halfmeg.shipping.answered import Answered
    from halfmeg.shipping.build import build_c
    from halfmeg.shipping.integer import run
    from halfmeg.shipping.integer_onnx import to_onnx
    from halfmeg.shipping.quantize import quantize

    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    mean, std = (0.5,) * shape[0], (0.25,) * shape[0]
    graph = quantize(build_model("cnn", 3, shape).eval(), mean, std, images)
    logits = run(graph, images.numpy())
    assert np.array_equal(onnx_logits(to_onnx(graph), images).numpy(), logits)
    source = build_c(  # raises where one differs
        Answered(graph, "net", "abc", 1.0, images.numpy(), logits)
    )
    assert shutil.which("gcc") is None or source.proof is not None
    channels, height, width = shape
    header = source.files["src/net.h"].decode()
    assert f"NET_HEIGHT {height}\n#define NET_WIDTH {width}\n" in header
    assert f"NET_CHANNELS {channels}\n" in header
    assert ("gray from 0 to 255" in header) == (channels == 1)


# --- the whole way ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and their bundles: oblong in colour, and oblong in gray, laid on black."""
    from halfmeg.shipping.export import export
    from halfmeg.training.fit import fit
    from halfmeg.training.recipes import build_recipe

    folder = tmp_path_factory.mktemp("shapes")
    for part, count in (("train", 30), ("test", 8)):
        for label, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 200))):
            (folder / "photos" / part / label).mkdir(parents=True)
            for index in range(count):
                noise = Image.effect_noise((60 + index, 50), 100).convert("RGB")
                image = Image.blend(noise, Image.new("RGB", noise.size, colour), 0.5)
                image.paste(picture(index, 20), (index, index % 30))
                image.save(folder / "photos" / part / label / f"{index}.png")
    config = dataclasses.replace(
        build_recipe("common"), epochs=8, batch_size=16, val_fraction=0.2, model="cnn"
    )
    forms = {"colour": ((24, 32), DataOptions(fit="squash")),
             "gray": ((32, 24), DataOptions(fit="pad", channels=1))}  # fmt: skip
    targets = ["c", "web"] if shutil.which("clang") and shutil.which("wasm-ld") else ["c"]
    for name, (size, options) in forms.items():
        data = load_dataset(str(folder / "photos"), image_size=size, options=options)
        run = fit(config, data, folder / name)
        export(run, data, folder / f"{name}-bundle", targets=targets, allow_loss=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("colour", (3, 24, 32)), ("gray", (1, 32, 24))])
def test_a_run_and_its_bundle_keep_their_form(
    trained: Path, cli: Cli, name: str, shape: tuple[int, int, int]
) -> None:
    run, bundle = Run.open(trained / name), Bundle.open(trained / f"{name}-bundle")
    assert run.data.image_shape == bundle.image_shape == shape
    assert bundle.described["image_size"] == list(shape[1:])
    assert bundle.described["channels"] == shape[0]
    assert bundle.described["preprocessing"]["size"] == list(shape[1:])
    card = (bundle.folder / "README.md").read_text()
    assert f"batch × {shape[0]} × {shape[1]} × {shape[2]} (channels, height, width)" in card
    again = cli("evaluate", str(run.folder), "--json").json
    assert again["accuracy"] == run.result()["test_accuracy"]
    other = cli("evaluate", str(bundle.folder), "--data", str(trained / "photos"), "--json").json
    assert other["n"] == 16 and other["left_out"] == 0
    answered = cli("predict", str(trained / "photos" / "test"), "--bundle", str(bundle.folder))
    assert len(answered.out.splitlines()) == 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "gray"])
def test_onnx_c_and_page_of_any_form_give_the_integers_bits(trained: Path, name: str) -> None:
    described = Bundle.open(trained / f"{name}-bundle").described
    assert described["proof"]["int8_exact"]
    if shutil.which("gcc"):
        assert "logits" in described["c"]["proof"] and described["c"]["proof"]["logits"] == 24
    if "web" in described and shutil.which("node"):
        assert described["web"]["proof"]["logits"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colour", "gray"])
def test_the_demo_shows_any_form(trained: Path, name: str) -> None:
    from halfmeg.shipping.demo import HEAT_SIZE, _answerer

    bundle = Bundle.open(trained / f"{name}-bundle")
    content = (trained / "photos" / "test" / "red" / "3.png").read_bytes()
    shares, _, heat = _answerer(bundle)(content)
    assert set(shares) == {"red", "blue"}
    shape = bundle.image_shape
    assert heat.size == (shape.width * HEAT_SIZE // 24, shape.height * HEAT_SIZE // 24)


@pytest.mark.slow
def test_a_damaged_form_is_refused(trained: Path, tmp_path: Path) -> None:
    import json

    for change in ({"image_size": [32, 24, 3]}, {"image_size": [4, 24]}, {"std": [0.2, 0.2, 0.2]},
                   {"mean": [], "std": []}, {"image_size": "32x24"}):  # fmt: skip
        shutil.copytree(trained / "gray-bundle", tmp_path / "b")
        path = tmp_path / "b" / "model.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match="is damaged"):
            Bundle.open(tmp_path / "b")
        shutil.rmtree(tmp_path / "b")


@pytest.mark.slow
def test_a_teacher_of_another_form_is_refused(trained: Path, cli: Cli) -> None:
    terms = ("train", "common", "model=cnn", f"teacher={trained / 'gray-bundle'}")
    found = cli(*terms, "--data", str(trained / "photos"), "image_size=32x24")
    assert found.code == 2
    assert found.is_one_line("takes images of 1×32×24 (channels, height, width)", "3×32×24")


def test_small_epochs_keep_the_proportions(tmp_path: Path) -> None:
    from halfmeg.training.fit import fit
    from halfmeg.training.recipes import build_recipe

    make(tmp_path / "photos", {"a": 20, "b": 20})
    data = load_dataset(str(tmp_path / "photos"), image_size=(24, 32), options=GRAY)
    config = dataclasses.replace(
        build_recipe("sprint"), epochs=3, batch_size=16, small_size=12, first_size=9, budget=20_000
    )
    assert fit(config, data, tmp_path / "run").result()["total_macs"] > 0


def test_a_network_of_ones_own_is_told_the_form(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes, in_channels, image_size):\n"
        "        height, width = image_size\n"
        "        super().__init__(nn.Flatten(),\n"
        "            nn.Linear(in_channels * height * width, num_classes))\n"
    )
    make(tmp_path / "photos", {"a": 12, "b": 12})
    terms = ("model=net.py:Net", "epochs=1", "batch_size=8", "image_size=20x12", "channels=1")
    trained = cli("train", "common", *terms, "--data", "photos", "--out", "run", "--json")
    assert trained.code == 0, trained.err
    assert trained.json["macs"] == 20 * 12 * 2


@pytest.mark.slow
def test_the_study_is_compared_on_photographs_at_64_pixels(tmp_path: Path, cli: Cli) -> None:
    make(tmp_path / "photos", {"a": 12, "b": 12})
    found = cli("compare", "cnn", "resnet-linear", "--data", "photos", "image_size=64", "epochs=1",
                "batch_size=8", "--seeds", "1", "--out", "study", "--json")  # fmt: skip
    assert found.code == 0, found.err
    params = {row["name"]: row["params"] for row in found.json["models"]}
    assert params["cnn"] == 65_568 + 64 * 13 * 13 * 2 + 2
    assert params["resnet-linear"] == 485_952 + 128 * 16 * 2 + 2


def test_the_setting_is_no_option(cli: Cli) -> None:
    found = cli("train", "common", "--channels", "1")
    assert found.code == 2
    assert found.is_one_line("settings have no dashes: write channels=")
