"""Which images an epoch trains on: all of them, or the hardest."""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from halfmeg.training.distributed import Ranks
from halfmeg.training.stateful import Stateful, Stateless


class Selection(Stateful, Protocol):
    """Chooses the images that an epoch trains on."""

    def start_epoch(self) -> None:
        """Choose by all that was recorded so far from here on."""

    def choose(self, indices: Tensor, count: int) -> Tensor:
        """Return `count` of some images, in the order they came in."""

    def record(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in what a step gave.

        Args:
            indices: of its images, over all processes.
            logits: B×num_classes of those that this process trained on.
            labels: theirs.
        """


@final
class AllImages(Stateless):
    """Every image in every epoch."""

    def start_epoch(self) -> None:
        """Do nothing."""

    def choose(self, indices: Tensor, count: int) -> Tensor:
        """Return all images."""
        return indices

    def record(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Do nothing."""


@final
class HardImages:
    """The images whose loss was largest when the network last trained on them.

    An image that was passed over keeps its loss, so it comes back once the others are learned
    better. Source: Jiang et al. 2019, "Accelerating Deep Learning by Focusing on the Biggest
    Losers", with losses of the epoch before (their StaleSB), which cost nothing, and a fixed share.

    Args:
        count: number of all training images.
        device: where their losses are kept.
        ranks: the processes of the run.
    """

    def __init__(self, count: int, device: torch.device, ranks: Ranks) -> None:
        self.ranks = ranks
        self.losses = torch.full((count,), torch.inf, device=device)
        self.ranking = self.losses.clone()  # what the epoch under way was chosen by

    def start_epoch(self) -> None:
        """Choose by all losses so far from here on."""
        self.ranking.copy_(self.losses)

    def choose(self, indices: Tensor, count: int) -> Tensor:
        """Return the `count` hardest of some images, in the order they came in."""
        if count == len(indices):
            return indices
        hardest = self.ranking.cpu()[indices].argsort(descending=True, stable=True)[:count]
        return indices[hardest.sort().values]

    def record(self, indices: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in the losses of the images that a step trained on."""
        losses = F.cross_entropy(logits.float(), labels, reduction="none")
        self.losses[indices] = self.ranks.gather(losses, len(indices))

    def state_dict(self) -> dict[str, Any]:
        """Return the losses, and within an epoch those that it was chosen by."""
        return {"losses": self.losses, "ranking": self.ranking}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.losses.copy_(state["losses"])
        self.ranking.copy_(state["ranking"])


def build_selection(share: float, count: int, device: torch.device, ranks: Ranks) -> Selection:
    """Return what chooses a share of `count` images: all of them for a share of 1."""
    return HardImages(count, device, ranks) if share < 1 else AllImages()
