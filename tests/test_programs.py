"""The study's two programs, by their published names, run for an epoch or two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from PIL import Image


def run_program(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / name), "--data", "digits", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_comparison_cnn_resnets(tmp_path: Path) -> None:
    done = run_program("comparison_cnn_resnets.py", tmp_path, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs" / "comparison"
    with Image.open(out / "CNN_ResNet_comparison.png") as figure:
        figure.verify()
    assert {path.name for path in out.glob("*-seed-0")} == {
        "cnn-seed-0", "resnet-seed-0", "resnet-linear-seed-0",
    }  # fmt: skip
    assert "1,020,490 parameters" in done.stdout
    assert "comparison.html" in done.stdout


def test_resnets_saves_each_epoch_and_continues(tmp_path: Path) -> None:
    done = run_program("resnets.py", tmp_path, "--epochs", "2")
    assert done.returncode == 0, done.stderr
    saved = tmp_path / "save" / "ResNet2_accuracy-85_checkpoints"
    assert {path.name for path in saved.iterdir()} == {"model_epoch_1.pt", "model_epoch_2.pt"}
    whole = (tmp_path / "runs" / "resnets-seed-0" / "weights.safetensors").read_bytes()
    first = str((saved / "model_epoch_1.pt").relative_to(tmp_path))
    done = run_program("resnets.py", tmp_path, "--epochs", "2", "--resume", first)
    assert done.returncode == 0, done.stderr
    continued = tmp_path / "runs" / "resnets-seed-0-from-model_epoch_1"
    assert (continued / "weights.safetensors").read_bytes() == whole
    with Image.open(continued / "ResNet_accuracy.png") as figure:
        figure.verify()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for name in ("resnets.py", "comparison_cnn_resnets.py"):
        done = run_program(name, tmp_path, "--epochs", "0")
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "epochs=0" in done.stderr
    done = run_program("resnets.py", tmp_path, "--resume", "none.pt")
    assert "none.pt is missing, damaged or no checkpoint" in done.stderr
