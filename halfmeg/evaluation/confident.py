"""Confident learning: labels that answers given without them speak against.

Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels".
`tests/training/test_labels.py` holds it against the library cleanlab.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_wrong_labels(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images whose label is likely wrong, the likeliest first.

    A class's threshold is its mean probability over the images labelled so. Among the classes that
    reach theirs for an image the likeliest counts; where it is not the label, the image is named
    (the paper's method C_confusion off the diagonal of the confident joint).

    Args:
        probs: float N×K, by networks that have not seen the image.
        labels: int64 N, as given.

    Returns:
        int64 indices, by rising probability of the given label, and the class that is likelier.
    """
    num_classes = probs.shape[1]
    probs = probs.double()
    totals = torch.zeros(num_classes, dtype=torch.float64)
    totals.scatter_add_(0, labels, probs.gather(1, labels[:, None])[:, 0])
    thresholds = totals / labels.bincount(minlength=num_classes)  # NaN, never reached, if unused
    reached = torch.where(probs >= thresholds, probs, -1.0)
    likely = reached.argmax(1)
    wrong = ((reached.max(1).values >= 0) & (likely != labels)).nonzero()[:, 0]
    given = probs[wrong, labels[wrong]]
    wrong = wrong[given.argsort(stable=True)]
    return wrong, likely[wrong]
