"""What a process writes into a run folder: each file whole, or nothing at all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import final

from halfmeg.artifacts.readings import log_reading
from halfmeg.files import remove_dead_parts, write_atomically

CHECKED = ("weights.safetensors", "logits.npz")
"""The files whose SHA-256 stands in result.json."""


class Writer:
    """Writes nothing, as each process of a distributed run but the first.

    Attributes:
        writes: whether what it is given stands in the folder afterwards.
        sha256: of the `CHECKED` files that it has written.
    """

    writes = False

    def __init__(self) -> None:
        self.sha256: dict[str, str] = {}

    def write(self, name: str, content: bytes) -> None:
        """Write a file, named from the folder on."""

    def remove(self, path: Path) -> None:
        """Remove a file, which may be gone."""

    def remove_dead_parts(self, name: str = ".") -> None:
        """Remove what killed processes were writing in the folder, or in one within."""

    def log_reading(self, purpose: str) -> None:
        """Note that the test set was read, and for what."""


@final
class FolderWriter(Writer):
    """Writes into a run folder."""

    writes = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def write(self, name: str, content: bytes) -> None:
        """Write a file, named from the folder on."""
        write_atomically(self.folder / name, content)
        if name in CHECKED:
            self.sha256[name] = hashlib.sha256(content).hexdigest()

    def remove(self, path: Path) -> None:
        """Remove a file, which may be gone: another process may have been faster."""
        path.unlink(missing_ok=True)

    def remove_dead_parts(self, name: str = ".") -> None:
        """Remove what killed processes were writing in the folder, or in one within."""
        remove_dead_parts(self.folder / name)

    def log_reading(self, purpose: str) -> None:
        """Note that the test set was read, and for what."""
        log_reading(self.folder, purpose)
