"""How many settings were tried for a network before: counted from the folders that hold them.

A network whose settings were chosen among fifty is not on equal terms with one that was taken as it
is. `RunConfig.tuning_trials` says it, and is counted here rather than remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.studies.entrant import OWN_TO_A_RUN

SEARCH = "search.json"
"""A folder with this file is a search's: each of its `trials/` is one for whatever it chose."""

NO_SETTING = (*OWN_TO_A_RUN, "recipe", "tuning_trials")
"""Fields in which two runs may differ that try the same."""


def count_trials(folders: Sequence[str | Path], model: str, own: Sequence[str | Path] = ()) -> int:
    """Return how many settings were tried for a network.

    Runs that differ in seed, fold or machine alone try the same settings, and a study that was
    named twice counts once. Of a study the runs of this network count; of a search all trials that
    were trained, since it chose the network among them too.

    Args:
        folders: of searches, of studies, of runs, or folders that hold such.
        model: the network.
        own: folders of the study that is counted for. Its runs were not tried before it, so they
            are passed over, and the count stays the same while the study grows.

    Raises:
        ValueError: a folder holds no run, or a damaged one.
    """
    tried: set[RunConfig] = set()
    for folder in map(Path, folders):
        found = dict(_runs_in(folder))
        if not found:
            raise ValueError(
                f"{folder} holds no run; name the folder of a study, of a search, or of runs"
            )
        configs = {path: Run.open(path).config for path in found if not _is_below(path, own)}
        tried |= {
            _settings(config)
            for path, config in configs.items()
            if found[path] or config.model == model
        }
    return len(tried)


def _runs_in(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield run folders, and whether each is a search's trial; its last comparison is left out."""
    if (folder / "config.json").exists():
        yield folder, False
        return
    searches = {path.parent for path in folder.rglob(SEARCH)}
    for path in sorted(folder.rglob("config.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        above = next((parent for parent in path.parents if parent in searches), None)
        if above is None or path.relative_to(above).parts[0] == "trials":
            yield path.parent, above is not None


def _is_below(path: Path, folders: Sequence[str | Path]) -> bool:
    return any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in folders)


def _settings(config: RunConfig) -> RunConfig:
    defaults: dict[str, Any] = {field.name: field.default for field in fields(RunConfig)}
    return replace(config, **{name: defaults[name] for name in NO_SETTING})


def with_trials(
    config: RunConfig, folders: Sequence[str | Path], own: Sequence[str | Path] = ()
) -> RunConfig:
    """Return a config that also counts the trials in folders; its recipe's own stay counted.

    Those in `own` are passed over, as by `count_trials`.
    """
    if not folders:
        return config
    counted = count_trials(folders, config.model, own)
    return replace(config, tuning_trials=config.tuning_trials + counted)
