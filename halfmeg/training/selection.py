"""Which images an epoch trains on, where that is not all of them."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor


@final
class HardImages:
    """The images whose loss was largest when the network last trained on them.

    An image that was passed over keeps its loss, so it comes back once the others are learned
    better. Source: Jiang et al. 2019, "Accelerating Deep Learning by Focusing on the Biggest
    Losers", with losses of the epoch before (their StaleSB), which cost nothing, and a fixed share.

    Args:
        count: number of all training images.
        device: where their losses are kept.
    """

    def __init__(self, count: int, device: torch.device) -> None:
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
        """Take in the logits B×num_classes of images that were trained on."""
        self.losses[indices] = F.cross_entropy(logits.float(), labels, reduction="none")

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold; within an epoch it takes both."""
        return {"losses": self.losses, "ranking": self.ranking}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.losses.copy_(state["losses"])
        self.ranking.copy_(state["ranking"])
