"""How far stated confidence is from the share of right answers, and what mends it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
