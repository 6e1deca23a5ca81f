"""How far stated confidence is from the share of right answers, and what mends it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """How far stated confidence is from the share of right answers.

    Attributes:
        ece: expected calibration error, 0 to 1: the mean distance of confidence and accuracy over
            `NUM_BINS` bins of equal width, weighted by their images (Guo et al. 2017, "On
            calibration of modern neural networks", equation 3). Chance alone makes it more than 0.
        ece_by_chance: what a perfectly calibrated network of the same confidences would show on as
            many images, in the mean. Only what is above it is miscalibration.
        nll: mean negative log-likelihood in nats.
        confidence, accuracy, share: of each bin, None (and share 0) where it holds no image.
    """

    ece: float
    ece_by_chance: float
    nll: float
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    share: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


NUM_BINS = 15
NUM_DRAWS = 100
"""Sets of labels that are drawn for `ece_by_chance`; its own error is a hundredth of it or so."""


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """Measure the calibration of logits B×K against int64 labels B."""
    logits = logits.double()
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).double()
    N = len(labels)
    bins = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
    counts = torch.bincount(bins, minlength=NUM_BINS)
    confidences = torch.bincount(bins, confidence, NUM_BINS) / counts
    accuracies = torch.bincount(bins, right, NUM_BINS) / counts
    share = counts / N
    filled = counts > 0
    ece = ((confidences - accuracies).abs() * share)[filled].sum().item()
    generator = torch.Generator().manual_seed(0)
    by_chance = 0.0
    for _ in range(NUM_DRAWS):
        drawn = torch.rand(N, generator=generator, dtype=torch.double) < confidence
        gaps = torch.bincount(bins, confidence - drawn.double(), NUM_BINS)
        by_chance += gaps.abs().sum().item() / N / NUM_DRAWS

    def known(values: Tensor) -> tuple[float | None, ...]:
        return tuple(
            v if f else None for v, f in zip(values.tolist(), filled.tolist(), strict=True)
        )

    return Calibration(
        ece=ece,
        ece_by_chance=by_chance,
        nll=F.cross_entropy(logits, labels).item(),
        confidence=known(confidences),
        accuracy=known(accuracies),
        share=tuple(share.tolist()),
    )


def mean_calibration(calibrations: Sequence[Calibration]) -> Calibration:
    """Return the mean over the seeds of a network; of bins, over the images of all seeds.

    The errors are means and not those of all answers taken together: one seed that is too sure
    and one that is not sure enough would make up for each other.
    """
    share = np.array([c.share for c in calibrations])  # S×NUM_BINS
    weight = share.sum(0)

    def over_images(rows: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
        values = np.array([[v or 0.0 for v in row] for row in rows])
        return tuple(
            float(total / w) if w else None
            for total, w in zip((values * share).sum(0), weight, strict=True)
        )

    return Calibration(
        ece=float(np.mean([c.ece for c in calibrations])),
        ece_by_chance=float(np.mean([c.ece_by_chance for c in calibrations])),
        nll=float(np.mean([c.nll for c in calibrations])),
        confidence=over_images([c.confidence for c in calibrations]),
        accuracy=over_images([c.accuracy for c in calibrations]),
        share=tuple(float(w) for w in weight / len(calibrations)),
    )


FEWEST_ERRORS = 10
"""Wrong validation images below which no temperature is fitted.

With none the likelihood grows until every confidence is 1; with few it is theirs alone.
"""


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature in [0.05, 20] that gives validation logits the least NLL.

    Source: Guo et al. 2017, section 4.2; the minimum is found by Brent's method (scipy).

    Returns:
        None where fewer than `FEWEST_ERRORS` images are answered wrongly: they cannot tell.
    """
    if int((logits.argmax(1) != labels).sum()) < FEWEST_ERRORS:
        return None
    from scipy.optimize import minimize_scalar  # takes a while to import

    doubled = logits.double()
    found = minimize_scalar(
        lambda log_t: F.cross_entropy(doubled / math.exp(log_t), labels).item(),
        bounds=(math.log(0.05), math.log(20)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return math.exp(float(found.x))
