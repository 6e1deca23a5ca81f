"""Studies of folds: the corrected resampled t, its words, and what is trained and stored."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import first_digits, small_config
from scipy import stats

from halfmeg import Run, compare, cross_validate
from halfmeg.data.dataset import build_splits
from halfmeg.data.folds import Folds
from halfmeg.studies.caveats import read_before
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.page import _picture, write_comparison
from halfmeg.studies.plan import chance_of
from halfmeg.studies.resampled import folded_interval, folded_tests
from halfmeg.studies.study import make_configs, open_runs, run_study
from halfmeg.training.fit import fit


def folds_of(count: int, images: int, *, shift: float = 0.1, seed: int = 0) -> list[np.ndarray]:
    """Draw differences of so many images a fold, of -1, 0 and 1."""
    rng = np.random.default_rng(seed)
    p = [0.1 - shift / 2, 0.8, 0.1 + shift / 2]
    return [rng.choice([-1.0, 0.0, 1.0], images, p=p) for _ in range(count)]


def test_the_test_is_that_of_nadeau_and_bengio() -> None:
    """Folds of the same size whose differences vary more than their images explain."""
    table = [np.repeat([1.0, 0.0], [k, 100 - k]) for k in (2, 10, 25, 7, 16)]
    means = np.array([fold.mean() for fold in table])
    ratio = 1 / 4
    error = math.sqrt((1 / 5 + ratio) * means.var(ddof=1))
    (test,) = folded_tests([table], ratio)
    assert test.difference.mean == pytest.approx(means.mean())
    assert test.error == pytest.approx(error)
    assert test.p_value == pytest.approx(2 * stats.t.sf(means.mean() / error, 4))
    half = error * stats.t.isf(0.025, 4)
    assert test.difference.hi == pytest.approx(means.mean() + half)
    interval = folded_interval([1 - fold for fold in table], ratio)
    assert interval.lo == pytest.approx(max(0, 1 - means.mean() - half))


def test_folds_that_agree_by_luck_count_as_their_images() -> None:
    table = [np.repeat([1.0, -1.0, 0.0], [12, 4, 84])] * 5
    (test,) = folded_tests([table], 1 / 4)
    assert test.error == pytest.approx(np.concatenate(table).std() / math.sqrt(500), rel=0.02)
    right = [np.ones(20)] * 5
    interval = folded_interval(right, 1 / 4)
    assert interval.lo is not None and interval.lo < 0.99
    assert interval.hi == 1.0


@pytest.mark.parametrize("pairs", [1, 3])
def test_interval_and_p_values_say_the_same(pairs: int) -> None:
    for seed in range(20):
        tables = [folds_of(5, 60, shift=0.09 * i, seed=seed * 7 + i) for i in range(pairs)]
        for test in folded_tests(tables, 1 / 4):
            d = test.difference
            assert d.lo is not None and d.hi is not None and test.p_adjusted is not None
            assert (d.lo > 0 or d.hi < 0) == (test.p_adjusted < 0.05)
            for margin in (0.02, 0.1, 0.3):
                p = test.p_beyond(margin)
                assert p is not None
                assert (-margin < d.lo and d.hi < margin) == (p < 0.05)


def test_networks_that_never_differ_have_the_exact_bound() -> None:
    for test in folded_tests([[np.zeros(40)] * 5] * 3, 1 / 4):
        assert test.difference.hi == pytest.approx(1 - (0.05 / 3) ** (1 / 200))
        assert test.p_value == 1.0
        assert test.p_beyond(0.5) == pytest.approx(3 * 0.5**200)


def test_a_single_fold_says_nothing() -> None:
    (test,) = folded_tests([[np.ones(10)]], 1 / 4)
    assert (test.difference.lo, test.p_value, test.p_beyond(0.1)) == (None, None, None)
    assert folded_interval([np.ones(10)], 1 / 4).lo is None


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two networks over three folds."""
    out = tmp_path_factory.mktemp("folds") / "study"
    config = small_config(epochs=1, val_fraction=0.1)
    compare(["logistic", "mlp"], first_digits(240), folds=3, out=out, config=config)
    return out


def test_every_image_is_tested_once_by_each_network(studied: Path) -> None:
    runs = open_runs([studied])
    assert [run.folder.name for run in runs] == [
        f"{model}-fold-{fold}" for fold in (1, 2, 3) for model in ("logistic", "mlp")
    ]
    folds = Folds.of(first_digits(240), 3)
    for run in runs:
        fold = int(run.options.fold[0]) - 1
        assert run.config.seed == fold
        assert run.data.fingerprint == folds.fingerprint(fold)
        labels = run.load_logits()["test_labels"]
        assert labels.tolist() == folds.splits(fold).test.labels.tolist()
    found = compare_runs(runs)
    (pair,) = found.pairs
    total = len(folds.members)
    assert (found.folds, found.num_test, pair.num_images, pair.num_seeds) == (3, total, total, 3)
    assert f"3 folds, {total:,} images" in pair.verdict
    right = [run.load_logits() for run in runs if run.config.model == "mlp"]
    hits = sum(int((r["test_logits"].argmax(1) == r["test_labels"]).sum()) for r in right)
    (mlp,) = (model for model in found.models if model.name == "mlp")
    assert mlp.test_accuracy.mean == pytest.approx(hits / total)
    assert list(mlp.per_seed) == [1, 2, 3]
    assert json.loads((studied / "study.json").read_text())["folds"] == 3


@pytest.mark.slow
def test_the_page_says_what_folds_cover(studied: Path, tmp_path: Path) -> None:
    found = compare_runs(open_runs([studied]))
    folds = Folds.of(first_digits(240), 3)
    page, _ = write_comparison(found, tmp_path / "page", folds)
    text = page.read_text()
    assert "Nadeau and Bengio 2003" in text
    assert "other training and test images of the same kind" in text
    assert "are divided into 3 folds" in text.replace("\n", " ")
    assert "seed by seed" not in text
    assert text.count("data:image/png;base64,") >= len(found.disagreements) > 0
    markdown = (tmp_path / "page" / "comparison.md").read_text()
    assert "Folds vary the training images" in markdown
    for item in found.disagreements:
        assert item.label == folds.whole.classes[int(folds.whole.test.labels[item.index])]


def test_what_counts_classes_alike_is_of_all_folds_together(studied: Path) -> None:
    """The mean over folds would leave a class out wherever a fold has none of it."""
    for model in compare_runs(open_runs([studied])).models:
        recalls = [recall for recall in model.per_class if recall is not None]
        assert len(recalls) == 10
        assert model.balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-12)


def test_folds_that_are_missing_shift_no_pictures(studied: Path, tmp_path: Path) -> None:
    runs = [run for run in open_runs([studied]) if run.options.fold != "1/3"]
    found, folds = compare_runs(runs), Folds.of(first_digits(240), 3)
    tested = folds.tested([1, 2])
    assert len(tested) == found.num_test < len(folds.members)
    page, _ = write_comparison(found, tmp_path / "page", folds)
    text = " ".join(page.read_text().split())
    assert f"Only folds 2 and 3 with {found.num_test:,} images are tested" in text
    assert found.disagreements
    for item in found.disagreements:
        assert item.label == folds.whole.classes[int(tested.labels[item.index])]
        assert _picture(tested.images[item.index].numpy()) in text


def test_more_folds_are_advised_as_long_as_they_see_more(studied: Path) -> None:
    (pair,) = compare_runs(open_runs([studied])).pairs
    told = "240 images are too few for 3 folds; a new study of 10 folds would see smaller"
    assert replace(pair, num_images=240).outlook.startswith(told)
    assert replace(pair, num_seeds=10).outlook.endswith("would settle it, more folds hardly")


def test_folds_are_not_told_of_looks_by_seeds(studied: Path) -> None:
    found = compare_runs(open_runs([studied]))
    assert read_before(replace(found, reading=replace(found.reading, looks=(2,)))) == []


def test_one_fold_with_several_seeds_is_refused(tmp_path: Path) -> None:
    fold = Folds.of(first_digits(240), 3).splits(1)
    configs = make_configs(["mlp"], [small_config(epochs=1)], 2)
    with pytest.raises(ValueError, match="fold=2/3 is one fold, of which several seeds"):
        run_study(configs, fold, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_second_call_trains_what_is_missing_and_no_other_folds(
    studied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = small_config(epochs=1, val_fraction=0.1), first_digits(240)
    before = {p: p.stat().st_mtime_ns for p in studied.glob("*/result.json")}
    again = compare(["logistic", "mlp"], data, folds=3, out=studied, config=config)
    assert again.pairs[0].num_seeds == 3
    assert {p: p.stat().st_mtime_ns for p in studied.glob("*/result.json")} == before
    with pytest.raises(ValueError, match="other settings or data"):
        compare(["logistic", "mlp"], data, folds=4, out=studied, config=config)
    with pytest.raises(ValueError, match="runs that this study has not"):
        compare(["logistic", "mlp"], data, seeds=3, out=studied, config=config)


def test_one_network_has_its_accuracy_over_all_folds(tmp_path: Path) -> None:
    config = small_config(model="logistic", epochs=1, val_fraction=0.0)
    found = cross_validate(config, first_digits(240), folds=2, out=tmp_path / "one")
    (model,) = found.models
    assert found.pairs == ()
    assert model.test_accuracy.lo is not None
    assert model.no_temperature is not None  # no images were held out


def test_mistakes_are_told_before_anything_is_trained(tmp_path: Path, studied: Path) -> None:
    config, data = small_config(epochs=1), first_digits(240)
    for ways in ({}, {"seeds": 2, "folds": 3}):
        with pytest.raises(ValueError, match="give one of the two"):
            compare(["logistic", "mlp"], data, out=tmp_path / "no", config=config, **ways)
    with pytest.raises(ValueError, match="folds=1 is out of range"):
        compare(["logistic", "mlp"], data, folds=1, out=tmp_path / "no", config=config)
    configs, folds = make_configs(["mlp"], [config], 3), Folds.of(data, 3)
    with pytest.raises(ValueError, match="exclude each other"):
        run_study(configs, folds, tmp_path / "no", stack=True)
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="the pilot has folds"):
        chance_of(compare_runs(open_runs([studied])))


def test_folds_of_another_division_are_not_compared(tmp_path: Path, studied: Path) -> None:
    config = small_config(model="logistic", epochs=1, val_fraction=0.1)
    cross_validate(config, first_digits(240), folds=2, out=tmp_path / "two")
    (three, *_), (two, *_) = open_runs([studied]), open_runs([tmp_path / "two"])
    with pytest.raises(ValueError, match="other folds than"):
        compare_runs([three, two])
    with pytest.raises(ValueError, match="more than one run with fold 1"):
        compare_runs([three, Run.open(three.folder)])


def test_folds_of_images_whose_labels_were_changed_are_other_folds(
    tmp_path: Path, studied: Path
) -> None:
    """Fold 3 would test images that fold 1 has tested, and miss others."""
    data = first_digits(240)
    labels = data.train.labels.clone()
    labels[:2] = labels[:2].flip(0)
    changed = build_splits(data.name, replace(data.train, labels=labels), data.test)
    config = small_config(model="logistic", epochs=1, val_fraction=0.1, seed=2)
    own = fit(config, Folds.of(changed, 3).splits(2), tmp_path / "own")
    first = Run.open(studied / "logistic-fold-1")
    with pytest.raises(ValueError, match=r"own was trained on other data than .*logistic-fold-1"):
        compare_runs([first, own])
    old = shutil.copytree(first.folder, tmp_path / "old")
    stored = json.loads((old / "config.json").read_text())
    assert stored["data"].pop("folds_of") == data.fingerprint
    (old / "config.json").write_text(json.dumps(stored))
    second = Run.open(studied / "logistic-fold-2")
    assert compare_runs([Run.open(old), second]).folds == 3  # an old run does not say
