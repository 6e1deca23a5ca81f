"""The benchmarks run whole at a small setting; their figures are not judged here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Cli, Outcome, first_digits

from halfmeg.artifacts.weights import checkpoints_in
from halfmeg.data.load import load_dataset
from halfmeg.networks.table import MODELS
from halfmeg.shipping.device import missing_tool

pytestmark = pytest.mark.slow


def benchmark(name: str, *arguments: str, cwd: Path) -> Outcome:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_throughput(tmp_path: Path, pictures: Path) -> None:
    outcome = benchmark(
        "throughput", "--models", "cnn", "--data", str(pictures), "--images", "128",
        "--batch-size", "64", "--rounds", "1", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json
    assert {"model", "images_per_second", "conventional_images_per_second", "ratio",
            "gemm_share", "augment_share"} <= row.keys()  # fmt: skip
    assert row["ratio"] == row["images_per_second"] / row["conventional_images_per_second"]
    assert 0 < row["augment_share"] < 1
    assert row["ratio_to_eager"] == row["images_per_second"] / row["eager_images_per_second"]
    assert not list(tmp_path.iterdir())


TINY = ("--images", "32", "--batch-size", "16", "--rounds", "1", "--out", "rows.json")


@pytest.mark.campaign  # minutes
def test_throughput_of_the_whole_table(tmp_path: Path, pictures: Path) -> None:
    outcome = benchmark("throughput", "--data", str(pictures), *TINY, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["model"] for row in rows] == list(MODELS)
    assert all(row["ratio"] > 0 and row["ratio_to_eager"] > 0 for row in rows)
    assert [line.split()[0] for line in outcome.out.splitlines()[1:-1]] == list(MODELS)


def test_throughput_goes_on_where_it_was(tmp_path: Path, pictures: Path) -> None:
    command = ("throughput", "--data", str(pictures), *TINY, "--models", "mlp")
    done = benchmark(*command, cwd=tmp_path)
    assert done.code == 0, done.err
    first = (tmp_path / "rows.json").read_bytes()
    assert benchmark(*command, cwd=tmp_path).out == done.out  # nothing was left to do
    assert (tmp_path / "rows.json").read_bytes() == first
    other = benchmark(*command, "--rounds", "2", cwd=tmp_path)
    assert other.code == 2
    assert "rows.json has rounds=1, not 2; name another --out" in other.err


def test_kernels(tmp_path: Path) -> None:
    outcome = benchmark(
        "kernels", "--models", "gated", "--batch-size", "2", "--rounds", "1", "--json",
        "--precision", "fp32", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json["rows"]
    assert row["ratio"] == pytest.approx(row["default_ms"] / row["auto_ms"])
    assert "phases" in row["ways"].values()
    assert not list(tmp_path.iterdir())


def test_startup(tmp_path: Path) -> None:
    outcome = benchmark("startup", "--rounds", "1", "--json", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    seconds = outcome.json
    slowest = max(median for name, median in seconds.items() if name.startswith("halfmeg"))
    assert slowest < seconds["Python with torch, scipy, pyarrow"]


def test_finetune(tmp_path: Path) -> None:
    outcome = benchmark(
        "finetune", "--model", "cnn", "--seeds", "2", "--first-epochs", "2", "--epochs", "2",
        "--per-class", "10", cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "cnn (from the bundle):" in outcome.out
    assert "cnn (from random weights):" in outcome.out
    assert (tmp_path / "runs" / "finetune" / "comparison.html").exists()


def test_finetune_int8_goes_on_from_its_results(tmp_path: Path, pictures: Path) -> None:
    def measured(seeds: int, *others: str) -> Outcome:
        return benchmark(
            "finetune_int8", "--networks", "logistic", "--data", str(pictures), "--epochs", "2",
            "--seeds", str(seeds), "--out", "int8.json", *others, cwd=tmp_path,
        )  # fmt: skip

    assert measured(1).code == 0
    first = json.loads((tmp_path / "int8.json").read_text())["runs"]
    outcome = measured(2)
    assert outcome.code == 0, outcome.err
    runs = json.loads((tmp_path / "int8.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1]
    assert runs[:1] == first
    for run in runs:  # the epoch with the smallest loss on these images is kept
        assert run["finetuned_validation_loss"] <= run["plain_validation_loss"]
    assert "n = 2" in outcome.out
    assert "finetuned loses on test" in outcome.out
    other = measured(2, "--image-size", "16")
    assert other.code == 2
    assert "is of other data or epochs" in other.err


def test_finetune_int8_takes_runs_that_exist(tmp_path: Path, pictures: Path, cli: Cli) -> None:
    trained = cli("train", "common", "model=logistic", "epochs=1", "--data", str(pictures),
                  "--out", str(tmp_path / "run"))  # fmt: skip
    assert trained.code == 0, trained.err
    command = ("finetune_int8", "--data", str(pictures), "--out", "int8.json", "--runs")
    outcome = benchmark(*command, "run", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    (row,) = json.loads((tmp_path / "int8.json").read_text())["runs"]
    assert (row["network"], row["seed"]) == ("logistic", 0)
    assert row["finetuned_validation_loss"] <= row["plain_validation_loss"]
    outcome = benchmark(*command, "nowhere", cwd=tmp_path)
    assert outcome.code == 2
    assert "nowhere" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_worker_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    (tmp_path / "turns.py").write_text(
        """from worker import Worker

def fail(pipe):
    raise RuntimeError(pipe.recv() + " does not fit")

if __name__ == "__main__":
    with Worker(fail, "the loop") as worker:
        worker.request("cnn")
"""
    )
    outcome = subprocess.run(
        [sys.executable, "turns.py"], cwd=tmp_path, text=True, capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")},
    )  # fmt: skip
    assert outcome.returncode == 1
    assert "cnn does not fit" in outcome.stderr
    assert outcome.stderr.rstrip().endswith("the loop failed; its error stands above")


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Too few images to learn from, so that large networks train on them in seconds."""
    data = first_digits(100)
    path = tmp_path_factory.mktemp("few") / "few.npz"
    arrays = {}
    for part, images in (("train", data.train), ("test", data.test)):
        arrays[f"{part}_images"] = images.images.permute(0, 2, 3, 1).numpy()
        arrays[f"{part}_labels"] = images.labels.numpy()
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def gpu_arguments(data: Path, *runs: str, epochs: int = 1) -> tuple[str, ...]:
    return (
        str(data), "--device", "cpu", "--out", "gpu", "--bring", "home", "--epochs", str(epochs),
        "--runs", *runs,
    )  # fmt: skip


def gpu_log(folder: Path) -> dict[str, Any]:
    log = json.loads((folder / "gpu.json").read_text())
    assert log["machine"]["torch"] == torch.__version__
    runs: dict[str, Any] = log["runs"]
    return runs


def packed(archive: Path) -> list[str]:
    with tarfile.open(archive) as file:
        return file.getnames()


def test_gpu_waits_for_a_teacher_and_names_what_fails(tmp_path: Path, few_digits: Path) -> None:
    taught = gpu_arguments(few_digits, "mobile-0", "teacher")
    outcome = benchmark("gpu", *taught, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    runs = gpu_log(tmp_path / "home")
    assert runs == gpu_log(tmp_path / "gpu")
    assert {name: run["state"] for name, run in runs.items()} == {
        "mobile-0": "done", "teacher": "done",
    }  # fmt: skip
    assert "teacher=gpu/teacher-bundle" in runs["mobile-0"]["command"]
    for name, run in runs.items():
        result = json.loads((tmp_path / "gpu" / name / "result.json").read_text())
        assert run["test_accuracy"] == result["test_accuracy"]
        names = packed(tmp_path / "home" / f"{name}.tar.gz")
        assert {f"{name}/weights.safetensors", f"logs/{name}.txt"} <= {*names}
        assert not any(name.endswith(".pt") for name in names)
    assert benchmark("gpu", *taught, cwd=tmp_path).code == 0
    assert gpu_log(tmp_path / "gpu") == runs  # nothing was left to do

    (tmp_path / "gpu" / "record-1").mkdir()  # which holds no run to go on with
    broken = gpu_arguments(few_digits, "record-1", "budget-200000")
    outcome = benchmark("gpu", *broken, "--at-once", "1", cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.err.startswith("record-1 failed with exit code 2: halfmeg: gpu/record-1 ")
    assert len(outcome.err.splitlines()) == 1
    states = {name: run["state"] for name, run in gpu_log(tmp_path / "gpu").items()}
    assert (states["record-1"], states["budget-200000"]) == ("failed", "done")


def test_gpu_stops_and_goes_on(tmp_path: Path, few_digits: Path) -> None:
    name = "budget-200000"
    arguments = gpu_arguments(few_digits, name, epochs=20)
    assert benchmark("gpu", *arguments, "--minutes", "0.01", cwd=tmp_path).code == 0
    assert gpu_log(tmp_path / "gpu")[name]["state"] == "stopped"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        while process.poll() is None and not checkpoints_in(tmp_path / "gpu" / name):
            time.sleep(0.05)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    stopped = gpu_log(tmp_path / "home")[name]
    assert (stopped["state"], stopped["test_accuracy"]) == ("stopped", None)
    names = packed(tmp_path / "home" / f"{name}.tar.gz")
    assert sum(name.endswith(".pt") for name in names) == 1

    shutil.rmtree(tmp_path / "gpu")  # as where the machine is lost
    shutil.copytree(tmp_path / "home", tmp_path / "gpu")
    with tarfile.open(tmp_path / "home" / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path / "gpu", filter="data")
    other = benchmark("gpu", *gpu_arguments(few_digits, name), cwd=tmp_path)
    assert other.code == 2
    assert "gpu has budget-200000 with other settings" in other.err
    assert benchmark("gpu", *arguments, cwd=tmp_path).code == 0
    done = gpu_log(tmp_path / "gpu")[name]
    assert done["state"] == "done"
    assert done["command"].startswith("python -m halfmeg resume ")
    assert done["seconds"] > stopped["seconds"]


def test_gpu_takes_its_data_in_parts(tmp_path: Path, cifar_jpeg: Path) -> None:
    outcome = benchmark("gpu", str(cifar_jpeg), "--split", "parts", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 2
    assert max(part.stat().st_size for part in parts) < 30 * 2**20
    whole, again = load_dataset(str(cifar_jpeg)), load_dataset(str(tmp_path / "parts"))
    assert whole.fingerprint == again.fingerprint
    assert benchmark("gpu", str(cifar_jpeg), "--split", "parts", cwd=tmp_path).code == 2


def test_gpu_splits_several_files_of_a_part_and_none(tmp_path: Path) -> None:
    """Files of one part become one row of parts; a folder without any is refused."""
    source = tmp_path / "source"
    source.mkdir()
    for index in range(2):
        table = pa.table({"label": [2 * index, 2 * index + 1]})
        pq.write_table(table, source / f"train-{index:05d}-of-00002.parquet")
    assert benchmark("gpu", "source", "--split", "parts", cwd=tmp_path).code == 0
    (part,) = (tmp_path / "parts").iterdir()
    assert pq.read_table(part)["label"].to_pylist() == [0, 1, 2, 3]
    (tmp_path / "empty").mkdir()
    outcome = benchmark("gpu", "empty", "--split", "more", cwd=tmp_path)
    assert (outcome.code, (tmp_path / "more").exists()) == (2, False)
    assert "empty holds no Parquet files" in outcome.err.splitlines()[-1]


def test_gpu_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    on_cpu = ("digits", "--device", "cpu", "--out")
    for arguments, told in (
        (("digits",), "--out is missing"),
        ((*on_cpu, "gpu", "--runs", "rekord"), "rekord"),
        ((*on_cpu, "gpu", "--runs", "gated"), "add teacher to --runs"),
        ((*on_cpu, "gpu", "--at-once", "0"), "--at-once 0 is out of range"),
        ((*on_cpu, "gpu", "--minutes", "nan"), "--minutes nan is out of range"),
        ((*on_cpu, "other"), "other holds something else"),
        (("nowhere", *on_cpu[1:], "gpu"), "nowhere"),
    ):
        outcome = benchmark("gpu", *arguments, cwd=tmp_path)
        assert outcome.code == 2
        assert told in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
        assert not (tmp_path / "gpu").exists()


def test_budgets(tmp_path: Path) -> None:
    out = tmp_path / "accuracy.png"
    names = ("record-500000", "record-100000", "common-he/resnet20-seed-0")
    runs = [f"results/{name}" for name in names]
    outcome = benchmark("budgets", *runs, "--out", str(out), cwd=ROOT)
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert [" ".join(line) for line in lines] == [
        "record, 100 epochs",
        "99,184 parameters 90.86% 90.3% to 91.4% n = 1",  # Wilson's, of 9,086 in 10,000
        "468,808 parameters 94.29% 93.8% to 94.7% n = 1",
        "common, 15 epochs",
        "269,722 parameters 89.98% 89.4% to 90.6% n = 1",
        str(out),
    ]
    assert out.read_bytes().startswith(b"\x89PNG")
    twice = benchmark("budgets", runs[0], runs[0], "--out", str(out), cwd=ROOT)
    assert twice.code == 2
    assert "results/record-500000 repeats seed 0 at 468,808 parameters" in twice.err


def test_budgets_of_several_seeds(tmp_path: Path) -> None:
    runs = [f"results/common/cnn-seed-{seed}" for seed in range(5)]
    outcome = benchmark("budgets", *runs, "--out", str(tmp_path / "a.png"), cwd=ROOT)
    assert outcome.code == 0, outcome.err
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert lines[:2] == [
        "common, 15 epochs",
        "81,578 parameters 81.87% 81.2% to 82.5% n = 5",  # over seeds and images
    ]


def test_growth(tmp_path: Path) -> None:
    outcome = benchmark(
        "growth", "--images", "200", "1000", "--rounds", "1", "--batch-size", "100", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    few, many = outcome.json["rows"]
    assert (few["images"], many["images"]) == (200, 1000)
    assert many["seconds"] > few["seconds"]
    assert abs(many["peak_memory_bytes"] - few["peak_memory_bytes"]) < 60e6


def test_operators(tmp_path: Path) -> None:
    arguments = ["--models", "cnn", "sprint", "--batch-size", "100", "--json"]
    outcome = benchmark("operators", *arguments, "--steps", "2", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    cnn, sprint = outcome.json["rows"]
    counted = {row["name"]: row for row in cnn["operators"]}
    assert counted["convolution"]["calls"] == counted["convolution_backward"]["calls"] == 4
    assert 0.5 < sum(row["share"] for row in cnn["operators"]) < 1
    assert "convolution" in {row["name"] for row in sprint["operators"]}
    refused = benchmark("operators", *arguments, "--steps", "999", cwd=tmp_path)
    assert refused.code == 2
    assert "--steps 999" in refused.err


def test_data_that_is_not_there(tmp_path: Path) -> None:
    outcome = benchmark("operators", "--data", "nowhere", cwd=tmp_path)
    assert outcome.code == 2
    assert "nowhere" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_labels_names_what_is_wrong(tmp_path: Path) -> None:
    for arguments, told in ((("--model", "foo"), "'foo'"), (("--epochs", "0"), "epochs=0")):
        outcome = benchmark("labels", *arguments, cwd=tmp_path)
        assert outcome.code == 2
        assert told in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err


def test_four_sets_writes_each_once(tmp_path: Path) -> None:
    arguments = ("four_sets", "digits", "--train", "100", "--test", "50")
    outcome = benchmark(*arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out.split()[0] == "sets/digits.npz"
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["digits.npz"]
    written = (tmp_path / "sets" / "digits.npz").read_bytes()
    drawn = load_dataset(str(tmp_path / "sets" / "digits.npz"))
    assert (len(drawn.train), len(drawn.test)) == (100, 50)
    for wrong, told in (
        (arguments[:2], "sets/digits.npz exists already and is not overwritten; name another"),
        (("four_sets", "nosuch"), "data 'nosuch' does not exist"),
        (("four_sets", "digits", "digits", "--out", "other"), "two of the data sets have the same"),
    ):
        outcome = benchmark(*wrong, cwd=tmp_path)
        assert outcome.code == 2
        assert told in outcome.err.splitlines()[-1]
        assert "Traceback" not in outcome.err
    assert (tmp_path / "sets" / "digits.npz").read_bytes() == written
    assert not (tmp_path / "other").exists()


def test_int8(tmp_path: Path, cnn_in_c: Path) -> None:
    outcome = benchmark("int8", str(cnn_in_c), "--data", "digits", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    figures = outcome.json
    assert figures["n"] == 360
    assert figures["logits"] == 3_600
    assert figures["different_in_c"] == 0
    assert abs(figures["float_accuracy"] - figures["int8_accuracy"]) < 0.1


@pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))
def test_chip(tmp_path: Path) -> None:
    outcome = benchmark("chip", "cnn", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    (row,) = outcome.json
    assert row["ram_bytes"] == 36_224
    assert 1 < row["cortex-m7"]["instructions"] / row["macs"] < 2.3


@pytest.mark.campaign  # more than seven minutes
def test_search(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("keras_tuner", reason="KerasTuner is in the extra kerastuner")
    arguments = ("search", "eurosat", "--data", str(pictures), "--hours", "0.01", "--out", "out")
    outcome = benchmark(*arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert set(found) == {"halfmeg", "random", "kerastuner"}
    for result in found.values():
        assert 0 <= result["test_accuracy"] <= 1
        assert result["curve"]
    assert (tmp_path / "out" / "search.png").exists()
    assert benchmark(*arguments, cwd=tmp_path).out == ""  # nothing was left to do


def test_auto_goes_on_where_it_was(tmp_path: Path, pictures: Path) -> None:
    arguments = ["--sources", str(pictures), "--minutes", "0.02", "--out", "auto.json"]
    done = benchmark("auto", *arguments, "--seeds", "1", cwd=tmp_path)
    assert done.code == 0, done.err
    first = json.loads((tmp_path / "auto.json").read_text())
    assert [run["name"] for run in first["runs"]] == ["auto", "common"]
    assert benchmark("auto", *arguments, "--seeds", "1", cwd=tmp_path).out == done.out
    assert json.loads((tmp_path / "auto.json").read_text()) == first
    arguments[3] = "0.03"
    assert "name another --out" in benchmark("auto", *arguments, cwd=tmp_path).err
