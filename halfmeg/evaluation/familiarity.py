"""Whether an image is like those that a network was trained on.

A network names one of its classes for every image, also for one that shows none of them. The score
is a sum of two parts, each in standard deviations above its mean over validation images:

- the energy of the logits, -log Σ exp(logit) (Liu et al. 2020, "Energy-based out-of-distribution
  detection", temperature 1): high where no class answers;
- the logarithm of the Mahalanobis distance (Lee et al. 2018, "A simple unified framework for
  detecting out-of-distribution samples and adversarial attacks") of an image's `statistics` from
  those of training images: high where light, contrast, colour or edges are unusual.

Both come from pixels and logits alone, so an exported graph is enough. How each part does by
itself, and the distance in a network's last features, stands in docs/ship.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Self, final

import torch
from msgspec import Meta
from torch import Tensor

from halfmeg.data.dataset import spread_over
from halfmeg.files import check_json

KEPT = 0.95
"""The share of familiar images that are to be called so."""

FEWEST = 19
"""Validation images below which no threshold is set: 95% of fewer is all of them, or less."""

MAX_IMAGES = 5_000
"""Training images whose statistics are taken."""

NUM_STATISTICS = 12
FLOOR = 1e-2
"""Contrasts below this, of a range of 1, are not told apart; it keeps the logarithms finite."""

# Luma and two differences of colour (ITU-R BT.601).
LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))

Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
Spread = Annotated[float, Meta(ge=1e-6, le=1e6)]


@final
@dataclass(frozen=True)
class Familiarity:
    """What tells unfamiliar images, as a run folder and a bundle keep it.

    Attributes:
        threshold: scores above it are unfamiliar.
        kept: share of the `n` validation images whose score is not.
        n: number of validation images that set the threshold.
        energy_mean, energy_std: of the energy, over the validation images.
        distance_mean, distance_std: of the logarithm of the squared distance, over the same.
        centre: the mean of the training images' statistics.
        precision: the inverse of their covariance, row by row.
    """

    threshold: Number
    kept: Annotated[float, Meta(ge=0, le=1)]
    n: Annotated[int, Meta(ge=1)]
    energy_mean: Number
    energy_std: Spread
    distance_mean: Number
    distance_std: Spread
    centre: Annotated[
        tuple[Number, ...], Meta(min_length=NUM_STATISTICS, max_length=NUM_STATISTICS)
    ]
    precision: Annotated[
        tuple[Number, ...], Meta(min_length=NUM_STATISTICS**2, max_length=NUM_STATISTICS**2)
    ]

    @classmethod
    def fit(cls, images: Tensor, trained: Tensor, held_out: Tensor, logits: Tensor) -> Self | None:
        """Set the threshold so that 95% of validation images are familiar.

        It is the conformal quantile, by which a new image of the same kind is called familiar with
        a probability of about 95%, whatever the scores' distribution. With the fewest images it may
        be two or three points less, since they standardize the scores too.

        Args:
            images: uint8 B×C×H×W.
            trained: int64, indices of those trained on; `MAX_IMAGES` spread over them are taken.
            held_out: uint8 N×C×H×W, validation images.
            logits: N×K, the network's of the validation images.

        Returns:
            None where fewer than `FEWEST` images are held out, or the logits are those of a network
            that has diverged.
        """
        count = len(held_out)
        if count < FEWEST:
            return None
        chosen = spread_over(len(trained), MAX_IMAGES)
        seen = statistics(images[trained[chosen]])
        centre = seen.mean(0)
        spread = (seen - centre).T @ (seen - centre) / len(seen)
        precision = torch.linalg.inv(spread + FLOOR**2 * torch.eye(NUM_STATISTICS))
        distance = log_distance(statistics(held_out), centre, precision)
        energies = energy(logits)
        values: dict[str, Any] = {
            "n": count,
            "energy_mean": energies.mean().item(),
            "energy_std": max(1e-6, energies.std().item()),
            "distance_mean": distance.mean().item(),
            "distance_std": max(1e-6, distance.std().item()),
            "centre": tuple(centre.tolist()),
            "precision": tuple(precision.flatten().tolist()),
        }
        scores = cls(threshold=0.0, kept=0.0, **values).scores(held_out, logits)
        threshold = scores.sort().values[math.ceil((count + 1) * KEPT) - 1].item()
        kept = (scores <= threshold).double().mean().item()
        found = cls(threshold=threshold, kept=kept, **values)
        try:
            return cls.from_dict(found.to_dict())
        except ValueError:
            return None

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` gave.

        Raises:
            ValueError: a value that cannot be.
        """
        return check_json(values, cls)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def scores(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return float64 B, the higher the less familiar, of uint8 B×C×H×W and logits B×K."""
        precision = torch.tensor(self.precision, dtype=torch.float64)
        centre = torch.tensor(self.centre, dtype=torch.float64)
        distance = log_distance(
            statistics(images), centre, precision.view(NUM_STATISTICS, NUM_STATISTICS)
        )
        return (energy(logits) - self.energy_mean) / self.energy_std + (
            distance - self.distance_mean
        ) / self.distance_std

    def unfamiliar(self, images: Tensor, logits: Tensor) -> list[bool]:
        """Return for each image, uint8 B×C×H×W with logits B×K, whether it is unfamiliar."""
        return [bool(is_above) for is_above in self.scores(images, logits) > self.threshold]


def statistics(images: Tensor) -> Tensor:
    """Return float64 B×12 of uint8 images B×C×H×W of one channel or three.

    Of luma and of two differences of colour: the mean, and the logarithms of the standard
    deviation and of the mean steps between neighbours in a row and in a column.
    """
    transform = torch.tensor(LUMA_CHROMA)
    chunks = []
    for chunk in images.split(1024):  # type: ignore[no-untyped-call]
        pixels = chunk.float().div(255).expand(-1, 3, -1, -1)
        planes = torch.einsum("bchw,dc->bdhw", pixels, transform)
        contrast = torch.stack(
            [
                planes.std((2, 3), correction=0),
                planes.diff(dim=3).abs().mean((2, 3)),
                planes.diff(dim=2).abs().mean((2, 3)),
            ]
        )
        parts = [planes.mean((2, 3)), *(contrast + FLOOR).log()]
        chunks.append(torch.cat(parts, dim=1).double())
    return torch.cat(chunks)


def energy(logits: Tensor) -> Tensor:
    """Return float64 B, the energy of logits B×K at temperature 1."""
    return -logits.double().logsumexp(1)


def log_distance(values: Tensor, centre: Tensor, precision: Tensor) -> Tensor:
    """Return float64 B, the logarithm of the squared Mahalanobis distance.

    Args:
        values: float64 B×D.
        centre: float64 D, or B×D for each its own.
        precision: float64 D×D, an inverse covariance.
    """
    away = values - centre
    return (away @ precision * away).sum(1).clamp_min(1e-6).log()
