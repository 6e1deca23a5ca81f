"""What the fault campaign found, and a short sample of it; `slow` runs thousands of cases."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import full_after

sys.path.insert(0, str(Path(__file__).parent))

from inputs import KINDS, make_study, small_config, small_data
from kills import KILLED
from powercut import Disk, record
from tally import InputTally, Job, Results

import halfmeg
from halfmeg.artifacts.readings import UnloggedReadingWarning
from halfmeg.artifacts.run import Run
from halfmeg.data.cache import clear_cache, list_cache, save_splits
from halfmeg.files import (
    is_part,
    new_folder,
    read_json,
    read_limited,
    remove_dead_parts,
    scratch_folder,
    write_atomically,
)
from halfmeg.studies.pool import Pool
from halfmeg.studies.sets import check_ranking_folder
from halfmeg.studies.study import run_study
from halfmeg.training.fit import fit, resume

CAMPAIGN = Path(__file__).parent / "campaign.py"
COSTLY = ("bundles", "onnx")


def campaign(*arguments: str, timeout: float = 600) -> str:
    """Run the campaign; it exits with 1 where something did not hold."""
    command = [sys.executable, "-W", "ignore", str(CAMPAIGN), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two short runs."""
    folder = tmp_path_factory.mktemp("trained")
    make_study(folder)
    return folder / "study"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of one of them."""
    return Run.open(shutil.copytree(trained / "cnn-seed-0", tmp_path / "run"))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind == "onnx" else kind
        for kind in KINDS
        if kind != "hub"
    ],
)
def test_a_sample_of_mutated_inputs(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    case = KINDS[kind](tmp_path)
    count = 5 if kind in COSTLY else 25
    found = [case(random.Random(f"{kind} {number}")) for number in range(count)]
    assert set(found) <= {"refused", "right"}


@pytest.mark.slow
def test_a_sample_of_a_hostile_hub() -> None:
    """In a process of its own: the hub's address is read when its library is imported."""
    campaign("--only", "hub", "--inputs", "5")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_mutated_inputs(kind: str) -> None:
    count = {"onnx": 60, "hub": 100, "bundles": 300, "checkpoints": 500}.get(kind, 1000)
    campaign("--only", kind, "--inputs", str(count))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
def test_a_sample_of_kills() -> None:
    campaign("--kills", "2", "--only", "training")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are forked")
@pytest.mark.parametrize("kind", KILLED)
def test_many_kills(kind: str) -> None:
    campaign("--kills", "3" if kind == "exports" else "10", "--only", kind)


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace")


WRITE_IN_THREADS = """
import pathlib, sys, threading

def write(name):
    together.wait()
    with open(name, "wb", buffering=0) as file:
        for number in range(500):
            file.write(b"%d," % number)
    pathlib.Path(name).rename(name + " done")

together = threading.Barrier(4)
threads = [threading.Thread(target=write, args=(f"{FOLDER}/{n}",)) for n in "abcd"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@needs_strace
def test_a_log_of_threads_is_read_whole(tmp_path: Path) -> None:
    folder, log = tmp_path / "disk", tmp_path / "log"
    folder.mkdir()
    disk = Disk.of(folder)
    for operation in record(f"FOLDER = {str(folder)!r}{WRITE_IN_THREADS}", folder, log):
        disk.apply(operation)
    assert "<unfinished ...>" in log.read_text()  # the threads came between each other
    assert len(disk.names) == 4
    assert disk.content() == Disk.of(folder).content()


@pytest.mark.slow
@needs_strace
@pytest.mark.parametrize(
    ("kind", "every"), [("training", 8), ("studies", 12), ("cache", 2), ("pulls", 2)]
)
def test_some_power_cuts(kind: str, every: int) -> None:
    campaign("--power-cuts", "--only", kind, "--every", str(every))


@pytest.mark.campaign
@needs_strace
@pytest.mark.parametrize("kind", KILLED)
def test_power_cuts(kind: str) -> None:
    campaign("--power-cuts", "--only", kind, "--every", "3", timeout=3600)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_some_killed_workers() -> None:
    campaign("--workers", "3")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in /proc")
def test_half_an_hour_of_requests() -> None:
    campaign("--requests", "400")


def test_a_campaign_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Of kinds that take turns, each case is tried once."""
    tried: list[tuple[str, int]] = []
    stops = [True]

    def run(kind: str, first: int, count: int) -> InputTally:
        if len(tried) == 6 and stops.pop():
            raise KeyboardInterrupt
        numbers = range(first, first + min(count, 2))
        tried.extend((kind, number) for number in numbers)
        silent = [f"{kind} {number}" for number in numbers if number == 3]
        return InputTally(len(numbers), silent, right=len(numbers), peak_bytes=first)

    counts = {"one": 5, "other": 4}
    jobs = [Job("inputs", kind, count, run) for kind, count in counts.items()]
    path = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        Results(path).go_on(jobs, 0)
    stops.append(False)
    Results(path).go_on(jobs, 0)
    assert sorted(tried) == sorted((k, i) for k in counts for i in range(counts[k]))
    results = Results(path)
    assert [results.of("inputs", kind).cases for kind in counts] == [5, 4]
    assert results.of("inputs", "one") == InputTally(5, ["one 3"], right=5, peak_bytes=4)
    assert results.faults == 2
    assert len(results.commits) == 1


# --- what is written ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_row_of_metrics_comes_back(run: Run) -> None:
    rows = run.read_metrics()
    (run.folder / "result.json").unlink()
    run.write_metrics(rows[:-1])
    resume(run.folder, small_data())
    assert run.read_metrics() == rows


def test_a_run_begins_where_one_of_the_same_process_id_died(tmp_path: Path) -> None:
    dead = [tmp_path / f".run.{os.getpid()}.partial", tmp_path / ".run.0123abcd.partial"]
    for path in dead:
        (path / "checkpoints").mkdir(parents=True)
    Run.create(tmp_path / "run", small_config(), small_data())
    assert not dead[1].exists()  # of this version, so surely nobody's


@pytest.mark.parametrize("write", [write_atomically, lambda path, _: new_folder(path)])
def test_every_write_clears_its_folder_of_dead_parts(write, tmp_path: Path) -> None:
    """Whatever the names: the same command may write fewer of them next time."""
    with new_folder(tmp_path / "living") as living:
        (tmp_path / ".robustness.tex.0123abcd.partial").touch()
        (tmp_path / ".cnn-seed-0.4567cdef.partial" / "checkpoints").mkdir(parents=True)
        (tmp_path / ".film.partial").touch()  # not of ours
        with write(tmp_path / "other", b"") or contextlib.nullcontext():
            assert living.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"living", "other", ".film.partial"}


def test_what_is_taken_for_dead_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch
) -> None:
    """Two workers that begin a run at the same moment tidy up after each other."""
    removed: list[Path] = []
    open_file = os.open

    def late_open(path, *arguments, **options):
        if is_part(Path(path).name) and not removed:
            removed.append(path)
            remove_dead_parts(tmp_path)  # as another process does at this moment
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", late_open)
    with new_folder(tmp_path / "run") as part:
        (part / "file").touch()
    assert (tmp_path / "run" / "file").exists()
    assert removed


def test_only_what_is_dead_is_removed(tmp_path: Path) -> None:
    with new_folder(tmp_path / "name") as living:
        dead = tmp_path / ".name.0123abcd.partial"
        dead.mkdir()
        with pytest.raises(FileExistsError), new_folder(tmp_path / "name"):
            assert living.exists()
            assert not dead.exists()
            (tmp_path / "name").mkdir()  # the race is lost to a third one
            (tmp_path / "name" / "file").touch()
        shutil.rmtree(tmp_path / "name")
    assert [path.name for path in tmp_path.iterdir()] == ["name"]


def test_the_loser_of_a_race_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    from halfmeg.artifacts import run as module

    def slowly() -> dict[str, str]:
        (tmp_path / "run" / "won").mkdir(parents=True)
        return {}

    monkeypatch.setattr(module, "environment", slowly)
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        Run.create(tmp_path / "run", small_config(), small_data())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_scratch_folders_of_the_dead_go(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, others = tmp_path / "halfmeg-0123abcd", tmp_path / "halfmeg-notes"
    dead.mkdir()
    others.mkdir()
    with scratch_folder() as living:
        assert not dead.exists()
        with scratch_folder() as second:
            assert living.exists()
            assert second.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["halfmeg-notes"]
    with pytest.raises(OSError, match="No space left") as full, scratch_folder():
        raise OSError(28, "No space left on device")
    assert str(tmp_path) in full.value.filename


def test_a_full_disk_names_a_file_wherever_a_folder_is_written(tmp_path: Path, monkeypatch) -> None:
    """Data for a study's workers, in the temporary folder, and the cache."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    data = small_data()
    with full_after(4096), pytest.raises(OSError, match="File too large") as told, Pool(data, 1, 1):
        pass
    assert str(told.value.filename).startswith(str(scratch))
    assert not list(scratch.iterdir())
    with full_after(4096), pytest.raises(OSError, match="File too large") as told:
        save_splits(data, tmp_path / "key")
    assert told.value.filename == str(tmp_path / "key")


def test_every_temporary_folder_is_one_that_is_cleared_when_its_process_died() -> None:
    package = Path(halfmeg.__file__).parent
    for path in package.rglob("*.py"):
        assert not re.search("TemporaryDirectory|mkdtemp|mkstemp|NamedTemp", path.read_text()), path


def test_a_killed_study_leaves_no_data_behind(tmp_path: Path) -> None:
    """The next study in the same temporary folder cleans up."""
    code = (
        "import os, signal, time, tempfile; from halfmeg.files import scratch_folder\n"
        "with scratch_folder() as folder: (folder / 'data').touch(); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    died = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert died.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    code = "from halfmeg.files import scratch_folder\nwith scratch_folder(): pass"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_another_process_removed(tmp_path: Path, monkeypatch) -> None:
    run = Run.create(tmp_path / "run", small_config(keep_checkpoints=1), small_data())
    run.save_checkpoint({"epoch": 1}, 1, 0)
    listed = run.checkpoints()
    listed[0].unlink()
    monkeypatch.setattr(Run, "checkpoints", lambda self: [*listed, listed[0]])
    run.save_checkpoint({"epoch": 2}, 2, 0)


def test_a_reading_after_a_torn_line(run: Run) -> None:
    path = run.folder / "test_readings.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    before = run.test_readings()
    assert before[-1].startswith("not known")
    run.log_test_reading("next")
    assert run.test_readings() == [*before, "next"]


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch) -> None:
    """Durations come from a clock that does not; the log of readings keeps its order of writing."""
    clock = iter(range(2 * 10**9, 0, -1_000_000))  # 12 days back at each look
    written = time.strftime

    def strftime(form: str, *moment: Any) -> str:
        return written(form, *(moment or [time.localtime(next(clock))]))

    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "strftime", strftime)
    run = fit(small_config(), small_data(), tmp_path / "run")
    run.log_test_reading("second")
    run.log_test_reading("third")
    monkeypatch.undo()
    result = run.result() or {}
    assert 0 < result["seconds"] < 600
    assert all(0 < (row["seconds"] or 0) < 600 for row in run.read_metrics())
    lines = (run.folder / "test_readings.jsonl").read_text().splitlines()
    stamps = [json.loads(line)["time"] for line in lines]
    assert stamps == sorted(stamps, reverse=True)
    assert run.test_readings()[1:] == ["second", "third"]
    assert len(stamps) == 3


def test_files_are_flushed_before_and_folders_after_the_rename(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    write_atomically(tmp_path / "name", b"content")
    assert done == ["file", "rename", "folder"]


# --- what is read ------------------------------------------------------------------------------


def test_two_flipped_bits_in_weights_are_found(run: Run) -> None:
    path = run.folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    content[-7] ^= 64
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.safetensors is damaged or was altered"):
        run.evaluate(small_data())


def test_damaged_logits_are_one_line_in_evaluate(run: Run, cli) -> None:
    path = run.folder / "logits.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    readings = run.test_readings()
    told = cli("evaluate", str(run.folder), "--data", "digits")
    assert told.code == 2
    assert told.is_one_line("logits.npz is damaged or was altered")
    assert run.test_readings() == readings
    path.unlink()  # they are not needed
    assert run.evaluate(small_data()).n == 30


def test_a_run_from_before_checksums_opens_and_its_accuracy_is_compared(run: Run) -> None:
    path = run.folder / "result.json"
    result = json.loads(path.read_text())
    del result["sha256"]
    path.write_text(json.dumps(result))
    assert run.evaluate(small_data()).accuracy == result["test_accuracy"]
    assert len(run.load_logits()["test_logits"]) == 30
    other = float(result["test_accuracy"] < 0.5)
    path.write_text(json.dumps(result | {"test_accuracy": other}))
    with pytest.raises(ValueError, match=r"where result.json says"):
        run.evaluate(small_data())


def test_a_read_only_run_is_evaluated_and_the_reading_told(run: Run, monkeypatch) -> None:
    def read_only(self: Run, purpose: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Run, "log_test_reading", read_only)
    with pytest.warns(UnloggedReadingWarning, match="this reading of the test set is not noted"):
        assert run.evaluate(small_data()).n == 30


def test_pipes_devices_and_bombs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="is no regular file"):
            read_limited(path, 100)
    (tmp_path / "large").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        read_limited(tmp_path / "large", 100)
    for content in (b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"1e999"):
        (tmp_path / "deep.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"deep.json is damaged"):
            read_json(tmp_path / "deep.json", dict)


def test_the_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch, cli) -> None:
    monkeypatch.setenv("HALFMEG_CACHE", str(tmp_path / "cache"))
    save_splits(small_data(), tmp_path / "cache" / "key")
    old = tmp_path / "cache" / ".partial-abc"
    old.mkdir()
    (old / "train_images.npy").write_bytes(bytes(10))
    mine = tmp_path / "cache" / "mine"
    mine.mkdir()
    (mine / "photo.jpg").touch()
    (tmp_path / "cache" / ".mine").mkdir()
    readings = tmp_path / "cache" / "measured"  # the name of a folder of the program's, too
    readings.mkdir()
    (readings / "monday.csv").touch()
    assert {entry.name for entry in list_cache()} == {"digits", None}
    shown = cli("data", "cache", "--json")
    assert [item["images"] for item in shown.json["entries"] if item["name"]] == [90]
    assert cli("data", "cache").out.count("left by a stopped process") == 1
    with new_folder(tmp_path / "cache" / "being-written") as living:
        (living / "train_images.npy").touch()
        pulled = tmp_path / "cache" / ".hub-0123-4567.89abcdef.partial"
        (pulled / "data").mkdir(parents=True)
        (pulled / "data" / "train-00000-of-00001.parquet").write_bytes(bytes(1000))
        assert [entry.num_bytes for entry in list_cache() if entry.path == pulled] == [1000]
        assert len(clear_cache()) == 3
        assert living.exists()
    left = {"mine", ".mine", "measured", "being-written"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == left


# --- what is a user's --------------------------------------------------------------------------


def test_a_study_that_would_leave_runs_out_is_refused(trained: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trained, tmp_path / "study")
    before = (out / "study.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds runs that this study has not \(cnn seed 0"):
        run_study([small_config(model="resnet20", epochs=1)], small_data(), out)
    assert (out / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    "name", ["comparison.md", "comparison.json", "costs.png", "costs.json", "tables/mine.csv"]
)
def test_a_report_overwrites_nothing_of_a_users(
    trained: Path, tmp_path: Path, cli, name: str
) -> None:
    mine = tmp_path / "notes" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"mine": 1}')
    refused = cli("report", str(trained), "--out", "notes")
    assert refused.code == 2
    assert f"{name} was not written by halfmeg" in refused.err
    assert mine.read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", ["ranking.json", "ranking.html", "ranks.png", "tables/mine.csv"])
def test_a_page_above_several_studies_overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"networks": 1}')
    with pytest.raises(ValueError, match=f"{name} was not written by halfmeg"):
        check_ranking_folder(tmp_path)
    (tmp_path / "ranking.json").write_text('{"networks": [], "studies": {}}')
    check_ranking_folder(tmp_path)  # this one is ours


WHILE_IT_LOADS = """
import sys
from halfmeg.__main__ import start

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "halfmeg.cli":  # the first module after Ctrl-C is listened to
            print("up", flush=True)

sys.meta_path.insert(0, Finder())
sys.argv = ["halfmeg", "models"]
start()
"""


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 0.8])
def test_ctrl_c_while_modules_load_is_one_line(seconds: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WHILE_IT_LOADS],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    threading.Event().wait(seconds)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0 where it was faster
    assert "Traceback" not in told


DEAF = """
import os
import signal
import sys
from halfmeg.__main__ import start

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "halfmeg.networks":  # a library that a command loads when it runs
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException as error:  # a native one would abort instead
                print(repr(error), flush=True)

sys.meta_path.insert(0, Finder())
sys.argv = ["halfmeg", "models"]
start()
"""


def test_ctrl_c_is_not_raised_into_a_module_that_a_command_loads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DEAF], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "halfmeg: stopped\n")


def test_resumed_after_many_kills_to_the_same_bits(tmp_path: Path, run: Run) -> None:
    """The two files that a run is remembered by do not depend on what happened on the way."""
    again = fit(dataclasses.replace(run.config), small_data(), tmp_path / "again")
    assert torch.equal(again.load_logits()["test_logits"], run.load_logits()["test_logits"])
    assert (again.result() or {})["sha256"] == (run.result() or {})["sha256"]
