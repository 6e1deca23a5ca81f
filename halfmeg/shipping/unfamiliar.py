"""Which images are unfamiliar, for C and the page: the same score as `Familiarity.scores`.

Both add the pixels up in integers, and are held against the original before they are handed out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halfmeg.evaluation.familiarity import FLOOR, LUMA_CHROMA, Familiarity
from halfmeg.shipping.operations import Float32, UInt8

TOLERANCE = 0.02
"""Of a score, whose unit is a standard deviation: the original adds up in float32."""

PLANES = [[round(1000 * weight) for weight in row] for row in LUMA_CHROMA]

REMARK = "Unfamiliar: unlike the images that this network was trained on."


@dataclass(frozen=True)
class Unfamiliar:
    """What tells unfamiliar images, and what it says of images with the integers' logits.

    Attributes:
        familiarity: the score's numbers.
        scores: float64 B, of the images that the proofs take.
    """

    familiarity: Familiarity
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, familiarity: Familiarity, images: UInt8, logits: Float32) -> Unfamiliar:
        """Return it for images, uint8 B×C×H×W, with the integers' logits B×K."""
        scores = familiarity.scores(torch.from_numpy(images), torch.from_numpy(logits))
        return cls(familiarity, scores.numpy())

    @property
    def share(self) -> float:
        """Share of the images that are called unfamiliar."""
        return float((self.scores > self.familiarity.threshold).mean())

    def check(self, found: Sequence[float] | NDArray[np.float64], where: str) -> None:
        """Compare the scores that code gave.

        Args:
            found: B scores.
            where: what gave them, for the message.

        Raises:
            ValueError: one differs by more than `TOLERANCE`.
        """
        away = np.abs(np.asarray(found, np.float64) - self.scores)
        if not (away <= TOLERANCE).all():
            raise ValueError(f"{where} scores an image's familiarity {away.max():g} differently")

    def for_page(self) -> dict[str, Any]:
        """Return what the page's script takes, as JSON types."""
        return self.familiarity.to_dict() | {"planes": PLANES, "floor": FLOOR, "remark": REMARK}

    def for_c(self) -> dict[str, Any]:
        """Return what the templates of C take; numbers as texts that give the same bits."""
        stored = self.familiarity
        rows = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in PLANES)
        single = ("threshold", "energy_mean", "energy_std", "distance_mean", "distance_std")
        return {
            "planes": f"{{{rows}}}",
            "floor": repr(FLOOR),
            "centre": _numbers(stored.centre),
            "precision": _numbers(stored.precision),
            "share": self.share,
            "n": len(self.scores),
        } | {name: f"({float(getattr(stored, name))!r})" for name in single}


def _numbers(values: Sequence[float]) -> str:
    text = ", ".join(repr(float(value)) for value in values)
    return textwrap.fill(text, 99, initial_indent="    ", subsequent_indent="    ")
