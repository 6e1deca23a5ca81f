"""The space of a search: the networks and recipes that it draws from, as one table.

A table is a dict. Its keys are `network` and settings of a run; its values say what may be drawn:

| value | meaning |
|---|---|
| `[128, 64]` | one of these; a search begins with the first |
| `range(8, 65, 8)` | a whole number of the range |
| `(0.01, 0.15)` | a number between the two, on a logarithmic scale where the first is above 0 |
| `{"sgd": {"lr": …}, …}` | one of the keys, with settings of its own behind it |
| anything else | always this |

The settings of a network are its parameters; `{}` takes the values that they declare
(`halfmeg.places.settings`). A fraction stands for a share: of the epochs that the time holds
in `epochs`, of the images' side in `crop`, `cutout` and `small_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from halfmeg.config import RunConfig, describe_type, is_of_type
from halfmeg.errors import did_you_mean
from halfmeg.networks.table import FAMILIES, find_entry
from halfmeg.places.load import load, takes
from halfmeg.places.place import check_in_file, is_place
from halfmeg.places.settings import Value, declared_values, split_settings, with_settings

SPACE: dict[str, Any] = {
    "network": {name: {} for name in FAMILIES} | {"residual": {"depth": [3, 1, 2, 4]}},
    "optimizer": {
        "muon": {"lr": (0.01, 0.15)},
        "sgd": {"lr": (0.02, 0.5)},
        "adamw": {"lr": (0.001, 0.02)},
    },
    "epochs": 1.0,
    "batch_size": [128, 64, 256],
    "schedule": "onecycle",
    "weight_decay": [5e-4, 0.0, 5e-3],
    "label_smoothing": [0.1, 0.0],
    "ema": 0.99,
    "small_size": [0.0, 0.75],
    "crop": [0.125, 0.0, 0.0625],
    "crop_mode": "reflect",
    "cutout": [0.0, 0.25, 0.375],
    "hflip": [True, False],
    "vflip": [False, True],
    "rotation": [0.0, 10.0],
    "brightness": [0.0, 0.2],
    "trivial_augment": [False, True],
}

NETWORK = "network"
MOST = 1e15  # of a number; more is a mistake, and no float for some
SHARES = ("epochs", "crop", "cutout", "small_size")
NEEDS: dict[str, dict[str, Any]] = {
    "alternate": {"hflip": True}, "head_lr": {"optimizer": "muon"}, "first_size": {"small_size": 1},
}  # fmt: skip
RESERVED = (
    "recipe", "model", "budget", "seed", "init", "val_fraction", "monitor", "tuning_trials",
    "device", "threads", "keep_checkpoints", "kernels", "compile", "sync_bn",
)  # fmt: skip
"""Settings of a run that the search itself decides."""

ALLOWED = [NETWORK, *(f.name for f in fields(RunConfig) if f.name not in RESERVED)]
"""Keys of a table."""

Values = Sequence[Value] | range | tuple[float, float]
Suggest = Callable[[str, Values], Value]


@dataclass(frozen=True)
class Dimension:
    """One setting: what it may be.

    Attributes:
        name: of the setting; behind a choice's own name and a dot where it belongs to that.
        values: a list, a range, or lowest and highest; one value where nothing is drawn.
        parent, choice: it is there only where `parent` is `choice`; empty for always.
    """

    name: str
    values: Values
    parent: str = ""
    choice: str = ""

    @property
    def setting(self) -> str:
        """The setting's name alone."""
        return self.name.removeprefix(f"{self.choice}.")

    @property
    def is_drawn(self) -> bool:
        """Whether there is more than one value."""
        return len(self.values) > 1

    @property
    def of_recipe(self) -> bool:
        """Whether it is a setting of the run, and none of the network."""
        return NETWORK not in (self.name, self.parent)

    def at(self, share: float) -> Value:
        """Return the value at a share of the way from the lowest to the highest."""
        if isinstance(self.values, tuple):
            low, high = self.values
            way = low * (high / low) ** share if low > 0 else low + share * (high - low)
            return float(min(high, way))  # rounding may lead past it
        ordered = self.values if isinstance(self.values, range) else _sorted(self.values)
        return ordered[round(share * (len(ordered) - 1))]

    def first(self) -> Value:
        """Return the value that a search begins with."""
        return self.values[0] if isinstance(self.values, list) else self.at(0.5)

    def describe(self) -> str:
        """Return the values as text."""
        if isinstance(self.values, range) and self.is_drawn:
            return f"{self.values[0]} to {self.values[-1]} by {self.values.step}"
        if isinstance(self.values, tuple):
            return f"{self.values[0]:g} to {self.values[1]:g}"
        return ", ".join(map(_text, self.values))


@dataclass(frozen=True)
class Space:
    """A table, checked: its dimensions, parents before their children."""

    dimensions: tuple[Dimension, ...]

    @property
    def networks(self) -> list[str]:
        """The families and places that it draws from."""
        return [str(v) for d in self.dimensions if d.name == NETWORK for v in d.values]

    @property
    def epochs_are_shares(self) -> bool:
        """Whether a run has as many epochs as the time allows, or a share of them."""
        given = [d for d in self.dimensions if d.setting == "epochs"]
        return all(isinstance(value, float) for d in given for value in d.values)

    def draw(self, suggest: Suggest) -> dict[str, Value]:
        """Draw one candidate; `suggest` is asked for each dimension that it has."""
        drawn: dict[str, Value] = {}
        for d in self.dimensions:
            if not d.parent or drawn[d.parent] == d.choice:
                drawn[d.name] = suggest(d.name, d.values) if d.is_drawn else d.values[0]
        return drawn

    def of_network(self, network: str, pick: Callable[[Dimension], Value]) -> dict[str, Value]:
        """Return the candidate of a network with those values of its parameters that are picked.

        The recipe is the one that a search begins with.
        """
        by_name = {dimension.name: dimension for dimension in self.dimensions}

        def suggest(name: str, values: Values) -> Value:
            dimension = by_name[name]
            if name == NETWORK:
                return network
            return dimension.first() if dimension.of_recipe else pick(dimension)

        return self.draw(suggest)

    def scaled(self, network: str, share: float) -> dict[str, Value]:
        """Return the candidate of a network at a share of the way from smallest to largest."""
        return self.of_network(network, lambda dimension: _towards(dimension, share))

    def model(self, drawn: Mapping[str, Value]) -> str:
        """Return the drawn network, as a config names it."""
        own = [d for d in self.dimensions if d.parent == NETWORK and d.name in drawn]
        return with_settings(str(drawn[NETWORK]), {d.setting: drawn[d.name] for d in own})

    def config(
        self, drawn: Mapping[str, Value], *, most_epochs: int, side: int, **others: Any
    ) -> RunConfig:
        """Return the run of a candidate.

        Args:
            drawn: what `draw` returned.
            most_epochs: that the time allows.
            side: the shorter one of the images, in pixels.
            others: settings that the search decides.

        Raises:
            ValueError: settings that exclude each other.
        """
        settings: dict[str, Any] = {
            d.setting: drawn[d.name] for d in self.dimensions if d.of_recipe and d.name in drawn
        }
        for name in SHARES:
            if isinstance(settings.get(name, 0), float):
                of_epochs = name == "epochs"
                share = round(settings[name] * (most_epochs if of_epochs else side))
                settings[name] = max(1, share) if of_epochs else share
        # Time decides how many epochs a candidate has, so each is trained in the fastest way.
        usual: dict[str, Any] = {"epochs": most_epochs, "kernels": "auto"}
        return RunConfig(**usual | settings | others, model=self.model(drawn))

    def rows(self) -> list[tuple[str, str]]:
        """Return the table for a reader: each setting and its values."""
        return [(dimension.name, dimension.describe()) for dimension in self.dimensions]


def load_space(place: str) -> dict[str, Any]:
    """Return the table at a place such as `FILE.py:NAME`.

    Raises:
        ValueError: there is none.
    """
    if not is_place(place):
        raise ValueError(f"--space {place} is no place; write FILE.py:NAME")
    table = load(place)
    if not isinstance(table, dict):
        raise ValueError(f"{place} is a {type(table).__name__}; a dict is expected, a search space")
    return table


def build_space(
    table: Mapping[str, Any], networks: Sequence[str] = (), settings: Sequence[str] = ()
) -> Space:
    """Check a table and return its space.

    Args:
        table: as this module says.
        networks: take these instead of the table's: families, names, or places.
        settings: `key=value`, fixed instead of drawn.

    Raises:
        ValueError: a network or setting that is not known, or values that are not allowed.
    """
    table = _with_given(table, networks, settings)
    for name in table:
        if name in RESERVED:
            told = "which is not known there: the search decides it; leave it out"
            raise ValueError(f"the space has {name!r}, {told}")
        if name not in ALLOWED:
            raise ValueError(_unknown("the space has", name, ALLOWED))
    if NETWORK not in table:
        raise ValueError(f"the space has no {NETWORK!r}; add it, as in SPACE of halfmeg.search")
    space = Space(tuple(d for name, values in table.items() for d in _dimensions(name, values)))
    parents: dict[str, str] = {}
    for d in space.dimensions:
        if d.of_recipe and parents.setdefault(d.setting, d.parent) != d.parent:
            raise ValueError(f"the space gives {d.setting} twice, at two places; leave one out")
    _check_settings(space)
    return space


def _with_given(
    table: Mapping[str, Any], networks: Sequence[str], settings: Sequence[str]
) -> dict[str, Any]:
    """Return a table with networks and settings in place of its own; what is nested there stays."""
    found = dict(table)
    if networks:
        own = table.get(NETWORK)
        known = own if isinstance(own, Mapping) else {}
        found[NETWORK] = {name: known.get(name, {}) for name in networks}
    given = RunConfig(model="cnn", epochs=1).override(settings)
    for key in (text.partition("=")[0] for text in settings):
        if key in RESERVED:
            raise ValueError(f"{key} is not for a search; leave it out, or see --seed and --params")
        value, before = getattr(given, key), found.get(key)
        if isinstance(value, tuple):
            raise ValueError(f"{key} is not for a search: epochs differ; choose another schedule")
        nested = before.get(value) if isinstance(before, Mapping) else None
        found = {n: v if n == NETWORK else _without(key, v) for n, v in found.items()}
        found[key] = value if nested is None else {value: nested}
    return found


def _dimensions(name: str, values: Any) -> Iterator[Dimension]:
    """Yield the dimension of a key of the table, then those of what stands behind its choices."""
    if name == NETWORK and not isinstance(values, Mapping):
        names = values if isinstance(values, list) else [values]
        values = {str(named): {} for named in names}
    if not isinstance(values, Mapping):
        yield Dimension(name, _checked(name, values))
        return
    if not values:
        raise ValueError(f"the space gives {name} nothing to choose from")
    yield Dimension(name, _checked(name, list(values)))
    for choice, nested in values.items():
        if not isinstance(nested, Mapping):
            raise ValueError(f"the space gives {choice} a {type(nested).__name__}, not a dict")
        inner = _of_network(str(choice), nested) if name == NETWORK else nested
        for key, its in inner.items():
            if name != NETWORK and key not in ALLOWED:
                raise ValueError(_unknown(f"{choice} in the space has", key, ALLOWED))
            own_name = f"{choice}.{key}"
            yield Dimension(own_name, _checked(own_name, its), name, choice)


def _without(key: str, values: Any) -> Any:
    """Return the values of a setting without those of another one behind its choices."""
    if not isinstance(values, Mapping):
        return values
    return {
        choice: {k: v for k, v in nested.items() if k != key}
        if isinstance(nested, Mapping) else nested
        for choice, nested in values.items()
    }  # fmt: skip


def _of_network(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a network's parameters: those that it declares, or others."""
    head, settings = split_settings(name)
    if settings:
        raise ValueError(f"{name} has its settings already; a space takes {head} and a dict")
    if is_place(name):
        check_in_file([name], "a search that goes on later")
        build = load(name)
        if not callable(build):
            raise ValueError(f"{name} is a {type(build).__name__}; a class or function is expected")
    else:
        build = find_entry(name)[0].build
    declared = declared_values(build)
    for key in given:
        if not is_place(name) and name not in FAMILIES:
            raise ValueError(f"{name} comes as it is; settings are for {', '.join(FAMILIES)}")
        if not takes(build, key):
            raise ValueError(_unknown(f"{name} in the space has", key, list(declared)))
    return declared | dict(given)


def _checked(name: str, values: Any) -> Values:
    """Return the values of a dimension as it takes them.

    Raises:
        ValueError: they are none of what stands at the top of this file.
    """
    if isinstance(values, str | int | float | bool):
        values = [values]
    if isinstance(values, range) and values and abs(values[0]) + abs(values[-1]) < MOST:
        return values if values.step > 0 else values[::-1]
    if isinstance(values, tuple):
        numbers = [v for v in values if isinstance(v, int | float) and abs(v) < MOST]
        if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(f"{name}={values!r} in the space is no pair (lowest, highest)")
        return float(values[0]), float(values[1])
    if not isinstance(values, list):
        raise ValueError(
            f"{name}={values!r} in the space is not allowed; write a list, a range, a pair "
            "(lowest, highest) or a dict of choices"
        )
    if not values or any(not isinstance(v, str | int | float | bool) for v in values):
        raise ValueError(f"{name}={values!r} in the space is no list of numbers or names")
    if len({repr(v) for v in values}) < len(values):
        raise ValueError(f"{name}={values!r} in the space names a value twice")
    return values


def _check_settings(space: Space) -> None:
    """Try the ends of every setting of the recipe, each by itself."""
    base = RunConfig(model="cnn", epochs=1).to_dict()
    tried = [
        (d.setting, value)
        for d in space.dimensions if d.of_recipe
        for value in (d.values if isinstance(d.values, list) else (d.at(0), d.at(1)))
    ]  # fmt: skip
    for name, value in tried:
        if name in SHARES and isinstance(value, float):
            if not (0 < value <= 1 or (value == 0 and name != "epochs")):
                raise ValueError(f"{name}={value} in the space is no share; allowed: 0 to 1")
            continue
        if not is_of_type(name, value):
            raise ValueError(f"{name}={value!r} in the space is not allowed; {describe_type(name)}")
        needs = NEEDS.get(name, {})
        try:
            if isinstance(value, str):  # says what is allowed
                named: dict[str, Any] = {name: value}
                replace(RunConfig.from_dict(base | needs), **named)
            RunConfig.from_dict(base | needs | {name: value})
        except ValueError as error:
            raise ValueError(f"{name}={value!r} in the space: {error}") from None


def _towards(dimension: Dimension, share: float) -> Value:
    """Grow what makes a network larger; what is chosen by name or shrinks it stays as it begins."""
    if isinstance(dimension.values, range | tuple):
        return dimension.at(share)
    numbers = [v for v in dimension.values if isinstance(v, int) and not isinstance(v, bool)]
    if len(numbers) < len(dimension.values) or share > 0:
        return dimension.first()
    return min(numbers)


def _sorted(values: Sequence[Value]) -> list[Value]:
    numbers = all(isinstance(v, int | float) for v in values)
    return sorted(values) if numbers else list(values)


def _unknown(where: str, name: str, allowed: Sequence[str]) -> str:
    hint = did_you_mean(str(name), allowed)
    return f"{where} {name!r}, which is not known; {hint}allowed: {', '.join(allowed) or 'none'}"


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
