"""Runs loaded to be compared: all of the same data, and what they name alike was the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from halfmeg.artifacts.inherited import read_inherited_bundles
from halfmeg.artifacts.refusals import unfinished
from halfmeg.artifacts.run import Run
from halfmeg.artifacts.sources import require_one_text
from halfmeg.config import RunConfig
from halfmeg.studies.measure import fold_of


@dataclass(frozen=True)
class LoadedRun:
    """A finished run with its stored logits."""

    run: Run
    result: dict[str, Any]
    logits: dict[str, Tensor]

    @property
    def config(self) -> RunConfig:
        """The run's settings, with the precision that `auto` chose where the run says which."""
        return replace(
            self.run.config, precision=self.result.get("precision", self.run.config.precision)
        )

    @property
    def folded(self) -> bool:
        """Whether the run was tested on one of several folds."""
        return fold_of(self.run) > 0

    @property
    def unit(self) -> int:
        """What pairs it with the runs of other networks: its seed, or its fold."""
        return fold_of(self.run) or self.run.config.seed

    @property
    def right(self) -> np.ndarray:
        """Right answers as 1.0 and wrong ones as 0.0, one for each test image."""
        answers = self.logits["test_logits"].argmax(1) == self.logits["test_labels"]
        return answers.numpy().astype(np.float64)

    @property
    def seconds(self) -> float:
        """How long it was trained; of the seeds of a stack, which share the time, its part."""
        seconds: float = self.result["seconds"]
        return seconds / int(self.result.get("runs_at_once", 1))


def test_share(items: Sequence[LoadedRun]) -> float:
    """Return the test images of a fold for each of its training images."""
    facts = [item.run.data for item in items]
    return sum(fact.num_test for fact in facts) / sum(fact.num_train for fact in facts)


def load_runs(runs: Sequence[Run]) -> list[LoadedRun]:
    """Load finished runs of the same data, or of the folds of the same data.

    Raises:
        ValueError: they are not that, one is unfinished or damaged, or they name different Python,
            initial weights or teachers alike.
    """
    firsts: dict[str, Run] = {}
    for run in runs:
        if _division(run) != _division(runs[0]):
            raise ValueError(
                f"{run.folder} was tested on other folds than {runs[0].folder}; "
                "compare runs of one division"
            )
        firsts.setdefault(run.options.fold, run)
    divided = [run for run in runs if run.data.folds_of]  # an old run does not say
    for run in divided:
        if run.data.folds_of != divided[0].data.folds_of:
            raise _other_data(run, divided[0])
    _require_same_names(runs)
    return [load_run(run, firsts[run.options.fold]) for run in runs]


def load_run(run: Run, first: Run) -> LoadedRun:
    """Load a finished run that has the data of `first`.

    Raises:
        ValueError: unfinished, damaged, or of other data.
    """
    result = run.result()
    if result is None:
        raise unfinished(run.folder)
    if run.data.fingerprint != first.data.fingerprint:
        raise _other_data(run, first)
    both_draw = run.draws_validation and first.draws_validation
    if both_draw and run.options.group != first.options.group:  # they hold out other images
        raise ValueError(
            f"{run.folder} was trained with group={run.options.group!r}, and {first.folder} with "
            f"group={first.options.group!r}; compare runs of the same groups"
        )
    return LoadedRun(run, result, run.load_logits())


def _other_data(run: Run, first: Run) -> ValueError:
    return ValueError(f"{run.folder} was trained on other data than {first.folder}")


def _division(run: Run) -> tuple[object, ...]:
    count, facts = run.options.fold.partition("/")[2], run.data
    return (count, facts.classes, facts.num_train + facts.num_test) if count else ()


def _require_same_names(runs: Sequence[Run]) -> None:
    """Raise where what two runs name alike has changed between them, so that it was two things.

    Raises:
        ValueError: a network, loss, optimizer or transform of the user's own of another text, or
            other weights of the bundle that `init` or `teacher` names.
    """
    texts: dict[tuple[str, str], Run] = {}
    weights: dict[tuple[str, str], tuple[Run, str]] = {}
    for run in runs:
        for setting, place in run.config.places().items():
            first = texts.setdefault((setting, place), run)
            require_one_text(run.folder, first.folder, setting, place)
        for setting, bundle in read_inherited_bundles(run.folder).items():
            named = f"{setting}={getattr(run.config, setting)}"
            first, sha256 = weights.setdefault((setting, named), (run, bundle.sha256))
            if bundle.sha256 != sha256:
                raise ValueError(
                    f"{run.folder} began with other weights of {named} than {first.folder}: their "
                    f"SHA-256 was {bundle.sha256[:12]}, there {sha256[:12]}; compare runs of one"
                )
