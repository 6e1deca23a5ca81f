"""Loss, right answers and time of an epoch, added up over steps and processes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from halfmeg.artifacts.run import Run
from halfmeg.training.batches import Batch
from halfmeg.training.distributed import Ranks
from halfmeg.training.listen import StepReport
from halfmeg.training.plan import Plan
from halfmeg.training.state import Position
from halfmeg.training.stopping import TrainingDivergedError, how_it_diverged

REPORT_SECONDS = 0.2


@final
class Totals:
    """The sums of the epoch under way, which stay on the device until they are asked for.

    Args:
        run: whose they are, of a stack the first.
        positions: where the networks stand that are trained together; moved along.
        ranks: the processes of the run.
        device: where the networks are.
    """

    def __init__(
        self, run: Run, positions: Sequence[Position], ranks: Ranks, device: torch.device
    ) -> None:
        self.run = run
        self.positions = positions
        self.ranks = ranks
        sums = [at.loss_sum for at in positions]
        self.loss_sum = torch.tensor(sums, dtype=torch.float64, device=device)
        self.num_right = torch.tensor([at.num_right for at in positions], device=device)
        self.started = time.perf_counter() - positions[0].epoch_seconds
        self.read_last = time.perf_counter()

    def add(self, batch: Batch, logits: Tensor, loss: Tensor) -> None:
        """Take in a step: its mean loss, a scalar or one for each network, and its answers."""
        count = batch.num_images
        right = (logits.argmax(-1) == batch.labels)[..., : self.ranks.num_own(count)]
        self.loss_sum += self.ranks.sum(loss.detach().double() * (count / self.ranks.size))
        self.num_right += self.ranks.sum(right.sum(-1))
        for at in self.positions:
            at.step += 1
            at.num_seen += count

    def are_old(self) -> bool:
        """Return whether it is time to read them again."""
        return time.perf_counter() - self.read_last > REPORT_SECONDS

    def read(self) -> None:
        """Bring the positions up to date; waits for the device.

        Raises:
            TrainingDivergedError: the loss, of a stack each of them, is NaN or infinite.
        """
        sums, rights = self.loss_sum.tolist(), self.num_right.tolist()
        self.read_last = time.perf_counter()
        for at, loss_sum, num_right in zip(self.positions, sums, rights, strict=True):
            at.loss_sum, at.num_right = loss_sum, num_right
            at.epoch_seconds = self.read_last - self.started
        if not any(math.isfinite(loss_sum) for loss_sum in sums):
            raise TrainingDivergedError(how_it_diverged(self.run, self.positions[0]))


def report_step(plan: Plan, at: Position) -> StepReport:
    """Describe where a run stands; in the time left an image counts by its pixels."""
    rate = at.num_seen / at.epoch_seconds
    return StepReport(
        epoch=at.epoch + 1,
        epochs=len(plan.epochs),
        step=at.step,
        steps=len(plan.epochs[at.epoch].batches),
        loss=at.loss_sum / at.num_seen,
        accuracy=at.num_right / at.num_seen,
        images_per_second=rate,
        seconds_left=max(0, plan.images_left(at.epoch) - at.num_seen) / rate,
    )
