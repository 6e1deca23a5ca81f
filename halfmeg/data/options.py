"""How a source is read: the settings that belong to the data, not to the training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from halfmeg.data.decode import FITS, FitName
from halfmeg.data.folds import parse_fold
from halfmeg.data.shape import CHANNELS, RGB, ImageSize, parse_size

DEFAULT_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    r"""What a user may say about how images, labels and groups are found in a source.

    Attributes:
        fit: how an image of other proportions is brought to size: "crop", "pad" or "squash".
        group: keeps images together in every split: a regular expression over the path, whose
            first bracket (or whole match) names the group, or a column of the table.
        image_column, label_column: of a table; "" finds them by their usual names.
        channels: 3 makes RGB of every image, 1 gray.
        fold: tests on one of several folds of all images, such as "2/5"; "" takes the source's
            own test part, or a fifth.

    Raises:
        ValueError: an unknown fit, another number of channels, a broken expression, or no fold.

    Example:
        >>> from halfmeg.data.options import DataOptions
        >>> DataOptions(group=r"(person\d+)_").path_group("anna/person7_03.jpg")
        'person7'
    """

    fit: FitName = "crop"
    group: str = ""
    image_column: str = ""
    label_column: str = ""
    channels: int = RGB
    fold: str = ""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit={self.fit!r} is not known; allowed: {', '.join(FITS)}")
        if self.channels not in CHANNELS:
            raise ValueError(
                f"channels={self.channels} is not known; allowed: {', '.join(map(str, CHANNELS))}"
            )
        try:
            re.compile(self.group)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"group={self.group!r} is no regular expression ({error}) and no column"
            ) from None
        if self.fold:
            parse_fold(self.fold)

    def path_group(self, path: str) -> str:
        """Return the group that `group` finds in a path; "" where there is none."""
        found = re.search(self.group, path) if self.group else None
        if found is None:
            return ""
        return (found[1] if found.re.groups else found[0]) or ""

    def override(self, assignments: Sequence[str]) -> tuple[Self, list[str]]:
        """Apply those of the `key=value` texts that concern data; return the others too."""
        names = {field.name for field in fields(self)}
        changes: dict[str, Any] = {}
        others = []
        for text in assignments:
            key, separator, value = text.partition("=")
            if separator and key in names:
                is_number = key == "channels" and value.isdecimal()
                changes[key] = int(value) if is_number else value
            else:
                others.append(text)
        return replace(self, **changes), others

    def to_dict(self) -> dict[str, Any]:
        """Return those that differ from the defaults, as JSON types."""
        default = type(self)()
        return {k: v for k, v in asdict(self).items() if v != getattr(default, k)}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Rebuild options from `to_dict`'s output.

        Raises:
            ValueError: an unknown option, or one of a wrong type.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not all(
            key in names and isinstance(value, int if key == "channels" else str)
            for key, value in values.items()
        ):
            raise ValueError(f"data options {values!r} are not known")
        return cls(**values)


def read_options(
    settings: Sequence[str] | None, image_column: str | None, label_column: str | None
) -> tuple[DataOptions, list[str]]:
    """Take what concerns data from the command line; return the other settings too."""
    options, others = DataOptions().override(settings or [])
    return replace(
        options,
        image_column=image_column or options.image_column,
        label_column=label_column or options.label_column,
    ), others


def read_size(settings: Sequence[str], option: str | None) -> tuple[ImageSize, list[str]]:
    """Take the size of images from the settings, or from the option; return the other settings too.

    Raises:
        ValueError: no size, or two that differ.
    """
    given = [] if option is None else [option]
    given += [text.partition("=")[2] for text in settings if text.startswith("image_size=")]
    sizes = [parse_size(text) for text in given]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"image_size is given as {' and as '.join(given)}; leave one out")
    others = [text for text in settings if not text.startswith("image_size=")]
    return (sizes[0] if sizes else DEFAULT_SIZE), others
