"""The variance between seeds that a pair of networks is tested with: what all pairs say of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def all_pairs(num_networks: int) -> list[tuple[int, int]]:
    """Return the pairs of networks 0 to num_networks - 1; those of the first ones come first."""
    return [(i, j) for j in range(num_networks) for i in range(j)]


def pool_seeds(
    own: Array,
    of_rest: Array | float,
    freedoms: Array,
    pairs: Sequence[tuple[int, int]],
    num_networks: int,
) -> tuple[Array, Array]:
    """Return for each pair of a study the variance between seeds to use, and how well it is known.

    The variance is the largest of three: the pair's own, the mean over all pairs, and the sum of
    its two networks' own, which least squares finds from all pairs. So a lucky pair is not called
    sure, and one that varies more than the others is not called as sure as they.

    The degrees of freedom are Satterthwaite's (1946) of the mean over the networks, (seeds - 1) ×
    (sum of variances)² / (sum of their squares): they are those of all networks where these vary
    alike, and of one where one varies much more than the rest, since then it alone says how much.
    The M (M - 1) / 2 pairs of M networks hold no more than M - 1 independent contrasts.

    Args:
        own: variance between seeds of each of the P pairs as estimated, …×P: of many studies at
            once.
        of_rest: how much a mean over the images varies between seeds for the rest alone, P or one.
        freedoms: seeds - 1 of each pair, P.
        pairs: its two networks, from 0.
        num_networks: of the study, M.

    Returns:
        Variances and degrees of freedom, …×P.
    """
    members = np.zeros((len(pairs), num_networks))
    for row, pair in enumerate(pairs):
        members[row, list(pair)] = 1
    networks = np.maximum(0, (own + of_rest) @ np.linalg.pinv(members).T)
    mean = np.average(own, axis=-1, weights=freedoms, keepdims=True)
    variances = np.maximum(np.maximum(own, mean), networks @ members.T - of_rest)
    squared = np.square(networks).sum(-1)
    alike = np.full(squared.shape, float(num_networks))
    np.divide(np.square(networks.sum(-1)), squared, out=alike, where=squared > 0)
    known = np.minimum(2 / num_networks * freedoms.sum(), alike * freedoms.mean())
    return variances, np.maximum(freedoms, known[..., None])
