"""Recipes: functions that return a config, named as on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfmeg.artifacts.sources import check_outside
from halfmeg.config import RunConfig
from halfmeg.errors import did_you_mean
from halfmeg.files import read_json
from halfmeg.places.load import call, load, settings_of
from halfmeg.places.place import is_place, locate


def study_compare(model: str = "cnn") -> RunConfig:
    """The published comparison's terms: 25 epochs of Adam, no augmentation.

    Trains on all training images and draws the test curve, as published; the last epoch counts.
    Published on the original CIFAR-10: cnn 74.2%, resnet 73.8%. Measured there: 73.40%, 74.25% (the
    mean of 5 seeds).
    """
    return RunConfig(
        recipe="study-compare",
        model=model,
        epochs=25,
        batch_size=128,
        optimizer="adam",
        lr=0.0005,
        beta1=0.9,
        beta2=0.95,
        val_fraction=0.0,
        monitor="test",
    )


def study_shared() -> RunConfig:
    """The published road to 85%: 150 epochs of Adam, falling rate, five augmentations.

    Published: learning rate 0.005 falling by 0.1 to 0.000005, so three drops, batch 512, and the
    names of the augmentations. Not published, chosen here: the epochs of the drops and the
    strengths of the augmentations. Measured on CIFAR-10: 84.07% (n = 1 seed).
    """
    return RunConfig(
        recipe="study-shared",
        model="resnet-shared",
        epochs=150,
        batch_size=512,
        optimizer="adam",
        lr=0.005,
        beta1=0.9,
        beta2=0.95,
        schedule="step",
        milestones=(75, 115, 140),
        rotation=10.0,
        crop=4,
        brightness=0.1,
        contrast=0.1,
        saturation=0.1,
        hflip=True,
        vflip=True,
        val_fraction=0.0,
        monitor="test",
    )


def common(model: str = "cnn") -> RunConfig:
    """One good recipe for every network: 15 epochs of one-cycle Muon, crop and flip.

    Its optimizer was ahead on a validation split with three networks (docs/experiments.md).
    Measured on CIFAR-10: resnet32 90.49%, cnn 81.87% (means of 5 seeds).
    """
    return RunConfig(
        recipe="common",
        model=model,
        epochs=15,
        batch_size=128,
        optimizer="muon",
        lr=0.025,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.1,
        ema=0.99,
        crop=4,
        crop_mode="reflect",
        hflip=True,
        tuning_trials=3,
    )


def shared_85() -> RunConfig:
    """A better road to 85% for `resnet-shared`: 100 epochs of one-cycle SGD, crop, flip, cutout.

    Trains on all training images; nothing but the last epoch's weights is evaluated, once.
    Measured on CIFAR-10 (JPEG): 86.74% (n = 1 seed).
    """
    return RunConfig(
        recipe="shared-85",
        model="resnet-shared",
        epochs=100,
        batch_size=256,
        optimizer="sgd",
        lr=0.2,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.1,
        ema=0.999,
        crop=4,
        crop_mode="reflect",
        hflip=True,
        cutout=8,
        val_fraction=0.0,
        tuning_trials=5,
    )


def he_2015() -> RunConfig:
    """The terms of He et al. 2015, section 4.2, as most repeat them: 200 epochs of SGD in steps.

    Measured on CIFAR-10 (JPEG): resnet32 87.38% after 100 epochs (n = 1 seed).
    """
    return RunConfig(
        recipe="he-2015",
        model="resnet32",
        epochs=200,
        batch_size=128,
        optimizer="sgd",
        lr=0.1,
        weight_decay=1e-4,
        schedule="step",
        milestones=(100, 150),
        crop=4,
        hflip=True,
    )


def sprint() -> RunConfig:
    """The fastest road to 85%: 6 epochs of Muon, two on smaller images, four on the harder ones.

    After Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU": whitening, label
    smoothing of 0.2, a crop of 2, alternating flip, a rate that falls in a straight line.
    Measured on the original CIFAR-10: 89.08% in 46.3 s on two cores with bfloat16 (the mean of 5
    seeds).
    """
    return RunConfig(
        recipe="sprint",
        model="sprint",
        epochs=6,
        batch_size=500,
        optimizer="muon",
        lr=0.24,
        head_lr=5.0,
        momentum=0.6,
        weight_decay=5e-4,
        schedule="onecycle",
        warmup=0.02,
        label_smoothing=0.2,
        crop=2,
        crop_mode="reflect",
        hflip=True,
        alternate=True,
        first_size=16,
        small_size=20,
        small_share=0.34,
        hard_share=0.55,
        val_fraction=0.0,
        tuning_trials=122,
    )


def record() -> RunConfig:
    """The most accurate network under the budget: 220 epochs of Muon.

    Measured on CIFAR-10: 95.27% (n = 1 seed), on a GPU. With `epochs=100 small_size=24
    small_share=0.6` it has 94.29% after 125 minutes on one core with bfloat16 (n = 1 seed).
    """
    return RunConfig(
        recipe="record",
        model="record",
        epochs=220,
        batch_size=500,
        optimizer="muon",
        lr=0.07,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="onecycle",
        warmup=0.1,
        label_smoothing=0.1,
        ema=0.999,
        crop=4,
        crop_mode="reflect",
        hflip=True,
        alternate=True,
        cutout=12,
        val_fraction=0.02,
        tuning_trials=20,
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    "study-compare": study_compare,
    "study-shared": study_shared,
    "shared-85": shared_85,
    "common": common,
    "he-2015": he_2015,
    "sprint": sprint,
    "record": record,
}


def build_recipe(name: str) -> RunConfig:
    """Return the config of a recipe.

    Args:
        name: a key of `RECIPES`; the place of a function that returns a `RunConfig`, such as
            `FILE.py:NAME`; or a JSON file of settings.

    Raises:
        ValueError: the name is not known, or what is wrong with the function or the file, as where
            that of a run names Python within the run folder.

    Example:
        >>> from halfmeg import build_recipe
        >>> config = build_recipe("common").override(["model=resnet20", "epochs=30"])
        >>> config.model, config.epochs, config.optimizer
        ('resnet20', 30, 'muon')
    """
    if is_place(name):
        return _own_recipe(name)
    if name.endswith(".json"):
        config = RunConfig.from_json(name)
        _refuse_python_of_a_run(Path(name), config)
        return replace(config, recipe=Path(name).stem) if config.recipe == "custom" else config
    if name not in RECIPES:
        raise unknown_recipe(name, RECIPES)
    return RECIPES[name]()


def unknown_recipe(name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that is no recipe, with those that are."""
    hint = did_you_mean(name, known := [*known])
    return ValueError(
        f"recipe {name!r} is not known; {hint}allowed: {', '.join(known)}, FILE.py:NAME "
        f"or FILE.json"
    )


def _refuse_python_of_a_run(path: Path, config: RunConfig) -> None:
    """Raise where settings out of a run folder, which others may have made, name Python there."""
    beside = path.parent / "environment.json"
    if beside.exists() or "config" in read_json(path, dict[str, Any]):
        for place in config.places().values():
            try:
                locate(place)
            except ValueError:  # nothing is there to run, and other settings may replace it
                continue
            check_outside(path.parent, place)


def _own_recipe(place: str) -> RunConfig:
    function = load(place)
    config = call(place, function, **settings_of(place, function))
    if not isinstance(config, RunConfig):
        kind = type(config).__name__
        raise ValueError(f"{place} returns a {kind}; a halfmeg.RunConfig is expected")
    return replace(config, recipe=place)


def milestones_note(config: RunConfig) -> str:
    """Return what to say of a rate that drops after the last epoch only, or nothing."""
    if config.schedule != "step" or config.milestones[0] < config.epochs:
        return ""
    note = (
        f"milestones={_joined(config.milestones)}: none is reached in epochs={config.epochs}, so "
        f"the rate stays at {config.lr:g}"
    )
    if config.recipe not in RECIPES:
        return note
    recipe = RECIPES[config.recipe]()
    scaled = {epoch * config.epochs // recipe.epochs for epoch in recipe.milestones} - {0}
    if config.milestones != recipe.milestones or not scaled:
        return note
    return f"{note}; add milestones={_joined(sorted(scaled))} for drops at the same shares"


def _joined(epochs: Iterable[int]) -> str:
    return ",".join(map(str, epochs))


ALWAYS_SHOWN = ("model", "epochs", "batch_size", "optimizer", "lr")


def describe(config: RunConfig) -> dict[str, Any]:
    """Return the main settings, and those that differ from `RunConfig`'s defaults."""
    default = RunConfig(model=config.model, epochs=config.epochs).to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if key in ALWAYS_SHOWN or value != default[key]
    }
