"""A process that works when it is asked to, so that several can take turns."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self


class Worker:
    """A function in a process of its own, which does a piece of its work for each request.

    The settings of the allocator and the threads of OpenMP are then its own. In threads of one
    process OpenMP counts the threads of all, and where they are more than the cores it sleeps in
    waits in which it would else be ready at once: two trainings in turn took a fifth longer so.

    Args:
        work: is called with a pipe and the arguments. The name of a piece of work that comes from
            the pipe asks for it, and its result is sent back; an empty one asks to end.
        name: what to call it where it fails.
        arguments: of `work`, after the pipe.
    """

    def __init__(self, work: Callable[..., None], name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *arguments))
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def request(self, piece: str) -> Any:
        """Return the result of a piece of work.

        Raises:
            SystemExit: the process has ended; what it printed says why.
        """
        try:
            self.pipe.send(piece)
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name} failed; its error stands above") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        with suppress(ConnectionError):  # it may have ended by itself
            self.pipe.send("")
        self.process.join()
