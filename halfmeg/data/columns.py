"""Columns of tables, found by their usual names or as the user says."""

from __future__ import annotations

from collections.abc import Sequence

from halfmeg.data.dataset import list_some
from halfmeg.data.parts import find_parts
from halfmeg.data.scan import PassedOver

PART_COLUMNS = ("split", "part", "subset")


def find_column(
    names: Sequence[str], wanted: str, usual: Sequence[str], kind: str
) -> tuple[str | None, str]:
    """Find a column.

    Args:
        names: of all columns.
        wanted: the user's choice; "" takes the first of `usual`, in any mixture of capitals.
        usual: names in lower case, the likeliest first.
        kind: "image" or "label".

    Returns:
        Its name, or None, and a line where another one might be meant, or "".
    """
    if wanted:
        return (wanted if wanted in names else None), ""
    found = [name for word in usual for name in names if name.strip().lower() == word]
    if len(found) < 2:
        return (found[0] if found else None), ""
    others = list_some(found[1:])
    return found[0], (
        f"{kind}s are read from the column {found[0]}, not from {others}; "
        f"--{kind}-column names another"
    )


def find_part_column(names: Sequence[str]) -> str | None:
    """Return the column that names each image's part, if any."""
    return find_column(names, "", PART_COLUMNS, "part")[0]


def parts_by_word(words: set[str], where: str) -> dict[str, str] | None:
    """Return the part for each word of such a column, but for words that are none.

    None means that the words name no parts at all.

    Raises:
        ValueError: two words for one part, or one that may be the missing part.
    """
    named = find_parts(words - {""}, where, words)
    return None if named is None else {word: part for part, word in named.items()}


def no_part(name: str, column: str | None, word: str) -> PassedOver:
    """Return an image whose word in such a column is none of a part."""
    return PassedOver(name, f"of no part ({column} is {word!r})")
