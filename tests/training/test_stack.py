from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.evaluation.precision import has_bf16_hardware
from halfmeg.networks.table import build_model
from halfmeg.studies.study import run_study
from halfmeg.studies.workers import StudyListener
from halfmeg.training.batches import Batches
from halfmeg.training.fit import fit, resume
from halfmeg.training.listen import Listener
from halfmeg.training.optim import orthogonalize
from halfmeg.training.stack import _Products, train_stack
from halfmeg.training.stopping import TrainingInterruptedError

# Each way to augment and to average, in float32, where rounding is all that tells the two apart.
TERMS = {
    "epochs": 2, "batch_size": 64, "precision": "fp32", "crop": 3, "crop_mode": "reflect",
    "hflip": True, "alternate": True, "cutout": 4, "label_smoothing": 0.1, "ema": 0.9,
}  # fmt: skip


def seeds(count: int, **settings: object) -> list[RunConfig]:
    return [small_config(seed=seed, **TERMS | settings) for seed in range(count)]


def tasks(configs: list[RunConfig], folder: Path) -> list[tuple[RunConfig, Path]]:
    folder.mkdir(exist_ok=True)
    return [(config, folder / f"seed-{config.seed}") for config in configs]


def losses(run: Run) -> list[float]:
    return [float(row["train_loss"] or 0) for row in run.read_metrics()]


@pytest.mark.parametrize(
    ("model", "optimizer", "lr"),
    [
        ("cnn", "adam", 0.001),
        pytest.param("resnet-shared", "sgd", 0.002, marks=pytest.mark.slow),
        pytest.param("resnet20", "muon", 0.01, marks=pytest.mark.slow),
        pytest.param("sprint", "muon", 0.01, marks=pytest.mark.slow),
        pytest.param("record", "muon", 0.01, marks=pytest.mark.slow),
    ],
)
def test_stacked_runs_are_those_of_fit(model, optimizer, lr, tmp_path: Path, few_digits) -> None:
    mixed = model == "cnn"
    configs = seeds(
        2, model=model, optimizer=optimizer, lr=lr, weight_decay=5e-4, ema=0.0 if mixed else 0.9,
        mixup=0.5 if mixed else 0.0, cutmix=1.0 if mixed else 0.0,
        class_weights="balanced" if mixed else "none",
    )  # fmt: skip
    assert train_stack(tasks(configs, tmp_path / "stack"), few_digits) == [None, None]
    for config in configs:
        alone = fit(config, few_digits, tmp_path / f"alone-{config.seed}")
        stacked = Run.open(tmp_path / "stack" / f"seed-{config.seed}")
        assert losses(stacked) == pytest.approx(losses(alone), rel=2e-3)
        result, expected = stacked.result(), alone.result()
        assert result is not None and expected is not None
        assert result["test_loss"] == pytest.approx(expected["test_loss"], rel=1e-2)
        assert (result["runs_at_once"], expected["runs_at_once"]) == (2, 1)
        assert result.keys() == expected.keys()
        assert stacked.evaluate(few_digits).accuracy == result["test_accuracy"]
        (own, single) = (max(run.folder.glob("checkpoints/*")) for run in (stacked, alone))
        assert own.stat().st_size < 1.1 * single.stat().st_size


IN_BFLOAT16 = (
    "cnn", "resnet", "resnet-linear", "resnet-shared", "resnet20", "resnet32", "sprint", "record",
    "cct2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(
    not has_bf16_hardware(torch.device("cpu")),
    reason="this processor has no bfloat16, and emulates it hundreds of times slower",
)
def test_a_stack_of_networks_trains_in_bfloat16(tmp_path: Path, few_digits) -> None:
    configs = [
        replace(config, precision="bf16", epochs=10)  # the whitened networks start slowly
        for model in IN_BFLOAT16
        for config in seeds(2, model=model, optimizer="muon", lr=0.02)
    ]
    study = run_study(configs, few_digits, tmp_path / "study", stack=True)
    assert not study.failures
    for run in study.runs:
        assert losses(run)[-1] < losses(run)[0]


def test_products_of_matrices_are_in_bfloat16_as_under_autocast() -> None:
    """The network's attention multiplies float32 weights of a softmax by bfloat16 values."""
    model, images = build_model("cct2").eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        with _Products(torch.bfloat16):
            found = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(images)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    left, right = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    with _Products(torch.bfloat16):
        for product in (
            left @ right, torch.matmul(left, right), left.bmm(right),
            torch.einsum("bij,bjk->bik", left, right),
            torch.baddbmm(input=torch.ones(3, 4, 6), batch1=left, batch2=right),
        ):  # fmt: skip
            assert product.dtype == torch.bfloat16


DILATED = """
from torch import nn

class Dilated(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.conv(self.stem(x).relu()).relu().mean((2, 3)))
"""


def test_a_dilated_convolution_in_a_stack_gets_its_gradient(tmp_path: Path, few_digits) -> None:
    """The networks' own become one with a group for each; in bfloat16 torch's gradient is wrong."""
    (tmp_path / "net.py").write_text(DILATED)
    exact, rounded = (
        seeds(2, model=f"{tmp_path / 'net.py'}:Dilated", precision=precision)
        for precision in ("fp32", "bf16")
    )
    for configs, name in ((exact, "exact"), (rounded, "rounded")):
        assert train_stack(tasks(configs, tmp_path / name), few_digits) == [None, None]
    for seed in range(2):
        one, two = (Run.open(tmp_path / name / f"seed-{seed}") for name in ("exact", "rounded"))
        assert losses(two) == pytest.approx(losses(one), rel=0.01)
        weights = load_file(two.folder / "weights.safetensors")
        for name, value in load_file(one.folder / "weights.safetensors").items():
            assert (weights[name] - value).norm() < 0.02 * value.norm(), name


class InterruptAfter(Listener):
    """Presses Ctrl-C after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step(self, report) -> None:
        if report.epoch == 2 and report.step >= self.steps:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("logistic", "adam"),
        pytest.param("cnn", "adam", marks=pytest.mark.slow),
        pytest.param("cnn", "muon", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_stack_goes_on_where_it_stopped(
    model, optimizer, tmp_path: Path, few_digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stack, and each of its runs alone: the checkpoints are those of ordinary runs."""
    monkeypatch.setattr("halfmeg.training.totals.REPORT_SECONDS", 0)  # tell of every step
    configs = seeds(2, model=model, optimizer=optimizer, lr=0.002, epochs=3, hard_share=0.9)
    whole = tasks(configs, tmp_path / "whole")
    train_stack(whole, few_digits)
    for name in ("again", "alone"):
        stopped = tasks(configs, tmp_path / name)
        with pytest.raises(TrainingInterruptedError):
            train_stack(stopped, few_digits, InterruptAfter(2))
        assert Run.open(stopped[0][1]).result() is None
        if name == "again":
            assert train_stack(stopped, few_digits) == [None, None]
        else:
            for _, folder in stopped:
                resume(folder, few_digits)
        for (_, expected), (_, continued) in zip(whole, stopped, strict=True):
            assert losses(Run.open(continued)) == pytest.approx(
                losses(Run.open(expected)), rel=1e-4
            )
    finished = (whole[0][1] / "weights.safetensors").read_bytes()
    with pytest.raises(ValueError, match="finished already"):
        train_stack(whole, few_digits)
    assert (whole[0][1] / "weights.safetensors").read_bytes() == finished


SCALED = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.head = nn.Linear(8, num_classes)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return self.scale * self.head(self.conv(x).relu().mean((2, 3)))
"""


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [("adam", {"lr": 0.02}), ("sgd", {"lr": 0.1, "momentum": 0.95}), ("muon", {"lr": 0.1})],
)
def test_a_number_keeps_each_networks_own_momentum(
    optimizer, settings, tmp_path: Path, few_digits
) -> None:
    """A parameter without dimensions has a state without any, which is no count of steps."""
    (tmp_path / "net.py").write_text(SCALED)
    model = f"{tmp_path / 'net.py'}:Scaled"
    configs = seeds(2, model=model, optimizer=optimizer, epochs=4, ema=0.0, **settings)
    whole = tasks(configs, tmp_path / "whole")
    assert train_stack(whole, few_digits) == [None, None]
    cut = tasks(configs, tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        train_stack(cut, few_digits, Heard(2).of_run(configs[0]))
    assert train_stack(cut, few_digits) == [None, None]
    scales = []
    for (_, expected), (_, continued) in zip(whole, cut, strict=True):
        weights = load_file(continued / "weights.safetensors")
        for name, value in load_file(expected / "weights.safetensors").items():
            assert torch.allclose(weights[name], value, rtol=1e-4, atol=1e-6), name
        scales.append(float(weights["scale"]))
    assert abs(scales[0] - scales[1]) > 1e-3  # so one's momentum does not do for the other


@pytest.mark.slow
def test_a_seed_that_diverges_leaves_the_others(
    tmp_path: Path, few_digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = seeds(2, optimizer="sgd", lr=0.01)
    original = Batches.draw

    def broken(self, train, epoch, first):
        for batch in original(self, train, epoch, first):
            yield replace(batch, images=batch.images * (float("nan") if epoch.seed == 1 else 1))

    monkeypatch.setattr(Batches, "draw", broken)
    fine, failed = train_stack(tasks(configs, tmp_path / "stack"), few_digits)
    assert fine is None
    assert failed is not None
    assert "nan in epoch 1" in failed
    assert "0.01" in failed
    assert Run.open(tmp_path / "stack" / "seed-0").result() is not None
    assert Run.open(tmp_path / "stack" / "seed-1").result() is None


def test_seeds_of_other_numbers_of_images_take_no_stack(tmp_path: Path, few_digits) -> None:
    """Copies are held out together, so how many images are left depends on the draw."""
    images = few_digits.train.images.clone()
    images[:40] = images[0]
    copies = replace(few_digits, train=replace(few_digits.train, images=images))
    with pytest.raises(ValueError, match=r"the seeds train on \d+ to \d+ images"):
        train_stack(tasks(seeds(4, val_fraction=0.2), tmp_path), copies)
    with pytest.raises(ValueError, match=r"the seeds train on \d+ to \d+ images"):
        run_study(seeds(4, val_fraction=0.2), copies, tmp_path / "study", stack=True)
    assert not list(tmp_path.iterdir())


def test_what_takes_no_stack(tmp_path: Path, few_digits) -> None:
    out = tmp_path / "study"
    for changes, text in (
        ({"schedule": "plateau"}, "schedule=plateau"),
        ({"teacher": "record"}, "teacher=record"),
    ):
        with pytest.raises(ValueError, match=text):
            run_study(seeds(2, **changes), few_digits, out, stack=True)
    with pytest.raises(ValueError, match="seed only"):
        train_stack(tasks([*seeds(1), *seeds(1, lr=0.1)], tmp_path / "two"), few_digits)
    with pytest.raises(ValueError, match="workers=2 and a stack"):
        run_study(seeds(2), few_digits, out, stack=True, workers=2)
    assert not out.exists()


def test_runs_that_stand_apart_are_not_stacked(tmp_path: Path, few_digits) -> None:
    both = tasks(seeds(2, epochs=3), tmp_path / "stack")
    config, folder = both[0]
    with pytest.raises(TrainingInterruptedError):
        fit(config, few_digits, folder, listener=InterruptAfter(0))
    with pytest.raises(ValueError, match="one by one"):
        train_stack(both, few_digits)


class Heard(StudyListener):
    """Notes the seed that leads each stack, and the epochs that it trains."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: dict[int, list[int]] = {}
        self.stop_after = stop_after

    def of_run(self, config: RunConfig) -> Listener:
        epochs = self.epochs.setdefault(config.seed, [])

        class Note(Listener):
            def on_epoch(note, row) -> None:
                epochs.append(row["epoch"])
                if row["epoch"] == self.stop_after:
                    raise KeyboardInterrupt

        return Note()


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_a_study_killed_between_two_checkpoints_of_a_stack_goes_on(
    stopped_after: int, tmp_path: Path, few_digits
) -> None:
    """Two seeds of three have yet to write theirs; after the third epoch only `finish` is left."""
    configs = seeds(3, model="logistic", epochs=3)
    whole = run_study(configs, few_digits, tmp_path / "whole", stack=True)
    with pytest.raises(KeyboardInterrupt):
        run_study(configs, few_digits, tmp_path / "cut", stack=True, listener=Heard(stopped_after))
    for seed in (1, 2):
        Run.open(tmp_path / "cut" / f"logistic-seed-{seed}").checkpoints()[-1].unlink()
    again = Heard()
    study = run_study(configs, few_digits, tmp_path / "cut", stack=True, listener=again)
    assert study.failures == {}
    left = list(range(stopped_after, 4))
    assert again.epochs == {0: left[1:], 1: left}
    assert [(run.result() or {})["runs_at_once"] for run in study.runs] == [1, 2, 2]
    for continued, expected in zip(study.runs, whole.runs, strict=True):
        assert losses(continued) == pytest.approx(losses(expected), rel=1e-4)
        weights = load_file(continued.folder / "weights.safetensors")
        for name, value in load_file(expected.folder / "weights.safetensors").items():
            assert torch.allclose(weights[name], value, rtol=1e-3, atol=1e-5), name


def test_a_study_trains_stacks(cli, tmp_path: Path, few_digits) -> None:
    study = run_study(seeds(2, model="logistic"), few_digits, tmp_path / "study", stack=True)
    assert [(run.result() or {})["runs_at_once"] for run in study.runs] == [2, 2]
    refused = cli("compare", "cnn", "logistic", "--stack", "--workers", "2")
    assert refused.code == 2
    assert refused.is_one_line("workers=2", "leave one of them out")


@pytest.mark.slow
def test_compare_takes_a_stack(cli, tmp_path: Path, pictures: Path) -> None:
    settings = ["epochs=1", "batch_size=50", "optimizer=adam", "lr=0.001"]
    outcome = cli(
        "compare", "cnn", "logistic", *settings, "--data", str(pictures), "--seeds", "2",
        "--stack", "--out", "both", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for folder in (tmp_path / "both").glob("*-seed-*"):
        assert json.loads((folder / "result.json").read_text())["runs_at_once"] == 2


def test_a_stack_of_matrices_is_made_orthogonal_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 4, 9), (3, 9, 4)):
        stacked = torch.randn(shape, generator=generator)
        expected = torch.stack([orthogonalize(matrix) for matrix in stacked])
        assert torch.allclose(orthogonalize(stacked), expected, atol=1e-5)
