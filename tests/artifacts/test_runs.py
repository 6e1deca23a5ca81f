from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import NETWORKS, small_config
from torch import nn

from halfmeg.artifacts.environment import environment, public_command
from halfmeg.artifacts.metrics import METRICS
from halfmeg.artifacts.run import DataFacts, Run
from halfmeg.artifacts.weights import load_weights, read_checkpoint, read_logits, weights_to_bytes
from halfmeg.data.dataset import MAX_CLASSES, DataSplits
from halfmeg.files import new_folder, refuse_unwritable, write_atomically
from halfmeg.networks.table import build_model
from halfmeg.training.fit import fit


@pytest.fixture
def run(tmp_path: Path, digits) -> Run:
    return Run.create(tmp_path / "run", small_config(), digits)


def test_a_new_folder_opens_as_it_was_made(run: Run, digits) -> None:
    opened = Run.open(run.folder)
    assert opened.config == run.config
    assert opened.data == DataFacts.of(digits)
    assert opened.result() is None
    assert opened.read_metrics() == []
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["cores"] == os.cpu_count()
    assert environment["threads"] == torch.get_num_threads()
    assert environment["commit"] is None or len(environment["commit"].rstrip("+")) == 12


def test_a_folder_of_more_classes_than_data_has_is_damaged(run: Run) -> None:
    path = run.folder / "config.json"
    stored = json.loads(path.read_text())
    for count, told in ((MAX_CLASSES, ""), (MAX_CLASSES + 1, "length <= 10000")):
        stored["data"]["classes"] = [str(number) for number in range(count)]
        path.write_text(json.dumps(stored))
        with pytest.raises(ValueError, match=told) if told else nullcontext():
            assert len(Run.open(run.folder).data.classes) == MAX_CLASSES


def test_the_environment_has_the_threads_that_the_config_asks_for(tmp_path, digits) -> None:
    run = Run.create(tmp_path / "run", small_config(threads=7), digits)
    assert json.loads((run.folder / "environment.json").read_text())["threads"] == 7


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/venv/bin/halfmeg", "halfmeg train common 'lr=1 2'"),
        ("/checkout/halfmeg/__main__.py", "python -m halfmeg train common 'lr=1 2'"),
    ],
)
def test_the_environment_names_a_command_that_repeats(monkeypatch, program, command) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "common", "lr=1 2"])
    assert environment()["command"] == command


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/venv/bin/halfmeg",
         "halfmeg export run --data=photos --out 'a b' --data-dir / ../x y=1 "
         "'model=own.py:Net(side=4)'"),
        ("/checkout/halfmeg/__main__.py",
         "python -m halfmeg export run --data=photos --out 'a b' --data-dir / ../x y=1 "
         "'model=own.py:Net(side=4)'"),
        ("/home/me/upload.py", "from Python"),
        ("/home/me/tool/__main__.py", "from Python"),
        ("-c", "from Python"),
        ("", "from Python"),
    ],
)  # fmt: skip
def test_the_command_that_others_read_names_no_folders_and_no_other_program(
    monkeypatch: pytest.MonkeyPatch, program: str, command: str
) -> None:
    words = ["export", "/home/me/run", "--data=/home/me/photos/", "--out", "/tmp/a b"]
    words += ["--data-dir", "/", "../x", "y=1", "model=/home/me/own.py:Net(side=4)"]
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert public_command() == command


def test_an_existing_folder_is_never_overwritten(run: Run, digits) -> None:
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"exists already .* `halfmeg resume"):
        Run.create(run.folder, small_config(epochs=9), digits)
    assert (run.folder / "config.json").read_bytes() == before


def test_two_trainings_into_one_folder_leave_no_orphan(tmp_path: Path, digits) -> None:
    slower = new_folder(tmp_path / "run")
    (slower.__enter__() / "config.json").write_text("{}")
    Run.create(tmp_path / "run", small_config(), digits)
    with pytest.raises(FileExistsError, match="exists already and is not overwritten"):
        slower.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert Run.open(tmp_path / "run").config == small_config()


def test_a_folder_that_cannot_be_made_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / ("long" * 60)  # what is being written has a longer name
    with pytest.raises(OSError) as told, new_folder(target):  # noqa: PT011
        pass
    assert told.value.filename == str(target)
    target = tmp_path / "run"
    with pytest.raises(FileNotFoundError) as told, new_folder(target) as part:
        (part / "nothing" / "here").write_text("")
    assert told.value.filename == str(target / "nothing" / "here")
    assert not list(tmp_path.iterdir())


def test_where_no_folder_can_be_made_is_told_before_any_work(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"new/folder cannot be made: \S+/file is no folder"):
        refuse_unwritable(tmp_path / "file" / "new" / "folder")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "kept").mkdir(0o500)
        with pytest.raises(ValueError, match=r"new cannot be made: \S+/kept cannot be written"):
            refuse_unwritable(tmp_path / "kept" / "new")


def test_folders_that_are_no_runs(tmp_path: Path, run: Run) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        Run.open(tmp_path / "nowhere")
    for content in ("{", "[]", '{"config": {}, "data": {}}'):
        (run.folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config.json is damaged"):
            Run.open(run.folder)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_without_nan(run: Run) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.save_result({"loss": float("nan")})
    assert not (run.folder / "result.json").exists()


def test_the_newest_checkpoints_are_kept(run: Run) -> None:
    for epoch in range(1, 5):
        run.save_checkpoint({"epoch": epoch}, epoch, 0)
    assert [read_checkpoint(path) for path in run.checkpoints()] == [{"epoch": 3}, {"epoch": 4}]


def test_a_checkpoint_too_large_to_be_read_is_not_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = run.save_checkpoint({"epoch": 1}, 1, 0).stat().st_size
    monkeypatch.setattr("halfmeg.artifacts.weights.MAX_CHECKPOINT_BYTES", size)
    kept = run.save_checkpoint({"epoch": 1}, 2, 0)
    assert read_checkpoint(kept) == {"epoch": 1}
    with pytest.raises(ValueError, match=rf"would have [\d,]+ bytes; allowed: {size:,}; take a"):
        run.save_checkpoint({"epoch": 1, "weights": torch.zeros(1000)}, 3, 0)
    assert run.checkpoints()[-1] == kept


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(run: Run, damage: str) -> None:
    for epoch in (1, 2):
        run.save_checkpoint({"epoch": epoch, "weights": torch.arange(5000)}, epoch, 0)
    newest = run.checkpoints()[-1]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1  # one bit, inside the weights
    broken = {"cut": content[:-300], "flipped": content, "empty": b"", "text": b"hello"}
    newest.write_bytes(broken[damage])
    state, damaged = run.load_checkpoint()
    assert state is not None
    assert state["epoch"] == 1
    assert damaged == [newest]


def test_a_checkpoint_with_code_is_not_run(run: Run, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/attacked",)

    path = run.save_checkpoint({"epoch": 1}, 1, 0)
    torch.save({"epoch": Attack()}, path)
    assert read_checkpoint(path) is None
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = build_model(name)
    model(torch.randn(8, 3, 32, 32))  # moves the running statistics
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_to_bytes(model))
    other = build_model(name)
    load_weights(other, path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


class Overlapping(nn.Module):
    """Two buffers on one memory, and one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        grid = torch.arange(6.0)
        self.register_buffer("grid", grid)
        self.register_buffer("first", grid[:2])
        self.register_buffer("turned", grid.view(2, 3).T)
        self.head = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.head.weight


def test_buffers_on_one_memory_are_stored_each_and_a_shared_parameter_once(tmp_path: Path) -> None:
    model = Overlapping()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_to_bytes(model))
    stored = safetensors.torch.load(path.read_bytes())
    assert set(stored) == {"grid", "first", "turned", "head.weight", "head.bias", "again.bias"}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stored.items())
    load_weights(Overlapping(), path)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(ValueError, match="does not exist; has the run finished"):
        load_weights(build_model("cnn"), path)
    path.write_bytes(weights_to_bytes(build_model("cnn", 7)))
    with pytest.raises(ValueError, match=r"does not fit .* is \(7, 1600\), expected \(10, 1600\)"):
        load_weights(build_model("cnn", 10), path)
    with pytest.raises(ValueError, match="is nothing, expected"):
        load_weights(build_model("resnet20"), path)
    content = weights_to_bytes(build_model("cnn"))
    for broken in (b"", content[:1000], b"\xff" * 200):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged"):
            load_weights(build_model("cnn"), path)


def test_metrics_keep_their_precision(run: Run) -> None:
    row = {"epoch": 1, "lr": 1 / 3, "train_loss": 0.1 + 0.2, "val_loss": None}
    run.write_metrics([row])
    (read,) = run.read_metrics()
    assert (read["lr"], read["train_loss"], read["val_loss"]) == (1 / 3, 0.1 + 0.2, None)


@pytest.mark.parametrize(
    "content", ["epoch,lr\n1,0.1\n", "\xff\n1\n", "{header}\n1,many,0.5\n", "{header}\n,0.1\n"]
)
def test_damaged_metrics_are_named(run: Run, content: str) -> None:
    path = run.folder / "metrics.csv"
    path.write_text(content.replace("{header}", ",".join(METRICS)), encoding="latin-1")
    with pytest.raises(ValueError, match=r"metrics.csv is damaged"):
        run.read_metrics()


def test_metrics_that_end_before_a_finished_run_did_are_told(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    run = fit(small_config(epochs=2), few_digits, tmp_path / "mine")
    path = run.folder / "metrics.csv"
    header, first, _ = path.read_text().splitlines(keepends=True)
    path.write_text(header + first)
    with pytest.raises(ValueError, match="damaged: it ends after epoch 1 of a finished run"):
        run.read_metrics()
    (run.folder / "result.json").unlink()
    assert len(run.read_metrics()) == 1


def test_logits_are_plain_arrays(run: Run) -> None:
    run.save_logits(test_logits=torch.eye(3), test_labels=torch.tensor([0, 1, 2]))
    with np.load(run.folder / "logits.npz", allow_pickle=False) as stored:
        assert np.array_equal(stored["test_logits"], np.eye(3))


def test_logits_that_unpack_to_more_than_the_images_take_are_not_read(tmp_path: Path) -> None:
    path, zeros = tmp_path / "logits.npz", np.zeros((100_000, 10), np.float32)
    np.savez_compressed(path, test_logits=zeros, test_labels=np.zeros(100_000, np.int64))
    assert path.stat().st_size < 2**16
    assert len(read_logits(path, None, 10, 100_000)["test_labels"]) == 100_000
    with pytest.raises(ValueError, match="unpacks to more than 70,336 bytes"):
        read_logits(path, None, 10, 100)


def test_each_reading_of_the_test_set_is_logged(run: Run) -> None:
    run.log_test_reading("first")
    run.log_test_reading("second")
    lines = (run.folder / "test_readings.jsonl").read_text().splitlines()
    assert [json.loads(line)["purpose"] for line in lines] == ["first", "second"]
