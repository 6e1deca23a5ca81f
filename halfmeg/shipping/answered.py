"""A network in integers with its oracle's answers, which every program made of it must give too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halfmeg.shipping.integer import IntegerGraph
from halfmeg.shipping.operations import Float32, UInt8
from halfmeg.shipping.unfamiliar import Unfamiliar


@dataclass(frozen=True)
class Answered:
    """What C and the page are made of, and held against before they are handed out.

    Attributes:
        graph: the network.
        name: as a user calls it.
        classes: names of the classes.
        temperature: by which logits are divided before they become probabilities.
        images: uint8 B×C×H×W.
        logits: the oracle's, of these images.
        unfamiliar: the scores of these images; None where the network knows none.
    """

    graph: IntegerGraph
    name: str
    classes: Sequence[str]
    temperature: float
    images: UInt8
    logits: Float32
    unfamiliar: Unfamiliar | None = None
