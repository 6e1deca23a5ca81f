"""The study's two programs, by their published names, run for an epoch or two."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Outcome
from PIL import Image

from halfmeg.config import RunConfig
from halfmeg.studies.figures import curve_figure
from halfmeg.training.fit import train_run

Program = Callable[..., Outcome]


@pytest.fixture
def program(
    tmp_path: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Program:
    """Run a program as `python NAME` does, on a few images, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [name, "--data", str(pictures), *arguments])
        capfd.readouterr()
        code: object = 0
        try:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        return Outcome(code if isinstance(code, int) else 1, *capfd.readouterr())

    return run


@pytest.mark.slow
def test_comparison_cnn_resnets(program: Program, tmp_path: Path) -> None:
    done = program("comparison_cnn_resnets.py", "--epochs", "1")
    assert done.code == 0, done.err
    out = tmp_path / "runs" / "comparison"
    with Image.open(out / "CNN_ResNet_comparison.png") as figure:
        figure.verify()
    assert {path.name for path in out.glob("*-seed-0")} == {
        "cnn-seed-0", "resnet-seed-0", "resnet-linear-seed-0",
    }  # fmt: skip
    assert "1,020,490 parameters" in done.out
    assert "comparison.html" in done.out


@pytest.mark.slow
def test_comparison_draws_what_finished_and_names_what_failed(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_but_cnn(config: RunConfig, *others: Any) -> str | None:
        return "no luck" if config.model == "cnn" else train_run(config, *others)

    drawn: list[str] = []

    def draw(curves: Any, *titles: str) -> Any:
        drawn.extend([*(label for label, _ in curves), titles[-1]])
        return curve_figure(curves, *titles)

    monkeypatch.setattr("halfmeg.studies.workers.train_run", train_but_cnn)
    monkeypatch.setattr("halfmeg.studies.figures.curve_figure", draw)
    done = program("comparison_cnn_resnets.py", "--epochs", "1")
    assert done.code == 1
    assert done.is_one_line("comparison_cnn_resnets.py: failed: cnn-seed-0: no luck")
    assert drawn[0] == "ResNet" and drawn[1].startswith("ResNet on ")
    assert (tmp_path / "runs" / "comparison" / "CNN_ResNet_comparison.png").exists()
    assert "comparison.html" in done.out


def test_resnets_saves_each_epoch_and_continues(program: Program, tmp_path: Path) -> None:
    done = program("resnets.py", "--epochs", "2")
    assert done.code == 0, done.err
    saved = tmp_path / "save" / "ResNet2_accuracy-85_checkpoints"
    assert {path.name for path in saved.iterdir()} == {"model_epoch_1.pt", "model_epoch_2.pt"}
    whole = (tmp_path / "runs" / "resnets-seed-0" / "weights.safetensors").read_bytes()
    first = str((saved / "model_epoch_1.pt").relative_to(tmp_path))
    done = program("resnets.py", "--epochs", "2", "--resume", first)
    assert done.code == 0, done.err
    continued = tmp_path / "runs" / "resnets-seed-0-from-model_epoch_1"
    assert (continued / "weights.safetensors").read_bytes() == whole
    with Image.open(continued / "ResNet_accuracy.png") as figure:
        figure.verify()


def test_resnets_continues_from_a_checkpoint_of_any_name(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def draw(curves: Any, *titles: str) -> Any:
        drawn.extend(label for label, _ in curves)
        return curve_figure(curves, *titles)

    monkeypatch.setattr("halfmeg.studies.figures.curve_figure", draw)
    assert program("resnets.py", "--epochs", "2").code == 0
    saved = tmp_path / "save" / "ResNet2_accuracy-85_checkpoints"
    shutil.copyfile(saved / "model_epoch_1.pt", tmp_path / "best.pt")
    before = {path: path.read_bytes() for path in saved.iterdir()}
    refused = program("resnets.py", "--epochs", "2", "--seed", "1")
    assert refused.code == 2
    assert refused.is_one_line("ResNet2_accuracy-85_checkpoints holds the models of another run",
                               "move that folder away, or continue with --resume FILE")  # fmt: skip
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    assert not (tmp_path / "runs" / "resnets-seed-1").exists()
    done = program("resnets.py", "--epochs", "2", "--resume", "best.pt")
    assert done.code == 0, done.err
    assert drawn == ["from scratch", "saved model", "continued after epoch 1"]


@pytest.mark.parametrize("name", ["resnets.py", "comparison_cnn_resnets.py"])
def test_no_epochs_is_one_line(program: Program, name: str) -> None:
    done = program(name, "--epochs", "0")
    assert done.code == 2
    assert done.is_one_line("epochs=0")


def test_no_checkpoint_is_one_line(program: Program) -> None:
    done = program("resnets.py", "--resume", "none.pt")
    assert done.code == 2
    assert done.is_one_line("none.pt is missing, damaged or no checkpoint")
