"""Logits, and what they say: accuracy, loss, accuracy per class, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.data.augment import normalize
from halfmeg.data.dataset import Dataset, require_dataset
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.networks.protocol import evaluating

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        loss: mean cross-entropy in nats.
        per_class: accuracy of each class, its recall; None for a class without images.
        confusion: confusion[t][p] images of true class t were called p.
        n: number of images.
        left_out: images that were not counted, since the network was trained on them.
    """

    accuracy: float
    loss: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int
    left_out: int = 0

    @property
    def precision(self) -> tuple[float | None, ...]:
        """Of the images called each class, the share that are; None where none is called so."""
        called = [sum(row[p] for row in self.confusion) for p in range(len(self.confusion))]
        return tuple(self.confusion[p][p] / n if n else None for p, n in enumerate(called))

    @property
    def f1(self) -> tuple[float | None, ...]:
        """The harmonic mean of precision and recall of each class; None without images of it."""
        pairs = zip(self.precision, self.per_class, strict=True)
        return tuple(
            None if recall is None else 2 * p * recall / (p + recall) if p and recall else 0.0
            for p, recall in pairs
        )

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' own accuracies, each class counting alike."""
        return _mean(self.per_class)

    @property
    def macro_f1(self) -> float:
        """The mean of `f1` over the classes that have images."""
        return _mean(self.f1)

    @property
    def constant_accuracy(self) -> float:
        """What an answer would score that is always the most frequent class."""
        return max(sum(row) for row in self.confusion) / self.n

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "constant_accuracy": self.constant_accuracy,
            "precision": list(self.precision),
            "f1": list(self.f1),
            "loss": self.loss,
            "per_class": list(self.per_class),
            "confusion": [list(row) for row in self.confusion],
            "n": self.n,
            "left_out": self.left_out,
        }


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present)


@torch.inference_mode()
def compute_logits(
    model: nn.Module,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    precision: str = "auto",
) -> Tensor:
    """Return float32 logits B×K, on the CPU, of uint8 images B×C×H×W.

    The network is put into evaluation mode for the time and left as it was.
    """
    device = next(model.parameters()).device
    dtype = compute_dtype(precision, device)
    mean_tensor = torch.tensor(mean, device=device)
    std_tensor = torch.tensor(std, device=device)
    chunks = []
    with evaluating(model), autocast(device, dtype):
        for batch in images.split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            inputs = normalize(batch.to(device), mean_tensor, std_tensor, dtype=dtype)
            chunks.append(model(inputs).float().cpu())
    return torch.cat(chunks)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Score logits B×K against int64 labels B.

    Raises:
        ValueError: no images, or a label outside the logits' classes.
    """
    count, num_classes = logits.shape
    if count == 0:
        raise ValueError("there are no images to evaluate")
    if int(labels.max()) >= num_classes:
        raise ValueError(
            f"label {int(labels.max())} is outside the {num_classes} classes of the network"
        )
    pairs = labels * num_classes + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)
    right, totals = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    return Evaluation(
        accuracy=sum(right) / count,
        loss=F.cross_entropy(logits.double(), labels).item(),
        per_class=tuple(r / t if t else None for r, t in zip(right, totals, strict=True)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        n=count,
    )


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    precision: str = "auto",
) -> Evaluation:
    """Evaluate a network on a data set, its pixels normalized with `mean` and `std`.

    Args:
        model: maps normalized images B×C×H×W to logits B×K.
        dataset: uint8 images N×C×H×W and their labels.
        mean, std: of each channel, of pixels scaled to [0, 1].
        precision: "auto", "bf16" or "fp32", as in a config.

    Raises:
        ValueError: no images, or a label outside the network's classes.
        TypeError: all parts of a source instead of one.

    Example:
        >>> from halfmeg import build_model, evaluate, load_dataset
        >>> data = load_dataset("digits")
        >>> result = evaluate(build_model("cnn"), data.test, data.mean, data.std)
        >>> result.n, sum(map(sum, result.confusion))
        (360, 360)
    """
    require_dataset(dataset)
    logits = compute_logits(model, dataset.images, mean, std, precision=precision)
    return score(logits, dataset.labels)
