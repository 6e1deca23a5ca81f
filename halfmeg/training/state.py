"""What a checkpoint holds: where a run stands, and all that its steps change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from halfmeg.artifacts.run import MetricsRow
from halfmeg.training.optim import Schedule, WeightAverage
from halfmeg.training.selection import Selection
from halfmeg.training.stateful import Stateful


@dataclass
class Position:
    """Where in the run the loop stands, and what it has added up."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the epoch under way
    loss_sum: float = 0.0  # over the images of the epoch under way
    num_right: int = 0
    num_seen: int = 0
    epoch_seconds: float = 0.0  # of training alone, evaluation excluded
    total_seconds: float = 0.0
    metrics: list[MetricsRow] = field(default_factory=list)


@final
@dataclass(frozen=True)
class State:
    """All that the steps of a run change."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: WeightAverage
    selection: Selection

    def _parts(self) -> dict[str, Stateful]:
        """Return the parts by their keys in a checkpoint."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "hard": self.selection,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        # a view would bring the whole stack of seeds that it is a part of into the file
        states["model"] = {key: value.clone() for key, value in states["model"].items()}
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; a part that is missing there keeps nothing.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is of another network.
        """
        for name, part in self._parts().items():
            part.load_state_dict(states.get(name, {}))
