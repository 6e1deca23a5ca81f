from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import small_config

from halfmeg.compare import compare, compare_runs, student_interval
from halfmeg.report import accuracy_curve
from halfmeg.study import run_study
from halfmeg.train import SilentListener


def configs(seeds: int = 2, **changes):
    return [
        small_config(model=model, seed=seed, epochs=2, batch_size=64, **changes)
        for seed in range(seeds)
        for model in ("cnn", "resnet-linear")
    ]


class StopAt(SilentListener):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch(self, row) -> None:
        if row["epoch"] == self.epoch:
            raise KeyboardInterrupt


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/weights.safetensors")}


def test_an_interrupted_study_trains_only_what_is_missing(tmp_path: Path, few_digits) -> None:
    whole = run_study(configs(), few_digits, tmp_path / "whole")
    assert [run.folder.name for run in whole] == [
        "cnn-seed-0", "resnet-linear-seed-0", "cnn-seed-1", "resnet-linear-seed-1",
    ]  # fmt: skip

    def stop_third(config):
        return StopAt(1) if (config.model, config.seed) == ("cnn", 1) else None

    with pytest.raises(KeyboardInterrupt):
        run_study(configs(), few_digits, tmp_path / "cut", listener=stop_third)
    first = tmp_path / "cut" / "cnn-seed-0" / "weights.safetensors"
    stamp = first.stat().st_mtime_ns
    run_study(configs(), few_digits, tmp_path / "cut")
    assert first.stat().st_mtime_ns == stamp
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    described = json.loads((tmp_path / "cut" / "study.json").read_text())
    assert described["data"] == few_digits.fingerprint
    assert len(described["runs"]) == 4


def test_a_seed_pairs_the_runs_of_all_models(tmp_path: Path, few_digits) -> None:
    """Runs of one seed share split and order, whatever the network."""
    import numpy as np

    runs = run_study(configs(1), few_digits, tmp_path / "study")
    labels = [np.load(run.folder / "logits.npz")["val_labels"] for run in runs]
    assert np.array_equal(labels[0], labels[1])


def test_a_study_folder_holds_one_study(tmp_path: Path, few_digits) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not to be touched")
    with pytest.raises(ValueError, match="exists and is no study"):
        run_study(configs(1), few_digits, tmp_path / "mine")
    run_study(configs(1), few_digits, tmp_path / "study")
    with pytest.raises(ValueError, match="trained with other settings or data"):
        run_study(configs(1, hflip=True), few_digits, tmp_path / "study")
    with pytest.raises(ValueError, match="different model or seed"):
        run_study([*configs(1), *configs(1)], few_digits, tmp_path / "twice")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write to"):
        run_study(configs(1), few_digits, tmp_path / "file" / "study")


def test_student_interval_equals_scipy() -> None:
    from scipy import stats

    values = [0.71, 0.74, 0.73, 0.72]
    interval = student_interval(values)
    lo, hi = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (interval.lo, interval.hi) == (pytest.approx(lo), pytest.approx(hi))
    assert student_interval([0.5]).to_dict() == {"mean": 0.5, "lo": None, "hi": None}
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])


def test_compare_sorts_models_and_words_its_verdicts(tmp_path: Path, few_digits) -> None:
    terms = small_config(epochs=6, batch_size=32)
    result = compare(
        ["resnet-linear", "cnn"], few_digits, seeds=3, out=tmp_path / "study", config=terms
    )
    accuracies = [model.test_accuracy.mean for model in result.models]
    assert accuracies == sorted(accuracies, reverse=True)
    assert {model.name: len(model.per_seed) for model in result.models} == {
        "cnn": 3, "resnet-linear": 3,
    }  # fmt: skip
    (pair,) = result.pairs
    best, second = result.models
    differences = [best.per_seed[seed] - second.per_seed[seed] for seed in range(3)]
    assert pair.difference == student_interval(differences)
    told_apart = (pair.difference.lo or 0) > 0
    assert ("is better than" in pair.verdict) == told_apart
    assert ("cannot be told apart" in pair.verdict) != told_apart
    assert "3 seeds" in pair.verdict
    assert result.num_test == 360
    stored = result.to_dict()["models"][0]
    assert {"name", "params", "macs", "test_accuracy", "per_seed"} <= stored.keys()


def test_one_seed_gives_no_verdict(tmp_path: Path, few_digits) -> None:
    result = compare(
        ["cnn", "resnet-linear"], few_digits, seeds=1, out=tmp_path / "s", config=small_config()
    )
    assert "one seed cannot tell" in result.pairs[0].verdict
    assert result.models[0].test_accuracy.lo is None


def test_mistakes(tmp_path: Path, few_digits, digits) -> None:
    terms = small_config()
    with pytest.raises(ValueError, match="name each model once"):
        compare(["cnn", "cnn"], few_digits, seeds=1, out=tmp_path / "a", config=terms)
    with pytest.raises(ValueError, match="seeds=0"):
        compare(["cnn"], few_digits, seeds=0, out=tmp_path / "a", config=terms)
    with pytest.raises(ValueError, match="no runs"):
        compare_runs([])
    runs = run_study([terms], few_digits, tmp_path / "few")
    more = run_study([small_config(seed=1)], digits, tmp_path / "more")
    with pytest.raises(ValueError, match="trained on other data"):
        compare_runs([*runs, *more])
    (runs[0].folder / "result.json").unlink()
    with pytest.raises(ValueError, match="has not finished"):
        compare_runs(runs)


def test_the_curve_of_a_run_is_of_its_monitored_part(tmp_path: Path, few_digits) -> None:
    validated, watched, blind = run_study(
        [
            small_config(seed=0),
            small_config(seed=1, val_fraction=0.0, monitor="test"),
            small_config(seed=2, val_fraction=0.0),
        ],
        few_digits,
        tmp_path / "s",
    )
    assert accuracy_curve(validated)[0] == "val"
    assert accuracy_curve(watched)[0] == "test"
    assert accuracy_curve(blind)[0] == "train"
    assert len(accuracy_curve(blind)[1]) == 2
