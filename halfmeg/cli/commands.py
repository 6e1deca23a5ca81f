"""The commands by name, and what is answered before typer is imported.

That is the help, the version and a mistyped command; the wait for typer is most of the wait for an
answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import halfmeg
from halfmeg.cli.show import SPEAKS, escape_unknown_letters, print_line, printable

COMMANDS = {
    "models": "look",
    "summary": "look",
    "recipes": "look",
    "train": "train",
    "resume": "train",
    "evaluate": "train",
    "plan": "plan",
    "compare": "compare",
    "report": "report",
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

ABOUT = "Train, compare and ship image classifiers of fewer than 500,000 parameters."
GROUPS = {"data": "Look at data.", "new": "Write a file to start from."}
"""What the commands of two words have in common, by their first one."""

VERSION_HELP = "Print the versions of halfmeg and torch."

HELP = """\
Usage: halfmeg [OPTIONS] COMMAND [ARGS]...

  {about}

Options:
  --version  {version}
  --help     Show this message and exit.

Commands:
{commands}
"""
"""As typer would print it."""


def answer_at_once(arguments: Sequence[str]) -> None:
    """Answer what needs no typer, and end: the help, the version, or a mistyped command."""
    escape_unknown_letters()
    if list(arguments) == ["--help"]:
        rows = [f"  {name:8}  {text}" for name, text in (summaries() | GROUPS).items()]
        told = HELP.format(about=ABOUT, version=VERSION_HELP, commands="\n".join(rows))
        for line in told.splitlines():
            print_line(line)
        sys.exit(0)
    if list(arguments) == ["--version"]:
        print_version()
        sys.exit(0)
    known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        from halfmeg.errors import did_you_mean

        hint = did_you_mean(arguments[0], known)
        told = f"No such command '{arguments[0]}'; {hint}allowed: {', '.join(known)}"
        print_plainly(f"halfmeg: {told}")
        sys.exit(2)


def summaries() -> dict[str, str]:
    """Return the first line of the docstring of each command of one word, read from its module."""
    import ast

    single = {name: module for name, module in COMMANDS.items() if " " not in name}
    folder = Path(__file__).parent
    found = {
        node.name: (ast.get_docstring(node) or "").partition("\n")[0]
        for module in dict.fromkeys(single.values())
        for node in ast.parse((folder / f"{module}.py").read_bytes()).body
        if isinstance(node, ast.FunctionDef)
    }
    return {name: found[name] for name in single}


def print_version() -> None:
    """Print the versions of halfmeg and torch."""
    from importlib.metadata import version

    print_line(f"halfmeg {halfmeg.__version__}, torch {version('torch')}")


def print_plainly(text: str) -> None:
    """Print text on the error stream, without rich, for whose import nobody should wait."""
    if SPEAKS:
        sys.stderr.write(printable(text) + "\n")
