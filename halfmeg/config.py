"""The frozen configuration of one training run: fields, checks, overrides, JSON."""

from __future__ import annotations

import dataclasses
import json
import numbers
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import msgspec

from halfmeg.errors import did_you_mean
from halfmeg.files import MAX_JSON_BYTES, parse_json, read_limited
from halfmeg.places.place import hand_over, is_place, numbered

OptimizerName = Literal["adam", "adamw", "sgd", "muon"]
ScheduleName = Literal["constant", "step", "exponential", "plateau", "cosine", "onecycle"]
PrecisionName = Literal["auto", "bf16", "fp32"]
MonitorName = Literal["val", "test"]
PadMode = Literal["zero", "reflect"]
BalanceName = Literal["none", "balanced"]
KernelsName = Literal["default", "auto"]
CompileName = bool | Literal["auto"]

BUDGET = 500_000
"""A network fits when it has fewer parameters than this, all of them counted."""

MAX_THREADS = 4_096


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes, but the data and the place it is stored.

    `model`, `loss`, `augment` and `optimizer` take Python of one's own too: a place such as
    `FILE.py:NAME` (`halfmeg.places`), or from Python the object itself.

    Durations are in epochs here and become steps once, before the loop. A value of 0 turns an
    augmentation, the weight average or the validation split off.

    Raises:
        ValueError: a field is out of its range; the message names field, value and range.

    Example:
        >>> from halfmeg import RunConfig
        >>> RunConfig(model="cnn", epochs=25, lr=-1)
        Traceback (most recent call last):
        ValueError: lr=-1 is out of range; allowed: (0, 1000]
    """

    recipe: str = "custom"
    model: str  # a name of `MODELS`, or a place
    budget: int = BUDGET  # networks that scale take the widest shape with fewer parameters
    epochs: int
    batch_size: int = 128
    seed: int = 0
    init: str = ""  # a bundle to start from; its head only where the classes are the same
    # Learning from a trained network too: a bundle, its share of the loss, and the temperature.
    teacher: str = ""
    teacher_share: float = 0.9
    teacher_temperature: float = 4.0
    # The optimizer. `momentum` is for sgd and muon (Nesterov's form), the betas for adam and adamw.
    optimizer: OptimizerName = "adam"
    lr: float = 0.0005
    head_lr: float = 1.0  # muon: the rate of linear layers, as a multiple of lr
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float = 0.9
    weight_decay: float = 0.0  # on weights of convolutions and linear layers only
    # The schedule of the learning rate.
    schedule: ScheduleName = "constant"
    milestones: tuple[int, ...] = ()  # epochs after which `step` multiplies lr by `lr_drop`
    lr_drop: float = 0.1  # the factor of `step` and `plateau`, of `exponential` after each epoch
    patience: int = 10  # epochs without a better monitored loss before `plateau` drops
    warmup: float = 0.3  # share of all steps in which `onecycle` rises; `cosine` uses a tenth
    label_smoothing: float = 0.0
    loss: str = ""  # a place; without one it is cross-entropy
    # Classes of different size: weigh the loss of an image, or draw it, by one over its class's
    # number of training images.
    class_weights: BalanceName = "none"
    sampling: BalanceName = "none"
    ema: float = 0.0  # decay per step of the averaged weights that are evaluated and stored
    # Augmentation, drawn anew for every image.
    rotation: float = 0.0  # degrees; an angle is drawn from [-rotation, rotation]
    crop: int = 0  # pixels of padding on each side before the random crop
    crop_mode: PadMode = "zero"
    brightness: float = 0.0  # a factor is drawn from [1 - x, 1 + x]; so for the next two
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0  # a factor is drawn likewise: 0 smooths, 2 sharpens
    hflip: bool = False
    alternate: bool = False  # hflip mirrors every image in every other epoch, not by chance
    vflip: bool = False
    cutout: int = 0  # side in pixels of the square set to the mean colour
    trivial_augment: bool = False  # one of 14 operations for each image (Müller and Hutter 2021)
    # Images mixed with others of their batch, by shares from Beta(x, x); with both, a coin chooses.
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: str = ""  # a place of a transform that follows all of these
    # Training on smaller images first: their side in pixels, the share of all epochs, and the side
    # in the very first of these epochs if it is another one.
    small_size: int = 0
    small_share: float = 0.5
    first_size: int = 0
    # Then, and after the first epoch, on this share of the images: those of the largest loss.
    hard_share: float = 1.0
    # What is held out, and what the curve of each epoch is measured on.
    val_fraction: float = 0.1
    monitor: MonitorName = "val"
    tuning_trials: int = 0  # settings tried to choose these; for fair comparisons
    # The machine.
    precision: PrecisionName = "auto"
    device: str = "cpu"
    kernels: KernelsName = "default"  # auto: of each convolution the one that is fastest here
    # torch.compile, on a GPU with CUDA graphs; auto: where the run earns its time back
    compile: CompileName = False
    sync_bn: bool = False  # BatchNorm over the images of all processes of a distributed run
    threads: int = 0  # 0: as many as torch chooses
    keep_checkpoints: int = 2  # the newest ones kept; 0 keeps all

    def __post_init__(self) -> None:
        for name in PLACES:
            object.__setattr__(self, name, hand_over(getattr(self, name)))
        for field in dataclasses.fields(self):
            allowed = _literal_values(_TYPES[field.name])
            value = _for_json(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            of_ones_own = field.name in PLACES and is_place(value)
            if allowed and value not in allowed and not of_ones_own:
                raise ValueError(
                    f"{field.name}={value!r} is not known; allowed: {', '.join(allowed)}"
                )
            if not is_of_type(field.name, value):  # config.json could not be read again
                raise ValueError(
                    f"{field.name}={value!r} is not allowed; {describe_type(field.name)}"
                )
        if self.loss and self.class_weights != "none":
            raise ValueError(
                f"class_weights={self.class_weights} is of no use to loss={self.loss}; weigh "
                "the classes in it, or take sampling=balanced"
            )
        if self.compile not in (True, False, "auto"):
            allowed_here = _type_name(CompileName)
            raise ValueError(f"compile={self.compile!r} is not known; allowed: {allowed_here}")
        if self.kernels == "auto" and self.compile:
            raise ValueError(
                "kernels=auto chooses among torch's kernels, which compile replaces; "
                "leave one of them out"
            )
        for name in _RANGES:
            check_range(name, getattr(self, name))
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            not epoch > 0 for epoch in self.milestones
        ):
            raise ValueError(
                f"milestones={self.milestones} is not allowed; "
                "they are epochs above 0 in rising order, as in milestones=75,115"
            )
        if self.schedule == "step" and not self.milestones:
            raise ValueError("schedule=step needs milestones, as in milestones=75,115")
        if self.head_lr != 1 and self.optimizer != "muon":
            raise ValueError(f"head_lr={self.head_lr:g} needs optimizer=muon; otherwise head_lr=1")
        if self.sampling == "balanced" and self.hard_share < 1:
            raise ValueError(
                "sampling=balanced draws images anew, which hard_share below 1 does too; "
                "set hard_share=1, or class_weights=balanced instead"
            )
        if (self.mixup or self.cutmix) and self.hard_share < 1:
            raise ValueError(
                "mixup and cutmix leave no image a loss of its own, by which hard_share below 1 "
                "chooses; set hard_share=1, or both to 0"
            )
        if self.alternate and not self.hflip:
            raise ValueError("alternate=true needs hflip=true")
        if self.first_size and not self.small_size:
            raise ValueError(
                f"first_size={self.first_size} needs small_size above 0; otherwise first_size=0"
            )
        if self.monitor == "val" and self.schedule == "plateau" and self.val_fraction == 0:
            raise ValueError("schedule=plateau needs val_fraction above 0 to watch a loss")

    def override(self, assignments: Sequence[str]) -> Self:
        """Return a copy with `key=value` texts applied, each value typed by its field.

        Raises:
            ValueError: an unknown key or a value that its field does not take.
        """
        changes: dict[str, Any] = {}
        if isinstance(assignments, str):  # a sequence of letters
            raise ValueError(f"{assignments!r} is one text; write it in a list: [{assignments!r}]")
        for text in assignments:
            key, separator, value = text.partition("=")
            if not separator:
                raise ValueError(f"{text!r} is not a setting; write key=value, as in lr=0.001")
            if key not in _TYPES:
                raise ValueError(f"{key!r} is no setting; {_instead_of(key)}")
            changes[key] = _parse(key, value, _TYPES[key])
        return dataclasses.replace(self, **changes)

    def places(self) -> dict[str, str]:
        """Return the settings that name Python of the user's own, and its places."""
        named = {name: getattr(self, name) for name in (*PLACES, "recipe")}
        return {name: place for name, place in named.items() if is_place(place)}

    def small_sizes(self) -> dict[str, int]:
        """Return the settings that make the images of some epochs smaller, and their sides."""
        sides = {"small_size": self.small_size, "first_size": self.first_size}
        return {name: side for name, side in sides.items() if side}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read a config from a JSON file: an object of settings, or a run folder's config.json.

        Raises:
            ValueError: the file cannot be read, or a setting that is not known or allowed.
        """
        path = Path(path)
        try:
            values = parse_json(read_limited(path, MAX_JSON_BYTES), object)
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if isinstance(values, dict) and isinstance(values.get("config"), dict):
            values = values["config"]
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no settings; an object such as {{...}} is expected")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a config from `to_dict`'s output.

        Raises:
            ValueError: an unknown field or one whose type is wrong.
        """
        unknown = sorted(set(values) - set(_TYPES))
        if unknown:
            raise ValueError(f"unknown setting {unknown[0]!r}; {_instead_of(unknown[0])}")
        own = values.get("optimizer")
        if not (isinstance(own, str) and is_place(own)):
            return msgspec.convert(dict(values), cls)
        # the type names torch's optimizers alone; a place is put in afterwards
        rest = {key: value for key, value in values.items() if key != "optimizer"}
        return dataclasses.replace(msgspec.convert(rest, cls), optimizer=own)  # type: ignore[arg-type]


PLACES = ("model", "loss", "augment", "optimizer")
"""Settings that may name Python of the user's own."""

_TYPES: dict[str, Any] = typing.get_type_hints(RunConfig)


def _instead_of(key: str) -> str:
    return f"{did_you_mean(key, _TYPES)}allowed: {', '.join(sorted(_TYPES))}"


# lowest, highest, whether the lowest itself is allowed
_RANGES: dict[str, tuple[float, float, bool]] = {
    "budget": (1, 10_000_000, True),
    "epochs": (1, 100_000, True),
    "batch_size": (1, 1_000_000, True),
    "seed": (0, 2**32 - 1, True),
    "teacher_share": (0, 1, False),
    "teacher_temperature": (0, 1_000, False),
    "lr": (0, 1_000, False),
    "head_lr": (0, 1_000, False),
    "beta1": (0, 0.999999, True),
    "beta2": (0, 0.999999, True),
    "momentum": (0, 0.999999, True),
    "weight_decay": (0, 10, True),
    "lr_drop": (0, 1, False),
    "patience": (1, 100_000, True),
    "warmup": (0, 0.9, False),
    "label_smoothing": (0, 0.9, True),
    "ema": (0, 0.999999, True),
    "rotation": (0, 180, True),
    "crop": (0, 512, True),
    "brightness": (0, 1, True),
    "contrast": (0, 1, True),
    "saturation": (0, 1, True),
    "sharpness": (0, 1, True),
    "cutout": (0, 512, True),
    "mixup": (0, 100, True),
    "cutmix": (0, 100, True),
    "small_size": (0, 512, True),
    "small_share": (0, 1, True),
    "first_size": (0, 512, True),
    "hard_share": (0, 1, False),
    "val_fraction": (0, 0.9, True),
    "tuning_trials": (0, 1_000_000, True),
    "threads": (0, MAX_THREADS, True),
    "keep_checkpoints": (0, 1_000_000, True),
}


def check_range(name: str, value: float) -> None:
    """Check a number against the range of the setting of that name.

    Raises:
        ValueError: it is outside; the message names setting, value and range.
    """
    low, high, inclusive = _RANGES[name]
    above = value >= low if inclusive else value > low
    if not (above and value <= high):
        bracket = "[" if inclusive else "("
        raise ValueError(f"{name}={value} is out of range; allowed: {bracket}{low:g}, {high:g}]")


def tell_apart(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the configs of one call, in which no two objects of one's own have the same name."""
    every = [config.places() for config in configs]
    names = iter(numbered(place for places in every for place in places.values()))
    own: list[dict[str, Any]] = [{setting: next(names) for setting in places} for places in every]
    return [dataclasses.replace(one, **named) for one, named in zip(configs, own, strict=True)]


def as_configs(config: RunConfig | Sequence[RunConfig]) -> list[RunConfig]:
    """Return one config, or each of several.

    Raises:
        TypeError: something else, such as the name of a recipe.
    """
    configs = [config] if isinstance(config, RunConfig | str) else list(config)
    for one in configs:
        if not isinstance(one, RunConfig):
            raise TypeError(f"config={one!r:.60} is no RunConfig; build_recipe makes one")
    return configs


def _for_json(value: Any) -> Any:
    """Return a number of NumPy's as one of Python's and a path as text; all else as it is."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_for_json, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _literal_values(annotation: Any) -> tuple[str, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is tuple:
        return "whole numbers separated by commas"
    return {
        int: "a whole number", float: "a number", bool: "true or false", str: "a text",
        CompileName: "true, false or auto",
    }.get(annotation, " or ".join(_literal_values(annotation)))  # fmt: skip


def is_of_type(key: str, value: Any) -> bool:
    """Return whether a value is of a setting's type, be it out of range or an unknown name."""
    annotation = _TYPES[key]
    if isinstance(value, str):
        return annotation in (str, CompileName) or bool(_literal_values(annotation))
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        return False
    return True


def describe_type(key: str) -> str:
    """Return what a setting takes, for a message."""
    return f"{key} takes {_type_name(_TYPES[key])}"


def _parse(key: str, text: str, annotation: Any) -> Any:
    try:
        if annotation == CompileName and text.lower() == "auto":
            return "auto"
        if annotation in (bool, CompileName):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if get_origin(annotation) is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        if annotation in (int, float):
            return annotation(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key}={text!r} is not allowed; {describe_type(key)}") from None
    return text
