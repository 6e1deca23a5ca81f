"""Mutated picture files through `halfmeg data check` and `halfmeg predict`, many to a process.

A batch is a folder of classes: sound pictures, and damaged ones of one format. Both commands have
to end by themselves, without a traceback, within the memory; they have to name every file, to agree
about which can be read, and to read the sound ones. Of a batch that did not, the file is found by
halving it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pictures import VARIANTS, damaged_picture, picture
from tally import FileTally

BATCH = 1000
MAX_BYTES = 10**9
BATCH_SECONDS = 600.0
"""Of one command on one batch, on a machine that others use too; it takes some seconds."""

CLASSES = ("cat", "dog")
SOUND = 6
"""Pictures in each class that are not damaged."""

ODD_NAMES = ("{}", "{}", "{}", "{}.PNG", "{} [copy]", "é{}", "{}.jpg", "[b]{}", "{}\n", "-{}")


@dataclass
class Batch:
    """What came of some files.

    Attributes:
        faults: what did not end as it must, by the attribute of `FileTally` that counts it.
        refused: the files that cannot be read.
        peak_bytes: the larger of both commands.
    """

    faults: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    peak_bytes: int = 0


def run_files(kind: str, first: int, count: int) -> FileTally:
    """Run the next files of a format, one batch of them.

    Args:
        kind: an ending of `VARIANTS`.
        first: number of the first file.
        count: how many are missing.
    """
    numbers = range(first, first + min(count, BATCH))
    tally = FileTally()
    files = {file_name(kind, number): damaged(kind, number) for number in numbers}
    found = try_files(files)
    tally.cases = len(files)
    tally.peak_bytes = found.peak_bytes
    if not found.faults:
        tally.refused, tally.read = len(found.refused), len(files) - len(found.refused)
        return tally
    for name, faults in culprits(files, try_files, found).items():
        for what, told in faults.items():
            setattr(tally, what, getattr(tally, what) + 1)
            tally.told.append(f"{kind} {name!r}: {what}: {told}")
    return tally


def damaged(kind: str, number: int) -> bytes:
    """Return the content of a file, always the same for a number."""
    return damaged_picture(kind, random.Random(f"{kind} {number}"))


def file_name(kind: str, number: int) -> str:
    """Return a name, some of them odd; a few have no ending, or that of another format."""
    rng = random.Random(f"name {kind} {number}")
    ending = rng.choice((*[kind] * 18, kind.upper(), rng.choice([*VARIANTS])))
    return rng.choice(ODD_NAMES).format(number) + ("" if number % 50 == 0 else ending)


def culprits(
    files: dict[str, bytes], attempt: Callable[[dict[str, bytes]], Batch], found: Batch
) -> dict[str, dict[str, str]]:
    """Return the faults by file; those of no single file stand under the first of the batch."""
    if not found.faults:
        return {}
    names = [*files]
    if len(names) == 1:
        return {names[0]: found.faults}
    told: dict[str, dict[str, str]] = {}
    for part in (names[: len(names) // 2], names[len(names) // 2 :]):
        half = {name: files[name] for name in part}
        told |= culprits(half, attempt, attempt(half))
    return told or {
        names[0]: {what: f"{len(names)} together: {t}" for what, t in found.faults.items()}
    }


def try_files(files: dict[str, bytes]) -> Batch:
    """Run both commands on a folder of the files and of sound pictures."""
    batch = Batch()
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        photos = Path(made) / "photos"
        sound = write_pictures(photos, files)
        check = command(["data", "check", str(photos), "--json"], made)
        answer = command(["predict", str(photos), "--json", "--top", "1"], made)
        batch.peak_bytes = max(check.peak_bytes, answer.peak_bytes)
        for done in (check, answer):
            batch.faults |= done.faults()
        if batch.faults:
            return batch
        try:
            judge(batch, photos, sound, json.loads(check.out), json.loads(answer.out))
        except (ValueError, LookupError, TypeError) as error:
            batch.faults["silent"] = f"answers of another form: {error!r:.200}"
    return batch


def write_pictures(photos: Path, files: dict[str, bytes]) -> set[Path]:
    """Write damaged files and sound ones into classes; return the sound ones."""
    sound = set()
    for number, name in enumerate(CLASSES):
        (photos / name).mkdir(parents=True)
        for index in range(SOUND):
            path = photos / name / f"sound{index}.png"
            path.write_bytes(picture(".png", 0, 2 * index + number))
            sound.add(path)
    for index, (name, content) in enumerate(files.items()):
        (photos / CLASSES[index % 2] / name).write_bytes(content)
    return sound


def judge(batch: Batch, photos: Path, sound: set[Path], report: Any, answers: Any) -> None:
    """Compare what both commands say about the files with each other, and with what is there."""
    there = {str(path) for path in photos.glob("*/*")}
    passed_over = {str(photos / item["path"]) for item in report["passed_over"]}
    marker = "unreadable: "
    lines = [line.removeprefix(marker) for line in report["problems"] if line.startswith(marker)]
    # A line is the file's name, which may hold anything, ": " and the reason.
    unreadable = {
        name for name in there - passed_over
        if any(line.startswith(f"{os.path.relpath(name, photos)}: ") for line in lines)
    }  # fmt: skip
    used = report["train"] + report["validation"] + report["test"]
    refused = {answer["path"] for answer in answers if "error" in answer}
    named = {answer["path"] for answer in answers}
    reasons = [line.rpartition(": ")[2] for line in lines]
    reasons += [answer["error"] for answer in answers if "error" in answer]
    wrong = {
        "data check leaves files out": report["files"] != len(there),
        "data check counts otherwise than it names": len(lines) != len(unreadable)
        or used + len(lines) + len(passed_over) != len(there),
        "predict answers for other files": named != there - passed_over
        or len(answers) != len(named),
        "one reads what the other refuses": refused != unreadable,
        "a sound picture is refused": bool(set(map(str, sound)) & (refused | passed_over)),
        "a reason is empty or of several lines": any(
            not reason.strip() or "\n" in reason for reason in reasons
        ),
    }
    if said := [what for what, is_so in wrong.items() if is_so]:
        odd = sorted(refused ^ unreadable | named ^ (there - passed_over))[:3]
        batch.faults["silent"] = "; ".join((*said, *odd))
    batch.refused = refused | passed_over


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int | None
    out: str
    err: str
    peak_bytes: int

    def faults(self) -> dict[str, str]:
        """Return what did not end as it must."""
        last = self.err.strip().splitlines()[-1][-200:] if self.err.strip() else ""
        strange = [
            line for line in self.err.splitlines() if line and not line.startswith("halfmeg: ")
        ]
        if self.code is None:
            return {"hangs": f"more than {BATCH_SECONDS:.0f} s"}
        if self.code < 0:
            return {"crashes": signal.Signals(-self.code).name}
        if "Traceback (most recent call last)" in self.err:
            return {"tracebacks": last}
        if self.peak_bytes > MAX_BYTES:
            return {"over_memory": f"{self.peak_bytes / 1e6:,.0f} MB"}
        if self.code not in (0, 1):
            return {"silent": f"exit code {self.code}: {last}"}
        if strange:
            return {"silent": f"a line that is not the program's: {strange[0][:200]}"}
        return {}


def command(arguments: list[str], folder: str) -> Done:
    """Run halfmeg; its largest memory is what the kernel says of that process alone.

    A small process starts it: Linux counts the memory of who starts a process as its own,
    and a test's worker holds more than is allowed here.
    """
    environment = os.environ | {
        "HALFMEG_CACHE": f"{folder}/cache", "TMPDIR": folder, "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]),
    }  # fmt: skip
    with (Path(folder) / "out").open("w+b") as out, (Path(folder) / "err").open("w+b") as err:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", STARTER, "measured", "-m", "halfmeg", *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        late = threading.Event()

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        watch = threading.Timer(BATCH_SECONDS, stop)
        watch.start()
        process.wait()
        watch.cancel()
        out.seek(0)
        err.seek(0)
        said = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        if late.is_set():
            return Done(None, *said, 0)
        code, kilobytes = map(int, (Path(folder) / "measured").read_text().split())
        return Done(code, *said, kilobytes * 1024)


ROOT = Path(__file__).parent.parent.parent
STARTER = """
import resource, subprocess, sys
code = subprocess.call([sys.executable, *sys.argv[2:]])
most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
with open(sys.argv[1], "w") as file:
    file.write(f"{code} {most}")
"""
