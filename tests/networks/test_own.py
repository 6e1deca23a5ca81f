"""Networks of the user's own: found at their place, tried out, and kept as text."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, small_config
from torch import nn

from halfmeg import Run, RunConfig, build_model, build_recipe, compare, fit, resume
from halfmeg.artifacts.bundle import open_network
from halfmeg.artifacts.sources import check_outside
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.own import build_own, needs_plain_order
from halfmeg.networks.summary import count_params
from halfmeg.networks.trial import HEADER_BYTES, _Trial, try_out
from halfmeg.places.load import load
from halfmeg.places.place import PlaceWarning, file_name, hand_over, is_place, locate
from halfmeg.places.source import read_source
from halfmeg.search.budget import Limits
from halfmeg.search.finish import choose_baselines
from halfmeg.search.record import write_stored
from halfmeg.search.run import describe_search, open_search
from halfmeg.studies.measure import measure

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 4, 1)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width * 64, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).flatten(1))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "net.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return name


def network(init: str, forward: str, before: str = "", arguments: str = "num_classes") -> str:
    """The text of a network from the lines of its two methods."""
    return "\n".join(
        [
            "import torch, random", "from torch import nn", "import torch.nn.functional as F",
            before, "class Net(nn.Module):", f"    def __init__(self, {arguments}):",
            "        super().__init__()",
            textwrap.indent(textwrap.dedent(init).strip(), 8 * " "),
            "    def forward(self, x):",
            textwrap.indent(textwrap.dedent(forward).strip(), 8 * " "),
        ]
    )  # fmt: skip


HEAD = "self.head = nn.Linear(3072, num_classes)"
RUN = "return self.head(x.flatten(1))"

FAULTS: dict[str, tuple[str, list[str]]] = {
    "no Python": ("class Net(:\n    pass", ["net.py:Net is no Python", "line 1"]),
    "not text": ("\0", ["net.py:Net is no Python"]),
    "raises on import": ("x = 1\ny = x / 0", ["raises on import", "ZeroDivisionError", "(line 2)"]),
    "raises a kind of its own on import": (
        "class Odd(BaseException): pass\nraise Odd", ["raises on import", "Odd"]),
    "raises when asked for a name": (
        "def __getattr__(name): raise ImportError('needs foo')",
        ["raises on import", "ImportError: needs foo", "(line 1)"]),
    "leaves on import": ("import sys\nsys.exit(3)", ["raises on import", "SystemExit"]),
    "misses a module": ("import nosuchmodule", ["raises on import", "nosuchmodule"]),
    "another name": (network(HEAD, RUN).replace("Net", "Nett"), ["no 'Net'", "'Nett'?"]),
    "nothing to call": ("Net = 3", ["int", "nothing to call"]),
    "no num_classes": (network("self.head = nn.Linear(3072, n)", RUN, arguments="n=10"),
                       ["takes no num_classes"]),
    "other arguments": (network(HEAD, RUN, arguments="num_classes, depth"),
                        ["needs the argument 'depth'"]),
    "by position only": (network(HEAD, RUN, arguments="num_classes, /"),
                         ["takes 'num_classes' by its position only", "'/'"]),
    "raises when built": (network("raise RuntimeError('no\\nway')", RUN),
                          ["raises when it is called", "RuntimeError: no way", "(line 8)"]),
    "no module": ("def Net(num_classes): return {}", ["returns a dict", "nn.Module"]),
    "raises in forward": (network(HEAD, "return self.head(x)"), ["raises in training", "7×3×32"]),
    "a tuple": (network(HEAD, "return self.head(x.flatten(1)), x"), ["returns a tuple", "alone"]),
    "another shape": (network("self.head = nn.Linear(3072, 100)", RUN), ["7×100", "7×10"]),
    "not finite": (network(HEAD, "return self.head(x.flatten(1)) / 0"), ["not finite"]),
    "whole numbers": (network(HEAD, "return self.head(x.flatten(1)).argmax(1, keepdim=True)"
                              ".repeat(1, 10)"), ["int64", "real numbers"]),
    "no parameters": (network("self.n = num_classes", "return x.flatten(1)[:, :self.n]"),
                      ["no parameters to train"]),
    "no gradient": (network(HEAD, "return self.head(x.flatten(1)).detach()"), ["no gradient"]),
    "unreached": (network(HEAD + "\nself.spare = nn.Linear(3, 4)", RUN),
                  ["no gradient reaches", "spare.weight, spare.bias"]),
    "hidden in a list": (network(HEAD + "\nself.layers = [nn.Linear(3072, 3072, bias=False)]",
                                 "return self.head(self.layers[0](x.flatten(1)))"),
                         ["outside parameters()", "layers[0].weight"]),
    "hidden in a value": (network(HEAD + "\nself.scale = torch.ones(1, requires_grad=True)",
                                  "return self.head(x.flatten(1)) * self.scale"),
                          ["outside parameters()", "scale"]),
    "constants drawn": (network(HEAD + "\nself.mask = torch.rand(3072)",
                                "return self.head(x.flatten(1) * self.mask)"),
                        ["built again", "register_buffer"]),
    "draws": (network(HEAD, "return self.head(F.dropout(x.flatten(1)))"), ["draws at evaluation"]),
    "changes its images": (network(HEAD, "x.mul_(0.5); " + RUN), ["changes the images"]),
    "draws otherwise": (network(HEAD, "return self.head(x.flatten(1)) + random.random()"),
                        ["draws at evaluation"]),
    "looks at others": (network(HEAD, "return self.head((x - x.mean(0)).flatten(1))"),
                        ["alone than in a batch of 7"]),
    "changes itself": (network(HEAD + "\nself.register_buffer('calls', torch.zeros(1))",
                               "self.calls += 1; return self.head(x.flatten(1))"),
                       ["changes calls at evaluation"]),
    "remembers in a value": (network(HEAD + "\nself.scale = 1.0",
                                     "if self.training: self.scale += float(x.std())\n"
                                     "return self.head(x.flatten(1)) / self.scale"),
                             ["outside its parameters and buffers", "register_buffer"]),
    "counts in a value": (network(HEAD + "\nself.steps = 0",
                                  "x = x.flatten(1)\n"
                                  "if not self.training: return self.head(x)\n"
                                  "self.steps += 1; return self.head(x * min(1, self.steps / 30))"),
                          ["outside its parameters and buffers", "register_buffer"]),
    "a generator of its own": (network(HEAD + "\nself.random = random.Random(0)",
                                       "x = x.flatten(1)\n"
                                       "return self.head(x * self.random.random() if self.training "
                                       "else x)"),
                               ["outside its parameters and buffers", "register_buffer"]),
    "ends the process": (network(HEAD, "raise SystemExit(3)"),
                         ["raises in training", "SystemExit"]),
    "another size": (network("self.head = nn.Linear(768, num_classes)", RUN),
                     ["raises in training", "7×3×32×32"]),
    "memory of two": (network(HEAD + "\nself.a = nn.Linear(3072, 3072, bias=False)\n"
                              "self.b = nn.Linear(3072, 3072, bias=False)\n"
                              "self.b.weight = nn.Parameter(self.a.weight.data)",
                              "return self.head(self.b(self.a(x.flatten(1))))"),
                      ["same memory", "a.weight and b.weight"]),
    "lazy": (network("self.head = nn.LazyLinear(num_classes)", RUN), ["without a shape"]),
    "computed when built": (network(HEAD + "\nself.mix = nn.Parameter(torch.randn(3072))\n"
                                    "self.w = self.mix.softmax(0)",
                                    "return self.head(x.flatten(1) * self.w)"),
                            ["cannot be copied", "RuntimeError: Only Tensors created explicitly"]),
    "a lock": (network(HEAD + "\nimport threading; self.lock = threading.Lock()", RUN),
               ["cannot be copied", "cannot pickle '_thread.lock'"]),
    "above the topmost folder": ("from " + 99 * "." + " import x", ["raises on import"]),
    "extra state": (network(HEAD, RUN) + "\n    def get_extra_state(self): return {'seen': 3}",
                    ["stores extra state that is no tensor, _extra_state", "register_buffer"]),
    "another prepare": (network(HEAD, RUN) + "\n    def prepare(self): pass",
                        ["a `prepare`, which takes the training images; rename it", "TypeError"]),
    "one module as the body": (network(HEAD, RUN) + "\n    def body_modules(self): return self",
                               ["Net.body_modules returns a list", "rename it", "not iterable"]),
    "returns nothing from train": (
        network(HEAD, RUN + "\ndef train(self, mode=True): super().train(mode)").replace(
            "        def train", "    def train"),
        ["train() that does not return the network", "return self"]),
    "registers late": (
        network(HEAD, "if not hasattr(self, 'one'): self.register_buffer('one', torch.ones(1))\n"
                "return self.head(x.flatten(1)) * self.one"),
        ["registers one in training", "in __init__"]),
    "registers at evaluation": (
        network(HEAD, "if not self.training: self.register_buffer('one', torch.ones(1))\n" + RUN),
        ["registers one at evaluation", "in __init__"]),
    "grows": (network(HEAD + "\nself.register_buffer('seen', torch.zeros(0))",
                      "if self.training: self.seen = torch.cat([self.seen, x.mean((1, 2, 3))])\n"
                      + RUN),
              ["gives seen another type or shape in training", "self.seen.copy_(...)"]),
    "one number many times": (
        network(HEAD + "\nself.register_buffer('place', torch.ones(1).expand(3072))",
                "return self.head(x.flatten(1) + self.place)"),
        ["has place with several numbers on the same memory", "clone it"]),
    "keeps what passes": (
        network(HEAD + "\nself.register_buffer('seen', torch.zeros(1), persistent=False)",
                "if self.training: self.seen += x.std()\n"
                "return self.head(x.flatten(1)) + self.seen"),
        ["outside its parameters and buffers", "not with persistent=False"]),
    "a dataclass": (
        "from dataclasses import dataclass\nfrom torch import nn\n@dataclass\n"
        "class Net(nn.Module):\n    num_classes: int\n    def __post_init__(self):\n"
        "        super().__init__()\n        self.head = nn.Linear(3072, self.num_classes)\n"
        "    def forward(self, x): return self.head(x.flatten(1))",
        ["cannot list its modules", "eq=False"]),
    "scripted": (network(HEAD + "\nself.script = torch.jit.script(nn.Linear(3072, 3072))",
                         "return self.head(self.script(x.flatten(1)))",
                         before="import warnings; warnings.simplefilter('ignore')"),
                 ["holds a scripted module"]),
    "only in training": (network(HEAD, "if not self.training: return None\n" + RUN),
                         ["returns a NoneType in evaluation"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_line(folder: Path, fault: str) -> None:
    text, parts = FAULTS[fault]
    write(folder, text)
    with pytest.raises(ValueError, match=r"^net\.py:Net") as caught:
        try_out("net.py:Net", 10, 32, 500_000)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_buffer_that_bfloat16_makes_another_is_refused(folder: Path) -> None:
    """Stored as bfloat16, it fitted no network that was built again."""
    write(folder, network(
        HEAD + "\nself.register_buffer('last', torch.zeros(10))",
        "x = self.head(x.flatten(1))\nif self.training: self.last = x.mean(0).detach()\n"
        "return x - self.last",
    ))  # fmt: skip
    try_out("net.py:Net", 10, 32, 500_000)
    with pytest.raises(ValueError, match="gives last another type or shape in training in bfloat"):
        try_out("net.py:Net", 10, 32, 500_000, torch.bfloat16)


def test_a_count_in_an_attribute_is_told(folder: Path) -> None:
    """What it decides may begin at a step that no trial comes to."""
    write(folder, network(
        HEAD + "\nself.steps = 0",
        "self.steps += self.training\nx = self.head(x.flatten(1))\n"
        "return F.dropout(x, 0.5, self.training) if self.steps > 10 else x",
    ))  # fmt: skip
    with pytest.warns(PlaceWarning, match="changes steps in training, which no checkpoint holds"):
        try_out("net.py:Net", 10, 32, 500_000)


def test_complex_parameters_are_two_numbers_each(folder: Path) -> None:
    model = nn.Module()
    model.filter = nn.Parameter(torch.zeros(3, 4, dtype=torch.complex64))
    assert count_params(model) == 24


def test_a_file_within_a_package_is_told_its_name_as_a_module(folder: Path) -> None:
    (folder / "pkg/inner").mkdir(parents=True)
    for package in ("pkg", "pkg/inner"):
        (folder / package / "__init__.py").write_text("")
    write(folder, "from .other import x\n" + network(HEAD, RUN), "pkg/inner/net.py")
    with pytest.raises(
        ValueError, match=r"relative import .*from .* name it as pkg\.inner\.net:Net"
    ):
        build_model("pkg/inner/net.py:Net")


def test_what_the_exporter_prints_is_not_shown(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(folder, network(HEAD, "if x.mean() > 0.1: x = x + 1\n" + RUN))
    told = r"net.py:Net cannot be exported: .* depends on values in the images; .* \(line \d+\)$"
    with pytest.warns(PlaceWarning, match=told):
        try_out("net.py:Net", 10, 32, 500_000)
    assert capfd.readouterr() == ("", "")


def test_layers_may_be_passed_over_by_chance(folder: Path) -> None:
    write(folder, network(
        HEAD + "\nself.deep = nn.Linear(3072, 3072)",
        "x = x.flatten(1)\n"
        "return self.head(self.deep(x) if not self.training or torch.rand(()) < 0.5 else x)",
    ))  # fmt: skip
    for seed in range(5):  # one draw would find three of them without a gradient
        torch.manual_seed(seed)
        _Trial("net.py:Net", build_own("net.py:Net", 10, 32), 10, 32).check_training(torch.float32)


def test_a_network_of_too_few_classes_is_not_called(folder: Path, cli: Cli) -> None:
    write(folder, NET)
    for count in (0, -1, 1):
        done = cli("summary", "net.py:Net", "--num-classes", str(count))
        assert (done.code, done.is_one_line(f"num_classes={count} is out of range")) == (2, True)


@pytest.mark.parametrize(
    ("setting", "giver"),
    [("num_classes=5", "the data"), ("image_size=8", "the data"), ("in_channels=1", "the data"),
     ("budget=1000", "the run's own budget")],
)  # fmt: skip
def test_what_is_given_is_no_setting(folder: Path, cli: Cli, setting: str, giver: str) -> None:
    write(folder, network(HEAD, RUN, arguments="num_classes, in_channels, image_size, budget"))
    done = cli("summary", f"net.py:Net({setting})")
    key = setting.partition("=")[0]
    assert done.code == 2
    assert done.is_one_line(f"leave {key} out, which is given by {giver}")


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("missing.py:Net", ["missing.py does not exist"]),
        ("nosuch.module:Net", ["nosuch.module:Net: there is no module 'nosuch'"]),
        ("os.nosuch:Net", ["no module 'os.nosuch'"]),
        ("net.py:", ["is no place", "FILE.py:NAME"]),
        (":Net", ["is no place"]),
        ("python:NeverHandedOver", ["hand it over again"]),
        ("json:loads", ["takes no num_classes"]),
    ],
)
def test_places_where_nothing_stands(folder: Path, place: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        build_model(place)
    assert all(part in str(caught.value) for part in parts)


def test_the_command_line_says_it_in_one_line(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, FAULTS["a tuple"][0])
    done = cli("train", "common", "model=net.py:Net", "epochs=1")
    assert done.code == 2
    assert done.is_one_line("net.py:Net", "returns a tuple")
    assert not (tmp_path / "runs").exists()
    done = cli("summary", "nope.py:Net")
    assert done.code == 2
    assert done.is_one_line("nope.py does not exist")


def test_a_body_that_is_no_list_is_one_line_in_a_summary_too(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, FAULTS["one module as the body"][0])
    done = cli("summary", "net.py:Net")
    assert (done.code, done.is_one_line("Net.body_modules returns a list")) == (2, True)


def test_a_layer_used_twice_counts_once(folder: Path) -> None:
    write(folder, network(
        HEAD + "\nself.a = nn.Linear(64, 64)\nself.b = self.a\nself.c = nn.Linear(64, 64)\n"
        "self.c.weight = self.a.weight",
        "x = x.view(x.size(0), 48, 64); return self.head(self.c(self.b(self.a(x))).flatten(1))",
    ))  # fmt: skip
    try_out("net.py:Net", 10, 32, 500_000)
    model = build_model("net.py:Net")
    assert sum(p.numel() for p in model.parameters()) == 30_730 + 64 * 64 + 64 + 64


def test_arguments_are_offered_by_name(folder: Path) -> None:
    write(folder, network(
        "assert (in_channels, image_size, budget) == (3, 16, 9_000)\n"
        "self.head = nn.Linear(in_channels * image_size**2, num_classes)", RUN,
        arguments="num_classes, *, in_channels, image_size, budget",
    ))  # fmt: skip
    assert build_model("net.py:Net", 5, 16, 9_000)(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    write(folder, NET)
    with pytest.raises(ValueError, match="signature has no budget"):
        build_model("net.py:Net", budget=1000)


def test_view_gets_the_plain_order_of_memory(folder: Path) -> None:
    write(folder, network(
        "self.conv = nn.Conv2d(3, 8, 3, 4, 1)\nself.head = nn.Linear(512, num_classes)",
        "return self.head(self.conv(x).view(x.size(0), -1))",
    ))  # fmt: skip
    model = build_own("net.py:Net", 10, 32)
    assert needs_plain_order(model)
    images = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    assert model(images).shape == (2, 10)
    write(folder, NET)
    assert not needs_plain_order(build_own("net.py:Net", 10, 32))


def test_warnings_name_what_is_left_out(folder: Path) -> None:
    write(folder, network(
        HEAD, "return self.head(x.flatten(1)) + torch.cdist(x.flatten(1), self.head.weight)"
    ))  # fmt: skip
    with pytest.warns(PlaceWarning) as noted:
        try_out("net.py:Net", 10, 32, 500_000)
    assert "not known: the network itself (_cdist_forward)" in str(noted[0].message)
    write(folder, network(
        HEAD, "x = x.flatten(1)\nif x.sum() > 0: x = x + 0\nreturn self.head(x)"
    ))  # fmt: skip
    with pytest.warns(PlaceWarning, match="cannot be exported"):
        try_out("net.py:Net", 10, 32, 500_000)
    write(folder, network(HEAD, "return self.head(x.view(len(x), -1))"))
    with pytest.warns(PlaceWarning, match="not len"):
        try_out("net.py:Net", 10, 32, 500_000)


def test_a_changed_file_is_read_anew_and_its_neighbours_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write(folder, "WIDTH = 4", "parts.py")
    write(folder, "import parts\n" + NET.replace("width=8", "width=parts.WIDTH"))
    assert build_model("net.py:Net").conv.out_channels == 4
    first = read_source("net.py:Net")
    assert sorted(first.texts) == ["net.py", "parts.py"]
    write(folder, "WIDTH = 6", "parts.py")
    assert build_model("net.py:Net").conv.out_channels == 6
    assert read_source("net.py:Net").sha256 != first.sha256
    assert not list(folder.rglob("*.pyc"))
    assert not sys.dont_write_bytecode
    other = folder / "other"
    other.mkdir()
    write(other, "WIDTH = 10", "parts.py")
    write(other, "import parts\n" + NET.replace("width=8", "width=parts.WIDTH"))
    assert build_model("other/net.py:Net").conv.out_channels == 10


def test_a_module_of_a_package(folder: Path) -> None:
    package = folder / "mynets"
    package.mkdir()
    write(package, "", "__init__.py")
    write(package, "WIDTH = 12", "sizes.py")
    text = "from . import sizes\n" + NET.replace("width=8", "width=sizes.WIDTH")
    write(package, text, "small.py")
    assert build_model("mynets.small:Net").conv.out_channels == 12
    expected = ["mynets/__init__.py", "mynets/sizes.py", "mynets/small.py"]
    assert sorted(read_source("mynets.small:Net").texts) == expected


def test_a_module_of_a_package_is_found_before_it_is_imported(folder: Path, cli: Cli) -> None:
    """No Python runs for it, and a run of it goes on in a new process."""
    package = folder / "nets" / "small"
    package.mkdir(parents=True)
    write(folder / "nets", "1 / 0", "__init__.py")
    write(package, NET, "mine.py")  # of a package without an __init__.py
    place = "nets.small.mine:Net"
    assert locate(place) == package / "mine.py"
    assert locate("nets.absent:Net") == folder / "nets" / "__init__.py"
    write(folder / "nets", "", "__init__.py")
    outcome = cli("train", "common", f"model={place}", "epochs=1", "--out", "run", cwd=folder)
    assert outcome.code == 0, outcome.err
    code = (
        "from pathlib import Path; from halfmeg.artifacts.sources import find_change; "
        f"print(find_change(Path('run'), {{'model': '{place}'}}))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    assert told.stdout == "None\n"
    write(package, NET.replace("width=8", "width=9"), "mine.py")
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    assert "nets.small.mine:Net: Net in nets/small/mine.py has changed since" in told.stdout


def test_what_a_file_prints_stays_out_of_json(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path, "print('hello')\n" + NET)
    done = cli("summary", "net.py:Net", "--json")
    assert done.json["params"] == 224 + 16 + 5130


TIMM = """
__version__ = "1.0"
from torch import nn

def list_models():
    return ["tiny_net", "tiny_vit"]

def create_model(name, pretrained, num_classes, in_chans, **settings):
    if settings and name == "tiny_net":
        raise TypeError("unexpected keyword argument 'img_size'")
    size = settings.get("img_size", 32)
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * size * size, num_classes))
"""


def test_timm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib" / "timm").mkdir(parents=True)
    write(folder / "lib" / "timm", TIMM, "__init__.py")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    monkeypatch.delitem(__import__("sys").modules, "timm", raising=False)
    assert build_model("timm:tiny_net", 7)(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert build_model("timm:tiny_vit", 7, 16)(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"no network 'tiny_nett'; did you mean 'tiny_net'\?$"):
        build_model("timm:tiny_nett")
    try_out("timm:tiny_net", 10, 32, 500_000)
    assert read_source("timm:tiny_net").texts == {"timm": "timm 1.0"}


def test_timm_that_cannot_be_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lib" / "timm").mkdir(parents=True)
    write(folder / "lib" / "timm", "raise ImportError('built for another torch')", "__init__.py")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    monkeypatch.delitem(__import__("sys").modules, "timm", raising=False)
    with pytest.raises(ValueError, match=r"built for another torch; pip install -e '\.\[timm\]'"):
        build_model("timm:resnet18")


@pytest.mark.parametrize(
    "text",
    [
        "import torchvision_that_is_not_there",
        "raise RuntimeError('operator torchvision::nms\\ndoes not exist')",  # of another build
    ],
)
def test_timm_without_its_torchvision_is_one_line_that_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, text: str
) -> None:
    (folder / "lib" / "timm").mkdir(parents=True)
    write(folder / "lib" / "timm", text, "__init__.py")
    monkeypatch.syspath_prepend(str(folder / "lib"))
    monkeypatch.delitem(__import__("sys").modules, "timm", raising=False)
    outcome = cli("train", "common", "model=timm:resnet18", "--data", "digits")
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("halfmeg: timm:resnet18 cannot be had, as timm cannot be imported: ")
    assert "torchvision" in line.partition("; ")[0]
    assert f"and the torchvision that belongs to torch {torch.__version__}" in line


def test_the_run_folder_keeps_the_text_and_runs_nothing_of_it(
    folder: Path, few_digits: DataSplits
) -> None:
    write(folder, NET)
    run = fit(small_config(model="net.py:Net", epochs=1), few_digits, "runs/a")
    kept = json.loads((run.folder / "source.json").read_text())["model"]
    assert kept["sha256"] == read_source("net.py:Net").sha256
    assert (run.folder / "source/model/net.py").read_text() == textwrap.dedent(NET)
    before = run.evaluate(few_digits).accuracy
    assert before == run.result()["test_accuracy"]
    (folder / "net.py").write_text(textwrap.dedent(NET) + "# changed\n")
    with pytest.warns(PlaceWarning, match=r"net\.py:Net has changed since"):
        assert Run.open("runs/a").evaluate(few_digits).accuracy == before
    (folder / "net.py").unlink()
    with pytest.raises(ValueError, match=r"net\.py does not exist; .*source/model keeps the text"):
        Run.open("runs/a").load_model()
    stored = json.loads((run.folder / "config.json").read_text())
    stored["config"]["model"] = "runs/a/source/model/net.py:Net"
    (run.folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="no Python of a run folder is run"):
        Run.open("runs/a").load_model()


@pytest.mark.parametrize("place", ["runs/a/evil.py:Net", "runs.a.evil:Net"])
def test_nothing_that_takes_a_run_folder_runs_python_of_it(
    folder: Path, few_digits: DataSplits, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, or a module of packages that have no file of their own."""
    write(folder, NET)
    run = fit(small_config(model="net.py:Net", epochs=1), few_digits, "runs/a")
    write(run.folder, NET + "\nopen('ran', 'w').close()\n", "evil.py")
    stored = json.loads((run.folder / "config.json").read_text())
    stored["config"]["model"] = place
    (run.folder / "config.json").write_text(json.dumps(stored))
    monkeypatch.syspath_prepend("")  # as for `python -m halfmeg`
    stored_search, _ = describe_search(
        few_digits, limits=Limits(), seconds=600, baselines=["runs/a"]
    )
    refused = "no Python of a run folder is run"
    with pytest.raises(ValueError, match=refused):
        Run.open("runs/a").load_model()
    with pytest.raises(ValueError, match=refused):
        open_network("runs/a").load_model()
    with pytest.raises(ValueError, match=refused):
        choose_baselines(stored_search, few_digits)
    with pytest.warns(PlaceWarning, match=refused):
        measure([Run.open("runs/a")], few_digits, folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("mark", ["study.json", "search.json"])
def test_nothing_that_takes_a_run_runs_python_of_what_holds_it(
    folder: Path, few_digits: DataSplits, mark: str
) -> None:
    write(folder, NET)
    run = fit(small_config(model="net.py:Net", epochs=1), few_digits, "all/trials/0001")
    (folder / "all" / mark).write_text("{}")
    write(folder / "all", NET + "\nopen('ran', 'w').close()\n", "evil.py")
    stored = json.loads((run.folder / "config.json").read_text())
    stored["config"]["model"] = "all/evil.py:Net"
    (run.folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="no Python of a run folder is run"):
        Run.open("all/trials/0001").load_model()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("place", "all/evil.py:space"),
        ("networks", ["all/evil.py:Net"]),
        ("settings", ["loss=all/evil.py:loss"]),
        ("baselines", ["all/evil.py:Net"]),
    ],
)
def test_a_search_that_goes_on_runs_no_python_of_its_folder(
    folder: Path, few_digits: DataSplits, key: str, value: Any
) -> None:
    stored, _ = describe_search(few_digits, limits=Limits(), seconds=600)
    (folder / "all").mkdir()
    write(folder / "all", NET + "\nopen('ran', 'w').close()\n", "evil.py")
    write_stored(folder / "all", replace(stored, **{key: value}))
    with pytest.raises(ValueError, match="no Python of a run folder is run"):
        open_search("all", few_digits)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("setting", ["model", "loss", "augment", "optimizer"])
@pytest.mark.parametrize("place", ["shared/evil.py:Net", "shared.evil:Net"])
@pytest.mark.parametrize("kept", ["config.json", "environment.json"])
def test_settings_out_of_a_run_folder_run_no_python_of_it(
    folder: Path, cli: Cli, setting: str, place: str, kept: str
) -> None:
    """As a run keeps them, and laid plainly beside what else a run keeps."""
    (folder / "shared").mkdir()
    write(folder / "shared", "open('ran', 'w').close()\n" + NET, "evil.py")
    settings = small_config(**{setting: place}).to_dict()
    if kept == "config.json":
        stored = {"config": settings}
    else:
        stored = settings
        (folder / "shared" / kept).write_text("{}")
    (folder / "shared" / "config.json").write_text(json.dumps(stored))
    told = f"{place} is within shared; no Python of a run folder is run"
    for command in (("train",), ("compare", "cnn", "--recipe")):
        found = cli(*command, "shared/config.json", "--data", "digits")
        assert (found.code, found.is_one_line(told)) == (2, True), found.err
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "text", ["__init__.py", "nothing.py", "nothing.pyc", "nothing/__init__.py"]
)
def test_a_module_of_a_run_folder_is_known_by_all_that_its_import_runs(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package around it, which has no module of the name; and a module in compiled form."""
    path = folder / "shared" / "a" / text
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.syspath_prepend("")
    with pytest.raises(ValueError, match="no Python of a run folder is run"):
        check_outside(Path("shared/a"), "shared.a.nothing:Net")
    check_outside(Path("shared/b"), "shared.a.nothing:Net")


def test_settings_beside_python_of_ones_own_are_a_recipe(folder: Path) -> None:
    """In a folder of the user's, and named by a run in another; or, where it is gone, replaced."""
    (folder / "mine").mkdir()
    write(folder / "mine", NET)
    settings = small_config(model="mine/net.py:Net").to_dict()
    (folder / "mine" / "settings.json").write_text(json.dumps(settings))
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps({"config": settings}))
    for path in ("mine/settings.json", "run/config.json"):
        assert build_recipe(path).model == "mine/net.py:Net"
    (folder / "mine" / "net.py").unlink()
    replaced = build_recipe("run/config.json").override(["model=cnn"])
    assert replaced.places() == {}


def test_a_network_too_large_to_be_stored_is_refused_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, NET + "# tried nowhere else in this process\n")
    floats = 3 * 8 * 9 + 8 + 4 * 8 + 513 * 10  # BatchNorm has parameters and sums
    size = 4 * floats + 8  # of the number of its batches, an int64
    told = (
        rf"net\.py:Net has {floats + 1:,} numbers in parameters and buffers, {size:,} bytes; "
        rf"allowed: {size - 1:,} bytes; make it smaller$"
    )
    monkeypatch.setattr("halfmeg.networks.trial.MAX_WEIGHTS_BYTES", HEADER_BYTES + size - 1)
    with pytest.raises(ValueError, match=told):
        try_out("net.py:Net", 10, 32, 500_000)
    monkeypatch.setattr("halfmeg.networks.trial.MAX_WEIGHTS_BYTES", HEADER_BYTES + size)
    try_out("net.py:Net", 10, 32, 500_000)


def test_weights_of_a_run_that_answers_are_those_of_its_result(
    folder: Path, few_digits: DataSplits
) -> None:
    run = fit(small_config(epochs=1), few_digits, "runs/a")
    assert open_network("runs/a").load_model()
    path = run.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # the last bit of a weight, which stays a number
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        open_network("runs/a").load_model()


def test_a_run_is_found_from_another_folder(
    folder: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, NET)
    run = fit(small_config(model="net.py:Net", epochs=1), few_digits, folder / "run")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert Run.open("../run").evaluate(few_digits).accuracy == run.result()["test_accuracy"]


def test_two_runs_of_one_place_are_each_found_from_a_third_folder(
    folder: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (8, 16):
        (folder / f"of{width}").mkdir()
        monkeypatch.chdir(folder / f"of{width}")
        write(Path(), NET.replace("width=8", f"width={width}"))
        fit(small_config(model="net.py:Net", epochs=1), few_digits, "run")
    monkeypatch.chdir(folder)
    runs = [Run.open(f"of{width}/run") for width in (8, 16)]
    assert [run.load_model().conv.out_channels for run in runs] == [8, 16]


def test_what_was_imported_before_its_file_was_edited_is_not_trained(
    folder: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # found stale by seconds and size only
    write(folder, NET + "\nWIDTH = 8\n", "edited_net.py")
    module = importlib.import_module("edited_net")
    told = r"edited_net\.py was edited after Python had imported it"

    write(folder, NET.replace("relu", "tanh"), "edited_net.py")
    with pytest.raises(ValueError, match=told):
        fit(small_config(epochs=1), few_digits, "run", model=module.Net)
    assert not Path("run").exists()

    noted = NET.replace("):\n        super()", '):\n        """Build."""\n        super()')
    assert noted != NET
    write(folder, "# A note.\n" + noted + "\nWIDTH = 8\n", "edited_net.py")
    fit(small_config(epochs=1), few_digits, "run", model=module.Net)

    write(folder, noted + "\nWIDTH = 4\n", "edited_net.py")  # which it does not come to
    assert load(hand_over(module.Net)) is module.Net
    write(folder, noted.replace("width=8", "width=4"), "edited_net.py")
    with pytest.raises(ValueError, match=told):
        load(hand_over(module.Net))
    vars(module)["Left"] = module.Net  # by a reload names stay that the text has no more
    stale = module.Net
    write(folder, noted.replace("width=8", "width=4").replace("relu", "tanh"), "edited_net.py")
    importlib.reload(module)
    with pytest.raises(ValueError, match=told):
        fit(small_config(epochs=1), few_digits, "again", model=stale)
    run = fit(small_config(epochs=1), few_digits, "again", model=module.Net)
    assert "width=4" in (run.folder / "source/model/edited_net.py").read_text()


class Mine(nn.Module):
    """Stands at the top of a file, this one."""

    def __init__(self, num_classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 4, 1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def test_from_python_as_class_instance_or_function(tmp_path: Path, few_digits: DataSplits) -> None:
    def narrow(num_classes: int) -> nn.Module:
        return Mine(num_classes, 2)

    given: list[Any] = [Mine, Mine(width=6), narrow, "logistic"]
    terms = small_config(epochs=1, model="cnn")
    found = compare(given, few_digits, seeds=1, out=tmp_path / "study", config=terms)
    params = {model.name: model.params for model in found.models}
    assert params["python:narrow"] == 56 + 30
    assert params["python:Mine"] == 6 * 28 + 70
    assert len(params) == 4
    assert {p.name for p in (tmp_path / "study").iterdir() if p.is_dir()} == {
        "test_own-Mine-seed-0", "python-Mine-seed-0", "python-narrow-seed-0", "logistic-seed-0",
    }  # fmt: skip
    again = compare(given, few_digits, seeds=1, out=tmp_path / "study", config=terms)
    assert {m.name: m.per_seed for m in again.models} == {m.name: m.per_seed for m in found.models}


def test_an_instance_starts_from_its_own_weights(tmp_path: Path, few_digits: DataSplits) -> None:
    given = Mine(width=3)
    weight = given.conv.weight.detach().clone()
    config = small_config(epochs=1, model="cnn", lr=1e-9, optimizer="sgd")
    run = fit(config, few_digits, tmp_path / "run", model=given)
    assert torch.allclose(run.load_model().conv.weight, weight, atol=1e-6)  # type: ignore[union-attr]
    assert torch.equal(given.conv.weight, weight)
    place = run.config.model
    assert place.startswith("python:Mine")
    with pytest.raises(ValueError, match="stands at the top of no file"):
        compare([given, "cnn"], few_digits, seeds=1, out=tmp_path / "s", config=config, workers=2)
    hand = Run.open(tmp_path / "run", model=Mine(width=3))
    assert hand.evaluate(few_digits).accuracy == run.result()["test_accuracy"]


def test_a_killed_run_continues_to_the_same_bits(
    folder: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = network(
        "self.conv = nn.Conv2d(3, 8, 3, 4, 1)\nself.drop = nn.Dropout(0.3)\n"
        "self.head = nn.Linear(512, num_classes)",
        "return self.head(self.drop(self.conv(x).relu().view(x.size(0), -1)))",
    )
    write(folder, text)
    config = small_config(model="net.py:Net", epochs=3, optimizer="muon", crop=2, ema=0.9)
    whole = fit(config, few_digits, "whole")
    fit(config, few_digits, "part")
    for name in ("result.json", "weights.safetensors", "checkpoints/epoch_00003_step_0000000.pt"):
        (folder / "part" / name).unlink()
    part = resume("part", few_digits)
    assert (folder / "part/weights.safetensors").read_bytes() == (
        folder / "whole/weights.safetensors"
    ).read_bytes()
    assert part.result()["test_accuracy"] == whole.result()["test_accuracy"]


def test_smaller_images_are_tried_first(folder: Path, few_digits: DataSplits) -> None:
    write(folder, NET)
    config = small_config(model="net.py:Net", small_size=16)
    with pytest.raises(ValueError, match=r"small_size=16 does not fit net\.py:Net"):
        fit(config, few_digits, "run")
    write(folder, network(
        "self.conv = nn.Conv2d(3, 8, 3)\nself.head = nn.Linear(8, num_classes)",
        "return self.head(self.conv(x).mean((2, 3)))",
    ))  # fmt: skip
    assert fit(config, few_digits, "run").result()


def test_names_of_files() -> None:
    assert file_name("a/b/net.py:Net") == "net-Net"
    assert file_name("resnet-linear") == "resnet-linear"
    assert file_name("pkg.nets:Net") == "pkg.nets-Net"
    settings = ",".join(f"stage{n}_dropout={n / 7}" for n in range(9))
    long, other = file_name(f"net.py:Net({settings})"), file_name(f"net.py:Net({settings}1)")
    assert long != other
    assert len(long) == len(other) == 160
    assert long.startswith("net-Net-stage0_dropout-0.0-")
    assert is_place("net.py:Net")
    assert not is_place("resnet20")
    assert load(hand_over(Mine)) is Mine
    assert RunConfig(model=Mine, epochs=1).model.endswith("test_own.py:Mine")  # type: ignore[arg-type]
