"""A bundle of an own network: exported with proof, used without its Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Cli, small_config
from test_graph import MEAN, STD, float_logits
from test_integer import pixels
from test_own import network, write
from torch import Tensor, nn

from halfmeg import fit
from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import check_graph, onnx_logits
from halfmeg.data.dataset import DataSplits
from halfmeg.data.shape import image_shape
from halfmeg.evaluation.explain import grad_cam
from halfmeg.networks.protocol import last_map
from halfmeg.networks.summary import count_params
from halfmeg.shipping.bench import bench
from halfmeg.shipping.demo import _answerer
from halfmeg.shipping.export import export
from halfmeg.shipping.onnx import quantize_by_library, to_onnx

# its layers stand in another order than they run in, its branch ends in a map of its own
ODD_ORDER = network(
    "self.bn1 = nn.BatchNorm2d(8)\nself.conv2 = nn.Conv2d(8, 8, 3, padding=1)\n"
    "self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)\nself.bn2 = nn.BatchNorm2d(8)\n"
    "self.head = nn.Linear(8, num_classes)",
    "x = F.relu(self.bn1(self.conv1(x)))\n"
    "x = x + F.relu(self.bn2(self.conv2(x)))\nreturn self.head(x.mean((2, 3)))",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, few_digits: DataSplits) -> Path:
    """A bundle whose network's Python is gone."""
    folder = tmp_path_factory.mktemp("own")
    write(folder, ODD_ORDER)
    config = small_config(model=f"{folder}/net.py:Net", epochs=2, batch_size=32, val_fraction=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = fit(config, few_digits, "run")
        model = run.load_model().eval()
        layer = last_map(model, 32)
        assert layer is not None
        heat = grad_cam(model, layer, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
        assert heat.shape == (2, 32, 32)
        _, proof = export(run, few_digits, "bundle", allow_loss=True)
    assert proof.max_difference < 1e-3
    (folder / "net.py").unlink()
    shutil.rmtree(folder / "run")
    return folder / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A copy of it in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "bundle")
    return Bundle.open("bundle")


def test_a_bundle_needs_no_python_of_the_users(
    bundle: Bundle, few_digits: DataSplits, cli: Cli, pictures: Path
) -> None:
    described = json.loads((bundle.folder / "model.json").read_text())
    assert described["model"] == "net.py:Net"
    assert len(described["source"]["sha256"]) == 64
    assert described["recipe"]["model"] == "net.py:Net"  # of a folder that is nobody's business
    assert not [path for path in bundle.folder.rglob("*") if path.suffix == ".py"]
    assert "net.py:Net" in (bundle.folder / "README.md").read_text()
    assert bundle.evaluate(few_digits).accuracy == bundle.accuracy["test_accuracy"]
    done = cli("predict", str(pictures / "test"), "--bundle", "bundle", "--json")
    assert done.code == 0, done.err
    assert len(done.json) == len(few_digits.test)
    with pytest.raises(ValueError, match=r"a network of one's own, without its Python"):
        bundle.load_model()
    image = next((pictures / "test").rglob("*.png"))
    answers, _, picture = _answerer(bundle)(image.read_bytes())
    assert len(answers) > 1
    assert picture.size
    done = cli("train", "common", "teacher=bundle", "epochs=1", "--data", str(pictures))
    assert done.code == 2
    assert done.is_one_line("teacher=bundle holds a network of one's own")


def test_an_operator_without_a_form_in_integers_is_named(
    cli: Cli, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime quantizes then; what stands in the way of C is said where that is seen."""
    grouped = network(
        "self.conv = nn.Conv2d(3, 8, 3, 2, 1)\nself.norm = nn.GroupNorm(2, 8)\n"
        "self.head = nn.Linear(8, num_classes)",
        "return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))",
    )
    write(tmp_path, grouped)
    monkeypatch.chdir(tmp_path)
    cli("train", "common", "model=net.py:Net", "epochs=1", "--data", str(pictures), "--out", "run")
    done = cli("export", "run", "--out", "bundle", "--allow-loss")
    why = "aten.group_norm (norm) has no int8 form"
    assert f"made by onnxruntime, as {why}" in done.out
    card = (tmp_path / "bundle" / "README.md").read_text().replace("\\", "")
    assert f"made by onnxruntime's quantizer, as {why}; there is no C of it." in card
    done = cli("export", "run", "--out", "c", "--allow-loss", "--target", "c")
    assert done.code == 2
    assert done.is_one_line(why)


class Asked(nn.Module):
    """A network with operators that the integers lack, as `of` says."""

    def __init__(self, of: Callable[[Asked, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of = of
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(2, 1, 3, padding=1)
        self.rows = nn.GRU(96, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.of(self, self.conv(x).relu()))


def attend(net: Asked, x: Tensor) -> Tensor:
    both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return (x * net.gate(both).sigmoid()).mean((2, 3))


def standardize(_: Asked, x: Tensor) -> Tensor:
    away = x - x.mean((2, 3), keepdim=True)
    return (away / (x.std((2, 3), keepdim=True) + 0.1)).amax((2, 3))


WITHOUT_INTEGERS: dict[str, Callable[[Asked, Tensor], Tensor]] = {
    "spatial attention": attend,
    "features of length 1": lambda net, x: F.normalize(x.mean((2, 3)), dim=1),
    "standardized maps": standardize,
    "a GRU over rows": lambda net, x: net.rows(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1],
}


@pytest.mark.parametrize("name", WITHOUT_INTEGERS)
def test_common_operators_beyond_the_integers_are_exported(name: str) -> None:
    """The graphs are bounded as a bundle's have to be, and onnxruntime quantizes them."""
    net, images = Asked(WITHOUT_INTEGERS[name]).eval(), pixels(40, 12)
    plain = to_onnx(net, MEAN, STD, 12)
    expected = float_logits(net, images)
    for content, allowed in (plain, 1e-3), (quantize_by_library(plain, images), 0.2):
        check_graph(content, image_shape(12), count_params(net))
        for count in (1, 40):
            away = onnx_logits(content, images[:count], batch_size=count) - expected[:count]
            assert away.square().mean().sqrt() <= allowed * expected.std()


@pytest.mark.parametrize(
    ("layer", "forward", "told"),
    [
        (  # the exporter makes a constant of the batch
            "self.head = nn.Linear(3, num_classes)",
            "both = self.head(torch.cat([x, x.flip(3)]).mean((2, 3)))\n"
            "one, other = both.chunk(2)\nreturn one + other",
            ["model.int8.onnx cannot be made", "aten.cat", "quantizer raises Invalid"],
        ),
        (
            "self.head = nn.Linear(3 * 32 * 17, num_classes)",
            "return self.head(torch.fft.rfft2(x).abs().flatten(1))",
            ["halfmeg: bundle/model.onnx cannot be used: its node DFT takes steps"],
        ),
    ],
    ids=["no quantizer takes it", "not bounded"],
)
def test_what_makes_no_bundle_is_one_line(
    cli: Cli, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch,
    layer: str, forward: str, told: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path, network(layer, forward))
    cli("train", "common", "model=net.py:Net", "epochs=1", "--data", str(pictures), "--out", "run")
    done = cli("export", "run", "--out", "bundle", "--allow-loss")
    assert done.code == 2
    assert done.is_one_line(*told)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_each_of_its_graphs_is_timed(bundle: Bundle) -> None:
    for row in bench(bundle, threads=[1], rounds=1, runtimes=["onnxruntime", "onnxruntime int8"]):
        assert row.latency_ms > 0


def test_training_starts_from_its_weights(
    bundle: Bundle, few_digits: DataSplits, tmp_path: Path
) -> None:
    write(tmp_path, ODD_ORDER)
    config = small_config(
        model="net.py:Net", init="bundle", epochs=1, lr=1e-9, optimizer="sgd", val_fraction=0.2
    )
    weights = fit(config, few_digits, "again").load_model().state_dict()
    for name, value in bundle.load_state().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.allclose(weights[name], value, atol=1e-5)
    assert sum(p.numel() for p in bundle.load_state().values()) >= count_params(
        fit(config, few_digits, "third").load_model()
    )


LONGER = ODD_ORDER.replace("self.conv1(x)", "self.conv1(self.first(x))").replace(
    "self.head =", "self.first = nn.Conv2d(3, 3, 1)\n        self.head ="
)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (ODD_ORDER.replace("8", "6"), r"bn1\.weight is \(8,\), expected \(6,\)"),
        (LONGER, r"first\.weight is nothing, expected \(3, 3, 1, 1\)"),
    ],
)
def test_training_does_not_start_from_weights_that_fit_in_part(
    bundle: Bundle, few_digits: DataSplits, tmp_path: Path, other: str, told: str
) -> None:
    write(tmp_path, other)
    config = small_config(model="net.py:Net", init="bundle", epochs=1)
    with pytest.raises(ValueError, match=f"init=bundle does not fit the network: {told}; build it"):
        fit(config, few_digits, "again")


def test_a_forged_bundle_loads_no_place(bundle: Bundle, tmp_path: Path) -> None:
    described = json.loads((bundle.folder / "model.json").read_text())
    write(tmp_path, "raise SystemExit('this must not run')", "evil.py")
    described["model"] = "evil.py:Net"
    (bundle.folder / "model.json").write_text(json.dumps(described))
    assert Bundle.open(bundle.folder).is_own
    del described["files"]["model.onnx"]
    (bundle.folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.onnx is missing"):
        Bundle.open(bundle.folder)


def test_a_file_to_start_from(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    done = cli("new", "network", "mynet.py")
    assert done.code == 0, done.err
    lines = (tmp_path / "mynet.py").read_text().splitlines()
    assert len(lines) <= 35
    assert "halfmeg compare mynet.py:Net resnet20" in done.out
    assert "mynet.py:Net" in lines[2]
    assert cli("new", "network", "mynet.py").is_one_line("mynet.py exists already")
    assert cli("new", "network", "mynet.txt").is_one_line("mynet.txt", "ends in .py")
    done = cli("summary", "mynet.py:Net", "--json")
    assert done.json["within_budget"]
    terms = ("model=mynet.py:Net", "epochs=1", "--data", str(pictures), "--out", "run")
    assert cli("train", "common", *terms).code == 0


@pytest.mark.slow
def test_a_file_to_start_from_is_compared(cli: Cli, pictures: Path) -> None:
    assert cli("new", "network", "mynet.py").code == 0
    done = cli(
        "compare", "mynet.py:Net", "logistic", "epochs=1", "--seeds", "1", "--json",
        "--data", str(pictures),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.json["verdicts"]) == 1
