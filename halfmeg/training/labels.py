"""Likely wrong labels: a recipe trained on folds, so that no image's answer knew its label."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from halfmeg.artifacts.refusals import unfinished
from halfmeg.artifacts.run import Run
from halfmeg.config import RunConfig
from halfmeg.data.check import WrongLabel
from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.data.source import DecodedSource
from halfmeg.data.split import require_full_folds, units_of
from halfmeg.evaluation.confident import find_wrong_labels
from halfmeg.evaluation.evaluate import compute_logits
from halfmeg.training.fit import fit
from halfmeg.training.listen import Listener
from halfmeg.training.stopping import throwaway_folder

FOLDS = 5


def wrong_labels(
    run: Run, source: DecodedSource, listener: Callable[[RunConfig], Listener]
) -> tuple[WrongLabel, ...]:
    """Find the likely wrong labels of all parts of a source.

    For training images the run's recipe is trained `FOLDS` times, each time without one fold, whose
    images it then answers. Those of the other parts are answered by the run; the reading of the
    test set is logged.

    Args:
        run: finished, on these images.
        source: the images.
        listener: of each training.

    Raises:
        ValueError: the run was trained on other data, or a class is too small for folds.
    """
    data = source.splits
    if data.fingerprint != run.data.fingerprint:
        raise ValueError(
            f"{run.folder} was trained on other data than {data.name}; name a run on this data"
        )
    if run.result() is None:
        raise unfinished(run.folder)
    answers = {"train": out_of_fold_logits(run.config, data, listener)}
    run.log_test_reading("data check: likely wrong labels")
    model = run.load_model()
    for part, own in data.parts.items():
        if part != "train":
            answers[part] = compute_logits(model, own.images, data.mean, data.std)
    probs = torch.cat([answers[part].softmax(1) for part in data.parts])
    labels = torch.cat([own.labels for own in data.parts.values()])
    places = [(part, name) for part in data.parts for name in source.names[part]]
    found = zip(*(found.tolist() for found in find_wrong_labels(probs, labels)), strict=True)
    return tuple(
        WrongLabel(
            name=places[index][1],
            part=places[index][0],
            label=data.classes[int(labels[index])],
            label_probability=probs[index, labels[index]].item(),
            likely=data.classes[likely],
            likely_probability=probs[index, likely].item(),
        )
        for index, likely in found
    )


def out_of_fold_logits(
    config: RunConfig, data: DataSplits, listener: Callable[[RunConfig], Listener]
) -> Tensor:
    """Return logits N×K of the training images, each by a network trained without its fold."""
    logits = torch.zeros(len(data.train), len(data.classes))
    for number, (others, fold) in enumerate(fold_indices(data.train, config.seed)):
        part = replace(
            data,
            train=data.train.subset(others),
            test=data.train.subset(fold),
            fingerprint=f"{data.fingerprint}-{number}",
        )
        with throwaway_folder() as folder:
            run = fit(config, part, folder / "run", listener=listener(config))
            logits[fold] = run.load_logits()["test_logits"]
    return logits


def fold_indices(train: Dataset, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each fold the int64 indices of the other images and of its own.

    Classes are spread over the folds, groups stay together, and so do images of the same pixels,
    whose answers would otherwise know the label.

    Raises:
        ValueError: fewer groups of images than folds, or a class that is too small for them.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    keys = units_of(train)
    if len(np.unique(keys)) < FOLDS:
        raise ValueError(f"{len(np.unique(keys))} image groups are too few; {FOLDS} are needed")
    counts = train.labels.bincount(minlength=len(train.classes))
    if counts.max() < FOLDS:
        raise ValueError(
            f"the largest class has {int(counts.max())} training images; {FOLDS} are needed"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        found = list(folds.split(keys, train.labels.numpy(), keys))
    members = np.zeros(len(train), dtype=np.int64)
    for number, (_, second) in enumerate(found):
        members[second] = number
    # A class without any training image is lacking in the run as well.
    present = tuple(name for name, n in zip(train.classes, counts, strict=True) if n)
    remedy = "add images or groups of it, or remove it"
    require_full_folds(train.renamed(present), members, FOLDS, remedy)
    return [(torch.from_numpy(first), torch.from_numpy(second)) for first, second in found]
