"""`kernels=auto` and `compile=auto`: measured on this machine, the same bits again."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Cli, small_config, with_tests
from safetensors.torch import load_file
from test_distributed import torchrun
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from halfmeg import Run, fit, resume
from halfmeg.artifacts.chosen import CHOSEN
from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.cache import clear_cache, list_cache
from halfmeg.data.dataset import DataSplits
from halfmeg.data.shape import ImageShape, image_shape
from halfmeg.evaluation.precision import autocast, has_bf16_hardware
from halfmeg.networks.convolutions import Convolution
from halfmeg.networks.table import build_model
from halfmeg.networks.ways import layers_of, right_kernels, with_kernels
from halfmeg.training import compiling, kernels
from halfmeg.training.compiling import StepTimes, judge, time_steps, worth_compiling
from halfmeg.training.kernels import choose_kernels, fastest
from halfmeg.training.listen import Listener
from halfmeg.training.measured import remember
from halfmeg.training.plan import Plan
from halfmeg.training.stack import check_stack
from halfmeg.training.stopping import TrainingInterruptedError

CL = torch.channels_last
NETWORK = """
from torch import nn

class Dilated(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(8, 8, 7, padding=9, dilation=3, groups=8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
        )
"""
LAYER = "8→8 7×7, groups 8, padding 9×9, dilation 3×3, on 16×16, float32, bias"
TERMS: dict[str, Any] = {"epochs": 2, "batch_size": 50, "val_fraction": 0.0}


@pytest.fixture
def network(tmp_path: Path) -> str:
    """The place of a small network that torch's own kernels are slow for."""
    (tmp_path / "net.py").write_text(NETWORK)
    return f"{tmp_path / 'net.py'}:Dilated"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "ROUNDS", 4)
    return tmp_path / "cache" / "measured"


def config_of(**settings: Any) -> RunConfig:
    return small_config(**TERMS | settings)


def weights_of(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "weights.safetensors")


def same_weights(one: Run, two: Run) -> bool:
    first, second = weights_of(one), weights_of(two)
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_fastest_way_is_taken_where_it_is_clearly_faster() -> None:
    x, weight = torch.zeros(2, 4, 8, 8), torch.zeros(4, 1, 3, 3)
    layer = Convolution.of(x, weight, padding=2, dilation=2, groups=4)
    assert layer is not None
    assert layer.ways() == ["conv", "other order", "phases"]
    assert fastest(layer, {"conv": 10.0, "other order": 8.0, "phases": 3.0}) == "phases"
    assert fastest(layer, {"conv": 10.0, "other order": 9.5, "phases": 9.1}) == "conv"
    assert fastest(layer, {"conv": 10.0, "a way of tomorrow": 0.1}) == "conv"
    assert fastest(layer, {}) == "conv"


def test_a_dilated_convolution_runs_in_phases_here(cache: Path) -> None:
    """By measurement, and not by a rule: it takes torch's own kernel several times as long."""
    model = build_model("gated", 10, 32, 97_531).to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ways = choose_kernels(model, [image_shape(32)], 8, torch.float32)
    assert ways["20→20 7×7, groups 20, padding 9×9, dilation 3×3, on 16×16, float32, bias"] == (
        "phases"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    timed = [json.loads(path.read_text()) for path in cache.glob("*.json")]
    assert len(timed) == 6  # three kinds of filter at two sizes
    for record in timed:
        assert record["asked"]["images"] == 8
        assert record["asked"]["threads"] == torch.get_num_threads()
        assert record["asked"]["torch"] == torch.__version__
        assert set(record["answer"]) == set(record["asked"]["ways"])
        assert min(record["answer"].values()) > 0


def test_a_depthwise_convolution_in_bfloat16_leaves_what_is_emulated(cache: Path) -> None:
    """A processor without bfloat16 emulates it, which is slow; on another one either may win."""
    model = nn.Conv2d(24, 24, 5, padding=2, groups=24).to(memory_format=CL)
    shape = ImageShape(24, 16, 16)
    ways = choose_kernels(model, [shape], 8, torch.bfloat16)
    if not has_bf16_hardware(torch.device("cpu")):
        assert [way.rpartition(" ")[2] for way in ways.values()] == ["float32"]
    images = torch.zeros(8, *shape).to(torch.bfloat16, memory_format=CL)
    with torch.autocast("cpu", torch.bfloat16):
        y = with_kernels(model, ways)(images)
    assert y.dtype == torch.bfloat16


def test_the_network_computes_the_same_within_rounding() -> None:
    torch.manual_seed(0)
    model = build_model("gated", 10, 32, 12_000).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=CL)
    found = layers_of(model, [image_shape(32)], 4, torch.float32)
    ways = {layer.name: layer.ways()[-1] for layer in found}
    assert "phases" in ways.values()
    labels = torch.arange(4)
    results = []
    for forward in (model, with_kernels(model, ways)):
        model.zero_grad()
        logits = forward(images)
        F.cross_entropy(logits, labels).backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert with_kernels(model, {}) is model  # what is off does nothing
    with torch.no_grad():  # evaluation is as ever, to the last bit
        assert torch.equal(with_kernels(model, ways)(images), model(images))


OWN = """
import torch
from torch import nn
from torch.nn import functional as F

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.filters = nn.Parameter(torch.randn(16, 1, 3, 3) / 3)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = F.relu(F.conv2d(x, self.filters, padding="same", dilation=(2, 2), groups=16))
        return self.head(x.mean((2, 3)))
"""


def gradients_of(
    model: nn.Module, forward: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(32, 3, 32, 32, generator=generator).contiguous(memory_format=CL)
    model.zero_grad()
    with autocast(torch.device("cpu"), dtype):
        logits = forward(images.to(dtype))
    F.cross_entropy(logits.float(), torch.arange(32) % 10).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
@pytest.mark.parametrize(
    ("kind", "is_compiled"),
    [("gated", False), ("own", False), pytest.param("own", True, marks=pytest.mark.slow)],
)
def test_gradients_in_bfloat16_are_those_in_float32(
    kind: str, is_compiled: bool, tmp_path: Path
) -> None:
    """Torch's own are garbage for dilated filters, and nothing for the shifts of LayerNorm."""
    torch.manual_seed(0)
    if kind == "gated":
        model = build_model("gated", 10, 32, 12_000)
    else:
        (tmp_path / "own.py").write_text(OWN)
        model = build_model(f"{tmp_path / 'own.py'}:Own", 10, 32)
    model.train().to(memory_format=CL)  # type: ignore[call-overload]
    assert right_kernels(model, [image_shape(32)], torch.float32) == {}
    ways = right_kernels(model, [image_shape(32)], torch.bfloat16)
    assert ways.pop("LayerNorm, bfloat16") == "float32"
    assert {*ways.values()} == {"conv float32"}
    ways = right_kernels(model, [image_shape(32)], torch.bfloat16)
    expected = gradients_of(model, model, torch.float32)
    forward = with_kernels(model, ways)
    with fresh_cache() if is_compiled else contextlib.nullcontext():
        forward = compiling.compiled(forward, torch.device("cpu"), on=is_compiled)
        gradients = gradients_of(model, forward, torch.bfloat16)
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), name


def test_a_run_in_bfloat16_gets_the_right_gradients_and_the_same_bits_again(
    tmp_path: Path, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    config = config_of(model=f"{tmp_path / 'own.py'}:Own", precision="bf16")
    exact = fit(replace(config, precision="fp32"), few_digits, tmp_path / "exact")
    one, two = (fit(config, few_digits, tmp_path / name) for name in ("one", "two"))
    assert one.chosen() is None  # nothing was measured
    assert same_weights(one, two)
    for mine, theirs in zip(one.read_metrics(), exact.read_metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.01)
    weights, expected = weights_of(one), weights_of(exact)
    for name, value in expected.items():
        assert (weights[name] - value).norm() < 0.05 * value.norm(), name


def test_the_same_config_gives_the_same_bits_again(
    tmp_path: Path, few_digits: DataSplits, cache: Path, network: str
) -> None:
    plain, one, two = (
        fit(
            config_of(model=network, kernels=name, precision="fp32"),
            few_digits,
            tmp_path / f"run-{number}",
        )
        for number, name in enumerate(("default", "auto", "auto"))
    )
    assert plain.chosen() is None
    chosen = one.chosen()
    assert chosen == two.chosen()
    assert chosen is not None
    assert chosen.kernels == {LAYER: "phases"}
    assert chosen.notes == (
        "kernels=auto: 1 of 1 kinds of grouped or dilated convolution in another way "
        "(phases 1×); see chosen.json",
    )
    assert same_weights(one, two)
    assert not same_weights(plain, one)
    for mine, theirs in zip(plain.read_metrics(), one.read_metrics(), strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


class StopAfterAnEpoch(Listener):
    def on_epoch(self, row: MetricsRow) -> None:
        raise TrainingInterruptedError("later", signal.SIGTERM)


def test_a_run_goes_on_with_what_it_chose_whatever_the_cache_says_by_then(
    tmp_path: Path, few_digits: DataSplits, cache: Path, network: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = config_of(model=network, kernels="auto")
    whole = fit(config, few_digits, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError):
        fit(config, few_digits, tmp_path / "parts", listener=StopAfterAnEpoch())
    shutil.rmtree(cache)
    monkeypatch.setattr(kernels, "GAIN", 0.0)  # nothing would be fast enough now
    resumed = resume(tmp_path / "parts", few_digits)
    assert same_weights(whole, resumed)
    assert not cache.exists()
    path = tmp_path / "third" / CHOSEN
    with pytest.raises(TrainingInterruptedError):
        fit(config, few_digits, tmp_path / "third", listener=StopAfterAnEpoch())
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=rf"{CHOSEN} is damaged"):
        resume(tmp_path / "third", few_digits)


def test_what_was_measured_is_kept_and_what_is_damaged_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(range(1, 99))

    def ask(**facts: Any) -> dict[str, float]:
        return remember(facts, dict[str, float], lambda: {"conv": float(next(answers))})

    assert ask(size=1) == ask(size=1) == {"conv": 1.0}
    assert ask(size=2) == {"conv": 2.0}
    (path,) = (p for p in cache.glob("*.json") if '"size": 1' in p.read_text())
    whole = path.read_text()
    for damage in (whole[:-9], "[]", whole.replace("1.0", '"x"'), whole.replace('"size": 1', "")):
        path.write_text(damage)
        measured = ask(size=1)
        assert measured["conv"] > 2
        assert ask(size=1) == measured
    torch.set_num_threads(2)
    try:
        assert ask(size=2) != {"conv": 2.0}  # other threads, other times
    finally:
        torch.set_num_threads(1)
    assert ask(size=2) == {"conv": 2.0}
    (entry,) = list_cache()
    assert entry.name == "measured on this machine"
    assert entry.num_bytes > 0
    assert clear_cache() == [entry]
    assert not cache.exists()
    monkeypatch.setenv("HALFMEG_CACHE", "/dev/null/nowhere")  # nothing can be kept
    assert ask(size=2) != ask(size=2)


def test_who_asks_beside_another_waits_and_gets_the_same_answer(cache: Path) -> None:
    calls = []

    def measure() -> list[int]:
        calls.append(1)
        time.sleep(0.05)
        return [len(calls)]

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(remember, {"who": "all"}, list[int], measure) for _ in range(4)]
    assert [future.result() for future in asked] == [[1]] * 4


def test_settings_that_exclude_each_other_and_values_that_are_not_known(few_digits) -> None:
    assert config_of().compile is False
    for text, value in (("auto", "auto"), ("true", True), ("0", False)):
        config = config_of().override([f"compile={text}"])
        assert config.compile == value
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    old = {key: v for key, v in config_of().to_dict().items() if key != "kernels"}
    assert RunConfig.from_dict(old).kernels == "default"
    with pytest.raises(ValueError, match="kernels='fast' is not known; allowed: default, auto"):
        config_of(kernels="fast")
    with pytest.raises(ValueError, match="compile='yes' is not allowed; compile takes true, false"):
        config_of().override(["compile=yes"])
    with pytest.raises(ValueError, match="compile='on' is not known; allowed: true, false or auto"):
        config_of(compile="on")
    with pytest.raises(ValueError, match="kernels=auto chooses among"):
        config_of(kernels="auto", compile="auto")
    for name in ("kernels", "compile"):
        config = config_of(**{name: "auto"})
        with pytest.raises(ValueError, match=f"{name}=auto takes no stack"):
            check_stack([config, replace(config, seed=1)], few_digits)


def test_the_command_line_says_in_a_line_what_was_chosen(
    cli: Cli, pictures: Path, cache: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = ("train", "common", f"model={network}", "epochs=1", "--data", str(pictures))
    outcome = cli(*terms, "kernels=auto", "--out", "one")
    assert outcome.code == 0, outcome.err
    assert "Dilated seed 0  kernels=auto: 1 of 1 " in outcome.err
    outcome = cli(*terms, "compile=auto", "--out", "two")
    assert outcome.code == 0, outcome.err
    assert "compile=auto: off; " in outcome.err
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    outcome = cli(*terms, "compile=true", "--out", "three")
    assert outcome.code == 2
    assert outcome.err == (
        "halfmeg: compile=true: there is no C++ compiler here (g++, c++ or clang++); "
        "install one, or set compile=false\n"
    )
    assert not Path("three").exists()


SECONDS = StepTimes(plain=0.30, compiled=0.25, compiling=40.0)


def test_compiling_is_worth_what_it_saves_over_the_run() -> None:
    assert judge(SECONDS, 1_000, 1) == (
        True, "a step takes 250 ms compiled and 300 ms else, "
        "over the run +50 s saved for 40 s of compiling",
    )  # fmt: skip
    assert not judge(SECONDS, 700, 1)[0]
    assert not judge(SECONDS, 1_000, 2)[0]  # a last batch of another size is compiled too
    assert not judge(replace(SECONDS, compiled=0.35), 10**6, 1)[0]
    assert judge(replace(SECONDS, failure="E: no"), 10**6, 1) == (
        False, "it cannot be compiled: E: no",
    )  # fmt: skip


def test_compile_auto_is_off_without_a_compiler_and_for_short_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("logistic")
    plan = Plan.of(config_of(epochs=3), 200, 32)

    def ask() -> tuple[bool, str]:
        return worth_compiling(model, image_shape(32), 50, torch.float32, plan, {})

    if compiling.has_compiler():
        assert ask() == (False, "0 s of training are too short to compile for")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert ask() == (False, "there is no C++ compiler here (g++, c++ or clang++)")


needs_compiler = pytest.mark.skipif(
    not compiling.has_compiler(), reason="torch.compile needs a C++ compiler"
)


of_importing_the_compiler = pytest.mark.filterwarnings(
    r"ignore:.torch\.jit\.script_method. is deprecated:DeprecationWarning"
)


@pytest.mark.slow
@needs_compiler
def test_compile_auto_measures_a_longer_run(
    tmp_path: Path, few_digits: DataSplits, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "SHORTEST", 0.0)
    config = config_of(model="logistic")
    run = fit(replace(config, compile="auto"), few_digits, tmp_path / "run")
    chosen = run.chosen()
    assert chosen is not None
    assert not chosen.compile  # for eight steps
    assert chosen.notes[0].startswith("compile=auto: off; a step takes ")
    assert same_weights(run, fit(config, few_digits, tmp_path / "plain"))


@pytest.mark.slow
@needs_compiler
@of_importing_the_compiler
def test_a_compiler_that_fails_is_a_reason_and_no_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.SiLU(), nn.Linear(8, 3))
    useless = {"cpp.cxx": (shutil.which("true"),), "compile_threads": 1}
    with torch._inductor.config.patch(useless), fresh_cache():
        times = time_steps(model, torch.zeros(4, 3, 4, 4), torch.float32, compiling=True)
    assert times.failure
    assert "\n" not in times.failure
    assert not judge(times, 10**6, 1)[0]


class WrongWhenCompiled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x.flatten(1))
        return y * float("nan") if torch.compiler.is_compiling() else y


@pytest.mark.slow
@needs_compiler
@of_importing_the_compiler
def test_what_gives_no_numbers_compiled_is_not_compiled() -> None:
    images = torch.zeros(4, 3, 4, 4)
    with fresh_cache():
        times = time_steps(WrongWhenCompiled(), images, torch.float32, compiling=True)
    assert times.failure == "its gradients are no numbers"


RANKS = """
import sys
from pathlib import Path
from conftest import first_digits, small_config
from halfmeg.artifacts.run import Run
from halfmeg.training import choice, job
from halfmeg.training.distributed import join_ranks

config = small_config(model=sys.argv[2], batch_size=50, kernels="auto")
data = first_digits(100)
with join_ranks("cpu") as ranks:
    if ranks.rank:
        choice.choose_kernels = None  # only the first process may ask
    # A file for each: lines that two processes print at once run into each other.
    said = Path(f"rank-{ranks.rank}")
    job.with_kernels = lambda forward, ways: said.write_text(str(sorted(ways.items())))
    run = ranks.first(lambda: Run.create(Path(sys.argv[1]), config, data))
    job.set_up(run, data, ranks)
"""


@pytest.mark.slow
def test_the_choice_of_the_first_process_travels_to_the_others(
    tmp_path: Path, cache: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    monkeypatch.setenv("PYTHONPATH", with_tests()["PYTHONPATH"])
    done = torchrun(2, "ranks.py", "run", network, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in range(2))
    assert first == second
    chosen = Run.open(tmp_path / "run").chosen()
    assert chosen is not None
    assert first == str(sorted(chosen.kernels.items()))
