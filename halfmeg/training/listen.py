"""Who is told how a run goes: a progress bar, TensorBoard, nobody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.artifacts.run import Run


@dataclass(frozen=True)
class StepReport:
    """Where a run stands: counts from 1, means over the epoch so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float
    images_per_second: float
    seconds_left: float


class Listener:
    """Is told how a run goes, as a progress bar or TensorBoard; this one tells nobody."""

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        """The run starts or continues; `damaged` checkpoints were passed over."""

    def on_step(self, report: StepReport) -> None:
        """Some steps were done; called at most a few times a second."""

    def on_epoch(self, row: MetricsRow) -> None:
        """An epoch has ended."""
