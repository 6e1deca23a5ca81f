"""The benchmarks run whole at a small setting; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from halfmeg.models import MODELS


def test_throughput(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "throughput.py"), "--models", "cnn",
        "--images", "256", "--batch-size", "64", "--rounds", "1", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert {"model", "images_per_second", "conventional_images_per_second", "ratio",
            "gemm_share", "augment_share"} <= row.keys()  # fmt: skip
    assert row["ratio"] == row["images_per_second"] / row["conventional_images_per_second"]
    assert 0 < row["augment_share"] < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_finetune(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "finetune.py"), "--model", "cnn", "--seeds", "2",
        "--first-epochs", "2", "--epochs", "2", "--per-class", "10",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cnn (from the bundle):" in done.stdout
    assert "cnn (from random weights):" in done.stdout
    assert (tmp_path / "runs" / "finetune" / "comparison.html").exists()


def test_sprint(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "sprint.py"), "--study-epochs", "2",
        "--conventional-images", "256", "--json", "budget=20000", "epochs=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sprint"]["recipe"] == "sprint"
    assert result["sprint"]["params"] < 20_000
    assert result["study_shared"]["epochs"] in (1, 2)
    ratio = result["study_shared"]["seconds"] / result["sprint"]["seconds"]
    assert result["ratio_to_study_shared"] == ratio
    assert result["ratio_to_conventional"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gpu_runs_whole_on_a_processor(tmp_path) -> None:
    out = tmp_path / "gpu"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "digits", "--out", str(out),
        "--device", "cpu", "--images", "128", "--epochs", "1", "--seeds", "2", "--workers", "2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "gpu.json").read_text())
    assert found["skipped"] == []
    assert set(found["speeds"]["images_per_second"]) == set(MODELS)
    for part in ("comparison", "sprint", "record", "record-longer"):
        assert found[part]["failures"] == {}
        for result in found[part]["runs"]:
            (folder,) = (out / part).glob(f"{result['model']}*seed-{result['seed']}")
            assert (folder / "weights.safetensors").exists()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_growth(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "growth.py"), "--images", "300", "3000",
        "--rounds", "1", "--batch-size", "100", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)["rows"]
    assert (few["images"], many["images"]) == (300, 3000)
    assert many["seconds"] > few["seconds"]
    assert abs(many["peak_memory_bytes"] - few["peak_memory_bytes"]) < 60e6


def test_operators(tmp_path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "operators.py"), "--models", "cnn", "sprint",
        "--batch-size", "100", "--steps", "2", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cnn, sprint = json.loads(done.stdout)["rows"]
    counted = {row["name"]: row for row in cnn["operators"]}
    assert counted["convolution_backward"]["calls"] >= 4  # a step's four convolutions
    assert 0.5 < sum(row["share"] for row in cnn["operators"]) < 1.3  # the evaluation counts too
    assert "convolution" in {row["name"] for row in sprint["operators"]}
    refused = subprocess.run(
        [*command, "--steps", "999"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "--steps 999" in refused.stderr
