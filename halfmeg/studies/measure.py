"""What needs the trained networks themselves: robustness to corruption, and costs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import check_outside, find_change
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.corrupt import CORRUPTIONS, STRENGTHS, corrupt
from halfmeg.data.dataset import DataSplits
from halfmeg.data.folds import Folds, parse_fold
from halfmeg.evaluation.cost import Cost, measure_costs
from halfmeg.evaluation.evaluate import evaluate
from halfmeg.files import find_json, read_json, write_json
from halfmeg.networks.table import build_model
from halfmeg.places.place import PlaceWarning, is_place

ROBUSTNESS_IMAGES = 2_000

COSTS = "costs.json"
"""In a study's folder: what its networks cost, timed together."""

Robustness = dict[str, list[float]]


@dataclass(frozen=True)
class StoredRobustness:
    """robustness.json: accuracy on `n` images, clean and by kind of corruption at each strength."""

    n: int
    clean: float
    accuracy: dict[str, Annotated[list[float], Meta(min_length=3, max_length=3)]]


def measure(runs: Sequence[Run], data: DataSplits | Folds, out: Path) -> None:
    """Measure what needs the networks themselves, and store it.

    Writes `robustness.json` into each run folder that has weights and lacks it, and the costs of
    all networks, timed together, as `costs.json` into `out`.

    A network of one's own that does not stand at its place any more is left out, and one of which
    another definition stands there now.

    Raises:
        ValueError: data other than the runs'.

    Warns:
        PlaceWarning: a network was left out.
    """
    for run in runs:
        if run.data.fingerprint != fingerprint_of(run, data):
            raise ValueError(f"{run.folder} was trained on other data than {data.name}")
        has_weights = (run.folder / "weights.safetensors").exists()
        if has_weights and not (run.folder / "robustness.json").exists():
            own = data.splits(fold_of(run) - 1) if isinstance(data, Folds) else data
            with _unless_lost(run.config.model, f"no robustness of {run.folder}"):
                _require_own(run, run.config.model)
                write_json(run.folder / "robustness.json", measure_robustness(run, own))
    first = runs[0].data
    networks, in_float32 = {}, set()
    for name, config in sorted({cost_name(run.config): run.config for run in runs}.items()):
        with _unless_lost(config.model, f"no costs of {config.model}"):
            for run in runs:
                _require_own(run, config.model)
            networks[name] = build_model(
                config.model, len(first.classes), first.image_shape, config.budget
            )
            if config.precision == "fp32":
                in_float32.add(name)
    costs = measure_costs(networks, first.image_shape, in_float32)
    write_json(out / COSTS, {name: cost.to_dict() for name, cost in costs.items()})


def _require_own(run: Run, model: str) -> None:
    """Raise where a network of the user's own is in a run's folder, or no longer the run's."""
    if not is_place(model):
        return
    check_outside(run.folder, model)
    changed = find_change(run.folder, {"model": model}) if run.config.model == model else None
    if changed is not None:
        told, kept = changed
        raise ValueError(f"{told}; put back what {kept} keeps")


def fold_of(run: Run) -> int:
    """Return the fold, from 1, that a run was tested on; 0 where it was none."""
    return parse_fold(run.options.fold)[0] if run.options.fold else 0


def fingerprint_of(run: Run, data: DataSplits | Folds) -> str:
    """Return the fingerprint that a run on this data has."""
    return data.fingerprint(fold_of(run) - 1) if isinstance(data, Folds) else data.fingerprint


@contextmanager
def _unless_lost(model: str, what: str) -> Iterator[None]:
    """Go on without a network of one's own that cannot be built any more, and say so."""
    try:
        yield
    except ValueError as error:
        if not is_place(model):
            raise
        warnings.warn(f"{what}: {error}", PlaceWarning, stacklevel=3)


def cost_name(config: RunConfig) -> str:
    """Name a network by what decides its costs, as `costs.json` does."""
    budget = "" if config.budget == BUDGET else f" budget={config.budget}"
    return f"{config.model}{budget}{' precision=fp32' if config.precision == 'fp32' else ''}"


def cost_of(config: RunConfig, costs: Mapping[str, Cost]) -> Cost | None:
    """Return what a network costs; None if it was not measured.

    An earlier version timed all networks in one type, and named none.
    """
    name = cost_name(config)
    return costs.get(name) or costs.get(name.removesuffix(" precision=fp32"))


def measure_robustness(run: Run, data: DataSplits) -> dict[str, Any]:
    """Return accuracy by kind of corruption at strengths 1 to 3, on at most 2,000 test images."""
    count = len(data.test)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    part = data.test.subset(order[:ROBUSTNESS_IMAGES].sort().values)
    model = run.load_model()
    run.log_test_reading("robustness: corrupted test images")

    def accuracy(images: Tensor) -> float:
        corrupted = replace(part, images=images)
        mean, std = run.data.mean, run.data.std
        return evaluate(model, corrupted, mean, std, precision=run.config.precision).accuracy

    return {
        "n": len(part),
        "clean": accuracy(part.images),
        "accuracy": {
            name: [accuracy(corrupt(part.images, name, strength)) for strength in STRENGTHS]
            for name in CORRUPTIONS
        },
    }


def mean_robustness(runs: Sequence[Run]) -> Robustness | None:
    """Return the mean of what the runs have stored; None where one of them has not.

    Raises:
        ValueError: a file is damaged.
    """
    paths = [run.folder / "robustness.json" for run in runs]
    if not all(path.exists() for path in paths):
        return None
    stored = [read_json(path, StoredRobustness) for path in paths]
    for path, item in zip(paths, stored, strict=True):
        if not set(CORRUPTIONS) <= item.accuracy.keys():
            raise ValueError(f"{path} is damaged: it lacks a corruption")
    rows = {
        name: np.mean([item.accuracy[name] for item in stored], axis=0).tolist()
        for name in CORRUPTIONS
    }
    return {"clean": [float(np.mean([item.clean for item in stored]))]} | rows


def read_costs(folder: Path | None) -> dict[str, Cost]:
    """Read `costs.json`; empty where it does not exist.

    Raises:
        ValueError: the file is damaged.
    """
    if folder is None:
        return {}
    return find_json(folder / COSTS, dict[str, Cost]) or {}
