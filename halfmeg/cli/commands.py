"""The commands by name, and what is answered before typer is imported.

That is the version and a mistyped command; the wait for typer is most of the wait for an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import halfmeg
from halfmeg.cli.show import SPEAKS, escape_unknown_letters, print_line, printable

COMMANDS = {
    "models": "look",
    "summary": "look",
    "recipes": "look",
    "train": "train",
    "resume": "train",
    "evaluate": "train",
    "plan": "compare",
    "compare": "compare",
    "report": "compare",
    "search": "search",
    "export": "ship",
    "predict": "ship",
    "bench": "ship",
    "demo": "ship",
    "push": "ship",
    "pull": "ship",
    "data check": "look",
    "data cache": "look",
    "new network": "new",
}
"""Every command and the module of this room that holds it, in the order of `--help`; its function
is called as it is, with `_` for the space."""


def answer_at_once(arguments: Sequence[str]) -> None:
    """Print the version, or name a mistyped command, and end; return where there is more to do."""
    escape_unknown_letters()
    if list(arguments) == ["--version"]:
        print_version()
        sys.exit(0)
    known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        print_plainly(f"halfmeg: No such command '{arguments[0]}'; allowed: {', '.join(known)}")
        sys.exit(2)


def print_version() -> None:
    """Print the versions of halfmeg and torch."""
    from importlib.metadata import version

    print_line(f"halfmeg {halfmeg.__version__}, torch {version('torch')}")


def print_plainly(text: str) -> None:
    """Print text on the error stream, without rich, for whose import nobody should wait."""
    if SPEAKS:
        sys.stderr.write(printable(text) + "\n")
