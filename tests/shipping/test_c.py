"""C from the integers: compiled, run under sanitizers, and equal to the oracle."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cli, first_digits
from test_graph import COVERED, MEAN, STD, Anything, example
from test_integer import integers, pixels
from torch import Tensor, nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.table import build_model
from halfmeg.shipping import build
from halfmeg.shipping.answered import Answered
from halfmeg.shipping.build import build_c
from halfmeg.shipping.c import write_c
from halfmeg.shipping.c_constants import c_name
from halfmeg.shipping.export import export
from halfmeg.shipping.integer import IntegerGraph, run
from halfmeg.shipping.quantize import quantize

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to compile C with")
SLOW = pytest.mark.slow  # each takes seconds to compile
QUICK = ("anything",)


def proved(model: nn.Module, size: int, count: int = 6) -> build.CSource:
    images = pixels(count, size)
    return proved_graph(quantize(model, MEAN, STD, images), images)


def proved_graph(graph: IntegerGraph, images: torch.Tensor) -> build.CSource:
    oracle = run(graph, images.numpy())
    labels = [f"class {i}" for i in range(graph.num_classes)]
    return build_c(Answered(graph, "net", labels, 1.0, images.numpy(), oracle))


@needs_gcc
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else SLOW) for n in (*COVERED, "anything")]
)
def test_c_gives_the_oracles_logits_and_the_memory_stated_before(name: str) -> None:
    _, size = example(name)
    source = proved_graph(integers(name), pixels(6, size))
    assert source.proof is not None
    assert source.proof.n == 6
    # of a fresh network, untrained
    fresh = Anything() if name == "anything" else build_model(name)
    memory = measure_memory(fresh, size)
    assert (source.arena_bytes, source.constant_bytes) == (memory.ram_bytes, memory.flash_bytes)
    assert memory.peak.startswith(source.peak)
    # the compiler itself refuses other sizes
    text = source.files["src/net.c"].decode()
    assert "arena_is_as_stated" in text
    assert "constants_are_as_stated" in text


STRANGERS = Path(__file__).parents[1] / "networks" / "strangers.py"


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["LeNet5", "Inception", "squeezenet", "PreActResNet", "ResNeXt", "ShuffleNetV2", "EfficientNet",
     "ConvNeXt"],
)  # fmt: skip
def test_networks_by_other_people_in_c(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(f"{STRANGERS}:{name}", 10, 32).train()
    model(torch.randn(8, 3, 32, 32))
    assert proved(model.eval(), 32, count=3).proof is not None


@pytest.mark.parametrize(("name", "operator"), [("ViT", "aten.cat"), ("MlpMixer", "aten.im2col")])
def test_what_has_no_form_in_c_is_named(name: str, operator: str) -> None:
    model = build_model(f"{STRANGERS}:{name}", 10, 32).eval()
    with pytest.raises(ValueError, match=f"{operator} .* has no int8 form"):
        quantize(model, MEAN, STD, pixels(3, 32))


@pytest.mark.slow
@needs_gcc
def test_a_small_network_with_gates_and_shortcuts() -> None:
    torch.manual_seed(0)
    model = build_model("record", 10, 32, 20_000)
    model.train()
    model(torch.randn(8, 3, 32, 32))
    source = proved(model.eval(), 32, count=3)
    assert source.proof_text.startswith("all 30 logits of 3 images equal, under address and")


class Block(nn.Module):
    """A sum behind a convolution, in a way that `of` says."""

    def __init__(self, of: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.of = of
        self.stem = nn.Conv2d(3, 5, 3, padding=1)  # an odd number: one channel has no partner
        self.first = nn.Conv2d(5, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        nn.init.uniform_(self.bn.weight, 0.5, 1.5)
        nn.init.uniform_(self.bn.bias, -1, 1)
        self.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.of(self, self.stem(x).relu())
        return self.head(x.mean((2, 3)))


BLOCKS: dict[str, tuple[Callable[[Block, Tensor], Tensor], int]] = {
    "shortcut": (lambda b, x: (x + b.second(b.first(x).relu())).relu(), 1),
    "its own input": (lambda b, x: x + b.first(x), 1),
    "read again": (lambda b, x: b.second(x + b.first(x)) + x, 2),
    "difference": (lambda b, x: b.bn(x) - 0.5 * b.second(b.first(x).relu()).tanh(), 1),
    "two branches": (lambda b, x: b.first(x) + b.second(x), 1),
    "one row": (lambda b, x: x[:, :, :1] + b.second(b.first(x)), 1),
    "a constant": (lambda b, x: x + b.first(x) + torch.arange(9.0).view(1, 9), 1),
    "read twice": (lambda b, x: (y := b.first(x)) + y.amax((2, 3), keepdim=True), 0),
    "pooled": (lambda b, x: F.max_pool2d(x, 3) + F.max_pool2d(b.first(x), 3), 0),
    "depthwise": (lambda b, x: x + b.depthwise(x), 0),
    "widened": (lambda b, x: x + b.first(x).relu().amax((2, 3), keepdim=True), 0),
}  # fmt: skip


@needs_gcc
@pytest.mark.parametrize("name", BLOCKS)
def test_sums_behind_a_convolution(name: str) -> None:
    """They are taken where the convolution's values arise, which then stand nowhere themselves."""
    of, joined = BLOCKS[name]
    images = pixels(5, 9)
    graph = quantize(Block(of).eval(), MEAN, STD, images)
    assert sum(graph.plan.joined) == joined
    source = proved_graph(graph, images)
    assert source.proof is not None
    assert source.arena_bytes == measure_memory(Block(of).eval(), 9).ram_bytes


@needs_gcc
def test_logits_in_bytes_and_a_depthwise_end() -> None:
    """The last operator may be none that sums: then its bytes are given their scale."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 8, groups=4), nn.Flatten(), nn.Tanh()
    )
    assert proved(model.eval(), 8).proof is not None
    ends = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 6, groups=4), nn.Flatten())
    assert proved(ends.eval(), 8).proof is not None


@needs_gcc
def test_the_constants_of_c_are_counted_by_its_compiler(tmp_path: Path) -> None:
    source = proved_graph(integers("anything"), pixels(6, 16))
    text = source.files["src/net.c"].decode()
    (tmp_path / "net.h").write_bytes(source.files["src/net.h"])
    (tmp_path / "net.c").write_text(text)
    header = (tmp_path / "net.h").read_text()
    stated = f"NET_CONSTANT_BYTES {source.constant_bytes}"
    assert stated in header
    (tmp_path / "net.h").write_text(header.replace(stated, stated[:-1] + "7"))
    done = subprocess.run(
        ["gcc", "-c", "net.c"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "constants_are_as_stated" in done.stderr


@needs_gcc
def test_probabilities_come_from_a_table(tmp_path: Path) -> None:
    graph = integers("anything")
    for file, text in write_c(graph, "net", ["a"] * 5, temperature=0.5).items():
        (tmp_path / file).write_text(text)
    subprocess.run(
        ["gcc", "-std=c99", "-shared", "-fPIC", "-o", "net.so", "net.c"], cwd=tmp_path, check=True
    )
    library = ctypes.CDLL(str(tmp_path / "net.so"))
    logits = np.array([1.0, 0.2, -3.0, 0.9, 0.0], np.float32)
    found = np.zeros(5, np.uint16)
    pointers = (values.ctypes.data_as(ctypes.c_void_p) for values in (logits, found))
    library.net_probabilities(*pointers)
    expected = torch.from_numpy(logits / 0.5).softmax(0).numpy()
    assert np.abs(found / 65535 - expected).max() < 0.02
    assert abs(int(found.sum()) - 65535) <= 5


@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang, which knows every target")
def test_where_int_has_16_bits_it_does_not_compile(tmp_path: Path) -> None:
    for file, text in write_c(integers("anything"), "net", ["a"] * 5, temperature=1.0).items():
        (tmp_path / file).write_text(text)
    for target, fails in (("avr", True), ("arm-none-eabi", False)):
        command = ["clang", f"--target={target}", "-ffreestanding", "-fsyntax-only", "net.c"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == fails, done.stderr
        assert ("net needs an int of 32 bits" in done.stderr) == fails


@needs_gcc
def test_a_wrong_file_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = build.write_c
    changes = iter(
        [
            (r"(weight_0\[\d+\] ALIGNED KEPT = \{\s+)-?\d+", r"\g<1>101"),
            (r"\.in_width = 32", ".in_width = 40"),  # reads beyond the image
        ]
    )

    def altered(*arguments: object) -> dict[str, str]:
        pattern, instead = next(changes)
        files = honest(*arguments)  # type: ignore[arg-type]
        changed = re.sub(pattern, instead, files["net.c"], count=1)
        assert changed != files["net.c"]
        return files | {"net.c": changed}

    monkeypatch.setattr(build, "write_c", altered)
    with pytest.raises(ValueError, match=r"net\.c gives [\d,]+ of 60 logits differently"):
        proved_graph(integers("cnn"), pixels(6))
    with pytest.raises(ValueError, match=r"net\.c stops on this machine: .*buffer-overflow"):
        proved_graph(integers("cnn"), pixels(6))


def test_without_a_compiler_the_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    source = proved_graph(integers("anything"), pixels(6, 16))
    assert source.proof is None
    assert source.proof_text == "not proved on this machine: no compiler"
    assert source.proof_text in source.files["README.md"].decode()


def as_gcc(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script found under the name of gcc."""
    stub = folder / "bin" / "gcc"
    stub.parent.mkdir()
    stub.write_text(script)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/bin/sh\necho 'xcrun: error: invalid path (/A_B), missing xcrun' >&2\nexit 1\n",
         "xcrun: error: invalid path (/A_B), missing xcrun"),
        ("#!/bin/sh\nexit 1\n", "it says nothing"),
        ("\x7fELF", "Exec format error"),
    ],
)  # fmt: skip
def test_a_gcc_that_compiles_nothing_is_none(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_gcc(tmp_path, script, monkeypatch)
    source = proved_graph(integers("anything"), pixels(6, 16))
    assert source.proof is None
    assert source.proof_text.startswith("not proved on this machine: gcc cannot compile here: ")
    assert source.proof_text.endswith(f"here: {told}")
    assert told.replace("_", r"\_") in source.files["README.md"].decode()
    assert "src/net.c" in source.files


@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang to take for gcc")
def test_clang_under_the_name_of_gcc_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_gcc(tmp_path, f'#!/bin/sh\nexec {shutil.which("clang")} "$@"\n', monkeypatch)
    source = proved_graph(integers("anything"), pixels(6, 16))
    assert source.proof is not None
    assert re.search(r"\(gcc .*clang version \d+[^)]*\)$", source.proof_text)


@needs_gcc
def test_a_gcc_that_has_no_sanitizers_proves_without(
    cnn_in_c: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of Fedora and Alpine, whose linker finds none of their runtimes."""
    script = (
        "#!/bin/sh\n"
        'case "$*" in *-fsanitize*) echo "collect2: error: ld returned 1" >&2; exit 1;; esac\n'
        f'exec {shutil.which("gcc")} "$@"\n'
    )
    as_gcc(tmp_path, script, monkeypatch)
    bundle = Bundle.open(cnn_in_c)
    data = first_digits(200)
    made, _ = export(bundle, data, tmp_path / "made", allow_loss=True, targets=("c",))
    told = "ll 200 logits of 20 images equal, without sanitizers, which this gcc lacks (gcc "
    assert told in made.described["c"]["proof_text"]
    assert told in (made.folder / "README.md").read_text()
    source = "c/src/cnn.c"
    assert (made.folder / source).read_bytes() == (cnn_in_c / source).read_bytes()


def test_names_and_labels_are_valid_c() -> None:
    assert [c_name(name) for name in ("resnet-linear", "3x3", "größe", "___", "Ab c")] == [
        "resnet_linear", "net_3x3", "gr_e", "net_", "ab_c",
    ]  # fmt: skip
    taken = ("Main", "Entry", "classify", "Stdio", "clean", "src")
    assert all(c_name(name) == f"net_{name.lower()}" for name in taken)
    graph = integers("anything")
    labels = ['a "b"', "back\\slash", "new\nline", "ä", "??/"]
    text = write_c(graph, "net", labels)["net.c"]
    assert r'"a \042b\042"' in text
    assert r'"back\134slash"' in text
    assert '"new line"' in text
    assert r'"\303\244"' in text
    assert r'"\077\077/"' in text
    assert text.isascii()


@needs_gcc
@pytest.mark.parametrize("name", ["Main", "Stdint", "Classify"])
def test_a_network_may_have_the_name_of_what_lies_beside_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).eval()
    images = pixels(2, 8)
    graph = quantize(model, MEAN, STD, images)
    logits = run(graph, images.numpy())
    source = build_c(Answered(graph, name, ["a", "b", "c", "d"], 1.0, images.numpy(), logits))
    assert source.proof is not None
    for path, content in source.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    subprocess.run(["make", f"CC={shutil.which('gcc')}"], cwd=tmp_path, check=True)
    assert (tmp_path / source.name).is_file()
    if shutil.which("cmake"):
        subprocess.run(["cmake", "-B", "built", "."], cwd=tmp_path, check=True)


def test_a_long_name_ends_in_a_hash_of_it() -> None:
    """A network with many settings: a file system takes 255 bytes for a name."""
    names = [c_name(f"net.py:Net({'a' * 300}={value})") for value in (1, 2)]
    assert names[0] != names[1]
    assert all(name.isidentifier() and len(name) == 160 for name in names)
    assert len(c_name("3" * 160)) == 160
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).eval()
    images = pixels(2, 8)
    graph = quantize(model, MEAN, STD, images)
    logits = run(graph, images.numpy())
    long = f"net.py:Net({'a' * 300}=1)"
    source = build_c(Answered(graph, long, ["a", "b", "c", "d"], 1.0, images.numpy(), logits))
    assert source.name == names[0]
    assert f"src/{names[0]}.c" in source.files


@needs_gcc
def test_export_writes_c_beside_the_bundle(cnn_in_c: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(cnn_in_c)
    card = (bundle.folder / "README.md").read_text()
    assert "36,224 bytes of RAM (set by `layers.1`) and 83,536 of flash" in card
    assert "All 200 logits of 20 images equal, under address and undefined-behaviour" in card
    described = bundle.described
    assert described["proof"]["int8_exact"] is True
    assert described["c"]["proof"]["logits"] == 200
    assert (bundle.folder / "c" / "examples" / "classify" / "classify.ino").is_file()
    built = tmp_path / "built"
    shutil.copytree(bundle.folder / "c", built)
    subprocess.run(["make", "-s"], cwd=built, check=True)
    image = bytes(32 * 32 * 3)
    out = subprocess.run([built / "cnn"], input=image * 2, capture_output=True, check=True)
    assert len(out.stdout.decode().splitlines()) == 2
    shutil.copytree(bundle.folder, tmp_path / "copy")
    (tmp_path / "copy" / "c" / "src" / "cnn.c").write_text("altered")
    with pytest.raises(ValueError, match="damaged or was altered"):
        Bundle.open(tmp_path / "copy")


def test_targets_and_sources_that_are_not_there(cli: Cli, cnn_in_c: Path) -> None:
    folder = str(cnn_in_c)
    target = ("--target", "c")
    assert cli("export", folder, "--out", "b", *target).is_one_line("add --data")
    assert cli("export", folder, "--out", "b", "--target", "d", "--data", "digits").is_one_line(
        "target='d'", "allowed: c"
    )
    other = cli("export", folder, "--out", "b", "--data", "digits", *target)
    assert other.is_one_line("other data")


@needs_gcc
@pytest.mark.slow
def test_the_command_exports_runs_and_bundles(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    terms = ["model=cnn", "epochs=2", "batch_size=50", "val_fraction=0.1"]
    assert cli("train", "common", *terms, "--data", str(pictures), "--out", "run").code == 0
    made = cli("export", "run", "--out", "bundle", "--allow-loss", "--target", "c")
    assert made.code == 0, made.err
    assert "36,224 bytes of RAM, set by layers.1; 83,536 of flash" in made.out
    assert "logits of 20 images equal, under address and undefined-behaviour" in made.out
    plain = cli("export", "run", "--out", "plain", "--allow-loss")
    assert plain.code == 0, plain.err
    assert "c" not in json.loads((tmp_path / "plain" / "model.json").read_text())
    added = cli("export", "plain", "--data", str(pictures), "--out", "added", "--target", "c",
                "--allow-loss")  # fmt: skip
    assert added.code == 0, added.err
    first, second = (tmp_path / name / "c" / "src" / "cnn.c" for name in ("bundle", "added"))
    assert first.read_bytes() == second.read_bytes()
