from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import small_config

from halfmeg.config import RunConfig
from halfmeg.training.recipes import RECIPES, build_recipe


def test_override_types_each_value_by_its_field() -> None:
    config = small_config().override(
        ["lr=1e-3", "epochs=7", "hflip=true", "milestones=3,5", "schedule=step", "model=resnet20"]
    )
    assert (config.lr, config.epochs, config.hflip) == (1e-3, 7, True)
    assert (config.milestones, config.schedule, config.model) == ((3, 5), "step", "resnet20")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("lr=-1", ["lr=-1", "(0, 1000]"]),
        ("lr=nan", ["lr=nan"]),
        ("lr=fast", ["lr='fast'", "a number"]),
        ("epochs=1.5", ["epochs='1.5'", "a whole number"]),
        ("epochs=0", ["epochs=0", "[1, "]),
        ("hflip=maybe", ["hflip='maybe'", "true or false"]),
        ("optimizer=lion", ["optimizer='lion'", "adam, adamw, sgd"]),
        ("milestones=5,3", ["milestones=(5, 3)", "rising"]),
        ("milestones=a", ["milestones='a'", "whole numbers"]),
        ("schedule=step", ["milestones"]),
        ("learning_rate=1", ["'learning_rate'", "lr"]),
        ("lr", ["key=value"]),
        ("val_fraction=1", ["val_fraction=1"]),
        ("seed=-1", ["seed=-1"]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(setting: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        small_config().override([setting])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name: str) -> None:
    config = build_recipe(name)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_stored_config_of_wrong_type_is_refused() -> None:
    stored = small_config().to_dict()
    for key, value in (("epochs", "2"), ("hflip", 1), ("lr", True), ("milestones", 3)):
        with pytest.raises(ValueError, match=key):
            RunConfig.from_dict(stored | {key: value})
    with pytest.raises(ValueError, match="unknown setting 'colour'"):
        RunConfig.from_dict(stored | {"colour": 1})


def test_numbers_of_numpy_and_paths_are_stored_as_python_has_them() -> None:
    config = small_config(
        seed=np.int64(3), lr=np.float32(0.5), init=Path("b"), milestones=np.array([2, 5]).tolist()
    )
    stored = config.to_dict()
    assert [stored[key] for key in ("seed", "lr", "init", "milestones")] == [3, 0.5, "b", [2, 5]]
    assert RunConfig.from_dict(stored) == config
    assert hash(config) == hash(RunConfig.from_dict(stored))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("batch_size", 128 / 2, "batch_size=64.0 is not allowed; batch_size takes a whole number"),
        ("epochs", "5", "epochs='5' is not allowed; epochs takes a whole number"),
        ("lr", None, "lr=None is not allowed; lr takes a number"),
        ("hflip", "no", "hflip='no' is not allowed; hflip takes true or false"),
        ("init", 3, "init=3 is not allowed; init takes a text"),
        ("milestones", (1.5,), "milestones=(1.5,) is not allowed; milestones takes whole numbers"),
        ("compile", 2, "compile=2 is not allowed; compile takes true, false or auto"),
    ],
)
def test_a_setting_of_wrong_type_is_refused_before_anything_is_stored(
    key: str, value: object, told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        small_config(**{key: value})


def test_plateau_needs_a_loss_to_watch() -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        small_config(schedule="plateau", val_fraction=0.0)


def test_an_alternating_flip_needs_a_flip() -> None:
    with pytest.raises(ValueError, match="alternate=true needs hflip=true"):
        small_config(alternate=True)


def test_a_smaller_first_epoch_needs_small_ones() -> None:
    assert small_config(small_size=24, first_size=16).small_sizes() == {
        "small_size": 24, "first_size": 16,
    }  # fmt: skip
    told = "first_size=16 needs small_size above 0; otherwise first_size=0"
    with pytest.raises(ValueError, match=told):
        small_config(first_size=16)
    with pytest.raises(ValueError, match=told):
        build_recipe("sprint").override(["small_size=0"])


def test_a_rate_for_the_head_needs_muon() -> None:
    assert small_config(optimizer="muon", head_lr=5.0).head_lr == 5
    with pytest.raises(ValueError, match="head_lr=5 needs optimizer=muon; otherwise head_lr=1"):
        small_config(optimizer="sgd", head_lr=5.0)


def test_the_published_terms() -> None:
    compare, shared = build_recipe("study-compare"), build_recipe("study-shared")
    assert (compare.epochs, compare.optimizer, compare.lr) == (25, "adam", 0.0005)
    assert (compare.beta1, compare.beta2, compare.batch_size) == (0.9, 0.95, 128)
    assert not (compare.rotation or compare.crop or compare.hflip or compare.vflip)
    assert (shared.epochs, shared.batch_size, shared.optimizer) == (150, 512, "adam")
    assert (shared.beta1, shared.beta2, shared.lr) == (0.9, 0.95, 0.005)
    assert shared.lr * shared.lr_drop ** len(shared.milestones) == pytest.approx(0.000005)
    assert shared.rotation and shared.crop and shared.vflip and shared.hflip
    assert shared.brightness and shared.contrast and shared.saturation
    for config in (compare, shared):
        assert (config.val_fraction, config.monitor) == (0.0, "test")
