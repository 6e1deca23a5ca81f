"""How a run ends before its time: a signal, or a loss that is no number any more."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from halfmeg.errors import quoted
from halfmeg.files import scratch_folder

if TYPE_CHECKING:
    from torch import Tensor

    from halfmeg.artifacts.run import Run
    from halfmeg.training.distributed import Ranks
    from halfmeg.training.state import Position


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class TrainingInterruptedError(RuntimeError):
    """A signal stopped the run after a checkpoint was written."""

    def __init__(self, advice: str, signal_number: int) -> None:
        super().__init__(f"stopped; {advice}")
        self.signal_number = signal_number


def how_to_continue(run: Run) -> str:
    """Return what to say of a run that was stopped."""
    return f"continue with `halfmeg resume {quoted(run.folder)}`"


def how_it_diverged(run: Run, at: Position) -> str:
    """Return what to say of a run whose loss is no number any more."""
    uncompiled = ", or compile=false" if run.config.compile is True else ""
    return (
        f"the loss became {at.loss_sum / at.num_seen} in epoch {at.epoch + 1}, step {at.step}; "
        f"the checkpoints in {run.folder} are from before; "
        f"try a smaller lr than {run.config.lr:g}{uncompiled}"
    )


def require_finite(run: Run, tensors: Iterable[Tensor]) -> None:
    """Raise TrainingDivergedError where the weights or answers of a trained network are NaN."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise TrainingDivergedError(
            f"the network gives no numbers any more after its last step; the last checkpoint in "
            f"{run.folder} is of it; try a smaller lr than {run.config.lr:g}"
        )


@contextmanager
def throwaway_folder() -> Iterator[Path]:
    """Yield a scratch folder for runs that are not kept, of which nobody is told to go on."""
    with scratch_folder() as folder:
        try:
            yield folder
        except TrainingInterruptedError as error:
            advice = "nothing is kept of it; give the same command again"
            raise TrainingInterruptedError(advice, error.signal_number) from None
        except TrainingDivergedError as error:
            kept = [part for part in str(error).split("; ") if str(folder) not in part]
            raise TrainingDivergedError("; ".join(kept)) from None


@dataclass
class Stop:
    """Whether a signal asked a run to stop."""

    ranks: Ranks
    requested: int = 0  # the signal's number

    def poll(self) -> int:
        """Return the number of a signal that came to any process of the run; 0 without one."""
        self.requested = self.ranks.largest(self.requested)
        return self.requested


@contextmanager
def stop_signals(ranks: Ranks) -> Iterator[Stop]:
    """Turn Ctrl-C and SIGTERM into a request; a second Ctrl-C stops at once."""
    stop = Stop(ranks)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = number

    previous = {
        number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
