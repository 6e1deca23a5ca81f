"""Short runs whose losses and weights are stored: a refactor has to give the same bits.

`trace.json` holds them by what the bits depend on: processor, instruction set, torch, threads. On a
machine that stands there every bit is compared; on another one only the losses are, loosely.
`PYTHONPATH=tests python tests/training/test_trace.py` stores the trace of this machine. Where it
has changed, those of other machines are out of date and go.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, first_digits
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from halfmeg import Run, RunConfig, build_model, fit, load_dataset, resume

TRACE = Path(__file__).with_name("trace.json")
CIFAR = ROOT.parent / "shared" / "data" / "cifar10"
BUNDLED = Path(str(files("halfmeg") / "bundled" / "record"))
NUM_DIGITS, NUM_CIFAR, NUM_CIFAR_TEST = 120, 2_000, 100

EPOCHS = 3
# Relative, of the first epoch's loss and of any. Rounding differs between processors and grows with
# each step: with the instructions of an older one (SSE4.1 for AVX2, the same machine) losses were
# 0.0011 and 0.033 away at most, over the digits and `cifar10-record`.
FIRST_EPOCH_TOLERANCE, TOLERANCE = 0.01, 0.1
COMMON = {"epochs": EPOCHS, "precision": "fp32", "threads": 1, "seed": 1}
GEOMETRY = {"crop": 3, "hflip": True, "cutout": 6, "label_smoothing": 0.1}
EVERYTHING = GEOMETRY | {
    "rotation": 10.0, "vflip": True, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2,
    "hard_share": 0.7, "ema": 0.8,
}  # fmt: skip
# Of the three epochs the first has the first size, the second the small one, the third the data's.
SIZES = {"first_size": 12, "small_size": 16, "small_share": 0.67}
RUNS: dict[str, dict[str, Any]] = {
    "cnn": {"optimizer": "adam", "lr": 0.002, "schedule": "step", "milestones": (1,), **EVERYTHING},
    "resnet": {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.01, "schedule": "plateau",
               "patience": 1, "alternate": True, **EVERYTHING},  # the one with dropout
    "resnet-shared": {"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05,
                      "schedule": "onecycle", "crop_mode": "reflect", **EVERYTHING},
    "resnet20": {"optimizer": "sgd", "lr": 0.02, "weight_decay": 0.0005, "schedule": "cosine",
                 **EVERYTHING, **SIZES, "first_size": 0},
    "record": {"optimizer": "muon", "lr": 0.02, "head_lr": 0.5, "budget": 50_000,
               "schedule": "onecycle", "crop_mode": "reflect", "alternate": True, "ema": 0.8,
               "hard_share": 0.7, **GEOMETRY, **SIZES, "first_size": 20, "small_size": 24},
}  # fmt: skip
# the installed networks state the fingerprint of their data, but not the images
pytestmark = pytest.mark.filterwarnings("ignore:teacher=record does not say")

TAUGHT = {"teacher": "record", "teacher_share": 0.5}  # knows the classes of CIFAR-10 only
CASES: dict[str, RunConfig] = {
    f"{data}-{model}": RunConfig(
        model=model, batch_size=32 if data == "digits" else 250, **COMMON, **settings,
        **(TAUGHT if (data, model) == ("cifar10", "cnn") else {}),
    )
    for data in ("digits", "cifar10")
    for model, settings in RUNS.items()
}  # fmt: skip


def data_of(name: str) -> Any:
    """The first images of a case's source."""
    return first_digits(NUM_DIGITS) if name.startswith("digits") else first_cifar()


@cache
def first_cifar() -> Any:
    """The first images of CIFAR-10, cut from its files so that only they are decoded."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "cifar10")
        folder.mkdir()
        for part, number in (("train", NUM_CIFAR), ("test", NUM_CIFAR_TEST)):
            (path,) = CIFAR.glob(f"{part}-*.parquet")
            with pq.ParquetFile(path) as file:
                rows = next(file.iter_batches(number))
            pq.write_table(pyarrow.Table.from_batches([rows]), folder / path.name)
        return load_dataset(str(folder))


def trace_of(run: Run) -> dict[str, Any]:
    """Every bit that a run has learned and measured: losses as hexadecimal, weights as a hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(run.folder / "weights.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    result = run.result()
    assert result is not None
    return {
        "train_loss": [row["train_loss"].hex() for row in run.read_metrics()],
        "test_loss": result["test_loss"].hex(),
        "weights": digest.hexdigest(),
    }


def machine_of(run: Run) -> str:
    """What the bits of a run depend on, besides its config and data."""
    found = json.loads((run.folder / "environment.json").read_text())
    isa = torch.backends.cpu.get_cpu_capability()
    return f"{found['processor']}, {isa}, torch {found['torch']}, threads {found['threads']}"


def logits_of(model: str, budget: int, weights: Path) -> Tensor:
    """Logits of a few digits, by a network of ten classes rebuilt from its stored weights."""
    network = build_model(model, 10, 32, budget).eval()
    state = load_file(weights)
    named = [*network.named_parameters(), *network.named_buffers()]
    assert state.keys() == {name for name, _ in named}
    network.load_state_dict(state, strict=False)  # weights that are used twice are stored once
    images = load_dataset("digits").test.images[:8] / 255
    with torch.inference_mode():
        return network((images - 0.5) / 0.25)


def bundled_logits() -> Tensor:
    described = json.loads((BUNDLED / "model.json").read_text())
    return logits_of(described["model"], described["budget"], BUNDLED / "model.safetensors")


@contextmanager
def after_each_step(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of steps that any optimizer has done."""
    steps = count(1)
    hook = register_optimizer_step_post_hook(lambda *_: act(next(steps)))
    try:
        yield
    finally:
        hook.remove()


def case(name: str, *, fast: bool = True) -> Any:
    marks = [] if fast else [pytest.mark.slow]
    if name.startswith("cifar10"):
        reason = f"CIFAR-10 is not at {CIFAR.relative_to(ROOT.parent)}"
        marks += [pytest.mark.skipif(not CIFAR.is_dir(), reason=reason), pytest.mark.slow]
    return pytest.param(name, marks=marks)


SIMILAR = ("digits-resnet20", "digits-resnet-shared")
"""Trained by the code that `digits-resnet` is: among the slow ones."""


@pytest.fixture(scope="module", params=[case(name, fast=name not in SIMILAR) for name in CASES])
def traced(request, tmp_path_factory) -> tuple[str, Run, int]:
    """A case, its run without a stop, and how many steps that took."""
    steps: list[int] = []
    with after_each_step(steps.append):
        folder = tmp_path_factory.mktemp("trace") / "run"
        run = fit(CASES[request.param], data_of(request.param), folder)
    return request.param, run, len(steps)


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(TRACE.read_text())


def test_a_run_gives_the_stored_bits(traced, stored) -> None:
    name, run, _ = traced
    machine = machine_of(run)
    if machine not in stored["machines"]:
        pytest.skip(f"no trace of this machine ({machine}); this file run as a script stores it")
    assert trace_of(run) == stored["machines"][machine][name]


def test_a_run_gives_about_the_stored_losses_on_any_machine(traced, stored) -> None:
    name, run, _ = traced
    found = [row["train_loss"] for row in run.read_metrics()]
    for traces in stored["machines"].values():
        expected = [float.fromhex(loss) for loss in traces[name]["train_loss"]]
        assert found[0] == pytest.approx(expected[0], rel=FIRST_EPOCH_TOLERANCE)
        assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    "traced",
    [case(n, fast=n in ("digits-cnn", "digits-record")) for n in CASES],
    indirect=True,
)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(traced, tmp_path: Path) -> None:
    name, whole, steps = traced

    def stop(step: int) -> None:
        if step == steps - 2:
            signal.raise_signal(signal.SIGTERM)

    with after_each_step(stop), pytest.raises(RuntimeError, match="continue with"):
        fit(CASES[name], data_of(name), tmp_path / "run")
    newest = max(path.stem for path in (tmp_path / "run" / "checkpoints").iterdir())
    epoch, step = re.fullmatch(r"epoch_(\d+)_step_(\d+)", newest).groups()
    assert (int(epoch), int(step) > 0) == (EPOCHS - 1, True)  # in the midst of the last epoch
    assert trace_of(resume(tmp_path / "run", data_of(name))) == trace_of(whole)


def test_the_bundled_network_gives_its_stored_logits(stored) -> None:
    found, expected = bundled_logits(), torch.tensor(stored["bundled_logits"])
    assert torch.equal(found.argmax(1), expected.argmax(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_every_run_folder_kept_in_results_opens() -> None:
    folders = [path.parent for path in (ROOT / "results").glob("**/config.json")]
    assert folders
    for folder in folders:
        run = Run.open(folder)
        result = run.result()
        assert result is not None
        assert len(run.read_metrics()) == run.config.epochs == result["epochs"]
        if (folder / "logits.npz").exists():
            assert len(run.load_logits()["test_labels"]) == run.data.num_test
        if (weights := folder / "weights.safetensors").exists():
            logits = logits_of(run.config.model, run.config.budget, weights)
            assert logits.shape == (8, len(run.data.classes))


def store() -> None:
    """Add the trace of this machine to those stored."""
    stored = json.loads(TRACE.read_text()) if TRACE.exists() else {"machines": {}}
    traces = {}
    with TemporaryDirectory() as folder:
        for name, config in CASES.items():
            run = fit(config, data_of(name), Path(folder, name))
            traces[name] = trace_of(run)
        machine = machine_of(run)
    if stored["machines"].get(machine, traces) != traces:
        stored["machines"].clear()
    stored["machines"][machine] = traces
    stored.setdefault("bundled_logits", bundled_logits().tolist())
    TRACE.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    store()
