"""What a user meant who gave the right word in the wrong place: the line to type instead."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from halfmeg.places.settings import is_setting


def check_train_words(recipe: str, settings: Sequence[str], data: str | None) -> None:
    """Raise where a network or a path stands in the place of a recipe or a setting.

    Raises:
        ValueError: with the line to type.
    """
    from halfmeg.networks.table import FAMILIES, MODELS
    from halfmeg.places.place import is_place
    from halfmeg.training.recipes import RECIPES, unknown_recipe

    given = [recipe, *(text for text in settings if not is_setting(text))]
    recipes = [word for word in given if word in RECIPES]
    name = recipes[0] if recipes else "common"
    others = [text for text in settings if is_setting(text)]
    wrong = [word for word in given if word not in recipes[:1]]
    for word in wrong:
        if word == recipe == "auto":
            continue
        _check_place(word)
        if word in MODELS or word.partition("(")[0] in FAMILIES:
            option = [] if data is None else ["--data", data]
            _say("train", f"{word} is a network", name, f"model={word}", *others, *option)
        settings_file = word == recipe and word.endswith(".json") and Path(word).is_file()
        if Path(word).exists() and not settings_file:
            _say("train", f"{word} is data", name, "--data", word, *others)
        _check_missing(word)
    known = ["auto", *RECIPES]
    if not (recipe in known or "=" in recipe or is_place(recipe) or recipe.endswith(".json")):
        raise unknown_recipe(recipe, known)


def check_network_words(command: str, names: Sequence[str], settings: Sequence[str]) -> None:
    """Raise where a recipe or a path stands in the place of a network.

    Raises:
        ValueError: with the line to type.
    """
    from halfmeg.networks.table import MODELS
    from halfmeg.training.recipes import RECIPES

    missing = [] if command == "search" else ["NETWORK"]
    for word in names:
        others = [name for name in names if name != word]
        if word in MODELS:
            continue
        if word in RECIPES:
            _say(command, f"{word} is a recipe", *(others or missing), *settings, "--recipe", word)
        _check_place(word)
        if Path(word).exists() and ":" not in word:
            _say(command, f"{word} is data", *(others or missing), *settings, "--data", word)
        _check_missing(word)


def check_setting_words(settings: Sequence[str], *others: str) -> None:
    """Raise where a key is none of a run's settings, of the data's, or of `others`.

    Raises:
        ValueError: with all that are.
    """
    from halfmeg.errors import did_you_mean

    known = sorted({*_setting_names(), "image_size", *others})
    for key in (text.partition("=")[0] for text in settings if is_setting(text)):
        if key not in known:
            hint = did_you_mean(key, known)
            if key == "minutes":
                hint = "it is one of `train auto`; "
            raise ValueError(f"{key!r} is no setting; {hint}allowed: {', '.join(known)}")


def option_hint(option: str, command: str) -> str:
    """Return what to type instead of an option that is none; "" where that is not known."""
    name, _, value = option.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if (command, key) == ("check", "data"):
        return f"write: halfmeg data check {value or 'SOURCE'}"
    if (command, key) == ("train", "recipe"):
        return f"the recipe stands first: halfmeg train {value or 'RECIPE'}"
    if (command, key) == ("train", "minutes"):
        return f"`train auto` takes its time as a setting: write minutes={value or 'NUMBER'}"
    if (command, key) == ("train", "hours"):
        return "`train auto` takes its time as a setting, in minutes: write minutes=NUMBER"
    if (command, key) == ("search", "minutes"):
        return "a search takes its time in hours: write --hours NUMBER"
    if command not in ("train", "compare", "plan", "search") or key not in _setting_names():
        return ""
    return f"settings have no dashes: write {key}={value or 'VALUE'}"


def _setting_names() -> set[str]:
    from halfmeg.config import RunConfig
    from halfmeg.data.options import DataOptions

    return {field.name for settings in (RunConfig, DataOptions) for field in fields(settings)}


def _check_place(word: str) -> None:
    if word.endswith(".py"):
        what = "is a file of Python" if Path(word).is_file() else "does not exist"
        raise ValueError(f"{word} {what}; name what it holds: {word}:NAME")


def _check_missing(word: str) -> None:
    # of networks and recipes only those with settings, or in a file of Python, have such signs
    is_path = any(sign in word for sign in "/\\ ") and not any(sign in word for sign in "(:")
    if is_path and not word.endswith(".json") and not Path(word).exists():
        raise ValueError(f"{word} is no file or folder here; images are named by --data")


def _say(command: str, what: str, *words: str) -> None:
    raise ValueError(f"{what}; write: halfmeg {command} {shlex.join(words)}")
