from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import FEW, Cli, first_digits, small_config, with_tests
from torch import Tensor, nn

from halfmeg.artifacts.run import Run
from halfmeg.artifacts.weights import read_checkpoint
from halfmeg.data.augment import normalize
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.data.split import stratified_split
from halfmeg.evaluation.precision import has_bf16_hardware
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.networks.table import build_model
from halfmeg.training.fit import fit, resume
from halfmeg.training.listen import Listener
from halfmeg.training.stopping import TrainingDivergedError, TrainingInterruptedError

EVERYTHING = {
    "rotation": 10.0, "crop": 3, "brightness": 0.1, "contrast": 0.1, "saturation": 0.1,
    "hflip": True, "vflip": True, "cutout": 4, "label_smoothing": 0.1, "ema": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def half_digits() -> DataSplits:
    return first_digits(400)


class Recorder(Listener):
    """Keeps what it is told, and can act after an epoch."""

    def __init__(self, after_epoch=None) -> None:
        self.reports, self.rows, self.damaged = [], [], []
        self.after_epoch = after_epoch

    def on_start(self, run, damaged) -> None:
        self.damaged = damaged

    def on_step(self, report) -> None:
        self.reports.append(report)

    def on_epoch(self, row) -> None:
        self.rows.append(row)
        if self.after_epoch:
            self.after_epoch(row)


def weights_of(run: Run) -> bytes:
    return (run.folder / "weights.safetensors").read_bytes()


def test_a_run_learns_and_its_folder_tells_everything(tmp_path: Path) -> None:
    digits, recorder = load_dataset("digits"), Recorder()
    run = fit(small_config(epochs=4, batch_size=32), digits, tmp_path / "run", listener=recorder)
    result = run.result()
    assert result is not None
    assert result["test_accuracy"] > 0.9
    assert result["val_accuracy"] == pytest.approx(recorder.rows[-1]["val_accuracy"])
    assert {"params", "epochs", "val_accuracy", "test_accuracy", "images_per_second",
            "seconds", "weights"} <= result.keys()  # fmt: skip
    assert (result["params"], result["epochs"], result["macs"]) == (81_578, 4, 14_359_552)
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json", "environment.json", "trained_on.u64", "held_out.u64",
        "metrics.csv", "checkpoints", "weights.safetensors",
        "result.json", "logits.npz", "test_readings.jsonl",
    }  # fmt: skip
    assert [row["epoch"] for row in run.read_metrics()] == [1, 2, 3, 4]
    assert run.evaluate(digits).accuracy == result["test_accuracy"]
    assert recorder.reports[-1].seconds_left == 0
    assert recorder.reports[-1].step == recorder.reports[-1].steps


@pytest.mark.parametrize("name", FEW)
def test_every_network_learns(name: str, tmp_path: Path) -> None:
    """Small batches and images as they are: augmented ones leave the deep networks at chance."""
    config = small_config(model=name, epochs=6, batch_size=10, label_smoothing=0.1, ema=0.9)
    run = fit(config, first_digits(100), tmp_path / "run")
    losses = [row["train_loss"] for row in run.read_metrics()]
    assert losses[-1] < 0.95 * losses[0]  # type: ignore[operator]
    run.load_model()


OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "step", "plateau", "cosine", "onecycle", "exponential")
EACH_ONCE = (
    *zip(OPTIMIZERS, SCHEDULES, strict=False),
    ("adam", "cosine"), ("sgd", "onecycle"), ("adamw", "exponential"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        pytest.param(*pair, marks=() if pair in EACH_ONCE else pytest.mark.slow)
        for pair in product(OPTIMIZERS, SCHEDULES)
    ],
)
def test_every_optimizer_and_schedule(optimizer, schedule, tmp_path: Path, few_digits) -> None:
    lr = 0.05 if optimizer == "sgd" else 0.002
    config = small_config(
        optimizer=optimizer, schedule=schedule, lr=lr, milestones=(1,), batch_size=64
    )
    rows = fit(config, few_digits, tmp_path / "run").read_metrics()
    assert rows[1]["train_loss"] < rows[0]["train_loss"]  # type: ignore[operator]
    if schedule in ("step", "exponential"):
        assert rows[1]["lr"] == pytest.approx(lr / 10)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    tmp_path: Path, few_digits
) -> None:
    config = small_config(model="resnet", epochs=1, **EVERYTHING)  # its dropout draws too
    first, again = (fit(config, few_digits, tmp_path / name) for name in ("a", "b"))
    other = fit(replace(config, seed=1), few_digits, tmp_path / "c")
    assert weights_of(first) == weights_of(again)
    assert weights_of(first) != weights_of(other)


@pytest.mark.skipif(
    not has_bf16_hardware(torch.device("cpu")), reason="this processor has no bfloat16"
)
def test_bf16_and_float32_learn_alike(tmp_path: Path) -> None:
    digits, accuracies = load_dataset("digits"), []
    for precision in ("bf16", "fp32"):
        config = small_config(epochs=4, batch_size=32, precision=precision)
        run = fit(config, digits, tmp_path / precision)
        assert (run.result() or {})["precision"] == precision
        accuracies.append((run.result() or {})["test_accuracy"])
    assert min(accuracies) > 0.8
    assert abs(accuracies[0] - accuracies[1]) < 0.05


def test_the_test_set_is_read_once_unless_the_curve_is_asked_for(
    tmp_path: Path, few_digits
) -> None:
    run = fit(small_config(model="logistic", epochs=3), few_digits, tmp_path / "sealed")
    assert len((run.folder / "test_readings.jsonl").read_text().splitlines()) == 1
    assert (run.result() or {})["test_curve"] is None

    config = small_config(model="logistic", epochs=3, val_fraction=0.0, monitor="test")
    run = fit(config, few_digits, tmp_path / "watched")
    lines = (run.folder / "test_readings.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert "monitoring only" in json.loads(lines[0])["purpose"]
    result = run.result() or {}
    assert result["test_curve"] == "monitoring only"
    assert result["test_accuracy"] == pytest.approx(run.read_metrics()[-1]["test_accuracy"])
    assert result["val_accuracy"] is None


# --- stopping and continuing ------------------------------------------------------------------

KILLED_CONFIG = {
    "model": "resnet", "epochs": 4, "batch_size": 128, "hard_share": 0.8, **EVERYTHING,
}  # fmt: skip
SCRIPT = """
import json
import sys
from conftest import first_digits, small_config
from halfmeg.evaluation.precision import has_bf16_hardware
from halfmeg.training.listen import Listener
from halfmeg.training.fit import fit

class Tell(Listener):
    def on_epoch(self, row):
        print(row["epoch"], flush=True)

from test_train import KILLED_CONFIG
config = small_config(**KILLED_CONFIG | json.loads(sys.argv[2]))
fit(config, first_digits(400), sys.argv[1], listener=Tell())
"""


def start_process(folder: Path, **changes: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(changes)],
        env=with_tests(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, few_digits: DataSplits) -> Run:
    return fit(small_config(**KILLED_CONFIG), few_digits, tmp_path_factory.mktemp("whole") / "run")


def kill_after_an_epoch(folder: Path, delay: float, **changes: object) -> None:
    process = start_process(folder, **changes)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "1\n", process.stderr.read()
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert not (folder / "result.json").exists()


def assert_same_run(run: Run, whole: Run) -> None:
    assert weights_of(run) == weights_of(whole)
    ours, theirs = run.read_metrics(), whole.read_metrics()
    for row in (*ours, *theirs):
        del row["seconds"], row["images_per_second"]
    assert ours == theirs


@pytest.mark.slow  # a stop without a checkpoint, in this process, is below
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    changes = {"model": "logistic", "epochs": 15, "batch_size": 16}
    kill_after_an_epoch(tmp_path / "run", 0.0, **changes)
    config = small_config(**KILLED_CONFIG | changes)
    whole = fit(config, first_digits(400), tmp_path / "whole")
    assert_same_run(resume(tmp_path / "run", first_digits(400)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_a_network_with_dropout_is_killed_and_resumed(delay, tmp_path, half_digits) -> None:
    """Somewhere in the second or third epoch, or in the writing of a file."""
    kill_after_an_epoch(tmp_path / "run", delay)
    whole = fit(small_config(**KILLED_CONFIG), half_digits, tmp_path / "whole")
    assert_same_run(resume(tmp_path / "run", half_digits), whole)


@pytest.mark.slow
def test_a_rate_that_test_images_would_choose_is_refused(tmp_path: Path, few_digits) -> None:
    config = small_config(schedule="plateau", monitor="test")
    with pytest.raises(ValueError, match="would choose by test images; set monitor=val"):
        fit(config, few_digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_killed_before_the_first_checkpoint_starts_again(tmp_path, half_digits) -> None:
    process = start_process(tmp_path / "run")
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    whole = fit(small_config(**KILLED_CONFIG), half_digits, tmp_path / "whole")
    assert weights_of(resume(tmp_path / "run", half_digits)) == weights_of(whole)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_signals_write_a_checkpoint_and_say_how_to_continue(
    number, tmp_path, few_digits, uninterrupted
) -> None:
    def interrupt(report) -> None:
        if report.epoch == 2:
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    recorder = Recorder()
    recorder.on_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(TrainingInterruptedError, match="halfmeg resume") as caught:
        fit(small_config(**KILLED_CONFIG), few_digits, tmp_path / "run", listener=recorder)
    assert caught.value.signal_number == number
    assert signal.getsignal(signal.SIGTERM) is before  # handlers are put back
    run = resume(tmp_path / "run", few_digits)
    assert weights_of(run) == weights_of(uninterrupted)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, few_digits, uninterrupted) -> None:
    def stop(row) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small_config(**KILLED_CONFIG), few_digits, tmp_path / "run", listener=Recorder(stop))
    newest = Run.open(tmp_path / "run").checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    recorder = Recorder()
    run = resume(tmp_path / "run", few_digits, listener=recorder)
    assert recorder.damaged == [newest]
    assert [row["epoch"] for row in recorder.rows] == [3, 4]
    assert weights_of(run) == weights_of(uninterrupted)


def test_no_readable_checkpoint_is_an_error(tmp_path: Path, few_digits) -> None:
    run = fit(small_config(epochs=1), few_digits, tmp_path / "run")
    (run.folder / "result.json").unlink()
    for path in run.checkpoints():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        resume(run.folder, few_digits)


def test_a_finished_run_is_left_alone(tmp_path: Path, few_digits) -> None:
    run = fit(small_config(epochs=1), few_digits, tmp_path / "run")
    stamp = (run.folder / "weights.safetensors").stat().st_mtime_ns
    assert resume(run.folder, few_digits).result() == run.result()
    assert (run.folder / "weights.safetensors").stat().st_mtime_ns == stamp


def test_a_run_continues_only_on_its_own_data(tmp_path: Path, few_digits) -> None:
    run = fit(small_config(epochs=1), few_digits, tmp_path / "run")
    swapped = DataSplits(
        "other", few_digits.test, few_digits.train, few_digits.mean, few_digits.std, "0" * 16
    )
    with pytest.raises(ValueError, match=f"was trained on {few_digits.fingerprint}"):
        resume(run.folder, swapped)


def test_a_saved_model_is_continued_in_a_new_folder(tmp_path, few_digits, uninterrupted) -> None:
    config = small_config(**KILLED_CONFIG | {"keep_checkpoints": 0})
    whole = fit(config, few_digits, tmp_path / "whole")
    assert len(whole.checkpoints()) == 4
    continued = fit(config, few_digits, tmp_path / "more", start=whole.checkpoints()[1])
    assert weights_of(continued) == weights_of(whole) == weights_of(uninterrupted)
    assert len(continued.read_metrics()) == 4
    with pytest.raises(ValueError, match="missing, damaged or no checkpoint"):
        fit(config, few_digits, tmp_path / "none", start=tmp_path / "none.pt")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="does not fit cnn; if another version"):
        fit(small_config(), few_digits, tmp_path / "cnn", start=whole.checkpoints()[1])
    for key, value in {"optimizer": "muon", "ema": 0.0, "hard_share": 1.0}.items():
        assert getattr(config, key) != value
        other = replace(config, **{key: value})
        with pytest.raises(ValueError, match="its optimizer, schedule, ema and hard_share have to"):
            fit(other, few_digits, tmp_path / "other", start=whole.checkpoints()[1])
    assert not (tmp_path / "other").exists()
    fewer = replace(config, epochs=1)
    with pytest.raises(ValueError, match="is of epoch 2, and epochs=1 is less; name more epochs"):
        fit(fewer, few_digits, tmp_path / "fewer", start=whole.checkpoints()[1])
    assert not (tmp_path / "cnn").exists()
    assert not (tmp_path / "fewer").exists()


def test_a_saved_model_goes_on_with_the_new_settings_and_what_was_held_out(
    tmp_path, few_digits
) -> None:
    """Another draw would validate on images that the saved model was trained on."""
    config = small_config(epochs=2, keep_checkpoints=0, val_fraction=0.2, optimizer="sgd")
    start = fit(config, few_digits, tmp_path / "run").checkpoints()[0]
    for key, value, told in (("seed", 1, 0), ("val_fraction", 0.3, 0.2)):
        other = replace(config, **{key: value})
        with pytest.raises(ValueError, match=f"{key}={told}, and this one has {key}={value}: it"):
            fit(other, few_digits, tmp_path / "none", start=start)
    grouped = replace(few_digits, options={"group": "a+"})
    with pytest.raises(ValueError, match=r"group=, and this one has group=a\+: it may know"):
        fit(config, grouped, tmp_path / "none", start=start)
    stored = tmp_path / "run" / "config.json"
    described = json.loads(stored.read_text())
    taught = described | {"config": described["config"] | {"teacher": "a"}}
    stored.write_text(json.dumps(taught))
    with pytest.raises(ValueError, match="teacher=a, and this one has teacher=: it may"):
        fit(config, few_digits, tmp_path / "none", start=start)
    stored.write_text(json.dumps(described))
    assert not (tmp_path / "none").exists()
    slower = replace(config, weight_decay=1.0, momentum=0.5)
    more = fit(slower, few_digits, tmp_path / "more", start=start)
    saved = read_checkpoint(more.checkpoints()[-1])
    assert saved is not None
    groups = saved["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [1.0, 0.0]
    assert {group["momentum"] for group in groups} == {0.5}


def test_a_saved_model_of_other_data_or_of_the_end_is_refused(tmp_path, few_digits) -> None:
    config = small_config(epochs=1)
    (saved,) = fit(config, few_digits, tmp_path / "run").checkpoints()
    with pytest.raises(ValueError, match="is of epoch 1, and epochs=1 leaves nothing to train"):
        fit(config, few_digits, tmp_path / "none", start=saved)
    longer = replace(config, epochs=2)
    with pytest.raises(ValueError, match=f"is of a run on .*{few_digits.fingerprint}.*with init="):
        fit(longer, replace(few_digits, fingerprint="0" * 16), tmp_path / "none", start=saved)
    state = read_checkpoint(saved)
    assert state is not None
    state["position"]["step"] = 1_000
    torch.save(state, tmp_path / "forged.pt")
    with pytest.raises(ValueError, match="epoch 1, step 1000 is outside the run"):
        fit(longer, few_digits, tmp_path / "none", start=tmp_path / "forged.pt")
    assert not (tmp_path / "none").exists()


def test_a_saved_model_goes_on_where_its_run_was_killed_at_once(
    tmp_path, few_digits, uninterrupted
) -> None:
    """Before the first checkpoint of its own."""
    config = small_config(**KILLED_CONFIG | {"keep_checkpoints": 0})
    start = fit(config, few_digits, tmp_path / "whole").checkpoints()[1]
    recorder = Recorder()

    def kill(*_: object) -> None:
        raise RuntimeError("killed")

    recorder.on_start = kill  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        fit(config, few_digits, tmp_path / "more", start=start, listener=recorder)
    assert weights_of(resume(tmp_path / "more", few_digits)) == weights_of(uninterrupted)


def test_a_checkpoint_from_before_there_was_a_selection_goes_on(tmp_path, few_digits) -> None:
    config = small_config(epochs=2, keep_checkpoints=0)
    whole = fit(config, few_digits, tmp_path / "whole")
    state = read_checkpoint(whole.checkpoints()[0])
    assert state is not None
    assert state.keys() == {"model", "optimizer", "schedule", "average", "hard", "position"}
    del state["hard"]
    torch.save(state, tmp_path / "old.pt")
    continued = fit(config, few_digits, tmp_path / "more", start=tmp_path / "old.pt")
    assert weights_of(continued) == weights_of(whole)
    needed = small_config(epochs=2, hard_share=0.5)
    with pytest.raises(ValueError, match=r"does not fit cnn.*hard is of another form"):
        fit(needed, few_digits, tmp_path / "hard", start=tmp_path / "old.pt")


# --- what goes wrong --------------------------------------------------------------------------


def test_a_loss_that_diverges_stops_and_keeps_the_last_good_checkpoint(
    tmp_path, few_digits
) -> None:
    config = small_config(epochs=5, optimizer="sgd", lr=900.0, momentum=0.9, precision="fp32",
                          batch_size=32)  # fmt: skip
    good = small_config(epochs=5, optimizer="sgd", lr=0.01, precision="fp32", schedule="step",
                        milestones=(1,), lr_drop=1.0, batch_size=32)  # fmt: skip

    def stop(row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(good, few_digits, tmp_path / "run", listener=Recorder(stop))
    run = Run.open(tmp_path / "run")
    stored = json.loads((run.folder / "config.json").read_text())
    stored["config"] |= {"lr": 900.0}
    (run.folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(TrainingDivergedError, match=r"the loss became (nan|inf) in epoch 2"):
        resume(run.folder, few_digits)
    state = read_checkpoint(run.checkpoints()[-1])
    assert state is not None
    assert state["position"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    with pytest.raises(TrainingDivergedError, match="try a smaller lr than 900"):
        fit(config, few_digits, tmp_path / "other")


def test_a_network_that_diverges_in_its_last_step_is_told_of(cli: Cli, tmp_path: Path) -> None:
    terms = ("model=mlp", "optimizer=sgd", "schedule=constant", "lr=1000", "ema=0", "epochs=1",
             "batch_size=700", "image_size=8", "val_fraction=0", "precision=fp32")  # fmt: skip
    outcome = cli("train", "common", *terms, "--data", "digits", "--out", "run")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("try a smaller lr than 1000"), outcome.err


class Masked(nn.Module):
    """Holds infinite values as it is built: causal attention has its mask so."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.frozen = nn.Parameter(self.mask.clone(), requires_grad=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(9, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.norm(x).mean((2, 3))[:, None] + self.mask.maximum(self.frozen)
        return self.head(weights.softmax(2).flatten(1))


class Spoilt(Masked):
    """Ends with an infinite variance, whose logits are finite; it is a divergence all the same."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.norm.running_var.fill_(torch.inf)
        return super().forward(x)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_infinite_values_that_a_network_is_built_with_are_no_divergence(
    ema: float, tmp_path: Path, few_digits
) -> None:
    config = small_config(epochs=2, ema=ema)
    run = fit(config, few_digits, tmp_path / "run", model=Masked)
    model = run.load_model()
    assert (model.mask == -torch.inf).sum() == (model.frozen == -torch.inf).sum() == 3
    with pytest.raises(TrainingDivergedError, match="gives no numbers any more"):
        fit(config, few_digits, tmp_path / "other", model=Spoilt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "vgg"}, "model 'vgg' is not known"),
        ({"loss": "a.py:f", "class_weights": "balanced"}, "class_weights=balanced is of no use to"),
        ({"crop": 32, "crop_mode": "reflect"}, "crop=32 is too wide"),
        ({"device": "cuda"}, "device=cuda is not there"),
        ({"device": "abacus"}, "device=abacus is not there; allowed here: cpu"),
        ({"val_fraction": 1.0}, "val_fraction=1.0 is out of range"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(changes, message, tmp_path, digits) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=message):
        fit(small_config(**changes), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_run_of_a_gpu_does_not_go_on_without_one(tmp_path: Path, few_digits) -> None:
    run = fit(small_config(epochs=1), few_digits, tmp_path / "run")
    (run.folder / "result.json").unlink()
    stored = json.loads((run.folder / "config.json").read_text())
    stored["config"] |= {"device": "cuda", "epochs": 2}
    (run.folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="device=cuda is not there"):
        resume(run.folder, few_digits)


def test_one_image_more_than_a_batch_trains_in_two(tmp_path: Path, digits) -> None:
    part = digits.train.subset(torch.arange(65))
    data = DataSplits("65", part, digits.test, digits.mean, digits.std, "0" * 16)
    recorder = Recorder()
    config = small_config(model="resnet", batch_size=64, val_fraction=0.0, monitor="test")
    fit(config, data, tmp_path / "run", listener=recorder)
    assert recorder.reports[-1].steps == 2


def test_small_images_come_first_and_count_less(tmp_path, few_digits) -> None:
    config = small_config(
        model="record", budget=10_000, epochs=3, optimizer="muon", lr=0.1, momentum=0.6,
        hflip=True, alternate=True, small_size=16, small_share=0.67, cutout=4, ema=0.9,
        first_size=12,
    )  # fmt: skip
    recorder = Recorder()
    run = fit(config, few_digits, tmp_path / "run", listener=recorder)
    result = run.result()
    model = build_model("record", 10, 32, 10_000)
    assert result["params"] == count_params(model) < 10_000
    images = 180  # a tenth of the 200 is held out
    expected = 3 * images * sum(count_macs(model, size) for size in (12, 16, 32))
    assert result["total_macs"] == expected
    first_epoch = next(r for r in recorder.reports if r.step == r.steps)
    left = first_epoch.seconds_left * first_epoch.images_per_second
    assert left == pytest.approx(images * (16**2 + 32**2) / 12**2)  # by their pixels
    logits = run.evaluate(few_digits)  # rebuilt from the folder, with the same budget
    assert logits.accuracy == result["test_accuracy"]


def test_epochs_after_the_first_take_the_hardest_images(tmp_path, few_digits) -> None:
    config = small_config(epochs=3, batch_size=32, hard_share=0.5)
    recorder = Recorder()
    run = fit(config, few_digits, tmp_path / "run", listener=recorder)
    steps = {report.epoch: report.steps for report in recorder.reports}
    assert steps == {1: 6, 2: 3, 3: 3}  # of 180, 90 and 90 images
    assert run.result()["total_macs"] == 3 * 360 * run.result()["macs"]
    first = next(r for r in recorder.reports if r.step == r.steps)
    assert first.seconds_left * first.images_per_second == pytest.approx(180)
    assert recorder.rows[2]["lr"] < 0.01 * recorder.rows[0]["lr"]  # it falls to the last step
    checkpoint = read_checkpoint(run.checkpoints()[0])  # after epoch 2
    train, val = stratified_split(few_digits.train.labels, 0.1, 0)
    hard = checkpoint["hard"]
    assert hard["losses"][val].isinf().all()
    renewed = hard["losses"][train] != hard["ranking"][train]
    assert renewed.sum() == 90
    ranking = hard["ranking"][train]
    assert ranking[renewed].min() >= ranking[~renewed].max()


def test_whitening_is_of_the_training_images_alone(tmp_path, few_digits) -> None:
    run = fit(small_config(model="sprint", budget=10_000, epochs=1), few_digits, tmp_path / "run")
    train, _ = stratified_split(few_digits.train.labels, 0.1, 0)
    expected = build_model("sprint", 10, 32, 10_000)
    mean, std = torch.tensor(few_digits.mean), torch.tensor(few_digits.std)
    expected.prepare(normalize(few_digits.train.images[train], mean, std))
    trained = run.load_model()
    assert torch.equal(trained.whitening.weight, expected.whitening.weight)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_compiled_training_is_the_same_within_rounding(tmp_path, few_digits) -> None:
    terms = {
        "model": "record",
        "budget": 10_000,
        "epochs": 2,
        "small_size": 16,
        "batch_size": 90,
        "precision": "fp32",
    }
    plain = fit(small_config(**terms), few_digits, tmp_path / "plain")
    compiled = fit(small_config(**terms, compile=True), few_digits, tmp_path / "compiled")
    for a, b in zip(plain.read_metrics(), compiled.read_metrics(), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=2e-3)


def test_small_images_that_do_not_fit_are_refused(tmp_path, few_digits) -> None:
    for model, setting in (
        ("sprint", {"small_size": 8}),
        ("sprint", {"small_size": 40}),
        ("sprint", {"small_size": 16, "first_size": 8}),
        ("cnn", {"small_size": 24}),
    ):
        name, size = list(setting.items())[-1]
        with pytest.raises(ValueError, match=f"{name}={size} does not fit"):
            fit(small_config(model=model, **setting), few_digits, tmp_path / "run")
    assert not list(tmp_path.iterdir())
