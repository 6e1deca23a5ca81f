"""The names by which people call the training, the validation and the test part."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

PARTS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("validation", "valid", "val", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "holdout"),
}
"""Each part with the names it goes by, in any mixture of capitals."""

_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_BESIDE = ("dataset", "data", "set", "images", "image", "imgs", "img", "split", "part")
"""What people write beside such a name: `training_set`, `TrainData`, `test-images`."""


def part_of(name: str) -> str | None:
    """Return the part that a name stands for, if any: `train2017`, `Training_Set`, `hold-out`."""
    return _PART_OF.get("".join(plain_words(name)))


def plain_words(name: str) -> list[str]:
    """Return the words of a name without numbers, and without what is written beside a part."""
    words = []
    for word in re.findall(r"[^\W\d_]+", name.lower()):
        bare = next((word.removesuffix(end) for end in _BESIDE if word.endswith(end)), word)
        words.append(bare if not bare or bare in _PART_OF else word)
    return [word for word in words if word]


def find_parts(
    names: Iterable[str], where: str, alike: Collection[str] = ()
) -> dict[str, str] | None:
    """Tell parts from classes: return the name that stands for each part, or None for classes.

    They are parts where a training part stands beside another one, or where there is nothing but
    parts: a class may well be called "train", beside "bus". A training part alone is "all", to be
    split; without a test part the validation part stands in for it. Words that all names share do
    not count: `seg_train` and `seg_test` are parts.

    Args:
        names: of folders, of tables, or in a column.
        where: what to call their place.
        alike: those that hold what a part does, so that leaving one out may be wrong.

    Raises:
        ValueError: two names for one part, or one of `alike` that may be the missing part.
    """
    listed = sorted(names)
    words = {name: plain_words(name) for name in listed}
    shared = set.intersection(*map(set, words.values())) if len(listed) > 1 else set()
    part_by_name = {
        name: part_of(" ".join(word for word in words[name] if word not in shared)) or part_of(name)
        for name in listed
    }
    by_part = {part: [name for name in listed if part_by_name[name] == part] for part in PARTS}
    called = {part: own for part, own in by_part.items() if own}
    unknown = [name for name in listed if name in alike and part_by_name[name] is None]
    if unknown and called and not {"train", "test"} <= called.keys():
        known = next(iter(called.values()))[0]
        raise ValueError(
            f"{where} has {unknown[0]!r} beside {known!r}, and which part it is cannot be told; "
            "call it train, validation or test, or move it away"
        )
    beside = "train" in called and len(called) > 1
    if not called or not (beside or all(part_by_name.values())):
        return None
    for twice in called.values():
        if len(twice) > 1:
            raise ValueError(
                f"{where} has {twice[0]!r} and {twice[1]!r}, two names for one part; rename one"
            )
    found = {part: own[0] for part, own in called.items()}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    return {"all": found["train"]} if set(found) == {"train"} else found
