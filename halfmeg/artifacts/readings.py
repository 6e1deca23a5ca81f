"""The log of a run's test set: when it was read, and for what."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from halfmeg.files import parse_json, read_limited

LOG = "test_readings.jsonl"

MAX_BYTES = 16 * 2**20


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


class UnloggedReadingWarning(UserWarning):
    """The test set was read for a run in whose folder nothing can be noted."""


@contextmanager
def warn_if_read_only(folder: Path) -> Iterator[None]:
    """Go on where a reading cannot be noted because the folder is read-only.

    Raises:
        OSError: another one, as of a full disk.

    Warns:
        UnloggedReadingWarning: so it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        told = f"{folder} is read-only, so this reading of the test set is not noted there"
        warnings.warn(told, UnloggedReadingWarning, stacklevel=4)


class LoggedReading(NamedTuple):
    """A reading of the test set: when, in ISO 8601 ("" where it is not known), and for what."""

    time: str
    purpose: str


def read_log(folder: Path) -> list[LoggedReading]:
    """Return the readings of the test set, in turn; empty where no log was kept.

    Raises:
        ValueError: the log cannot be read.
    """
    path = folder / LOG
    if not path.exists():
        return []
    try:
        lines = read_limited(path, MAX_BYTES).splitlines()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return [_parse(line) for line in lines]


def _parse(line: bytes) -> LoggedReading:
    try:
        entry = parse_json(line, dict[str, str])
        return LoggedReading(entry.get("time", ""), entry["purpose"])
    except (ValueError, KeyError):  # it was a reading all the same
        return LoggedReading("", "not known, since a power cut has cut the line short")
