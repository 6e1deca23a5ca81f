"""Parts of a run that go on from a checkpoint, and those that have nothing to go on from."""

from __future__ import annotations

from typing import Any, Protocol


class Stateful(Protocol):
    """A part of a run that goes on from what it was."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore what `state_dict` returned."""


class Stateless:
    """A part of a run that depends on nothing that happened before."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore nothing."""
