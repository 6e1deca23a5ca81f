"""Logits, and what they say: accuracy, loss, accuracy per class, confusion, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.data.augment import normalize
from halfmeg.data.dataset import Dataset
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.networks.protocol import evaluating

BATCH_SIZE = 500


@dataclass(frozen=True)
class Evaluation:
    """How a network does on a set of images.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        loss: mean cross-entropy in nats.
        per_class: accuracy of each class; None for a class without images.
        confusion: confusion[t][p] images of true class t were called p.
        n: number of images.
    """

    accuracy: float
    loss: float
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "per_class": list(self.per_class),
            "confusion": [list(row) for row in self.confusion],
            "n": self.n,
        }


@torch.inference_mode()
def compute_logits(
    model: nn.Module,
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    precision: str = "auto",
) -> Tensor:
    """Return float32 logits B×K, on the CPU, of uint8 images B×3×H×W.

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

    Example:
        >>> from halfmeg import build_model, evaluate, load_dataset
        >>> data = load_dataset("digits")
        >>> result = evaluate(build_model("cnn"), data.test, data.mean, data.std)
        >>> result.n, sum(map(sum, result.confusion))
        (360, 360)
    """
    logits = compute_logits(model, dataset.images, mean, std, precision=precision)
    return score(logits, dataset.labels)
