"""Columns of tables, found by their usual names, by what they hold, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfmeg.data.dataset import list_some
from halfmeg.data.options import DataOptions
from halfmeg.data.parts import find_parts, part_of, plain_words
from halfmeg.data.scan import PassedOver

PART_COLUMNS = ("split", "part", "subset")


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        image, label: by name.
        group, part: what keeps images together, and what divides them; None where there is none.
        notes: what a user should know of the choice, a line each.
    """

    image: str
    label: str
    group: str | None
    part: str | None
    notes: tuple[str, ...]


def find_columns(
    path: Path,
    names: Sequence[str],
    options: DataOptions,
    usual: tuple[Sequence[str], Sequence[str]],
    words_of: Callable[[str], Collection[str]],
) -> Columns:
    """Find the columns of a table.

    A part column has a usual name, or holds nothing but names of parts, the training part's among
    them.

    Args:
        path: of the table.
        names: of all columns.
        options: the user's choice comes first.
        usual: names of image and of label columns, in lower case, the likeliest first.
        words_of: texts that a column holds, by which a part column is known.

    Raises:
        ValueError: no image or no label column, or two of its name.
    """
    image, image_note = _find(path, names, options.image_column, usual[0], "image")
    label, label_note = _find(path, names, options.label_column, usual[1], "label")
    group = options.group if options.group in names else None
    others = [name for name in names if name not in (image, label, group)]
    part = next((n for word in PART_COLUMNS for n in others if n.strip().lower() == word), None)
    part = part or next((name for name in others if _are_parts(words_of(name))), None)
    unused = [] if part else [name for name in others if _may_divide(name)]
    part_note = (
        f"the column {unused[0]} is not used; to divide the images, write train and test into it"
        if unused
        else ""
    )
    notes = tuple(note for note in (image_note, label_note, part_note) if note)
    return Columns(image, label, group, part, notes)


def _find(
    path: Path, names: Sequence[str], wanted: str, usual: Sequence[str], kind: str
) -> tuple[str, str]:
    """Return a column, and a line where another one might be meant, or ""."""
    found = [name for word in usual for name in names if name.strip().lower() == word]
    if wanted:
        found = [name for name in names if name == wanted]
    if not found:
        raise ValueError(
            f"{path} has the columns {list_some(names, 20) or 'none'}; expected: "
            f"{wanted or ' or '.join(usual)}; name another with --{kind}-column"
            + ("; one column has to hold each row's class" if kind == "label" else "")
        )
    first, *rest = found
    if first in rest:
        raise ValueError(f"{path} has two columns called {first!r}; rename one")
    if not rest:
        return first, ""
    return first, (
        f"{kind}s are read from the column {first}, not from {list_some(rest)}; "
        f"--{kind}-column names another"
    )


def _may_divide(name: str) -> bool:
    """Return whether a column is called as one that divides: `is_valid`, `test`, `fold`."""
    word = "".join(plain_words(name)).removeprefix("is")
    return part_of(word) is not None or word in ("fold", "kfold")


def _are_parts(words: Collection[str]) -> bool:
    parts = {part_of(word) for word in words if word}
    return None not in parts and len(parts) > 1 and "train" in parts


def parts_by_word(words: set[str], where: str) -> dict[str, str] | None:
    """Return the part for each word of a part column, but for words that are none.

    None means that the words name no parts at all.

    Raises:
        ValueError: two words for one part, or one that may be the missing part.
    """
    named = find_parts(words - {""}, where, words)
    return None if named is None else {word: part for part, word in named.items()}


def divides(column: str) -> str:
    """Return what to tell of a part column."""
    return f"the column {column} divides the images"


def no_part(name: str, column: str | None, word: str) -> PassedOver:
    """Return an image whose word in a part column is none of a part."""
    return PassedOver(name, f"of no part ({column} is {word!r})")
