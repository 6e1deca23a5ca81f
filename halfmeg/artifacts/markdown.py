"""User text in Markdown: names of classes, data and networks are shown as they are."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_SIGNS = re.compile(r"([\\`*_\[\]<>|~$&#])")


def escape_markdown(text: object) -> str:
    """Return a text as Markdown shows it to the letter: no markup, no HTML, no cell of a table.

    Example:
        >>> from halfmeg.artifacts.markdown import escape_markdown
        >>> print(escape_markdown("a|b [/b]"))
        a\\|b \\[/b\\]
    """
    plain = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(str(text).split()))
    return _SIGNS.sub(r"\\\1", plain)
