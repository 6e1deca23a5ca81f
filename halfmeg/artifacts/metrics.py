"""metrics.csv: what was measured after each epoch of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from halfmeg.files import read_limited

METRICS = (
    "epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "test_loss", "test_accuracy", "images_per_second", "seconds",
)  # fmt: skip
"""The columns; a cell is empty where nothing was measured. `seconds` adds up."""

MAX_BYTES = 256 * 2**20

MetricsRow = dict[str, float | int | None]


def metrics_to_bytes(rows: Sequence[MetricsRow]) -> bytes:
    """Return the file's content."""
    text = io.StringIO()
    writer = csv.DictWriter(text, METRICS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def count_epochs(folder: Path) -> int:
    """Return how many epochs a run folder has; none where its metrics are damaged."""
    try:
        return len(read_metrics(folder / "metrics.csv"))
    except ValueError:
        return 0


def read_metrics(path: Path) -> list[MetricsRow]:
    """Read the file; an empty list where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        text = read_limited(path, MAX_BYTES).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if any(not row["epoch"] for row in rows):
            raise ValueError("a row has no epoch")
        return [{key: float(row[key]) if row[key] else None for key in METRICS} for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
