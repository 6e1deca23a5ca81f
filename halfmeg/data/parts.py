"""The names by which people call the training, the validation and the test part."""

from __future__ import annotations

from collections.abc import Iterable

PARTS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Each part with the names it goes by, in any mixture of capitals."""


def part_of(name: str) -> str | None:
    """Return the part that a name stands for, if any."""
    lowered = name.lower()
    return next((part for part, names in PARTS.items() if lowered in names), None)


def find_parts(names: Iterable[str], where: str) -> dict[str, str] | None:
    """Tell parts from classes: return the name that stands for each part, or None for classes.

    They are parts where a training part stands beside another one, or where there is nothing but
    parts: a class may well be called "train", beside "bus". A training part alone is "all", to be
    split; without a test part the validation part stands in for it.

    Raises:
        ValueError: two names for one part.
    """
    listed = sorted(names)
    found: dict[str, str] = {}
    for part in PARTS:
        called = [name for name in listed if part_of(name) == part]
        if len(called) > 1:
            raise ValueError(
                f"{where} has {called[0]!r} and {called[1]!r}, two names for one part; rename one"
            )
        if called:
            found[part] = called[0]
    beside = "train" in found and len(found) > 1
    if not found or not (beside or len(found) == len(listed)):
        return None
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return {"all": found["train"]} if set(found) == {"train"} else found
