"""What the `auto` settings of a run came to on the machine where it started."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

CHOSEN = "chosen.json"


@final
@dataclass(frozen=True)
class Chosen:
    """The content of chosen.json, which makes a run go on to the same bits.

    Attributes:
        kernels: the way of each grouped or dilated convolution, by its name.
        compile: whether the network is compiled.
        notes: one line for each setting, of what was measured.
    """

    kernels: dict[str, str] = field(default_factory=dict)
    compile: bool = False
    notes: tuple[str, ...] = ()
