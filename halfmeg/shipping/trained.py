"""What is exported, whichever it is read from: a finished run, or a bundle anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.refusals import unfinished
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.options import DataOptions
from halfmeg.data.shape import ImageShape
from halfmeg.files import check_json


@dataclass(frozen=True)
class _DescribedData:
    name: str
    fingerprint: str


@dataclass(frozen=True)
class _DescribedTuning:
    kept: int = 0


@dataclass(frozen=True)
class _Described:
    """What model.json says that exporting anew needs."""

    recipe: dict[str, Any]
    data: _DescribedData
    finetuning: _DescribedTuning | None = None


@dataclass(frozen=True)
class Trained:
    """What is exported: a finished run, or a bundle anew.

    Attributes:
        folder: of the run or the bundle.
        model: with its trained weights, in evaluation mode.
        config: of the training.
        classes: the names.
        image_shape: of its images.
        mean, std: of the pixels scaled to [0, 1], for each channel.
        data: `name` and `fingerprint` of what it was trained on.
        options: how its data was read.
        trained_on: uint64, ids of the images that it has seen; None in old runs.
        seen_in_other_forms: whether it learned from a network for images of another form, or from
            one that does not say what it has seen.
        tuned: whether its int8 file has weights of its own.
    """

    folder: Path
    model: nn.Module
    config: RunConfig
    classes: tuple[str, ...]
    image_shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: dict[str, str]
    options: DataOptions
    trained_on: np.ndarray | None
    seen_in_other_forms: bool
    tuned: bool = False

    @classmethod
    def of(cls, source: Run | Bundle) -> Trained:
        """Read what exporting needs.

        Raises:
            ValueError: a run that has not finished, a bundle that does not say how it was trained,
                or weights that were damaged or altered.
        """
        if isinstance(source, Bundle):
            try:
                stored = check_json(source.described, _Described)
                config = RunConfig.from_dict(stored.recipe)
            except ValueError as error:
                path = source.folder / "model.json"
                raise ValueError(f"{path} does not say how it was trained: {error}") from None
            return cls(
                source.folder, source.load_model().eval(), config,
                source.classes, source.image_shape, source.mean, source.std,
                {"name": stored.data.name, "fingerprint": stored.data.fingerprint},
                source.options, source.trained_on(), not source.known.whole,
                stored.finetuning is not None and stored.finetuning.kept > 0,
            )  # fmt: skip
        if source.result() is None:
            raise unfinished(source.folder)
        facts = source.data
        return cls(
            source.folder, source.load_model().eval(), source.config, facts.classes,
            facts.image_shape, facts.mean, facts.std,
            {"name": facts.name, "fingerprint": facts.fingerprint},
            source.options, source.seen(), not source.known.whole,
        )  # fmt: skip
