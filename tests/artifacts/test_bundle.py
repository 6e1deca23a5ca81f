from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from conftest import Cli, first_digits, small_config, with_tests
from torch import nn

from halfmeg.artifacts.bundle import BUNDLED, Bundle, checksum
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits, build_splits
from halfmeg.data.load import load_dataset
from halfmeg.networks.table import MODELS, build_model
from halfmeg.shipping.export import export
from halfmeg.shipping.verify import verify_onnx
from halfmeg.training.fit import fit
from halfmeg.training.initial import head_of
from halfmeg.training.job import build_network


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    data = first_digits(300)
    run = fit(small_config(model="resnet8", epochs=2, batch_size=25), data, folder / "run")
    export(run, data, folder / "bundle", allow_loss=True)
    return folder / "bundle"


@pytest.fixture
def broken(bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "broken"))


def test_it_rebuilds_from_json_and_safetensors_alone(bundle_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    described = json.loads((bundle_folder / "model.json").read_text())
    described["files"] = {"model.safetensors": described["files"]["model.safetensors"]}
    (bare / "model.json").write_text(json.dumps(described))
    shutil.copy(bundle_folder / "model.safetensors", bare)
    found = Bundle.open(bare).evaluate(first_digits(300))
    assert found.accuracy == described["accuracy"]["test_accuracy"]


Change = Callable[[dict[str, Any]], None]


def setting(key: str, value: object) -> Change:
    def change(described: dict[str, Any]) -> None:
        described[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("format", 9), "format=9 is not known"),
        (setting("model", "vgg"), "model 'vgg' is not known"),
        (setting("model", ["cnn"]), r"Expected `str`, got `array` - at `\$.model`"),
        (setting("model", "cnn"), "does not fit the network.*another version of halfmeg"),
        (setting("classes", ["one"]), "2 to 10,000"),
        (setting("classes", [1] * 10), r"Expected `str`, got `int` - at `\$.classes"),
        (setting("classes", ["a", "b"]), "does not fit the network"),
        (setting("classes", [*"012345678", "0"]), "classes: a name stands there twice"),
        (setting("image_size", 100_000), r"Expected `int` <= 4096 - at `\$.image_size`"),
        (setting("image_size", True), r"Expected `int \| array`, got `bool` - at `\$.image_size`"),
        (setting("mean", [1, 2]), "different numbers of channels"),
        (setting("mean", ["x", 0, 0]), r"Expected `float`, got `str` - at `\$.mean"),
        (setting("std", [0, 1, 1]), "above 0"),
        (setting("std", [1e7, 1, 1]), "out of range"),
        (setting("std", [float("inf"), 1, 1]), "is malformed"),
        (setting("accuracy", {}), "missing required field `test_accuracy`"),
        (setting("temperature", 0), "temperature=0"),
        (setting("files", {"model.safetensors": "0" * 64}), "its checksum is another"),
        (setting("files", {}), "model.safetensors is missing"),
        (setting("files", {"../../secret": "0"}), "'../../secret' is not known"),
        (setting("files", []), "Expected `object`, got `array`"),
    ],
)
def test_an_unfit_description_is_refused(broken: Path, change: Change, message: str) -> None:
    path = broken / "model.json"
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(ValueError, match=message) as refused:
        Bundle.open(broken).load_model()
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_refused(broken: Path, cli: Cli) -> None:
    for name in json.loads((broken / "model.json").read_text())["files"]:
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is damaged or was altered"):
            Bundle.open(broken)
        (broken / name).unlink()
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            Bundle.open(broken)
        (broken / name).write_bytes(content)
    (broken / "model.json").write_bytes(b"[" * 100_000)
    assert cli("predict", "x", "--bundle", str(broken)).is_one_line("model.json is damaged")
    (broken / "model.json").write_bytes(b" " * (2**20 + 1))
    assert cli("predict", "x", "--bundle", str(broken)).is_one_line("larger than 1,048,576")
    assert cli("predict", "x", "--bundle", "nowhere").is_one_line(
        "nowhere is no bundle: it does not exist"
    )
    assert cli("predict", "x", "--bundle", "gatd").is_one_line(
        "it does not exist; did you mean 'gated'?"
    )


def write_weights(folder: Path, content: bytes) -> None:
    """Replace the weights and state their checksum: what somebody who means harm would do."""
    (folder / "model.safetensors").write_bytes(content)
    path = folder / "model.json"
    described = json.loads(path.read_text())
    described["files"]["model.safetensors"] = checksum(content)
    path.write_text(json.dumps(described))


def test_weights_that_mean_harm(broken: Path) -> None:
    huge = (2**62).to_bytes(8, "little") + b"{}"
    wrong = safetensors.torch.save({"head.weight": torch.zeros(10, 64)})
    extra = dict(build_model("resnet8").state_dict()) | {"more": torch.zeros(1)}
    for content in (huge, b"", wrong, safetensors.torch.save(extra), b"\x80\x04K\x01."):
        write_weights(broken, content)
        with pytest.raises(ValueError, match=r"model.safetensors"):
            Bundle.open(broken).load_model()


FUZZ = """
import io, json, random, shutil, sys, time
from pathlib import Path
import numpy as np, torch
from PIL import Image
from halfmeg.artifacts.bundle import Bundle
from halfmeg.data.decode import decode_image
from inputs import picture_files
from test_bundle import write_weights

kind, folder = sys.argv[1], Path(sys.argv[2])
rng = random.Random(0)

def mutate(content):
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place = rng.randrange(len(content)) if content else 0
        what = rng.randrange(5)
        if what == 0 and content:
            content[place] = rng.randrange(256)
        elif what == 1:
            del content[place : place + rng.choice((1, 4, 100, 10**6))]
        elif what == 2:
            content[place:place] = rng.randbytes(rng.choice((1, 4, 100)))
        elif what == 3 and content:
            end = min(len(content), 256)  # headers are where it hurts
            content[rng.randrange(end)] = rng.choice((0, 1, 127, 128, 255))
        else:
            content[place:place] = content[place : place + 50]
    return bytes(content)

refused = slowest = 0
if kind == "images":
    originals = picture_files()
for number in range(2_000):
    started = time.monotonic()
    try:
        if kind == "images":
            image, _ = decode_image(mutate(rng.choice(originals)), 32)
            assert image.shape == (3, 32, 32)
        else:
            if number == 0:
                parts = {n: (folder / n).read_bytes() for n in ("model.json", "model.safetensors")}
            (folder / "model.json").write_bytes(parts["model.json"])
            if number % 3 == 0:
                (folder / "model.json").write_bytes(mutate(parts["model.json"]))
            elif number % 3 == 1:
                (folder / "model.safetensors").write_bytes(mutate(parts["model.safetensors"]))
            else:
                write_weights(folder, mutate(parts["model.safetensors"]))
            Bundle.open(folder).load_model()
    except ValueError as error:
        assert str(error) and len(str(error)) < 10_000
        refused += 1
    finally:
        if kind != "images":
            (folder / "model.safetensors").write_bytes(parts["model.safetensors"])
    slowest = max(slowest, time.monotonic() - started)
peak = [l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]
print(json.dumps({"refused": refused, "slowest": slowest, "peak_bytes": int(peak) * 1024}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["bundles", "images"])
def test_2000_mutations_neither_crash_nor_hang(kind: str, broken: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx", "README.md"):
        (broken / name).unlink()
    described = json.loads((broken / "model.json").read_text())
    described["files"] = {"model.safetensors": described["files"]["model.safetensors"]}
    (broken / "model.json").write_text(json.dumps(described))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FUZZ, kind, str(broken)],
        capture_output=True, text=True, check=False, timeout=300, env=with_tests(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    assert found["refused"] > 500
    assert found["slowest"] < 20
    assert found["peak_bytes"] < 2**30


@pytest.mark.parametrize(("name", "budget"), [("record", 500_000), ("gated", 100_000)])
def test_the_bundled_networks_are_in_the_budget(name: str, budget: int) -> None:
    bundle = Bundle.open(name)
    assert sum(p.numel() for p in bundle.load_model().parameters()) < budget
    assert bundle.model in MODELS
    assert bundle.accuracy["test_accuracy"] > 0.93
    for graph in ("model.onnx", "model.int8.onnx"):
        verify_onnx(bundle, graph)


@pytest.mark.slow
def test_the_bundled_network_gives_its_stated_accuracy(cli: Cli, cifar_original: Path) -> None:
    found = cli("evaluate", "record", "--data", str(cifar_original), "--json")
    assert found.json["accuracy"] == Bundle.open(BUNDLED).accuracy["test_accuracy"]


def test_training_starts_from_a_bundle(bundle_folder: Path, tmp_path: Path) -> None:
    """With the same classes the first step already answers well; another head starts anew."""
    data = first_digits(300)
    terms: dict[str, Any] = {"model": "resnet8", "epochs": 1, "lr": 1e-6, "optimizer": "sgd"}
    started = fit(small_config(**terms, init=str(bundle_folder)), data, tmp_path / "started")
    alone = fit(small_config(**terms), data, tmp_path / "alone")
    first, second = (run.result() or {} for run in (started, alone))
    assert first["test_accuracy"] > second["test_accuracy"] + 0.2


@pytest.mark.parametrize("classes", ["0123456789", "abcdefghij", "1023456789"])
def test_a_head_of_other_classes_starts_anew(bundle_folder: Path, classes: str) -> None:
    """Be they as many, or the same in another order."""
    data = first_digits(300)
    named = replace(
        data,
        train=replace(data.train, classes=tuple(classes)),
        test=replace(data.test, classes=tuple(classes)),
    )
    bundle = Bundle.open(bundle_folder)
    config = small_config(model="resnet8")
    own = build_network(config, named, torch.arange(200)).state_dict()
    started = build_network(replace(config, init=str(bundle_folder)), named, torch.arange(200))
    is_same = tuple(classes) == bundle.classes
    stored = bundle.load_state()
    for name, value in started.state_dict().items():
        of_head = value.shape[:1] == (10,)
        if name in stored:
            assert torch.equal(value, own[name] if of_head and not is_same else stored[name]), name
            assert not (of_head and torch.equal(own[name], stored[name])), name


def test_a_body_of_other_images_does_not_fit(tmp_path: Path) -> None:
    """Only the head may start anew, and a perceptron's first layer depends on the images' size."""
    config = small_config(model="mlp", epochs=1)
    data = first_digits(40)
    export(fit(config, data, tmp_path / "run"), data, tmp_path / "bundle", allow_loss=True)
    larger = load_dataset("digits", image_size=40)
    started = replace(config, init=str(tmp_path / "bundle"))
    with pytest.raises(ValueError, match=r"is \(\d+, 3072\), expected .*; add image_size=32, or"):
        fit(started, larger, tmp_path / "none")


class Perceptron(nn.Sequential):
    """Handed over as an instance, it has its number of classes already."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, 10))


def ten_classes_alone(num_classes: int) -> nn.Module:
    if num_classes != 10:
        raise ValueError("there are ten digits")
    return Perceptron()


@pytest.mark.parametrize(
    ("model", "count", "head"),
    [
        ("resnet", 10, {"layers.13.layers.10.weight", "layers.13.layers.10.bias"}),
        ("sprint", 43, {"head.weight"}),  # one class more makes its body narrower
        (Perceptron(), 10, {"3.weight", "3.bias"}),
        (ten_classes_alone, 10, {"3.weight", "3.bias"}),
    ],
)
def test_the_head_is_what_the_number_of_classes_decides(
    model: Any, count: int, head: set[str]
) -> None:
    data = first_digits(300)
    train = replace(data.train, classes=tuple(map(str, range(count))))
    config = small_config(model=model)
    built = build_model(config.model, count)
    assert head_of(built, config, replace(data, train=train)) == head


def test_images_that_the_starting_weights_know_are_left_out(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """The bundle was trained on the first 300 of these digits, the run from it on 100 others."""
    digits = load_dataset("digits").train

    def others(train: range, test: list[int]) -> DataSplits:
        parts = (digits.subset(torch.tensor([*indices])) for indices in (train, test))
        return build_splits("others", *parts)

    terms: dict[str, Any] = {"model": "resnet8", "epochs": 1, "threads": 1}
    config = small_config(**terms, init=str(bundle_folder))
    own = others(range(400, 500), [*range(600, 650)])
    run = fit(config, own, tmp_path / "run")
    asked = others(range(700, 800), [*range(280, 300), *range(490, 500), *range(500, 550)])
    export(run, own, tmp_path / "bundle", allow_loss=True)
    for found in (run.evaluate(asked), Bundle.open(tmp_path / "bundle").evaluate(asked)):
        assert (found.left_out, found.n) == (30, 50)
    taught = small_config(**terms, teacher=str(bundle_folder))
    found = fit(taught, own, tmp_path / "taught").evaluate(asked)
    assert (found.left_out, found.n) == (30, 50)
    for setting in ("init", "teacher"):
        wrong = small_config(**terms, **{setting: str(bundle_folder)})
        with pytest.raises(
            ValueError, match=f"{setting}=.* was trained on 20 of the 80 test images"
        ):
            fit(wrong, asked, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_mistakes_in_init(bundle_folder: Path, cli: Cli) -> None:
    wrong = cli("train", "common", "model=cnn", f"init={bundle_folder}")
    assert wrong.is_one_line("holds a resnet8, not a cnn; add model=resnet8")
    assert cli("train", "common", "init=nowhere").is_one_line("nowhere is no bundle")
    assert RunConfig(model="cnn", epochs=1).init == ""
