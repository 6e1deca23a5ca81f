"""What an error says, on one line: in messages, in logs, and in the files that keep it.

Errors of libraries and of a user's own Python may have many lines, no end, or no text at all.
"""

from __future__ import annotations


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
