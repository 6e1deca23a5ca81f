"""A trained network, rebuilt from what a run folder or a bundle says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from halfmeg.artifacts.weights import load_weights
from halfmeg.data.shape import ImageShape
from halfmeg.networks.own import use_channels_last
from halfmeg.networks.table import build_model


def rebuild(
    name: str,
    classes: Sequence[str],
    shape: ImageShape,
    budget: int,
    weights: Path,
    sha256: str | None,
) -> nn.Module:
    """Build a network by its name and load its weights; it is in evaluation mode.

    The weights' file is checked against its checksum where one is known.

    Raises:
        ValueError: the weights are missing, damaged, or of another network.
    """
    model = build_model(name, len(classes), shape, budget)
    load_weights(model, weights, sha256)
    use_channels_last(model)
    return model.eval()
