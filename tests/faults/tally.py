"""What came of the cases, by part of the campaign and kind, in a file that it goes on from."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from halfmeg.files import read_json, write_json

HANG_SECONDS = 120.0
STEP_SECONDS = 150.0
"""About how long a kind runs before what came of it is stored and the next has its turn."""


@dataclass
class Tally:
    """What came of the cases of one kind; tallies of the same kind are added.

    Attributes:
        cases: how many were tried; the number of the next one.
        told: what is to be known of those that did not end as they must.
    """

    cases: int = 0
    told: list[str] = field(default_factory=list)

    HEAD: ClassVar[tuple[str, ...]] = ("cases",)

    @property
    def faults(self) -> int:
        """How many cases did not end as they must."""
        return len(self.told)

    def cells(self) -> tuple[int, ...]:
        """Return a row of docs/reliability.md, below `HEAD`."""
        return (self.cases,)

    def add(self, other: Tally) -> None:
        """Add what came of further cases."""
        for each in fields(self):
            one, more = getattr(self, each.name), getattr(other, each.name)
            largest = each.name in ("peak_bytes", "states")
            setattr(self, each.name, max(one, more) if largest else one + more)


@dataclass
class InputTally(Tally):
    """Of mutated inputs."""

    refused: int = 0
    right: int = 0
    silent: int = 0
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    peak_bytes: int = 0

    HEAD = "cases", "refused", "as stored", "tracebacks", "crashes", "hangs", "silent", "MB"

    def cells(self) -> tuple[int, ...]:
        return (
            self.cases, self.refused, self.right, self.tracebacks, self.crashes, self.hangs,
            self.silent, round(self.peak_bytes / 1e6),
        )  # fmt: skip


@dataclass
class FileTally(Tally):
    """Of mutated picture files.

    Attributes:
        refused: files that cannot be read, as both commands say.
        read: files that both take.
        over_memory: files with which a command takes more than 1 GB.
        peak_bytes: the largest memory of a process.
    """

    refused: int = 0
    read: int = 0
    tracebacks: int = 0
    crashes: int = 0
    hangs: int = 0
    over_memory: int = 0
    silent: int = 0
    peak_bytes: int = 0

    HEAD = (
        "files", "refused", "read", "tracebacks", "crashes", "hangs", "above 1 GB", "silent",
        "largest process, MB",
    )  # fmt: skip

    def cells(self) -> tuple[int, ...]:
        return (
            self.cases, self.refused, self.read, self.tracebacks, self.crashes, self.hangs,
            self.over_memory, self.silent, round(self.peak_bytes / 1e6),
        )  # fmt: skip


@dataclass
class KillTally(Tally):
    """Of kills and power cuts.

    Attributes:
        kills: how often a process was ended, or the power cut.
        losses: what was finished before and was not there any more, or was made again.
        mismatches: other bits at the end than without a kill.
        failures: what could not be started again.
        leftovers: what is still there after the same has been run once more.
        states: of the disk, how many there are to be tried; 0 for kills.
    """

    kills: int = 0
    losses: int = 0
    mismatches: int = 0
    failures: int = 0
    leftovers: int = 0
    states: int = 0

    HEAD = "cases", "kills", "losses", "mismatches", "failures", "left behind"

    def cells(self) -> tuple[int, ...]:
        return (
            self.cases, self.kills, self.losses, self.mismatches, self.failures, self.leftovers,
        )  # fmt: skip


@dataclass
class RequestTally(Tally):
    """Of requests to the page.

    Attributes:
        answered: images that the networks named.
        refused: requests with a status of 400 to 499.
        wrong: answered with another status or class than they must.
        lines: printed above one for each refused request, or of a traceback.
        peak_bytes: how much the server grew after the first quarter.
        leftovers: uploads that were still there.
    """

    answered: int = 0
    refused: int = 0
    wrong: int = 0
    lines: int = 0
    leftovers: int = 0
    peak_bytes: int = 0

    HEAD = "requests", "answered", "refused", "wrong", "lines", "left behind", "MB"

    def cells(self) -> tuple[int, ...]:
        return (
            self.cases, self.answered, self.refused, self.wrong, self.lines, self.leftovers,
            round(self.peak_bytes / 1e6),
        )  # fmt: skip


PARTS: dict[str, type[Tally]] = {
    "kills": KillTally,
    "power cuts": KillTally,
    "inputs": InputTally,
    "files": FileTally,
    "requests": RequestTally,
}


@dataclass(frozen=True)
class Job:
    """What is to be tried.

    Attributes:
        part: of the campaign.
        kind: of the part.
        count: of the cases in all.
        run: takes the kind, the number of its next case and how many are missing, and tries some.
    """

    part: str
    kind: str
    count: int
    run: Callable[[str, int, int], Tally]


class Results:
    """Tallies by part and kind, kept in a JSON file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        stored: dict[str, Any] = {}
        if path is not None and path.exists():
            stored = read_json(path, dict[str, Any])
        self.commits: list[str] = stored.pop("commits", [])
        self.commit = commit_now()
        self.parts = {
            part: {kind: cls(**told) for kind, told in stored.get(part, {}).items()}
            for part, cls in PARTS.items()
        }

    def of(self, part: str, kind: str) -> Tally:
        """Return what came so far of a kind."""
        return self.parts[part].setdefault(kind, PARTS[part]())

    def add(self, part: str, kind: str, tally: Tally) -> None:
        """Add what came of further cases, and store it."""
        self.of(part, kind).add(tally)
        if self.commit not in self.commits:
            self.commits.append(self.commit)
        if self.path is not None:
            parts = {
                name: {kind: asdict(tally) for kind, tally in kinds.items()}
                for name, kinds in self.parts.items()
            }
            write_json(self.path, {"commits": self.commits} | parts)

    @property
    def faults(self) -> int:
        """How many cases did not end as they must."""
        return sum(tally.faults for kinds in self.parts.values() for tally in kinds.values())

    def go_on(self, jobs: Sequence[Job], first: int) -> None:
        """Run what is missing of each job, a while of each in turn; `first` is the first case."""
        left = [job for job in jobs if job.count]
        while left:
            for job in list(left):
                done = self.of(job.part, job.kind).cases
                missing = job.count - done
                if missing > 0:
                    tally = job.run(job.kind, first + done, missing)
                    self.add(job.part, job.kind, tally)
                if missing <= 0 or not tally.cases:
                    left.remove(job)

    def print(self) -> None:
        """Print the tables of docs/reliability.md."""
        for part, kinds in self.parts.items():
            if not kinds:
                continue
            head = [part, *PARTS[part].HEAD]
            print("| " + " | ".join(head) + " |\n|---|" + "---|" * (len(head) - 1))
            for kind, tally in kinds.items():
                print(f"| {kind} | " + " | ".join(f"{cell:,}" for cell in tally.cells()) + " |")
            print()
        told = [line for kinds in self.parts.values() for t in kinds.values() for line in t.told]
        print("".join(f"  {line}\n" for line in told), end="")
        print(f"{self.faults} faults; commits: {', '.join(self.commits)}")


def commit_now() -> str:
    """Return the commit that runs, with a star where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=*", "--abbrev=7", "--exclude=*"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"
