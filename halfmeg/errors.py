"""What an error says, on one line: in messages, in logs, and in the files that keep it.

Errors of libraries and of a user's own Python may have many lines, no end, or no text at all.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping

MAX_VALUE = 200
"""Letters of a value that are told."""


def text_of(error: BaseException, most: int | None = None) -> str:
    """Return what an error says, on one line of at most so many letters; it may be none.

    Example:
        >>> from halfmeg.errors import text_of
        >>> text_of(ValueError("bad\\n   value"))
        'bad value'
    """
    try:
        text = str(error)
    except Exception:  # a class of the user's own may fail at this too
        text = ""
    return " ".join(text.split())[:most]


def one_line(error: BaseException, most: int | None = None) -> str:
    """Return what an error says as `text_of` does, or its kind where it says nothing."""
    return text_of(error, most) or type(error).__name__


def with_kind(error: BaseException, most: int | None = None) -> str:
    """Return an error's kind, and what it says as `text_of` does: `KeyError: 'x'`."""
    kind, text = type(error).__name__, text_of(error, most)
    return f"{kind}: {text}" if text else kind


def error_line(output: str) -> str:
    """Return the line of a program's output that names its error, or the first; 200 letters.

    Example:
        >>> from halfmeg.errors import error_line
        >>> error_line("In file net.c:\\n  net.c:3: error: no such name\\n")
        'net.c:3: error: no such name'
    """
    lines = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return (lines or output.splitlines() or ["it says nothing"])[0][:200]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the known word that is most like a mistyped one; empty without any.

    Example:
        >>> from halfmeg.errors import did_you_mean
        >>> did_you_mean("resnet200", ["cnn", "resnet20"])
        "did you mean 'resnet20'? "
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def first_difference(before: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Say the first of some fields that differs, with both values; None where none does.

    A field that one of the two lacks has no value there, which is None.

    Example:
        >>> from halfmeg.errors import first_difference
        >>> first_difference({"lr": 0.1, "hflip": True}, {"lr": 0.1, "hflip": False})
        'hflip is True there and False here'
    """
    for name in {**before, **now}:
        there, here = before.get(name), now.get(name)
        if there != here:
            return f"{name} is {str(there)[:MAX_VALUE]} there and {str(here)[:MAX_VALUE]} here"
    return None


def quoted(path: object) -> str:
    """Return a path as it is typed in a shell, for a command to run next."""
    return shlex.quote(str(path))
