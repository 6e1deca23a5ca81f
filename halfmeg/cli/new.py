"""Commands that write a file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfmeg.cli.show import print_line
from halfmeg.errors import quoted
from halfmeg.files import refuse_existing

EXAMPLE = Path(__file__).parents[1] / "networks" / "example.py"


def new_network(
    path: Annotated[str, typer.Argument(help="The file to write, as in mynet.py.")],
) -> None:
    """Write a network of 30 lines that trains and compares at once, to change as you like."""
    file = Path(path)
    if file.suffix != ".py":
        raise ValueError(f"{path} is no name for Python; write one that ends in .py, as mynet.py")
    refuse_existing(file, "name")
    place = quoted(f"{path}:Net")
    text = EXAMPLE.read_text().replace("FILE.py:Net", place)
    try:
        with file.open("x") as stream:
            stream.write(text)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    print_line(f"{path} is written; now: halfmeg compare {place} resnet20 --data digits")
