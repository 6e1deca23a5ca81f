"""What a run takes over from the bundles that it learns from: its initial weights, its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

import numpy as np

from halfmeg.artifacts.seen import INHERITED, ids_to_bytes
from halfmeg.files import find_json, write_json

DESCRIBED = "inherited.json"


@final
@dataclass(frozen=True)
class InheritedBundle:
    """A bundle, as it was when the run began.

    Attributes:
        sha256: of its weights.
        comparable: whether what it has seen can be told by the ids of the run's images.
    """

    sha256: str
    comparable: bool = True


@final
@dataclass(frozen=True)
class Inherited:
    """What a run takes over.

    Attributes:
        bundles: by the settings that name them.
        ids: of the images that they have seen, as far as they say so.
    """

    bundles: Mapping[str, InheritedBundle]
    ids: np.ndarray | None

    def write(self, folder: Path) -> None:
        """Write it into a new run folder."""
        write_json(folder / DESCRIBED, {name: asdict(own) for name, own in self.bundles.items()})
        if self.ids is not None:
            (folder / INHERITED).write_bytes(ids_to_bytes(self.ids))


def read_inherited_bundles(folder: Path) -> dict[str, InheritedBundle]:
    """Return the bundles that a run learns from; empty where it has none, as in old runs.

    Raises:
        ValueError: the file is damaged.
    """
    return find_json(folder / DESCRIBED, dict[str, InheritedBundle]) or {}
