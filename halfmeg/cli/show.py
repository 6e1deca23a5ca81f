"""How text, tables and JSON are printed.

rich is imported when something is drawn with it, so that `--help` does not wait for it.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from halfmeg.data.shape import ImageSize
    from halfmeg.networks.memory import Memory
    from halfmeg.studies.stats import Interval

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

SPEAKS = os.environ.get("RANK", "0") == "0"
"""Whether this process speaks for the run: torchrun numbers its processes."""


def escape_unknown_letters() -> None:
    """Let both streams write a letter that their encoding lacks as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@functools.cache
def screen(*, stderr: bool = False) -> Console:
    """Return rich's console on one of the two streams."""
    from rich.console import Console

    # What users name is text, never markup: `photo[copy].jpg`, a class `[red]`.
    return Console(stderr=stderr, quiet=not SPEAKS, markup=False, emoji=False, highlight=False)


def print_json(value: object) -> None:
    """Print JSON for a machine; NaN and infinity are refused."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def printable(text: str) -> str:
    """Return text with what controls a screen, which a file's name may hold, written as escapes.

    That is characters which move the cursor, change colours, or turn the direction of writing.
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Return text for a place in a line: as `printable`, without an end of line or tab within."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def print_line(text: str) -> None:
    """Print text as it is, on one line."""
    print_text(one_line(text))


def print_text(text: str) -> None:
    """Print text as it is, on as many lines as it has."""
    if SPEAKS:
        sys.stdout.write(printable(text) + "\n")


def print_error(text: str) -> None:
    """Print text on the error stream; a bar that is drawn there moves down."""
    screen(stderr=True).print(one_line(text), soft_wrap=True)


NO_DATA = "halfmeg: without --data this is the built-in data set, digits"

TEXT_COLUMNS = ("most often taken for",)
"""Columns of text beside the first, which always is."""


@dataclass
class TextTable:
    """A table of texts, which are shown as they are; the first row is the header."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)


def print_table(table: TextTable) -> None:
    """Print a table as wide as the screen, its numbers to the right."""
    from rich.table import Table

    console = screen()
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(_wrapped_headers(table, console.width)):
        is_text = index == 0 or table.columns[index] in TEXT_COLUMNS
        drawn.add_column(
            column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in table.rows:
        drawn.add_row(*(one_line(cell) for cell in row))
    console.print(drawn)


def _wrapped_headers(table: TextTable, width: int) -> list[str]:
    """Break headers into lines, the longest first, until the table is `width` characters wide.

    Numbers are not wrapped, so that a narrow screen would take all it lacks from the first column.
    """
    headers, cells = list(table.columns), [1] * len(table.columns)
    for row in table.rows:
        cells = [max(widest, len(one_line(cell))) for widest, cell in zip(cells, row, strict=True)]
    widths = [max(len(h), c) for h, c in zip(headers, cells, strict=True)]
    gaps = 2 * (len(headers) - 1)
    for index in sorted(range(len(headers)), key=lambda i: -len(headers[i])):
        if sum(widths) + gaps <= width:
            break
        least = max(cells[index], *map(len, headers[index].split()))
        headers[index] = "\n".join(textwrap.wrap(headers[index], least))
        widths[index] = least
    return headers


def format_range(interval: Interval) -> str:
    """Write an interval of shares in percent."""
    ends = interval.in_percent(1)
    return "–" if ends is None else f"{ends}%"


def memory_or_reason(model: nn.Module, image_size: ImageSize) -> Memory | str:
    """Return what a network needs in C, or why it cannot be written."""
    from halfmeg.networks.memory import measure_memory

    try:
        return measure_memory(model, image_size)
    except ValueError as error:
        return str(error)


def memory_json(memory: Memory | str) -> dict[str, Any]:
    """Return it as JSON types."""
    return {"missing": memory} if isinstance(memory, str) else memory.to_dict()


def describe_memory(memory: Memory | str) -> str:
    """Say it in a line."""
    if isinstance(memory, str):
        return f"it cannot be written, as {memory}"
    return (
        f"{memory.ram_bytes:,} bytes of RAM, set by {memory.peak}; "
        f"{memory.flash_bytes:,} bytes of flash; in TFLite Micro {describe_arena(memory)}"
    )


def describe_arena(memory: Memory) -> str:
    """Say what TFLite Micro would need."""
    if memory.tflite_micro_bytes is None:
        return f"it is not known, as {memory.tflite_micro_missing}"
    return f"an arena of about {memory.tflite_micro_bytes:,} bytes"
