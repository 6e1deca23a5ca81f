"""The real command line as a newcomer would try it; where it matters, in its own process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import Cli, full_after, small_config, with_tests
from PIL import Image

import halfmeg
from halfmeg.artifacts.run import Run
from halfmeg.cli.commands import answer_at_once
from halfmeg.cli.main import main
from halfmeg.cli.progress import training_display
from halfmeg.data.load import load_dataset
from halfmeg.studies.study import run_study
from halfmeg.training.recipes import build_recipe, milestones_note

QUICK = ("model=cnn", "epochs=2", "batch_size=256")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which `halfmeg train` has left the run `run`."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(
            sys, "argv", ["halfmeg", "train", "common", "model=cnn", "epochs=1", "--out", "run"]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
    assert not stopped.value.code
    return folder


def test_help_names_every_command(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for command in ("models", "summary", "data", "recipes", "train", "resume", "evaluate",
                    "compare"):  # fmt: skip
        assert command in outcome.out
    assert not any(line.endswith("...") for line in outcome.out.splitlines()[1:]), "cut off"
    assert "--data-dir" in cli("train", "--help").out


@pytest.mark.parametrize("command", ["train", "compare", "search", "plan"])
def test_the_help_of_data_names_what_it_takes(cli: Cli, command: str) -> None:
    told = " ".join(cli(command, "--help").out.split())
    for kind in ("cifar10", "hf:OWNER/NAME", "a folder of images", "Parquet", ".csv", ".npz"):
        assert kind in told, kind


def test_all_commands_but_three_print_json(cli: Cli) -> None:
    """As docs/tutorial.md says."""
    listed = cli("--help").out.partition("Commands:")[2].split("\n")[1:]
    commands = [line.split()[0] for line in listed if line]
    named = {command: [command] for command in commands} | {
        "data": ["data", "check"], "new": ["new", "network"],
    }  # fmt: skip
    without = {name for name, line in named.items() if "--json" not in cli(*line, "--help").out}
    assert without == {"demo", "push", "new"}


def test_the_help_that_is_answered_at_once_is_typers(
    cli: Cli, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, *of_typer = cli("--help").out.splitlines()
    with pytest.raises(SystemExit) as stopped:
        answer_at_once(["--help"])
    usage, *told = capfd.readouterr().out.splitlines()
    assert stopped.value.code == 0
    assert usage == "Usage: halfmeg [OPTIONS] COMMAND [ARGS]..."
    assert told == of_typer


def test_no_command_shows_what_there_is(cli: Cli) -> None:
    for arguments, command in (((), "compare"), (("data",), "check")):
        outcome = cli(*arguments)
        assert outcome.code == 2
        assert any(line.split()[:1] == [command] for line in outcome.err.splitlines())


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert outcome.code == 0
    assert outcome.out == f"halfmeg {halfmeg.__version__}, torch {torch.__version__}\n"


def test_models(cli: Cli) -> None:
    listed = {row["name"]: row for row in cli("models", "--json").json}
    assert listed["resnet"]["within_budget"] is False
    assert listed["resnet20"]["params"] == 269_722


def test_summary(cli: Cli) -> None:
    text = cli("summary", "resnet-shared").out
    assert "|    └─ResBlock: 2-5                     [-1, 32, 16, 16]          (recursive)" in text
    assert "As published (" in text
    assert "published" not in cli("summary", "resnet8").out
    stored = cli("summary", "resnet", "--json").json
    assert (stored["params"], stored["body_params"]) == (1_020_490, 485_952)
    assert (stored["macs"], stored["published_mult_adds"]) == (18_248_704, 19_170_400)
    assert {"trainable_params", "within_budget", "layers"} <= stored.keys()


def test_recipes(cli: Cli) -> None:
    text = cli("recipes").out
    assert "study-shared" in text
    assert "model=cnn epochs=25 batch_size=128 optimizer=adam lr=0.0005 beta2=0.95" in text
    listed = cli("recipes", "--json").json
    assert all({"name", "description"} <= row.keys() and row["description"] for row in listed)


def test_train_evaluate_and_resume(cli: Cli, trained: Path) -> None:
    result = json.loads((trained / "run" / "result.json").read_text())
    outcome = cli("evaluate", "run", "--json", cwd=trained)
    assert outcome.json["accuracy"] == result["test_accuracy"]
    assert {"loss", "per_class", "confusion", "n", "data"} <= outcome.json.keys()
    interval = outcome.json["accuracy_interval"]
    assert interval["lo"] < interval["mean"] == outcome.json["accuracy"] < interval["hi"]
    text = cli("evaluate", "run", cwd=trained).out
    assert "360 test images of digits" in text
    assert f"{100 * interval['lo']:.1f} to {100 * interval['hi']:.1f}% (95%, over images)" in text
    assert cli("resume", "run", "--json", cwd=trained).json == result
    Image.open(trained / "run" / "curves.png").verify()
    environment = json.loads((trained / "run" / "environment.json").read_text())
    assert "train common model=cnn" in environment["command"]


def test_train_prints_json_alone(cli: Cli, pictures: Path) -> None:
    outcome = cli("train", "common", *QUICK, "--data", str(pictures), "--json")
    assert outcome.code == 0
    assert {"params", "epochs", "val_accuracy", "test_accuracy", "images_per_second", "seconds",
            "weights"} <= outcome.json.keys()  # fmt: skip
    again = cli("train", "common", *QUICK)
    assert again.code == 2
    assert again.is_one_line("exists already and is not overwritten", "--out", "halfmeg resume")


def test_epochs_on_hard_images_are_named_so(cli: Cli, pictures: Path) -> None:
    outcome = cli("train", "common", *QUICK, "hard_share=0.5", "--data", str(pictures))
    first, second = (line for line in outcome.err.splitlines() if "epoch" in line)
    assert "  train " in first
    assert "  hard images " in second


def test_a_precision_without_hardware_is_told_once(
    cli: Cli, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "halfmeg: precision=bf16 takes many times as long on this cpu"
    terms = ("mlp", "logistic", "epochs=1", "--seeds", "2", "--data", str(pictures))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    slow = cli("compare", *terms, "precision=bf16", "--out", "slow")
    assert (slow.code, slow.err.count(told)) == (0, 1), slow.err
    assert told not in cli("compare", *terms, "precision=bf16", "--out", "mute", "--json").err
    assert told not in cli("compare", *terms, "--out", "auto").err
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert told not in cli("compare", *terms, "precision=bf16", "--out", "fast").err


def test_milestones_that_are_never_reached_are_told(cli: Cli, pictures: Path) -> None:
    terms = ("train", "he-2015", "model=logistic", "epochs=2", "--data", str(pictures))
    told = (
        "halfmeg: milestones=100,150: none is reached in epochs=2, so the rate stays at 0.1; "
        "add milestones=1 for drops at the same shares"
    )
    assert told in cli(*terms, "--out", "constant").err.splitlines()
    assert "milestones" not in cli(*terms, "--out", "mute", "--json").err
    assert "milestones" not in cli(*terms, "milestones=1", "--out", "drops").err


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("study-shared", ["epochs=70"], "; add milestones=35,53,65 for drops at the same shares"),
        ("study-shared", ["epochs=75"], "; add milestones=37,57,70 for drops at the same shares"),
        ("study-shared", ["epochs=76"], None),  # one of three is reached
        ("he-2015", ["epochs=1"], ", so the rate stays at 0.1"),
        ("he-2015", ["epochs=9", "milestones=20"], ", so the rate stays at 0.1"),
        ("common", ["schedule=step", "milestones=20"], ", so the rate stays at 0.025"),
        ("common", ["milestones=20"], None),
    ],
)
def test_milestones_for_the_same_shares_are_those_of_the_recipe(
    recipe: str, settings: list[str], told: str | None
) -> None:
    note = milestones_note(build_recipe(recipe).override(settings))
    assert note.endswith(told) if told else note == ""


@pytest.mark.slow
def test_it_is_told_before_other_processes_train(
    cli: Cli, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    apart = cli(
        "compare", "mlp", "logistic", "epochs=1", "precision=bf16", "--seeds", "1", "--workers",
        "2", "--data", str(pictures), "--out", "apart",
    ).err  # fmt: skip
    told = "halfmeg: precision=bf16 takes many times as long on this cpu"
    assert apart.count(told) == 1, apart
    assert apart.index(told) < apart.index("  done  "), apart


def test_tensorboard_files_are_written_when_it_is_installed(trained: Path) -> None:
    pytest.importorskip("tensorboard")
    assert list((trained / "run" / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("option", ["--label-column", "--image-column"])
def test_a_column_of_a_runs_own_data_is_refused(cli: Cli, trained: Path, option: str) -> None:
    told = cli("evaluate", "run", option, "kind", cwd=trained)
    assert (told.code, told.is_one_line(f"{option} kind is for other data", "--data")) == (2, True)


def test_only_the_run_under_way_has_a_writer_of_tensorboard(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")

    def writers() -> int:
        return sum("AsyncWriter" in type(thread).__name__ for thread in threading.enumerate())

    before = writers()
    with training_display(quiet=True) as display:
        for number in range(3):
            without = shutil.ignore_patterns("tensorboard")
            run = Run.open(shutil.copytree(trained / "run", tmp_path / str(number), ignore=without))
            listener = display(run.config)
            listener.on_start(run, [])
            listener.on_epoch(run.read_metrics()[0])
            assert writers() == before + 1
        display(run.config)  # which never starts
    assert writers() == before
    for number in range(3):
        (written,) = (tmp_path / str(number) / "tensorboard").glob("*tfevents*")
        assert b"accuracy" in written.read_bytes()


@pytest.mark.parametrize(("rank", "files"), [("0", 1), ("1", 0)])
def test_one_process_of_several_writes_curves(
    rank: str, files: int, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    (tmp_path / "show.py").write_text(
        "from halfmeg.artifacts.run import Run\n"
        "from halfmeg.cli.progress import training_display\n"
        "run = Run.open('run')\n"
        "with training_display(quiet=True) as display:\n"
        "    listener = display(run.config)\n"
        "    listener.on_start(run, [])\n"
        "    listener.on_epoch(run.read_metrics()[0])\n"
    )
    environment = with_tests() | {"RANK": rank}
    subprocess.run([sys.executable, "show.py"], cwd=tmp_path, env=environment, check=True)
    assert len(list((tmp_path / "run").glob("tensorboard/*"))) == files


def test_compare_writes_page_and_figure(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    command = (
        "compare", "cnn", "logistic", "epochs=2", "--seeds", "1", "--out", "study",
        "--data", str(pictures),
    )  # fmt: skip
    outcome = cli(*command)
    assert outcome.code == 0, outcome.err
    printed = outcome.out
    assert len(list(tmp_path.glob("study/*/result.json"))) == 2
    assert "cnn" in printed
    for name in ("comparison.html", "comparison.png"):
        assert f"study/{name}" in printed
        assert (tmp_path / "study" / name).stat().st_size > 10_000


@pytest.mark.slow
def test_compare_started_again_trains_nothing(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    command = (
        "compare", "cnn", "logistic", "epochs=2", "--seeds", "1", "--out", "study",
        "--data", str(pictures),
    )  # fmt: skip
    outcome = cli(*command, "--json")
    assert outcome.code == 0, outcome.err
    models = {row["name"]: row for row in outcome.json["models"]}
    assert set(models) == {"cnn", "logistic"}
    for row in models.values():
        assert {"params", "macs", "per_seed"} <= row.keys()
        assert row["test_accuracy"].keys() == {"mean", "lo", "hi"}
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("study/*/result.json")}
    assert len(trained) == 2
    assert "cnn" in cli(*command).out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in trained.items())


def test_data_check(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("data", "check", "digits", "--json")
    assert outcome.code == 0
    assert {"train", "test", "classes", "image_size", "mean", "std", "fingerprint",
            "problems"} <= outcome.json.keys()  # fmt: skip
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(5):
            colour = (index * 50, 20, 90 if name == "cats" else 0)
            Image.new("RGB", (40, 30), colour).save(tmp_path / "pets" / name / f"{index}.jpg")
    assert "no problems found" in cli("data", "check", "pets").out
    (tmp_path / "pets" / "cats" / "notes.png").write_text("a text")
    outcome = cli("data", "check", "pets")
    assert outcome.code == 1
    assert "problem: unreadable: cats/notes.png" in outcome.out
    outcome = cli("train", "common", "model=resnet20", "--data", "pets")
    assert outcome.code == 2
    assert outcome.is_one_line("cats/notes.png", "halfmeg data check")


def test_a_users_own_folder_of_photographs(cli: Cli, tmp_path: Path) -> None:
    for part, count in (("train", 12), ("test", 4)):
        for name, colour in (("red", (220, 30, 20)), ("blue", (20, 40, 210))):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                shade = tuple(max(0, c - 9 * index) for c in colour)
                size = (60 + index, 45)
                Image.new("RGB", size, shade).save(
                    tmp_path / "photos" / part / name / f"{index}.jpg"
                )
    outcome = cli("train", "common", "model=cnn", "batch_size=8", "val_fraction=0.25",
                  "--data", "photos", "--out", "run", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["test_accuracy"] == 1.0
    assert cli("evaluate", "run", "--json").json["per_class"] == [1.0, 1.0]


MISTAKES = {
    "unknown command": (["trian"], ["'trian'", "allowed: models, summary"]),
    "no model": (["summary"], ["argument 'model'", "halfmeg summary --help"]),
    "unknown model": (["summary", "resnet99"], ["'resnet99'", "cnn, resnet"]),
    "unknown recipe": (["train", "comon"], ["'comon'", "did you mean 'common'", "allowed: auto, "]),
    "a recipe and its setting": (["train", "aut", "minutes=1"], ["'aut'", "did you mean 'auto'"]),
    "bad value": (["train", "common", "lr=-1"], ["lr=-1", "(0, 1000]"]),
    "unknown setting": (["train", "common", "speed=9"], ["'speed'", "batch_size"]),
    "a setting of the data": (["train", "common", "imagesize=64"], ["did you mean 'image_size'"]),
    "the same of a study": (["compare", "cnn", "mlp", "fitt=pad"], ["did you mean 'fit'"]),
    "a setting of auto": (["train", "common", "minutes=1"], ["it is one of `train auto`"]),
    "the same, mistyped": (["train", "auto", "minuts=1"], ["did you mean 'minutes'"]),
    "a variable not set": (["train", "common", "--data", ""], ["nothing stands behind --data"]),
    "the same with =": (["train", "common", "--out="], ["nothing stands behind --out"]),
    "recipe as an option": (
        ["train", "--recipe", "mine.py:recipe"],
        ["--recipe", "halfmeg train mine.py:recipe"],
    ),
    "unknown option": (["train", "common", "--fast"], ["--fast", "--data-dir"]),
    "a setting as an option": (
        ["search", "--batch-size", "8"],
        ["No such option: --batch-size; settings have no dashes: write batch_size=8"],
    ),
    "minutes as an option": (["train", "auto", "--minutes", "5"], ["write minutes=5"]),
    "hours of auto": (["train", "auto", "--hours=1"], ["in minutes: write minutes=NUMBER"]),
    "minutes of a search": (["search", "--minutes", "5"], ["write --hours NUMBER"]),
    "no number": (["compare", "cnn", "--seeds", "many"], ["--seeds", "'many'", "integer"]),
    "missing path": (["train", "common", "--data", "nowhere"], ["'nowhere'", "digits, cifar10"]),
    "a seed of a study": (["compare", "cnn", "resnet20", "seed=5"], ["seed=5", "by --seeds"]),
    "a network as a setting": (["plan", "cnn", "model=mlp"], ["model=mlp", "without model="]),
    "no seeds": (["compare", "cnn", "resnet", "--seeds", "0"], ["seeds=0", "1 or more"]),
    "no network": (["compare", "epochs=2"], ["no network named", "cnn"]),
    "wrong network": (["compare", "cnn", "resnett"], ["'resnett'", "did you mean 'resnet'"]),
    "no run": (["evaluate", "nowhere"], ["nowhere is no run folder: it does not exist"]),
    "not resumable": (["resume", "nowhere"], ["nowhere is no run folder"]),
    "no GPU of that number": (["train", "common", "device=cuda:99"], ["cuda:99", "cpu"]),
    "small images": (["summary", "whitened()", "--image-size", "8"], ["sides of 9 or more"]),
    "smaller than settings take": (
        ["train", "common", "small_size=12", "model=whitened(shrink=2)"],
        ["small_size=12"],
    ),
    "settings of a network": (
        ["train", "common", "residual(width=12)", "epochs=1"],
        ["halfmeg train common 'model=residual(width=12)' epochs=1"],
    ),
    "no device": (["compare", "logistic", "mlp", "device=gpu"], ["device=gpu is not there"]),
    "no device for folds": (
        ["train", "common", "model=mlp", "device=gpu", "precision=bf16", "--folds", "3"],
        ["device=gpu is not there"],
    ),
    "a recipe that one network cannot take": (
        ["compare", "cnn", "resnet20", "--recipe", "sprint"],
        ["small_size=", "does not fit cnn"],
    ),
    "two ways to train": (
        ["compare", "cnn", "resnet20", "--workers", "2", "--cluster", "auto"],
        ["workers=2 and cluster=auto exclude each other"],
    ),
    "GPUs of no cluster": (
        ["compare", "cnn", "resnet20", "--gpus-per-run", "1"],
        ["gpus_per_run=1 is for a cluster"],
    ),
    "seeds of one fold": (
        ["compare", "logistic", "mlp", "fold=2/5", "--seeds", "2"],
        ["fold=2/5 is one fold", "leave it out"],
    ),
    "no repository": (["pull", "badname", "--out", "here"], ["badname", "OWNER/NAME"]),
    "two forms": (["predict", "a.png", "--csv", "--json"], ["--csv and --json exclude"]),
    "a chip in text": (["models", "--chip"], ["--chip does nothing without --json"]),
    "threads of a device": (
        ["bench", "record", "--device", "cortex-m7", "--threads", "4"],
        ["--threads 4 does nothing", "--device cortex-m7"],
    ),
    "rounds of a device": (
        ["bench", "record", "--device", "cortex-m7", "--rounds", "5"],
        ["--rounds 5 does nothing"],
    ),
    "a budget above all": (
        ["summary", "mlp", "--budget", "20000000000"],
        ["budget=20000000000", "[1, 1e+07]"],
    ),
    "endless hours": (
        ["search", "--hours", "inf", "--data", "nowhere"],
        ["--hours inf is out of range"],
    ),
    "endless hours to go on": (
        ["search", "--resume", "nowhere", "--hours", "inf"],
        ["--hours inf is out of range"],
    ),
    "odd size": (["train", "common", "--image-size", "12"], ["image_size=12", "16 or more"]),
}


@pytest.mark.parametrize(("arguments", "parts"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(cli: Cli, tmp_path, arguments, parts) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert outcome.is_one_line(*parts), outcome.err
    assert outcome.out == ""
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr("halfmeg.cli.main.build_app", lambda: app)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("halfmeg: the memory is not enough; take a smaller")


@pytest.mark.parametrize(
    ("mark", "told"),
    [
        ("search.json", "it is a search; `halfmeg export mine` ships its winner"),
        ("study.json", "it is a study; name one of the runs in it"),
        ("model.json", "it is a bundle"),
        ("notes.txt", "it has no config.json; name the --out of a training"),
    ],
)
def test_a_folder_that_is_no_run_is_told_for_what_it_is(
    cli: Cli, tmp_path: Path, mark: str, told: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / mark).write_text("{}")
    assert cli("resume", "mine").is_one_line(f"mine is no run folder: {told}")
    occupied = cli("train", "common", "--out", "mine")
    assert occupied.is_one_line("mine exists already and is not overwritten; choose another --out")
    assert "resume" not in occupied.err


def test_a_run_that_has_not_finished_is_told_with_how_to_go_on(
    cli: Cli, trained: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    for name in ("result.json", "weights.safetensors"):
        (tmp_path / "run" / name).unlink()
    told = "run has not finished; continue it with `halfmeg resume run`"
    for command in (["evaluate", "run"], ["export", "run", "--out", "b"], ["report", "run"]):
        assert cli(*command).is_one_line(told)


def test_a_folder_called_as_a_recipe(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "auto").mkdir()
    outcome = cli("train", "auto", "minutes=0", "--data", str(pictures))
    assert outcome.is_one_line("minutes=0 is out of range")


def test_offline_cifar10(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFMEG_CIFAR10_URL", "http://127.0.0.1:9/none")
    outcome = cli("train", "common", "--data", "cifar10", "--data-dir", "here")
    assert outcome.code == 2
    assert outcome.is_one_line("cifar-10-binary.tar.gz", "here", "--data digits")


@pytest.mark.parametrize("damage", ["weights.safetensors", "config.json"])
def test_a_damaged_run_folder(cli: Cli, trained: Path, tmp_path: Path, damage: str) -> None:
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / damage).write_bytes(b"broken")
    outcome = cli("evaluate", "run")
    assert outcome.code == 2
    assert outcome.is_one_line(damage, "is damaged")


def test_a_full_disk_loses_nothing(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    terms = (*QUICK, "--data", str(pictures))
    with full_after(200_000):
        outcome = cli("train", "common", *terms, "--out", "run")
    assert outcome.code == 2
    assert "run/checkpoints/" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())  # no part of a file
    assert cli("resume", "run", "--json").json["epochs"] == 2


def test_a_folder_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = cli("train", "common", *QUICK, "--out", "file/run")
    assert outcome.code == 2
    assert outcome.is_one_line("cannot make the run folder file/run")


def test_ctrl_c_says_how_to_continue(cli: Cli, tmp_path: Path, pictures: Path) -> None:
    def press() -> None:
        while not (tmp_path / "run" / "metrics.csv").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press, daemon=True)
    presser.start()
    terms = ("model=logistic", "epochs=500", "--data", str(pictures))
    outcome = cli("train", "common", *terms, "--out", "run")
    presser.join()
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "halfmeg: stopped; continue with `halfmeg resume run`"


@pytest.mark.slow
def test_a_process_of_its_own_is_stopped_by_ctrl_c(tmp_path: Path, pictures: Path) -> None:
    command = [sys.executable, "-m", "halfmeg", "train", "common", "model=cnn", "epochs=500",
               "--data", str(pictures), "--out", "run"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "halfmeg: stopped; continue with `halfmeg resume run`"


@pytest.mark.slow
def test_real_cifar_jpeg_end_to_end(cli: Cli, cifar_jpeg: Path) -> None:
    outcome = cli("train", "common", "model=cnn", "epochs=1", "val_fraction=0.9",
                  "--data", str(cifar_jpeg), "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["test_accuracy"] > 0.2
    assert outcome.json["test_n"] == 10_000


@pytest.fixture(scope="module")
def small_study(tmp_path_factory, few_digits) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "study"
    configs = [small_config(model=m, seed=s) for s in (0, 1) for m in ("cnn", "logistic")]
    run_study(configs, few_digits, folder)
    return folder


@pytest.mark.slow
def test_report_compares_what_is_there(cli: Cli, small_study: Path, tmp_path: Path) -> None:
    """Without the runs' data there are no pictures, but every other number."""
    runs = [str(small_study / f"{m}-seed-{s}") for m in ("cnn", "logistic") for s in (0, 1)]
    found = cli("report", *runs, "--out", "page", "--json")
    assert found.code == 0, found.err
    assert len(found.json["pairs"]) == 1
    assert (tmp_path / "page" / "comparison.html").exists()
    assert not (small_study / "comparison.html").exists()


@pytest.mark.slow
def test_report_in_place_and_of_one_seed(cli: Cli, small_study: Path, tmp_path: Path) -> None:
    study = shutil.copytree(small_study, tmp_path / "study")
    whole = cli("report", str(study))
    assert whole.code == 0
    assert (study / "comparison.md").exists()
    one = cli("report", *(str(study / f"{m}-seed-0") for m in ("cnn", "logistic")), "--out", "one")
    assert "cannot tell chance from a difference" in one.out


@pytest.mark.slow
def test_a_report_elsewhere_has_the_costs_that_the_study_has_measured(
    cli: Cli, small_study: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    shutil.copytree(small_study, study)
    cost = {
        "params": 1,
        "macs": 1,
        "weights_bytes": 4,
        "latency_ms": 1.25,
        "images_per_second": 50.0,
    }
    (study / "costs.json").write_text(json.dumps({"cnn": cost}))
    found = cli("report", str(study), "--out", "elsewhere", "--json")
    assert found.code == 0, found.err
    costs = {model["name"]: model["cost"] for model in found.json["models"]}
    assert costs["cnn"]["latency_ms"] == 1.25
    assert costs["logistic"] is None


def test_a_report_has_no_costs_of_another_that_was_in_its_folder(
    cli: Cli, small_study: Path, pictures: Path, tmp_path: Path
) -> None:
    names = ("logistic", "cnn")
    for name in names:
        terms = ("epochs=1", "image_size=16", "--data", str(pictures), "--out", name)
        assert cli("train", "common", f"model={name}", *terms).code == 0
    before = cli("report", *names, "--out", "page", "--json")
    assert all(model["cost"]["latency_ms"] > 0 for model in before.json["models"]), before.err
    runs = [str(small_study / f"{name}-seed-0") for name in names]
    found = cli("report", *runs, "--out", "page", "--json")
    assert "without the runs' data" in found.err
    assert [model["cost"] for model in found.json["models"]] == [None, None]
    study = shutil.copytree(small_study, tmp_path / "study")
    cost = before.json["models"][0]["cost"] | {"latency_ms": 1.25}
    (study / "costs.json").write_text(json.dumps(dict.fromkeys(names, cost)))
    own = cli("report", "study", "--out", "page", "--json")
    assert [model["cost"]["latency_ms"] for model in own.json["models"]] == [1.25, 1.25]


def test_runs_of_one_name_are_missing_each_for_itself(
    cli: Cli, small_study: Path, tmp_path: Path
) -> None:
    """And what an earlier report has left of pairs goes."""
    for name in ("a", "b"):
        study = shutil.copytree(small_study, tmp_path / name)
        (study / "cnn-seed-0" / "result.json").unlink()
    page = tmp_path / "page"
    assert cli("report", str(small_study), "--out", "page").code == 0
    pairs = [page / name for name in ("differences.png", "tables/differences.csv")]
    pairs.append(page / "tables" / "differences.tex")
    assert all(path.exists() for path in pairs)
    for run in (tmp_path / "b").glob("*-seed-*/config.json"):
        stored = json.loads(run.read_text())
        stored["config"]["weight_decay"] = 0.5
        run.write_text(json.dumps(stored))
    found = cli("report", "a", "b", "--out", "page")
    assert found.code == 1
    for name in ("a", "b"):
        assert f"left out: {name}/cnn-seed-0: it has not finished" in found.err
    told = "is not in the figures: it has not finished"
    assert (page / "comparison.md").read_text().count(told) == 2
    assert cli("report", "a/logistic-seed-0", "--out", "page").code == 0
    assert not any(path.exists() for path in pairs)


def test_a_folder_without_a_finished_network_says_how_to_finish_it(
    cli: Cli, tmp_path: Path
) -> None:
    Run.create(tmp_path / "my run", small_config(), load_dataset("digits"))  # killed at once
    for line in (
        ("predict", "x.png", "--bundle", "my run"), ("evaluate", "my run"), ("report", "my run"),
        ("export", "my run", "--out", "b"), ("bench", "my run"), ("push", "my run", "me/mine"),
    ):  # fmt: skip
        told = cli(*line)
        assert told.code == 2
        assert told.is_one_line("my run", "not finished", "`halfmeg resume 'my run'`"), told.err
    (tmp_path / "my run" / "result.json").write_text("{}")
    assert cli("bench", "my run").is_one_line("`halfmeg export 'my run' --out BUNDLE`")
    for name, told in (("search", "`halfmeg search --resume 'my '`"), ("study", "it is a study")):
        (tmp_path / "my ").mkdir(exist_ok=True)
        (tmp_path / "my " / f"{name}.json").write_text("{}")
        for line in (("predict", "x.png", "--bundle", "my "), ("evaluate", "my ")):
            assert cli(*line).is_one_line(told)
        if name == "search":
            assert cli("report", "my ").is_one_line(told)
        (tmp_path / "my " / f"{name}.json").unlink()


def test_a_command_to_run_next_is_quoted(cli: Cli, tmp_path: Path) -> None:
    told = cli("new", "network", "my net.py").out
    assert "halfmeg compare 'my net.py:Net' resnet20" in told
    assert "halfmeg summary 'my net.py:Net'" in (tmp_path / "my net.py").read_text()


def test_a_study_with_a_run_that_failed_is_reported(
    cli: Cli, small_study: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(small_study, tmp_path / "study")
    (study / "cnn-seed-0" / "result.json").unlink()
    told = cli("report", "study", "--out", "page", "--json")
    assert told.code == 1
    assert told.json["failures"] == {"cnn-seed-0": "it has not finished"}
    page = (tmp_path / "page" / "comparison.html").read_text()
    assert "it has not finished" in page
    for path in study.glob("*/result.json"):
        path.unlink()
    assert cli("report", "study").is_one_line("study has no finished run: it is a study, and goes")


def test_a_report_is_not_written_among_files_of_others(
    cli: Cli, small_study: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    told = cli("report", str(small_study), "--out", "photos")
    assert told.is_one_line("photos exists and holds no report; choose another --out")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cats"]


def test_report_mistakes(cli: Cli, small_study: Path, tmp_path: Path) -> None:
    assert cli("report", "nowhere").is_one_line("nowhere is no run folder")
    assert cli("report", str(small_study), "--data", "nowhere").is_one_line("'nowhere'")
    wrong = cli("report", str(small_study), "--data", "digits", "--out", "other")
    assert wrong.is_one_line("was trained on other data than digits")
    broken = tmp_path / "broken"
    shutil.copytree(small_study, broken)
    (broken / "cnn-seed-0" / "result.json").write_text("{")
    assert cli("report", str(broken)).err.count("result.json is damaged") == 1
    (broken / "study.json").write_text("[]")
    assert cli("report", str(broken)).is_one_line("study.json is damaged")


def test_a_reader_that_leaves_a_pipe_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "halfmeg", "recipes"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_to_type_can_be_typed(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "my photos").symlink_to(pictures)
    outcome = cli("compare", "mlp", "residual(width=16)", "my photos")
    line = outcome.err.partition("write: halfmeg ")[2]
    assert shlex.split(line) == ["compare", "mlp", "residual(width=16)", "--data", "my photos"]


@pytest.mark.parametrize(
    "arguments",
    [("train", "photos/"), ("train", "record", "./photos"), ("compare", "cnn", "my photos")],
)
def test_a_path_of_nothing_is_called_a_path(cli: Cli, arguments: tuple[str, ...]) -> None:
    told = f"{arguments[-1]} is no file or folder here; images are named by --data"
    assert cli(*arguments).is_one_line(told)


def test_data_sets_beside_the_tables_of_all(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    for name in ("tables", "chairs"):
        shutil.copytree(pictures, tmp_path / name)
    next((tmp_path / "chairs" / "train" / "0").iterdir()).unlink()
    outcome = cli("compare", "mlp", "cnn", "--data", "tables", "--data", "chairs")
    assert outcome.code == 2
    assert outcome.is_one_line("--data tables would be called tables", "rename it")


def test_versions_of_a_network_in_files_of_one_name(cli: Cli, tmp_path: Path) -> None:
    for folder in ("v1", "v2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(
            "from halfmeg.networks.floors import logistic as Net"
        )
    outcome = cli("compare", "v1/net.py:Net", "v2/net.py:Net", "epochs=1")
    told = "v1/net.py:Net and v2/net.py:Net would both be called net-Net-seed-0; rename one"
    assert (outcome.code, outcome.is_one_line(told)) == (2, True), outcome.err
    assert not list(tmp_path.glob("runs/*"))


def test_folds_are_called_so_while_they_train(cli: Cli, pictures: Path) -> None:
    told = cli("train", "common", "model=logistic", "epochs=1", "--folds", "2", "--data",
               str(pictures), "--out", "folds").err  # fmt: skip
    assert "logistic fold 1  epoch 1/1" in told
    assert "logistic fold 2  epoch 1/1" in told
    assert "seed" not in told


def test_compare_mistakes(cli: Cli) -> None:
    assert cli("compare", "cnn").is_one_line("cnn alone", "two networks", "--recipe")
    assert cli("compare", "cnn", "resnet", "--workers", "0").is_one_line("workers=0")
    assert cli("compare", "cnn", "--recipe", "bset").is_one_line("recipe 'bset' is not known")
    refused = cli("compare", "cnn", "resnet", "epochs=1", "--cluster", "nowhere", "--out", "study")
    assert refused.is_one_line("cluster='nowhere'", "HOST:PORT or auto")
    assert refused.code == 2
