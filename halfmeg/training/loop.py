"""The training loop.

What is off does nothing: a run's only process adds up over nobody, the loss without a teacher asks
none, and a selection that takes a share of 1 takes all images. A stack of networks is
trained as one is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from halfmeg.artifacts.run import Run
from halfmeg.training.batches import Batch
from halfmeg.training.distributed import Ranks
from halfmeg.training.listen import Listener
from halfmeg.training.plan import Epoch, Plan
from halfmeg.training.state import Position, State
from halfmeg.training.stopping import Stop, TrainingInterruptedError
from halfmeg.training.totals import Totals, report_step


class Trainee(Protocol):
    """What the loop trains: the network of a job, or as a stack those of several."""

    run: Run  # of a stack the first one's, as is the plan
    plan: Plan
    ranks: Ranks
    device: torch.device
    state: State

    @property
    def advice(self) -> str:
        """What to do when it was stopped."""

    def draw(self, epoch: Epoch, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on."""

    def forward(self, images: Tensor) -> Tensor:
        """Map the images of a batch to logits."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss of a batch: a scalar, or one for each network of a stack."""

    def after_step(self, batch: Batch, logits: Tensor) -> None:
        """Take the new weights into their average, and the losses into the next selection."""

    def save(self, positions: Sequence[Position]) -> None:
        """Write a checkpoint of each network."""


def train_epoch(
    trainee: Trainee, positions: Sequence[Position], listener: Listener, stop: Stop
) -> None:
    """Do the rest of an epoch, and move along the position of each network.

    Raises:
        TrainingDivergedError: the loss, of a stack each of them, is NaN or infinite.
        TrainingInterruptedError: a signal came; a checkpoint was written.
    """
    state, at = trainee.state, positions[0]
    epoch = trainee.plan.epochs[at.epoch]
    totals = Totals(trainee.run, positions, trainee.ranks, trainee.device)
    state.model.train()
    for batch in trainee.draw(epoch, at.step):
        state.schedule.set_step(epoch.first_step + at.step)
        logits = trainee.forward(batch.images)
        loss = trainee.loss(logits, batch)
        state.optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        trainee.after_step(batch, logits.detach())
        totals.add(batch, logits, loss)

        done = at.step == len(epoch.batches)
        if totals.are_old() or done:
            totals.read()  # waits for the device
            listener.on_step(report_step(trainee.plan, at))
        if stop.poll() and not done:
            totals.read()
            trainee.save(positions)
            raise TrainingInterruptedError(trainee.advice, stop.requested)
