"""Start the command line, as `python -m halfmeg` or as the installed `halfmeg`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def start() -> NoReturn:
    """Run the command line; Ctrl-C is one line also while modules are still being loaded."""
    listens = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if listens:
        signal.signal(signal.SIGINT, _stop_at_once)
    from halfmeg.cli.commands import answer_at_once

    answer_at_once(sys.argv[1:])
    from halfmeg.cli.main import main

    if listens:
        signal.signal(signal.SIGINT, _interrupt)
    main()


def _stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process: nothing has begun that would have to be ended well."""
    os.write(2, b"halfmeg: stopped\n")
    os._exit(130)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Raise, but not into a module that is being loaded: a native one would abort the process."""
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename == "<frozen importlib._bootstrap>":
            _stop_at_once(number, frame)
        inner = inner.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    start()
