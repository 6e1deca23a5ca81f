"""Likely wrong labels, found by answers that did not know them."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli, first_digits, small_config
from PIL import Image

from halfmeg import fit
from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.evaluation.confident import find_wrong_labels
from halfmeg.training.labels import FOLDS, fold_indices, out_of_fold_logits
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.stopping import TrainingInterruptedError

NUM_IMAGES, NUM_FLIPPED = 500, 25


def flipped(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, set[int]]:
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:count]
    changed = labels.clone()
    changed[chosen] = (changed[chosen] + 1 + chosen % 9) % 10
    return changed, set(chosen.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_the_library_finds(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanlab.filter import find_label_issues

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 300)
    logits = rng.normal(size=(300, 4)) + 2 * np.eye(4)[np.where(rng.random(300) < 0.1, 0, labels)]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = find_label_issues(
        labels, probs, filter_by="confident_learning", min_examples_per_class=0,
        return_indices_ranked_by="self_confidence", n_jobs=1,
    )  # fmt: skip
    found, likely = find_wrong_labels(torch.tensor(probs), torch.tensor(labels))
    assert len(found) > 10
    assert found.tolist() == expected.tolist()
    assert (likely != torch.tensor(labels)[found]).all()


def test_a_class_without_images_is_never_likely() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.7]] * 4)
    found, _ = find_wrong_labels(probs, torch.tensor([0, 0, 1, 1]))
    assert all(likely != 2 for likely in find_wrong_labels(probs, torch.tensor([0, 0, 1, 1]))[1])
    assert len(found) <= 4


def test_folds_keep_groups_and_equal_images_together() -> None:
    images = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)
    images[50:] = images[:50]
    train = Dataset(images, torch.arange(100) % 2, ("a", "b"))
    folds = fold_indices(train, 0)
    assert sorted(torch.cat([fold for _, fold in folds]).tolist()) == list(range(100))
    for others, fold in folds:
        assert not set((others % 50).tolist()) & set((fold % 50).tolist())
        assert len(others) + len(fold) == 100
    grouped = replace(train, groups=torch.arange(100) % 50 // 10)
    assert [len((f % 50 // 10).unique()) for _, f in fold_indices(grouped, 0)] == [1] * FOLDS
    # groups that share a picture are one
    for others, fold in fold_indices(replace(train, groups=torch.arange(100)), 0):
        assert not set((others % 50).tolist()) & set((fold % 50).tolist())
    with pytest.raises(ValueError, match="1 image groups are too few; 5 are needed"):
        fold_indices(replace(train, groups=torch.zeros(100, dtype=torch.int64)), 0)


@pytest.mark.parametrize(
    ("labels", "groups", "told"),
    [
        ([0] * 30 + [1], range(31), r"fold \d of 5 would have no training image of the class 'b'"),
        ([0] * 30 + [1] * 9, [*range(30)] + [30] * 9, "no training image of the class 'b'; add"),
        ([0, 1] * 4, range(8), "the largest class has 4 training images; 5 are needed"),
    ],
)
def test_a_class_too_small_for_folds_is_named(
    labels: list[int], groups: Iterable[int], told: str
) -> None:
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), dtype=torch.uint8)
    train = Dataset(images, torch.tensor(labels), ("a", "b"), torch.tensor(list(groups)))
    with pytest.raises(ValueError, match=told) as error:
        fold_indices(train, 0)
    assert "\n" not in str(error.value)


def test_a_class_without_training_images_is_left_out_of_all_folds() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    train = Dataset(images, torch.arange(40) % 2 * 2, ("a", "in the test part alone", "b"))
    assert [len(fold) for _, fold in fold_indices(train, 0)] == [8] * FOLDS


@pytest.mark.slow
def test_flipped_labels_are_found_with_their_precision_and_recall() -> None:
    data = first_digits(NUM_IMAGES)
    labels, wrong = flipped(data.train.labels, NUM_FLIPPED)
    data = replace(data, train=replace(data.train, labels=labels))
    config = small_config(model="logistic", epochs=12, batch_size=50, val_fraction=0.0)
    logits = out_of_fold_logits(config, data, lambda _: Listener())
    found, likely = find_wrong_labels(logits.softmax(1), labels)
    hits = wrong & set(found.tolist())
    assert len(hits) >= 0.7 * NUM_FLIPPED
    assert len(hits) >= 0.6 * len(found)
    right = first_digits(NUM_IMAGES).train.labels[found]
    assert (right == likely).double().mean() > 0.5


@pytest.mark.slow
def test_a_stop_names_no_folder_that_is_gone(few_digits: DataSplits) -> None:
    class Stopping(Listener):
        def on_step(self, report: StepReport) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    config = small_config(model="mlp", epochs=2)
    with pytest.raises(TrainingInterruptedError, match="nothing is kept of it; give the same comm"):
        out_of_fold_logits(config, few_digits, lambda _: Stopping())


def test_the_check_shows_them(pictures: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.copytree(pictures, tmp_path / "photos")
    odd = next((tmp_path / "photos" / "train" / "0").iterdir())
    odd.rename(tmp_path / "photos" / "train" / "1" / "odd.png")
    settings = (
        "model=logistic", "epochs=20", "batch_size=32", "val_fraction=0.2", "optimizer=adamw",
        "lr=0.003", "hflip=false", "crop=0", "label_smoothing=0", "ema=0",
    )  # fmt: skip
    trained = cli("train", "common", *settings, "--data", "photos", "--out", "run", "--json")
    assert trained.code == 0, trained.err
    checked = cli("data", "check", "photos", "--run", "run", "--html", "page.html", "--json")
    found = checked.json["wrong_labels"]
    (row,) = [row for row in found if row["name"].endswith("odd.png")]
    assert (row["label"], row["likely"], row["part"]) == ("1", "0", "train")
    page = (tmp_path / "page.html").read_text()
    assert "Likely wrong labels" in page
    assert "odd.png, train" in page
    readings = (tmp_path / "run" / "test_readings.jsonl").read_text()
    assert "data check: likely wrong labels" in readings
    again = cli("data", "check", "photos", "--html", "page.html")
    assert again.is_one_line("page.html exists already and is not overwritten")
    other = cli("data", "check", "digits", "--run", "run")
    assert other.code == 2
    assert other.is_one_line("run was trained on other data than digits")
    both = cli("data", "check", "photos", "fit=pad", "--run", "run")
    assert both.is_one_line("with --run run the images are read as that run has read them")


def test_gray_and_sizes_that_tell_the_class_are_said(tmp_path: Path, cli: Cli) -> None:
    rng = np.random.default_rng(0)
    for name, mode in (("gray", "L"), ("colour", "RGB")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(tmp_path / f"photos/{name}/{index}.png")
    found = cli("data", "check", "photos", "--json").json
    assert any(
        line.startswith("gray or colour alone: enough to tell") for line in found["giveaways"]
    )
    assert found["sizes"] == [[40, 40, 60]]


def test_a_run_of_other_data_or_none(tmp_path: Path, cli: Cli) -> None:
    assert cli("data", "check", "digits", "--run", "no").is_one_line("no is no run folder")
    run = fit(small_config(epochs=1), first_digits(200), tmp_path / "run")
    (run.folder / "result.json").unlink()
    assert cli("data", "check", "digits", "--run", "run").code == 2
