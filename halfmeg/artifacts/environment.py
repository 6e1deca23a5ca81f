"""Where and by what a run was made: command, commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmeg import __version__
from halfmeg.places.place import short_name

PACKAGE = Path(__file__).parent.parent


def environment() -> dict[str, Any]:
    """Return versions, machine and command."""
    return {
        "command": _command(sys.argv[1:]),
        "halfmeg": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _command(words: Sequence[str]) -> str:
    """Return the command line of this process with such words, without its program's folders."""
    program = Path(sys.argv[0])
    as_module = program.name == "__main__.py"
    start = ["python", "-m", program.parent.name] if as_module else [program.name]
    return shlex.join([*start, *words])


def public_command() -> str:
    """Return the command line of this process as a bundle states it, which others may read.

    Of absolute paths the last names are left. What another program was called with is its own:
    then it is "from Python".
    """
    program = Path(sys.argv[0])
    as_module = program.name == "__main__.py" and program.parent.name == PACKAGE.name
    if not as_module and program.name not in (PACKAGE.name, f"{PACKAGE.name}.exe"):
        return "from Python"
    return _command([without_folders(word) for word in sys.argv[1:]])


def without_folders(word: str) -> str:
    """Return a word with the last name of an absolute path alone, also behind an option's `=`.

    The path may be a folder, a file, or a place in one.
    """
    if Path(word).is_absolute():
        return Path(short_name(word)).name or word
    start, sign, value = word.partition("=")
    return f"{start}={without_folders(value)}" if sign else word


def _git_commit() -> str | None:
    """Return the commit of the checkout that halfmeg runs from, "+" behind it if it was changed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not a user's own repository
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "-s", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed package, or no git


def processor_name() -> str:
    """Return the processor's name as the system tells it."""
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return str(name or platform.machine()).strip()
