from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import NUM_TEST, Cli, first_digits, small_config, with_tests

from halfmeg.artifacts.run import Run
from halfmeg.data.corrupt import CORRUPTIONS, STRENGTHS
from halfmeg.studies.caveats import read_before
from halfmeg.studies.compare import compare, compare_runs
from halfmeg.studies.figures import accuracy_curve
from halfmeg.studies.measure import measure_robustness
from halfmeg.studies.power import SeedsNeeded
from halfmeg.studies.reading import Reading, record_look
from halfmeg.studies.sequential import compare_until_decided
from halfmeg.studies.sets import rank_comparisons
from halfmeg.studies.stats import Interval, paired_tests
from halfmeg.studies.study import make_configs, open_runs, plan_study, run_study
from halfmeg.studies.tables import p_text
from halfmeg.studies.verdict import PairResult, in_points
from halfmeg.studies.workers import StudyListener
from halfmeg.training.fit import fit, resume
from halfmeg.training.listen import Listener
from halfmeg.training.plan import derive_seed
from halfmeg.training.stopping import TrainingInterruptedError

# Networks here count their calls, so that they fail, or wait, at a certain one.
pytestmark = pytest.mark.filterwarnings("ignore:.* in training, which no checkpoint holds")


def configs(seeds: int = 2, **changes):
    return [
        small_config(model=model, seed=seed, epochs=2, batch_size=64, **changes)
        for seed in range(seeds)
        for model in ("cnn", "logistic")
    ]


DIVERGING = {
    "epochs": 5, "optimizer": "sgd", "lr": 900.0, "precision": "fp32", "schedule": "constant",
    "threads": 1,
}  # fmt: skip


class StopAt(Listener):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, row) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


class StopThird(StudyListener):
    def of_run(self, config) -> Listener:
        return StopAt(1) if (config.model, config.seed) == ("cnn", 1) else Listener()


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/weights.safetensors")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few_digits) -> Path:
    """A study that was never interrupted, with one thread for each run."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    run_study(configs(), few_digits, folder)
    return folder


@pytest.mark.slow
def test_an_interrupted_study_trains_only_what_is_missing(
    tmp_path: Path, few_digits, whole: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_study(configs(), few_digits, tmp_path / "cut", listener=StopThird())
    first = tmp_path / "cut" / "cnn-seed-0" / "weights.safetensors"
    stamp = first.stat().st_mtime_ns
    study = run_study(configs(), few_digits, tmp_path / "cut")
    assert [run.folder.name for run in study.runs] == [
        "cnn-seed-0", "logistic-seed-0", "cnn-seed-1", "logistic-seed-1",
    ]  # fmt: skip
    assert not study.failures
    assert first.stat().st_mtime_ns == stamp
    assert weights(tmp_path / "cut") == weights(whole)
    described = json.loads((tmp_path / "cut" / "study.json").read_text())
    assert described["models"] == ["cnn", "logistic"]
    assert described["seeds"] == [0, 1]
    assert described["data"]["fingerprint"] == few_digits.fingerprint
    assert len(described["runs"]) == 4


class PressCtrlC(StudyListener, Listener):
    def of_run(self, config) -> Listener:
        return self

    def on_step(self, report) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_stopped_study_says_how_it_goes_on(tmp_path: Path, few_digits) -> None:
    with pytest.raises(TrainingInterruptedError, match="the same command continues the study"):
        run_study(configs(1)[1:], few_digits, tmp_path / "study", listener=PressCtrlC())


KILLED_STUDY = """
import sys
from conftest import first_digits
from halfmeg.studies.study import run_study
from test_study import configs
if __name__ == "__main__":
    run_study(configs(), first_digits(200), sys.argv[1], workers=2)
"""


def start_study(folder: Path, *, until: str) -> tuple[subprocess.Popen[str], list[int], float]:
    """Start a study with two workers, and wait until a run has a file of that name.

    Returns the process, its workers, and the time at which all have to be gone.
    """
    script = folder.parent / "study.py"
    script.write_text(KILLED_STUDY)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, text=True,
        env=with_tests(),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob(f"*/{until}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process, child_processes(process.pid), deadline


def assert_gone(children: list[int], deadline: float) -> None:
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a worker outlived its study"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_study_of_several_workers_ends_with_the_same_bits(
    tmp_path: Path, few_digits, whole: Path
) -> None:
    """SIGKILL to the study: its workers stop too, and what is finished stays."""
    folder = tmp_path / "study"
    process, children, deadline = start_study(folder, until="result.json")
    process.kill()
    process.communicate()
    assert_gone(children, deadline)
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    assert finished
    study = run_study(configs(threads=1), few_digits, folder, workers=2)
    assert len(study.runs) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert weights(folder) == weights(whole)


@pytest.mark.slow
def test_a_killed_worker_costs_a_study_nothing(tmp_path: Path, whole: Path) -> None:
    """SIGKILL to one of its workers: what was under way goes on, and what waited is trained."""
    folder = tmp_path / "study"
    process, children, deadline = start_study(folder, until="checkpoints/epoch_00001_*.pt")
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
    assert process.returncode == 0, told
    assert len(list(folder.glob("*/result.json"))) == 4
    assert weights(folder) == weights(whole)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def child_processes(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failing_run_is_reported_and_the_others_go_on(
    tmp_path: Path, few_digits, workers: int
) -> None:
    fine, bad = small_config(threads=1), small_config(seed=1, **DIVERGING)
    heard = []

    class Hear(StudyListener):
        def on_run(self, config, error, done, total) -> None:
            heard.append((config.seed, bool(error), total))

    out = tmp_path / "study"
    study = run_study([bad, fine], few_digits, out, workers=workers, listener=Hear())
    assert [run.config.seed for run in study.runs] == [0]
    assert list(study.failures) == ["cnn-seed-1"]
    assert "the loss became" in study.failures["cnn-seed-1"]
    assert sorted(heard) == [(0, False, 2), (1, True, 2)]


FAILS = '''
import torch
from torch import nn

class First(nn.Module):
    """Fails with one seed, after a few steps."""
    fails_with = SEED0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(3, num_classes), 0
        self.seed = torch.initial_seed()

    def forward(self, x):
        self.steps += self.training
        if self.steps > 12 and self.seed == self.fails_with:
            raise RuntimeError("not with this seed")
        return self.head(x.mean((2, 3)))

class Second(First):
    fails_with = SEED1
'''


def test_networks_that_failed_on_opposite_seeds_have_a_page_and_no_verdict(
    tmp_path: Path, pictures: Path, cli: Cli
) -> None:
    own = FAILS.replace("SEED0", str(derive_seed(0))).replace("SEED1", str(derive_seed(1)))
    (tmp_path / "own.py").write_text(own)
    names, terms = ["own.py:First", "own.py:Second"], ["epochs=3", "batch_size=32"]
    command = ["compare", *names, *terms, "--seeds", "2", "--data", str(pictures), "--out", "s"]
    done = cli(*command)
    assert done.code == 1, done.err
    found = json.loads((tmp_path / "s" / "comparison.json").read_text())
    assert found["pairs"] == []
    assert list(found["failures"]) == ["own-First-seed-0", "own-Second-seed-1"]
    page = (tmp_path / "s" / "comparison.html").read_text()
    assert "No verdict: no two networks share a seed." in page
    assert "One network" not in page
    for told in (page, done.out, " ".join(found["caveats"])):
        assert "share no seed and are not compared." in " ".join(told.split())
    assert "failed: own-First-seed-0: RuntimeError: not with this seed" in done.err
    reported = cli("report", "s", "--out", "again")
    assert reported.code == 1, reported.err
    runs = [f"s/{run}" for run in ("own-First-seed-1", "own-Second-seed-0")]
    assert cli("report", *runs).is_one_line("share no seed")  # of these none failed


def test_a_study_without_a_finished_run_says_why(tmp_path: Path, few_digits) -> None:
    bad = small_config(**DIVERGING)
    with pytest.raises(ValueError, match="no run finished; cnn-seed-0: the loss became"):
        compare(["cnn"], few_digits, seeds=1, out=tmp_path / "s", config=bad)


def test_models_recipes_and_seeds_are_crossed() -> None:
    recipes = [small_config(recipe="a"), small_config(recipe="b", lr=0.01)]
    made = make_configs(["cnn", "resnet"], recipes, 2)
    assert len({(c.model, c.recipe, c.seed) for c in made}) == 8
    with pytest.raises(ValueError, match="name each recipe once"):
        make_configs(["cnn"], [recipes[0], recipes[0]], 1)


def test_a_seed_pairs_the_runs_of_all_models(whole: Path) -> None:
    """Runs of one seed share split and order, whatever the network."""
    labels = [run.load_logits()["val_labels"].tolist() for run in open_runs([whole])]
    assert labels[0] == labels[1] != labels[2] == labels[3]


def test_a_study_folder_holds_one_study(tmp_path: Path, few_digits) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not to be touched")
    with pytest.raises(ValueError, match="exists and is no study"):
        run_study(configs(1), few_digits, tmp_path / "mine")
    run_study(configs(1), few_digits, tmp_path / "study")
    with pytest.raises(ValueError, match="trained with other settings or data"):
        run_study(configs(1, hflip=True), few_digits, tmp_path / "study")
    with pytest.raises(ValueError, match="different model, recipe or seed"):
        run_study([*configs(1), *configs(1)], few_digits, tmp_path / "twice")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to"):
        run_study(configs(1), few_digits, tmp_path / "file" / "study")


def test_a_study_begins_where_a_power_cut_left_half_of_its_file(tmp_path: Path, few_digits) -> None:
    part = tmp_path / "study" / ".study.json.0123abcd.partial"
    part.parent.mkdir()
    part.write_text("{")
    assert len(run_study(configs(1), few_digits, part.parent).runs) == len(configs(1))
    assert not part.exists()


def test_compare_sorts_models_and_words_its_verdicts(tmp_path: Path, few_digits) -> None:
    terms = small_config(batch_size=64)
    result = compare(["logistic", "cnn"], few_digits, seeds=2, out=tmp_path / "study", config=terms)
    accuracies = [model.test_accuracy.mean for model in result.models]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {model.name: len(model.per_seed) for model in result.models} == {
        "cnn": 2, "logistic": 2,
    }  # fmt: skip
    (pair,) = result.pairs
    best, second = result.models
    differences = [best.per_seed[seed] - second.per_seed[seed] for seed in range(2)]
    assert pair.difference.mean == pytest.approx(sum(differences) / 2)
    assert ("is better than" in pair.verdict) == pair.told_apart
    assert pair.outcome in ("better", "same", "open")
    assert "2 seeds" in pair.verdict
    assert result.num_test == NUM_TEST
    stored = result.to_dict()["models"][0]
    assert {"name", "params", "macs", "test_accuracy", "per_seed"} <= stored.keys()
    assert sum(map(sum, stored["confusion"])) == 2 * NUM_TEST
    assert stored["calibration"]["ece_by_chance"] > 0
    assert (stored["temperature"] is None) == bool(stored["no_temperature"])
    assert set(stored["robustness"]) == {"clean", *CORRUPTIONS}
    assert stored["cost"]["latency_ms"] > 0
    stored_pair = result.to_dict()["pairs"][0]
    assert {"a", "b", "difference", "p_value", "verdict"} <= stored_pair.keys()
    for item in result.disagreements:
        assert len({label for label, _ in item.answers.values()}) == 2


def test_every_accuracy_is_that_of_the_stored_answers(tmp_path: Path, whole: Path) -> None:
    """A mean and the seeds that it is of cannot disagree."""
    run = Run.open(shutil.copytree(whole / "logistic-seed-0", tmp_path / "run"))
    result = run.result()
    assert result is not None
    (run.folder / "result.json").write_text(json.dumps(result | {"test_accuracy": 1.0}))
    (model,) = compare_runs([run, Run.open(whole / "logistic-seed-1")]).models
    assert model.per_seed[0] == result["test_accuracy"] < 1
    assert np.mean([*model.per_seed.values()]) == pytest.approx(model.test_accuracy.mean)


def test_runs_of_one_network_have_its_size(tmp_path: Path, whole: Path) -> None:
    """What another version, or another machine, built under the same name is another network."""
    run = Run.open(shutil.copytree(whole / "logistic-seed-0", tmp_path / "run"))
    result = run.result()
    assert result is not None
    (run.folder / "result.json").write_text(json.dumps(result | {"params": 12}))
    with pytest.raises(ValueError, match=r"has 30,730 parameters, and .*run 12, so logistic was"):
        compare_runs([run, Run.open(whole / "logistic-seed-1")])


def test_groups_change_what_is_held_out_and_so_the_study(tmp_path: Path, few_digits) -> None:
    """Of a source with a test part of its own the images, and their fingerprint, are the same."""
    groups = replace(few_digits.train, groups=torch.arange(len(few_digits.train)) // 5)
    grouped = replace(few_digits, train=groups, options={"group": "writer"})
    terms = small_config(model="logistic", epochs=1, val_fraction=0.2)
    first = fit(terms, few_digits, tmp_path / "study" / "logistic-seed-0")
    other = fit(replace(terms, seed=1), grouped, tmp_path / "other")
    with pytest.raises(ValueError, match=r"with group='writer', and .*-0 with group=''; compare"):
        compare_runs([first, other])
    with pytest.raises(ValueError, match="other was trained with group='writer', not ''"):
        resume(other.folder, few_digits)
    shutil.move(other.folder, tmp_path / "study" / "logistic-seed-1")
    (tmp_path / "study" / "study.json").write_text('{"runs": []}')
    with pytest.raises(ValueError, match=r"logistic-seed-1 was .*: group is writer there and None"):
        run_study([terms, replace(terms, seed=1)], few_digits, tmp_path / "study")


def test_groups_by_which_nothing_is_held_out_change_nothing(tmp_path: Path, few_digits) -> None:
    grouped = replace(few_digits, options={"group": "writer"})
    terms = small_config(model="logistic", epochs=1, val_fraction=0.0)
    first = fit(terms, few_digits, tmp_path / "a")
    other = fit(replace(terms, seed=1), grouped, tmp_path / "b")
    assert len(compare_runs([first, other]).models) == 1


def test_seeds_of_a_stack_share_its_seconds(tmp_path: Path, few_digits) -> None:
    terms = small_config(model="logistic", epochs=1, threads=1)
    runs = run_study([terms, replace(terms, seed=1)], few_digits, tmp_path, stack=True).runs
    (model,) = compare_runs(runs).models
    results = [run.result() or {} for run in runs]
    assert model.seconds == pytest.approx(results[0]["seconds"] / 2)


def test_robustness_is_measured_at_each_strength(tmp_path: Path, whole: Path, few_digits) -> None:
    run = Run.open(shutil.copytree(whole / "logistic-seed-0", tmp_path / "run"))
    found = measure_robustness(run, few_digits)
    assert found["clean"] == (run.result() or {})["test_accuracy"]
    assert {
        name: len(accuracies) for name, accuracies in found["accuracy"].items()
    } == dict.fromkeys(CORRUPTIONS, len(STRENGTHS))


def paired(of_seeds: Sequence[float], *, num_networks: int = 2, **changes: Any) -> PairResult:
    """A pair of which the seeds differ by these shares of 10,000 images, always other ones."""
    rng = np.random.default_rng(0)
    rows = np.zeros((len(of_seeds), 10_000))
    for row, share in zip(rows, of_seeds, strict=True):
        count = round(10_000 * abs(share))
        row[rng.permutation(10_000)[: count + 200]] = np.sign(share) * np.repeat(
            [1, 1, -1], [count, 100, 100]
        )
    pairs = num_networks * (num_networks - 1) // 2
    test = paired_tests([rows] * pairs, num_networks)[0]
    fields: dict[str, Any] = {
        "a": "logistic", "b": "cnn", "test": test, "num_seeds": len(rows),
        "num_images": 10_000, "folded": False, "mcnemar": (), "p_mcnemar": 0.5,
        "num_pairs": pairs,
        "margin": 0.01, "needed": SeedsNeeded(7, 21), "terms": (),
    }  # fmt: skip
    return PairResult(**fields | changes)


@pytest.mark.parametrize(
    ("of_seeds", "changes", "outcome", "words"),
    [
        ([0.039, 0.04, 0.038, 0.039, 0.039], {}, "better",
         r"^logistic is better than cnn by 3.9 points "
         r"\(95% interval 3\.\d to 4\.\d; 5 seeds, 10,000 images\)$"),
        ([-0.039, -0.04, -0.038, -0.039, -0.039], {}, "worse",
         r"^cnn is better than logistic by 3.9 points \(95% interval 3\.\d to 4\.\d; "),
        ([0.001, 0.002, -0.001, 0.002, 0.001], {}, "same",
         r"^logistic and cnn are the same within 1.0 point: \+0.1 points "
         r"\(95% interval -0\.\d to \+0\.\d; 5 seeds, 10,000 images\)$"),
        ([0.001, 0.002, -0.001, 0.002, 0.001], {"margin": 0.0025}, "open",
         r"cannot be told apart: .* a new study of 7 to 21 seeds would see a difference of 0.5"),
        ([0.03, -0.01, 0.02, 0.0, 0.03], {"num_networks": 5}, "open",
         r"95% interval -1\.\d to \+3\.\d with all 10 pairs; 5 seeds"),
        ([0.03, -0.01], {"needed": SeedsNeeded(7, None)}, "open", "study of 7 or more seeds"),
        ([0.03, -0.01], {"needed": SeedsNeeded(7, 7)}, "open", "study of 7 seeds"),
        ([0.03, -0.01], {"needed": SeedsNeeded(None, None)}, "open",
         r"10,000 images are too few to see a difference of 0.5 points with any number of seeds$"),
        ([0.03, -0.01], {"needed": SeedsNeeded(None, None, 0.0213)}, "open",
         r"; many seeds would see 2\.1 points; 10,000 images are too few to see a difference of 0"),
    ],
)  # fmt: skip
def test_a_verdict_says_what_its_interval_says(
    of_seeds: list[float], changes: dict[str, Any], outcome: str, words: str
) -> None:
    pair = paired(of_seeds, **changes)
    assert pair.outcome == outcome
    assert re.search(words, pair.verdict), pair.verdict
    assert pair.told_apart == (outcome in ("better", "worse"))
    assert pair.p_adjusted is not None and pair.p_same is not None
    assert pair.told_apart == (pair.p_adjusted < 0.05)
    assert (outcome == "same") == (pair.p_same < 0.05 and not pair.told_apart)


def test_few_discordant_images_are_named() -> None:
    rows = np.zeros((3, 100))
    rows[:, :4] = 1
    pair = replace(paired([0.1, 0.2]), test=paired_tests([rows], 2)[0], num_images=100, needed=None)
    assert pair.outcome == "open"
    assert pair.verdict.endswith("100 images are too few: the two answer 4 of them differently")


def test_no_number_is_written_on_the_wrong_side_of_a_border() -> None:
    assert in_points([0.0003, -0.0004, 0.0, 0.0012], sign=True) == [
        "+0.03",
        "-0.04",
        "+0.0",
        "+0.1",
    ]
    assert in_points([0.0098, 0.01, -0.00996], 0.01) == ["0.98", "1.0", "-0.996"]


def test_no_interval_is_written_with_two_equal_ends() -> None:
    """On many images: 6.0 to 6.0 points, 100.0 to 100.0%."""
    assert in_points([0.06, 0.05998, 0.06002]) == ["6.000", "5.998", "6.002"]
    assert in_points([0.06, 0.0598, 0.0603]) == ["6.00", "5.98", "6.03"]
    assert in_points([0.06, 0.059, 0.061]) == ["6.0", "5.9", "6.1"]
    assert Interval(1.0, 0.99972, 1.0).in_percent(1) == "99.97 to 100.00"
    assert Interval(0.5, 0.4, 0.6).in_percent(1) == "40.0 to 60.0"
    assert Interval(0.5, None, None).in_percent(1) is None
    rows = np.zeros((3, 1_000_000))
    rows[:, :60_000] = 1
    found = paired_tests([rows], 2)[0]
    pair = replace(paired([0.1, 0.2]), test=found, num_images=1_000_000, needed=None)
    lo, hi = re.findall(r"interval (\S+) to ([^;]+);", pair.verdict)[0]
    assert lo != hi, pair.verdict


def test_no_p_value_is_written_on_the_wrong_side_of_the_level() -> None:
    assert p_text(0.0496, 0.05) == "0.0496"
    assert p_text(0.04996, 0.05) == "0.04996"
    assert p_text(0.052, 0.05) == "0.052"
    assert p_text(0.05, 0.05) == "0.050"
    assert p_text(0.0004, 0.05) == "<0.001"
    assert p_text(None, 0.05) == "–"


def test_one_seed_gives_no_verdict(tmp_path: Path, few_digits) -> None:
    result = compare(
        ["mlp", "logistic"], few_digits, seeds=1, out=tmp_path / "s", config=small_config()
    )
    assert "cannot tell chance from a difference" in result.pairs[0].verdict
    assert result.models[0].test_accuracy.lo is None


def test_no_interval_reaches_what_cannot_be(tmp_path: Path, whole: Path) -> None:
    """Two seeds that say the opposite make the widest interval."""
    shutil.copytree(whole, tmp_path / "study")
    runs = open_runs([tmp_path / "study"])
    for run in runs:
        logits = run.load_logits()
        right = torch.nn.functional.one_hot(logits["test_labels"], 10).float()
        sign = 1 if (run.config.model == "cnn") == (run.config.seed == 0) else -1
        run.save_logits(**logits | {"test_logits": sign * right})
        result = run.result()
        assert result is not None
        del result["sha256"]  # of the logits that were
        run.save_result(result)
    (pair,) = compare_runs(runs).pairs
    assert (pair.difference.lo, pair.difference.hi) == (-1, 1)


def test_mistakes(tmp_path: Path, few_digits) -> None:
    terms = small_config()
    with pytest.raises(ValueError, match="name each model once"):
        compare(["cnn", "cnn"], few_digits, seeds=1, out=tmp_path / "a", config=terms)
    with pytest.raises(ValueError, match="seeds=0"):
        compare(["cnn"], few_digits, seeds=0, out=tmp_path / "a", config=terms)
    with pytest.raises(ValueError, match="cnn is named twice; a study needs a different model"):
        run_study([terms, terms], few_digits, tmp_path / "a")
    with pytest.raises(ValueError, match="no runs"):
        compare_runs([])
    with pytest.raises(ValueError, match="workers=0"):
        run_study([terms], few_digits, tmp_path / "a", workers=0)
    runs = run_study([terms], few_digits, tmp_path / "few").runs
    more = run_study([small_config(seed=1)], first_digits(150), tmp_path / "more").runs
    with pytest.raises(ValueError, match="trained on other data"):
        compare_runs([*runs, *more])
    with pytest.raises(ValueError, match="more than one run with seed 0"):
        compare_runs([*runs, *runs])
    logits = runs[0].folder / "logits.npz"
    whole_file = logits.read_bytes()
    logits.write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(ValueError, match=r"logits.npz is damaged"):
        compare_runs(runs)
    logits.unlink()
    with pytest.raises(ValueError, match=r"logits.npz does not exist"):
        compare_runs(runs)
    logits.write_bytes(whole_file)
    (runs[0].folder / "result.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        compare_runs(runs)


def test_the_curve_of_a_run_is_of_its_monitored_part(tmp_path: Path, few_digits) -> None:
    validated, watched, blind = run_study(
        [
            small_config(model="logistic", seed=0),
            small_config(model="logistic", seed=1, val_fraction=0.0, monitor="test"),
            small_config(model="logistic", seed=2, val_fraction=0.0),
        ],
        few_digits,
        tmp_path / "s",
    ).runs
    assert accuracy_curve(validated)[0] == "val"
    assert accuracy_curve(watched)[0] == "test"
    assert accuracy_curve(blind)[0] == "train"
    assert len(accuracy_curve(blind)[1]) == 2


@pytest.mark.slow
def test_entrants_are_named_by_what_tells_them_apart(tmp_path: Path, few_digits) -> None:
    def train(folder: str, **changes) -> list:
        config = small_config(epochs=1, **changes)
        return list(run_study([config], few_digits, tmp_path / folder).runs)

    runs = train("a", recipe="calm") + train(
        "b", recipe="bold", lr=0.01, hflip=True, alternate=True
    )
    names = {model.name for model in compare_runs(runs).models}
    assert names == {"cnn (calm)", "cnn (bold)"}
    (pair,) = compare_runs(runs).pairs
    assert set(pair.terms) >= {"lr: 0.003 against 0.01"} or "lr: 0.01 against 0.003" in pair.terms
    assert any(note.startswith("alternate: ") for note in pair.terms)
    runs = train("c") + train("d", hflip=True) + train("e", model="resnet")
    comparison = compare_runs(runs)
    assert {model.name for model in comparison.models} == {
        "cnn (hflip=True)", "cnn (hflip=False)", "resnet",
    }  # fmt: skip
    over = [p for p in comparison.pairs if "resnet" in (p.a, p.b)]
    assert all(any("over the budget" in note for note in p.terms) for p in over)
    tried = runs[:2] + train("f", tuning_trials=4)
    assert {model.name for model in compare_runs(tried).models} == {
        "cnn (hflip=True)",
        "cnn (hflip=False, tuning_trials=0)",
        "cnn (hflip=False, tuning_trials=4)",
    }
    budgets = train("g", model="sprint", budget=400_000)
    budgets += train("h", model="sprint", tuning_trials=4)
    assert {model.name for model in compare_runs(budgets).models} == {
        "sprint (budget=400000)",
        "sprint (budget=500000)",
    }


@pytest.mark.slow
def test_an_interrupted_study_of_several_workers_stops_and_goes_on(
    tmp_path: Path, few_digits, whole: Path
) -> None:
    """Ctrl-C: the workers write checkpoints and end; the study says how to continue."""
    folder = tmp_path / "study"
    process, children, deadline = start_study(folder, until="config.json")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "the same command continues the study" in told
    assert_gone(children, deadline)
    run_study(configs(threads=1), few_digits, folder, workers=2)
    assert weights(folder) == weights(whole)


def test_one_network_at_two_budgets_is_two_entrants_with_their_own_costs(
    tmp_path: Path, few_digits
) -> None:
    terms = [
        small_config(model="sprint", recipe=f"below-{budget}", budget=budget, epochs=1)
        for budget in (10_000, 30_000)
    ]
    comparison = compare(["sprint"], few_digits, seeds=1, out=tmp_path / "study", config=terms)
    by_budget = {model.runs[0].config.budget: model for model in comparison.models}
    assert by_budget[10_000].name == "sprint (below-10000)"
    for budget, model in by_budget.items():
        assert model.cost.params == model.params < budget
    assert by_budget[10_000].cost.macs < by_budget[30_000].cost.macs


def test_terms_name_the_shared_seeds_and_the_precision_that_auto_chose(
    tmp_path: Path, whole: Path
) -> None:
    """Runs in bfloat16 and in float32 are two networks, also where `precision=auto` chose."""
    shutil.copytree(whole, tmp_path / "study")
    runs = open_runs([tmp_path / "study"])
    (pair,) = compare_runs(runs[:3]).pairs  # cnn has two seeds, logistic one
    assert not any("seeds" in note for note in pair.terms)
    assert pair.num_seeds == 1
    stored = runs[2].folder / "result.json"
    result = json.loads(stored.read_text())
    other = {"fp32": "bf16", "bf16": "fp32"}[result["precision"]]
    stored.write_text(json.dumps(result | {"precision": other}))
    found = compare_runs(open_runs([tmp_path / "study"]))
    assert {model.name for model in found.models} == {
        "cnn (precision=bf16)", "cnn (precision=fp32)", "logistic",
    }  # fmt: skip
    assert {frozenset((p.a, p.b)) for p in found.pairs} == {
        frozenset((name, "logistic")) for name in ("cnn (precision=bf16)", "cnn (precision=fp32)")
    }
    assert any(note.startswith("precision: ") for p in found.pairs for note in p.terms)


def test_a_study_remembers_how_it_was_read(tmp_path: Path, few_digits, cli: Cli) -> None:
    terms = small_config(epochs=1)

    def run(seeds: int, **changes: Any):
        return compare(
            ["mlp", "logistic"], few_digits, seeds=seeds, out=tmp_path / "s", config=terms,
            **changes,
        )  # fmt: skip

    first = run(2)
    assert first.reading.unplanned_looks(2) == ()
    second = run(3, margin=0.03)
    assert second.reading.unplanned_looks(3) == (2,)
    assert second.pairs[0].margin == 0.03
    assert first.reading.other_margins == ()
    assert Reading.of(tmp_path / "s").margins == (0.01, 0.03)
    others = "was read within a margin of 1.0 point before, and is read within 3.0 points now"
    assert others in read_before(second)[1]
    outcome = cli("report", str(tmp_path / "s"), "--margin", "5", "--out", str(tmp_path / "five"))
    assert "within a margin of 1.0 point and 3.0 points before, and" in outcome.out, outcome.err
    page = (tmp_path / "five" / "comparison.html").read_text()
    assert "3.0 points before, and is read within 5.0" in page
    outcome = cli("report", str(tmp_path / "s"), "--out", str(tmp_path / "three"))
    told = "within a margin of 1.0 point and 5.0 points before, and is read within 3.0 points now"
    assert told in outcome.out, outcome.err
    assert Reading.of(tmp_path / "s").looks == (2, 3)
    runs = [str(run.folder) for model in second.models for run in model.runs]
    outcome = cli("report", *runs, "--out", str(tmp_path / "again"))
    assert "This study was read with 2 seeds before." in outcome.out, outcome.err
    with pytest.raises(ValueError, match="was read with 2, 3 seeds already"):
        compare_until_decided(["mlp", "logistic"], few_digits, out=tmp_path / "s", config=terms)
    with pytest.raises(ValueError, match="margin=0 is out of range"):
        run(3, margin=0.0)
    study = tmp_path / "s" / "study.json"
    stored = json.loads(study.read_text())
    del stored["reading"]  # as an earlier version wrote it
    study.write_text(json.dumps(stored))
    assert Reading.of(tmp_path / "s") == Reading()
    study.write_text(json.dumps(stored | {"reading": {"margin": 0.01}}))
    with pytest.raises(ValueError, match=r"study.json is damaged"):
        Reading.of(tmp_path / "s")


def test_a_study_that_is_read_after_it_was_planned_keeps_that_look(
    tmp_path: Path, few_digits, whole: Path
) -> None:
    """With several data sets all are planned first, and hours later the last is begun."""
    out = shutil.copytree(whole, tmp_path / "study")
    planned = plan_study(configs(), few_digits, out)
    record_look(out, 2, 0.05)
    planned.run()
    assert (Reading.of(out).looks, Reading.of(out).margins) == ((2,), (0.05,))


def test_a_study_of_one_recipe_takes_no_second(tmp_path: Path, few_digits, whole: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "study")
    more = [*configs(), *(replace(config, recipe="other", lr=0.001) for config in configs())]
    with pytest.raises(ValueError, match="holds a study of another number of recipes, whose runs"):
        plan_study(more, few_digits, out)


def test_a_report_replaces_no_page_of_another_study(
    tmp_path: Path, few_digits, whole: Path, cli: Cli
) -> None:
    for name in ("one", "other"):
        shutil.copytree(whole, tmp_path / name)
    before = {path: path.read_bytes() for path in Path("other").rglob("*") if path.is_file()}
    for folders in (["one"], ["other/cnn-seed-0", "other/logistic-seed-0"]):
        refused = cli("report", *folders, "--out", "other")
        assert refused.is_one_line("other holds another study, and its page; choose another --out")
    assert all(path.read_bytes() == content for path, content in before.items())
    assert cli("report", "other", "--out", "other").code == 0


def test_networks_in_two_precisions_are_ranked_apart(tmp_path: Path, whole: Path) -> None:
    """One of them stood in the ranking for both, whichever it was."""
    comparisons = []
    for name in ("whole", "mixed"):
        out = shutil.copytree(whole, tmp_path / name)
        if name == "mixed":
            stored = out / "cnn-seed-1" / "result.json"
            result = json.loads(stored.read_text())
            stored.write_text(json.dumps(result | {"precision": "bf16"}))
        comparisons.append(replace(compare_runs(open_runs([out])), data=name))
    assert len(comparisons[1].models) == 3
    ranking = rank_comparisons(comparisons)
    assert set(ranking.networks) == {"cnn (precision=fp32)", "logistic"}
    (mixed,) = (m for m in comparisons[1].models if m.name == "cnn (precision=fp32)")
    row = dict(zip(ranking.networks, ranking.accuracies[1], strict=True))
    assert row["cnn (precision=fp32)"] == mixed.test_accuracy.mean


@pytest.mark.slow
def test_images_in_groups_are_told_beside_the_verdicts(pictures: Path, cli: Cli) -> None:
    command = ["compare", "mlp", "logistic", "epochs=1", "--data", str(pictures), "--seeds", "2"]
    told = "Images of one group are counted as though they had nothing in common."
    grouped = cli(*command, r"group=t\w+/\d/\d", "--out", "grouped")
    assert grouped.code == 0, grouped.err
    assert told in " ".join(grouped.out.split())
    stored = json.loads(Path("grouped/comparison.json").read_text())
    assert [note for note in stored["caveats"] if note.startswith(told)]
    folded = cli(*command[:-2], "--folds", "3", r"group=t\w+/\d/\d", "--out", "folded")
    assert folded.code == 0, folded.err
    assert told not in " ".join(folded.out.split())


def test_a_report_of_a_study_that_is_not_finished_is_a_look_at_it(
    tmp_path: Path, few_digits, cli: Cli
) -> None:
    """So is one of its runs, and one while it is trained; at as many seeds again it is none."""
    terms, out = small_config(epochs=1), tmp_path / "s"
    run_study(make_configs(["mlp", "logistic"], [terms], 2), few_digits, out)
    shutil.rmtree(out / "logistic-seed-1")
    runs = [str(out / f"{name}-seed-0") for name in ("mlp", "logistic")]
    assert cli("report", *runs, "--out", "page").code == 0
    assert Reading.of(out).looks == (1,)

    class Peeking(StudyListener):
        def on_run(self, config, error, done: int, total: int) -> None:
            if done == total - 1:  # of three seeds one network has but two
                assert cli("report", str(out), "--out", "page").code == 1

    found = compare(
        ["mlp", "logistic"], few_digits, seeds=3, out=out, config=terms, listener=Peeking()
    )
    assert found.reading.unplanned_looks(3) == (1, 2)
    said = read_before(found)
    assert len(said) == 1 and "read with 1 and 2 seeds before" in said[0]
    before = (out / "study.json").read_text()
    assert cli("report", str(out), "--out", "page").code == 0
    assert (out / "study.json").read_text() == before
    assert Reading.of(out).looks == (1, 2, 3)


def test_a_study_until_decided_stops_at_the_first_look_that_decides(
    tmp_path: Path, few_digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin of half of all images every pair is soon the same."""
    monkeypatch.setattr("halfmeg.studies.sequential.LOOKS", (2, 3))
    monkeypatch.setattr("halfmeg.studies.reading.LOOKS", (2, 3))
    terms = small_config(epochs=1)
    out = tmp_path / "s"
    found = compare_until_decided(
        ["mlp", "logistic"], few_digits, out=out, config=terms, margin=0.9
    )
    reading = Reading.of(out)
    assert reading.planned == (2, 3)
    assert reading.level == found.reading.level == found.pairs[0].test.level == 0.0125
    assert "98.75% interval" in found.pairs[0].verdict
    assert found.stopped is not None
    assert found.pairs[0].outcome != "open" or "ended with" in found.stopped
    assert found.reading.unplanned_looks(3) == ()


def test_a_study_until_decided_goes_on_where_it_was(
    tmp_path: Path, few_digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it trained the seeds of its second look; and asked again when it has ended."""
    monkeypatch.setattr("halfmeg.studies.sequential.LOOKS", (2, 3))
    monkeypatch.setattr("halfmeg.studies.reading.LOOKS", (2, 3))
    monkeypatch.setattr("halfmeg.studies.sequential.is_futile", lambda *_: False)
    out, names, config = tmp_path / "s", ["mlp", "logistic"], small_config(epochs=1)

    def go_on():
        return compare_until_decided(names, few_digits, out=out, config=config, margin=1e-6)

    looks: list[tuple[int, list[str], Any]] = []

    class Stopped(StudyListener):
        def on_run(self, config, error, done: int, count: int) -> None:
            if config.seed == 2:
                raise KeyboardInterrupt

        def on_measure(self) -> None:
            raise AssertionError("it goes on")

        def on_look(self, seeds: int, undecided, to_come) -> None:
            looks.append((seeds, sorted(undecided[0].split(" − ")), to_come))

    with pytest.raises(KeyboardInterrupt):
        compare_until_decided(
            names, few_digits, out=out, config=config, margin=1e-6, listener=Stopped()
        )
    assert looks == [(2, ["logistic", "mlp"], [3])]
    assert Reading.of(out).looks == (2,)
    found = go_on()
    assert found.stopped == "ended with 3 seeds, the last look"
    assert [len(model.runs) for model in found.models] == [3, 3]
    assert Reading.of(out).looks == (2, 3)
    again = go_on()
    assert again.to_dict()["verdicts"] == found.to_dict()["verdicts"]
    assert again.stopped == found.stopped
    assert read_before(again) == []
    more = compare(names, few_digits, seeds=4, out=out, config=config)
    said = read_before(more)
    assert "read with 4 seeds, which its plan of looks has not counted" in said[0]
    assert "was read within a margin of 0.0001 points before" in said[1]
