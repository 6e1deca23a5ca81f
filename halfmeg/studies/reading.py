"""How a study is read: at which numbers of seeds, at what level, within what margin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from halfmeg.artifacts.readings import warn_if_read_only
from halfmeg.files import find_json, read_json, write_json
from halfmeg.studies.power import LOOK_LEVEL, LOOKS
from halfmeg.studies.stats import LEVEL

MARGIN = 0.01
"""The difference within which two networks are called the same, where no other is asked for."""


@dataclass(frozen=True)
class Reading:
    """What `study.json` keeps of how the study is read.

    Attributes:
        margin: difference within which two networks are called the same, 0 to 1.
        level: share of studies without a difference that may find one, at each look.
        planned: numbers of seeds at which the study was planned to be read; empty where it is read
            once.
        looks: numbers of seeds at which it has been read.
        margins: within which it has been read.
    """

    margin: float = MARGIN
    level: float = LEVEL
    planned: tuple[int, ...] = ()
    looks: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ValueError(
                f"margin={100 * self.margin:g} is out of range; allowed: above 0, below 100 points"
            )

    @classmethod
    def until_decided(cls, margin: float) -> Reading:
        """Return the plan of a study that runs until it is decided."""
        return cls(margin, LOOK_LEVEL, LOOKS)

    @classmethod
    def of(cls, folder: Path) -> Reading:
        """Read it from a folder; the usual one where it holds no study, or an earlier version's.

        Raises:
            ValueError: `study.json` is damaged.
        """
        study = read_study(folder)
        if study is None or (stored := study.reading) is None:
            return cls()
        margins = stored.margins or ((stored.margin,) if stored.looks else ())  # an earlier version
        return cls(**vars(stored) | {"margins": margins})

    @classmethod
    def of_all(cls, folders: Sequence[Path]) -> Reading:
        """Return how studies and runs are read together: most strictly, and after all looks.

        A run that stands in a study's folder counts as that study, which was read with it. Of
        several studies a look at all seeds of one is no earlier look: none were added after it.

        Raises:
            ValueError: a `study.json` is damaged.
        """
        whole = [
            folder.absolute().parent if (folder / "config.json").exists() else folder
            for folder in folders
        ]
        found = [cls.of(folder) for folder in whole]
        if len({folder.resolve() for folder in whole}) > 1:
            found = [
                replace(one, looks=tuple(n for n in one.looks if n != begun_seeds(folder)))
                for one, folder in zip(found, whole, strict=True)
            ]
        plans = {one.planned for one in found}
        return replace(
            min(found, key=lambda one: one.level),
            margin=min(one.margin for one in found),
            planned=plans.pop() if len(plans) == 1 else (),  # one without a plan has none to count
            looks=tuple(sorted({look for one in found for look in one.looks})),
            margins=tuple(sorted({margin for one in found for margin in one.margins})),
        )

    def go_on(self, wanted: Reading, folder: Path) -> Reading:
        """Return how a study goes on that was read like this and shall be like `wanted`.

        Raises:
            ValueError: looks are planned for a study that was read without a plan.
        """
        if wanted.planned and not self.planned and self.looks:
            seeds = ", ".join(map(str, self.looks))
            raise ValueError(
                f"{folder} was read with {seeds} seeds already, which no plan of looks has "
                "counted; choose another --out"
            )
        kept = self if self.planned else wanted
        return replace(kept, margin=wanted.margin, looks=self.looks, margins=self.margins)

    def with_look(self, seeds: int, margin: float | None = None) -> Reading:
        """Return it with one more look, within a margin; None: its own."""
        margins = {*self.margins, self.margin if margin is None else margin}
        looks = {*self.looks, seeds}
        return replace(self, looks=tuple(sorted(looks)), margins=tuple(sorted(margins)))

    @property
    def other_margins(self) -> tuple[float, ...]:
        """Those within which it has been read, but for its own."""
        return tuple(margin for margin in self.margins if margin != self.margin)

    def unplanned_looks(self, seeds: int) -> tuple[int, ...]:
        """Return the looks before this one that no plan has counted."""
        return tuple(n for n in self.looks if n < seeds and n not in self.planned)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


def record_look(folder: Path, seeds: int, margin: float) -> None:
    """Note in the `study.json` of a folder that the study was read with so many seeds.

    Args:
        folder: of the study.
        seeds: how many.
        margin: within which it was read, 0 to 1.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be written.
    """
    read, path = Reading.of(folder), folder / "study.json"
    if (now := read.with_look(seeds, margin)) != read:
        write_json(path, read_json(path, dict[str, Any]) | {"reading": now.to_dict()})


def record_looks(entrants: Sequence[Sequence[Path]], margin: float) -> None:
    """Note in the studies that runs stand in that they were read, finished or not.

    Where one network lacks seeds of another, as while a study is trained, their pair was read with
    the fewer. Nothing is noted where the study was read with as many seeds and that margin before.

    Args:
        entrants: for each network the folders of its runs that were read.
        margin: within which they were, 0 to 1.

    Warns:
        UnloggedReadingWarning: a study is read-only, so nothing is noted there.
    """
    read: dict[Path, list[int]] = {}
    for folders in entrants:
        for study, seeds in Counter(folder.absolute().parent for folder in folders).items():
            read.setdefault(study, []).append(seeds)
    for study, counts in read.items():
        if not (study / "study.json").exists():
            continue
        before = Reading.of(study)
        last = max(before.looks, default=0)
        if last < max(counts) or margin not in before.margins:
            with warn_if_read_only(study):
                record_look(study, min(counts) if last < max(counts) else last, margin)


def begun_seeds(folder: Path) -> int:
    """Return how many seeds the study of a folder was last begun with; 0 where there is none.

    Raises:
        ValueError: `study.json` is damaged.
    """
    study = read_study(folder)
    return max((run.seed + 1 for run in study.runs), default=0) if study else 0


def read_study(folder: Path) -> StoredStudy | None:
    """Return what stands in `study.json`; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    return find_json(folder / "study.json", StoredStudy)


@dataclass(frozen=True)
class StoredStudy:
    """What the program reads of study.json; more stands there."""

    runs: list[StoredRun]
    reading: StoredReading | None = None


@dataclass(frozen=True)
class StoredRun:
    """A run in study.json."""

    folder: Annotated[str, Meta(pattern=r"^[^/\\]+$")]
    model: str
    recipe: str
    seed: int

    def __str__(self) -> str:
        is_fold = self.folder.endswith(f"-fold-{self.seed + 1}")
        return f"{self.model} " + (f"fold {self.seed + 1}" if is_fold else f"seed {self.seed}")


@dataclass(frozen=True)
class StoredReading:
    """A reading as it is written: nothing of it may be missing, but what came later."""

    margin: float
    level: float
    planned: tuple[int, ...]
    looks: tuple[int, ...]
    margins: tuple[float, ...] = ()
