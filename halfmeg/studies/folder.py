"""The folder of a study: what its runs are called there, and whether it can hold them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfmeg.artifacts.facts import DataFacts
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import require_same
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.folds import Folds
from halfmeg.errors import first_difference
from halfmeg.files import holds_nothing, make_folder, write_json
from halfmeg.networks.summary import count_params
from halfmeg.networks.table import build_model
from halfmeg.places.place import HandedOver, file_name
from halfmeg.studies.reading import Reading, read_study
from halfmeg.training.initial import require_inherited

StudyData = DataSplits | Folds
"""What a study is of: one division into training and test images, or folds."""


def name_folders(configs: Sequence[RunConfig], unit: str) -> list[str]:
    """Return the folder's name of each run of a study.

    Args:
        configs: the runs.
        unit: what a network has several of, "seed" or "fold".

    Raises:
        ValueError: two would be called the same.
    """
    several = len({config.recipe for config in configs}) > 1
    first = 1 if unit == "fold" else 0
    names = [
        file_name(c.model) + (f"-{file_name(c.recipe)}" if several else "")
        + f"-{unit}-{c.seed + first}"
        for c in configs
    ]  # fmt: skip
    for index, name in enumerate(names):
        before, model = configs[names.index(name)].model, configs[index].model
        if model != before:
            raise ValueError(f"{before} and {model} would both be called {name}; rename one")
        if names.index(name) < index:
            raise ValueError(
                f"{model} is named twice; a study needs a different model, recipe or seed for "
                "each run"
            )
    return names


def check_study_folder(out: Path) -> None:
    """Raise ValueError where a folder is there and is no study's, or cannot be written."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"cannot write to {out}: {'it' if there == out else there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {out}: Permission denied")
    if there == out and not (out / "study.json").exists() and not holds_nothing(out):
        raise ValueError(f"{out} exists and is no study; choose another --out")


def check_runs(
    out: Path, configs: Sequence[RunConfig], folders: Sequence[str], data: StudyData
) -> None:
    """Raise where a folder cannot hold a study, or holds other runs than the study's.

    Args:
        out: the folder.
        configs, folders: the study's runs, and what each is called.
        data: what they are of.

    Raises:
        ValueError: so it does; the first difference is named.
    """
    check_study_folder(out)
    study = read_study(out)
    stored = study.runs if study else []
    others = [run for run in stored if run.folder not in folders and (out / run.folder).exists()]
    if others:
        several = [len({one.recipe for one in runs}) > 1 for runs in (stored, configs)]
        if several[0] != several[1]:
            raise ValueError(
                f"{out} holds a study of another number of recipes, whose runs are called "
                "otherwise; choose another --out, and `halfmeg report` compares the runs of both"
            )
        names = ", ".join(dict.fromkeys(map(str, others[:3])))
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ValueError(
            f"{out} holds runs that this study has not ({names}{more}); "
            "name them too, or choose another --out"
        )
    is_to_train = not all((out / name / "result.json").exists() for name in folders)
    for config, name in zip(configs, folders, strict=True):
        if not (out / name / "config.json").exists():
            continue
        run = Run.open(out / name)
        if differs := _difference(run, config, data):
            raise ValueError(
                f"{out / name} was trained with other settings or data: {differs}; "
                "choose another --out"
            )
        require_same(run.folder, config.places())
        if is_to_train:
            require_inherited(run)
        _require_same_object(run, config, data.data if isinstance(data, Folds) else data)


def _require_same_object(run: Run, config: RunConfig, data: DataSplits) -> None:
    """Raise where an object that stands in no file is of another size than a finished run's."""
    result = run.result()
    if result is None or not isinstance(config.model, HandedOver):
        return
    network = build_model(config.model, len(data.classes), data.image_shape, config.budget)
    params = count_params(network)
    if params != result["params"]:
        raise ValueError(
            f"{run.folder} was trained with another {config.model}, of {result['params']:,} "
            f"parameters, not of {params:,}; name the networks in the same order as before, or "
            "choose another --out"
        )


def _difference(run: Run, config: RunConfig, data: StudyData) -> str | None:
    """Say in what a run first differs from a study's."""
    then, now = (replace(c, threads=0).to_dict() for c in (run.config, config))
    if differs := first_difference(then, now):
        return differs
    if isinstance(data, Folds):
        source, fingerprint = data.data, data.fingerprint(config.seed)
    else:
        source, fingerprint = data, data.fingerprint
    if run.data.fingerprint == fingerprint:  # wherever the images are now
        # Groups change no image, but which of them are held out for validation.
        groups = [{"group": one.get("group")} for one in (run.data.options, source.options)]
        return first_difference(*groups) if run.draws_validation else None
    facts = (
        {"data": one.name, "classes": len(one.classes), "image_size": one.image_size}
        | {name: value for name, value in one.options.items() if name != "fold"}
        | {"images": one.num_train + one.num_validation + one.num_test, "fingerprint": digits}
        for one, digits in (
            (run.data, run.data.fingerprint), (DataFacts.of(source), fingerprint)
        )
    )  # fmt: skip
    return first_difference(*facts)


def write_study(
    out: Path,
    configs: Sequence[RunConfig],
    folders: Sequence[str],
    data: StudyData,
    reading: Reading,
) -> None:
    """Write `study.json`, in a new folder where there is none.

    Raises:
        ValueError: it cannot be written.
    """

    def unique(values: Iterable[Any]) -> list[Any]:
        return list(dict.fromkeys(values))

    source, folds = (data.data, data.count) if isinstance(data, Folds) else (data, None)
    described = {
        "models": unique(config.model for config in configs),
        "recipes": unique(config.recipe for config in configs),
        "seeds": unique(config.seed for config in configs),
        "folds": folds,
        "data": {"name": source.name, "source": source.source, "fingerprint": source.fingerprint},
        "runs": [
            {"folder": name, "model": config.model, "recipe": config.recipe, "seed": config.seed}
            for config, name in zip(configs, folders, strict=True)
        ],
        "reading": reading.to_dict(),
    }
    try:
        make_folder(out)
        write_json(out / "study.json", described)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}") from None
