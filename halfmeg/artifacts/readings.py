"""The log of a run's test set: when it was read, and for what."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

LOG = "test_readings.jsonl"

UNREADABLE = "an entry that a power cut has cut short"


def log_reading(folder: Path, purpose: str) -> None:
    """Add an entry, flushed to disk.

    Raises:
        OSError: the folder cannot be written.
    """
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "purpose": purpose}
    with (folder / LOG).open("a+b") as file:
        torn = False  # a line that a power cut has cut short must not swallow this one
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read() != b"\n"
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_purposes(folder: Path) -> list[str]:
    """Return for what the test set was read, in turn; empty where no log was kept.

    Raises:
        ValueError: the log cannot be read, or is none.
    """
    path = folder / LOG
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    purposes = []
    for line in lines:
        try:
            purposes.append(str(json.loads(line)["purpose"]))
        except ValueError:
            purposes.append(UNREADABLE)  # it was a reading all the same
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
    return purposes
