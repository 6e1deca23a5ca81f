"""What a checkpoint holds: where a run stands, and all that its steps change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.training.optim import NAMED, Schedule, WeightAverage
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


OPTIMIZER_SETTINGS = {"betas", "momentum", "weight_decay"}
"""Keys of a group of parameters that a run's config sets, once and for all."""


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

        Settings of the optimizer stay those of the config: a new run that starts from another's
        checkpoint may have others.

        Raises:
            Exception: it is of another network, or damaged.
        """
        settings = [
            {key: group[key] for key in OPTIMIZER_SETTINGS & group.keys()}
            for group in self.optimizer.param_groups
        ]
        for name, part in self._parts().items():
            stored = states.get(name, {})
            if part is self.optimizer and type(part) not in NAMED:
                _check_own_form(part.state_dict(), stored)
            else:
                _check_form(name, part.state_dict(), stored)
            part.load_state_dict(stored)
        if type(self.optimizer) not in NAMED:  # one that is the user's may keep any shape
            return
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
            for tensor in group["params"]:
                for name, value in self.optimizer.state.get(tensor, {}).items():
                    if isinstance(value, Tensor) and value.shape not in ((), tensor.shape):
                        raise ValueError(f"{name} of the optimizer is {tuple(value.shape)}")


def _check_own_form(own: Any, stored: Any) -> None:
    """Raise where the stored state is of another optimizer than a user's own.

    A step may add to a group, and set what was None; what a group is built with stays there.
    """
    for group, found in zip(own["param_groups"], stored["param_groups"], strict=True):
        if missing := group.keys() - found.keys():
            raise ValueError(f"optimizer.param_groups has no {min(missing)}")


def _check_form(name: str, own: Any, stored: Any) -> None:
    """Raise where a part's stored state has another form than the one that it will replace."""
    kinds = (dict, list, tuple, bool, str, int | float, type(None))
    fits = any(isinstance(own, kind) and isinstance(stored, kind) for kind in kinds)
    if isinstance(own, Tensor):
        fits = isinstance(stored, Tensor) and (stored.shape, stored.dtype) == (own.shape, own.dtype)
    elif fits and isinstance(own, dict):
        if name == "optimizer.state":  # empty before the first step; its tensors are checked after
            return
        fits = own.keys() == stored.keys()
    elif fits and isinstance(own, list | tuple):
        fits = len(own) == len(stored)
    if not fits:
        raise ValueError(f"{name} is of another form")
    if isinstance(own, dict):
        for key, value in own.items():
            _check_form(f"{name}.{key}", value, stored[key])
    elif isinstance(own, list | tuple):
        for index, value in enumerate(own):
            _check_form(f"{name}.{index}", value, stored[index])
