"""`train auto`: it picks by what it has measured, says so, and keeps to its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, first_digits, small_config
from PIL import Image

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import DataSplits
from halfmeg.shipping.export import export
from halfmeg.studies.auto import (
    Choice,
    Trial,
    WithChoice,
    _Candidate,
    _challenges,
    _first,
    _with_epochs,
    choose,
)
from halfmeg.training.fit import fit
from halfmeg.training.listen import Listener
from halfmeg.training.recipes import build_recipe, common


def test_it_trains_and_says_what_it_picked_and_why(
    pictures: Path, tmp_path: Path, cli: Cli
) -> None:
    done = cli("train", "auto", "minutes=0.02", "--data", str(pictures), "--out", "run")
    assert done.code == 0, done.err
    run = Run.open(tmp_path / "run")
    stored = json.loads((run.folder / "auto.json").read_text())
    assert stored["config"] == run.config.to_dict()
    assert run.config.recipe == "auto"
    assert stored["trials"] == []
    assert f"picked {run.config.model} by {stored['recipe']}, 32 pixels" in done.err
    assert "too little time to try others; " in done.err
    assert "s are left, and an epoch takes" in done.err
    assert run.test_readings() == ["final evaluation"]


def test_the_choice_is_written_where_the_training_is_stopped(
    few_digits: DataSplits, tmp_path: Path
) -> None:
    class Stopping(Listener):
        def on_epoch(self, row: MetricsRow) -> None:
            raise KeyboardInterrupt

    config = small_config(model="mlp")
    choice = Choice(config, 32, "common", 1.0, "too little time")
    with pytest.raises(KeyboardInterrupt):
        fit(config, few_digits, tmp_path / "run", listener=WithChoice(choice, Stopping()))
    assert json.loads((tmp_path / "run" / "auto.json").read_text()) == choice.to_dict()


@pytest.fixture
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials be a thousandth of the time that they may take, so that all are made."""
    monkeypatch.setattr("halfmeg.studies.auto.TRIAL_STEPS", 1)
    monkeypatch.setattr("halfmeg.studies.auto.MOST_TRIALS", 1000)


@pytest.mark.usefixtures("short_trials")
def test_with_time_it_tries_others_and_says_each(few_digits: DataSplits) -> None:
    told: list[str] = []
    start = small_config(model="mlp", batch_size=50, tuning_trials=3, hflip=True)
    unread = replace(few_digits, test=replace(few_digits.test, images=None))  # a use would fail
    found = choose(lambda side: unread, start, 300.0, fixed=["model"], tell=told.append)
    assert [(t.model, t.hflip) for t in found.trials] == [("mlp", True), ("mlp", False)]
    assert found.config.tuning_trials == 4
    assert found.reason.startswith("the best of what was tried; ")
    best = max(found.trials, key=lambda t: t.rank)
    assert found.config.hflip == best.hflip
    assert told == [*(t.line() for t in found.trials), f"picked {found.line()}"]
    assert f"{best.accuracy:.1%} of {best.n:,} validation images after" in told[0] + told[1]


@pytest.mark.usefixtures("short_trials")
def test_a_trial_by_plateau_watches_the_images_that_it_is_scored_on(few_digits) -> None:
    start = small_config(model="mlp", batch_size=50, schedule="plateau", val_fraction=0.1)
    found = choose(lambda side: few_digits, start, 300.0, fixed=["model", "schedule"])
    assert found.trials
    assert (found.config.schedule, found.config.monitor) == ("plateau", "val")


def test_what_the_user_gave_stays(pictures: Path, tmp_path: Path, cli: Cli) -> None:
    given = "model=logistic", "batch_size=50", "epochs=2", "hflip=false"
    data = ("--data", str(pictures))
    done = cli("train", "auto", "minutes=1", *given, *data, "--out", "run", "--json")
    assert done.code == 0, done.err
    config = Run.open(tmp_path / "run").config
    assert (config.model, config.batch_size, config.epochs) == ("logistic", 50, 2)
    stored = json.loads((tmp_path / "run" / "auto.json").read_text())
    assert stored["trials"] == []
    assert stored["reason"] == "nothing else to try; 2 epochs as asked for"


def test_a_folder_that_exists_is_told_before_any_trial(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine").mkdir()
    done = cli("train", "auto", "minutes=60", "--data", "digits", "--out", "mine")
    assert done.is_one_line("mine exists already and is not overwritten")
    (tmp_path / "runs" / "auto-digits").mkdir(parents=True)
    done = cli("train", "auto", "minutes=60", "--data", "digits")
    assert done.is_one_line("runs/auto-digits exists already and is not overwritten")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("minutes=soon", "minutes='soon' is not allowed; minutes takes a number"),
        ("minutes=0", "minutes=0 is out of range; allowed: above 0"),
        ("minutes=nan", "minutes=nan is out of range"),
        ("minutes=inf", "minutes=inf is out of range; allowed: above 0, and finite"),
        ("depth=3", "'depth' is no setting"),
    ],
)
def test_mistakes(cli: Cli, setting: str, told: str) -> None:
    done = cli("train", "auto", setting, "--data", "digits")
    assert done.code == 2
    assert done.is_one_line(told), done.err


def test_the_better_one_ranks_first_and_a_tie_goes_by_the_loss() -> None:
    def trial(accuracy: float, loss: float) -> Trial:
        return Trial("common", "cnn", 32, 64, True, accuracy, loss, 3, 100, 20)

    good, better, best = trial(0.9, 0.1), trial(0.92, 0.7), trial(0.92, 0.5)
    assert sorted([best, good, better], key=lambda t: t.rank) == [good, better, best]


def test_epochs_follow_from_the_time_left(few_digits: DataSplits) -> None:
    candidate = _Candidate(small_config(), few_digits)
    candidate.per_image = 0.01  # of 200: 2 seconds an epoch

    def planned(left: float, **settings: Any) -> Choice:
        candidate.config = small_config(**{"val_fraction": 0.0} | settings)
        return _with_epochs(candidate, left, "", (), ())

    assert planned(100).config.epochs == 45
    assert planned(0.1).config.epochs == 1
    assert planned(10_000).config.epochs == 200
    assert "more than 200 are not planned" in planned(10_000).reason
    # A tenth held out makes each epoch shorter, and so do small images and only hard ones.
    assert planned(100, val_fraction=0.1).config.epochs == 50
    cheap = planned(100, small_size=16, small_share=0.5, hard_share=0.5)
    assert cheap.config.epochs > 100
    assert 88 < cheap.seconds <= 90


def test_a_recipe_that_has_no_time_for_some_epochs_is_not_taken() -> None:
    data = first_digits(60)
    start = small_config(batch_size=50)
    assert choose(lambda side: data, start, 0.01).config.model == "cnn"
    assert choose(lambda side: data, start, 30.0).config.model == "sprint"
    small = replace(start, budget=100_000)  # which the start's network, of one size, cannot be
    found = choose(lambda side: data, small, 0.01, fixed={"budget"})
    assert (found.config.model, found.config.budget) == ("sprint", 100_000)
    assert "below 100,000 parameters" in found.line()


def test_the_first_choice_has_the_recipes_settings_but_for_what_was_given(
    few_digits: DataSplits,
) -> None:
    start = small_config(seed=3, lr=0.5, val_fraction=0.2)
    found = _first(start, few_digits, {"lr"})
    sprint = build_recipe("sprint")
    assert (found.model, found.batch_size) == ("sprint", sprint.batch_size)
    assert (found.seed, found.lr, found.val_fraction) == (3, 0.5, 0.2)
    assert _first(start, few_digits, {"model"}) == start


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"hflip": False}, True),
        ({"optimizer": "sgd"}, False),
        ({"mixup": 0.2}, False),
        ({"sampling": "balanced"}, False),
        ({"schedule": "plateau"}, True),
    ],
)
def test_what_was_given_stays_where_the_first_choice_has_no_room_for_it(
    given: dict[str, Any], taken: bool, few_digits: DataSplits
) -> None:
    start = replace(common(), **given)
    found = _first(start, few_digits, set(given))
    assert (found.model == "sprint") == taken
    assert {key: getattr(found, key) for key in given} == given
    assert _Candidate(found, few_digits).per_image > 0


@pytest.mark.usefixtures("short_trials")
def test_networks_that_do_not_fit_what_was_given_are_passed_over(tmp_path: Path) -> None:
    data = first_digits(200)
    start = replace(common(), budget=100_000, batch_size=50)
    choice = choose(lambda side: data, start, 60.0, image_size=32, fixed={"budget", "batch_size"})
    assert choice.config.budget == 100_000
    assert {trial.model for trial in choice.trials} == {"sprint"}
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net(num_classes, budget):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    own = f"{tmp_path}/own.py:net"
    choice = choose(lambda side: data, replace(start, model=own), 60.0, fixed={"model", "budget"})
    assert {trial.model for trial in choice.trials} == {own}
    given = {"alternate", "budget"}
    assert not {name for name, _ in _challenges(start, data, 32, given)} & {"hflip"}


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
GIVEN = ("model", "hflip")


@pytest.mark.usefixtures("short_trials")
def test_larger_images_are_tried_where_there_are_any() -> None:
    load_at = LargeImages()
    found = choose(load_at, OF_ONE_SIZE, 300.0, fixed=GIVEN)
    assert load_at.asked == [32, 48, 64]
    assert [t.image_size for t in found.trials] == [32, 48, 64]


@pytest.fixture(scope="module")
def linear_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained on the digits of `LargeImages`."""
    folder = tmp_path_factory.mktemp("linear")
    run = fit(OF_ONE_SIZE, first_digits(120), folder / "run")
    export(run, first_digits(120), folder / "bundle", allow_loss=True)
    return folder / "bundle"


@pytest.mark.usefixtures("short_trials")
@pytest.mark.parametrize("setting", ["init", "teacher"])
def test_trials_begin_from_a_bundle_that_knows_the_images_and_take_its_size(
    setting: str, linear_bundle: Path
) -> None:
    load_at = LargeImages()
    start = replace(OF_ONE_SIZE, **{setting: str(linear_bundle)}, hflip=True)
    found = choose(load_at, start, 300.0, fixed=["model", setting])
    assert [(t.image_size, t.hflip) for t in found.trials] == [(32, True), (32, False)]
    assert getattr(found.config, setting) == str(linear_bundle)


@pytest.mark.usefixtures("short_trials")
def test_a_bundle_that_knows_test_images_is_refused_before_any_trial(linear_bundle: Path) -> None:
    data = first_digits(120)
    seen = replace(data, test=data.train.subset(slice(0, 50)), fingerprint="other")
    start, told = replace(OF_ONE_SIZE, teacher=str(linear_bundle)), list[str]()
    with pytest.raises(ValueError, match="was trained on 50 of the 50 test images"):
        choose(lambda side: seen, start, 300.0, fixed=["model", "teacher"], tell=told.append)
    assert told == []


def test_a_size_that_was_given_is_the_only_one_tried() -> None:
    load_at = LargeImages()
    assert choose(load_at, OF_ONE_SIZE, 30.0, image_size=48, fixed=GIVEN).image_size == 48
    assert load_at.asked == [48]


def test_where_nothing_can_be_held_out_it_says_so_at_once(tmp_path: Path, cli: Cli) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.effect_noise((32, 32), 80).save(tmp_path / "few" / name / "1.png")
    done = cli("train", "auto", "minutes=5", "--data", "few")
    assert done.is_one_line("none of the 2 training images of few can be held out"), done.err
