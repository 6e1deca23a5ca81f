"""The count of what was tried before: from the folders of studies, searches and runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli, first_digits, small_config

from halfmeg import Run, compare
from halfmeg.studies.sequential import compare_until_decided
from halfmeg.studies.study import make_configs, run_study
from halfmeg.studies.trials import count_trials, with_trials


def make_run(folder: Path, **changes: object) -> None:
    """Make a run folder that has not been trained."""
    Run.create(folder, replace(small_config(model="mlp"), **changes), first_digits(40))


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """Three settings of mlp, two of them with several seeds; one of cnn."""
    for name, changes in {
        "a-seed-0": {"lr": 0.1}, "a-seed-1": {"lr": 0.1, "seed": 1},
        "b-seed-0": {"lr": 0.2}, "b-seed-1": {"lr": 0.2, "seed": 1, "threads": 2},
        "c": {"epochs": 7, "recipe": "another", "tuning_trials": 5}, "d": {"model": "cnn"},
    }.items():  # fmt: skip
        make_run(tmp_path / "tried" / name, **changes)
    return tmp_path / "tried"


def test_seeds_and_machines_are_no_trials(tried: Path) -> None:
    assert count_trials([tried], "mlp") == 3
    assert count_trials([tried], "cnn") == 1
    assert count_trials([tried], "logistic") == 0
    assert count_trials([tried / "a-seed-0"], "mlp") == 1


@pytest.mark.slow
def test_what_is_named_twice_counts_once(tried: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "again", lr=0.1, seed=9)
    make_run(tmp_path / "new", lr=0.3)
    assert count_trials([tried, tried, tmp_path / "again"], "mlp") == 3
    assert count_trials([tried, tmp_path / "new"], "mlp") == 4


def test_of_a_search_every_trial_counts_and_its_last_study_does_not(tmp_path: Path) -> None:
    search = tmp_path / "search"
    for number, changes in enumerate(({"lr": 0.1}, {"model": "cnn"}, {"model": "logistic"})):
        make_run(search / "trials" / f"{number:04}", **changes)
    make_run(search / "trials" / "0000-fold-1", lr=0.1, seed=1)
    make_run(search / "final-1" / "resnet8-seed-0", model="resnet8")
    (search / "search.json").write_text("{}")
    assert count_trials([search], "mlp") == 3
    assert count_trials([tmp_path], "mlp") == 3  # of the folder above, the same
    (tmp_path / "search.json").write_text("{}")  # of another kind, as a benchmark writes
    assert count_trials([tmp_path], "mlp") == 3
    (tmp_path / "search.json").unlink()
    make_run(tmp_path / "study" / "mlp", lr=0.7)
    make_run(tmp_path / "study" / "cnn", model="cnn", lr=0.7)
    assert count_trials([tmp_path], "mlp") == 4


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="holds no run; name the folder of a study"):
            count_trials([folder], "mlp")
    make_run(tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text()[:50])
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        count_trials([tmp_path], "mlp")


def test_a_study_that_grows_does_not_count_itself(tried: Path, tmp_path: Path) -> None:
    """Where the folder of what was tried holds the study's own."""
    runs, config, data = tmp_path / "tried", small_config(epochs=1), first_digits(60)
    for seeds in (1, 2):
        found = compare(
            ["mlp", "logistic"], data, seeds=seeds, out=runs / "study", config=config,
            tuned_on=[runs],
        )  # fmt: skip
        trials = {m.name: m.runs[0].config.tuning_trials for m in found.models}
        assert trials == {"mlp": 3, "logistic": 0}
    assert count_trials([runs], "logistic") == 1
    assert count_trials([runs / "study"], "logistic", [runs / ".." / "tried" / "study"]) == 0


def test_a_study_until_decided_does_not_count_its_first_look(
    tried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halfmeg.studies.sequential.LOOKS", (2, 3))
    monkeypatch.setattr("halfmeg.studies.reading.LOOKS", (2, 3))
    monkeypatch.setattr("halfmeg.studies.sequential.is_futile", lambda *_: False)
    found = compare_until_decided(
        ["mlp", "logistic"], first_digits(60), out=tried / "study", config=small_config(epochs=1),
        margin=1e-6, tuned_on=[tried],
    )  # fmt: skip
    assert found.stopped == "ended with 3 seeds, the last look"
    trials = {m.name: m.runs[-1].config.tuning_trials for m in found.models}
    assert trials == {"mlp": 3, "logistic": 0}


@pytest.mark.slow
def test_a_study_of_several_data_sets_or_folds_does_not_count_itself(
    tried: Path, tmp_path: Path, cli: Cli, pictures: Path
) -> None:
    few = shutil.copytree(pictures, tmp_path / "few")
    for path in sorted(few.glob("train/*/*.png"))[::3]:
        path.unlink()
    names, terms = ["mlp", "logistic"], ["epochs=1", "tuning_trials=0", "--tuned-on", "tried"]
    data = ["--data", str(pictures), "--data", str(few), "--out", "tried/sets"]
    done = cli("compare", *names, *terms, *data, "--seeds", "1")
    assert done.code == 0, done.err
    of_sets = {p: Run.open(p.parent).config for p in tried.glob("sets/*/mlp-*/config.json")}
    assert [config.tuning_trials for config in of_sets.values()] == [3, 3]
    folded = ["model=mlp", "lr=0.004", *terms, "--data", str(pictures), "--folds", "2"]
    for _ in range(2):
        done = cli("train", "common", *folded, "--out", "tried/folds")
        assert done.code == 0, done.err
    of_folds = [Run.open(p.parent).config for p in tried.glob("folds/*/config.json")]
    assert [config.tuning_trials for config in of_folds] == [4, 4]  # with that of the sets


def test_a_study_counts_its_trials_for_each_network_and_says_so(
    tried: Path, tmp_path: Path
) -> None:
    config = small_config(epochs=1, tuning_trials=2)
    assert with_trials(config, []) == config
    found = compare(
        ["mlp", "logistic"], first_digits(60), seeds=2, out=tmp_path / "study", config=config,
        tuned_on=[tried],
    )  # fmt: skip
    trials = {m.name: m.runs[0].config.tuning_trials for m in found.models}
    assert trials == {"mlp": 5, "logistic": 2}
    (terms,) = [note for note in found.pairs[0].terms if note.startswith("tuning_trials")]
    assert sorted(terms.removeprefix("tuning_trials: ").split(" against ")) == ["2", "5"]
    again = make_configs(["mlp", "logistic"], [config], 2, [tried])
    run_study(again, first_digits(60), tmp_path / "study")  # the same count: nothing is refused
    stored = json.loads((tmp_path / "study" / "mlp-seed-0" / "config.json").read_text())
    assert stored["config"]["tuning_trials"] == 5
