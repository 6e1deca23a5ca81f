"""Where and by what a run was made: command, commit, versions, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halfmeg import __version__

PACKAGE = Path(__file__).parent.parent


def environment() -> dict[str, Any]:
    """Return versions, machine and command."""
    return {
        "command": _command(),
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


def _command() -> str:
    """Return the command line of this process, without the folders of its program."""
    program = Path(sys.argv[0])
    as_module = program.name == "__main__.py"
    start = ["python", "-m", program.parent.name] if as_module else [program.name]
    return shlex.join([*start, *sys.argv[1:]])


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
