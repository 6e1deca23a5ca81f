"""The Python of the user's own that a run was made with: kept as text, with its hash.

`source.json` says for each setting that named a place what stood there, and `source/SETTING/` holds
the texts, to read. Nothing is ever loaded from them: a run is continued and evaluated with what
stands at the place that the user named, and where that has changed since, the user is told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halfmeg.config import RunConfig
from halfmeg.files import MAX_JSON_BYTES, find_json, read_limited, write_atomically, write_json
from halfmeg.places.load import load
from halfmeg.places.place import (
    HANDED_OVER,
    TIMM,
    HandedOver,
    PlaceWarning,
    files_of_module,
    hand_over_as,
    locate,
    remember,
)
from halfmeg.places.source import MAX_FILES, Source, kept_source, read_source

DESCRIBED = "source.json"
TEXTS = "source"
HOLD_RUNS = ("study.json", "search.json")
"""A study or a search has one of these, and runs in it."""


_objects: dict[tuple[Path, str], Any] = {}
"""By run folder and setting what this process has made or continued the run with."""


@dataclass(frozen=True)
class StoredSource:
    """What the program reads of a setting in source.json."""

    place: str
    file: str
    sha256: str


def write_sources(folder: Path, places: Mapping[str, str]) -> None:
    """Write what stands at the places of a config into a run folder.

    Args:
        folder: of the run.
        places: by setting, as `RunConfig.places` returns them.
    """
    described = {}
    for setting, place in places.items():
        source = read_source(place)
        described[setting] = source.to_dict()
        for name, text in source.texts.items():
            path = folder / TEXTS / setting / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
    if described:
        write_json(folder / DESCRIBED, described)


def read_sources(folder: Path) -> dict[str, StoredSource]:
    """Return what `source.json` says, by setting; empty where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    return find_json(folder / DESCRIBED, dict[str, StoredSource]) or {}


def find_sources(folder: Path) -> None:
    """Let the places of a run be found where they were, if not from the folder worked in now."""
    for described in read_sources(folder).values():
        if described.file and not _within(folder, Path(described.file)):
            remember(described.place, described.file)


def keep_objects(folder: Path, places: Mapping[str, str]) -> None:
    """Let a run that is opened again in this process find the objects that stand in no file."""
    for setting, place in places.items():
        if isinstance(place, HandedOver):
            _objects[folder.resolve(), setting] = place.obj


def open_sources(folder: Path, config: RunConfig, objects: Mapping[str, Any]) -> RunConfig:
    """Let the places of a run be found; return its config with the objects that it was made with.

    Args:
        folder: of the run.
        config: as it was stored.
        objects: by setting, those that were handed over again; None for none.

    Raises:
        ValueError: one for a setting that the run has not of the user's own.
    """
    find_sources(folder)
    places, own = config.places(), dict[str, str]()
    for setting, obj in objects.items():
        if obj is not None and setting not in places:
            given = getattr(config, setting, "") or "none"
            raise ValueError(f"{folder} was made with {setting}={given}; leave out {setting}=")
        if isinstance(obj, str):
            raise ValueError(f"{setting}={obj} is a text; leave it out, or hand over the object")
    for setting, place in places.items():
        obj = objects.get(setting)
        if obj is None and place.startswith(HANDED_OVER):
            obj = _objects.get((folder.resolve(), setting))
        if obj is not None:
            own[setting] = hand_over_as(place, obj)
    return replace(config, **own)  # type: ignore[arg-type]


def check_sources(folder: Path, places: Mapping[str, str]) -> bool:
    """Load what stands at places, and compare it with what a run was made with.

    Raises:
        ValueError: a place is within the run folder, from which no Python is run; or nothing can
            be loaded there.

    Returns:
        Whether a text has changed since.

    Warns:
        PlaceWarning: so it has.
    """
    find_sources(folder)  # since a run opened later may have the same place elsewhere
    changed = False
    described = read_sources(folder)
    for setting, place in places.items():
        kept = folder / TEXTS / setting
        try:
            check_outside(folder, place)
            if place.startswith(HANDED_OVER) and not isinstance(place, HandedOver):
                raise ValueError(
                    f"{folder} was made with {setting}={place}, an object of another Python "
                    f"process; hand it over again from Python ({setting}=)"
                )
            if not place.startswith(TIMM):
                load(place)
        except ValueError as error:
            raise ValueError(f"{error}; {kept} keeps the text of {folder.name}") from None
        if setting not in described:
            continue
        source, then = read_source(place), described[setting].sha256
        if source.sha256 != then:
            changed = True
            warnings.warn(
                f"{place} has changed since {folder} was made: its hash is {source.sha256[:12]}, "
                f"then it was {then[:12]} ({kept} keeps that text)",
                PlaceWarning,
                stacklevel=2,
            )
    return changed


def require_same(folder: Path, places: Mapping[str, str]) -> None:
    """Raise where a run was made with another definition than what stands at its places now.

    Raises:
        ValueError: it was; or source.json is damaged.
    """
    if (changed := find_change(folder, places)) is not None:
        told, kept = changed
        raise ValueError(f"{told}; choose another --out, or put back what {kept} keeps")


def find_change(folder: Path, places: Mapping[str, str]) -> tuple[str, Path] | None:
    """Say where a run was made with another definition than what stands at its places now.

    Of a module the definitions alone count that a place comes to, so that a script which holds a
    network and compares it can be edited. A recipe's settings stand in the run's config.

    Returns:
        What to say, and the folder that keeps the text; None where it was not.

    Raises:
        ValueError: source.json is damaged, or a file does not exist any more.
    """
    described = read_sources(folder)
    for setting, place in places.items():
        if setting == "recipe" or setting not in described:  # an old run's
            continue
        kept = folder / TEXTS / setting
        try:
            source = read_source(place)
        except ValueError as error:
            raise ValueError(f"{error}; {kept} keeps the text of {folder.name}") from None
        if changed := _first_change(source, described[setting], kept):
            told = f"{folder} was trained with another text of {place}: {changed} has changed since"
            return told, kept
    return None


def require_one_text(folder: Path, first: Path, setting: str, place: str) -> None:
    """Raise where two runs name a place alike, and another definition stood at it.

    Args:
        folder, first: of the runs.
        setting: that names the place in both.
        place: its name.

    Raises:
        ValueError: so it is; or source.json is damaged.
    """
    own, before = read_sources(folder).get(setting), read_sources(first).get(setting)
    if setting == "recipe" or own is None or before is None or own.sha256 == before.sha256:
        return
    source = kept_source(place, own.file, _read_texts(folder / TEXTS / setting))
    if changed := _first_change(source, before, first / TEXTS / setting):
        raise ValueError(
            f"{folder} was trained with another text of {place} than {first}: {changed} differs; "
            "compare runs of one text, or train one of them again under another name"
        )


def _first_change(source: Source, then: StoredSource, kept: Path) -> str:
    """Return the first definition at a place that differs from a kept text's; empty for none."""
    if source.sha256 == then.sha256 or (changed := source.first_change(_read_texts(kept))) is None:
        return ""
    file, _, name = changed.rpartition(": ")
    return f"{name} in {file}" if file and name else file or name


def _read_texts(kept: Path) -> dict[str, str]:
    """Return the texts that a run folder keeps of a setting, by their paths."""
    files = {path.relative_to(kept).as_posix(): path for path in sorted(kept.rglob("*.py"))}
    return {
        name: read_limited(path, MAX_JSON_BYTES).decode(errors="replace")
        for name, path in list(files.items())[:MAX_FILES]
    }


def check_outside(folder: Path, place: str) -> None:
    """Refuse a place within the folder of a run, of a study or of a search.

    Raises:
        ValueError: it is, or its file does not exist.
    """
    path = locate(place)
    if any(_within(folder, file) for file in (*files_of_module(place), path) if file is not None):
        raise ValueError(f"{place} is within {folder}; no Python of a run folder is run")


def _within(folder: Path, path: Path) -> bool:
    """Return whether a file is within a folder, or within the study or search around it."""
    folder = folder.resolve()
    around = [above for above in folder.parents[:3] if any((above / n).exists() for n in HOLD_RUNS)]
    return any(whole in path.resolve().parents for whole in (folder, *around))
