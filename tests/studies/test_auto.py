"""`train auto`: it picks by what it has measured, says so, and keeps to its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Cli, first_digits, small_config

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.studies.auto import Choice, Trial, _with_epochs, _with_network, choose
from halfmeg.training.recipes import build_recipe


def trial(model: str, accuracy: float, loss: float = 1.0, seconds: float = 2.0) -> Trial:
    return Trial("common", model, 32, 64, True, seconds, accuracy, loss, 3, 100, 20)


def test_it_trains_and_says_what_it_picked_and_why(
    pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("train", "auto", "minutes=0.02", "--data", str(pictures), "--out", "run")
    assert done.code == 0, done.err
    run = Run.open(tmp_path / "run")
    stored = json.loads((run.folder / "auto.json").read_text())
    assert stored["config"] == run.config.to_dict()
    assert run.config.recipe == "auto"
    first = stored["trials"][0]
    assert (first["model"], first["image_size"], first["batch_size"]) == ("cnn", 32, 128)
    assert f"{first['accuracy']:.1%} of {first['n']:,} validation images" in done.err
    assert f"picked {run.config.model} by " in done.err
    assert "s are left, and an epoch takes" in done.err
    assert run.test_readings() == ["final evaluation"], "no trial has read the test set"
    assert run.config.tuning_trials == 3 + len(stored["trials"]) - 1


def test_what_the_user_gave_stays(tmp_path: Path, cli: Cli) -> None:
    given = "model=logistic", "batch_size=50", "epochs=2", "hflip=false"
    done = cli("train", "auto", "minutes=1", *given, "--data", "digits", "--out", "run", "--json")
    assert done.code == 0, done.err
    config = Run.open(tmp_path / "run").config
    assert (config.model, config.batch_size, config.epochs) == ("logistic", 50, 2)
    stored = json.loads((tmp_path / "run" / "auto.json").read_text())
    assert len(stored["trials"]) == 1
    assert stored["reason"] == "as asked for"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("minutes=soon", "minutes='soon' is not allowed; minutes takes a number"),
        ("minutes=0", "minutes=0 is out of range; allowed: above 0"),
        ("minutes=nan", "minutes=nan is out of range"),
        ("depth=3", "'depth' is no setting"),
    ],
)
def test_mistakes(cli: Cli, setting: str, told: str) -> None:
    done = cli("train", "auto", setting, "--data", "digits")
    assert done.code == 2
    assert done.is_one_line(told), done.err


def test_the_better_one_is_picked_and_a_tie_by_its_loss() -> None:
    choice = Choice(small_config(), 32, [trial("cnn", 0.9), trial("record", 0.92)])
    assert choice.best.model == "record"
    choice.trials += [trial("sprint", 0.92, loss=0.5), trial("resnet20", 0.92, loss=0.7)]
    assert choice.best.model == "sprint"
    assert choice.lines()[-1].startswith("picked sprint by common, 32 pixels, batches of 64, flipped")


def test_epochs_follow_from_the_time_left(few_digits: DataSplits) -> None:
    start = small_config(val_fraction=0.0)

    def planned(left: float, start: RunConfig = start) -> Choice:
        choice = Choice(start, 32, [trial("cnn", 0.9, seconds=2.0)])
        return _with_epochs(choice, few_digits, left, ())

    assert planned(100).config.epochs == 45
    assert planned(0.1).config.epochs == 1
    assert planned(10_000).config.epochs == 200
    assert "more than 200 are not planned" in planned(10_000).reason
    # A tenth held out makes each epoch shorter, and so do small images and only hard ones.
    assert planned(100, replace(start, val_fraction=0.1)).config.epochs == 50
    cheap = replace(start, small_size=16, small_share=0.5, hard_share=0.5)
    found = planned(100, cheap)
    assert found.config.epochs > 100
    assert 80 < found.seconds <= 90


def test_what_cannot_be_trained_for_long_is_not_tried(few_digits: DataSplits) -> None:
    start = small_config(batch_size=50)
    found = choose(lambda side: few_digits, start, 3.0)
    assert found.trials[0].model == "cnn"
    assert "record" not in {trial.model for trial in found.trials}


def test_a_recipe_comes_with_its_settings_but_for_what_was_given() -> None:
    start = small_config(seed=3, lr=0.5, val_fraction=0.2)
    found = _with_network(start, "sprint", {"lr"})
    sprint = build_recipe("sprint")
    assert (found.model, found.batch_size) == ("sprint", sprint.batch_size)
    assert (found.seed, found.lr, found.val_fraction) == (3, 0.5, 0.2)
    assert _with_network(start, "resnet8", ()) == replace(start, model="resnet8")


class LargeImages:
    """Digits that say they are 80 pixels wide, and the sides at which they were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, side: int) -> DataSplits:
        small = first_digits(120)
        own = torch.full((120, 2), 80)
        self.asked.append(side)
        train = replace(small.train, sizes=own)
        if side != 32:
            pixels = torch.nn.functional.interpolate(train.images.float(), (side, side))
            train = replace(train, images=pixels.to(torch.uint8))
        return replace(small, train=train)


OF_ONE_SIZE = small_config(model="logistic", epochs=1, batch_size=60)
GIVEN = ("model", "batch_size", "hflip")


@pytest.mark.slow
def test_larger_images_are_tried_where_there_are_any() -> None:
    load_at = LargeImages()
    found = choose(load_at, OF_ONE_SIZE, 30.0, fixed=GIVEN)
    assert load_at.asked == [32, 48, 64]
    assert [t.image_size for t in found.trials] == [32, 48, 64]


def test_a_size_that_was_given_is_the_only_one_tried() -> None:
    load_at = LargeImages()
    assert choose(load_at, OF_ONE_SIZE, 30.0, image_size=48, fixed=GIVEN).image_size == 48
    assert load_at.asked == [48]
