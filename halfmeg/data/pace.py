"""When to give up on a server that sends hardly anything.

A socket's timeout ends with each byte that comes, so a byte now and then holds a download for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 10_000


class TooSlowError(ValueError):
    """Too little has come."""

    def __init__(self) -> None:
        super().__init__(f"it sends less than {LEAST_BYTES_PER_SECOND:,} bytes a second")


class Pace:
    """An answer may fall back by `PATIENCE_SECONDS` behind the least speed, however fast it was."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + PATIENCE_SECONDS

    def add(self, count: int) -> None:
        """Count bytes that came; raise `TooSlowError` where they came too late."""
        now = time.monotonic()
        if now > self.deadline:
            raise TooSlowError
        needed = self.deadline + count / LEAST_BYTES_PER_SECOND
        self.deadline = min(needed, now + PATIENCE_SECONDS)

    def wait(self, step: Callable[[], T]) -> T:
        """Return what a step of the download returns.

        It runs in a thread of its own, which is left alone where it takes too long: what reads
        headers, or waits for a whole chunk, comes back to nobody in between.

        Raises:
            TooSlowError: it did not return in time.
        """
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(step())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        try:
            return done.result(max(0.0, self.deadline - time.monotonic()))
        except TimeoutError:
            if done.done():  # the step's own
                raise
            raise TooSlowError from None
