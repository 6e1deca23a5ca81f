"""Logits, and what they say: accuracy, loss, accuracy per class, confusion, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.augment import normalize
from halfmeg.data import Dataset

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


def has_bf16_hardware(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the matrix products for a precision of `auto`, `bf16` or `fp32`."""
    if precision == "auto":
        precision = "bf16" if has_bf16_hardware(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network runs in `dtype`; float32 is a no-op."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


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
    was_training = model.training
    model.eval()
    chunks = []
    with autocast(device, dtype):
        for batch in images.split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            inputs = normalize(batch.to(device), mean_tensor, std_tensor, dtype=dtype)
            chunks.append(model(inputs).float().cpu())
    model.train(was_training)
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


@dataclass(frozen=True)
class Calibration:
    """How far stated confidence is from the share of right answers.

    Attributes:
        ece: expected calibration error, 0 to 1: the mean distance of confidence and accuracy over
            `NUM_BINS` bins of equal width, weighted by their images (Guo et al. 2017, "On
            calibration of modern neural networks", equation 3).
        nll: mean negative log-likelihood in nats.
        confidence, accuracy, share: of each bin, None (and share 0) where it holds no image.
    """

    ece: float
    nll: float
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    share: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "ece": self.ece,
            "nll": self.nll,
            "confidence": list(self.confidence),
            "accuracy": list(self.accuracy),
            "share": list(self.share),
        }


NUM_BINS = 15


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Measure the calibration of logits B×K against int64 labels B."""
    logits = logits.double()
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).double()
    bins = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
    counts = torch.bincount(bins, minlength=NUM_BINS)
    confidences = torch.bincount(bins, confidence, NUM_BINS) / counts
    accuracies = torch.bincount(bins, right, NUM_BINS) / counts
    share = counts / len(labels)
    filled = counts > 0
    ece = ((confidences - accuracies).abs() * share)[filled].sum().item()

    def known(values: Tensor) -> tuple[float | None, ...]:
        return tuple(
            v if f else None for v, f in zip(values.tolist(), filled.tolist(), strict=True)
        )

    return Calibration(
        ece=ece,
        nll=F.cross_entropy(logits, labels).item(),
        confidence=known(confidences),
        accuracy=known(accuracies),
        share=tuple(share.tolist()),
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature in [0.05, 20] that gives validation logits the least NLL.

    Source: Guo et al. 2017, section 4.2; the minimum is found by Brent's method (scipy).
    """
    from scipy.optimize import minimize_scalar  # takes a while to import

    doubled = logits.double()
    found = minimize_scalar(
        lambda log_t: F.cross_entropy(doubled / math.exp(log_t), labels).item(),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(float(found.x))
